//! Exact late interaction (MaxSim): the score of an example is the sum, over the vectors of a query, of the
//! best score that any row of the example has.
//!
//! Two passes. The first takes all rows, in tiles as search does, and learns of each example between what
//! its score lies: quick products, their maxima, and a proven bound on both. The second looks at the few
//! examples that may be among the best: of their rows those that may be a maximum are scored in the
//! arithmetic of the ranking contract, and the maxima are summed in float64. Examples may lie in several
//! groups: what is known of them is merged by maxima, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::blocks::{Blocks, Decoded, Positions};
use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::kernels::score_scalar::{WIDE, pairwise};
use crate::ops::scorer::{Prepared, Queries};
use crate::ops::search::{Ask, Found, Nan, STEP, TILE};
use crate::ops::sequence::Examples;
use crate::ops::tile::{Best, Tile};
use crate::ops::topk::{Hit, Threshold, TopK};
use crate::process::{Task, pool};

/// Query vectors that one pass takes, unless a query has more.
const BATCH: usize = 2048;
/// Candidates that a thread keeps before it looks which of them still are.
const MANY: usize = 1 << 16;
/// Bytes of maxima that a tile may have, and of those that hits of a batch may have.
const TILE_BYTES: usize = 8 << 20;
const HIT_BYTES: usize = 64 << 20;

/// The best examples for each query; those without rows are never among them.
///
/// `vectors` are those of all queries, and query q has `bounds[q]..bounds[q + 1]`. Hits are called by the
/// number of the example, or its name.
pub fn maxsim(
    source: &dyn Blocks,
    examples: &Examples,
    vectors: &Queries<'_>,
    bounds: &[usize],
    ask: &Ask<'_>,
    task: &Task,
) -> Result<Found> {
    if bounds.first() != Some(&0) || bounds.last() != Some(&vectors.n()) || !bounds.is_sorted() {
        return Err(Error::invalid(format!("bounds of queries rise from 0 to the {} vectors", vectors.n())));
    }
    let pool = pool(task.threads)?;
    let batches = batches(bounds, ask.k.min(examples.len()));
    let [rows, layers, _] = source.shape();
    task.expect((rows * layers * batches.len()) as u64);
    let mut found = Found::default();
    for (i, batch) in batches.iter().enumerate() {
        let of_batch = bounds[batch.start]..bounds[batch.end];
        let n_queries = batch.len();
        let prepared = pool.install(|| vectors.prepare(of_batch.clone()));
        let ends: Vec<usize> = bounds[batch.start..=batch.end].iter().map(|end| end - of_batch.start).collect();
        let thresholds = (0..n_queries).map(|_| Threshold::new(ask.min_score.unwrap_or(f32::NEG_INFINITY)));
        let pass = Pass { source, examples, queries: &prepared, ends, ask, task, thresholds: thresholds.collect() };
        let candidates = pool.install(|| pass.candidates(i == 0))?;
        // Before the pass, not within: preparing is work for all threads, and a thread that waits for one that
        // does it may be the one that it waits for.
        let wanted: BTreeSet<usize> = candidates.values().flatten().copied().collect();
        let of_query = |query: usize| bounds[batch.start + query]..bounds[batch.start + query + 1];
        let prepare = |query: usize| wanted.contains(&query).then(|| vectors.prepare(of_query(query)));
        let ready = pool.install(|| (0..n_queries).map(prepare).collect());
        let exact = Exact { source, examples, ready, wanted: candidates, task };
        let (mut hits, rescored) = pool.install(|| exact.hits(ask))?;
        found.hits.append(&mut hits);
        found.rescored += rescored;
    }
    Ok(found)
}

/// Queries in batches of few vectors, and of few maxima that are kept for their best `k`.
fn batches(bounds: &[usize], k: usize) -> Vec<Range<usize>> {
    let most = BATCH.min(HIT_BYTES / size_of::<f64>() / k.max(1));
    let mut batches: Vec<Range<usize>> = Vec::new();
    for query in 0..bounds.len() - 1 {
        match batches.last_mut() {
            Some(batch) if bounds[query + 1] - bounds[batch.start] <= most => batch.end = query + 1,
            _ => batches.push(query..query + 1),
        }
    }
    batches
}

/// Rows of a group that follow one another in it and are of one example.
fn runs(examples: &Examples, positions: Positions<'_>, mut work: impl FnMut(usize, Range<usize>)) {
    let mut at = 0;
    while at < positions.len() {
        let example = examples.of(positions.get(at));
        let own = examples.positions(example);
        let end = match positions {
            Positions::Run(first, n) => n.min(own.end - first),
            Positions::List(list) => at + list[at..].iter().take_while(|position| own.contains(position)).count(),
        };
        work(example, at..end);
        at = end;
    }
}

/// The first pass: all rows against a batch of query vectors.
struct Pass<'a> {
    source: &'a dyn Blocks,
    examples: &'a Examples,
    queries: &'a Prepared<'a>,
    /// Where the vectors of each query of the batch end, from 0 on.
    ends: Vec<usize>,
    ask: &'a Ask<'a>,
    task: &'a Task,
    thresholds: Vec<Threshold>,
}

/// What is known of an example so far.
#[derive(Clone)]
struct Known {
    best: Vec<Best>,
    /// Rows that were looked at, and whether quick scores were worth nothing for any.
    seen: usize,
    hard: bool,
}

/// An example that may be among the best of a query, and the most that its score can be.
struct Candidate {
    query: usize,
    example: usize,
    most: f64,
}

/// What one thread has found.
struct Thread {
    tile: Tile,
    current: Known,
    /// Of examples that lie in several places.
    open: BTreeMap<usize, Known>,
    top: Vec<TopK>,
    candidates: Vec<Candidate>,
    /// How many candidates there may be before those that no longer are go.
    full: usize,
    nan: Nan,
}

impl Pass<'_> {
    /// The examples that may be among the best, and for which queries.
    fn candidates(&self, first: bool) -> Result<BTreeMap<usize, Vec<usize>>> {
        let next = AtomicUsize::new(0);
        let groups = self.source.groups();
        let threads = rayon::current_num_threads().min(groups.max(1));
        let work = |_| -> Result<Thread> {
            let mut thread = self.thread();
            let mut buffers = Vec::new();
            loop {
                let group = next.fetch_add(1, Ordering::Relaxed);
                if group >= groups {
                    return Ok(thread);
                }
                if let Err(error) = self.group(group, &mut thread, &mut buffers) {
                    next.store(groups, Ordering::Relaxed);
                    return Err(error);
                }
            }
        };
        let threads = (0..threads).into_par_iter().with_max_len(1).map(work).collect::<Result<Vec<Thread>>>()?;
        let mut nan = Nan::default();
        let mut open: BTreeMap<usize, Known> = BTreeMap::new();
        let mut last = self.thread();
        for thread in threads {
            nan.add(thread.nan);
            last.candidates.extend(thread.candidates);
            for (best, top) in last.top.iter_mut().zip(thread.top) {
                top.into_hits().into_iter().for_each(|hit| {
                    best.push(hit, self.ask.k);
                });
            }
            for (example, known) in thread.open {
                match open.get_mut(&example) {
                    Some(whole) => whole.merge(&known),
                    None => {
                        open.insert(example, known);
                    }
                }
            }
        }
        if first {
            nan.check(self.ask)?;
        }
        for (example, known) in open {
            self.judge(example, &known, &mut last);
        }
        for (threshold, top) in self.thresholds.iter().zip(last.top) {
            let hits = top.into_hits();
            if hits.len() == self.ask.k {
                let least = hits.iter().fold(f32::INFINITY, |least, hit| least.min(hit.score));
                threshold.raise(least);
            }
        }
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for candidate in last.candidates.iter().filter(|candidate| self.remains(candidate)) {
            wanted.entry(candidate.example).or_default().push(candidate.query);
        }
        Ok(wanted)
    }

    /// One that has found nothing.
    fn thread(&self) -> Thread {
        Thread {
            tile: Tile::default(),
            current: self.unknown(),
            open: BTreeMap::new(),
            top: (0..self.thresholds.len()).map(|_| TopK::default()).collect(),
            candidates: Vec::new(),
            full: MANY,
            nan: Nan::default(),
        }
    }

    fn unknown(&self) -> Known {
        Known::new(self.queries)
    }

    fn remains(&self, candidate: &Candidate) -> bool {
        let reached = self.thresholds[candidate.query].get();
        // A NaN remains, and so does what rounds up to what was reached.
        let lost = candidate.most < f64::from(reached) - f64::from(reached.abs()) * 1e-7 - 1e-37;
        !lost
    }

    fn group(&self, group: usize, thread: &mut Thread, buffers: &mut Vec<Vec<f32>>) -> Result<()> {
        let [_, n_layers, dim] = self.source.shape();
        let layers: Vec<usize> = (0..n_layers).collect();
        let positions = self.source.positions(group);
        // Each row of a tile may be an example with maxima of its own.
        let known = self.queries.ballots.len() * self.queries.n.next_multiple_of(WIDE) * size_of::<f32>();
        let most = (TILE / (n_layers * dim)).min(TILE_BYTES / known);
        let step = (most / STEP * STEP).max(STEP);
        buffers.resize_with(n_layers, Vec::new);
        self.source.with_group(group, &layers, &mut |decoded| {
            let mut current = None;
            for start in (0..positions.len()).step_by(step) {
                self.task.check()?;
                let range = start..positions.len().min(start + step);
                let rows: Vec<&[f32]> =
                    decoded.iter().zip(buffers.iter_mut()).map(|(d, buffer)| d.floats(range.clone(), buffer)).collect();
                let next = range.end..positions.len().min(range.end + step);
                let coming: Vec<&[f32]> =
                    decoded.iter().map(|layer| layer.in_place(next.clone()).unwrap_or_default()).collect();
                self.tile(&rows, &coming, positions.slice(range), &mut current, thread);
            }
            self.put_away(&mut current, thread);
            Ok(())
        })?;
        self.task.advance((positions.len() * n_layers) as u64);
        Ok(())
    }

    /// A tile of rows; `current` is the example that the rows before it were of.
    fn tile(
        &self,
        rows: &[&[f32]],
        coming: &[&[f32]],
        positions: Positions<'_>,
        current: &mut Option<usize>,
        thread: &mut Thread,
    ) {
        let scores = &kernels().scores;
        let dim = self.queries.dim();
        let n = positions.len();
        let panels = self.queries.n.div_ceil(WIDE);
        thread.tile.begin(n, self.queries, rows.len());
        let few = self.queries.are_few();
        if few {
            thread.tile.multiply(rows, self.queries, 0..1, coming, scores);
        }
        thread.tile.measure(rows, self.queries, positions, scores);
        for i in thread.tile.hard() {
            if rows.iter().any(|rows| rows[i * dim..(i + 1) * dim].iter().any(|x| x.is_nan())) {
                thread.nan.rows += 1;
                thread.nan.see(self.source.row(positions.get(i)) as i64);
            }
        }
        let mut found: Vec<(usize, Range<usize>)> = Vec::new();
        runs(self.examples, positions, |example, rows| found.push((example, rows)));
        // The first run goes on with what the last tile began, the others with nothing; all runs of a tile
        // are kept side by side while panel after panel is multiplied.
        let mut known: Vec<Known> = found.iter().map(|_| self.unknown()).collect();
        for first in (0..panels).step_by(2) {
            let pair = first..panels.min(first + 2);
            if !few {
                let coming = if first == 0 { coming } else { &[] };
                thread.tile.multiply(rows, self.queries, pair.clone(), coming, scores);
            }
            for panel in pair {
                thread.tile.add_up(self.queries, panel, scores);
                for ((_, rows), known) in found.iter().zip(&mut known) {
                    thread.tile.raise(self.queries, panel, rows.clone(), &mut known.best, scores);
                }
            }
        }
        for ((example, rows), mut known) in found.into_iter().zip(known) {
            known.seen = rows.len();
            known.hard = thread.tile.widen(rows, &mut known.best);
            if *current != Some(example) {
                self.put_away(current, thread);
                thread.current = known;
                *current = Some(example);
            } else {
                thread.current.merge(&known);
            }
            if thread.current.seen == self.examples.positions(example).len() {
                let whole = std::mem::replace(&mut thread.current, self.unknown());
                self.judge(example, &whole, thread);
                *current = None;
            }
        }
    }

    /// Keeps what is known of an example of which rows are elsewhere.
    fn put_away(&self, current: &mut Option<usize>, thread: &mut Thread) {
        let Some(example) = current.take() else { return };
        let known = std::mem::replace(&mut thread.current, self.unknown());
        match thread.open.get_mut(&example) {
            Some(whole) => whole.merge(&known),
            None => {
                thread.open.insert(example, known);
            }
        }
    }

    /// Whether an example whose rows are all known may be among the best.
    fn judge(&self, example: usize, known: &Known, thread: &mut Thread) {
        for (query, bounds) in self.ends.windows(2).enumerate() {
            let (mut least, mut most) = (0f64, 0f64);
            for j in bounds[0]..bounds[1] {
                let (low, high) = known.bounds(self.queries, j);
                least += low;
                most += high;
            }
            // Sums of float64, which round as well.
            let slack = 1e-12 * (least.abs() + most.abs());
            if known.hard {
                most = f64::INFINITY;
            }
            let candidate = Candidate { query, example, most: most + slack };
            let low = ((least - slack) as f32).next_down();
            if low.is_finite() {
                let hit = Hit { score: low, layer: 0, row: example as i64 };
                if let Some(reached) = thread.top[query].push(hit, self.ask.k) {
                    self.thresholds[query].raise(reached);
                }
            }
            if self.remains(&candidate) {
                thread.candidates.push(candidate);
            }
        }
        if thread.candidates.len() >= thread.full {
            thread.candidates.retain(|candidate| self.remains(candidate));
            thread.full = MANY.max(2 * thread.candidates.len());
        }
    }
}

impl Known {
    /// Of no rows.
    fn new(queries: &Prepared<'_>) -> Self {
        let panels = queries.n.div_ceil(WIDE);
        Known { best: queries.ballots.iter().map(|_| Best::new(panels)).collect(), seen: 0, hard: false }
    }

    /// Between what the best score of a query vector is, hard rows aside.
    fn bounds(&self, queries: &Prepared<'_>, j: usize) -> (f64, f64) {
        let (mut low, mut high) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for (ballot, best) in queries.ballots.iter().zip(&self.best) {
            let (shift, off, hard) = ballot.near(j, best.norm, best.blur);
            let near = f64::from(best.sums[j]) - shift;
            low = low.max(if hard { f64::NEG_INFINITY } else { near - off });
            high = high.max(if hard { f64::INFINITY } else { near + off });
        }
        (low, high)
    }

    fn merge(&mut self, other: &Known) {
        self.best.iter_mut().zip(&other.best).for_each(|(best, other)| best.merge(other));
        self.seen += other.seen;
        self.hard |= other.hard;
    }
}

/// The second pass: exact scores of some examples.
struct Exact<'a> {
    source: &'a dyn Blocks,
    examples: &'a Examples,
    /// The queries of the batch by themselves, those for which any example is wanted.
    ready: Vec<Option<Prepared<'a>>>,
    /// Examples, and the queries each is looked at for.
    wanted: BTreeMap<usize, Vec<usize>>,
    task: &'a Task,
}

/// The exact maxima of an example and a query so far, by query vector; NaN where there is no score yet.
type Maxima = BTreeMap<(usize, usize), Vec<f64>>;

impl<'a> Exact<'a> {
    fn hits(&self, ask: &Ask<'_>) -> Result<(Vec<Vec<Hit>>, u64)> {
        let groups: Vec<usize> = (0..self.source.groups()).filter(|group| self.touches(*group)).collect();
        let found = groups.into_par_iter().with_max_len(1).map(|group| self.group(group));
        let found: Vec<(Maxima, u64, Nan)> = found.collect::<Result<_>>()?;
        let mut maxima = Maxima::new();
        let (mut rescored, mut nan) = (0, Nan::default());
        for (of_group, n, of_nan) in found {
            rescored += n;
            nan.add(of_nan);
            for (key, more) in of_group {
                let whole = maxima.entry(key).or_insert_with(|| vec![f64::NAN; more.len()]);
                whole.iter_mut().zip(more).for_each(|(best, more)| *best = best.max(more));
            }
        }
        nan.check(ask)?;
        let mut hits: Vec<Vec<Hit>> = self.ready.iter().map(|_| Vec::new()).collect();
        for ((query, example), best) in maxima {
            // Not -0, which equals 0: equal scores are ranked by row.
            let score = sum(&best) as f32 + 0.0;
            // An example whose rows are all left out has no score.
            let is_hit = best.iter().any(|best| !best.is_nan());
            if is_hit && !score.is_nan() && ask.min_score.is_none_or(|least| score >= least) {
                let row = ask.names.map_or(example as i64, |names| names[example]);
                hits[query].push(Hit { score, layer: 0, row });
            }
        }
        for hits in &mut hits {
            hits.sort_unstable();
            hits.truncate(ask.k);
        }
        Ok((hits, rescored))
    }

    fn touches(&self, group: usize) -> bool {
        match self.source.positions(group) {
            Positions::Run(first, n) if n > 0 => {
                let (from, to) = (self.examples.of(first), self.examples.of(first + n - 1));
                self.wanted.range(from..=to).next().is_some()
            }
            Positions::Run(..) => false,
            Positions::List(list) => list.iter().any(|at| self.wanted.contains_key(&self.examples.of(*at))),
        }
    }

    fn group(&self, group: usize) -> Result<(Maxima, u64, Nan)> {
        let layers: Vec<usize> = (0..self.source.shape()[1]).collect();
        let positions = self.source.positions(group);
        let mut maxima = Maxima::new();
        let (mut rescored, mut nan) = (0, Nan::default());
        let mut tile = Tile::default();
        self.source.with_group(group, &layers, &mut |decoded| {
            let mut found: Vec<(usize, Range<usize>)> = Vec::new();
            runs(self.examples, positions, |example, rows| found.push((example, rows)));
            for (example, rows) in found {
                for query in self.wanted.get(&example).into_iter().flatten() {
                    self.task.check()?;
                    let best = maxima.entry((*query, example)).or_default();
                    rescored += self.run(*query, decoded, rows.clone(), positions, best, &mut tile, &mut nan);
                }
            }
            Ok(())
        })?;
        Ok((maxima, rescored, nan))
    }

    /// Rows of an example against the vectors of a query; how many scores were computed exactly.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        query: usize,
        decoded: &[&dyn Decoded],
        rows: Range<usize>,
        positions: Positions<'_>,
        best: &mut Vec<f64>,
        tile: &mut Tile,
        nan: &mut Nan,
    ) -> u64 {
        let scores = &kernels().scores;
        let Some(queries) = &self.ready[query] else { unreachable!("wanted queries are ready") };
        let dim = queries.dim();
        best.resize(queries.n, f64::NAN);
        let mut rescored = 0;
        let step = (TILE / (decoded.len() * dim)).max(STEP);
        let mut buffers: Vec<Vec<f32>> = decoded.iter().map(|_| Vec::new()).collect();
        for start in rows.clone().step_by(step) {
            let range = start..rows.end.min(start + step);
            let values: Vec<&[f32]> =
                decoded.iter().zip(&mut buffers).map(|(d, buffer)| d.floats(range.clone(), buffer)).collect();
            tile.begin(range.len(), queries, decoded.len());
            if queries.are_few() {
                tile.multiply(&values, queries, 0..1, &[], scores);
            }
            tile.measure(&values, queries, positions.slice(range.clone()), scores);
            let hard: BTreeSet<usize> = tile.hard().collect();
            let is_nan = |i: usize| {
                hard.contains(&i) && values.iter().any(|rows| rows[i * dim..(i + 1) * dim].iter().any(|x| x.is_nan()))
            };
            let left_out: Vec<bool> = (0..range.len()).map(is_nan).collect();
            let mut known = Known::new(queries);
            known.hard = tile.widen(0..range.len(), &mut known.best);
            let panels = queries.n.div_ceil(WIDE);
            for panel in 0..panels {
                if !queries.are_few() && panel.is_multiple_of(2) {
                    tile.multiply(&values, queries, panel..panels.min(panel + 2), &[], scores);
                }
                tile.add_up(queries, panel, scores);
                tile.raise(queries, panel, 0..range.len(), &mut known.best, scores);
                // What a maximum comes to at least; rows that cannot reach it are none.
                let least = |j: usize| known.bounds(queries, j).0.max(best[j]);
                tile.compare(queries, panel, |j| (least(j) as f32).next_down(), scores);
                for i in 0..range.len() {
                    let mut mask = if hard.contains(&i) { u16::MAX } else { tile.mask(i) };
                    if left_out[i] || mask == 0 {
                        continue;
                    }
                    let row: Vec<&[f32]> = values.iter().map(|rows| &rows[i * dim..(i + 1) * dim]).collect();
                    let position = positions.get(start + i);
                    while mask != 0 {
                        let j = panel * WIDE + mask.trailing_zeros() as usize;
                        mask &= mask - 1;
                        if j >= queries.n {
                            break;
                        }
                        let (score, _) = queries.exact(j, position, &row, scores);
                        rescored += 1;
                        if score.is_nan() {
                            nan.undefined.insert(position);
                            nan.see(self.source.row(position) as i64);
                        } else {
                            best[j] = best[j].max(score);
                        }
                    }
                }
            }
        }
        rescored
    }
}

/// A sum in the order of the ranking contract; a maximum over no scores is as low as can be.
fn sum(terms: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    for (i, term) in terms.iter().enumerate() {
        sums[i % 8] += if term.is_nan() { f64::NEG_INFINITY } else { *term };
    }
    pairwise(sums)
}
