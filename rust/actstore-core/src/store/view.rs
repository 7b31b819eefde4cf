//! A store at one commit: the newest record, and the metadata that it pins.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::format::record::{ArrayRecord, Record};
use crate::format::zarr::{self, ArrayMeta};
use crate::store::files::{self, COMMITS, record_name, record_numbers};
use crate::store::place::{Place, rootless};

/// Everything known about a store before any shard is opened.
#[derive(Debug)]
pub struct View {
    /// The record; None for a foreign group.
    pub record: Option<Record>,
    /// The root's attributes: those of the record, or of a foreign group's `zarr.json`.
    pub attributes: Value,
    /// The attributes of all groups but the root, by path.
    pub groups: BTreeMap<String, Value>,
    /// Its arrays, with the shapes of the record.
    pub arrays: BTreeMap<String, ArrayMeta>,
    /// Arrays that this version cannot read, and why.
    pub refused: BTreeMap<String, Error>,
}

/// The newest record, merged with those it builds on; None where there are no records.
pub fn newest_record(store: &Path) -> Result<Option<Record>> {
    let Some(number) = record_numbers(store)?.pop() else {
        return Ok(None);
    };
    let newest = read_record(store, number)?;
    if newest.checkpoint == number {
        newest.check_complete()?;
        return Ok(Some(newest));
    }
    let mut merged = read_record(store, newest.checkpoint)?;
    for between in newest.checkpoint + 1..number {
        merged = merged.merge(read_record(store, between)?)?;
    }
    let merged = merged.merge(newest)?;
    merged.check_complete()?;
    Ok(Some(merged))
}

fn read_record(store: &Path, number: u64) -> Result<Record> {
    let path = store.join(COMMITS).join(record_name(number));
    let text = files::read(&path)?.ok_or_else(|| Error::metadata(format!("commit record {number} is missing")))?;
    Record::read(&text, number)
}

impl View {
    /// The newest commit. Retried when a writer commits meanwhile.
    pub fn open(store: &Path) -> Result<Self> {
        let mut last = None;
        loop {
            let newest = record_numbers(store)?.pop();
            match Self::attempt(store) {
                // Metadata of another commit than the record's: of a newer one, or damaged.
                Err(error) if error.kind != Kind::NotFound && newest.is_some() && last != newest => last = newest,
                done => return done.map_err(|error| if newest.is_some() { error.at(store.display()) } else { error }),
            }
        }
    }

    fn attempt(store: &Path) -> Result<Self> {
        let Some(root) = files::read_json(&store.join("zarr.json"))? else {
            return Err(match Place::of(store)? {
                Place::Interrupted => Error::not_found(format!(
                    "{} is no store yet: its creation was interrupted, create it again",
                    store.display()
                )),
                Place::Rootless => rootless(store),
                _ => Error::not_found(format!("no store at {}", store.display())),
            });
        };
        match newest_record(store)? {
            Some(record) => Self::with_record(store, &root, record),
            None if root.pointer("/attributes/actstore/commits").is_some_and(|c| !c.is_null()) => {
                Err(Error::metadata("the store's commit records are missing").at(store.display()))
            }
            None => Self::foreign(store, &root),
        }
    }

    fn with_record(store: &Path, root: &Value, record: Record) -> Result<Self> {
        let found = zarr::checksum(root);
        let truth = record.attributes.clone().unwrap_or_default();
        if found != record.root.metadata && found != record.root.previous {
            return Err(Error::checksum("the root's zarr.json is not the one that was committed"));
        }
        // A root that lags by one record may have the attributes of that record.
        if found == record.root.metadata && attributes(root) != truth {
            return Err(Error::metadata("the root's zarr.json and the commit record have different attributes"));
        }
        let mut groups = BTreeMap::new();
        for (name, sum) in &record.groups {
            groups.insert(name.clone(), attributes(&committed(store, name, *sum)?));
        }
        let members = root.pointer("/consolidated_metadata/metadata");
        let (mut arrays, mut refused) = (BTreeMap::new(), BTreeMap::new());
        for (name, array) in &record.arrays {
            let node = committed(store, name, array.metadata)?;
            check_shape(name, &node, array)?;
            if let Some(member) = members.and_then(|m| m.get(name)) {
                check_shape(name, member, array)?;
            }
            match recorded_meta(name, &node, array) {
                Ok(meta) => drop(arrays.insert(name.clone(), meta)),
                // A later version may have written it; the rest of the store reads without it.
                Err(error) if error.kind == Kind::Unsupported => {
                    refused.insert(name.clone(), error.at(format!("array '{name}' of {}", store.display())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(View { record: Some(record), attributes: truth, groups, arrays, refused })
    }

    /// A Zarr group without records: its arrays as their metadata describe them.
    fn foreign(store: &Path, root: &Value) -> Result<Self> {
        let is_group = root.get("node_type").and_then(Value::as_str) == Some("group");
        if !is_group || root.get("zarr_format").and_then(Value::as_u64) != Some(3) {
            return Err(Error::unsupported(format!("{} is not a Zarr v3 group", store.display())));
        }
        let (groups, arrays, refused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut view = View { record: None, attributes: attributes(root), groups, arrays, refused };
        for name in files::list(store)? {
            view.foreign_node(store, &name, 0)?;
        }
        match view.refused.pop_first() {
            Some((_, error)) if view.arrays.is_empty() => Err(error),
            Some((name, error)) => {
                view.refused.insert(name, error);
                Ok(view)
            }
            None => Ok(view),
        }
    }

    fn foreign_node(&mut self, store: &Path, name: &str, depth: usize) -> Result<()> {
        const DEEPEST: usize = 3;
        let folder = store.join(name);
        // A link may lead to a folder above it, in an endless circle.
        let is_link = depth > 0 && folder.symlink_metadata().is_ok_and(|found| found.is_symlink());
        if !zarr::valid_path(name) || depth > DEEPEST || is_link {
            return Ok(());
        }
        let Some(node) = files::read_json(&folder.join("zarr.json"))? else {
            return Ok(());
        };
        if node.get("node_type").and_then(Value::as_str) == Some("group") {
            self.groups.insert(name.to_string(), attributes(&node));
            for child in files::list(&folder)? {
                self.foreign_node(store, &format!("{name}/{child}"), depth + 1)?;
            }
            return Ok(());
        }
        match ArrayMeta::parse(&node) {
            Ok(meta) => {
                self.arrays.insert(name.to_string(), meta);
            }
            // An array that is merely of another kind is left alone; metadata that contradict themselves are damage.
            Err(error) if error.kind == Kind::Unsupported => {
                self.refused.insert(name.to_string(), error.at(format!("array '{name}' of {}", store.display())));
            }
            Err(error) => return Err(error.at(format!("array '{name}' of {}", store.display()))),
        }
        Ok(())
    }
}

/// The attributes of a node; an empty object where there are none.
fn attributes(node: &Value) -> Value {
    node.get("attributes").filter(|found| found.is_object()).cloned().unwrap_or_else(|| json!({}))
}

/// The `zarr.json` of a node that a record names.
pub fn node(store: &Path, name: &str) -> Result<Value> {
    if !zarr::valid_path(name) {
        return Err(Error::metadata(format!("the record names '{name}', which is no path below the store")));
    }
    files::read_json(&store.join(name).join("zarr.json"))?
        .ok_or_else(|| Error::metadata(format!("zarr.json of '{name}' is missing")))
}

/// A node whose metadata have the checksum that the record pins.
fn committed(store: &Path, name: &str, sum: u32) -> Result<Value> {
    let node = node(store, name)?;
    if zarr::checksum(&node) == sum {
        Ok(node)
    } else {
        Err(Error::checksum(format!("zarr.json of '{name}' is not the one that was committed")))
    }
}

/// An array's metadata with the rows of the record.
fn recorded_meta(name: &str, node: &Value, array: &ArrayRecord) -> Result<ArrayMeta> {
    let mut meta = ArrayMeta::parse(node).map_err(|error| error.at(name))?;
    meta.shape[0] =
        usize::try_from(array.rows).map_err(|_| Error::metadata(format!("'{name}' has {} rows", array.rows)))?;
    meta.check_sizes().map_err(|error| error.at(name))?;
    check_extent(name, &meta, array)?;
    Ok(meta)
}

/// The shape on disk is the record's or that of the one before.
fn check_shape(name: &str, node: &Value, array: &ArrayRecord) -> Result<()> {
    let found = node.pointer("/shape/0").and_then(Value::as_u64);
    if found != Some(array.rows) && found != Some(array.previous) {
        return Err(Error::metadata(format!(
            "'{name}' has {} rows in zarr.json, {} were committed",
            found.map_or("no".into(), |n| n.to_string()),
            array.rows
        )));
    }
    Ok(())
}

/// The record lists exactly the shards that its rows need.
fn check_extent(name: &str, meta: &ArrayMeta, array: &ArrayRecord) -> Result<()> {
    let (full, rest) = (meta.shape[0] / meta.shard[0], meta.shape[0] % meta.shard[0]);
    let groups = rest.div_ceil(meta.chunk[0]);
    let tail_chunks = groups * (meta.chunks_per_shard() / (meta.shard[0] / meta.chunk[0]));
    let listed = array.tail.as_ref().map_or(0, |tail| tail.chunks.len());
    let other = array.tail.as_ref().and_then(|tail| tail.compacted.as_ref()).map_or(listed, |c| c.chunks.len());
    if array.shards.len() != full
        || listed != tail_chunks
        || other != listed
        || array.tail.is_some() != (rest > 0)
        || !meta.is_ours()
    {
        return Err(Error::metadata(format!(
            "the record lists {} shards and {listed} tail chunks for the {} rows of '{name}'",
            array.shards.len(),
            array.rows
        )));
    }
    Ok(())
}
