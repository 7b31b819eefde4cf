//! A shard's index: offset and length of each inner chunk, in C order, and a crc32c.
//!
//! Ours have a table of the chunks' own checksums before the index, in what is a gap to Zarr. A record
//! pins the checksum of both, its seal: without the table, full shards of equal chunk sizes, as raw ones
//! are, could take each other's place unseen.

use crate::error::{Error, Result};
use crate::format::codec;
use crate::format::record::Chunk;

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
pub fn write_seal(written: &[Chunk], chunks: usize) -> (Vec<u8>, u32) {
    let mut out = Vec::with_capacity(seal_bytes(chunks));
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
    (out, seal)
}

/// Reads the end of a shard of ours: spans, sums and the seal.
pub fn read_seal(bytes: &[u8], chunks: usize, file_bytes: u64) -> Result<(Vec<Span>, Vec<u32>, u32)> {
    let (table, index) = bytes.split_at_checked(4 * chunks).ok_or_else(|| Error::truncated("no table of sums"))?;
    let spans = read_index(index, true, file_bytes)?;
    let sums = table.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok((spans, sums, crc32c::crc32c(&bytes[..bytes.len() - 4])))
}

/// Reads an index; every span must lie within a file of `file_bytes`.
pub fn read_index(bytes: &[u8], crc: bool, file_bytes: u64) -> Result<Vec<Span>> {
    let bytes = if crc { codec::check(bytes)? } else { bytes };
    let word = |b: &[u8]| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    bytes
        .chunks_exact(16)
        .map(|entry| {
            let span = Span { offset: word(entry), length: word(&entry[8..]) };
            if span != Span::ABSENT && span.offset.checked_add(span.length).is_none_or(|end| end > file_bytes) {
                return Err(Error::metadata(format!(
                    "the index points at byte {} of a file of {file_bytes}",
                    span.end()
                )));
            }
            Ok(span)
        })
        .collect()
}
