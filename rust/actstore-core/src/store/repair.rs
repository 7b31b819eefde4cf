//! Restores a file that a store lost and that its records describe.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::zarr;
use crate::store::lock::Lock;
use crate::store::place::Place;
use crate::store::view::{self, View};
use crate::store::{Reader, Verify, files};

/// Writes the root's `zarr.json` where it is missing, from the newest record and the metadata of the other nodes.
/// Returns the files that were written: none where the store has its root.
pub fn repair(path: &Path) -> Result<Vec<String>> {
    if Place::of(path)? != Place::Rootless {
        return View::open(path).map(|_| Vec::new());
    }
    let _lock = Lock::take_existing(path)?;
    let record = view::newest_record(path)?.ok_or_else(|| Error::metadata("no commit record"))?;
    let attributes = record.attributes.as_ref().ok_or_else(|| Error::metadata("the records have no attributes"))?;
    let mut members = BTreeMap::new();
    for name in record.groups.keys().chain(record.arrays.keys()) {
        members.insert(name.clone(), view::node(path, name)?);
    }
    let root = zarr::root(attributes, members);
    let found = zarr::checksum(&root);
    if found != record.root.metadata && found != record.root.previous {
        return Err(Error::checksum(format!(
            "the metadata in {} are not those that were committed: its root cannot be restored",
            path.display()
        )));
    }
    files::replace(path, &path.join("zarr.json"), root.to_string().as_bytes())?;
    files::sync_folder(path)?;
    Reader::open(path, Verify::First)?;
    Ok(vec!["zarr.json".to_string()])
}
