//! An affine map of the rows, taken to the queries: whitening over rows that stay as they are.
//!
//! A row x stands for z(x) = A (x - m), A `[rank, dim]`. Then <z(q), z(x)> = <q', x> - <q', m> with
//! q' = A^T A (q - m): one dot product with the row, as without the map. What cosines and distances need
//! besides is the norm of z(x), once for each row ([`norms`]).

use rayon::prelude::*;

use crate::blocks::Blocks;
use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::process::{Task, pool};

/// A map for each layer.
#[derive(Clone, Copy)]
pub struct Maps<'a> {
    /// m, `[layers, dim]`.
    pub mean: &'a [f64],
    /// A, `[layers, rank, dim]`; a layer of less rank has rows of zeros in the end.
    pub rows: &'a [f64],
    /// See above.
    pub rank: usize,
}

impl<'a> Maps<'a> {
    /// Of so many layers and values of a row.
    pub fn new(mean: &'a [f64], rows: &'a [f64], rank: usize, layers: usize, dim: usize) -> Result<Self> {
        if mean.len() != layers * dim || rows.len() != layers * rank * dim {
            return Err(Error::shape(format!(
                "a map of {layers} layers of dim {dim} to rank {rank} has {} means and {} weights",
                mean.len(),
                rows.len()
            )));
        }
        if mean.iter().chain(rows).any(|value| !value.is_finite()) {
            return Err(Error::invalid("a map is of finite numbers"));
        }
        Ok(Maps { mean, rows, rank })
    }

    fn mean(&self, layer: usize, dim: usize) -> &'a [f64] {
        &self.mean[layer * dim..(layer + 1) * dim]
    }

    fn rows(&self, layer: usize, dim: usize) -> &'a [f64] {
        &self.rows[layer * self.rank * dim..(layer + 1) * self.rank * dim]
    }
}

/// A map of the rows, and the norm of each of them.
#[derive(Clone, Copy)]
pub struct Fold<'a> {
    /// The map.
    pub maps: Maps<'a>,
    /// Norms of what rows stand for, by position, `[n, layers]`; none where nothing needs them.
    pub norms: &'a [f64],
}

/// A query, taken through a map.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// q', `[dim]`.
    pub vector: Vec<f64>,
    /// The square of its norm.
    pub own: f64,
    /// <q', m>.
    pub center: f64,
    /// The square of the norm of z(q).
    pub square: f64,
    /// The norm of m.
    pub mean_norm: f64,
}

/// Queries through the map of a layer.
pub fn fold(maps: &Maps<'_>, layer: usize, queries: &[&[f32]]) -> Vec<Folded> {
    let scores = &kernels().scores;
    let Some(dim) = queries.first().map(|query| query.len()) else { return Vec::new() };
    let mean = maps.mean(layer, dim);
    let away: Vec<f64> =
        queries.iter().flat_map(|query| query.iter().zip(mean).map(|(q, m)| f64::from(*q) - m)).collect();
    let mut vectors = vec![0.0; queries.len() * dim];
    let mut mapped = vec![Vec::with_capacity(maps.rank); queries.len()];
    let mut products = vec![0.0; queries.len()];
    for row in maps.rows(layer, dim).chunks_exact(dim) {
        (scores.dots64)(row, &away, &mut products);
        for ((z, vector), mapped) in products.iter().zip(vectors.chunks_exact_mut(dim)).zip(&mut mapped) {
            (scores.add_scaled64)(*z, row, vector);
            mapped.push(*z);
        }
    }
    let dot = scores.dot64;
    vectors
        .chunks_exact(dim)
        .zip(&mapped)
        .map(|(vector, mapped)| Folded {
            own: dot(vector, vector),
            center: dot(vector, mean),
            square: dot(mapped, mapped),
            mean_norm: dot(mean, mean).sqrt(),
            vector: vector.to_vec(),
        })
        .collect()
}

/// The norm of what each row stands for, `[rows, layers]`, in the order of the selection.
pub fn norms(source: &dyn Blocks, maps: &Maps<'_>, task: &Task) -> Result<Vec<f64>> {
    /// Rows that are mapped together: each row of the map is fetched once for all of them.
    const TOGETHER: usize = 16;
    let [n, layers, dim] = source.shape();
    let mut out = vec![0.0; n * layers];
    if dim == 0 {
        return Ok(out);
    }
    task.expect((n * layers) as u64);
    let scores = &kernels().scores;
    let dot = scores.dot64;
    let of_group = |(buffer, away): &mut (Vec<f32>, Vec<f64>), group: usize| -> Result<Vec<f64>> {
        let positions = source.positions(group);
        let mut found = vec![0.0; positions.len() * layers];
        for layer in 0..layers {
            task.check()?;
            source.with_group(group, &[layer], &mut |decoded| {
                let (mean, map) = (maps.mean(layer, dim), maps.rows(layer, dim));
                for start in (0..positions.len()).step_by(TOGETHER) {
                    let range = start..positions.len().min(start + TOGETHER);
                    let rows = decoded[0].floats(range.clone(), buffer);
                    away.clear();
                    away.extend(
                        rows.chunks_exact(dim).flat_map(|row| row.iter().zip(mean).map(|(x, m)| f64::from(*x) - m)),
                    );
                    let mut mapped = vec![Vec::with_capacity(maps.rank); range.len()];
                    let mut products = [0.0; TOGETHER];
                    for of_map in map.chunks_exact(dim) {
                        (scores.dots64)(of_map, away, &mut products[..range.len()]);
                        mapped.iter_mut().zip(&products).for_each(|(mapped, z)| mapped.push(*z));
                    }
                    for (i, mapped) in range.zip(&mapped) {
                        found[i * layers + layer] = dot(mapped, mapped).sqrt();
                    }
                }
                Ok(())
            })?;
            task.advance(positions.len() as u64);
        }
        Ok(found)
    };
    let groups = 0..source.groups();
    let found: Vec<Vec<f64>> = pool(task.threads)?.install(|| {
        groups.into_par_iter().with_max_len(1).map_init(Default::default, of_group).collect::<Result<_>>()
    })?;
    for (group, found) in found.iter().enumerate() {
        let positions = source.positions(group);
        for (i, norms) in found.chunks_exact(layers).enumerate() {
            let at = positions.get(i) * layers;
            out[at..at + layers].copy_from_slice(norms);
        }
    }
    Ok(out)
}
