//! A few rows of all layers in the cache, and their quick scores with sixteen queries at a time.

use std::ops::Range;

use crate::blocks::Positions;
use crate::kernels::Scores;
use crate::kernels::score_scalar::WIDE;
use crate::ops::scorer::{Ballot, Prepared, RowNorms};

/// Squares of norms between which quick scores keep their bound.
const NORMAL: Range<f32> = 1e-30..1e34;

/// The best of some rows, of one ballot.
#[derive(Clone, Debug)]
pub struct Best {
    /// Sums of products less biases, of each query.
    pub sums: Vec<f32>,
    /// The largest norm.
    pub norm: f32,
    /// See [`Tile`].
    pub blur: f32,
}

impl Best {
    /// Of no rows, for so many panels of queries.
    pub fn new(panels: usize) -> Self {
        Best { sums: vec![f32::NEG_INFINITY; panels * WIDE], norm: 0.0, blur: 0.0 }
    }

    /// Adds those of other rows.
    pub fn merge(&mut self, other: &Best) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(best, other)| *best = best.max(*other));
        self.norm = self.norm.max(other.norm);
        self.blur = self.blur.max(other.blur);
    }
}

/// Quick scores of a tile of rows, and what is known of the rows.
#[derive(Default)]
pub struct Tile {
    /// Rows.
    n: usize,
    /// The first of the two panels.
    first: usize,
    /// Of each layer, `[2, n, 16]`, for the two panels in work.
    products: Vec<Vec<f32>>,
    /// Of each ballot that is more than one layer's products, `[n, 16]`, for the panel that is compared.
    totals: Vec<Vec<f32>>,
    /// Of each layer, the square of each row's norm.
    squares: Vec<Vec<f32>>,
    /// Of each layer, the square of the norm of what each row stands for, where rows are mapped.
    meant: Vec<Vec<f32>>,
    /// Of each layer, one over each row's norm, or that of what it stands for.
    inverses: Vec<Vec<f32>>,
    /// Of each ballot, the rows' biases and norms, and how far the biases may be off.
    biases: Vec<Vec<f32>>,
    norms: Vec<Vec<f32>>,
    blurs: Vec<Vec<f32>>,
    /// Rows for which the bound does not hold.
    hard: Vec<bool>,
    any_hard: bool,
    /// A bit for each query of the panel that a row may be a hit of.
    masks: Vec<u16>,
    passing: Vec<(u32, u16)>,
}

impl Tile {
    /// Begins a tile of `n` rows.
    pub fn begin(&mut self, n: usize, queries: &Prepared<'_>, layers: usize) {
        self.n = n;
        for (list, wanted, each) in [
            (&mut self.products, layers, 2 * n * WIDE),
            (&mut self.squares, layers, n),
            (&mut self.inverses, layers, n),
            (&mut self.meant, layers, n),
            (&mut self.totals, queries.ballots.len(), n * WIDE),
            (&mut self.biases, queries.ballots.len(), n),
            (&mut self.norms, queries.ballots.len(), n),
            (&mut self.blurs, queries.ballots.len(), n),
        ] {
            list.resize_with(wanted, Vec::new);
            list.iter_mut().for_each(|floats| floats.resize(each, 0.0));
        }
    }

    /// Quick products of one or two panels of queries with the rows of each layer; `coming` is fetched
    /// meanwhile.
    pub fn multiply(
        &mut self,
        rows: &[&[f32]],
        queries: &Prepared<'_>,
        panels: Range<usize>,
        coming: &[&[f32]],
        scores: &Scores,
    ) {
        let dim = queries.dim();
        self.first = panels.start;
        for (l, rows) in rows.iter().enumerate() {
            let (products, packed) = (&mut self.products[l][..], queries.packed(l, panels.clone()));
            if queries.are_few() {
                (scores.few)(rows, dim, packed, products, &mut self.squares[l]);
            } else {
                (scores.panel)(rows, dim, packed, products, coming.get(l).copied().unwrap_or_default());
            }
        }
    }

    /// Learns the rows' norms, which stand at these positions. (Few queries get those of the rows themselves
    /// with the products.)
    pub fn measure(&mut self, rows: &[&[f32]], queries: &Prepared<'_>, positions: Positions<'_>, scores: &Scores) {
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
        let mapped = queries.has_norms();
        if mapped {
            for (l, meant) in self.meant.iter_mut().enumerate() {
                queries.squares_meant(positions, l, meant);
            }
        }
        let meant = if mapped { &self.meant } else { &self.squares };
        for (squares, meant) in self.squares.iter().zip(meant) {
            for (hard, (square, meant)) in self.hard.iter_mut().zip(squares.iter().zip(meant)) {
                *hard |= !(*meant >= least && *meant < NORMAL.end && *square < NORMAL.end);
            }
        }
        if divides {
            for (inverses, squares) in self.inverses.iter_mut().zip(meant) {
                inverses.iter_mut().zip(squares).for_each(|(inverse, square)| *inverse = 1.0 / square.sqrt());
            }
        } else {
            self.inverses.iter_mut().for_each(|inverses| inverses.fill(1.0));
        }
        let own = RowNorms { squares: &self.squares, meant, inverses: &self.inverses, means: &queries.means };
        let sides = self.biases.iter_mut().zip(&mut self.norms).zip(&mut self.blurs);
        for (ballot, ((biases, norms), blurs)) in queries.ballots.iter().zip(sides) {
            ballot.sides(&own, dim, biases, norms, blurs);
            for (hard, (bias, norm)) in self.hard.iter_mut().zip(biases.iter().zip(norms)) {
                *hard |= !(bias + *norm).is_finite();
            }
        }
        self.any_hard = self.hard.contains(&true);
    }

    /// Adds up products of layers for a panel, where a ballot is more than one layer's.
    pub fn add_up(&mut self, queries: &Prepared<'_>, panel: usize, scores: &Scores) {
        for (b, ballot) in queries.ballots.iter().enumerate() {
            if !ballot.is_plain() {
                let totals = &mut self.totals[b];
                totals.fill(0.0);
                for l in ballot.layers.clone() {
                    let products = of_panel(&self.products[l], self.n, panel - self.first);
                    let none = [0.0; WIDE];
                    let centers = queries.centers(l, panel).unwrap_or(&none);
                    (scores.add_up)(products, centers, &self.inverses[l], totals);
                }
            }
        }
    }

    /// Finds the rows that may be hits of queries of the panel, whose products were added up: those
    /// whose bound reaches what `reached` gives for a query.
    pub fn compare(&mut self, queries: &Prepared<'_>, panel: usize, reached: impl Fn(usize) -> f32, scores: &Scores) {
        self.masks.clear();
        self.masks.resize(self.n, 0);
        // Slots of the last panel that no query has.
        let taken = (1u32 << (queries.n - panel * WIDE).min(WIDE)) - 1;
        for (b, ballot) in queries.ballots.iter().enumerate() {
            let base = std::array::from_fn(|slot| match panel * WIDE + slot {
                j if j < queries.n => ballot.base(j, reached(j)),
                _ => f32::INFINITY,
            });
            let mut passing = std::mem::take(&mut self.passing);
            passing.clear();
            let (biases, norms) = (&self.biases[b], &self.norms[b]);
            (scores.passing)(self.totals(b, ballot, panel), &base, ballot.slopes(panel), biases, norms, &mut passing);
            for (i, mask) in &passing {
                self.masks[*i as usize] |= mask & taken as u16;
            }
            self.passing = passing;
        }
    }

    /// Sums of quick products of a ballot, `[n, 16]`.
    fn totals(&self, b: usize, ballot: &Ballot, panel: usize) -> &[f32] {
        if ballot.is_plain() {
            of_panel(&self.products[ballot.layers.start], self.n, panel - self.first)
        } else {
            &self.totals[b]
        }
    }

    /// Of some rows, the best sums of products of each query of a panel less biases, the largest norm and the
    /// largest blur, each in one number for every ballot; rows for which quick scores are worth nothing are
    /// not among them.
    pub fn raise(&self, queries: &Prepared<'_>, panel: usize, rows: Range<usize>, best: &mut [Best], scores: &Scores) {
        let slots = panel * WIDE..(panel + 1) * WIDE;
        for (b, (ballot, best)) in queries.ballots.iter().zip(best).enumerate() {
            let own: &mut [f32; WIDE] = (&mut best.sums[slots.clone()]).try_into().expect("a panel");
            let totals = self.totals(b, ballot, panel);
            if !self.any_hard {
                let sums = &totals[rows.start * WIDE..rows.end * WIDE];
                (scores.raise)(sums, &self.biases[b][rows.clone()], own);
                continue;
            }
            // A run of usual rows at a time.
            let mut at = rows.start;
            while at < rows.end {
                let run = self.hard[at..rows.end].iter().take_while(|hard| !**hard).count();
                let easy = at..at + run;
                let sums = &totals[easy.start * WIDE..easy.end * WIDE];
                (scores.raise)(sums, &self.biases[b][easy.clone()], own);
                at = easy.end + 1;
            }
        }
    }

    /// The largest norms and blurs of some rows; whether quick scores are worth nothing for any of them.
    pub fn widen(&self, rows: Range<usize>, best: &mut [Best]) -> bool {
        let hard = &self.hard[rows.clone()];
        let any = hard.contains(&true);
        let most = |so_far: f32, of_rows: &[f32]| {
            if any {
                let usual = of_rows.iter().zip(hard).filter(|(_, hard)| !**hard);
                return usual.fold(so_far, |most, (x, _)| most.max(*x));
            }
            of_rows.iter().fold(so_far, |most, x| if *x > most { *x } else { most })
        };
        for (b, best) in best.iter_mut().enumerate() {
            best.norm = most(best.norm, &self.norms[b][rows.clone()]);
            best.blur = most(best.blur, &self.blurs[b][rows.clone()]);
        }
        any
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
            let fails = self.totals(b, ballot, panel)[i * WIDE + slot] < least;
            !fails
        })
    }

    /// The rows for which quick scores are worth nothing.
    pub fn hard(&self) -> impl Iterator<Item = usize> + '_ {
        let there = if self.any_hard { &self.hard[..] } else { &[] };
        there.iter().enumerate().filter(|(_, hard)| **hard).map(|(i, _)| i)
    }
}

/// The products of the first or the second panel.
fn of_panel(products: &[f32], n: usize, which: usize) -> &[f32] {
    &products[which * n * WIDE..(which + 1) * n * WIDE]
}
