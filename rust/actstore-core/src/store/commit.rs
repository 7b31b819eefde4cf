//! How a commit is published (docs/format.md): data, new nodes, the record, then shapes and the root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::ThreadPool;
use rayon::prelude::*;
use serde_json::Value;

use crate::error::Result;
use crate::format::record::{ArrayRecord, FORMAT, Record, Root};
use crate::format::zarr;
use crate::process::Task;
use crate::store::array_writer::ArrayWriter;
use crate::store::files::{self, COMMITS};
use crate::store::writer::Writer;

impl Writer {
    /// Publishes everything that was appended, added or set, and returns the number of the record. It is durable on
    /// return.
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

    /// Up to the record's link nothing changes for readers of our records. After it, everything is committed, and
    /// shapes and the root follow.
    pub(super) fn publish(&mut self, state: Value, number: u64) -> Result<()> {
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

        // 4. Shapes, and the root.
        self.finish()
    }

    /// The steps after a record. When one fails, the commit stands and the next call tries again.
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

    pub(super) fn roll_shapes(&mut self) -> Result<()> {
        let pool = Arc::clone(&self.pool);
        let rolled: Result<Vec<_>> =
            pool.install(|| self.arrays.par_iter_mut().map(|(_, array)| array.roll_shape()).collect());
        self.lagging.extend(rolled?.into_iter().flatten());
        Ok(())
    }

    fn next_record(&self, state: Value, number: u64, checkpoint: bool) -> Record {
        let before = |name: &str| self.record.arrays.get(name);
        let changed = self.record.attributes.as_ref() != Some(&self.attributes);
        Record {
            format: FORMAT,
            number,
            checkpoint: if checkpoint { number } else { self.record.checkpoint },
            generation: self.record.generation,
            root: Root {
                metadata: zarr::checksum(&self.root()),
                previous: if number == 0 { zarr::checksum(&self.root()) } else { self.record.root.metadata },
            },
            attributes: (checkpoint || changed).then(|| self.attributes.clone()),
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

    pub(super) fn write_root(&mut self) -> Result<()> {
        self.lagging.push(self.path.clone());
        files::replace(&self.path, &self.path.join("zarr.json"), self.root().to_string().as_bytes())
    }

    /// For a compaction: the newest record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// For a compaction: publishes a checkpoint of the same rows in other files.
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

/// Writes a record and links it under its number.
fn publish_record(store: &Path, number: u64, text: &str) -> Result<()> {
    let staged = files::stage(store, text.as_bytes())?;
    let published = files::publish(&staged, &store.join(COMMITS).join(files::record_name(number)));
    if published.is_err() {
        let _ = fs::remove_file(&staged);
    }
    published
}

/// Removes records that no later one builds on. One that stays does no harm.
fn drop_records(store: &Path, below: u64) {
    for number in files::record_numbers(store).unwrap_or_default().into_iter().filter(|n| *n < below) {
        let _ = fs::remove_file(store.join(COMMITS).join(files::record_name(number)));
    }
}
