//! Zarr v3 metadata: what we write, and what we read of other writers. Everything is checked here, before memory
//! is allocated for it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::format::codec::{Chain, Codec};

/// Most bytes a chunk may decode to.
pub const MAX_CHUNK: usize = 1 << 30;
/// Most layers, which are listed one by one.
const MAX_LAYERS: usize = 1 << 20;
/// Most chunks of a shard. A shard that is open keeps its index: sixteen bytes a chunk.
const MAX_SHARD_CHUNKS: usize = 1 << 22;
/// Most elements along an axis: anything beyond is an attack or an accident.
const MAX_EXTENT: u64 = 1 << 52;

/// An array as its metadata describe it: rows, layers, dim. A 1-D array has one layer of dim 1, a 2-D array
/// `[rows, dim]` has one layer.
#[derive(Clone, Debug)]
pub struct ArrayMeta {
    /// Extents; the first is the number of rows.
    pub shape: [usize; 3],
    /// The number of axes on disk: one, two or three.
    pub ndim: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Extents of an outer chunk: a shard, or a chunk without one.
    pub shard: [usize; 3],
    /// Extents of an inner chunk.
    pub chunk: [usize; 3],
    /// Codecs of a chunk.
    pub chain: Chain,
    /// How chunks lie in a shard, if they do.
    pub sharding: Option<Sharding>,
    /// An element of the fill value.
    pub fill: Vec<u8>,
    /// How chunks are named.
    pub keys: KeyEncoding,
    /// The array's attributes.
    pub attributes: Value,
}

/// Where a shard keeps its index, and whether that is checked.
#[derive(Clone, Copy, Debug)]
pub struct Sharding {
    /// At the end, or the start.
    pub index_at_end: bool,
    /// Followed by a crc32c.
    pub index_crc: bool,
}

/// Zarr's chunk key encodings.
#[derive(Clone, Debug)]
pub struct KeyEncoding {
    prefix: bool,
    separator: char,
}

impl KeyEncoding {
    /// The path, below the array's, of the outer chunk at `index`.
    pub fn key(&self, index: &[usize]) -> String {
        let numbers: Vec<String> = index.iter().map(usize::to_string).collect();
        let joined = numbers.join(&self.separator.to_string());
        if self.prefix { format!("c{}{joined}", self.separator) } else { joined }
    }
}

impl ArrayMeta {
    /// Number of outer chunks along each axis.
    pub fn grid(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.shape[i].div_ceil(self.shard[i]))
    }

    /// Number of inner chunks of a shard along each axis.
    pub fn inner_grid(&self) -> [usize; 3] {
        std::array::from_fn(|i| self.shard[i] / self.chunk[i])
    }

    /// Inner chunks of a shard.
    pub fn chunks_per_shard(&self) -> usize {
        self.inner_grid().iter().product()
    }

    /// Bytes of a decoded inner chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk.iter().product::<usize>() * self.dtype.size()
    }

    /// Bytes of a row over all layers.
    pub fn row_bytes(&self) -> usize {
        self.shape[1] * self.shape[2] * self.dtype.size()
    }

    /// Whether a chunk holds whole rows of one layer, and shards end in their index: how we write.
    pub fn is_ours(&self) -> bool {
        self.sharding.is_some_and(|sharding| sharding.index_at_end && sharding.index_crc)
            && self.chunk[1] == 1
            && self.chunk[2] == self.shape[2]
            && self.shard[1] == self.shape[1]
            && self.shard[2] == self.shape[2]
    }

    /// The path, below the array's, of a shard.
    pub fn key(&self, index: [usize; 3]) -> String {
        match self.ndim {
            1 => self.keys.key(&index[..1]),
            2 => self.keys.key(&[index[0], index[2]]),
            _ => self.keys.key(&index),
        }
    }

    /// Reads an array's `zarr.json`.
    pub fn parse(value: &Value) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| Error::metadata("not a JSON object"))?;
        if object.get("zarr_format") != Some(&json!(3)) {
            return Err(Error::unsupported("zarr_format is not 3"));
        }
        for key in object.keys() {
            const KNOWN: [&str; 12] = [
                "zarr_format",
                "node_type",
                "shape",
                "data_type",
                "chunk_grid",
                "chunk_key_encoding",
                "fill_value",
                "codecs",
                "attributes",
                "dimension_names",
                "storage_transformers",
                "consolidated_metadata",
            ];
            let optional = object[key].get("must_understand") == Some(&Value::Bool(false));
            if !KNOWN.contains(&key.as_str()) && !optional {
                return Err(Error::unsupported(format!("metadata field '{key}' must be understood")));
            }
        }
        if object.get("storage_transformers").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            return Err(Error::unsupported("storage transformers are not read"));
        }
        let dims = extents(field(object, "shape")?, 0)?;
        let ndim = dims.len();
        if !(1..=3).contains(&ndim) {
            return Err(Error::unsupported(format!("an array of {ndim} axes: arrays of one to three axes are read")));
        }
        let name = field(object, "data_type")?;
        let name = name.as_str().or_else(|| name.get("name").and_then(Value::as_str));
        let dtype = Dtype::parse(name.ok_or_else(|| Error::metadata("data_type is not a name"))?)?;
        let shard = extents(named(field(object, "chunk_grid")?, "regular", "chunk_shape")?, 1)?;
        if shard.len() != ndim {
            return Err(Error::metadata("chunk_shape and shape have different lengths"));
        }
        let keys = key_encoding(field(object, "chunk_key_encoding")?)?;
        let fill = fill_value(object.get("fill_value").unwrap_or(&Value::Null), dtype)?;

        let codecs = field(object, "codecs")?.as_array().ok_or_else(|| Error::metadata("codecs is not a list"))?;
        let (chunk, mut chain, sharding) = match codecs.as_slice() {
            [one] if one.get("name").and_then(Value::as_str) == Some("sharding_indexed") => {
                let configuration =
                    one.get("configuration").ok_or_else(|| Error::metadata("sharding without configuration"))?;
                let chunk = extents(configuration.get("chunk_shape").unwrap_or(&Value::Null), 1)?;
                let inner = configuration.get("codecs").and_then(Value::as_array);
                let chain = Chain::parse(inner.ok_or_else(|| Error::metadata("sharding without codecs"))?, ndim)?;
                let index = configuration.get("index_codecs").and_then(Value::as_array);
                let index = Chain::parse(index.ok_or_else(|| Error::metadata("sharding without index_codecs"))?, ndim)?;
                let index_crc = match index.codecs.as_slice() {
                    [] => false,
                    [Codec::Crc32c] => true,
                    _ => return Err(Error::unsupported("a compressed shard index is not read")),
                };
                if index.big_endian || index.order.is_some() {
                    return Err(Error::unsupported("a big-endian or transposed shard index is not read"));
                }
                let index_at_end = match configuration.get("index_location").and_then(Value::as_str) {
                    None | Some("end") => true,
                    Some("start") => false,
                    Some(other) => return Err(Error::metadata(format!("index_location '{other}'"))),
                };
                if chunk.len() != ndim || shard.iter().zip(&chunk).any(|(s, c)| s % c != 0) {
                    return Err(Error::metadata(format!("shards of {shard:?} do not divide into chunks of {chunk:?}")));
                }
                (chunk, chain, Some(Sharding { index_at_end, index_crc }))
            }
            chain => (shard.clone(), Chain::parse(chain, ndim)?, None),
        };
        if ndim == 2 && chain.order.is_some() {
            // The one order of two axes that is not C: dim, then rows. The layer has extent 1 and may be anywhere.
            chain.order = Some(vec![2, 1, 0]);
        }
        let meta = ArrayMeta {
            shape: widen(&dims),
            ndim,
            dtype,
            shard: widen(&shard),
            chunk: widen(&chunk),
            chain,
            sharding,
            fill,
            keys,
            attributes: object.get("attributes").cloned().unwrap_or_else(|| json!({})),
        };
        meta.check_sizes()?;
        Ok(meta)
    }

    /// An error when sizes are beyond what any memory holds.
    pub fn check_sizes(&self) -> Result<()> {
        let product = |extents: [usize; 3]| extents.iter().try_fold(self.dtype.size(), |n, e| n.checked_mul(*e));
        if product(self.chunk).is_none_or(|n| n > MAX_CHUNK) {
            let message = format!("a chunk of {:?} is beyond {MAX_CHUNK} bytes", self.chunk);
            return Err(Error::unsupported(message));
        }
        let [rows, layers, dim] = self.shape;
        if product(self.shard).is_none_or(|n| n as u64 > MAX_EXTENT)
            || product([rows.max(1), layers, dim]).is_none_or(|n| n > isize::MAX as usize)
            || layers > MAX_LAYERS
        {
            return Err(Error::metadata(format!(
                "a shape of {:?} in shards of {:?} is beyond any memory",
                self.shape, self.shard
            )));
        }
        if self.chunks_per_shard() > MAX_SHARD_CHUNKS {
            return Err(Error::unsupported(format!(
                "{} chunks in a shard: up to {MAX_SHARD_CHUNKS} are read",
                self.chunks_per_shard()
            )));
        }
        Ok(())
    }
}

/// What an array of ours is made with.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArraySpec {
    /// Path below the store: `resid`, `tokens/id`.
    pub name: String,
    /// The shape of a row: `[layers, dim]`, `[dim]`, or nothing for one axis.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: String,
    /// `blosc` or `raw`.
    pub codec: String,
    /// Rows of a chunk; by default about a mebibyte of them.
    pub chunk_rows: Option<usize>,
    /// Rows of a shard; by default about 256 MiB of them.
    pub shard_rows: Option<usize>,
    /// The names of the axes.
    pub dimension_names: Vec<String>,
    /// Anything the caller wants kept with it.
    #[serde(default)]
    pub attributes: Value,
}

impl ArraySpec {
    /// The `zarr.json` of the array with no rows.
    pub fn metadata(&self) -> Result<Value> {
        let dtype = Dtype::parse(&self.dtype).map_err(|e| Error::invalid(e.message))?;
        let (layers, dim) = match self.shape.as_slice() {
            [] => (1, 1),
            [dim] if *dim > 0 => (1, *dim),
            [layers, dim] if *layers > 0 && *dim > 0 => (*layers, *dim),
            _ => {
                return Err(Error::shape(format!(
                    "array '{}' has shape {:?}: give [layers, dim], [dim] or [], all positive",
                    self.name, self.shape
                )));
            }
        };
        if !valid_path(&self.name) {
            return Err(Error::invalid(format!("'{}' cannot be the name of an array", self.name)));
        }
        let size = dtype.size();
        let row = dim.checked_mul(size).filter(|n| n.checked_mul(layers).is_some_and(|all| all <= MAX_CHUNK));
        let row = row.ok_or_else(|| Error::shape(format!("a row of {layers} x {dim} is beyond {MAX_CHUNK} bytes")))?;
        let chunk = self.chunk_rows.unwrap_or_else(|| super::layout::chunk_rows(row));
        let shard = self.shard_rows.unwrap_or_else(|| super::layout::shard_rows(row, layers, chunk.max(1)));
        if chunk == 0 || shard == 0 || !shard.is_multiple_of(chunk) {
            return Err(Error::invalid(format!("shard_rows {shard} is no positive multiple of chunk_rows {chunk}")));
        }
        let compress = match self.codec.as_str() {
            "blosc" => vec![json!({"name": "blosc", "configuration": {
                "cname": "zstd", "clevel": 1, "typesize": size, "blocksize": super::blosc::BLOCK,
                "shuffle": if size > 1 { "shuffle" } else { "noshuffle" }}})],
            "raw" => vec![],
            other => return Err(Error::invalid(format!("codec '{other}': give 'blosc' or 'raw'"))),
        };
        let mut codecs = vec![if size > 1 {
            json!({"name": "bytes", "configuration": {"endian": "little"}})
        } else {
            json!({"name": "bytes"})
        }];
        codecs.extend(compress);
        codecs.push(json!({"name": "crc32c"}));
        let whole = |rows: usize| -> Vec<usize> { std::iter::once(rows).chain(self.shape.iter().copied()).collect() };
        let inner = match self.shape.len() {
            0 => vec![chunk],
            1 => vec![chunk, dim],
            _ => vec![chunk, 1, dim],
        };
        let fill = match dtype {
            Dtype::Bool => json!(false),
            dtype if dtype.is_float() => json!("NaN"),
            _ => json!(0),
        };
        let value = json!({
            "zarr_format": 3, "node_type": "array", "shape": whole(0), "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": whole(shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": {
                "chunk_shape": inner, "codecs": codecs, "index_location": "end",
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]}}],
            "attributes": if self.attributes.is_null() { json!({}) } else { self.attributes.clone() },
            "dimension_names": self.dimension_names,
        });
        ArrayMeta::parse(&value)?;
        Ok(value)
    }
}

/// The `zarr.json` of a group.
pub fn group(attributes: &Value) -> Value {
    json!({"zarr_format": 3, "node_type": "group", "attributes": attributes})
}

/// The `zarr.json` of the root group: those of all other nodes in it, so that Zarr readers list no folders.
pub fn root(attributes: &Value, members: BTreeMap<String, Value>) -> Value {
    let mut root = group(attributes);
    // Sorted: zarr-python gathers siblings from keys that follow one another.
    let members: Map<String, Value> = members.into_iter().collect();
    root["consolidated_metadata"] = json!({"kind": "inline", "must_understand": false, "metadata": members});
    root
}

/// Whether a path stays below the store it is in, whoever wrote it.
pub fn valid_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() < 1024
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.starts_with("__")
                && part != "zarr.json"
                && !part.contains(['\\', '\0'])
        })
}

/// The checksum of a node's metadata, whatever the number of rows and the order of its keys.
pub fn checksum(node: &Value) -> u32 {
    let mut node = node.clone();
    let drop_rows = |node: &mut Value| {
        if node.get("node_type").and_then(Value::as_str) == Some("array")
            && let Some(rows) = node.pointer_mut("/shape/0")
        {
            *rows = Value::Null;
        }
    };
    drop_rows(&mut node);
    if let Some(members) = node.pointer_mut("/consolidated_metadata/metadata").and_then(Value::as_object_mut) {
        members.values_mut().for_each(drop_rows);
    }
    node.sort_all_objects();
    crc32c::crc32c(node.to_string().as_bytes())
}

/// Extents along rows, layers and dim.
fn widen(extents: &[usize]) -> [usize; 3] {
    match *extents {
        [rows, dim] => [rows, 1, dim],
        _ => std::array::from_fn(|i| extents.get(i).copied().unwrap_or(1)),
    }
}

fn field<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a Value> {
    object.get(name).ok_or_else(|| Error::metadata(format!("no '{name}'")))
}

/// The configuration value `key` of an extension that must be called `name`.
fn named<'a>(value: &'a Value, name: &str, key: &str) -> Result<&'a Value> {
    match value.get("name").and_then(Value::as_str) {
        Some(found) if found == name => {}
        found => return Err(Error::unsupported(format!("'{}' where '{name}' is read", found.unwrap_or("no name")))),
    }
    value.pointer(&format!("/configuration/{key}")).ok_or_else(|| Error::metadata(format!("'{name}' without {key}")))
}

fn extents(value: &Value, least: u64) -> Result<Vec<usize>> {
    let list = value.as_array().ok_or_else(|| Error::metadata("a shape is not a list"))?;
    if list.len() > 32 {
        return Err(Error::metadata("a shape of more than 32 axes"));
    }
    list.iter()
        .map(|extent| match extent.as_u64() {
            Some(n) if (least..=MAX_EXTENT).contains(&n) => Ok(n as usize),
            _ => Err(Error::metadata(format!("{extent} is no extent of an axis"))),
        })
        .collect()
}

fn key_encoding(value: &Value) -> Result<KeyEncoding> {
    let name = value.as_str().or_else(|| value.get("name").and_then(Value::as_str));
    let prefix = match name {
        Some("default") => true,
        Some("v2") => false,
        other => return Err(Error::unsupported(format!("chunk key encoding '{}'", other.unwrap_or("?")))),
    };
    let separator = match value.pointer("/configuration/separator") {
        None => {
            if prefix {
                '/'
            } else {
                '.'
            }
        }
        Some(Value::String(s)) if s == "/" || s == "." => s.chars().next().unwrap_or('/'),
        Some(other) => return Err(Error::metadata(format!("chunk key separator {other}"))),
    };
    Ok(KeyEncoding { prefix, separator })
}

fn fill_value(value: &Value, dtype: Dtype) -> Result<Vec<u8>> {
    let wrong = || Error::metadata(format!("fill value {value} for {}", dtype.name()));
    let spare = 64 - 8 * dtype.size() as u32;
    if let Some(hex) = value.as_str().and_then(|s| s.strip_prefix("0x")) {
        let bits = u64::from_str_radix(hex, 16).ok().filter(|bits| bits.leading_zeros() >= spare).ok_or_else(wrong)?;
        return Ok(bits.to_le_bytes()[..dtype.size()].to_vec());
    }
    if dtype.is_float() {
        let number = match value {
            Value::Null => 0.0,
            Value::String(s) if s == "NaN" => f64::NAN,
            Value::String(s) if s == "Infinity" => f64::INFINITY,
            Value::String(s) if s == "-Infinity" => f64::NEG_INFINITY,
            other => other.as_f64().ok_or_else(wrong)?,
        };
        let mut out = vec![0; dtype.size()];
        crate::kernels::convert(&number.to_le_bytes(), Dtype::Float64, &mut out, dtype);
        return Ok(out);
    }
    let bits = match value {
        Value::Null => 0,
        Value::Bool(b) if dtype == Dtype::Bool => u64::from(*b),
        other => {
            let signed = matches!(dtype, Dtype::Int8 | Dtype::Int16 | Dtype::Int32 | Dtype::Int64);
            let fits = |bits: &u64| bits << spare >> spare == *bits;
            let fits_signed = |n: &i64| signed && n << spare >> spare == *n;
            let unsigned = other.as_u64().filter(|bits| !signed && fits(bits));
            unsigned.or_else(|| other.as_i64().filter(fits_signed).map(i64::cast_unsigned)).ok_or_else(wrong)?
        }
    };
    Ok(bits.to_le_bytes()[..dtype.size()].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_value_is_one_of_its_type() {
        for (value, dtype, bytes) in [
            (json!(255), Dtype::UInt8, &[255][..]),
            (json!(-128), Dtype::Int8, &[128]),
            (json!(true), Dtype::Bool, &[1]),
            (json!("0xffff"), Dtype::BFloat16, &[255, 255]),
            (json!(u64::MAX), Dtype::UInt64, &[255; 8]),
            (json!(i64::MIN), Dtype::Int64, &[0, 0, 0, 0, 0, 0, 0, 128]),
            (json!(1.5), Dtype::Float32, &[0, 0, 192, 63]),
        ] {
            assert_eq!(fill_value(&value, dtype).unwrap(), bytes, "{value} {dtype:?}");
        }
        for (value, dtype) in [
            (json!(256), Dtype::UInt8),
            (json!(-1), Dtype::UInt8),
            (json!(128), Dtype::Int8),
            (json!(-129), Dtype::Int8),
            (json!(u64::MAX), Dtype::Int64),
            (json!("0x10000"), Dtype::BFloat16),
            (json!(true), Dtype::UInt8),
            (json!(0.5), Dtype::Int32),
            (json!("one"), Dtype::Float32),
        ] {
            assert!(fill_value(&value, dtype).is_err(), "{value} {dtype:?}");
        }
    }

    #[test]
    fn a_shard_of_any_size_is_asked_for_without_overflow() {
        for chunk_rows in [0, 1, 1 << 40, usize::MAX] {
            let spec = ArraySpec {
                name: "x".into(),
                shape: vec![1 << 20, 1 << 8],
                dtype: "float32".into(),
                codec: "blosc".into(),
                chunk_rows: Some(chunk_rows),
                shard_rows: None,
                dimension_names: vec![],
                attributes: Value::Null,
            };
            assert_eq!(spec.metadata().is_ok(), chunk_rows == 1, "{chunk_rows}");
        }
    }
}
