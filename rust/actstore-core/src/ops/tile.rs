//! A few rows of all layers in the cache, and their quick scores with sixteen queries at a time.

use std::ops::Range;

use crate::kernels::Scores;
use crate::kernels::score_scalar::WIDE;
use crate::ops::scorer::Prepared;

/// Squares of norms between which quick scores keep their bound.
const NORMAL: Range<f32> = 1e-30..1e34;

/// Quick scores of a tile of rows, and what is known of the rows.
#[derive(Default)]
pub struct Tile {
    /// Rows.
    n: usize,
    /// Of each layer, `[n, 16]`, for the panel in work.
    products: Vec<Vec<f32>>,
    /// Of each ballot, likewise.
    totals: Vec<Vec<f32>>,
    /// Of each layer, the square of each row's norm.
    squares: Vec<Vec<f32>>,
    /// Of each layer, one over each row's norm.
    inverses: Vec<Vec<f32>>,
    /// Of each ballot, the rows' biases and norms.
    biases: Vec<Vec<f32>>,
    norms: Vec<Vec<f32>>,
    /// Rows for which the bound does not hold.
    hard: Vec<bool>,
    /// A bit for each query of the panel that a row may be a hit of.
    masks: Vec<u16>,
    passing: Vec<(u32, u16)>,
}

impl Tile {
    /// Begins a tile of `n` rows.
    pub fn begin(&mut self, n: usize, queries: &Prepared<'_>, layers: usize) {
        self.n = n;
        for (list, wanted, each) in [
            (&mut self.products, layers, n * WIDE),
            (&mut self.squares, layers, n),
            (&mut self.inverses, layers, n),
            (&mut self.totals, queries.ballots.len(), n * WIDE),
            (&mut self.biases, queries.ballots.len(), n),
            (&mut self.norms, queries.ballots.len(), n),
        ] {
            list.resize_with(wanted, Vec::new);
            list.iter_mut().for_each(|floats| floats.resize(each, 0.0));
        }
    }

    /// Quick products of a panel of queries with the rows of each layer; `coming` is fetched meanwhile.
    pub fn multiply(
        &mut self,
        rows: &[&[f32]],
        queries: &Prepared<'_>,
        panel: usize,
        coming: &[&[f32]],
        scores: &Scores,
    ) {
        let dim = queries.dim();
        for (l, rows) in rows.iter().enumerate() {
            let (products, packed) = (&mut self.products[l][..], queries.packed(l, panel));
            if queries.are_few() {
                (scores.few)(rows, dim, packed, products, &mut self.squares[l]);
            } else {
                (scores.panel)(rows, dim, packed, products, coming.get(l).copied().unwrap_or_default());
            }
        }
    }

    /// Learns the rows' norms. (Few queries get them with the products.)
    pub fn measure(&mut self, rows: &[&[f32]], queries: &Prepared<'_>, scores: &Scores) {
        let dim = queries.dim();
        if !queries.are_few() {
            for (rows, squares) in rows.iter().zip(&mut self.squares) {
                (scores.squares)(rows, dim, squares);
            }
        }
        let divides = queries.ballots.iter().any(|ballot| ballot.divides());
        // A norm may be small where nothing is divided by it.
        let least = if divides { NORMAL.start } else { 0.0 };
        self.hard.clear();
        self.hard.resize(self.n, false);
        for squares in &self.squares {
            for (hard, square) in self.hard.iter_mut().zip(squares) {
                *hard |= !(*square >= least && *square < NORMAL.end);
            }
        }
        if divides {
            for (inverses, squares) in self.inverses.iter_mut().zip(&self.squares) {
                inverses.iter_mut().zip(squares).for_each(|(inverse, square)| *inverse = 1.0 / square.sqrt());
            }
        }
        for (ballot, (biases, norms)) in queries.ballots.iter().zip(self.biases.iter_mut().zip(&mut self.norms)) {
            ballot.sides(&self.squares, dim, biases, norms);
            for (hard, (bias, norm)) in self.hard.iter_mut().zip(biases.iter().zip(norms)) {
                *hard |= !(bias + *norm).is_finite();
            }
        }
    }

    /// Adds up products of layers, and finds the rows that may be hits of queries of the panel: those
    /// whose bound reaches what `reached` gives for a query.
    pub fn compare(&mut self, queries: &Prepared<'_>, panel: usize, reached: impl Fn(usize) -> f32, scores: &Scores) {
        self.masks.clear();
        self.masks.resize(self.n, 0);
        // Slots of the last panel that no query has.
        let taken = (1u32 << (queries.n - panel * WIDE).min(WIDE)) - 1;
        for (b, ballot) in queries.ballots.iter().enumerate() {
            let totals = &mut self.totals[b];
            if ballot.layers.len() == 1 && !ballot.divides() {
                std::mem::swap(totals, &mut self.products[ballot.layers.start]);
            } else {
                totals.fill(0.0);
                for l in ballot.layers.clone() {
                    let rows = totals.as_chunks_mut::<WIDE>().0.iter_mut().zip(self.products[l].as_chunks::<WIDE>().0);
                    for ((totals, products), inverse) in rows.zip(&self.inverses[l]) {
                        let by = if ballot.divides() { *inverse } else { 1.0 };
                        totals.iter_mut().zip(products).for_each(|(total, product)| *total += by * product);
                    }
                }
            }
            let base = std::array::from_fn(|slot| match panel * WIDE + slot {
                j if j < queries.n => ballot.base(j, reached(j)),
                _ => f32::INFINITY,
            });
            self.passing.clear();
            let (biases, norms) = (&self.biases[b], &self.norms[b]);
            (scores.passing)(&self.totals[b], &base, ballot.slopes(panel), biases, norms, &mut self.passing);
            for (i, mask) in &self.passing {
                self.masks[*i as usize] |= mask & taken as u16;
            }
        }
    }

    /// The queries of the panel that a row may be a hit of, as bits.
    pub fn mask(&self, i: usize) -> u16 {
        if self.hard[i] { 0 } else { self.masks[i] }
    }

    /// Whether a row still may be one, now that a query's best have reached a score.
    pub fn passes(&self, i: usize, queries: &Prepared<'_>, panel: usize, slot: usize, reached: f32) -> bool {
        queries.ballots.iter().enumerate().any(|(b, ballot)| {
            let (bias, norm) = (self.biases[b][i], self.norms[b][i]);
            let least = ballot.base(panel * WIDE + slot, reached) + bias + norm * ballot.slopes(panel)[slot];
            let fails = self.totals[b][i * WIDE + slot] < least;
            !fails
        })
    }

    /// The rows for which quick scores are worth nothing.
    pub fn hard(&self) -> impl Iterator<Item = usize> + '_ {
        self.hard.iter().enumerate().filter(|(_, hard)| **hard).map(|(i, _)| i)
    }
}
