//! Reading an array: rows of some layers into one buffer, chunks decoded in parallel, each once.
//!
//! The buffer is cut into the disjoint slices that tasks fill, so no task can touch another's rows:
//! - one layer, a range of rows: a slice for each chunk, filled by one kernel call;
//! - raw chunks, rows in any order: a slice for each run of wanted rows, copied from the map;
//! - anything else: a slice ("cell") for each row and layer, handed to the task of its chunk.

use std::cell::RefCell;
use std::sync::Arc;

use rayon::prelude::*;

use crate::blocks::choose_layers;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::format::shard::Span;
use crate::format::zarr::ArrayMeta;
use crate::kernels::{self, kernels};
use crate::process::{Task, pool};
use crate::selection::Rows;
use crate::store::Verify;
use crate::store::chunk::emit;
use crate::store::part::{Buffers, PartArray};
use crate::store::segments::{Picks, Segment};
use crate::store::shard_file::OpenShard;

thread_local! {
    /// What a thread reads and decodes into; several when a read runs within another.
    static BUFFERS: RefCell<Vec<Buffers>> = RefCell::default();
}

/// Copies of fewer bytes are not worth waking other threads for: a quarter of a millisecond of one thread, when
/// the rows lie in no cache.
const SMALL: usize = 512 << 10;

/// An array, the rows of its parts one after the other.
#[derive(Clone)]
pub struct Array {
    pub(crate) parts: Vec<Arc<PartArray>>,
    /// The first row of each part, and the number of all.
    pub(crate) starts: Vec<usize>,
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
        rows.check(self.rows())?;
        let layers = &choose_layers(layers, meta.shape[1])?[..];
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
        // Few bytes in few chunks: waking threads would cost more.
        let inline = rows.len() <= 1 || (out.len() <= SMALL && self.parts.iter().all(|p| p.maps()));
        let read = Read { array: self, layers, dtype, cell, task, inline };
        if inline { read.run(rows, out) } else { pool(task.threads)?.install(|| read.run(rows, out)) }
    }
}

/// A shard by its part and number; None where the fill value stands for it.
type AtHand = (usize, usize, Option<Arc<OpenShard>>);

/// One call of [`Array::read`].
struct Read<'a> {
    array: &'a Array,
    layers: &'a [usize],
    dtype: Dtype,
    /// Bytes of a row of one layer in the result.
    cell: usize,
    task: &'a Task,
    /// On this thread alone. It is of no pool of ours, and rayon's own does not outlive a fork.
    inline: bool,
}

impl Read<'_> {
    /// Does all tasks.
    fn each<T: Send>(&self, tasks: Vec<T>, work: impl Fn(T) -> Result<()> + Send + Sync) -> Result<()> {
        if self.inline { tasks.into_iter().try_for_each(work) } else { tasks.into_par_iter().try_for_each(work) }
    }

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
                for segment in self.array.segments_of_range(start, stop)? {
                    let (mine, after) = rest.split_at_mut(segment.picks.len() * row);
                    rest = after;
                    tasks.push((segment, mine));
                }
                self.each(tasks, |(segment, out)| self.fill(&segment, self.layers[0], Target::Whole(out)))
            }
            Rows::Range(start, stop) => {
                let mut cells = out.chunks_exact_mut(self.cell);
                let mut tasks = Vec::new();
                for segment in self.array.segments_of_range(start, stop)? {
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
                self.each(tasks, |(segment, layer, cells)| self.fill(&segment, layer, Target::Cells(cells)))
            }
            Rows::List(list) => {
                let (segments, orders) = self.array.segments_of_list(list);
                let mut cells: Vec<Option<&mut [u8]>> = out.chunks_exact_mut(self.cell).map(Some).collect();
                let mut tasks = Vec::new();
                for (segment, places) in segments.into_iter().zip(orders) {
                    let order = places.of(segment.picks.len());
                    let segment = Arc::new(segment);
                    for (i, layer) in self.layers.iter().enumerate() {
                        let rows = (0..order.len()).map(|at| order.get(at));
                        let mine = rows.filter_map(|row| cells[row * self.layers.len() + i].take()).collect();
                        tasks.push((Arc::clone(&segment), *layer, mine));
                    }
                }
                self.each(tasks, |(segment, layer, cells)| self.fill(&segment, layer, Target::Cells(cells)))
            }
        }
    }

    /// Rows one by one out of mapped shards.
    fn gather(&self, list: &[i64], out: &mut [u8]) -> Result<()> {
        if self.inline {
            return self.gather_run(list, out);
        }
        let row_bytes = self.cell * self.layers.len();
        let run = (list.len() / (4 * rayon::current_num_threads())).clamp(64, 1 << 16);
        let tasks = list.chunks(run).zip(out.chunks_mut(run * row_bytes)).collect();
        self.each(tasks, |(list, out)| self.gather_run(list, out))
    }

    fn gather_run(&self, list: &[i64], out: &mut [u8]) -> Result<()> {
        /// Shards that are kept at hand: asking the store's cache for each row would take longer than its copy.
        const AT_HAND: usize = 32;
        let mut at_hand: [Option<AtHand>; AT_HAND] = [const { None }; AT_HAND];
        let row_bytes = self.cell * self.layers.len();
        let (mut number, mut bounds) = (0, 0..0);
        let copy = kernels().copy;
        for (i, (row, out)) in list.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            if i % 1024 == 0 {
                self.task.check()?;
            }
            let row = *row as usize;
            if !bounds.contains(&row) {
                number = self.array.starts.partition_point(|s| *s <= row) - 1;
                bounds = self.array.starts[number]..self.array.starts[number + 1];
            }
            let part = &self.array.parts[number];
            let meta = &part.meta;
            let within = row - bounds.start;
            let (shard, in_shard) = (within / meta.shard[0], within % meta.shard[0]);
            let slot = &mut at_hand[shard % AT_HAND];
            let open = match slot {
                Some((of, at, open)) if (*of, *at) == (number, shard) => open,
                _ => &slot.insert((number, shard, part.shard([shard, 0, 0])?)).2,
            };
            let (group, first) = (in_shard / meta.chunk[0], in_shard % meta.chunk[0]);
            let stored = meta.shape[2] * meta.dtype.size();
            for (layer, cell) in self.layers.iter().zip(out.chunks_exact_mut(self.cell)) {
                let chunk = group * meta.shape[1] + layer;
                match open {
                    Some(open) if open.spans.get(chunk).is_some_and(|span| *span != Span::ABSENT) => {
                        let bytes = part.checked(open, chunk, shard)?;
                        let bytes = &bytes[first * stored..(first + 1) * stored];
                        if meta.dtype == self.dtype {
                            copy(bytes, cell);
                        } else {
                            kernels::convert(bytes, meta.dtype, cell, self.dtype);
                        }
                    }
                    _ => part.fill(cell, self.dtype),
                }
            }
        }
        Ok(())
    }

    /// Fills what one chunk (or, of foreign arrays, one row of chunks) has of a layer.
    fn fill(&self, segment: &Segment, layer: usize, mut target: Target<'_>) -> Result<()> {
        self.task.check()?;
        let part = &self.array.parts[segment.part];
        with_buffers(1, |buffers| fill(part, segment, layer, self.dtype, &mut target, &mut buffers[0]))
    }
}

/// Gives a closure `n` of this thread's buffers. They are taken out meanwhile: what runs may read again.
pub(crate) fn with_buffers<T>(n: usize, work: impl FnOnce(&mut [Buffers]) -> T) -> T {
    /// Bytes of buffers that a thread keeps: making them costs as much as decoding does. Chunks of 1 MiB take
    /// twice that, and a search needs those of all layers of a view at once: this is enough for 48.
    const KEPT: usize = 96 << 20;
    let mut buffers = BUFFERS.with_borrow_mut(|kept| kept.split_off(kept.len().saturating_sub(n)));
    buffers.resize_with(n, Buffers::default);
    let done = work(&mut buffers);
    BUFFERS.with_borrow_mut(|kept| {
        let mut bytes: usize = kept.iter().map(Buffers::capacity).sum();
        kept.extend(buffers.into_iter().take_while(|one| {
            bytes = bytes.saturating_add(one.capacity());
            bytes <= KEPT
        }));
    });
    done
}

/// Fills what one chunk, or one row of chunks, has of a layer.
pub(crate) fn fill(
    part: &PartArray,
    segment: &Segment,
    layer: usize,
    dtype: Dtype,
    target: &mut Target<'_>,
    buffers: &mut Buffers,
) -> Result<()> {
    let meta = &part.meta;
    let [_, chunk_layers, chunk_dim] = meta.chunk;
    // Ours have one chunk here; others may cut the dim as well.
    for column in 0..meta.shape[2].div_ceil(chunk_dim) {
        let place = part.place(segment.group, layer, column);
        let dims = column * chunk_dim..((column + 1) * chunk_dim).min(meta.shape[2]);
        let bytes = dims.start * dtype.size()..dims.end * dtype.size();
        let open = part.shard(place.shard)?;
        let decoded = match &open {
            Some(open) => part.decode(open, place, buffers)?,
            None => None,
        };
        let Some(decoded) = decoded else {
            target.each(segment, |_, cell| part.fill(&mut cell[bytes.clone()], dtype));
            continue;
        };
        let offset = (layer % chunk_layers) * chunk_dim;
        let stride = chunk_layers * chunk_dim;
        let n = dims.len();
        match (&mut *target, &segment.picks) {
            (Target::Whole(out), Picks::Run { first, n: rows }) if stride == n && n == meta.shape[2] => {
                emit(&decoded, first * stride, rows * stride, meta.dtype, out, dtype);
            }
            (target, _) => target.each(segment, |row, cell| {
                emit(&decoded, row * stride + offset, n, meta.dtype, &mut cell[bytes.clone()], dtype);
            }),
        }
    }
    Ok(())
}

/// Where a chunk's rows go.
pub(crate) enum Target<'a> {
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
