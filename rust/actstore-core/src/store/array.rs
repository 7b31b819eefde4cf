//! Reading an array: rows of some layers into one buffer, chunks decoded in parallel, each once.
//!
//! The buffer is cut into the disjoint slices that tasks fill, so no task can touch another's rows:
//! - one layer, a range of rows: a slice for each chunk, filled by one kernel call;
//! - raw chunks, rows in any order: a slice for each run of wanted rows, copied from the map;
//! - anything else: a slice ("cell") for each row and layer, handed to the task of its chunk.

use std::cell::RefCell;
use std::sync::Arc;

use rayon::prelude::*;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::format::blosc::Decoded;
use crate::format::codec::{self, Scratch};
use crate::format::record::ArrayRecord;
use crate::format::zarr::ArrayMeta;
use crate::kernels;
use crate::process::{Task, pool};
use crate::selection::Rows;
use crate::store::chunk::{emit, straighten};
use crate::store::reader::Shared;
use crate::store::shard_file::{Expected, OpenShard};
use crate::store::{Verify, view};

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// What a thread reads and decodes into.
#[derive(Default)]
struct Buffers {
    chunk: Vec<u8>,
    scratch: Scratch,
    elements: Vec<u8>,
}

/// Work below this many bytes is not worth waking other threads for.
const SMALL: usize = 128 << 10;

/// One array of one part, at one commit.
pub(crate) struct PartArray {
    pub(crate) store: Arc<Shared>,
    /// Its number among the arrays of its part: half of a shard's key in the cache.
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) meta: ArrayMeta,
    pub(crate) record: Option<ArrayRecord>,
}

/// An array, the rows of its parts one after the other.
#[derive(Clone)]
pub struct Array {
    parts: Vec<Arc<PartArray>>,
    /// The first row of each part, and the number of all.
    starts: Vec<usize>,
}

/// A chunk's rows, and the rows of the result they go to.
struct Segment {
    part: usize,
    /// The chunk's place along the rows of its part.
    group: usize,
    /// Row within the chunk, row of the result; in order of the latter.
    picks: Picks,
}

enum Picks {
    /// Rows `first..first + n` of the chunk to consecutive rows of the result.
    Run { first: usize, n: usize },
    /// Rows of the chunk, one by one.
    List(Vec<u32>),
}

impl Picks {
    fn len(&self) -> usize {
        match self {
            Picks::Run { n, .. } => *n,
            Picks::List(list) => list.len(),
        }
    }

    fn get(&self, i: usize) -> usize {
        match self {
            Picks::Run { first, .. } => first + i,
            Picks::List(list) => list[i] as usize,
        }
    }
}

impl Array {
    pub(crate) fn new(part: PartArray) -> Self {
        Array { starts: vec![0, part.meta.shape[0]], parts: vec![Arc::new(part)] }
    }

    /// The rows of several arrays as one; they must agree on all but the number of rows.
    pub fn concat(arrays: &[&Array]) -> Result<Self> {
        let first = arrays.first().ok_or_else(|| Error::invalid("no arrays to concatenate"))?;
        let mut whole = Array { parts: Vec::new(), starts: vec![0] };
        for array in arrays {
            let (a, b) = (first.meta(), array.meta());
            if a.dtype != b.dtype || a.shape[1..] != b.shape[1..] || a.ndim != b.ndim {
                return Err(Error::shape(format!(
                    "parts disagree on '{}': {} x {} of {} and {} x {} of {}",
                    first.name(),
                    a.shape[1],
                    a.shape[2],
                    a.dtype.name(),
                    b.shape[1],
                    b.shape[2],
                    b.dtype.name()
                )));
            }
            for part in &array.parts {
                let end = whole.rows().checked_add(part.meta.shape[0]);
                whole.starts.push(end.ok_or_else(|| Error::metadata("more rows than can be counted"))?);
                whole.parts.push(Arc::clone(part));
            }
        }
        Ok(whole)
    }

    /// Its path in the store.
    pub fn name(&self) -> &str {
        &self.parts[0].name
    }

    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Rows and, with three axes, layers and dim.
    pub fn shape(&self) -> Vec<usize> {
        let [_, layers, dim] = self.meta().shape;
        if self.meta().ndim == 1 { vec![self.rows()] } else { vec![self.rows(), layers, dim] }
    }

    /// The metadata of the first part.
    pub fn meta(&self) -> &ArrayMeta {
        &self.parts[0].meta
    }

    /// Reads `rows` of `layers` (positions; None for all) as `[rows, layers, dim]` of `dtype` into `out`.
    pub fn read(
        &self,
        rows: Rows<'_>,
        layers: Option<&[usize]>,
        out: &mut [u8],
        dtype: Dtype,
        task: &Task,
    ) -> Result<()> {
        let meta = self.meta();
        let all: Vec<usize>;
        let layers = match layers {
            Some(layers) => layers,
            None => {
                all = (0..meta.shape[1]).collect();
                &all
            }
        };
        rows.check(self.rows())?;
        if let Some(layer) = layers.iter().find(|l| **l >= meta.shape[1]) {
            return Err(Error::invalid(format!("layer position {layer} of {}", meta.shape[1])));
        }
        if dtype != meta.dtype && !(dtype.is_float() && meta.dtype.is_float()) {
            return Err(Error::invalid(format!(
                "'{}' is {}, which is not read as {}",
                self.name(),
                meta.dtype.name(),
                dtype.name()
            )));
        }
        let cell = meta.shape[2] * dtype.size();
        if out.len() != rows.len() * layers.len() * cell {
            return Err(Error::shape(format!(
                "the output has {} bytes, {} rows of {} layers of {} have {}",
                out.len(),
                rows.len(),
                layers.len(),
                meta.shape[2],
                rows.len() * layers.len() * cell
            )));
        }
        if out.is_empty() {
            return Ok(());
        }
        let read = Read { array: self, layers, dtype, cell, task };
        // Few bytes in few chunks: waking threads would cost more.
        let inline = rows.len() <= 1 || (out.len() <= SMALL && self.parts.iter().all(|p| p.maps()));
        if inline { read.run(rows, out) } else { pool(task.threads)?.install(|| read.run(rows, out)) }
    }
}

/// One call of [`Array::read`].
struct Read<'a> {
    array: &'a Array,
    layers: &'a [usize],
    dtype: Dtype,
    /// Bytes of a row of one layer in the result.
    cell: usize,
    task: &'a Task,
}

impl Read<'_> {
    fn run(&self, rows: Rows<'_>, out: &mut [u8]) -> Result<()> {
        if let Rows::List(list) = rows
            && self.array.parts.iter().all(|p| p.maps() && p.store.verify != Verify::Always)
        {
            return self.gather(list, out);
        }
        let row = self.cell * self.layers.len();
        match rows {
            Rows::Range(start, stop) if self.layers.len() == 1 => {
                let mut rest = out;
                let mut tasks = Vec::new();
                for segment in self.segments_of_range(start, stop) {
                    let (mine, after) = rest.split_at_mut(segment.picks.len() * row);
                    rest = after;
                    tasks.push((segment, mine));
                }
                tasks
                    .into_par_iter()
                    .try_for_each(|(segment, out)| self.fill(&segment, self.layers[0], Target::Whole(out)))
            }
            Rows::Range(start, stop) => {
                let mut cells = out.chunks_exact_mut(self.cell);
                let mut tasks = Vec::new();
                for segment in self.segments_of_range(start, stop) {
                    let n = segment.picks.len();
                    let mut by_layer: Vec<Vec<&mut [u8]>> = self.layers.iter().map(|_| Vec::with_capacity(n)).collect();
                    for _ in 0..n {
                        for (list, cell) in by_layer.iter_mut().zip(&mut cells) {
                            list.push(cell);
                        }
                    }
                    let segment = Arc::new(segment);
                    tasks.extend(
                        self.layers.iter().zip(by_layer).map(|(layer, cells)| (Arc::clone(&segment), *layer, cells)),
                    );
                }
                tasks
                    .into_par_iter()
                    .try_for_each(|(segment, layer, cells)| self.fill(&segment, layer, Target::Cells(cells)))
            }
            Rows::List(list) => {
                let (segments, orders) = self.segments_of_list(list);
                let mut cells: Vec<Option<&mut [u8]>> = out.chunks_exact_mut(self.cell).map(Some).collect();
                let mut tasks = Vec::new();
                for (segment, order) in segments.into_iter().zip(orders) {
                    let segment = Arc::new(segment);
                    for (i, layer) in self.layers.iter().enumerate() {
                        let mine = order.iter().filter_map(|row| cells[row * self.layers.len() + i].take()).collect();
                        tasks.push((Arc::clone(&segment), *layer, mine));
                    }
                }
                tasks
                    .into_par_iter()
                    .try_for_each(|(segment, layer, cells)| self.fill(&segment, layer, Target::Cells(cells)))
            }
        }
    }

    /// A segment for each chunk that a range of rows touches, in order.
    fn segments_of_range(&self, start: usize, stop: usize) -> Vec<Segment> {
        let mut segments = Vec::new();
        for (part, bounds) in self.array.starts.windows(2).enumerate() {
            let (mut row, end) = (start.max(bounds[0]), stop.min(bounds[1]));
            let chunk = self.array.parts[part].meta.chunk[0];
            while row < end {
                let (group, first) = ((row - bounds[0]) / chunk, (row - bounds[0]) % chunk);
                let n = (chunk - first).min(end - row);
                segments.push(Segment { part, group, picks: Picks::Run { first, n } });
                row += n;
            }
        }
        segments
    }

    /// A segment for each chunk that rows of a list touch, and the places in the list they have.
    fn segments_of_list(&self, list: &[i64]) -> (Vec<Segment>, Vec<Vec<usize>>) {
        let starts = &self.array.starts;
        // The number of the first chunk of each part, to count chunks through.
        let mut bases = vec![0usize];
        for (part, bounds) in self.array.parts.iter().zip(starts.windows(2)) {
            bases.push(bases[bases.len() - 1] + (bounds[1] - bounds[0]).div_ceil(part.meta.chunk[0]));
        }
        let mut places: Vec<(usize, u32, usize)> = Vec::with_capacity(list.len());
        for (i, row) in list.iter().enumerate() {
            let row = *row as usize;
            let part = starts.partition_point(|s| *s <= row) - 1;
            let chunk = self.array.parts[part].meta.chunk[0];
            let within = row - starts[part];
            places.push((bases[part] + within / chunk, (within % chunk) as u32, i));
        }
        places.sort_unstable();
        let (mut segments, mut orders) = (Vec::new(), Vec::new());
        for run in places.chunk_by(|a, b| a.0 == b.0) {
            let part = bases.partition_point(|b| *b <= run[0].0) - 1;
            let picks = Picks::List(run.iter().map(|p| p.1).collect());
            segments.push(Segment { part, group: run[0].0 - bases[part], picks });
            orders.push(run.iter().map(|p| p.2).collect());
        }
        (segments, orders)
    }

    /// Rows one by one out of mapped shards.
    fn gather(&self, list: &[i64], out: &mut [u8]) -> Result<()> {
        let row_bytes = self.cell * self.layers.len();
        let run = (list.len() / (4 * rayon::current_num_threads())).clamp(64, 1 << 16);
        list.par_chunks(run).zip(out.par_chunks_mut(run * row_bytes)).try_for_each(|(list, out)| {
            let mut held: Option<(usize, usize, Option<Arc<OpenShard>>)> = None;
            for (i, (row, out)) in list.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
                if i % 1024 == 0 {
                    self.task.check()?;
                }
                let row = *row as usize;
                let number = self.array.starts.partition_point(|s| *s <= row) - 1;
                let part = &self.array.parts[number];
                let meta = &part.meta;
                let within = row - self.array.starts[number];
                let (shard, in_shard) = (within / meta.shard[0], within % meta.shard[0]);
                if held.as_ref().is_none_or(|h| (h.0, h.1) != (number, shard)) {
                    held = Some((number, shard, part.shard([shard, 0, 0])?));
                }
                let (group, first) = (in_shard / meta.chunk[0], in_shard % meta.chunk[0]);
                let stored = meta.shape[2] * meta.dtype.size();
                for (layer, cell) in self.layers.iter().zip(out.chunks_exact_mut(self.cell)) {
                    let chunk = group * meta.shape[1] + layer;
                    match held.as_ref().and_then(|h| h.2.as_ref()) {
                        Some(open)
                            if open.spans.get(chunk).is_some_and(|s| *s != crate::format::shard::Span::ABSENT) =>
                        {
                            let bytes = part.checked(open, chunk, shard)?;
                            kernels::convert(
                                &bytes[first * stored..(first + 1) * stored],
                                meta.dtype,
                                cell,
                                self.dtype,
                            );
                        }
                        _ => part.fill(cell, self.dtype),
                    }
                }
            }
            Ok(())
        })
    }

    /// Fills what one chunk (or, of foreign arrays, one row of chunks) has of a layer.
    fn fill(&self, segment: &Segment, layer: usize, mut target: Target<'_>) -> Result<()> {
        self.task.check()?;
        let part = &self.array.parts[segment.part];
        let meta = &part.meta;
        let [chunk_rows, chunk_layers, chunk_dim] = meta.chunk;
        let per_shard = meta.shard[0] / chunk_rows;
        let inner = meta.inner_grid();
        BUFFERS.with_borrow_mut(|buffers| {
            // Ours have one chunk here; others may cut the dim as well.
            for column in 0..meta.shape[2].div_ceil(chunk_dim) {
                let at = [segment.group, layer / chunk_layers, column];
                let shard = [at[0] / per_shard, at[1] / inner[1], at[2] / inner[2]];
                let chunk = ((at[0] % per_shard) * inner[1] + at[1] % inner[1]) * inner[2] + at[2] % inner[2];
                let dims = column * chunk_dim..((column + 1) * chunk_dim).min(meta.shape[2]);
                let place = || {
                    format!(
                        "'{}' of {}, shard {}, chunk {:?}",
                        part.name,
                        part.store.path.display(),
                        shard[0],
                        [at[0] % per_shard, layer, column]
                    )
                };
                let Some(open) = part.shard(shard)? else {
                    target.each(segment, |_, cell| {
                        part.fill(&mut cell[dims.start * self.dtype.size()..dims.end * self.dtype.size()], self.dtype);
                    });
                    continue;
                };
                let Buffers { chunk: buffer, scratch, elements } = buffers;
                let raw = part.maps();
                let bytes = if raw && open.mapped(chunk).is_some() {
                    Some(part.checked(&open, chunk, shard[0])?)
                } else {
                    open.chunk(chunk, buffer).map_err(|error| part.explain(error).at(place()))?
                };
                let Some(bytes) = bytes else {
                    target.each(segment, |_, cell| {
                        part.fill(&mut cell[dims.start * self.dtype.size()..dims.end * self.dtype.size()], self.dtype);
                    });
                    continue;
                };
                let size = meta.dtype.size();
                let decoded = if raw {
                    Decoded::Elements(bytes)
                } else {
                    let decoded = meta.chain.decode(bytes, meta.chunk_bytes(), size, scratch);
                    decoded.map_err(|error| part.explain(error).at(place()))?
                };
                let decoded = straighten(decoded, meta, elements);
                let offset = (layer % chunk_layers) * chunk_dim;
                let stride = chunk_layers * chunk_dim;
                let n = dims.len();
                match &mut target {
                    Target::Whole(out) if stride == n && n == meta.shape[2] => {
                        let Picks::Run { first, n: rows } = segment.picks else {
                            unreachable!("whole slices are of runs")
                        };
                        emit(&decoded, first * stride, rows * stride, meta.dtype, out, self.dtype);
                    }
                    target => target.each(segment, |row, cell| {
                        let cell = &mut cell[dims.start * self.dtype.size()..dims.end * self.dtype.size()];
                        emit(&decoded, row * stride + offset, n, meta.dtype, cell, self.dtype);
                    }),
                }
            }
            Ok(())
        })
    }
}

/// Where a chunk's rows go.
enum Target<'a> {
    /// To one slice, row after row.
    Whole(&'a mut [u8]),
    /// Each to its own.
    Cells(Vec<&'a mut [u8]>),
}

impl Target<'_> {
    /// Calls `put` with each row of the chunk and its place in the result.
    fn each(&mut self, segment: &Segment, mut put: impl FnMut(usize, &mut [u8])) {
        match self {
            Target::Whole(out) => {
                let cell = out.len() / segment.picks.len().max(1);
                for (i, cell) in out.chunks_exact_mut(cell.max(1)).enumerate() {
                    put(segment.picks.get(i), cell);
                }
            }
            Target::Cells(cells) => {
                for (i, cell) in cells.iter_mut().enumerate() {
                    put(segment.picks.get(i), cell);
                }
            }
        }
    }
}

impl PartArray {
    /// Whether its shards are mapped and read in place.
    pub(crate) fn maps(&self) -> bool {
        self.meta.chain.is_raw() && self.meta.is_ours()
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
    fn checked<'a>(&self, open: &'a OpenShard, chunk: usize, shard: usize) -> Result<&'a [u8]> {
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

    /// Puts the fill value.
    fn fill(&self, out: &mut [u8], dtype: Dtype) {
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
