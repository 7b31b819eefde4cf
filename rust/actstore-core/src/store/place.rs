//! What there is where a store could be: nothing, a store, what a creation that was cut short has left, or
//! something that is not ours to touch.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::store::files::{self, COMMITS, TEMPORARY};

/// What there is where a store could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No folder, or one with nothing in it.
    Free,
    /// A root `zarr.json`: a store, or another Zarr node.
    Zarr,
    /// What a creation that was killed left; nobody has seen it, and no row was committed to it.
    Interrupted,
    /// Commit records without a root `zarr.json`: a store that lost it.
    Rootless,
    /// Something else.
    Other,
}

impl Place {
    /// Looks at a path.
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

/// What to do about a store that lost its root.
pub(crate) fn rootless(path: &Path) -> Error {
    Error::metadata(format!(
        "the root zarr.json of {0} is missing, its commits are there: `actstore verify --repair {0}` writes it anew",
        path.display()
    ))
}

/// Whether something of that name in `commits/` is ours.
pub(crate) fn is_of_commits(name: &str) -> bool {
    name == "lock" || name == "zarr.json" || name.starts_with(TEMPORARY) || files::record_number(name).is_some()
}

/// Whether a folder is there, and no link to one.
pub(crate) fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// All that a creation has made before it published, but its lock, what is in a folder before the folder.
/// None where there is anything that is not of this kind: another record than the first, a shard, a node
/// with rows, a link, a file of another name.
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
    // The lock comes before anything else.
    let locked = commits.join("lock").symlink_metadata().is_ok_and(|found| found.is_file());
    Ok((locked || found.is_empty()).then_some(found))
}

/// Whether a folder is what a killed writer left of a node that it had not committed: metadata of a group
/// without attributes or of an array without rows, for rows are told after the record, and perhaps shards.
pub(crate) fn is_leftover(folder: &Path) -> Result<bool> {
    empty_nodes(folder, true, 0, &mut Vec::new())
}

/// Whether a folder holds nothing but metadata of nodes without rows, and perhaps `shards`.
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
        Some("group") => node.get("attributes").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty),
        Some("array") => node.pointer("/shape/0").and_then(Value::as_u64) == Some(0),
        _ => false,
    })
}

/// Whether a folder holds nothing but files called by numbers, in folders called by numbers.
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
