//! The blosc 1 container: a header, and blocks whose bytes are shuffled and compressed one by one.
//!
//! Ours hold zstd, one stream a byte plane, so that a plane without gain is stored as it is and a
//! reader can join planes as it converts them. Everybody's are read: zstd, lz4 and zlib inside, shuffled
//! by bytes, by bits or not at all.

use crate::error::{Error, Result};
use crate::format::{memory, zstd_frame};
use crate::kernels::{kernels, scalar};

/// Bytes of a block; zstd's entropy tables pay only over long planes.
pub const BLOCK: usize = 1 << 20;
/// The widest element that has planes.
pub const MAX_PLANES: usize = 8;

/// How many rows ahead of the one being read are fetched.
const AHEAD: usize = 4;
const HEADER: usize = 16;
const SHUFFLE: u8 = 1;
const STORED: u8 = 2;
const BIT_SHUFFLE: u8 = 4;
const UNSPLIT: u8 = 16;
const ZSTD: u8 = 4;
/// Planes start half a page from where buffers do: a plane stored as it is is copied to a buffer, and
/// memcpy is several times slower to a place a few bytes ahead of its source modulo the page size.
const APART: usize = 2048;
/// blosc splits a block into planes only where each has at least this many bytes.
const MIN_PLANE: usize = 128;

/// Decoded elements: together, or as one slice for each of their bytes.
pub enum Decoded<'a> {
    /// Elements in a row.
    Elements(&'a [u8]),
    /// The k-th byte of each element in the k-th slice; as many slices as bytes.
    Planes([&'a [u8]; MAX_PLANES]),
}

/// Reads a container that must hold `expected` bytes; `size` is the element's. `scratch` is what is
/// decoded into.
pub fn read<'a>(chunk: &'a [u8], expected: usize, size: usize, scratch: &'a mut Vec<u8>) -> Result<Decoded<'a>> {
    let damaged = |what: &str| Error::checksum(format!("blosc: {what}"));
    let word = |at: usize| -> Result<usize> {
        let bytes = chunk.get(at..at + 4).ok_or_else(|| damaged("truncated"))?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    if chunk.len() < HEADER || !(1..=2).contains(&chunk[0]) {
        return Err(damaged("no blosc 1 header"));
    }
    let (flags, typesize) = (chunk[2], usize::from(chunk[3]).max(1));
    let (bytes, block, total) = (word(4)?, word(8)?, word(12)?);
    if bytes != expected {
        return Err(damaged(&format!("{bytes} bytes where {expected} belong")));
    }
    if total > chunk.len() {
        return Err(damaged("truncated"));
    }
    if flags & STORED != 0 {
        let stored = chunk.get(HEADER..HEADER + bytes).ok_or_else(|| damaged("truncated"))?;
        return Ok(Decoded::Elements(stored));
    }
    if bytes == 0 {
        return Ok(Decoded::Elements(&[]));
    }
    if block == 0 || block > bytes.max(BLOCK) {
        return Err(damaged("block size out of range"));
    }
    let blocks = bytes.div_ceil(block);
    let inflate = inflate(flags >> 5)?;
    let shuffle = typesize > 1 && flags & SHUFFLE != 0;

    if blocks == 1 && shuffle && typesize == size && size <= MAX_PLANES && bytes.is_multiple_of(size) {
        let plane = bytes / size;
        let split = is_split(flags, typesize, block) && block == bytes;
        let scratch = memory::room(scratch, bytes, "a decoded chunk")?;
        let mut planes: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        let mut at = word(HEADER)?;
        if split {
            let mut room = scratch;
            for slot in &mut planes[..size] {
                let stream = stream(chunk, &mut at).ok_or_else(|| damaged("truncated"))?;
                if stream.len() == plane {
                    *slot = stream;
                } else {
                    let (mine, rest) = room.split_at_mut(plane);
                    inflate(stream, mine)?;
                    *slot = mine;
                    room = rest;
                }
            }
        } else {
            let stream = stream(chunk, &mut at).ok_or_else(|| damaged("truncated"))?;
            let all: &[u8] = if stream.len() == bytes {
                stream
            } else {
                inflate(stream, scratch)?;
                scratch
            };
            for (slot, part) in planes.iter_mut().zip(all.chunks_exact(plane.max(1))) {
                *slot = part;
            }
        }
        return Ok(Decoded::Planes(planes));
    }

    // The general case: block by block, into elements.
    let scratch = memory::room(scratch, bytes + block.min(bytes), "a decoded chunk and a block of it")?;
    let (out, spare) = scratch.split_at_mut(bytes);
    // Blocks that share a stream would have it decoded as often as there are blocks.
    let mut unread = chunk.len();
    for (i, out) in out.chunks_mut(block).enumerate() {
        let mut at = word(HEADER + 4 * i)?;
        let n = out.len();
        let shuffled = shuffle || (flags & BIT_SHUFFLE != 0 && n >= typesize);
        let target = if shuffled { &mut spare[..n] } else { &mut *out };
        let streams = if is_split(flags, typesize, block) && n == block { typesize } else { 1 };
        if !n.is_multiple_of(streams) {
            return Err(damaged("a block that does not divide into its streams"));
        }
        for part in target.chunks_mut(n / streams) {
            let stream = stream(chunk, &mut at).ok_or_else(|| damaged("truncated"))?;
            unread = unread.checked_sub(stream.len()).ok_or_else(|| damaged("streams that overlap"))?;
            if stream.len() == part.len() {
                part.copy_from_slice(stream);
            } else {
                inflate(stream, part)?;
            }
        }
        if shuffle {
            let whole = n / typesize * typesize;
            let planes: Vec<&[u8]> = spare[..whole].chunks_exact((n / typesize).max(1)).collect();
            scalar::join(&planes, &mut out[..whole]);
            out[whole..].copy_from_slice(&spare[whole..n]);
        } else if shuffled {
            scalar::unshuffle_bits(&spare[..n], typesize, out);
        }
    }
    Ok(Decoded::Elements(&scratch[..bytes]))
}

fn is_split(flags: u8, typesize: usize, block: usize) -> bool {
    flags & UNSPLIT == 0 && typesize <= 16 && block / typesize >= MIN_PLANE
}

/// The stream at `at`, which then is the next one's.
fn stream<'a>(chunk: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let length = chunk.get(*at..at.checked_add(4)?)?;
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let start = *at + 4;
    *at = start.checked_add(length)?;
    chunk.get(start..*at)
}

/// Decodes a stream into a slice that it must fill.
type Inflate = fn(&[u8], &mut [u8]) -> Result<()>;

fn inflate(format: u8) -> Result<Inflate> {
    match format {
        ZSTD => Ok(zstd_frame::read),
        1 => Ok(|stream, out| match lz4_flex::block::decompress_into(stream, out) {
            Ok(n) if n == out.len() => Ok(()),
            Ok(n) => Err(Error::checksum(format!("lz4: {n} bytes where {} belong", out.len()))),
            Err(error) => Err(Error::checksum(format!("lz4: {error}"))),
        }),
        3 => Ok(|stream, out| {
            let mut inflate = flate2::Decompress::new(true);
            match inflate.decompress(stream, out, flate2::FlushDecompress::Finish) {
                Ok(flate2::Status::StreamEnd) if inflate.total_out() == out.len() as u64 => Ok(()),
                Ok(_) => Err(Error::checksum("zlib: not the bytes that belong there")),
                Err(error) => Err(Error::checksum(format!("zlib: {error}"))),
            }
        }),
        0 => Err(Error::unsupported("blosc with blosclz inside is not read; use zstd, lz4 or zlib")),
        2 => Err(Error::unsupported("blosc with snappy inside is not read; use zstd, lz4 or zlib")),
        other => Err(Error::checksum(format!("blosc: unknown compressor {other}"))),
    }
}

/// Rows of one layer, to be put into one container.
pub struct Block<'a, R: Fn(usize) -> &'a [u8]> {
    /// The bytes of a row.
    pub row: R,
    /// Rows there are, and bytes of each.
    pub rows: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Rows the chunk has: those missing are zeros.
    pub chunk_rows: usize,
    /// Bytes of an element.
    pub size: usize,
    /// Whether the elements are floats: then matches are looked for only where rows repeat.
    pub float: bool,
}

impl<'a, R: Fn(usize) -> &'a [u8]> Block<'a, R> {
    /// The chunk's bytes as they are.
    pub fn write_raw(&self, out: &mut Vec<u8>) {
        for r in 0..self.rows {
            out.extend_from_slice((self.row)(r));
        }
        out.resize(out.len() + (self.chunk_rows - self.rows) * self.row_bytes, 0);
    }

    /// The chunk as a blosc container.
    pub fn write(&self, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let bytes = self.chunk_rows * self.row_bytes;
        let size = self.size;
        let block = if bytes <= BLOCK { bytes } else { BLOCK / size * size };
        let split = size > 1 && size <= MAX_PLANES && block / size >= MIN_PLANE;
        let matches = !self.float || self.repeats();

        let start = out.len();
        let flags = ZSTD << 5 | if size > 1 { SHUFFLE } else { 0 } | if split { 0 } else { UNSPLIT };
        out.extend_from_slice(&[2, 1, flags, size as u8]);
        for word in [bytes, block, 0] {
            out.extend_from_slice(&(word as u32).to_le_bytes());
        }
        let blocks = bytes.div_ceil(block.max(1));
        let starts = out.len();
        out.resize(starts + 4 * blocks, 0);

        for i in 0..blocks {
            let at = (out.len() - start) as u32;
            out[starts + 4 * i..starts + 4 * i + 4].copy_from_slice(&at.to_le_bytes());
            let here = i * block..((i + 1) * block).min(bytes);
            let n = here.len();
            if blocks == 1 && split && !matches {
                self.write_literals(scratch, out)?;
                continue;
            }
            scratch.clear();
            scratch.resize(n, 0);
            if blocks == 1 {
                self.split_rows(&mut scratch.chunks_mut(n / size).collect::<Vec<_>>());
            } else {
                self.split_range(here, scratch);
            }
            let streams = if split && n == block { size } else { 1 };
            for plane in scratch.chunks(n / streams) {
                write_stream(out, |out| zstd_frame::write_general(plane, 1, out).map(|()| true), plane, 0)?;
            }
        }
        let total = (out.len() - start) as u32;
        out[start + 12..start + 16].copy_from_slice(&total.to_le_bytes());
        Ok(())
    }

    /// Planes as Huffman-coded literals, or as they are.
    fn write_literals(&self, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<()> {
        let size = self.size;
        let plane = self.rows * self.row_bytes / size;
        let zeros = (self.chunk_rows - self.rows) * self.row_bytes / size;
        scratch.resize(scratch.len().max(APART + size * plane), 0);
        let planes = &mut scratch[APART..];
        if zeros == 0 && self.looks_random() {
            // All but the topmost, that of the exponents, go where they are stored as they are.
            let start = out.len();
            out.resize(start + (size - 1) * (4 + plane), 0);
            let mut parts: Vec<&mut [u8]> = Vec::with_capacity(size);
            for part in out[start..].chunks_exact_mut(4 + plane) {
                let (length, part) = part.split_at_mut(4);
                length.copy_from_slice(&(plane as u32).to_le_bytes());
                parts.push(part);
            }
            parts.push(&mut planes[..plane]);
            self.split_rows(&mut parts);
            if parts[..size - 1].iter().all(|part| zstd_frame::lengths(part).is_none()) {
                let top = &planes[..plane];
                return write_stream(out, |out| Ok(zstd_frame::write_literals(top, 0, out)), top, 0);
            }
            out.truncate(start);
        }
        let planes = &mut planes[..size * plane];
        self.split_rows(&mut planes.chunks_mut(plane.max(1)).collect::<Vec<_>>());
        for plane in planes.chunks(plane.max(1)) {
            write_stream(out, |out| Ok(zstd_frame::write_literals(plane, zeros, out)), plane, zeros)?;
        }
        Ok(())
    }

    /// Whether a few elements have nearly all values in each of their lower bytes.
    fn looks_random(&self) -> bool {
        let mut seen = [[false; 256]; MAX_PLANES];
        for r in (0..self.rows).step_by((self.rows / 32).max(1)) {
            for element in (self.row)(r).chunks_exact(self.size).step_by(3).take(32) {
                for (byte, seen) in element[..self.size - 1].iter().zip(&mut seen) {
                    seen[usize::from(*byte)] = true;
                }
            }
        }
        seen[..self.size - 1].iter().all(|plane| plane.iter().filter(|seen| **seen).count() > 200)
    }

    /// All rows into planes; zeros behind them are there already.
    fn split_rows(&self, planes: &mut [&mut [u8]]) {
        let n = self.row_bytes / self.size;
        for r in 0..self.rows {
            // The next row of a layer lies where no hardware looks for it.
            if r + AHEAD < self.rows {
                (kernels().prefetch)((self.row)(r + AHEAD));
            }
            let (row, at) = ((self.row)(r), r * n..(r + 1) * n);
            match &mut *planes {
                [all] => all[at].copy_from_slice(row),
                [low, high] => (kernels().split2)(row, &mut low[at.clone()], &mut high[at]),
                [a, b, c, d] => {
                    let parts = [&mut a[at.clone()], &mut b[at.clone()], &mut c[at.clone()], &mut d[at]];
                    (kernels().split4)(row, parts);
                }
                others => {
                    let mut parts: Vec<&mut [u8]> = others.iter_mut().map(|plane| &mut plane[at.clone()]).collect();
                    scalar::split(row, &mut parts);
                }
            }
        }
    }

    /// A byte range of the chunk into planes, for chunks of several blocks: rows beyond a mebibyte.
    fn split_range(&self, range: std::ops::Range<usize>, planes: &mut [u8]) {
        let plane = planes.len() / self.size;
        for (i, at) in range.enumerate() {
            let (r, b) = (at / self.row_bytes, at % self.row_bytes);
            if r < self.rows {
                planes[i % self.size * plane + i / self.size] = (self.row)(r)[b];
            }
        }
    }

    /// Whether many rows occur twice, or zeros abound: as in the embeddings of common tokens, or after a
    /// ReLU. Looking for matches takes ten times as long as Huffman coding, so it has to be worth it.
    fn repeats(&self) -> bool {
        let probe = self.row_bytes.min(32) / self.size * self.size;
        let middle = (self.row_bytes - probe) / 2 / self.size * self.size;
        let mut seen = [0u64; 1 << 12];
        let (mut zeros, mut looked, mut twice) = (0, 0, 0);
        for r in 0..self.rows {
            let bytes = &(self.row)(r)[middle..middle + probe];
            let mut hash = 0u64;
            for word in bytes.chunks(8) {
                let mut eight = [0; 8];
                eight[..word.len()].copy_from_slice(word);
                hash = (hash ^ u64::from_le_bytes(eight)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            }
            looked += probe / self.size;
            zeros += bytes.chunks_exact(self.size).filter(|element| element.iter().all(|b| *b == 0)).count();
            let slot = &mut seen[(hash >> 52) as usize];
            twice += usize::from(*slot == hash | 1);
            *slot = hash | 1;
        }
        twice * 4 > self.rows || zeros * 4 > looked
    }
}

/// A stream and its length: what `code` appends, or the plane and the zeros behind it as they are when
/// that returns false or is no shorter.
fn write_stream(
    out: &mut Vec<u8>,
    code: impl FnOnce(&mut Vec<u8>) -> Result<bool>,
    plane: &[u8],
    zeros: usize,
) -> Result<()> {
    let start = out.len() + 4;
    out.extend_from_slice(&[0; 4]);
    if !code(out)? || out.len() - start >= plane.len() + zeros {
        out.truncate(start);
        out.extend_from_slice(plane);
        out.resize(out.len() + zeros, 0);
    }
    let length = (out.len() - start) as u32;
    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of one byte, each in the same stream: a frame of many blocks, all but the last of them empty.
    fn sharing(blocks: usize) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 1];
        frame.extend_from_slice(&[0; 3 * 2000]);
        frame.extend_from_slice(&[1 << 3 | 1, 0, 0, 7]);
        let start = HEADER + 4 * blocks;
        let total = start + 4 + frame.len();
        let mut chunk = vec![2, 1, ZSTD << 5 | UNSPLIT, 1];
        for word in [blocks, 1, total] {
            chunk.extend_from_slice(&(word as u32).to_le_bytes());
        }
        (0..blocks).for_each(|_| chunk.extend_from_slice(&(start as u32).to_le_bytes()));
        chunk.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        [chunk, frame].concat()
    }

    #[test]
    fn no_stream_is_decoded_for_every_block() {
        let mut scratch = Vec::new();
        assert!(matches!(read(&sharing(1), 1, 1, &mut scratch), Ok(Decoded::Elements([7]))));
        let error = read(&sharing(1000), 1000, 1, &mut scratch).map(|_| ()).unwrap_err();
        assert!(error.message.contains("overlap"), "{error}");
    }
}
