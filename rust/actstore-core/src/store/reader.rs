//! A store opened for reading, at one commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::format::shard::{self, Span};
use crate::format::zarr::ArrayMeta;
use crate::process::PerProcess;
use crate::store::Verify;
use crate::store::array::Array;
use crate::store::array_writer::ALIGN;
use crate::store::part::PartArray;
use crate::store::shard_file::ShardCache;
use crate::store::view::View;

/// What the arrays of a reader have in common.
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) verify: Verify,
    pub(crate) generation: u64,
    cache: PerProcess<ShardCache>,
    closed: AtomicBool,
}

impl Shared {
    /// The open shards, those of this process alone.
    pub(crate) fn shards(&self) -> Result<&ShardCache> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Closed, format!("the store {} is closed", self.path.display())));
        }
        Ok(self.cache.get(ShardCache::default))
    }
}

/// A store at one commit; what is committed later is seen by a new reader alone.
pub struct Reader {
    shared: Arc<Shared>,
    view: View,
}

/// What an array takes on disk.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Usage {
    /// Its rows.
    pub rows: u64,
    /// Bytes of its elements.
    pub logical_bytes: u64,
    /// Bytes of its files.
    pub stored_bytes: u64,
    /// Bytes of its files that no chunk lies in: `compact` frees them.
    pub hole_bytes: u64,
    /// Its files.
    pub shards: u64,
}

impl Reader {
    /// Opens the newest commit of the store at `path`, or a Zarr group without commits as it stands.
    pub fn open(path: &Path, verify: Verify) -> Result<Self> {
        let view = View::open(path)?;
        let generation = view.record.as_ref().map_or(0, |record| record.generation);
        let shared = Shared {
            path: path.to_path_buf(),
            verify,
            generation,
            cache: PerProcess::new(),
            closed: AtomicBool::new(false),
        };
        Ok(Reader { shared: Arc::new(shared), view })
    }

    /// The newest commit, as a reader of its own.
    pub fn refresh(&self) -> Result<Self> {
        Reader::open(&self.shared.path, self.shared.verify)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The number of its record; None for a foreign group.
    pub fn record(&self) -> Option<u64> {
        self.view.record.as_ref().map(|record| record.number)
    }

    /// The root's attributes at this commit; the root's `zarr.json` may lag behind them by one record.
    pub fn attributes(&self) -> &Value {
        &self.view.attributes
    }

    /// What the layer above gave with the commit.
    pub fn state(&self) -> Value {
        self.view.record.as_ref().map_or(Value::Null, |record| record.state.clone())
    }

    /// The attributes of all groups but the root, by path.
    pub fn groups(&self) -> &BTreeMap<String, Value> {
        &self.view.groups
    }

    /// The arrays that this version cannot read, and why.
    pub fn refused(&self) -> &BTreeMap<String, Error> {
        &self.view.refused
    }

    /// The paths of the arrays it can read, sorted.
    pub fn arrays(&self) -> Vec<String> {
        self.view.arrays.keys().cloned().collect()
    }

    /// An array.
    pub fn array(&self, name: &str) -> Result<Array> {
        self.part(name).map(Array::new)
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn part(&self, name: &str) -> Result<PartArray> {
        if let Some(error) = self.view.refused.get(name) {
            return Err(error.clone());
        }
        let Some((number, (name, meta))) = self.view.arrays.iter().enumerate().find(|(_, (n, _))| *n == name) else {
            let there: Vec<&str> = self.view.arrays.keys().map(String::as_str).collect();
            return Err(Error::not_found(format!(
                "no array '{name}' in {}: there are {}",
                self.shared.path.display(),
                there.join(", ")
            )));
        };
        let record = self.view.record.as_ref().and_then(|record| record.arrays.get(name)).cloned();
        Ok(PartArray { store: Arc::clone(&self.shared), number, name: name.clone(), meta: meta.clone(), record })
    }

    /// What each array takes on disk.
    pub fn usage(&self) -> Result<BTreeMap<String, Usage>> {
        self.view.arrays.keys().map(|name| Ok((name.clone(), self.usage_of(&self.part(name)?)?))).collect()
    }

    fn usage_of(&self, part: &PartArray) -> Result<Usage> {
        let meta = &part.meta;
        let mut usage = Usage {
            rows: meta.shape[0] as u64,
            logical_bytes: (meta.shape[0] * meta.row_bytes()) as u64,
            ..Usage::default()
        };
        for index in grid(meta)? {
            let Some(open) = part.shard(index)? else { continue };
            // Raw chunks are padded to their alignment; that is no hole.
            let align = if part.maps() { ALIGN } else { 1 };
            let chunks = open.spans.iter().filter(|s| **s != Span::ABSENT);
            let used: u64 = chunks.map(|s| s.length.next_multiple_of(align)).sum();
            let end = match meta.sharding {
                _ if part.record.is_some() => shard::seal_bytes(meta.chunks_per_shard()) as u64,
                Some(sharding) => shard::index_bytes(meta.chunks_per_shard(), sharding.index_crc) as u64,
                None => 0,
            };
            usage.stored_bytes += open.length;
            usage.hole_bytes += open.length.saturating_sub(used + end);
            usage.shards += 1;
        }
        Ok(usage)
    }

    /// Closes its files; reads of its arrays then fail.
    pub fn close(&self) {
        if let Ok(shards) = self.shared.shards() {
            shards.clear();
        }
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

/// The places of all shards. What a record lists is there; foreign metadata may claim any number.
pub(crate) fn grid(meta: &ArrayMeta) -> Result<impl Iterator<Item = [usize; 3]> + use<>> {
    const MOST: usize = 1 << 24;
    let extents = meta.grid();
    if extents.iter().try_fold(1usize, |n, e| n.checked_mul(*e)).is_none_or(|n| n > MOST) {
        return Err(Error::metadata(format!("{extents:?} shards or chunks: more than {MOST} are not looked through")));
    }
    Ok((0..extents[0]).flat_map(move |i| (0..extents[1]).flat_map(move |j| (0..extents[2]).map(move |k| [i, j, k]))))
}
