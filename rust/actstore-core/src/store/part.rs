//! One array of one part of a store: its shards and chunks.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::format::blosc::Decoded;
use crate::format::codec::{self, Scratch};
use crate::format::record::ArrayRecord;
use crate::format::zarr::ArrayMeta;
use crate::kernels;
use crate::store::chunk::straighten;
use crate::store::reader::Shared;
use crate::store::shard_file::{Expected, OpenShard};
use crate::store::{Verify, view};

/// What a chunk is read and decoded into.
#[derive(Default)]
pub(crate) struct Buffers {
    chunk: Vec<u8>,
    scratch: Scratch,
    elements: Vec<u8>,
}

impl Buffers {
    /// Bytes of memory they have.
    pub(crate) fn capacity(&self) -> usize {
        self.chunk.capacity() + self.scratch.capacity() + self.elements.capacity()
    }
}

/// A chunk's place: of its shard in the grid, and within the shard.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) shard: [usize; 3],
    pub(crate) chunk: usize,
    /// Rows of chunks within the shard, layer, column: for messages.
    at: [usize; 3],
}

/// One array of one part, at one commit.
pub(crate) struct PartArray {
    pub(crate) store: Arc<Shared>,
    /// Its number among the arrays of its part: half of a shard's key in the cache.
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) meta: ArrayMeta,
    pub(crate) record: Option<ArrayRecord>,
}

impl PartArray {
    /// Whether its shards are mapped and read in place: those that a record pins. Whoever writes a foreign array
    /// may cut its files short, and a mapped page that is no longer there ends the process.
    pub(crate) fn maps(&self) -> bool {
        self.record.is_some() && self.meta.chain.is_raw() && self.meta.is_ours()
    }

    /// What the record says of a shard.
    pub(crate) fn expected(&self, shard: usize) -> Result<Expected<'_>> {
        let Some(record) = &self.record else { return Ok(Expected::Any) };
        if let Some((_, sums)) = record.shards.get(shard) {
            return Ok(Expected::Full(sums));
        }
        let tail = record.tail.as_ref().filter(|_| shard == record.shards.len());
        tail.map(Expected::Tail)
            .ok_or_else(|| Error::metadata(format!("no shard {shard} of '{}' was committed", self.name)))
    }

    /// The open shard at a place of the grid; None where Zarr's fill value stands for it.
    pub(crate) fn shard(&self, index: [usize; 3]) -> Result<Option<Arc<OpenShard>>> {
        let grid = self.meta.grid();
        let number = (index[0] * grid[1] + index[1]) * grid[2] + index[2];
        let place = || format!("'{}' of {}, shard {}", self.name, self.store.path.display(), index[0]);
        let found = self.store.shards()?.get((self.number, number), || {
            let path = self.store.path.join(&self.name).join(self.meta.key(index));
            OpenShard::open(&path, &self.meta, &self.expected(index[0])?, self.maps())
        });
        match found {
            Ok(None) if self.record.is_some() => {
                Err(Error::new(Kind::MissingShard, format!("{}: the file is missing; nothing stands for it", place())))
            }
            Ok(found) => Ok(found),
            Err(error) => Err(self.explain(error).at(place())),
        }
    }

    /// A mapped chunk without its checksum, which is computed the first time, or every time.
    pub(crate) fn checked<'a>(&self, open: &'a OpenShard, chunk: usize, shard: usize) -> Result<&'a [u8]> {
        let verify = match self.store.verify {
            Verify::First => !open.is_checked(chunk),
            Verify::Always => true,
            Verify::Never => false,
        };
        let damaged = |error: Error| {
            let place = [chunk / self.meta.shape[1], chunk % self.meta.shape[1], 0];
            self.explain(error).at(format!(
                "'{}' of {}, shard {shard}, chunk {place:?}",
                self.name,
                self.store.path.display()
            ))
        };
        let bytes = open.mapped(chunk).ok_or_else(|| damaged(Error::truncated("the chunk is not in the file")))?;
        let data = if verify {
            if open.chunk(chunk, &mut Vec::new()).map_err(damaged)?.is_none() {
                return Err(damaged(Error::truncated("the chunk is absent")));
            }
            if self.meta.chain.codecs.is_empty() { bytes } else { codec::check(bytes).map_err(damaged)? }
        } else {
            &bytes[..bytes.len().saturating_sub(4 * self.meta.chain.codecs.len())]
        };
        if data.len() != self.meta.chunk_bytes() {
            return Err(damaged(Error::checksum(format!(
                "{} bytes where {} belong",
                data.len(),
                self.meta.chunk_bytes()
            ))));
        }
        if verify {
            open.set_checked(chunk);
        }
        Ok(data)
    }

    /// Where the chunk of a layer and a column of dims lies; `group` counts chunks along the rows.
    pub(crate) fn place(&self, group: usize, layer: usize, column: usize) -> Place {
        let meta = &self.meta;
        let per_shard = meta.shard[0] / meta.chunk[0];
        let inner = meta.inner_grid();
        let at = [group, layer / meta.chunk[1], column];
        Place {
            shard: [at[0] / per_shard, at[1] / inner[1], at[2] / inner[2]],
            chunk: ((at[0] % per_shard) * inner[1] + at[1] % inner[1]) * inner[2] + at[2] % inner[2],
            at: [at[0] % per_shard, layer, column],
        }
    }

    /// Reads, checks and decodes a chunk of an open shard; None where Zarr's fill value stands for it.
    pub(crate) fn decode<'a>(
        &self,
        open: &'a OpenShard,
        place: Place,
        buffers: &'a mut Buffers,
    ) -> Result<Option<Decoded<'a>>> {
        let Buffers { chunk: buffer, scratch, elements } = buffers;
        let meta = &self.meta;
        let explain = |error: Error| {
            self.explain(error).at(format!(
                "'{}' of {}, shard {}, chunk {:?}",
                self.name,
                self.store.path.display(),
                place.shard[0],
                place.at
            ))
        };
        let raw = self.maps();
        let bytes = if raw && open.mapped(place.chunk).is_some() {
            Some(self.checked(open, place.chunk, place.shard[0])?)
        } else {
            open.chunk(place.chunk, buffer).map_err(explain)?
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let decoded = if raw {
            Decoded::Elements(bytes)
        } else {
            meta.chain.decode(bytes, meta.chunk_bytes(), meta.dtype.size(), scratch).map_err(explain)?
        };
        straighten(decoded, meta, elements).map(Some)
    }

    /// Puts the fill value.
    pub(crate) fn fill(&self, out: &mut [u8], dtype: Dtype) {
        let mut value = vec![0; dtype.size()];
        kernels::convert(&self.meta.fill, self.meta.dtype, &mut value, dtype);
        for slot in out.chunks_exact_mut(value.len()) {
            slot.copy_from_slice(&value);
        }
    }

    /// Damage, or a compaction since this view was opened?
    pub(crate) fn explain(&self, error: Error) -> Error {
        if matches!(error.kind, Kind::Io | Kind::Interrupted) || self.record.is_none() {
            return error;
        }
        match view::newest_record(&self.store.path) {
            Ok(Some(record)) if record.generation > self.store.generation => {
                Error::new(Kind::Compacted, "the store was compacted since it was opened: call refresh()")
            }
            _ => error,
        }
    }
}
