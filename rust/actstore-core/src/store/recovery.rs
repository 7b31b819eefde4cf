//! What a new writer does before anything else: takes the lock, opens the newest commit, and removes or completes
//! what an interrupted writer left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::memory;
use crate::format::record::Record;
use crate::process::{Task, pool};
use crate::selection::Rows;
use crate::store::array_writer::ArrayWriter;
use crate::store::files::{self, COMMITS, TEMPORARY};
use crate::store::lock::Lock;
use crate::store::pipeline::Buffers;
use crate::store::place::{Place, is_leftover};
use crate::store::reader::Reader;
use crate::store::view::View;
use crate::store::writer::Writer;
use crate::store::{Verify, compact};

impl Writer {
    /// Opens a store to append to its newest commit, and removes what an interrupted writer left.
    pub fn append_to(path: &Path, threads: usize) -> Result<Self> {
        let pool = pool(threads)?;
        if Place::of(path)? != Place::Zarr {
            View::open(path)?;
        }
        if files::record_numbers(path)?.is_empty() {
            View::open(path)?;
            return Err(Error::unsupported(format!(
                "{} is a Zarr group without commits: import it into a store to write to it",
                path.display()
            )));
        }
        let lock = Lock::take_existing(path)?;
        // The newest record may not be durable if its writer was killed. Nothing may build on it before it is.
        files::sync_folder(&path.join(COMMITS))?;
        let reader = Reader::open(path, Verify::Always)?;
        if let Some((name, error)) = reader.refused().first_key_value() {
            return Err(error.clone().at(format!("a store with array '{name}' cannot be written to")));
        }
        let mut record = reader.view().record.clone().ok_or_else(|| Error::metadata("no commit record"))?;
        for name in record.groups.keys() {
            files::refuse_links(path, &path.join(name))?;
        }
        for name in record.arrays.keys() {
            files::refuse_links(path, &path.join(name).join("c"))?;
        }
        let settled = compact::settle(&reader, &mut record)?;
        for name in files::list(&path.join(COMMITS))? {
            if name.starts_with(TEMPORARY) {
                let _ = fs::remove_file(path.join(COMMITS).join(name));
            }
        }
        for orphan in orphans(path, &record)? {
            let removed = if orphan.is_dir() { fs::remove_dir_all(&orphan) } else { fs::remove_file(&orphan) };
            removed.map_err(|error| Error::io("remove", &orphan, &error))?;
        }
        let mut groups = BTreeMap::new();
        for name in record.groups.keys() {
            groups.insert(name.clone(), files::read_json(&path.join(name).join("zarr.json"))?.unwrap_or_default());
        }
        let mut arrays = BTreeMap::new();
        for (name, array) in &record.arrays {
            let node = files::read_json(&path.join(name).join("zarr.json"))?.unwrap_or_default();
            let whole = reader.array(name)?;
            let chunk = whole.meta().chunk[0];
            let from = whole.rows() / chunk * chunk;
            let mut pending =
                memory::zeros((whole.rows() - from) * whole.meta().row_bytes(), "rows of a boundary chunk")?;
            whole.read(Rows::Range(from, whole.rows()), None, &mut pending, whole.meta().dtype, &Task::new(threads))?;
            let writer = ArrayWriter::new(path, name, node, Some(array), pending)?;
            arrays.insert(name.clone(), writer);
        }
        let size = |n: u64| fs::metadata(path.join(COMMITS).join(files::record_name(n))).map_or(0, |m| m.len());
        let mut writer = Writer {
            path: path.to_path_buf(),
            lock,
            pool,
            buffers: Buffers::default(),
            attributes: reader.attributes().clone(),
            groups,
            arrays,
            unwritten: Vec::new(),
            checkpoint_bytes: size(record.checkpoint),
            since_bytes: (record.checkpoint + 1..=record.number).map(size).sum(),
            record,
            dirty: false,
            obsolete: 0,
            unsynced: false,
            // The last shapes that the writer before this one wrote may not be durable.
            lagging: reader.arrays().iter().map(|name| path.join(name)).chain([path.to_path_buf()]).collect(),
        };
        writer.roll_shapes()?;
        writer.write_root()?;
        if settled {
            let (arrays, generation) = (writer.record.arrays.clone(), writer.record.generation);
            writer.replace_record(arrays, generation)?;
        }
        Ok(writer)
    }
}

/// What a killed writer put in place but never committed: shards past the record, and nodes that the record does
/// not name (see [`is_orphan`]). Nodes that somebody else put beside the store's own are left alone, and so are
/// links, which no writer makes.
pub(crate) fn orphans(store: &Path, record: &Record) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for name in files::list(&store.join(&folder))? {
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if record.groups.contains_key(&path) {
                if !store.join(&path).is_symlink() {
                    folders.push(path);
                }
            } else if let Some(array) = record.arrays.get(&path) {
                let known = array.shards.len() as u64 + u64::from(array.tail.is_some());
                let shards = store.join(&path).join("c");
                let past = |entry: &String| entry.parse::<u64>().is_ok_and(|number| number >= known);
                let past = files::list(&shards)?.into_iter().filter(past).map(|entry| shards.join(entry));
                found.extend(past.filter(|shard| !shard.is_symlink()));
            } else if is_orphan(store, &path)? {
                found.push(store.join(&path));
            }
        }
    }
    Ok(found)
}

/// Whether a writer of ours left a node that the record does not name. Inside our groups every node without rows is
/// such a leftover; in the root group, only one with the key `actstore` in its attributes.
pub(crate) fn is_orphan(store: &Path, path: &str) -> Result<bool> {
    let folder = store.join(path);
    let file = folder.join("zarr.json");
    let is_node = folder.is_dir() && file.is_file();
    if !is_node || !is_leftover(&folder)? {
        return Ok(false);
    }
    let node = files::read_json(&file).ok().flatten();
    Ok(path.contains('/') || node.is_some_and(|node| node.pointer("/attributes/actstore").is_some()))
}
