//! zstd frames (RFC 8878): our writer of frames that hold Huffman-coded literals and no matches, and a
//! reader that decodes such frames itself and leaves all others to libzstd.
//!
//! Activations have no repeats worth a match: all there is to gain is the skew of the exponent
//! bytes. A frame of literals alone is found several times faster than by a general compressor.

use std::cell::RefCell;

use zstd_safe::{CCtx, CParameter, DCtx};

use crate::error::{Error, Result};
use crate::format::huffman;
use crate::kernels::huffman::{Codes, DecodeTable, Lane, encode2, histogram};
use crate::kernels::kernels;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BLOCK: usize = 128 << 10;

thread_local! {
    static COMPRESSOR: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<(DCtx<'static>, DecodeTable)>> = const { RefCell::new(None) };
}

/// What one byte in this many says of a long plane.
const SAMPLED: usize = 16;
/// Planes shorter than this are counted whole.
const LONG: usize = 1 << 16;

/// Appends a frame of `bytes` as Huffman-coded literals with one table, and as many zeros behind them;
/// false (and nothing appended) when that saves less than a fiftieth.
#[must_use]
pub fn write_literals(bytes: &[u8], zeros: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let total = bytes.len() + zeros;
    let lengths = if bytes.len() < 64 { None } else { lengths(bytes) };
    if (lengths.is_none() && zeros * 50 < total) || total < 64 || total > u32::MAX as usize {
        return false;
    }
    let mut tree = Vec::new();
    let codes = lengths.filter(|lengths| huffman::write_tree(lengths, &mut tree));
    let codes = codes.and_then(|lengths| Codes::new(&lengths));

    out.extend_from_slice(&MAGIC);
    out.push(0xa0); // one segment, content size in four bytes
    out.extend_from_slice(&(total as u32).to_le_bytes());
    let mut tree_written = false;
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        let last = zeros == 0 && (i + 1) * BLOCK >= bytes.len();
        let coded = codes.as_ref().is_some_and(|codes| {
            let tree = if tree_written { &[][..] } else { &tree };
            write_block(block, codes, tree, last, out)
        });
        tree_written |= coded;
        if !coded {
            out.extend_from_slice(&block_header(last, 0, block.len()));
            out.extend_from_slice(block);
        }
    }
    for at in (0..zeros).step_by(BLOCK) {
        out.extend_from_slice(&block_header(at + BLOCK >= zeros, 1, BLOCK.min(zeros - at)));
        out.push(0);
    }
    if out.len() - start >= total {
        out.truncate(start);
        return false;
    }
    true
}

/// Whether it is the last, its type, its size.
fn block_header(last: bool, kind: u32, size: usize) -> [u8; 3] {
    let [a, b, c, _] = (u32::from(last) | kind << 1 | (size as u32) << 3).to_le_bytes();
    [a, b, c]
}

/// Appends a block of four streams, with its tree or with that of the one before; false, and nothing
/// appended, when it would be no smaller.
fn write_block(block: &[u8], codes: &Codes, tree: &[u8], last: bool, out: &mut Vec<u8>) -> bool {
    if block.len() < 64 {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(&[0; 3 + 5]);
    out.extend_from_slice(tree);
    let jumps = out.len();
    out.extend_from_slice(&[0; 6]);
    let (first, second) = block.split_at(2 * block.len().div_ceil(4));
    let part = block.len().div_ceil(4);
    let [a, b] = encode2(codes, [&first[..part], &first[part..]], out);
    let [c, _] = encode2(codes, [&second[..part], &second[part..]], out);
    let mut fits = true;
    for (k, size) in [a, b, c].into_iter().enumerate() {
        match u16::try_from(size) {
            Ok(size) => out[jumps + 2 * k..jumps + 2 * k + 2].copy_from_slice(&size.to_le_bytes()),
            Err(_) => fits = false,
        }
    }
    let literals = out.len() - start - 3 - 5;
    out.push(0); // no sequences
    let size = out.len() - start - 3;
    if !fits || size >= block.len() {
        out.truncate(start);
        return false;
    }
    // Type 2 brings its tree, type 3 goes on with the one before; 18-bit sizes.
    let kind = if tree.is_empty() { 3 } else { 2 };
    let word = kind | 3 << 2 | (block.len() as u64) << 4 | (literals as u64) << 22;
    out[start..start + 3].copy_from_slice(&block_header(last, 2, size));
    out[start + 3..start + 8].copy_from_slice(&word.to_le_bytes()[..5]);
    true
}

/// The lengths of a code for all of `bytes`; None when it would save less than a fiftieth.
///
/// Counting every byte takes as long as coding it. A sample tells the lengths as well; what it may
/// have missed are rare values, mostly just outside those seen, as exponents go. They get codes too,
/// and where that was not enough, which is cheap to see, everything is counted.
pub fn lengths(bytes: &[u8]) -> Option<[u8; 256]> {
    let gain = |counts: &[u32; 256], lengths: &[u8; 256]| {
        let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
        let bits: u64 = counts.iter().zip(lengths).map(|(c, l)| u64::from(*c) * u64::from(*l)).sum();
        bits * 50 <= total * 8 * 49
    };
    if bytes.len() >= LONG {
        let mut counts = [0u32; 256];
        for part in bytes.chunks(64 * SAMPLED) {
            for byte in &part[..part.len().min(64)] {
                counts[usize::from(*byte)] += 1;
            }
        }
        let entropy: f64 = {
            let n = f64::from(counts.iter().sum::<u32>());
            counts.iter().filter(|c| **c > 0).map(|c| f64::from(*c) * (n / f64::from(*c)).log2()).sum::<f64>() / n
        };
        if entropy > 7.8 {
            return None;
        }
        // The upper half of the values are those with the sign bit: two ranges of exponents. What is
        // rarer lies below them, further the more values there are to a power of two.
        let values = counts.iter().filter(|c| **c > 0).count();
        let below = if values > 64 { 12 } else { 5 };
        for half in counts.chunks_exact_mut(128) {
            let first = half.iter().position(|c| *c > 0);
            let last = half.iter().rposition(|c| *c > 0);
            if let (Some(first), Some(last)) = (first, last) {
                for count in &mut half[first.saturating_sub(below)..(last + 3).min(128)] {
                    *count = (*count).max(1);
                }
            }
            half[0] = half[0].max(1);
        }
        let lengths = huffman::lengths(&counts)?;
        if (kernels().all_in)(bytes, &lengths.map(|l| l > 0)) {
            return gain(&counts, &lengths).then_some(lengths);
        }
    }
    let counts = histogram(bytes);
    let lengths = huffman::lengths(&counts)?;
    gain(&counts, &lengths).then_some(lengths)
}

/// Appends `bytes` as libzstd compresses them: where matches do help.
pub fn write_general(bytes: &[u8], level: i32, out: &mut Vec<u8>) -> Result<()> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let context = slot.get_or_insert_with(CCtx::create);
        let start = out.len();
        out.resize(start + zstd_safe::compress_bound(bytes.len()), 0);
        let done = context
            .set_parameter(CParameter::CompressionLevel(level))
            .and_then(|_| context.compress2(&mut out[start..], bytes));
        let size = done.map_err(|code| Error::invalid(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
        out.truncate(start + size);
        Ok(())
    })
}

/// Decodes a frame, which must give exactly `out.len()` bytes.
pub fn read(frame: &[u8], out: &mut [u8]) -> Result<()> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let (context, table) = slot.get_or_insert_with(|| (DCtx::create(), DecodeTable::default()));
        if read_literals(frame, out, table).is_some() {
            return Ok(());
        }
        let size = context
            .decompress(out, frame)
            .map_err(|code| Error::checksum(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
        if size != out.len() {
            return Err(Error::checksum(format!("zstd: {size} bytes where {} belong", out.len())));
        }
        Ok(())
    })
}

/// Decodes a frame without matches; None for any other, and for damage, which libzstd then names.
fn read_literals(frame: &[u8], out: &mut [u8], table: &mut DecodeTable) -> Option<()> {
    let rest = frame.strip_prefix(&MAGIC)?;
    // One segment, no checksum, no dictionary; the size is what the caller expects.
    let (descriptor, mut rest) = rest.split_first()?;
    if descriptor & 0b0011_1111 != 0b0010_0000 {
        return None;
    }
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = 0u64;
    for (i, byte) in rest.get(..size_bytes)?.iter().enumerate() {
        size |= u64::from(*byte) << (8 * i);
    }
    if size_bytes == 2 {
        size += 256;
    }
    if size != out.len() as u64 {
        return None;
    }
    rest = &rest[size_bytes..];
    let mut todo = &mut *out;
    let mut have_table = false;
    loop {
        let header = u32::from_le_bytes([*rest.first()?, *rest.get(1)?, *rest.get(2)?, 0]);
        let (last, kind, size) = (header & 1 == 1, header >> 1 & 3, (header >> 3) as usize);
        rest = &rest[3..];
        match kind {
            0 => {
                let block = rest.get(..size)?;
                todo.split_off_mut(..size)?.copy_from_slice(block);
                rest = &rest[size..];
            }
            1 => {
                let byte = *rest.first()?;
                todo.split_off_mut(..size)?.fill(byte);
                rest = &rest[1..];
            }
            2 => {
                let block = Literals::parse(rest.get(..size)?)?;
                rest = &rest[size..];
                match &block.lengths {
                    Some(lengths) if table.fill(lengths) => have_table = true,
                    None if have_table => {}
                    _ => return None,
                }
                if !table.decode(&mut block.lanes(todo.split_off_mut(..block.size)?)?) {
                    return None;
                }
            }
            _ => return None,
        }
        if last {
            return (todo.is_empty() && rest.is_empty()).then_some(());
        }
    }
}

/// A compressed block of four literal streams and no sequences.
struct Literals<'a> {
    /// Bytes it decodes to.
    size: usize,
    /// The code it brings; None when it goes on with the one before.
    lengths: Option<[u8; 256]>,
    streams: [&'a [u8]; 4],
}

impl<'a> Literals<'a> {
    fn parse(block: &'a [u8]) -> Option<Self> {
        let kind = block.first()? & 3;
        let (bits, header) = match block[0] >> 2 & 3 {
            1 => (10, 3),
            2 => (14, 4),
            3 => (18, 5),
            _ => return None,
        };
        let mut word = 0u64;
        for (i, byte) in block.get(..header)?.iter().enumerate() {
            word |= u64::from(*byte) << (8 * i);
        }
        let size = (word >> 4 & ((1 << bits) - 1)) as usize;
        let compressed = (word >> (4 + bits) & ((1 << bits) - 1)) as usize;
        let mut literals = block.get(header..header + compressed)?;
        if block.get(header + compressed..)? != [0] {
            return None;
        }
        let lengths = match kind {
            2 => {
                let (lengths, used) = huffman::read_tree(literals)?;
                literals = &literals[used..];
                Some(lengths)
            }
            3 => None,
            _ => return None,
        };
        let jump = |i: usize| Some(usize::from(u16::from_le_bytes([*literals.get(2 * i)?, *literals.get(2 * i + 1)?])));
        let (a, b, c) = (jump(0)?, jump(1)?, jump(2)?);
        let streams = literals.get(6..)?;
        streams.len().checked_sub(a + b + c)?;
        let (s0, after) = streams.split_at(a);
        let (s1, after) = after.split_at(b);
        let (s2, s3) = after.split_at(c);
        Some(Literals { size, lengths, streams: [s0, s1, s2, s3] })
    }

    /// Its streams, and the part of the output that each decodes to.
    fn lanes<'b>(&self, out: &'b mut [u8]) -> Option<[Lane<'b>; 4]>
    where
        'a: 'b,
    {
        let part = self.size.div_ceil(4);
        let (o0, after) = out.split_at_mut_checked(part)?;
        let (o1, after) = after.split_at_mut_checked(part)?;
        let (o2, o3) = after.split_at_mut_checked(part)?;
        let [s0, s1, s2, s3] = self.streams;
        Some([Lane::new(s0, o0), Lane::new(s1, o1), Lane::new(s2, o2), Lane::new(s3, o3)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> impl FnMut() -> u32 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        }
    }

    #[test]
    fn libzstd_reads_our_frames_and_so_do_we() {
        for case in 0..800u64 {
            let mut next = random(case);
            let n = match case % 4 {
                0 => next() as usize % 400,
                1 => next() as usize % 20_000,
                2 => LONG + next() as usize % LONG,
                _ => BLOCK - 70 + next() as usize % (3 * BLOCK),
            };
            let zeros = if next().is_multiple_of(3) { next() as usize % (3 * BLOCK) } else { 0 };
            let spread = 1 + next() % 12;
            let noise = if next().is_multiple_of(4) { 1 } else { 500 };
            let rare = |next: &mut dyn FnMut() -> u32| if next().is_multiple_of(noise) { next() % 256 } else { 0 };
            let mut bytes: Vec<u8> =
                (0..n).map(|_| (next().leading_zeros().min(spread) * 19 + rare(&mut next)) as u8).collect();
            let mut frame = Vec::new();
            if !write_literals(&bytes, zeros, &mut frame) {
                assert!(frame.is_empty());
                continue;
            }
            bytes.resize(n + zeros, 0);
            let mut back = vec![1u8; bytes.len()];
            assert_eq!(DCtx::create().decompress(&mut back[..], &frame), Ok(bytes.len()), "case {case}");
            assert!(back == bytes);
            back.fill(1);
            assert!(read_literals(&frame, &mut back, &mut DecodeTable::default()).is_some());
            assert!(back == bytes);
        }
    }

    #[test]
    fn we_read_libzstd_frames() {
        for case in 0..300u64 {
            let mut next = random(case);
            let n = next() as usize % 300_000;
            let bytes: Vec<u8> = (0..n).map(|_| (next().leading_zeros() * 7) as u8).collect();
            for level in [-1000, -5, 1, 5] {
                let mut frame = Vec::new();
                write_general(&bytes, level, &mut frame).unwrap();
                let mut back = vec![0u8; n];
                read(&frame, &mut back).unwrap();
                assert!(back == bytes);
            }
        }
    }

    #[test]
    fn damage_never_panics() {
        let mut next = random(5);
        let bytes: Vec<u8> = (0..5000).map(|_| next().leading_zeros() as u8).collect();
        let mut frame = Vec::new();
        assert!(write_literals(&bytes, 0, &mut frame));
        let mut back = vec![0u8; bytes.len()];
        for _ in 0..20_000 {
            let mut hurt = frame.clone();
            let at = next() as usize % hurt.len();
            hurt[at] ^= 1 << (next() % 8);
            if next().is_multiple_of(3) {
                hurt.truncate(next() as usize % hurt.len());
            }
            let _ = read(&hurt, &mut back);
        }
    }
}
