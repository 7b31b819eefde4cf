//! A shard's index: offset and length of each inner chunk, in C order, and a crc32c.

use crate::error::{Error, Result};
use crate::format::codec;

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

/// The index as it is stored, and its crc32c.
pub fn write_index(spans: &[Span]) -> (Vec<u8>, u32) {
    let mut out = Vec::with_capacity(index_bytes(spans.len(), true));
    for span in spans {
        out.extend_from_slice(&span.offset.to_le_bytes());
        out.extend_from_slice(&span.length.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    (out, crc)
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
