//! Products of the dims of one array with those of another, row by row: cross-covariances of layers.
//!
//! As in [`crate::ops::covariance`], pieces of rows lose their means before they are multiplied, and merge
//! by one more row of products each. Layers of both sides come in tiles whose rows fit in memory side by
//! side; each tile is one pass over the rows.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::blocks::{Blocks, Positions};
use crate::error::{Error, Result};
use crate::ops::covariance::evenly;
use crate::ops::panels::{Packed, Panel, pack_wide, padded, parts, push_mean};
use crate::process::{Task, pool};

/// Bytes that the packed rows of a window come to.
const WINDOW: usize = 96 << 20;
/// Rows that a window should have at least.
const ROWS: usize = 1024;

/// The cross-moments of two arrays.
#[derive(Debug)]
pub struct Cross {
    /// `[layers, dim]` of the first.
    pub mean_x: Vec<f64>,
    /// `[layers, dim]` of the second.
    pub mean_y: Vec<f64>,
    /// Sums of products of deviations, `[layers of the first, of the second, dim, dim]`.
    pub second: Vec<f64>,
}

/// Sums the products of all layers of `x` with all of `y`. The rows of `x` must be in the order of their
/// array.
pub fn cross<T: Panel>(x: &dyn Blocks, y: &dyn Blocks, task: &Task) -> Result<Cross> {
    let ([rows, x_layers, x_dim], [y_rows, y_layers, y_dim]) = (x.shape(), y.shape());
    if rows != y_rows {
        return Err(Error::shape(format!("{rows} rows and {y_rows}: as many are needed of both")));
    }
    let (mean_x, mean_y) = (vec![0.0; x_layers * x_dim], vec![0.0; y_layers * y_dim]);
    let mut found = Cross { mean_x, mean_y, second: vec![0.0; x_layers * x_dim * y_layers * y_dim] };
    if found.second.is_empty() || rows == 0 {
        return Ok(found);
    }
    let of_layer = ROWS * (x_dim + y_dim) / 2 * size_of::<T>();
    let most = (WINDOW / of_layer.max(1)).max(2);
    let x_most = x_layers.min(most.div_ceil(2));
    let y_most = y_layers.min((most - x_most).max(1));
    let tiles = |layers: usize, most: usize| (0..layers).step_by(most).map(move |l| l..layers.min(l + most));
    let passes = tiles(x_layers, x_most).count() * tiles(y_layers, y_most).count();
    task.expect((rows * passes) as u64);
    let (x, y) = (Side::new(x)?, Side::new(y)?);
    pool(task.threads)?.install(|| {
        for of_x in tiles(x_layers, x_most) {
            for of_y in tiles(y_layers, y_most) {
                let row = (of_x.len() * padded::<T>(x_dim) + of_y.len() * padded::<T>(y_dim)) * size_of::<T>();
                let whole = x.source.positions(0).len().max(1);
                let window = (WINDOW / row / whole * whole).max(256);
                let (mut means_x, mut means_y) = (Means::new(of_x.len(), x_dim), Means::new(of_y.len(), y_dim));
                for start in (0..rows).step_by(window) {
                    task.check()?;
                    let range = start..rows.min(start + window);
                    let packed_x = x.pack::<T>(&of_x, &range, &mut means_x)?;
                    let packed_y = y.pack::<T>(&of_y, &range, &mut means_y)?;
                    let mut work = Vec::new();
                    let matrices = found.second.chunks_exact_mut(x_dim * y_dim).enumerate();
                    for (pair, matrix) in matrices {
                        let (i, j) = (pair / y_layers, pair % y_layers);
                        if of_x.contains(&i) && of_y.contains(&j) {
                            let both = (&packed_x[i - of_x.start], &packed_y[j - of_y.start]);
                            let threads = rayon::current_num_threads();
                            let parts = parts::<T>(matrix, [x_dim, y_dim], false, threads);
                            work.extend(parts.into_iter().map(|part| (both, part)));
                        }
                    }
                    work.into_par_iter().with_max_len(1).for_each(|((x, y), mut part)| {
                        for ((n, x), (_, y)) in x.iter().zip(y) {
                            part.add_products(*n, [x, y], false);
                        }
                    });
                    task.advance(range.len() as u64);
                }
                found.mean_x[of_x.start * x_dim..of_x.end * x_dim].copy_from_slice(&means_x.means);
                found.mean_y[of_y.start * y_dim..of_y.end * y_dim].copy_from_slice(&means_y.means);
            }
        }
        Ok(found)
    })
}

/// The means of some layers over the rows so far.
struct Means {
    dim: usize,
    rows: f64,
    means: Vec<f64>,
}

impl Means {
    fn new(layers: usize, dim: usize) -> Self {
        Means { dim, rows: 0.0, means: vec![0.0; layers * dim] }
    }

    /// Merges pieces of a layer, and gives the row that each adds to the products.
    fn merge(&mut self, layer: usize, pieces: &[(usize, Vec<f64>)]) -> Vec<f64> {
        let mut rows = self.rows;
        let whole = &mut self.means[layer * self.dim..(layer + 1) * self.dim];
        let mut between = Vec::with_capacity(pieces.len() * self.dim);
        for (n, mean) in pieces {
            let share = *n as f64 / (rows + *n as f64);
            let by = (rows * share).sqrt();
            for (whole, mean) in whole.iter_mut().zip(mean) {
                let away = mean - *whole;
                *whole += away * share;
                between.push(by * away);
            }
            rows += *n as f64;
        }
        between
    }
}

/// One of the two arrays, whose rows are found by position.
struct Side<'a> {
    source: &'a dyn Blocks,
    /// The first position of each group, where each group's follow one another.
    firsts: Option<Vec<usize>>,
    /// Otherwise where the row of each position is: its group, and its place there.
    places: Vec<(u32, u32)>,
}

/// The pieces of a layer: how many rows, and their panels; the last is what lies between them.
type Pieces<T> = Vec<(usize, Vec<T>)>;

impl<'a> Side<'a> {
    fn new(source: &'a dyn Blocks) -> Result<Self> {
        let mut firsts = Vec::with_capacity(source.groups());
        for group in 0..source.groups() {
            match source.positions(group) {
                Positions::Run(first, _) if firsts.last().is_none_or(|last| *last <= first) => firsts.push(first),
                _ => break,
            }
        }
        if firsts.len() == source.groups() {
            return Ok(Side { source, firsts: Some(firsts), places: Vec::new() });
        }
        let mut places = vec![(0, 0); source.shape()[0]];
        for group in 0..source.groups() {
            let positions = source.positions(group);
            for i in 0..positions.len() {
                places[positions.get(i)] = (group as u32, i as u32);
            }
        }
        Ok(Side { source, firsts: None, places })
    }

    /// The rows of layers at some positions, in pieces.
    fn pack<T: Panel>(&self, layers: &Range<usize>, range: &Range<usize>, means: &mut Means) -> Result<Vec<Pieces<T>>> {
        let dim = self.source.shape()[2];
        let mut rows = vec![0f32; range.len() * dim];
        let mut packed = Vec::new();
        for (l, layer) in layers.clone().enumerate() {
            self.read(layer, range, &mut rows)?;
            let pieces: Vec<Range<usize>> = evenly(range.len()).collect();
            let pieces: Vec<(usize, Vec<f64>, Vec<T>)> = pieces
                .into_par_iter()
                .map(|piece| {
                    let values = &rows[piece.start * dim..piece.end * dim];
                    let (mut mean, mut panels) = (Vec::new(), Packed::default());
                    push_mean(values, dim, &mut mean);
                    panels.push(values, dim, &mean);
                    (piece.len(), mean, panels.into_vec())
                })
                .collect();
            if pieces.iter().any(|(_, mean, _)| mean.iter().any(|mean| !mean.is_finite())) {
                let wrong = rows.chunks_exact(dim).position(|row| row.iter().any(|x| !x.is_finite()));
                let row = wrong.map_or(0, |i| self.source.row(range.start + i));
                return Err(Error::invalid(format!("row {row} of the array is NaN or infinite: select the others")));
            }
            let (of_means, panels): (Vec<_>, Vec<_>) =
                pieces.into_iter().map(|(n, mean, panels)| ((n, mean), (n, panels))).unzip();
            let between = means.merge(l, &of_means);
            let mut panels: Pieces<T> = panels;
            panels.push((of_means.len(), pack_wide(&between, dim)));
            packed.push(panels);
        }
        means.rows += range.len() as f64;
        Ok(packed)
    }

    /// The rows of a layer at some positions, one after the other.
    fn read(&self, layer: usize, range: &Range<usize>, out: &mut [f32]) -> Result<()> {
        let dim = self.source.shape()[2];
        let Some(firsts) = &self.firsts else { return self.read_places(layer, range, out) };
        let mut parts = Vec::new();
        let (mut at, mut rest) = (range.start, out);
        let mut group = firsts.partition_point(|first| *first <= at) - 1;
        while at < range.end {
            let own = firsts[group]..firsts[group] + self.source.positions(group).len();
            let end = own.end.min(range.end);
            if at < end {
                let (mine, others) = rest.split_at_mut((end - at) * dim);
                parts.push((group, at - own.start..end - own.start, mine));
                (at, rest) = (end, others);
            }
            group += 1;
        }
        parts.into_par_iter().with_max_len(1).try_for_each(|(group, rows, out)| {
            self.source.with_group(group, &[layer], &mut |decoded| {
                out.copy_from_slice(decoded[0].floats(rows.clone(), &mut Vec::new()));
                Ok(())
            })
        })
    }

    fn read_places(&self, layer: usize, range: &Range<usize>, out: &mut [f32]) -> Result<()> {
        let dim = self.source.shape()[2];
        let mut wanted: Vec<(u32, u32, usize)> =
            self.places[range.clone()].iter().enumerate().map(|(i, (group, place))| (*group, *place, i)).collect();
        wanted.sort_unstable();
        let groups: Vec<&[(u32, u32, usize)]> = wanted.chunk_by(|a, b| a.0 == b.0).collect();
        let out = Mutex::new(out);
        groups.into_par_iter().with_max_len(1).try_for_each(|of_group| {
            let group = of_group[0].0 as usize;
            self.source.with_group(group, &[layer], &mut |decoded| {
                let mut buffer = Vec::new();
                let values = decoded[0].floats(0..self.source.positions(group).len(), &mut buffer);
                let mut out = out.lock().expect("no panic while held");
                for (_, place, i) in of_group {
                    let place = *place as usize;
                    out[i * dim..(i + 1) * dim].copy_from_slice(&values[place * dim..(place + 1) * dim]);
                }
                Ok(())
            })
        })
    }
}
