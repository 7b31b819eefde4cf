//! One function for each thing that reads bytes of others. Each states what must hold, whatever the bytes
//! are: no panic, no more memory than a multiple of what is read and what it decodes to.

use actstore_core::format::blosc::{self, Block, Decoded, MAX_PLANES};
use actstore_core::format::codec::{Chain, Scratch};
use actstore_core::format::record::{self, Chunk, Record};
use actstore_core::format::shard::{self, Span};
use actstore_core::format::zarr::{self, ArrayMeta, MAX_CHUNK};
use actstore_core::format::{json, zstd_frame};
use serde_json::{Value, json};

use super::input::Input;
use super::meter::within;
pub use super::store::store;

/// What is fed an input.
type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("blosc", blosc),
    ("chain", chain),
    ("record", record),
    ("round_trip", round_trip),
    ("shard", shard),
    ("store", store),
    ("zarr", zarr),
    ("zstd", zstd),
];

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes that a byte of JSON may take: `json` asks for 256 for each value, of two bytes at least, to see
/// whether they are there.
const JSON: usize = 512;

/// Metadata of arrays and groups.
pub fn zarr(data: &[u8]) {
    within("zarr", 64 * KIB + JSON * data.len(), || {
        let Ok(value) = json::parse(data) else { return };
        zarr::checksum(&value);
        if let Some(members) = value.pointer("/consolidated_metadata/metadata").and_then(Value::as_object) {
            for (path, node) in members {
                zarr::valid_path(path);
                check_meta(node);
            }
        }
        check_meta(&value);
    });
}

fn check_meta(node: &Value) {
    let Ok(meta) = ArrayMeta::parse(node) else { return };
    meta.check_sizes().expect("it was checked when it was parsed");
    let bytes = meta.chunk_bytes();
    assert!((1..=MAX_CHUNK).contains(&bytes));
    assert!(meta.chain.encoded_limit(bytes) >= bytes);
    assert_eq!(meta.fill.len(), meta.dtype.size());
    let inner = meta.inner_grid();
    assert!(inner.iter().all(|n| *n > 0) && inner.iter().product::<usize>() == meta.chunks_per_shard());
    assert!(shard::seal_bytes(meta.chunks_per_shard()) < 1 << 27);
    let last = meta.grid().map(|n| n.saturating_sub(1));
    assert!(meta.key(last).split(['/', '.']).all(|part| part == "c" || part.parse::<usize>().is_ok()));
    let _ = (meta.row_bytes(), meta.is_ours(), meta.chain.name());
    // An array with as many rows as a record may say.
    let mut more = meta.clone();
    more.shape[0] = 1 << 52;
    if more.check_sizes().is_ok() {
        let _ = (more.grid(), more.shape[0].checked_mul(more.row_bytes()).expect("sizes were checked"));
    }
}

/// Commit records. The first byte says whether their checksums are made right, the second which number the first one
/// should have. Newlines separate the records, each of which is merged into those before it.
pub fn record(data: &[u8]) {
    let mut input = Input(data);
    let (forge, first) = (input.byte() & 1 == 1, u64::from(input.byte()));
    within("record", 64 * KIB + 2 * JSON * data.len(), || {
        let mut merged: Option<Record> = None;
        for (i, body) in input.0.split(|byte| *byte == b'\n').take(4).enumerate() {
            let text = if forge { envelope(body) } else { body.to_vec() };
            let Ok(record) = Record::read(&text, first + i as u64) else { return };
            assert_eq!(Record::read(record.write().as_bytes(), record.number).expect("what we wrote"), record);
            for array in record.arrays.values() {
                if let Some(tail) = &array.tail {
                    assert!(record::end(&tail.chunks) < 1 << 53);
                }
            }
            let own = record.attributes.clone();
            assert!(own.as_ref().is_none_or(Value::is_object));
            let _ = record.check_complete();
            merged = match merged {
                None => Some(record),
                Some(before) => {
                    let inherited = before.attributes.clone();
                    match before.merge(record) {
                        Ok(merged) => {
                            assert_eq!(merged.attributes, own.or(inherited));
                            Some(merged)
                        }
                        Err(_) => return,
                    }
                }
            };
        }
        if let Some(record) = merged
            && record.check_complete().is_ok()
        {
            assert!(record.attributes.is_some());
        }
    });
}

/// A record's text around a body, its checksum right.
pub fn envelope(body: &[u8]) -> Vec<u8> {
    let mut text = format!("{{\"crc32c\":\"{:08x}\",\"record\":", crc32c::crc32c(body)).into_bytes();
    text.extend_from_slice(body);
    text.push(b'}');
    text
}

/// Indexes and seals of shards.
pub fn shard(data: &[u8]) {
    let mut input = Input(data);
    let (flags, chunks, file_bytes) = (input.byte(), usize::from(input.word()) % 2000, input.number());
    let mut bytes = input.0.to_vec();
    if flags & 1 == 1 {
        let from = if flags & 2 == 2 { (4 * chunks).min(bytes.len()) } else { 0 };
        bytes.extend_from_slice(&crc32c::crc32c(&bytes[from..]).to_le_bytes());
    }
    within("shard", 4 * KIB + 4 * bytes.len() + 64 * chunks, || {
        let whole = |spans: &[Span]| {
            for span in spans {
                assert!(*span == Span::ABSENT || span.end() <= file_bytes);
            }
            let limit = input.0.len();
            if shard::check_lengths(spans, limit).is_ok() {
                assert!(spans.iter().all(|span| *span == Span::ABSENT || span.length <= limit as u64));
            }
        };
        if let Ok(spans) = shard::read_index(&bytes, flags & 4 == 4, file_bytes) {
            whole(&spans);
        }
        if let Ok((spans, sums, _)) = shard::read_seal(&bytes, chunks, file_bytes) {
            whole(&spans);
            assert_eq!(sums.len(), chunks);
        }
        // What we write is read back.
        let written: Vec<Chunk> =
            bytes.chunks_exact(3).take(chunks).map(|b| Chunk(b[0].into(), b[1].into(), b[2].into())).collect();
        let (end, seal) = shard::write_seal(&written, chunks).expect("a small one");
        let (spans, sums, found) = shard::read_seal(&end, chunks, 512).expect("what we wrote");
        assert!(found == seal && spans.len() == chunks);
        for (i, (span, sum)) in spans.iter().zip(sums).enumerate() {
            match written.get(i) {
                Some(chunk) => assert!((span.offset, span.length, sum) == (chunk.0, chunk.1, chunk.2)),
                None => assert!(*span == Span::ABSENT && sum == 0),
            }
        }
    });
}

/// Containers of blosc: an element's size, whether the header decides how much is expected, and the bytes.
pub fn blosc(data: &[u8]) {
    let mut input = Input(data);
    let (size, flags, word) = (1 << (input.byte() % 4), input.byte(), usize::from(input.word()));
    let said = input.0.get(4..8).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let expected = if flags & 1 == 1 { said.min(MIB) } else { word };
    // A block is put together before its elements are.
    within("blosc", 64 * KIB + 2 * expected, || {
        let mut scratch = Vec::new();
        if let Ok(decoded) = blosc::read(input.0, expected, size, &mut scratch) {
            check_decoded(&decoded, expected, size);
        }
    });
}

fn check_decoded(decoded: &Decoded<'_>, expected: usize, size: usize) {
    match decoded {
        Decoded::Elements(bytes) => assert_eq!(bytes.len(), expected),
        Decoded::Planes(planes) => {
            assert!(size <= MAX_PLANES && planes[..size].iter().all(|plane| plane.len() * size == expected));
        }
    }
}

fn elements(decoded: &Decoded<'_>, size: usize) -> Vec<u8> {
    match decoded {
        Decoded::Elements(bytes) => bytes.to_vec(),
        Decoded::Planes(planes) => {
            (0..planes[0].len()).flat_map(|i| planes[..size].iter().map(move |plane| plane[i])).collect()
        }
    }
}

/// zstd frames: how many bytes are expected, and the frame. Ours must say what libzstd says.
pub fn zstd(data: &[u8]) {
    let mut input = Input(data);
    let (flags, word) = (input.byte(), usize::from(input.word()));
    let expected = match zstd_safe::get_frame_content_size(input.0) {
        Ok(Some(size)) if flags & 1 == 1 => size.min(MIB as u64) as usize,
        _ => word,
    };
    within("zstd", 64 * KIB + 2 * expected, || {
        let (mut ours, mut theirs) = (vec![1; expected], vec![2; expected]);
        let read = zstd_frame::read(input.0, &mut ours);
        let size = zstd_safe::decompress(&mut theirs[..], input.0);
        assert_eq!(read.is_ok(), size == Ok(expected), "{read:?} {size:?}");
        assert!(read.is_err() || ours == theirs);
    });
}

/// Codecs of a list, and a chunk for them: as it is, or encoded by them first and then changed.
pub fn chain(data: &[u8]) {
    const NAMES: [&str; 5] = ["crc32c", "zstd", "gzip", "blosc", "transpose"];
    let mut input = Input(data);
    let (flags, n) = (input.byte(), input.byte() % 10);
    let mut list = vec![json!({"name": "bytes", "configuration": {"endian": "little"}})];
    for _ in 0..n {
        list.push(json!({"name": NAMES[usize::from(input.byte()) % NAMES.len()]}));
    }
    let Ok(chain) = Chain::parse(&list, 3) else { return };
    let (size, expected) = (1 << (input.byte() % 4), usize::from(input.word()));
    let (chunk, expected) = if flags & 1 == 1 {
        // Well-formed on the outside, so that what is within is reached.
        let mut chunk = input.0.to_vec();
        for codec in list.iter().skip(2).filter_map(|codec| codec["name"].as_str()) {
            chunk = encode(codec, &chunk);
        }
        (chunk, expected)
    } else {
        (input.0.to_vec(), expected)
    };
    // As a store does, which reads no more than this.
    if chunk.len() > chain.encoded_limit(expected) {
        return;
    }
    // Each of two streams may have twice the bytes before it; a list that grows takes as much again.
    within("chain", 4 * MIB + 16 * expected, || {
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            if let Ok(decoded) = chain.decode(&chunk, expected, size, &mut scratch) {
                check_decoded(&decoded, expected, size);
            }
        }
    });
}

/// What a codec makes of bytes.
pub fn encode(codec: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    match codec {
        "crc32c" => [bytes, &crc32c::crc32c(bytes).to_le_bytes()].concat(),
        "zstd" => {
            let mut out = Vec::new();
            zstd_frame::write_general(bytes, 1, &mut out).expect("it encodes anything");
            out
        }
        "gzip" => {
            let mut out = Vec::new();
            let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
            encoder.read_to_end(&mut out).expect("it encodes anything");
            out
        }
        _ => bytes.to_vec(),
    }
}

/// Rows of every element's size, encoded and read back: as blosc, raw, and as literals in a zstd frame,
/// which libzstd must read too.
pub fn round_trip(data: &[u8]) {
    let mut input = Input(data);
    let (size, flags) = (1usize << (input.byte() % 4), input.byte());
    let row_bytes = size * (1 + usize::from(input.word()) % 2000);
    let repeat = 1 + usize::from(input.byte());
    let bytes = input.0.repeat(if flags & 1 == 1 { repeat } else { 1 });
    let rows = bytes.len() / row_bytes;
    let chunk_rows = rows + usize::from(flags >> 4) * usize::from(flags & 2) * 8;
    if rows == 0 || chunk_rows * row_bytes > 3 * MIB {
        return;
    }
    let block = Block {
        row: |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes],
        rows,
        row_bytes,
        chunk_rows,
        size,
        float: flags & 4 == 4 && size > 1,
    };
    let mut wanted = bytes[..rows * row_bytes].to_vec();
    wanted.resize(chunk_rows * row_bytes, 0);
    let (mut scratch, mut out) = (Vec::new(), Vec::new());
    block.write(&mut scratch, &mut out).expect("it encodes anything");
    assert!(out.len() <= wanted.len() + wanted.len() / 64 + KIB, "{} of {}", out.len(), wanted.len());
    let mut back = Vec::new();
    let decoded = blosc::read(&out, wanted.len(), size, &mut back).expect("what we wrote");
    assert!(elements(&decoded, size) == wanted);
    out.clear();
    block.write_raw(&mut out);
    assert!(out == wanted);

    let zeros = if flags & 8 == 8 { row_bytes * 40 } else { 0 };
    let mut frame = Vec::new();
    if zstd_frame::write_literals(&bytes, zeros, &mut frame) {
        wanted = bytes;
        wanted.resize(wanted.len() + zeros, 0);
        let mut back = vec![1; wanted.len()];
        zstd_frame::read(&frame, &mut back).expect("what we wrote");
        assert!(back == wanted);
        back.fill(1);
        assert_eq!(zstd_safe::decompress(&mut back[..], &frame), Ok(wanted.len()));
        assert!(back == wanted);
    } else {
        assert!(frame.is_empty());
    }
}
