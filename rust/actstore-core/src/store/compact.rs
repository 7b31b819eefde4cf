//! Frees the holes that commits leave: shards are copied without them, and swapped in so that a kill
//! at any moment leaves a store that reads.
//!
//! 1. The new files, durable under temporary names.
//! 2. A record by which each such shard may be the old or the new one.
//! 3. The renames.
//! 4. A record of the new ones alone.
//!
//! Views opened before then find shards that are not theirs and say "compacted, refresh()".

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::codec;
use crate::format::record::{ArrayRecord, Chunk, Compacted, Tail, end};
use crate::format::shard::{self, Span};
use crate::process::Task;
use crate::store::array_writer::{ALIGN, rename};
use crate::store::part::PartArray;
use crate::store::reader::{Reader, Usage};
use crate::store::shard_file::{OpenShard, read_seal};
use crate::store::writer::Writer;
use crate::store::{Verify, files};

/// What a compaction did.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Compaction {
    /// Bytes of all shards before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// The newest record.
    pub record: u64,
}

struct Rewritten {
    array: String,
    shard: usize,
    staged: PathBuf,
    path: PathBuf,
    length: u64,
    seal: u32,
    chunks: Vec<Chunk>,
}

/// Compacts the store at `path`. It takes the writer's lock.
pub fn compact(path: &Path, task: &Task) -> Result<Compaction> {
    let mut writer = Writer::append_to(path, task.threads)?;
    let reader = Reader::open(path, Verify::Always)?;
    let total = |usage: &BTreeMap<String, Usage>| usage.values().map(|u| u.stored_bytes).sum();
    let usage = reader.usage()?;
    let bytes_before = total(&usage);
    task.expect(usage.values().filter(|u| u.hole_bytes > 0).map(|u| u.stored_bytes - u.hole_bytes).sum());

    let mut rewritten = Vec::new();
    let done = rewrite_all(&reader, task, &mut rewritten).and_then(|()| swap(&mut writer, &rewritten));
    for one in &rewritten {
        let _ = fs::remove_file(&one.staged);
    }
    done?;
    let bytes_after = total(&Reader::open(path, Verify::Always)?.usage()?);
    Ok(Compaction { bytes_before, bytes_after, record: writer.record().number })
}

fn rewrite_all(reader: &Reader, task: &Task, rewritten: &mut Vec<Rewritten>) -> Result<()> {
    for name in reader.arrays() {
        let part = reader.part(&name)?;
        for number in 0..part.meta.grid()[0] {
            task.check()?;
            rewritten.extend(rewrite(&part, number, task)?);
        }
    }
    Ok(())
}

/// A copy of a shard without its holes; None when there are none, or only those of alignment.
fn rewrite(part: &PartArray, number: usize, task: &Task) -> Result<Option<Rewritten>> {
    let meta = &part.meta;
    let path = part.store.path.join(&part.name).join(meta.key([number, 0, 0]));
    let open = OpenShard::open(&path, meta, &part.expected(number)?, false)?;
    let open = open.ok_or_else(|| Error::new(crate::Kind::MissingShard, format!("{} is missing", path.display())))?;
    let align = if meta.chain.is_raw() { ALIGN } else { 1 };
    let packed: u64 = open.spans.iter().map(|s| s.length.next_multiple_of(align)).sum();
    if open.length <= packed + shard::seal_bytes(meta.chunks_per_shard()) as u64 {
        return Ok(None);
    }
    let staged = files::temporary(&part.store.path);
    let file = files::create(&staged)?;
    let write = || -> Result<(u64, u32, Vec<Chunk>)> {
        let io = |error: std::io::Error| Error::io("write", &staged, &error);
        let (mut end, mut chunks, mut buffer) = (0u64, Vec::new(), Vec::new());
        for i in 0..open.spans.len() {
            let bytes = open.chunk(i, &mut buffer)?.unwrap_or_default();
            codec::check(bytes).map_err(|error| error.at(format!("'{}', shard {number}, chunk {i}", part.name)))?;
            let offset = end.next_multiple_of(align);
            file.write_all_at(bytes, offset).map_err(io)?;
            let crc = bytes.last_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
            chunks.push(Chunk(offset, bytes.len() as u64, crc));
            end = offset + bytes.len() as u64;
            task.check()?;
            task.advance(bytes.len() as u64);
        }
        let (bytes, seal) = shard::write_seal(&chunks, meta.chunks_per_shard())?;
        file.write_all_at(&bytes, end).and_then(|()| file.sync_all()).map_err(io)?;
        Ok((end + bytes.len() as u64, seal, chunks))
    };
    match write() {
        Ok((length, seal, chunks)) => {
            Ok(Some(Rewritten { array: part.name.clone(), shard: number, staged, path, length, seal, chunks }))
        }
        Err(error) => {
            let _ = fs::remove_file(&staged);
            Err(error)
        }
    }
}

fn swap(writer: &mut Writer, rewritten: &[Rewritten]) -> Result<()> {
    let either = |arrays: &BTreeMap<String, ArrayRecord>| {
        let mut arrays = arrays.clone();
        for new in rewritten {
            let array = arrays.get_mut(&new.array).ok_or_else(|| Error::metadata("an array vanished"))?;
            match array.shards.get_mut(new.shard) {
                Some((_, sums)) => sums.push((new.length, new.seal)),
                None => {
                    if let Some(tail) = &mut array.tail {
                        tail.compacted =
                            Some(Compacted { length: new.length, seal: new.seal, chunks: new.chunks.clone() });
                    }
                }
            }
        }
        Ok::<_, Error>(arrays)
    };
    let settled = |arrays: &BTreeMap<String, ArrayRecord>| {
        let mut arrays = arrays.clone();
        for array in arrays.values_mut() {
            array.previous = array.rows;
            for (_, sums) in &mut array.shards {
                *sums = sums.split_off(sums.len() - 1);
            }
            if let Some(Tail { compacted: Some(new), .. }) = array.tail.take_if(|tail| tail.compacted.is_some()) {
                let end = end(&new.chunks);
                array.tail = Some(Tail { length: end, chunks: new.chunks, compacted: None });
            }
        }
        arrays
    };
    if rewritten.is_empty() {
        return Ok(());
    }
    let generation = writer.record().generation + 1;
    let store = writer.path().to_path_buf();
    writer.replace_record(either(&writer.record().arrays)?, generation)?;
    let mut folders = Vec::new();
    for new in rewritten {
        folders.extend(rename(&store, &new.staged, &new.path)?);
    }
    folders.sort();
    folders.dedup();
    folders.iter().try_for_each(|folder| files::sync_folder(folder))?;
    writer.replace_record(settled(&writer.record().arrays), generation)
}

/// The shards of an interrupted compaction are either old or new; what is found on disk is what counts.
pub(crate) fn settle(reader: &Reader, record: &mut crate::format::record::Record) -> Result<bool> {
    let mut changed = false;
    let mut folders = Vec::new();
    for name in reader.arrays() {
        let part = reader.part(&name)?;
        let Some(array) = record.arrays.get_mut(&name) else { continue };
        for (number, sums) in array.shards.iter_mut().filter(|(_, sums)| sums.len() > 1) {
            let path = part.store.path.join(&name).join(part.meta.key([*number as usize, 0, 0]));
            let file = File::open(&path).map_err(|error| Error::io("open", &path, &error))?;
            let length = file.metadata().map_err(|error| Error::io("read", &path, &error))?.len();
            let (_, _, seal) = read_seal(&file, &part.meta, length)?;
            folders.extend(path.parent().map(Path::to_path_buf));
            sums.retain(|sum| *sum == (length, seal));
            if sums.is_empty() {
                return Err(Error::checksum(format!(
                    "{} is neither the old nor the new shard of a compaction",
                    path.display()
                )));
            }
            changed = true;
        }
        if let Some(tail) = &mut array.tail
            && tail.compacted.is_some()
        {
            let path = part.store.path.join(&name).join(part.meta.key([array.shards.len(), 0, 0]));
            let open = OpenShard::open(&path, &part.meta, &part.expected(array.shards.len())?, false)?;
            let open =
                open.ok_or_else(|| Error::new(crate::Kind::MissingShard, format!("{} is missing", path.display())))?;
            folders.extend(path.parent().map(Path::to_path_buf));
            let new = tail.compacted.take().filter(|new| new.length == open.length && same(&new.chunks, &open.spans));
            if let Some(new) = new {
                let end = end(&new.chunks);
                *tail = Tail { length: end, chunks: new.chunks, compacted: None };
            }
            changed = true;
        }
    }
    // What is found must not be lost again once a record speaks of it alone.
    folders.iter().try_for_each(|folder| files::sync_folder(folder))?;
    Ok(changed)
}

fn same(chunks: &[Chunk], spans: &[Span]) -> bool {
    chunks.len() == spans.len() && chunks.iter().zip(spans).all(|(c, s)| c.0 == s.offset && c.1 == s.length)
}
