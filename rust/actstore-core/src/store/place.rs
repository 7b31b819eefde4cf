//! Classifies a path: nothing, a store, the remains of an interrupted creation, or something that is not ours.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::store::files::{self, COMMITS, TEMPORARY};

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No folder, or one with nothing in it.
    Free,
    /// A root `zarr.json`: a store, or another Zarr node.
    Zarr,
    /// The remains of a creation that was killed. No reader has seen it, and it has no committed rows.
    Interrupted,
    /// Commit records without a root `zarr.json`: a store that lost it.
    Rootless,
    /// Something else.
    Other,
}

impl Place {
    /// Examines a path.
    pub fn of(path: &Path) -> Result<Self> {
        if path.join("zarr.json").symlink_metadata().is_ok() {
            return Ok(Place::Zarr);
        }
        if path.symlink_metadata().is_ok() && !path.is_dir() {
            return Ok(Place::Other);
        }
        if files::list(path)?.is_empty() {
            return Ok(Place::Free);
        }
        if remains(path)?.is_some() {
            return Ok(Place::Interrupted);
        }
        Ok(if files::record_numbers(path)?.is_empty() { Place::Other } else { Place::Rootless })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Place::Free => "free",
            Place::Zarr => "zarr",
            Place::Interrupted => "interrupted",
            Place::Rootless => "rootless",
            Place::Other => "other",
        }
    }
}

/// The error for a store that lost its root; it says how to restore it.
pub(crate) fn rootless(path: &Path) -> Error {
    Error::metadata(format!(
        "{0} has commits but no root zarr.json: `actstore verify --repair {0}` restores it",
        path.display()
    ))
}

/// Whether a file of this name in `commits/` is ours.
pub(crate) fn is_of_commits(name: &str) -> bool {
    name == "lock" || name == "zarr.json" || name.starts_with(TEMPORARY) || files::record_number(name).is_some()
}

/// Whether a path is a folder, and not a link to one.
pub(crate) fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Everything that an interrupted creation made, except its lock, with the contents of a folder before the folder.
/// None where there is anything else: a later record, a shard, a node with rows, a link, a file of another name.
pub(crate) fn remains(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let mut found = Vec::new();
    let commits = path.join(COMMITS);
    if !is_folder(&commits) {
        return Ok(None);
    }
    for name in files::list(&commits)? {
        let first = files::record_number(&name).is_none_or(|number| number == 0);
        let one = commits.join(&name);
        if !is_of_commits(&name) || !first || !one.symlink_metadata().is_ok_and(|found| found.is_file()) {
            return Ok(None);
        }
        if name != "lock" {
            found.push(one);
        }
    }
    for name in files::list(path)?.into_iter().filter(|name| name != COMMITS) {
        if !empty_nodes(&path.join(name), false, 0, &mut found)? {
            return Ok(None);
        }
    }
    // A creation makes the lock first.
    let locked = commits.join("lock").symlink_metadata().is_ok_and(|found| found.is_file());
    Ok((locked || found.is_empty()).then_some(found))
}

/// Whether a folder is what a killed writer left of a node that it had not committed: metadata of groups with no
/// attributes but ours, of arrays without rows (shapes are written after the record), and perhaps shards.
pub(crate) fn is_leftover(folder: &Path) -> Result<bool> {
    empty_nodes(folder, true, 0, &mut Vec::new())
}

/// Whether a folder holds nothing but the metadata of nodes without rows, and shards if `shards` is true.
fn empty_nodes(folder: &Path, shards: bool, depth: usize, found: &mut Vec<PathBuf>) -> Result<bool> {
    const DEEPEST: usize = 16;
    if !is_folder(folder) || depth > DEEPEST {
        return Ok(false);
    }
    for name in files::list(folder)? {
        let inner = folder.join(&name);
        if name == "zarr.json" {
            if !is_empty_node(&inner) {
                return Ok(false);
            }
            found.push(inner);
            continue;
        }
        let are_shards = shards && name == "c" && only_shards(&inner, 0)?;
        if !are_shards && !empty_nodes(&inner, shards, depth + 1, found)? {
            return Ok(false);
        }
    }
    found.push(folder.to_path_buf());
    Ok(true)
}

fn is_empty_node(file: &Path) -> bool {
    let node = if file.is_symlink() { None } else { files::read_json(file).ok().flatten() };
    node.is_some_and(|node| match node.get("node_type").and_then(Value::as_str) {
        Some("group") => {
            let attributes = node.get("attributes").and_then(Value::as_object);
            attributes.is_none_or(|attributes| attributes.keys().all(|key| key == "actstore"))
        }
        Some("array") => node.pointer("/shape/0").and_then(Value::as_u64) == Some(0),
        _ => false,
    })
}

/// Whether a folder holds nothing but files with numbers for names, in folders with numbers for names.
pub(crate) fn only_shards(folder: &Path, depth: usize) -> Result<bool> {
    if !is_folder(folder) || depth > 3 {
        return Ok(false);
    }
    for name in files::list(folder)? {
        let inner = folder.join(&name);
        let is_file = inner.symlink_metadata().is_ok_and(|found| found.is_file());
        if name.parse::<u64>().is_err() || !(is_file || only_shards(&inner, depth + 1)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
