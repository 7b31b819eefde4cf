//! The codecs of a chunk, in the order Zarr lists them, and how they are undone.

use std::io::Read;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::blosc::{self, Decoded};
use crate::format::{memory, zstd_frame};

/// Codecs of a chunk at most. Each costs a pass over it, and nobody stacks more.
const MOST_CODECS: usize = 8;
/// Of these, streams of zstd and gzip at most: so many have buffers.
const MOST_STREAMS: usize = 2;
/// What a compressor adds to incompressible bytes, beyond doubling them, at most.
const SLACK: usize = 1 << 16;

/// A codec from bytes to bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Codec {
    Blosc,
    Zstd,
    Gzip,
    Crc32c,
}

/// All codecs of a chunk.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The order of axes the chunk is stored in, where it is another than C's.
    pub order: Option<Vec<usize>>,
    /// Most significant byte first.
    pub big_endian: bool,
    /// What the bytes then went through.
    pub codecs: Vec<Codec>,
}

/// Buffers that one thread decodes with, again and again.
#[derive(Default)]
pub struct Scratch {
    stages: [Vec<u8>; 2],
    planes: Vec<u8>,
}

impl Scratch {
    /// Bytes of memory it has.
    pub fn capacity(&self) -> usize {
        self.stages.iter().map(Vec::capacity).sum::<usize>() + self.planes.capacity()
    }
}

impl Chain {
    /// Reads a list of codecs.
    pub fn parse(list: &[Value], ndim: usize) -> Result<Self> {
        let mut chain = Chain { order: None, big_endian: false, codecs: Vec::new() };
        let mut to_bytes = false;
        for codec in list {
            let name = codec.as_str().or_else(|| codec.get("name").and_then(Value::as_str)).unwrap_or("?");
            match name {
                "transpose" if !to_bytes && chain.order.is_none() => {
                    let order = codec.pointer("/configuration/order").and_then(Value::as_array);
                    let order: Vec<usize> =
                        order.into_iter().flatten().filter_map(|n| n.as_u64().map(|n| n as usize)).collect();
                    let mut sorted = order.clone();
                    sorted.sort_unstable();
                    if sorted != (0..ndim).collect::<Vec<_>>() {
                        return Err(Error::metadata(format!("transpose order {order:?} of {ndim} axes")));
                    }
                    chain.order = (order != sorted).then_some(order);
                }
                "bytes" if !to_bytes => {
                    to_bytes = true;
                    chain.big_endian = codec.pointer("/configuration/endian").and_then(Value::as_str) == Some("big");
                }
                "blosc" if to_bytes => chain.codecs.push(Codec::Blosc),
                "zstd" if to_bytes => chain.codecs.push(Codec::Zstd),
                "gzip" if to_bytes => chain.codecs.push(Codec::Gzip),
                "crc32c" if to_bytes => chain.codecs.push(Codec::Crc32c),
                other => {
                    return Err(Error::unsupported(format!(
                        "codec '{other}' at this place is not read; read are transpose, bytes, sharding_indexed, blosc, zstd, gzip, crc32c"
                    )));
                }
            }
        }
        if !to_bytes {
            return Err(Error::metadata("no 'bytes' codec"));
        }
        let streams = chain.codecs.iter().filter(|codec| matches!(codec, Codec::Zstd | Codec::Gzip)).count();
        if chain.codecs.iter().skip(1).any(|codec| *codec == Codec::Blosc) {
            return Err(Error::unsupported("blosc over other codecs is not read"));
        }
        if streams > MOST_STREAMS || chain.codecs.len() > MOST_CODECS {
            return Err(Error::unsupported(format!(
                "{} codecs, {streams} of them zstd or gzip: read are {MOST_CODECS} and {MOST_STREAMS} at most",
                chain.codecs.len()
            )));
        }
        Ok(chain)
    }

    /// Whether chunks lie in the file as they lie in memory, but for a checksum behind them.
    pub fn is_raw(&self) -> bool {
        self.order.is_none() && !self.big_endian && matches!(self.codecs.as_slice(), [] | [Codec::Crc32c])
    }

    /// `blosc` or `raw` for what we write, else the codecs' names.
    pub fn name(&self) -> &'static str {
        match self.codecs.first() {
            _ if self.is_raw() => "raw",
            Some(Codec::Blosc) => "blosc",
            Some(Codec::Zstd) => "zstd",
            Some(Codec::Gzip) => "gzip",
            _ => "bytes",
        }
    }

    /// Most bytes that a chunk of `bytes` has when it is encoded: what has more is refused before there is
    /// memory for it. Compressors at their worst add less than a hundredth; the rest is for writers that
    /// flush often, pad, or add frames that decoders skip.
    pub fn encoded_limit(&self, bytes: usize) -> usize {
        self.limit(self.codecs.len(), bytes)
    }

    /// The same after the first `n` codecs.
    fn limit(&self, n: usize, bytes: usize) -> usize {
        self.codecs[..n].iter().fold(bytes, |bytes, codec| match codec {
            Codec::Crc32c => bytes.saturating_add(4),
            _ => bytes.saturating_mul(2).saturating_add(SLACK),
        })
    }

    /// Decodes a chunk that must have `expected` bytes of elements of `size`. The axes' order and the
    /// endianness are still the stored ones.
    pub fn decode<'a>(
        &self,
        chunk: &'a [u8],
        expected: usize,
        size: usize,
        scratch: &'a mut Scratch,
    ) -> Result<Decoded<'a>> {
        let Scratch { stages, planes } = scratch;
        let [first, second] = stages;
        let (mut spare, mut other) = (Some(first), Some(second));
        let mut bytes = chunk;
        for (i, codec) in self.codecs.iter().enumerate().rev() {
            match codec {
                Codec::Crc32c => bytes = check(bytes)?,
                Codec::Blosc => return blosc::read(bytes, expected, size, planes),
                Codec::Zstd | Codec::Gzip => {
                    let out = spare.take().or_else(|| other.take());
                    let out = out.ok_or_else(|| Error::unsupported("more than two streams in a row are not read"))?;
                    // Only the last to be undone gives a size that is known beforehand.
                    let exact = self.codecs[..i].iter().all(|c| *c == Codec::Crc32c);
                    bytes = inflate(codec, bytes, self.limit(i, expected), exact, out)?;
                }
            }
        }
        if bytes.len() != expected {
            return Err(Error::checksum(format!("{} bytes where {expected} belong", bytes.len())));
        }
        Ok(Decoded::Elements(bytes))
    }
}

/// The bytes before a crc32c that must be theirs.
pub fn check(bytes: &[u8]) -> Result<&[u8]> {
    let (data, stored) = bytes.split_last_chunk::<4>().ok_or_else(|| Error::truncated("too short for a checksum"))?;
    let found = crc32c::crc32c(data);
    if found != u32::from_le_bytes(*stored) {
        return Err(Error::checksum(format!("crc32c is {found:08x}, {:08x} is stored", u32::from_le_bytes(*stored))));
    }
    Ok(data)
}

/// At most `limit` bytes, or that many if it is `exact`: a frame's own word for its size is not to be trusted
/// with an allocation.
fn inflate<'a>(codec: &Codec, bytes: &[u8], limit: usize, exact: bool, out: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    if *codec == Codec::Zstd {
        let room = memory::room(out, limit, "a decoded chunk")?;
        if exact {
            zstd_frame::read(bytes, room)?;
            return Ok(room);
        }
        let size = zstd_safe::decompress(&mut *room, bytes)
            .map_err(|code| Error::checksum(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
        return Ok(&room[..size]);
    }
    out.clear();
    let read = flate2::read::MultiGzDecoder::new(bytes).take(limit as u64 + 1).read_to_end(out);
    read.map_err(|error| match error.kind() {
        std::io::ErrorKind::OutOfMemory => {
            Error::unsupported(format!("no memory for {limit} bytes of a decoded chunk"))
        }
        _ => Error::checksum(format!("gzip: {error}")),
    })?;
    if out.len() > limit {
        return Err(Error::checksum(format!("gzip: more than {limit} bytes")));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(names: &[&str]) -> Result<Chain> {
        let list: Vec<Value> = ["bytes"].iter().chain(names).map(|name| json!({"name": name})).collect();
        Chain::parse(&list, 3)
    }

    #[test]
    fn an_encoded_chunk_has_a_limit() {
        for (names, limit) in [
            (&[][..], 1000),
            (&["crc32c"], 1004),
            (&["blosc", "crc32c"], 2000 + SLACK + 4),
            (&["crc32c", "zstd"], 2 * 1004 + SLACK),
            (&["gzip", "zstd", "crc32c"], 2 * (2000 + SLACK) + SLACK + 4),
        ] {
            assert_eq!(chain(names).unwrap().encoded_limit(1000), limit, "{names:?}");
        }
        // The largest chunk there may be, in the longest chain.
        let longest = ["blosc", "gzip", "zstd", "crc32c", "crc32c", "crc32c", "crc32c", "crc32c"];
        assert!(chain(&longest).unwrap().encoded_limit(1 << 30) < 1 << 34);
    }

    #[test]
    fn chains_that_nobody_stacks_are_refused() {
        for names in [&["zstd"; 3][..], &["crc32c"; 9], &["zstd", "blosc"], &["crc32c", "blosc"], &["blosc", "blosc"]] {
            assert_eq!(chain(names).unwrap_err().kind, crate::Kind::Unsupported, "{names:?}");
        }
    }
}
