//! Shards as they are opened: validated against the record once, then kept.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memmap2::Mmap;

use crate::error::{Error, Kind, Result};
use crate::format::memory;
use crate::format::record::{Chunk, ShardSum, Tail};
use crate::format::shard::{self, Span};
use crate::format::zarr::ArrayMeta;
use crate::store::{files, mmap};

/// Shards kept open at most; a mapped one holds no file descriptor but is one of the kernel's maps.
const KEPT: usize = 192;
/// Chunks of theirs at most: twenty bytes each. Of the largest shards there may be, four are kept.
const KEPT_CHUNKS: usize = 1 << 24;
/// What chunks are read into starts at the same place of a page as in the file: the kernel copies with
/// `rep movsb`, which is several times slower when the destination is a few bytes ahead of that.
const PAGE: usize = 4096;

/// What a shard must be.
pub enum Expected<'a> {
    /// A full shard of a record.
    Full(&'a ShardSum),
    /// A tail of a record.
    Tail(&'a Tail),
    /// Whatever is there: a foreign array.
    Any,
}

/// An open shard.
pub struct OpenShard {
    bytes: Bytes,
    /// Where its chunks lie.
    pub spans: Vec<Span>,
    /// The chunks' checksums, as the record pins them.
    sums: Option<Vec<u32>>,
    /// Its length in bytes.
    pub length: u64,
    /// A bit for each chunk of a mapped shard whose checksum was found right.
    checked: Vec<AtomicU64>,
}

enum Bytes {
    File(File),
    Map(Mmap),
}

impl OpenShard {
    /// Opens a shard; None when it is not there. `map` keeps it mapped rather than read by pread.
    pub fn open(path: &Path, meta: &ArrayMeta, expected: &Expected<'_>, map: bool) -> Result<Option<Self>> {
        let Some(file) = files::open(path)? else { return Ok(None) };
        let found = file.metadata().map_err(|error| Error::io("read", path, &error))?;
        let length = found.len();
        let chunks = meta.chunks_per_shard();

        let (spans, sums) = match expected {
            Expected::Tail(tail) => {
                let chunks = Self::tail_chunks(&file, meta, tail, length)?;
                let mut spans = Vec::new();
                memory::reserve(&mut spans, chunks.len(), "the chunks of a tail shard")?;
                spans.extend(chunks.iter().map(|c| Span { offset: c.0, length: c.1 }));
                if spans.len() > meta.chunks_per_shard()
                    || spans.iter().any(|s| s.offset.checked_add(s.length).is_none_or(|end| end > length))
                {
                    return Err(Error::metadata("the record points outside the tail shard"));
                }
                (spans, Some(chunks.iter().map(|c| c.2).collect()))
            }
            _ if meta.sharding.is_none() => {
                let limit = meta.chain.encoded_limit(meta.chunk_bytes());
                if length > limit as u64 {
                    return Err(Error::checksum(format!("{length} bytes, where a chunk has at most {limit}")));
                }
                (vec![Span { offset: 0, length }], None)
            }
            Expected::Full(sealed) => {
                if sealed.iter().all(|(bytes, _)| *bytes != length) {
                    let wanted = sealed.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
                    let kind = if length < wanted { Kind::Truncated } else { Kind::Checksum };
                    return Err(Error::new(kind, format!("{length} bytes, the record says {wanted}")));
                }
                let (spans, sums, seal) = read_seal(&file, meta, length)?;
                if !sealed.contains(&(length, seal)) {
                    return Err(Error::checksum(format!(
                        "its index and sums have crc32c {seal:08x}, not the record's"
                    )));
                }
                if spans.contains(&Span::ABSENT) {
                    return Err(Error::metadata("a full shard lacks chunks"));
                }
                (spans, Some(sums))
            }
            Expected::Any => (read_index(&file, meta, length)?, None),
        };
        shard::check_lengths(&spans, meta.chain.encoded_limit(meta.chunk_bytes()))?;
        let (bytes, checked) = if map {
            let map = mmap::map(&file).map_err(|error| Error::io("map", path, &error))?;
            (Bytes::Map(map), (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
        } else {
            (Bytes::File(file), Vec::new())
        };
        Ok(Some(OpenShard { bytes, spans, sums, length, checked }))
    }

    /// The record's chunks, or the compacted file's where that is in place already.
    fn tail_chunks<'a>(file: &File, meta: &ArrayMeta, tail: &'a Tail, length: u64) -> Result<&'a [Chunk]> {
        if let Some(compacted) = &tail.compacted
            && compacted.length == length
            && read_seal(file, meta, length).is_ok_and(|(_, _, seal)| seal == compacted.seal)
        {
            return Ok(&compacted.chunks);
        }
        if length < tail.length {
            return Err(Error::truncated(format!("{length} bytes, the record says at least {}", tail.length)));
        }
        Ok(&tail.chunks)
    }

    /// A chunk's bytes where they are mapped.
    pub fn mapped(&self, chunk: usize) -> Option<&[u8]> {
        let Bytes::Map(map) = &self.bytes else { return None };
        let span = self.spans.get(chunk).filter(|s| **s != Span::ABSENT)?;
        map.get(span.offset as usize..span.end() as usize)
    }

    /// A chunk's bytes, read into `buffer` unless mapped; None for one that is absent.
    pub fn chunk<'a>(&'a self, chunk: usize, buffer: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>> {
        let Some(span) = self.spans.get(chunk).copied().filter(|s| *s != Span::ABSENT) else {
            return Ok(None);
        };
        let bytes = match &self.bytes {
            Bytes::Map(map) => map
                .get(span.offset as usize..span.end() as usize)
                .ok_or_else(|| Error::truncated("the shard became shorter"))?,
            Bytes::File(file) => {
                let length = span.length as usize;
                memory::room(buffer, length + 2 * PAGE, "an encoded chunk")?;
                let here = buffer.as_ptr() as usize % PAGE;
                let start = (span.offset as usize % PAGE + PAGE - here) % PAGE;
                let bytes = &mut buffer[start..start + length];
                file.read_exact_at(bytes, span.offset).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => Error::truncated("the shard ends within the chunk"),
                    _ => Error::new(Kind::Io, format!("cannot read: {error}")),
                })?;
                bytes
            }
        };
        if let Some(sum) = self.sums.as_ref().and_then(|sums| sums.get(chunk))
            && bytes.last_chunk::<4>().map(|b| u32::from_le_bytes(*b)) != Some(*sum)
        {
            return Err(Error::checksum(format!("the chunk's crc32c is not {sum:08x}, as the record says")));
        }
        Ok(Some(bytes))
    }

    /// Whether a mapped chunk was found right before.
    pub fn is_checked(&self, chunk: usize) -> bool {
        self.checked.get(chunk / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (chunk % 64) & 1 == 1)
    }

    /// Remembers that a mapped chunk is right.
    pub fn set_checked(&self, chunk: usize) {
        if let Some(word) = self.checked.get(chunk / 64) {
            word.fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        }
    }
}

/// A shard's index. Its size was checked with the metadata, its place is here.
pub fn read_index(file: &File, meta: &ArrayMeta, length: u64) -> Result<Vec<Span>> {
    let sharding = meta.sharding.ok_or_else(|| Error::metadata("not sharded"))?;
    let bytes = shard::index_bytes(meta.chunks_per_shard(), sharding.index_crc);
    let index = read_end(file, length, bytes, !sharding.index_at_end)?;
    shard::read_index(&index, sharding.index_crc, length).map_err(|error| error.at("the index"))
}

/// The index, sums and seal of a shard of ours.
pub fn read_seal(file: &File, meta: &ArrayMeta, length: u64) -> Result<(Vec<Span>, Vec<u32>, u32)> {
    let end = read_end(file, length, shard::seal_bytes(meta.chunks_per_shard()), false)?;
    shard::read_seal(&end, meta.chunks_per_shard(), length).map_err(|error| error.at("the index"))
}

fn read_end(file: &File, length: u64, bytes: usize, at_start: bool) -> Result<Vec<u8>> {
    let start = length
        .checked_sub(bytes as u64)
        .ok_or_else(|| Error::truncated(format!("{length} bytes, its index alone has {bytes}")))?;
    let mut end = memory::zeros(bytes, "an index")?;
    file.read_exact_at(&mut end, if at_start { 0 } else { start })
        .map_err(|error| Error::new(Kind::Io, format!("cannot read the index: {error}")))?;
    Ok(end)
}

/// The shards of a store that were used last.
#[derive(Default)]
pub struct ShardCache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Counts uses, to tell which shard was not used for longest.
    now: u64,
    /// When each was used last; the key is its array and its number.
    shards: HashMap<(usize, usize), (u64, Arc<OpenShard>)>,
    /// The chunks of all of them.
    chunks: usize,
}

impl ShardCache {
    /// The open shard `key` (array and number), opened with `open` if it is not kept.
    pub fn get(
        &self,
        key: (usize, usize),
        open: impl FnOnce() -> Result<Option<OpenShard>>,
    ) -> Result<Option<Arc<OpenShard>>> {
        {
            let mut kept = self.kept.lock().expect("no panic while held");
            kept.now += 1;
            let now = kept.now;
            if let Some((used, shard)) = kept.shards.get_mut(&key) {
                *used = now;
                return Ok(Some(Arc::clone(shard)));
            }
        }
        let Some(opened) = open()? else { return Ok(None) };
        let opened = Arc::new(opened);
        let mut kept = self.kept.lock().expect("no panic while held");
        if let Some((_, shard)) = kept.shards.get(&key) {
            // Another thread was sooner.
            return Ok(Some(Arc::clone(shard)));
        }
        kept.chunks += opened.spans.len();
        while kept.shards.len() >= KEPT || kept.chunks > KEPT_CHUNKS {
            let Some(oldest) = kept.shards.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key) else {
                break;
            };
            kept.chunks -= kept.shards.remove(&oldest).map_or(0, |(_, shard)| shard.spans.len());
        }
        let now = kept.now;
        kept.shards.insert(key, (now, Arc::clone(&opened)));
        Ok(Some(opened))
    }

    /// Closes all.
    pub fn clear(&self) {
        let mut kept = self.kept.lock().expect("no panic while held");
        (kept.shards, kept.chunks) = (HashMap::new(), 0);
    }
}
