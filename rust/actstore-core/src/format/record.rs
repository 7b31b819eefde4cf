//! Commit records: numbered, immutable JSON files, the highest of which is the truth.
//!
//! A record holds what changed since the one before; a checkpoint holds everything, so that opening a
//! store reads a checkpoint and the few records after it. Each checksums its own text.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Kind, Result};
use crate::format::json;

/// The version of the format that is written.
pub const FORMAT: u64 = 1;

/// Numbers in a record stay below: beyond it, not every JSON reader is exact. It leaves room for sums of a few.
const MOST: u64 = 1 << 53;

/// Length and seal of a shard. Two while a compaction renames: the old or the new.
pub type ShardSum = Vec<(u64, u32)>;

/// A chunk of a tail shard: offset, length, and the crc32c at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Chunk(pub u64, pub u64, pub u32);

impl Chunk {
    /// The byte behind its last. A record that was read has none that overflows.
    pub fn end(self) -> u64 {
        self.0.saturating_add(self.1)
    }
}

/// The byte behind the last of some chunks of a shard.
pub fn end(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| chunk.end()).max().unwrap_or(0)
}

/// A shard that may still grow. Its chunks are where the record says, whatever its index has become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Bytes the file has at least.
    pub length: u64,
    /// Its chunks, in the order of rows and, within, of layers.
    pub chunks: Vec<Chunk>,
    /// While a compaction renames: what the new file is, if it is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compacted: Option<Compacted>,
}

/// The file that a compaction puts in a tail shard's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compacted {
    /// Its exact length.
    pub length: u64,
    /// Its seal.
    pub seal: u32,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
}

/// An array as of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayRecord {
    /// Its metadata's checksum, the number of rows left out.
    pub metadata: u32,
    /// Its rows.
    pub rows: u64,
    /// Its rows as of the record before: the shape on disk may still say so.
    pub previous: u64,
    /// Full shards, by number: all in a checkpoint, those new or changed otherwise.
    pub shards: Vec<(u64, ShardSum)>,
    /// The shard behind the full ones, when there are rows in it.
    pub tail: Option<Tail>,
}

/// The checksums the root's metadata may have: that of this record, and that of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// As of this record.
    pub metadata: u32,
    /// As of the one before.
    pub previous: u32,
}

/// One record; merged with those before it, everything there is to know at a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The version of the format.
    pub format: u64,
    /// Its own number.
    pub number: u64,
    /// The checkpoint it builds on; its own number if it is one.
    pub checkpoint: u64,
    /// How often the store was compacted.
    pub generation: u64,
    /// The root group's metadata.
    pub root: Root,
    /// The root group's attributes: in a checkpoint, and in a record that changes them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "object")]
    pub attributes: Option<Value>,
    /// Metadata checksums of all other groups.
    pub groups: BTreeMap<String, u32>,
    /// All arrays.
    pub arrays: BTreeMap<String, ArrayRecord>,
    /// What the layer above keeps with a commit.
    #[serde(deserialize_with = "few_values")]
    pub state: Value,
}

/// Checks the number of values before it parses JSON whose shape the layer above chose.
fn few_values<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Value, D::Error> {
    let text = <&RawValue>::deserialize(from)?;
    json::parse(text.get().as_bytes()).map_err(|error| D::Error::custom(error.message))
}

fn object<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Value>, D::Error> {
    let value = few_values(from)?;
    if value.is_object() { Ok(Some(value)) } else { Err(D::Error::custom("attributes are not an object")) }
}

/// What is read of a record before anything else.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    format: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    crc32c: &'a str,
    #[serde(borrow)]
    record: &'a RawValue,
}

impl Record {
    /// The file's text.
    pub fn write(&self) -> String {
        let body = serde_json::to_string(self).expect("a record is plain data");
        format!("{{\"crc32c\":\"{:08x}\",\"record\":{body}}}", crc32c::crc32c(body.as_bytes()))
    }

    /// Reads the text of the record of that number.
    pub fn read(text: &[u8], number: u64) -> Result<Self> {
        let damaged = |what: String| Error::new(Kind::Checksum, format!("commit record {number}: {what}"));
        let envelope: Envelope = serde_json::from_slice(text).map_err(|e| damaged(format!("does not parse: {e}")))?;
        let body = envelope.record.get();
        let found = format!("{:08x}", crc32c::crc32c(body.as_bytes()));
        if found != envelope.crc32c {
            return Err(damaged(format!("crc32c is {found}, {} is stored", envelope.crc32c)));
        }
        let version: Version = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
        match version.format.as_u64() {
            Some(FORMAT) => {}
            Some(later) if later > FORMAT => {
                return Err(Error::new(
                    Kind::Version,
                    format!("the store has format {later}, this actstore reads up to {FORMAT}: install a later one"),
                ));
            }
            _ => return Err(damaged("no format number".into())),
        }
        json::check_memory(body.as_bytes())?;
        let record: Record =
            serde_json::from_str(body).map_err(|e| Error::metadata(format!("commit record {number}: {e}")))?;
        if record.number != number || record.checkpoint > number {
            return Err(Error::metadata(format!("commit record {number} calls itself {}", record.number)));
        }
        record.check_numbers()?;
        Ok(record)
    }

    /// An error unless all numbers can be added to one another: what follows relies on it.
    fn check_numbers(&self) -> Result<()> {
        let small = |n: u64| n < MOST;
        let chunks = |chunks: &[Chunk]| chunks.iter().all(|chunk| small(chunk.end()));
        let tail = |tail: &Tail| {
            let compacted = tail.compacted.as_ref();
            small(tail.length) && chunks(&tail.chunks) && compacted.is_none_or(|c| small(c.length) && chunks(&c.chunks))
        };
        let array = |array: &ArrayRecord| {
            let sums = |sums: &ShardSum| sums.iter().all(|(length, _)| small(*length));
            small(array.rows)
                && small(array.previous)
                && array.shards.iter().all(|(number, of)| small(*number) && sums(of))
                && array.tail.as_ref().is_none_or(tail)
        };
        if !small(self.number) || !small(self.generation) {
            return Err(Error::metadata(format!("commit record {} has numbers beyond {MOST}", self.number)));
        }
        match self.arrays.iter().find(|(_, record)| !array(record)) {
            Some((name, _)) => Err(Error::metadata(format!(
                "commit record {}: rows, shards or chunks of '{name}' are beyond {MOST}",
                self.number
            ))),
            None => Ok(()),
        }
    }

    /// This record with the next one applied: attributes and shards that the next one does not list stay.
    pub fn merge(mut self, next: Record) -> Result<Self> {
        if next.number != self.number + 1 || next.checkpoint != self.checkpoint {
            return Err(Error::metadata(format!("commit record {} does not follow {}", next.number, self.number)));
        }
        let mut merged = next;
        merged.attributes = merged.attributes.or(self.attributes);
        for (name, array) in &mut merged.arrays {
            if let Some(before) = self.arrays.remove(name) {
                let mut shards: BTreeMap<u64, ShardSum> = before.shards.into_iter().collect();
                shards.extend(std::mem::take(&mut array.shards));
                array.shards = shards.into_iter().collect();
            }
        }
        Ok(merged)
    }

    /// An error unless a merged record has the root's attributes and every array's shards, numbered without a gap.
    pub fn check_complete(&self) -> Result<()> {
        if self.attributes.is_none() {
            return Err(Error::metadata(format!("commit record {}: its checkpoint has no attributes", self.number)));
        }
        for (name, array) in &self.arrays {
            let dense =
                array.shards.iter().enumerate().all(|(i, (number, sums))| *number == i as u64 && !sums.is_empty());
            if !dense {
                return Err(Error::metadata(format!("commit record {}: shards of '{name}' are missing", self.number)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: impl FnOnce(&mut Value)) -> Result<Record> {
        let mut body = json!({
            "format": 1, "number": 3, "checkpoint": 3, "generation": 0, "root": {"metadata": 0, "previous": 0},
            "groups": {"commits": 0},
            "arrays": {"x": {"metadata": 0, "rows": 9, "previous": 8, "shards": [[0, [[100, 7]]]],
                "tail": {"length": 40, "chunks": [[0, 20, 1], [20, 20, 2]],
                    "compacted": {"length": 60, "seal": 5, "chunks": [[0, 20, 1]]}}}},
            "state": {"n": 9},
        });
        change(&mut body);
        let body = body.to_string();
        let text = format!("{{\"crc32c\":\"{:08x}\",\"record\":{body}}}", crc32c::crc32c(body.as_bytes()));
        Record::read(text.as_bytes(), 3)
    }

    #[test]
    fn numbers_that_do_not_add_up_are_refused() {
        let record = read(|_| ()).unwrap();
        assert_eq!(end(&record.arrays["x"].tail.as_ref().unwrap().chunks), 40);
        assert_eq!(Record::read(record.write().as_bytes(), 3).unwrap(), record);
        for place in [
            "/generation",
            "/arrays/x/rows",
            "/arrays/x/previous",
            "/arrays/x/shards/0/0",
            "/arrays/x/shards/0/1/0/0",
            "/arrays/x/tail/length",
            "/arrays/x/tail/chunks/1/0",
            "/arrays/x/tail/chunks/1/1",
            "/arrays/x/tail/compacted/length",
            "/arrays/x/tail/compacted/chunks/0/0",
        ] {
            for number in [u64::MAX, u64::MAX - 19, 1 << 63, MOST] {
                let error = read(|body| *body.pointer_mut(place).unwrap() = json!(number)).unwrap_err();
                assert_eq!(error.kind, Kind::Metadata, "{place} {number}");
            }
            read(|body| *body.pointer_mut(place).unwrap() = json!(MOST - 100)).unwrap();
        }
    }

    #[test]
    fn a_state_or_attributes_of_too_many_values_are_refused() {
        let many = json!({"a": vec![0; (1 << 24) + 1]});
        for key in ["state", "attributes"] {
            let error = read(|body| body[key] = many.clone()).unwrap_err();
            assert!(error.message.contains("values"), "{error}");
        }
    }

    #[test]
    fn attributes_are_an_object_and_a_checkpoint_has_them() {
        for wrong in [json!(null), json!([]), json!("a")] {
            let error = read(|body| body["attributes"] = wrong).unwrap_err();
            assert_eq!(error.kind, Kind::Metadata, "{error}");
        }
        assert_eq!(read(|_| ()).unwrap().check_complete().unwrap_err().kind, Kind::Metadata);
        read(|body| body["attributes"] = json!({})).unwrap().check_complete().unwrap();
    }

    #[test]
    fn the_newest_attributes_count() {
        let with = |number: u64, attributes: Option<Value>| Record {
            number,
            attributes,
            ..read(|body| body["arrays"] = json!({})).unwrap()
        };
        let first = with(3, Some(json!({"a": 1})));
        let merged = first.merge(with(4, None)).unwrap();
        assert_eq!(merged.attributes, Some(json!({"a": 1})));
        let merged = merged.merge(with(5, Some(json!({"a": 2})))).unwrap();
        assert_eq!(merged.merge(with(6, None)).unwrap().attributes, Some(json!({"a": 2})));
    }
}
