//! Products of the dims of one array with those of another, row by row: cross-covariances of layers.
//!
//! As in [`crate::ops::covariance`], pieces of rows lose their means before they are multiplied, and merge
//! by one more row of products each. Layers of both sides come in tiles whose rows fit in memory side by
//! side; each tile is one pass over the rows.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::blocks::{Blocks, Positions, room};
use crate::error::{Error, Result};
use crate::ops::covariance::{Names, PIECE, evenly};
use crate::ops::panels::{Mean, Packed, Panel, pack_wide, padded, parts, zeros};
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
pub fn cross<T: Panel>([x, y]: [&dyn Blocks; 2], names: [Names<'_>; 2], task: &Task) -> Result<Cross> {
    let ([rows, x_layers, x_dim], [y_rows, y_layers, y_dim]) = (x.shape(), y.shape());
    if rows != y_rows {
        return Err(Error::shape(format!("{rows} rows and {y_rows}: as many are needed of both")));
    }
    let (mean_x, mean_y) = (vec![0.0; x_layers * x_dim], vec![0.0; y_layers * y_dim]);
    let mut found = Cross { mean_x, mean_y, second: zeros(&[x_layers, y_layers, x_dim, y_dim], "cross-moments")? };
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
    let (x, y) = (Side::new(x, names[0])?, Side::new(y, names[1])?);
    let mut buffer = Vec::new();
    pool(task.threads)?.install(|| {
        for of_x in tiles(x_layers, x_most) {
            for of_y in tiles(y_layers, y_most) {
                let row = (of_x.len() * padded::<T>(x_dim) + of_y.len() * padded::<T>(y_dim)) * size_of::<T>();
                let whole = x.source.positions(0).len().max(1);
                let fit = (WINDOW / row).max(PIECE);
                let window = if fit < whole { fit } else { fit / whole * whole };
                let (mut means_x, mut means_y) = (Means::new(of_x.len(), x_dim), Means::new(of_y.len(), y_dim));
                let (mut packed_x, mut packed_y) = (Vec::new(), Vec::new());
                for start in (0..rows).step_by(window) {
                    task.check()?;
                    let range = start..rows.min(start + window);
                    x.pack::<T>(&of_x, &range, &mut means_x, &mut buffer, &mut packed_x)?;
                    y.pack::<T>(&of_y, &range, &mut means_y, &mut buffer, &mut packed_y)?;
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
                        for ((n, x), (_, y)) in x.all(x_dim).zip(y.all(y_dim)) {
                            part.add_products(n, [x, y], false);
                        }
                    });
                    task.advance(range.len() as u64);
                }
                found.mean_x[of_x.start * x_dim..of_x.end * x_dim].copy_from_slice(&means_x.means.whole());
                found.mean_y[of_y.start * y_dim..of_y.end * y_dim].copy_from_slice(&means_y.means.whole());
            }
        }
        Ok(found)
    })
}

/// The means of some layers over the rows so far.
struct Means {
    dim: usize,
    rows: usize,
    means: Mean,
}

impl Means {
    fn new(layers: usize, dim: usize) -> Self {
        Means { dim, rows: 0, means: Mean::new(layers * dim) }
    }

    /// Merges pieces of a layer, and gives the row that each adds to the products.
    fn merge<T>(&mut self, layer: usize, pieces: &[Piece<T>]) -> Vec<f64> {
        let mut rows = self.rows;
        let mut between = Vec::with_capacity(pieces.len() * self.dim);
        for piece in pieces {
            between.extend(self.means.merge(layer * self.dim, rows, piece.mean.parts(0, self.dim), piece.rows));
            rows += piece.rows;
        }
        between
    }
}

/// Rows of a layer that follow one another, packed.
#[derive(Default)]
struct Piece<T> {
    rows: usize,
    panels: Packed<T>,
    mean: Mean,
}

/// The pieces of a layer, and what lies between them; written over from window to window.
#[derive(Default)]
struct Ready<T> {
    pieces: Vec<Piece<T>>,
    between: Vec<T>,
}

impl<T: Panel> Ready<T> {
    /// How many rows, and their panels.
    fn all(&self, dim: usize) -> impl Iterator<Item = (usize, &[T])> {
        let pieces = self.pieces.iter().map(move |piece| (piece.rows, piece.panels.get(0, piece.rows, dim)));
        pieces.chain(std::iter::once((self.pieces.len(), &self.between[..])))
    }
}

/// One of the two arrays, whose rows are found by position.
struct Side<'a> {
    source: &'a dyn Blocks,
    names: Names<'a>,
    /// The first position of each group, where each group's follow one another.
    firsts: Option<Vec<usize>>,
    /// Otherwise where the row of each position is: its group, and its place there.
    places: Vec<(u32, u32)>,
}

impl<'a> Side<'a> {
    fn new(source: &'a dyn Blocks, names: Names<'a>) -> Result<Self> {
        if names.layers.len() != source.shape()[1] {
            return Err(Error::shape(format!("{} names for {} layers", names.layers.len(), source.shape()[1])));
        }
        let mut firsts = Vec::with_capacity(source.groups());
        for group in 0..source.groups() {
            match source.positions(group) {
                Positions::Run(first, _) if firsts.last().is_none_or(|last| *last <= first) => firsts.push(first),
                _ => break,
            }
        }
        if firsts.len() == source.groups() {
            return Ok(Side { source, names, firsts: Some(firsts), places: Vec::new() });
        }
        let mut places = vec![(0, 0); source.shape()[0]];
        for group in 0..source.groups() {
            let positions = source.positions(group);
            for i in 0..positions.len() {
                places[positions.get(i)] = (group as u32, i as u32);
            }
        }
        Ok(Side { source, names, firsts: None, places })
    }

    /// Packs the rows of layers at some positions, in pieces.
    fn pack<T: Panel>(
        &self,
        layers: &Range<usize>,
        range: &Range<usize>,
        means: &mut Means,
        rows: &mut Vec<f32>,
        ready: &mut Vec<Ready<T>>,
    ) -> Result<()> {
        let dim = self.source.shape()[2];
        let rows = room(rows, range.len() * dim);
        ready.resize_with(layers.len(), Ready::default);
        for ((l, layer), ready) in layers.clone().enumerate().zip(ready) {
            self.read(layer, range, rows)?;
            let pieces: Vec<Range<usize>> = evenly(range.len()).collect();
            ready.pieces.resize_with(pieces.len(), Piece::default);
            ready.pieces.par_iter_mut().zip(pieces).for_each(|(piece, of_rows)| {
                let values = &rows[of_rows.start * dim..of_rows.end * dim];
                piece.rows = of_rows.len();
                piece.mean.clear();
                piece.panels.clear();
                piece.mean.push(values, dim);
                piece.panels.push(values, dim, piece.mean.parts(0, dim));
            });
            if ready.pieces.iter().any(|piece| piece.mean.rest.iter().any(|rest| !rest.is_finite())) {
                let wrong = rows.chunks_exact(dim).position(|row| row.iter().any(|x| !x.is_finite()));
                return Err(self.names.wrong(layer, wrong.map_or(0, |i| self.source.row(range.start + i))));
            }
            ready.between = pack_wide(&means.merge(l, &ready.pieces), dim);
        }
        means.rows += range.len();
        Ok(())
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
