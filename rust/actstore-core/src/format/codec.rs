//! The codecs of a chunk, in the order Zarr lists them, and how they are undone.

use std::io::Read;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::blosc::{self, Decoded};
use crate::format::zstd_frame;

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
                Codec::Blosc if i == 0 => return blosc::read(bytes, expected, size, planes),
                Codec::Blosc => return Err(Error::unsupported("blosc over other codecs is not read")),
                Codec::Zstd | Codec::Gzip => {
                    let out = spare.take().or_else(|| other.take());
                    let out =
                        out.ok_or_else(|| Error::unsupported("more than two compressors in a row are not read"))?;
                    // Only the last to be undone gives a size that is known beforehand.
                    let limit = if self.codecs[..i].iter().all(|c| *c == Codec::Crc32c) {
                        expected + 4 * i
                    } else {
                        expected * 2 + (1 << 16)
                    };
                    inflate(codec, bytes, limit, out)?;
                    bytes = out;
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

/// At most `limit` bytes: a frame's own word for its size is not to be trusted with an allocation.
fn inflate(codec: &Codec, bytes: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    if *codec == Codec::Zstd {
        if let Ok(Some(size)) = zstd_safe::get_frame_content_size(bytes) {
            if size > limit as u64 {
                return Err(Error::checksum(format!("zstd: {size} bytes where {limit} belong at most")));
            }
            out.resize(size as usize, 0);
            return zstd_frame::read(bytes, out);
        }
        out.resize(limit, 0);
        let size = zstd_safe::decompress(&mut out[..], bytes)
            .map_err(|code| Error::checksum(format!("zstd: {}", zstd_safe::get_error_name(code))))?;
        out.truncate(size);
        return Ok(());
    }
    flate2::read::MultiGzDecoder::new(bytes)
        .take(limit as u64 + 1)
        .read_to_end(out)
        .map_err(|error| Error::checksum(format!("gzip: {error}")))?;
    if out.len() > limit {
        return Err(Error::checksum(format!("gzip: more than {limit} bytes")));
    }
    Ok(())
}
