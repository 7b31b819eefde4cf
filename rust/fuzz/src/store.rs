//! Small stores whose files are changed, and whose checksums may be made right again: opened, read, verified,
//! appended to and compacted. Whatever comes of it is an error or rows, never more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use actstore_core::blocks::Blocks;
use actstore_core::format::zarr::{self, ArrayMeta, ArraySpec};
use actstore_core::store::{Overwrite, Reader, Selection, Verify, Writer, compact};
use actstore_core::{Result, Rows, Task};
use serde_json::{Value, json};

use super::input::Input;
use super::meter::within;
use super::targets::envelope;

/// Files by path.
type Files = BTreeMap<String, Vec<u8>>;

const MIB: usize = 1 << 20;
/// The record of a store, under which its body stands among the files.
const RECORD: &str = "commits/00000000000000000002.json";

/// The first byte chooses a store, the second what is done; the rest are changes of files.
pub fn store(data: &[u8]) {
    let mut input = Input(data);
    let (which, flags) = (input.byte(), input.byte());
    let bases = bases();
    let mut files = bases[usize::from(which) % bases.len()].clone();
    let mut sparse = BTreeMap::new();
    let names: Vec<String> = files.keys().cloned().collect();
    for _ in 0..16 {
        if input.0.is_empty() {
            break;
        }
        let name = &names[usize::from(input.byte()) % names.len()];
        change(name, &mut files, &mut sparse, &mut input);
    }
    if flags & 1 == 1 {
        forge(&mut files, flags & 2 == 2);
    }
    if let Some(body) = files.get_mut(RECORD) {
        *body = envelope(body);
    }

    let folder = Folder::new();
    let mut total = 0;
    for (name, bytes) in &files {
        total += bytes.len();
        let path = folder.0.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder of ours");
        fs::write(&path, bytes).expect("a folder of ours");
        if let Some(length) = sparse.get(name) {
            File::options().write(true).open(&path).and_then(|file| file.set_len(*length)).expect("a folder of ours");
        }
    }
    // A chunk may be 64 KiB here, decoded, and is in a few buffers at once; layers are listed one by one.
    within("store", 24 * MIB + 512 * total, || {
        let _ = look(&folder.0, if flags & 16 == 16 { Verify::Never } else { Verify::First });
        if flags & 4 == 4 {
            let _ = append(&folder.0);
        }
        if flags & 8 == 8 {
            let _ = compact(&folder.0, &Task::new(1));
        }
    });
}

/// Everything one can do with a store without changing it.
fn look(path: &Path, verify: Verify) -> Result<()> {
    let reader = Reader::open(path, verify)?;
    let task = Task::new(1);
    let mut small = true;
    for name in reader.arrays() {
        let Ok(array) = reader.array(&name) else { continue };
        let meta = array.meta().clone();
        let [_, layers, dim] = meta.shape;
        let rows = array.rows().min(64);
        // What is larger than this is in order, and would be decoded.
        let row = layers.saturating_mul(dim).saturating_mul(meta.dtype.size());
        small &= meta.chunk_bytes() <= 64 << 10 && row <= 16 << 10;
        if !small {
            continue;
        }
        let mut out = vec![0; rows * row];
        let _ = array.read(Rows::Range(0, rows), None, &mut out, meta.dtype, &task);
        let list: Vec<i64> = (0..rows as i64).rev().collect();
        let _ = array.read(Rows::List(&list), None, &mut out, meta.dtype, &task);
        let end = array.rows();
        let _ = array.read(Rows::Range(end - rows, end), None, &mut out, meta.dtype, &task);
        if meta.dtype.is_float() {
            let mut out = vec![0; rows * row / meta.dtype.size() * 8];
            let _ = array.read(Rows::Range(0, rows), None, &mut out, actstore_core::Dtype::Float64, &task);
            if let Ok(blocks) = Selection::new(&array, Rows::Range(0, rows), None) {
                for group in 0..blocks.groups().min(16) {
                    let n = blocks.positions(group).len();
                    let all: Vec<usize> = (0..layers).collect();
                    let _ = blocks.with_group(group, &all, &mut |decoded| {
                        for one in decoded {
                            assert_eq!(one.floats(0..n, &mut Vec::new()).len(), n * dim);
                        }
                        Ok(())
                    });
                }
            }
        }
    }
    let shards = reader.arrays().into_iter().map(|name| {
        reader.array(&name).map_or(0, |array| array.meta().grid().iter().fold(1usize, |n, e| n.saturating_mul(*e)))
    });
    // Millions of absent shards take their time to be looked for.
    if small && shards.fold(0usize, usize::saturating_add) < 4096 {
        let _ = reader.usage();
        let _ = reader.verify(true, &task);
    }
    Ok(())
}

/// A row more in each array.
fn append(path: &Path) -> Result<()> {
    let mut writer = Writer::append_to(path, 1)?;
    let arrays: Vec<(String, Vec<u8>)> = writer
        .arrays()
        .map(|(name, shape, dtype)| {
            let size = actstore_core::Dtype::parse(dtype).map_or(1, actstore_core::Dtype::size);
            (name.to_string(), vec![1; shape[1..].iter().product::<usize>() * size])
        })
        .collect();
    let rows: Vec<(&str, &[u8])> = arrays.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    writer.append(&rows, &Task::new(1))?;
    writer.commit(json!({"n": 3}), &Task::new(1))?;
    Ok(())
}

/// One change of a file.
fn change(name: &str, files: &mut Files, sparse: &mut BTreeMap<String, u64>, input: &mut Input<'_>) {
    let (kind, at, number) = (input.byte(), usize::from(input.word()), input.number());
    let Some(file) = files.get_mut(name) else { return };
    let at = at % (file.len() + 1);
    match kind % 10 {
        0 => {
            if let Some(byte) = file.get_mut(at) {
                *byte = number as u8;
            }
        }
        1 => {
            if let Some(eight) = file.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<8>()) {
                *eight = number.to_le_bytes();
            }
        }
        2 => {
            if let Some(four) = file.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                *four = (number as u32).to_le_bytes();
            }
        }
        3 => file.truncate(at),
        4 => file.extend(std::iter::repeat_n(number as u8, at)),
        // Metadata are read whole, so their length is what may be asked for.
        5 if !name.ends_with(".json") => {
            sparse.insert(name.to_string(), number >> 8 & ((1 << 43) - 1));
        }
        6 => {
            files.remove(name);
        }
        7 => {
            let n = usize::from(input.byte()).min(input.0.len());
            let (bytes, rest) = input.0.split_at(n);
            file.splice(at..at, bytes.iter().copied());
            input.0 = rest;
        }
        // The numbers of JSON, which are what most of it is about.
        _ => replace_number(file, at, number),
    }
}

/// Replaces the `n`-th number of a text.
fn replace_number(text: &mut Vec<u8>, n: usize, number: u64) {
    let mut starts: Vec<usize> = Vec::new();
    for (i, byte) in text.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| text.get(i));
        if byte.is_ascii_digit() && before.is_some_and(|b| matches!(b, b':' | b',' | b'[' | b' ' | b'-')) {
            starts.push(i);
        }
    }
    if starts.is_empty() {
        return;
    }
    let start = starts[n % starts.len()];
    let end = start + text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.splice(start..end, number.to_string().bytes());
}

/// Makes checksums right: of metadata, and, if `chunks` are to be too, of chunks, indexes and seals.
fn forge(files: &mut Files, chunks: bool) {
    let Some(mut record) = files.get(RECORD).and_then(|body| serde_json::from_slice::<Value>(body).ok()) else {
        return;
    };
    let nodes: Vec<(String, Value)> = files
        .iter()
        .filter_map(|(name, bytes)| Some((name.strip_suffix("zarr.json")?, serde_json::from_slice(bytes).ok()?)))
        .map(|(name, node)| (name.trim_end_matches('/').to_string(), node))
        .collect();
    for (name, node) in &nodes {
        let sum = json!(zarr::checksum(node));
        let slots: &[String] = &match name.as_str() {
            "" => vec!["/root/metadata".to_string(), "/root/previous".to_string()],
            name => {
                let name = name.replace('/', "~1");
                vec![format!("/groups/{name}"), format!("/arrays/{name}/metadata")]
            }
        };
        for slot in slots {
            if let Some(slot) = record.pointer_mut(slot) {
                *slot = sum.clone();
            }
        }
        if let (true, Ok(meta)) = (chunks, ArrayMeta::parse(node)) {
            forge_shards(name, &meta, files, &mut record);
        }
    }
    files.insert(RECORD.to_string(), record.to_string().into_bytes());
}

fn forge_shards(name: &str, meta: &ArrayMeta, files: &mut Files, record: &mut Value) {
    let n = meta.chunks_per_shard();
    let slot = format!("/arrays/{}", name.replace('/', "~1"));
    let Some(array) = record.pointer_mut(&slot) else { return };
    let shards = array.pointer("/shards").and_then(Value::as_array).map_or(0, Vec::len);
    for number in 0..shards.min(8) {
        let Some(file) = files.get_mut(&format!("{name}/{}", meta.key([number, 0, 0]))) else { continue };
        let Some(index) = n.checked_mul(16).and_then(|n| file.len().checked_sub(n + 4)) else { continue };
        let Some(table) = index.checked_sub(4 * n) else { continue };
        for i in 0..n {
            let word = |at: usize| file[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b)) as usize;
            let (offset, length) = (word(index + 16 * i), word(index + 16 * i + 8));
            let sum = forge_chunk(file.get_mut(offset..offset.saturating_add(length)));
            file[table + 4 * i..table + 4 * i + 4].copy_from_slice(&sum);
        }
        let end = file.len() - 4;
        let crc = crc32c::crc32c(&file[index..end]);
        file[end..].copy_from_slice(&crc.to_le_bytes());
        let seal = json!([number, [[file.len(), crc32c::crc32c(&file[table..end])]]]);
        if let Some(slot) = array.pointer_mut(&format!("/shards/{number}")) {
            *slot = seal;
        }
    }
    if let Some(file) = files.get_mut(&format!("{name}/{}", meta.key([shards, 0, 0])))
        && let Some(tail) = array.pointer_mut("/tail/chunks").and_then(Value::as_array_mut)
    {
        for chunk in tail {
            let number = |i: usize| chunk.get(i).and_then(Value::as_u64).unwrap_or(0) as usize;
            let (offset, length) = (number(0), number(1));
            let sum = forge_chunk(file.get_mut(offset..offset.saturating_add(length)));
            if let Some(slot) = chunk.get_mut(2) {
                *slot = json!(u32::from_le_bytes(sum));
            }
        }
    }
}

/// Puts the checksum of a chunk behind it.
fn forge_chunk(chunk: Option<&mut [u8]>) -> [u8; 4] {
    let Some((data, end)) = chunk.and_then(|chunk| chunk.split_last_chunk_mut::<4>()) else { return [0; 4] };
    *end = crc32c::crc32c(data).to_le_bytes();
    *end
}

/// The stores: one of ours, the same without its records, one of somebody else.
fn bases() -> &'static [Files] {
    static BASES: OnceLock<Vec<Files>> = OnceLock::new();
    BASES.get_or_init(|| {
        let folder = Folder::new();
        build(&folder.0).expect("a store of ours");
        let mut ours = Files::new();
        collect(&folder.0, "", &mut ours);
        let text = ours.remove(RECORD).expect("its newest record");
        let record: Value = serde_json::from_slice(&text).expect("a record of ours");
        ours.retain(|name, _| !name.starts_with("commits/0") && name != "commits/lock");
        ours.insert(RECORD.to_string(), record["record"].to_string().into_bytes());
        let mut plain = ours.clone();
        plain.retain(|name, _| !name.starts_with("commits"));
        let root = json!({"zarr_format": 3, "node_type": "group", "attributes": {}});
        plain.insert("zarr.json".to_string(), root.to_string().into_bytes());
        let mut foreign = Files::from([("zarr.json".to_string(), plain["zarr.json"].clone())]);
        for (name, codecs) in [("gzip", vec!["gzip"]), ("zstd", vec!["crc32c", "zstd", "crc32c"]), ("plain", vec![])] {
            add_foreign(&mut foreign, name, &codecs);
        }
        vec![ours, plain, foreign]
    })
}

/// A store of three arrays: blosc, raw, and a column; its record is a checkpoint that lists all of them.
fn build(path: &Path) -> Result<()> {
    let spec = |name: &str, shape: &[usize], dtype: &str, codec: &str, chunk: usize| -> ArraySpec {
        serde_json::from_value(json!({
            "name": name, "shape": shape, "dtype": dtype, "codec": codec, "chunk_rows": chunk,
            "shard_rows": 2 * chunk, "dimension_names": (["token", "layer", "dim"][..shape.len() + 1]),
        }))
        .expect("a specification")
    };
    let specs = [
        spec("resid", &[2, 64], "bfloat16", "blosc", 4),
        spec("plain", &[1, 4], "float32", "raw", 4),
        spec("column", &[], "int64", "blosc", 8),
    ];
    let attributes = json!({"actstore": {"format": 1, "commits": "commits"}});
    let mut writer = Writer::create(path, attributes, &specs, json!({"n": 0}), Overwrite::Never, 1)?;
    let rows = |n: usize, bytes: usize| -> Vec<u8> { (0..n * bytes).map(|i| (i * 7 % 251) as u8 | 1).collect() };
    for (i, n) in [9, 2].into_iter().enumerate() {
        writer
            .append(&[("resid", &rows(n, 256)), ("plain", &rows(n, 16)), ("column", &rows(2 * n, 8))], &Task::new(1))?;
        writer.commit(json!({"n": i + 1}), &Task::new(1))?;
    }
    merge_newest(path)
}

/// Makes the newest record a checkpoint, so that it stands for itself.
fn merge_newest(path: &Path) -> Result<()> {
    let read = |number: u64| {
        let text = fs::read(path.join(format!("commits/{number:020}.json"))).expect("a record of ours");
        actstore_core::format::record::Record::read(&text, number)
    };
    let newest = read(2)?;
    let mut merged = newest.clone();
    if newest.checkpoint != 2 {
        merged = read(newest.checkpoint)?;
        for number in newest.checkpoint + 1..=2 {
            merged = merged.merge(read(number)?)?;
        }
    }
    merged.checkpoint = 2;
    fs::write(path.join(RECORD), merged.write()).expect("a folder of ours");
    Ok(())
}

/// An array `[8, 2, 4]` of float32 in two chunks, sharded or not as the name has it.
fn add_foreign(files: &mut Files, name: &str, codecs: &[&str]) {
    let mut list = vec![json!({"name": "bytes", "configuration": {"endian": "big"}})];
    list.extend(codecs.iter().map(|codec| json!({"name": codec})));
    let node = json!({
        "zarr_format": 3, "node_type": "array", "shape": [8, 2, 4], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 1, 3]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.5, "codecs": list, "attributes": {},
    });
    files.insert(format!("{name}/zarr.json"), node.to_string().into_bytes());
    for i in 0..2 {
        for k in 0..2 {
            let mut chunk: Vec<u8> = (0..12u32).flat_map(|v| (v as f32 + 0.5).to_be_bytes()).collect();
            for codec in codecs {
                chunk = super::targets::encode(codec, &chunk);
            }
            files.insert(format!("{name}/c.{i}.1.{k}"), chunk);
        }
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("a folder of ours").flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).expect("a file of ours"));
        }
    }
}

/// A folder in memory where there is one, removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let path = base.join(format!("actstore-fuzz-{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("room for a small store");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
