//! A shard's index: offset and length of each inner chunk, in C order, and a crc32c.
//!
//! Ours have a table of the chunks' own checksums before the index, in what is a gap to Zarr. A record
//! pins the checksum of both, its seal: without the table, full shards of equal chunk sizes, as raw ones
//! are, could take each other's place unseen.

use crate::error::{Error, Result};
use crate::format::record::Chunk;
use crate::format::{codec, memory};

/// Where a chunk lies in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Span {
    /// What stands for a chunk that is not there: it reads as the fill value.
    pub const ABSENT: Span = Span { offset: u64::MAX, length: u64::MAX };

    /// The byte after the last.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// An error unless every chunk has at most `limit` bytes, which is what one can take encoded. Shards are
/// judged by it when they are opened; what reads their chunks relies on it.
pub fn check_lengths(spans: &[Span], limit: usize) -> Result<()> {
    match spans.iter().position(|span| *span != Span::ABSENT && span.length > limit as u64) {
        Some(i) => Err(Error::metadata(format!(
            "chunk {i} is said to have {} bytes, where one has at most {limit}",
            spans[i].length
        ))),
        None => Ok(()),
    }
}

/// Bytes of the index of a shard with `chunks`.
pub fn index_bytes(chunks: usize, crc: bool) -> usize {
    16 * chunks + if crc { 4 } else { 0 }
}

/// Bytes of the table of sums and the index of one of our shards.
pub fn seal_bytes(chunks: usize) -> usize {
    4 * chunks + index_bytes(chunks, true)
}

/// The end of a shard of ours, table of sums and index, and the seal. Chunks that are not there yet
/// have a sum of 0.
pub fn write_seal(written: &[Chunk], chunks: usize) -> Result<(Vec<u8>, u32)> {
    let mut out = Vec::new();
    memory::reserve(&mut out, seal_bytes(chunks), format_args!("the index of {chunks} chunks"))?;
    for i in 0..chunks {
        out.extend_from_slice(&written.get(i).map_or(0, |c| c.2).to_le_bytes());
    }
    let table = out.len();
    for i in 0..chunks {
        let span = written.get(i).map_or(Span::ABSENT, |c| Span { offset: c.0, length: c.1 });
        out.extend_from_slice(&span.offset.to_le_bytes());
        out.extend_from_slice(&span.length.to_le_bytes());
    }
    let seal = crc32c::crc32c(&out);
    let crc = crc32c::crc32c(&out[table..]);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok((out, seal))
}

/// Reads the end of a shard of ours: spans, sums and the seal.
pub fn read_seal(bytes: &[u8], chunks: usize, file_bytes: u64) -> Result<(Vec<Span>, Vec<u32>, u32)> {
    let (table, index) = bytes.split_at_checked(4 * chunks).ok_or_else(|| Error::truncated("no table of sums"))?;
    let spans = read_index(index, true, file_bytes)?;
    let mut sums = Vec::new();
    memory::reserve(&mut sums, chunks, format_args!("the sums of {chunks} chunks"))?;
    sums.extend(table.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)));
    Ok((spans, sums, crc32c::crc32c(&bytes[..bytes.len() - 4])))
}

/// Reads an index; every span must lie within a file of `file_bytes`.
pub fn read_index(bytes: &[u8], crc: bool, file_bytes: u64) -> Result<Vec<Span>> {
    let bytes = if crc { codec::check(bytes)? } else { bytes };
    let mut spans = Vec::new();
    memory::reserve(&mut spans, bytes.len() / 16, "an index")?;
    for [offset, length] in bytes.as_chunks().0.as_chunks().0 {
        let span = Span { offset: u64::from_le_bytes(*offset), length: u64::from_le_bytes(*length) };
        if span != Span::ABSENT && span.offset.checked_add(span.length).is_none_or(|end| end > file_bytes) {
            return Err(Error::metadata(format!("the index points at byte {} of a file of {file_bytes}", span.end())));
        }
        spans.push(span);
    }
    Ok(spans)
}
