//! The one writer of a store, and the protocol by which it commits (docs/format.md).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::ThreadPool;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::format::memory;
use crate::format::record::{ArrayRecord, FORMAT, Record, Root};
use crate::format::zarr::{self, ArraySpec};
use crate::process::{Task, pool};
use crate::selection::Rows;
use crate::store::array_writer::ArrayWriter;
use crate::store::files::{self, COMMITS, TEMPORARY};
use crate::store::lock::Lock;
use crate::store::pipeline::Buffers;
use crate::store::place::{Place, is_leftover};
use crate::store::reader::Reader;
use crate::store::view::View;
use crate::store::{Verify, compact};

/// An automatic commit is due at the latest when so many bytes are not committed.
const DUE: u64 = 1 << 30;

/// A store open for writing.
pub struct Writer {
    path: PathBuf,
    lock: Lock,
    pool: Arc<ThreadPool>,
    buffers: Buffers,
    /// The root group's attributes.
    attributes: Value,
    /// All groups but the root, and their metadata.
    groups: BTreeMap<String, Value>,
    arrays: BTreeMap<String, ArrayWriter>,
    /// Nodes whose `zarr.json` is not on disk yet.
    unwritten: Vec<String>,
    /// The newest record, merged with those it builds on.
    record: Record,
    /// Bytes of the last checkpoint, and of the records since.
    checkpoint_bytes: u64,
    since_bytes: u64,
    dirty: bool,
    /// Records below this number are not needed: there is a checkpoint, and another one after it for
    /// readers that were just about to read.
    obsolete: u64,
    /// Whether the last record's link may not be durable.
    unsynced: bool,
    /// Folders in which `zarr.json` was replaced after the last record: to be durable before the next,
    /// for a shape may lag by one record, not by two.
    lagging: Vec<PathBuf>,
}

impl Writer {
    /// A store of no rows in a folder that holds nothing but the lock; its first record is published.
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
        writer.add_arrays(arrays)?;
        writer.publish(state, 0)?;
        files::sync_folder(path)?;
        Ok(writer)
    }

    /// Opens a store to write behind what is committed; what an interrupted writer left goes.
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
        // The newest record may not be durable if its writer was killed: nothing may build on it before.
        files::sync_folder(&path.join(COMMITS))?;
        let reader = Reader::open(path, Verify::Always)?;
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
            attributes: reader.attributes(),
            groups,
            arrays,
            unwritten: Vec::new(),
            checkpoint_bytes: size(record.checkpoint),
            since_bytes: (record.checkpoint + 1..=record.number).map(size).sum(),
            record,
            dirty: false,
            obsolete: 0,
            unsynced: false,
            // The writer before this one may have left its last shapes undurable.
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root group's attributes.
    pub fn attributes(&self) -> &Value {
        &self.attributes
    }

    /// What was given with the last commit.
    pub fn state(&self) -> &Value {
        &self.record.state
    }

    /// Its arrays: name, shape with the rows appended so far, element type.
    pub fn arrays(&self) -> impl Iterator<Item = (&str, Vec<usize>, &'static str)> {
        self.arrays.values().map(|array| {
            let meta = array.meta();
            let mut shape = vec![array.rows() as usize];
            if meta.ndim == 3 {
                shape.extend_from_slice(&meta.shape[1..]);
            }
            (array.name.as_str(), shape, meta.dtype.name())
        })
    }

    /// More arrays, with no rows yet. They are on disk with the next commit.
    pub fn add_arrays(&mut self, specs: &[ArraySpec]) -> Result<()> {
        self.lock.check_process()?;
        let mut made = Vec::new();
        for spec in specs {
            let node = spec.metadata().map_err(|error| error.at(format!("array '{}'", spec.name)))?;
            if self.arrays.contains_key(&spec.name)
                || self.groups.contains_key(&spec.name)
                || made.iter().any(|(n, _)| *n == spec.name)
            {
                return Err(Error::new(Kind::Exists, format!("'{}' is there already", spec.name)));
            }
            made.push((spec.name.clone(), ArrayWriter::new(&self.path, &spec.name, node, None, Vec::new())?));
        }
        for (name, writer) in made {
            for (i, _) in name.match_indices('/') {
                let parent = &name[..i];
                if !self.groups.contains_key(parent) {
                    self.groups.insert(parent.to_string(), zarr::group(&json!({})));
                    self.unwritten.push(parent.to_string());
                }
            }
            self.unwritten.push(name.clone());
            self.arrays.insert(name, writer);
            self.dirty = true;
        }
        Ok(())
    }

    /// Appends rows (little-endian bytes) to arrays, to all or to none. True when enough is waiting
    /// that a commit is due.
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

    /// Whether an automatic commit is due: where a shard is full and little lies in the next one, which
    /// the commit after it has to copy; or else when a lot is waiting.
    fn is_due(&self) -> bool {
        let (mut fresh, mut copied) = (0, 0);
        for array in self.arrays.values() {
            let (written, tail) = array.fresh_and_tail();
            (fresh, copied) = (fresh + written, copied + tail);
        }
        let border = self.arrays.values().any(|array| array.meta().ndim == 3 && array.has_full());
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

    /// Publishes what was appended; durable on return. The number of the record.
    pub fn commit(&mut self, state: Value, task: &Task) -> Result<u64> {
        self.lock.check_place(&self.path)?;
        self.finish()?;
        if !self.dirty && state == self.record.state {
            return Ok(self.record.number);
        }
        for array in self.arrays.values_mut() {
            let staged = array.stage(&[], true, &self.pool, &self.buffers, task)?;
            array.apply(staged);
        }
        self.publish(state, self.record.number + 1)?;
        Ok(self.record.number)
    }

    /// The protocol (docs/format.md). Up to the record's link nothing changes for readers of our
    /// records; after it, everything is committed, and shapes follow.
    fn publish(&mut self, state: Value, number: u64) -> Result<()> {
        // 1. Data, durable under temporary names.
        let pool = Arc::clone(&self.pool);
        pool.install(|| self.arrays.par_iter_mut().try_for_each(|(_, array)| array.seal()))?;

        // 2. Nodes that are new, and shards under their names; then the folders.
        let mut folders = self.lagging.clone();
        for name in &self.unwritten {
            let folder = self.path.join(name);
            folders.extend(files::create_folders(&self.path, &folder)?);
            match self.groups.get(name) {
                Some(node) => files::replace(&self.path, &folder.join("zarr.json"), node.to_string().as_bytes())?,
                None => self.arrays[name].write_node()?,
            }
            folders.push(folder);
        }
        for array in self.arrays.values_mut() {
            folders.extend(array.publish()?);
        }
        sync_folders(&pool, &mut folders)?;
        self.unwritten.clear();
        self.lagging.clear();

        // 3. The record.
        let checkpoint = number == 0 || self.since_bytes > self.checkpoint_bytes;
        let record = self.next_record(state, number, checkpoint);
        let text = record.write();
        publish_record(&self.path, number, &text)?;
        if checkpoint {
            (self.checkpoint_bytes, self.since_bytes) = (text.len() as u64, 0);
            self.obsolete = self.record.checkpoint;
            self.record = record;
        } else {
            self.since_bytes += text.len() as u64;
            self.record = self.record.clone().merge(record)?;
        }
        self.arrays.values_mut().for_each(ArrayWriter::committed);
        (self.dirty, self.unsynced) = (false, true);

        // 4. Shapes.
        self.finish()
    }

    /// What follows a record. When it fails, the commit stands, and the next call tries again.
    fn finish(&mut self) -> Result<()> {
        if self.unsynced {
            files::sync_folder(&self.path.join(COMMITS))?;
            self.roll_shapes()?;
            self.write_root()?;
            self.unsynced = false;
            drop_records(&self.path, self.obsolete);
        }
        Ok(())
    }

    fn roll_shapes(&mut self) -> Result<()> {
        let pool = Arc::clone(&self.pool);
        let rolled: Result<Vec<_>> =
            pool.install(|| self.arrays.par_iter_mut().map(|(_, array)| array.roll_shape()).collect());
        self.lagging.extend(rolled?.into_iter().flatten());
        Ok(())
    }

    fn next_record(&self, state: Value, number: u64, checkpoint: bool) -> Record {
        let before = |name: &str| self.record.arrays.get(name);
        Record {
            format: FORMAT,
            number,
            checkpoint: if checkpoint { number } else { self.record.checkpoint },
            generation: self.record.generation,
            root: Root {
                metadata: zarr::checksum(&self.root()),
                previous: if number == 0 { zarr::checksum(&self.root()) } else { self.record.root.metadata },
            },
            attributes: checkpoint.then(|| self.attributes.clone()),
            groups: self.groups.iter().map(|(name, node)| (name.clone(), zarr::checksum(node))).collect(),
            arrays: self
                .arrays
                .iter()
                .map(|(name, array)| (name.clone(), array.record(before(name), checkpoint)))
                .collect(),
            state,
        }
    }

    fn root(&self) -> Value {
        let arrays = self.arrays.iter().map(|(name, array)| (name.clone(), array.node().clone()));
        let groups = self.groups.iter().map(|(name, node)| (name.clone(), node.clone()));
        zarr::root(&self.attributes, groups.chain(arrays).collect())
    }

    fn write_root(&mut self) -> Result<()> {
        self.lagging.push(self.path.clone());
        files::replace(&self.path, &self.path.join("zarr.json"), self.root().to_string().as_bytes())
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

    /// For a compaction: the record it starts from.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// For a compaction: publishes a record of the same rows in other files.
    pub(crate) fn replace_record(&mut self, arrays: BTreeMap<String, ArrayRecord>, generation: u64) -> Result<()> {
        let number = self.record.number + 1;
        let root = Root { metadata: self.record.root.metadata, previous: self.record.root.metadata };
        let attributes = Some(self.attributes.clone());
        let record = Record { number, checkpoint: number, generation, arrays, root, attributes, ..self.record.clone() };
        let text = record.write();
        let pool = Arc::clone(&self.pool);
        sync_folders(&pool, &mut self.lagging)?;
        self.lagging.clear();
        publish_record(&self.path, number, &text)?;
        files::sync_folder(&self.path.join(COMMITS))?;
        (self.checkpoint_bytes, self.since_bytes) = (text.len() as u64, 0);
        drop_records(&self.path, self.record.checkpoint);
        self.record = record;
        Ok(())
    }
}

fn sync_folders(pool: &ThreadPool, folders: &mut Vec<PathBuf>) -> Result<()> {
    folders.sort();
    folders.dedup();
    pool.install(|| folders.par_iter().try_for_each(|folder| files::sync_folder(folder)))
}

/// Gives a record its number.
fn publish_record(store: &Path, number: u64, text: &str) -> Result<()> {
    let staged = files::stage(store, text.as_bytes())?;
    let published = files::publish(&staged, &store.join(COMMITS).join(files::record_name(number)));
    if published.is_err() {
        let _ = fs::remove_file(&staged);
    }
    published
}

/// Removes records that nothing builds on any more. One that stays is no harm.
fn drop_records(store: &Path, below: u64) {
    for number in files::record_numbers(store).unwrap_or_default().into_iter().filter(|n| *n < below) {
        let _ = fs::remove_file(store.join(COMMITS).join(files::record_name(number)));
    }
}

/// What a killed writer put in place but never committed: shards past the record, and columns and derived
/// arrays that the record does not know. Other nodes that somebody put beside the store's own are left alone,
/// and so are links, which no writer makes.
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

/// Whether a node that the record does not know was left by a writer of ours: inside our groups any that is empty
/// yet, beside them a derived array.
pub(crate) fn is_orphan(store: &Path, path: &str) -> Result<bool> {
    let folder = store.join(path);
    let file = folder.join("zarr.json");
    let is_node = folder.is_dir() && file.is_file();
    if !is_node || !is_leftover(&folder)? {
        return Ok(false);
    }
    let node = files::read_json(&file).ok().flatten();
    Ok(path.contains('/') || node.is_some_and(|node| node.pointer("/attributes/actstore/derived").is_some()))
}
