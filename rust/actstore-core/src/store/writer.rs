//! The one writer of a store: what it is given waits here until a commit (`commit.rs`) publishes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::ThreadPool;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::format::record::{FORMAT, Record, Root};
use crate::format::zarr::{self, ArraySpec};
use crate::process::Task;
use crate::selection::Rows;
use crate::store::Verify;
use crate::store::array_writer::ArrayWriter;
use crate::store::files::{self, COMMITS};
use crate::store::lock::Lock;
use crate::store::pipeline::Buffers;
use crate::store::reader::Reader;

/// An automatic commit is due when at least this many bytes are uncommitted.
const DUE: u64 = 1 << 30;

/// A store open for writing.
pub struct Writer {
    pub(super) path: PathBuf,
    pub(super) lock: Lock,
    pub(super) pool: Arc<ThreadPool>,
    pub(super) buffers: Buffers,
    /// The root group's attributes, as the next commit publishes them.
    pub(super) attributes: Value,
    /// All groups but the root, and their metadata.
    pub(super) groups: BTreeMap<String, Value>,
    pub(super) arrays: BTreeMap<String, ArrayWriter>,
    /// Nodes whose `zarr.json` is not on disk yet.
    pub(super) unwritten: Vec<String>,
    /// The newest record, merged with those it builds on.
    pub(super) record: Record,
    /// Bytes of the last checkpoint, and of the records since.
    pub(super) checkpoint_bytes: u64,
    pub(super) since_bytes: u64,
    /// Whether a commit has something to publish.
    pub(super) dirty: bool,
    /// Records below this number are no longer needed. It is the checkpoint before the last one, because a reader may
    /// be about to read the records in between.
    pub(super) obsolete: u64,
    /// Whether the last record's link may not be durable.
    pub(super) unsynced: bool,
    /// Folders in which a `zarr.json` was replaced after the last record. They are made durable before the next one,
    /// because shapes and the root may lag by one record, not by two.
    pub(super) lagging: Vec<PathBuf>,
}

impl Writer {
    /// Makes a store without rows in a folder that holds only the lock, and publishes its first record.
    pub(crate) fn first(
        path: &Path,
        lock: Lock,
        attributes: Value,
        arrays: &[ArraySpec],
        state: Value,
        pool: Arc<ThreadPool>,
    ) -> Result<Self> {
        let group = zarr::group(&json!({}));
        let empty = Record {
            format: FORMAT,
            number: 0,
            checkpoint: 0,
            generation: 0,
            root: Root { metadata: 0, previous: 0 },
            attributes: None,
            groups: BTreeMap::new(),
            arrays: BTreeMap::new(),
            state: Value::Null,
        };
        let mut writer = Writer {
            path: path.to_path_buf(),
            lock,
            pool,
            buffers: Buffers::default(),
            attributes,
            groups: BTreeMap::from([(COMMITS.to_string(), group)]),
            arrays: BTreeMap::new(),
            unwritten: vec![COMMITS.to_string()],
            record: empty,
            checkpoint_bytes: 0,
            since_bytes: 0,
            dirty: true,
            obsolete: 0,
            unsynced: false,
            lagging: Vec::new(),
        };
        writer.insert_arrays(arrays, false)?;
        writer.publish(state, 0)?;
        files::sync_folder(path)?;
        Ok(writer)
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root group's attributes, as the next commit publishes them.
    pub fn attributes(&self) -> &Value {
        &self.attributes
    }

    /// Replaces the root group's attributes. The next commit publishes them.
    pub fn set_attributes(&mut self, attributes: Value) -> Result<()> {
        self.lock.check_process()?;
        const COMMITS_KEY: &str = "/actstore/commits";
        if !attributes.is_object() || attributes.pointer(COMMITS_KEY) != self.attributes.pointer(COMMITS_KEY) {
            return Err(Error::invalid("attributes: not an object, or with another value of actstore.commits"));
        }
        self.dirty |= attributes != self.attributes;
        self.attributes = attributes;
        Ok(())
    }

    /// The state that was given with the last commit.
    pub fn state(&self) -> &Value {
        &self.record.state
    }

    /// Its arrays: name, shape including the rows appended so far, element type.
    pub fn arrays(&self) -> impl Iterator<Item = (&str, Vec<usize>, &'static str)> {
        self.arrays.values().map(|array| {
            let meta = array.meta();
            let mut shape = vec![array.rows() as usize];
            if meta.ndim > 1 {
                shape.extend_from_slice(&meta.shape[4 - meta.ndim..]);
            }
            (array.name.as_str(), shape, meta.dtype.name())
        })
    }

    /// Adds arrays with no rows, and the groups they are in. They are on disk after the next commit.
    pub fn add_arrays(&mut self, specs: &[ArraySpec]) -> Result<()> {
        self.lock.check_process()?;
        self.insert_arrays(specs, true)
    }

    /// Adds groups by path, with their attributes, and the groups they are in. They are on disk after the next
    /// commit.
    pub fn add_groups(&mut self, groups: &BTreeMap<String, Value>) -> Result<()> {
        self.lock.check_process()?;
        for (name, attributes) in groups {
            if !zarr::valid_path(name) || !attributes.is_object() {
                return Err(Error::invalid(format!(
                    "'{name}' is not a valid path, or its attributes are not an object"
                )));
            }
            self.check_free(name)?;
        }
        for (name, attributes) in groups {
            self.insert_group(name, attributes.clone(), true);
        }
        Ok(())
    }

    fn insert_arrays(&mut self, specs: &[ArraySpec], mark: bool) -> Result<()> {
        let mut made = Vec::new();
        for spec in specs {
            let mut node = spec.metadata().map_err(|error| error.at(format!("array '{}'", spec.name)))?;
            if mark {
                mark_as_ours(&spec.name, &mut node["attributes"]);
            }
            self.check_free(&spec.name)?;
            if made.iter().any(|(name, _)| *name == spec.name) {
                return Err(Error::new(Kind::Exists, format!("'{}' is given twice", spec.name)));
            }
            made.push((spec.name.clone(), ArrayWriter::new(&self.path, &spec.name, node, None, Vec::new())?));
        }
        for (name, writer) in made {
            self.insert_parents(&name, mark);
            self.unwritten.push(name.clone());
            self.arrays.insert(name, writer);
            self.dirty = true;
        }
        Ok(())
    }

    fn insert_group(&mut self, name: &str, mut attributes: Value, mark: bool) {
        self.insert_parents(name, mark);
        if mark {
            mark_as_ours(name, &mut attributes);
        }
        self.groups.insert(name.to_string(), zarr::group(&attributes));
        self.unwritten.push(name.to_string());
        self.dirty = true;
    }

    fn insert_parents(&mut self, name: &str, mark: bool) {
        if let Some((parent, _)) = name.rsplit_once('/')
            && !self.groups.contains_key(parent)
        {
            self.insert_group(parent, json!({}), mark);
        }
    }

    /// An error when an array or a group has this path, or an array is above it.
    fn check_free(&self, name: &str) -> Result<()> {
        let above = name.match_indices('/').map(|(i, _)| &name[..i]).find(|parent| self.arrays.contains_key(*parent));
        if self.arrays.contains_key(name) || self.groups.contains_key(name) || above.is_some() {
            return Err(Error::new(Kind::Exists, format!("'{}' is there already", above.unwrap_or(name))));
        }
        Ok(())
    }

    /// Appends rows (little-endian bytes) to all of these arrays, or on an error to none. True when a commit is due.
    pub fn append(&mut self, rows: &[(&str, &[u8])], task: &Task) -> Result<bool> {
        self.lock.check_process()?;
        for (name, bytes) in rows {
            let array = self
                .arrays
                .get(*name)
                .ok_or_else(|| Error::not_found(format!("no array '{name}' in {}", self.path.display())))?;
            if bytes.len() % array.meta().row_bytes() != 0 {
                return Err(Error::shape(format!(
                    "{} bytes for '{name}', a row has {}",
                    bytes.len(),
                    array.meta().row_bytes()
                )));
            }
        }
        let mut staged = Vec::new();
        for (name, bytes) in rows {
            match self.arrays[*name].stage(bytes, false, &self.pool, &self.buffers, task) {
                Ok(one) => staged.push((*name, one)),
                Err(error) => {
                    drop(staged);
                    self.arrays.values().for_each(ArrayWriter::give_back_room);
                    return Err(error);
                }
            }
        }
        for (name, one) in staged {
            if let Some(array) = self.arrays.get_mut(name) {
                array.apply(one);
            }
        }
        self.dirty |= rows.iter().any(|(_, bytes)| !bytes.is_empty());
        Ok(self.is_due())
    }

    /// Whether an automatic commit is due: when a shard is full and its successor, which the commit after the next
    /// has to copy, is still small; in any case when `DUE` bytes wait.
    fn is_due(&self) -> bool {
        let (mut fresh, mut copied) = (0, 0);
        for array in self.arrays.values() {
            let (written, tail) = array.fresh_and_tail();
            (fresh, copied) = (fresh + written, copied + tail);
        }
        let border = self.arrays.values().any(|array| array.meta().ndim > 1 && array.has_full());
        (border && fresh >= 8 * copied) || fresh >= copied.max(DUE)
    }

    /// Rows of a 1-D array, committed or not.
    pub fn read(&self, name: &str, start: usize, stop: usize, out: &mut [u8]) -> Result<()> {
        let array = self.arrays.get(name).ok_or_else(|| Error::not_found(format!("no array '{name}'")))?;
        let row = array.meta().row_bytes();
        let behind = array.rows() as usize - array.pending().len() / row;
        if array.meta().ndim != 1 || start > stop || stop > array.rows() as usize || out.len() != (stop - start) * row {
            return Err(Error::invalid(format!("rows {start}..{stop} of '{name}'")));
        }
        let middle = stop.clamp(start.min(behind), behind).max(start.min(behind));
        let (old, new) = out.split_at_mut((middle - start.min(middle)) * row);
        if !old.is_empty() {
            let reader = Reader::open(&self.path, Verify::Always)?;
            reader.array(name)?.read(Rows::Range(start, middle), None, old, array.meta().dtype, &Task::new(1))?;
        }
        if !new.is_empty() {
            let from = (start.max(behind) - behind) * row;
            new.copy_from_slice(&array.pending()[from..from + new.len()]);
        }
        Ok(())
    }

    /// Its folder was renamed.
    pub(crate) fn moved(&mut self, path: &Path) {
        for folder in &mut self.lagging {
            if let Ok(inner) = folder.strip_prefix(&self.path) {
                *folder = path.join(inner);
            }
        }
        self.arrays.values_mut().for_each(|array| array.moved(path));
        self.path = path.to_path_buf();
    }
}

/// Gives a new member of the root group the key `actstore`: a later writer recognizes by it what an interrupted one
/// left there, and leaves nodes of others alone.
fn mark_as_ours(name: &str, attributes: &mut Value) {
    if !name.contains('/')
        && let Some(attributes) = attributes.as_object_mut()
    {
        attributes.entry("actstore").or_insert_with(|| json!({}));
    }
}
