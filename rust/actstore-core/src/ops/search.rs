//! Exact top-k over blocks: quick scores find the few rows that could be among the best, exact ones rank
//! them.
//!
//! Rows are taken in tiles that stay in the cache. Quick float32 products of a tile with sixteen queries
//! at a time are compared with what each query's best k have reached so far, less a proven error bound;
//! the rows that pass are scored again in the arithmetic of the ranking contract (float64 in a fixed
//! order), and only that score counts. So the result is the same for any threads, tiles and instruction
//! sets. Rows and queries for which the bound does not hold (not finite, or so large or small that
//! float32 would overflow or lose its precision) are scored exactly throughout.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::blocks::{Blocks, Positions};
use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::kernels::score_scalar::WIDE;
use crate::ops::scorer::{Prepared, Queries};
use crate::ops::tile::Tile;
use crate::ops::topk::{Hit, Threshold, TopK};
use crate::process::{Task, pool};

/// Floats of a tile, all layers together: half the second-level cache of most machines.
pub const TILE: usize = 48 << 10;
/// Rows that loops over panels take at once, in any instruction set.
pub const STEP: usize = 12;
/// Bytes that the threads' best hits may take; more queries are searched one batch after the other.
const HEAP_BYTES: usize = 128 << 20;

/// What is asked besides the queries.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// How many rows for each query.
    pub k: usize,
    /// The least score of a hit.
    pub min_score: Option<f32>,
    /// Leave rows with NaN out rather than refuse them.
    pub skip_nan: bool,
    /// What each row of the array is called in the result; its number without.
    pub names: Option<&'a [i64]>,
}

/// What was found.
#[derive(Default)]
pub struct Found {
    /// The hits of each query, the best first; as many as there are up to k.
    pub hits: Vec<Vec<Hit>>,
    /// How many scores were computed exactly.
    pub rescored: u64,
}

/// The best rows of `source` for each query.
pub fn search(source: &dyn Blocks, queries: &Queries<'_>, ask: &Ask<'_>, task: &Task) -> Result<Found> {
    let pool = pool(task.threads)?;
    let threads = pool.current_num_threads();
    let per_query = (ask.k.min(source.shape()[0]).max(1)) * size_of::<Hit>() * threads;
    let batch = (HEAP_BYTES / per_query / WIDE * WIDE).max(WIDE);
    let mut found = Found::default();
    let mut nan = Nan::default();
    let batches = queries.n().div_ceil(batch);
    let [rows, layers, _] = source.shape();
    task.expect((rows * layers * batches) as u64);
    for i in 0..batches {
        let range = i * batch..queries.n().min((i + 1) * batch);
        let some = pool.install(|| queries.prepare(range));
        let panels = some.n.div_ceil(WIDE);
        // Few groups are shared out by queries as well.
        let shares = (4 * threads).div_ceil(source.groups().max(1)).clamp(1, panels.max(1));
        let thresholds = (0..some.n).map(|_| Threshold::new(ask.min_score.unwrap_or(f32::NEG_INFINITY)));
        let pass = Pass {
            source,
            queries: &some,
            ask,
            task,
            thresholds: thresholds.collect(),
            shares,
            next: AtomicUsize::new(0),
        };
        found.add(pool.install(|| pass.run(threads))?, some.n, ask.k, &mut nan);
    }
    nan.check(ask)?;
    Ok(found)
}

impl Found {
    /// Adds what the threads found for a batch of queries.
    fn add(&mut self, threads: Vec<Hits>, n: usize, k: usize, nan: &mut Nan) {
        let mut best: Vec<Vec<Hit>> = (0..n).map(|_| Vec::new()).collect();
        for hits in threads {
            nan.add(hits.nan);
            self.rescored += hits.rescored;
            for (best, top) in best.iter_mut().zip(hits.top) {
                best.extend(top.into_hits());
            }
        }
        for best in &mut best {
            best.sort_unstable();
            best.truncate(k);
        }
        self.hits.append(&mut best);
    }
}

/// Rows that have no score, each counted as often as it is in the selection.
#[derive(Default)]
pub struct Nan {
    /// Rows that hold a NaN.
    pub rows: usize,
    /// Positions of rows whose infinities make a NaN with some query.
    pub undefined: BTreeSet<usize>,
    /// The first of them all.
    first: Option<i64>,
}

impl Nan {
    /// A row that is one of them.
    pub fn see(&mut self, row: i64) {
        self.first = Some(self.first.map_or(row, |first| first.min(row)));
    }

    /// Those of other rows.
    pub fn add(&mut self, mut other: Nan) {
        self.rows += other.rows;
        self.undefined.append(&mut other.undefined);
        other.first.into_iter().for_each(|row| self.see(row));
    }

    /// An error when there are any, unless they are to be left out.
    pub fn check(&self, ask: &Ask<'_>) -> Result<()> {
        let count = self.rows + self.undefined.len();
        match self.first {
            Some(first) if !ask.skip_nan => Err(Error::invalid(format!(
                "{count} {} NaN or score as NaN, the first is row {first}; on_nan='skip' leaves them out",
                if count == 1 { "row is" } else { "rows are" }
            ))),
            _ => Ok(()),
        }
    }
}

/// One batch of queries over all rows.
struct Pass<'a> {
    source: &'a dyn Blocks,
    queries: &'a Prepared<'a>,
    ask: &'a Ask<'a>,
    task: &'a Task,
    thresholds: Vec<Threshold>,
    /// Tasks that the queries of a group are cut into.
    shares: usize,
    next: AtomicUsize,
}

/// What one thread has found.
#[derive(Default)]
struct Hits {
    top: Vec<TopK>,
    nan: Nan,
    rescored: u64,
}

impl Pass<'_> {
    fn run(&self, threads: usize) -> Result<Vec<Hits>> {
        let units = self.source.groups() * self.shares;
        (0..threads.min(units.max(1)))
            .into_par_iter()
            .with_max_len(1)
            .map(|_| {
                let mut hits = Hits::default();
                hits.top.resize_with(self.queries.n, TopK::default);
                let (mut tile, mut buffers) = (Tile::default(), Vec::new());
                loop {
                    let unit = self.next.fetch_add(1, Ordering::Relaxed);
                    if unit >= units {
                        return Ok(hits);
                    }
                    if let Err(error) = self.unit(unit, &mut hits, &mut tile, &mut buffers) {
                        self.next.store(units, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            })
            .collect()
    }

    /// One group, and its share of the queries.
    fn unit(&self, unit: usize, hits: &mut Hits, tile: &mut Tile, buffers: &mut Vec<Vec<f32>>) -> Result<()> {
        let [_, n_layers, dim] = self.source.shape();
        let (group, share) = (unit / self.shares, unit % self.shares);
        let panels = self.queries.n.div_ceil(WIDE);
        let panels = panels * share / self.shares..panels * (share + 1) / self.shares;
        let layers: Vec<usize> = (0..n_layers).collect();
        let positions = self.source.positions(group);
        let step = (TILE / (n_layers * dim) / STEP * STEP).max(STEP);
        buffers.resize_with(n_layers, Vec::new);
        self.source.with_group(group, &layers, &mut |decoded| {
            for start in (0..positions.len()).step_by(step) {
                self.task.check()?;
                let range = start..positions.len().min(start + step);
                let rows_of = |i: usize| {
                    let position = positions.get(start + i);
                    let row = self.source.row(position);
                    (position, self.ask.names.map_or(row as i64, |names| names[row]))
                };
                let rows = decoded.iter().zip(buffers.iter_mut());
                let rows: Vec<&[f32]> = rows.map(|(layer, buffer)| layer.floats(range.clone(), buffer)).collect();
                let next = range.end..positions.len().min(range.end + step);
                let coming = decoded.iter().map(|layer| layer.in_place(next.clone()).unwrap_or_default());
                let coming: Vec<&[f32]> = coming.collect();
                let own = positions.slice(range);
                self.tile(&rows, &coming, start > 0, &panels, own, &rows_of, hits, tile);
            }
            Ok(())
        })?;
        if share == 0 {
            self.task.advance((positions.len() * n_layers) as u64);
        }
        Ok(())
    }

    /// A tile of rows against panels of queries; `coming` is the next, and `fetched` whether that was said of
    /// this one.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &self,
        rows: &[&[f32]],
        coming: &[&[f32]],
        fetched: bool,
        panels: &Range<usize>,
        positions: Positions<'_>,
        rows_of: &dyn Fn(usize) -> (usize, i64),
        hits: &mut Hits,
        tile: &mut Tile,
    ) {
        let (queries, scores) = (self.queries, &kernels().scores);
        let dim = queries.dim();
        let row = |i: usize| -> Vec<&[f32]> { rows.iter().map(|rows| &rows[i * dim..(i + 1) * dim]).collect() };
        tile.begin(rows[0].len() / dim, queries, rows.len());
        // Rows that nobody has fetched yet are best read by the loop over norms, in one row: the panel
        // loop's six streams would wait for each page.
        let after = queries.are_few() || fetched;
        let first = panels.start..panels.end.min(panels.start + 2);
        if after {
            tile.multiply(rows, queries, first.clone(), coming, scores);
        }
        tile.measure(rows, queries, positions, scores);
        for i in tile.hard() {
            let x = row(i);
            if x.iter().any(|x| x.iter().any(|v| v.is_nan())) {
                // Once, whatever the shares.
                if panels.start == 0 && queries.are_first() {
                    hits.nan.rows += 1;
                    hits.nan.see(rows_of(i).1);
                }
                continue;
            }
            for j in panels.start * WIDE..queries.n.min(panels.end * WIDE) {
                self.take(j, rows_of(i), queries.exact(j, rows_of(i).0, &x, scores), hits);
            }
        }
        if !after {
            tile.multiply(rows, queries, first.clone(), coming, scores);
        }
        for panel in panels.clone() {
            if panel >= first.end && (panel - first.start).is_multiple_of(2) {
                tile.multiply(rows, queries, panel..panels.end.min(panel + 2), &[], scores);
            }
            tile.add_up(queries, panel, scores);
            tile.compare(queries, panel, |j| self.thresholds[j].get(), scores);
            for i in 0..rows[0].len() / dim {
                let mut mask = tile.mask(i);
                if mask == 0 {
                    continue;
                }
                let x = row(i);
                while mask != 0 {
                    let slot = mask.trailing_zeros() as usize;
                    mask &= mask - 1;
                    let j = panel * WIDE + slot;
                    // What is to be beaten may have risen since.
                    if tile.passes(i, queries, panel, slot, self.thresholds[j].get()) {
                        self.take(j, rows_of(i), queries.exact(j, rows_of(i).0, &x, scores), hits);
                    }
                }
            }
        }
    }

    /// Takes in the score of a row, at a position, for a query.
    fn take(&self, j: usize, (position, row): (usize, i64), (score, layer): (f64, u32), hits: &mut Hits) {
        hits.rescored += 1;
        // Not -0, which equals 0: equal scores are ranked by row.
        let score = score as f32 + 0.0;
        if score.is_nan() {
            hits.nan.undefined.insert(position);
            hits.nan.see(row);
        } else if self.ask.min_score.is_none_or(|least| score >= least)
            && let Some(reached) = hits.top[j].push(Hit { score, layer, row }, self.ask.k)
        {
            self.thresholds[j].raise(reached);
        }
    }
}
