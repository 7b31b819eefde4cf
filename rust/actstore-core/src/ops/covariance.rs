//! Means and second moments of rows: of each dim, or of each pair of dims; of all rows, or by group.
//!
//! Rows are summed in pieces of at most [`PIECE`] rows of one group. The mean of a piece is taken away
//! before anything is squared, and pieces merge as in Chan, Golub and LeVeque (1983): the product of the
//! difference of two means with itself is added, which is one more row of products. So nothing cancels,
//! however far from zero the values are. Products of a window of pieces are shared out among the threads
//! by blocks of the matrix, which is there once.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::gather::Gatherer;
use crate::ops::panels::{Mean, Packed, Panel, pack_wide, parts, zeros};
use crate::ops::scan::{Block, State, take_state};

/// Rows of a piece at most: few enough for float32 sums to stay exact to their last digits, enough for
/// adding them to the matrix to cost nothing.
pub const PIECE: usize = 256;

/// What to sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The squares of each dim.
    Diagonal,
    /// The products of each pair of dims, in float64.
    Full64,
    /// The same, in float32 within a piece.
    Full32,
}

/// Which group each row is of.
#[derive(Clone, Copy)]
pub struct Groups<'a> {
    /// By position.
    pub labels: &'a [u32],
    /// How many there are; labels are less.
    pub n: usize,
}

/// How rows and layers are called in errors.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The layers.
    pub layers: &'a [i64],
    /// Each row of the array; its number without.
    pub rows: Option<&'a [i64]>,
}

impl Names<'_> {
    /// What to say of rows of a layer that are not finite.
    fn wrong_rows(&self, layer: usize, count: usize, first: usize) -> Error {
        let first = self.rows.map_or(first as i64, |names| names[first]);
        let (rows, are) = if count == 1 { ("row", "is") } else { ("rows", "are") };
        let layer = self.layers[layer];
        Error::invalid(format!(
            "{count} {rows} of layer {layer} {are} NaN or infinite, the first is row {first}: select the others"
        ))
    }

    /// The same of one that was met.
    pub fn wrong(&self, layer: usize, row: usize) -> Error {
        let row = self.rows.map_or(row as i64, |names| names[row]);
        let layer = self.layers[layer];
        Error::invalid(format!("row {row} of layer {layer} is NaN or infinite: select the others"))
    }
}

/// Rows between means that are multiplied together.
const WORTH: usize = 64;

/// By group, the rows between means that wait.
type Between = BTreeMap<usize, Vec<f64>>;

/// What is multiplied next: a piece, by its group of blocks and its number there; or rows between means.
enum Step {
    Piece(usize, usize),
    Between(usize, Vec<f64>),
}

/// The moments so far.
#[derive(Debug, Default)]
pub struct Sums {
    /// Rows of each group.
    pub n: Vec<u64>,
    /// Means, `[layers, groups, dim]`; zeros for groups without rows.
    pub mean: Vec<f64>,
    /// Sums of products of deviations from the mean, `[layers, groups, dim]` or `[layers, groups, dim, dim]`.
    pub second: Vec<f64>,
}

/// The gatherer.
pub struct Covariance<'a> {
    kind: Kind,
    groups: Option<Groups<'a>>,
    names: Names<'a>,
    dim: usize,
    row: &'a (dyn Fn(usize) -> usize + Sync),
    sums: Mutex<(Sums, Between)>,
    means: Mutex<Mean>,
    /// Rows of a layer that are not finite: how many, and the first.
    wrong: Mutex<(usize, usize)>,
    spare: Mutex<Vec<Ready>>,
}

/// Rows of a group of blocks, in pieces.
#[derive(Default)]
struct Ready {
    pieces: Vec<Piece>,
    /// `[pieces, dim]`.
    means: Mean,
    /// Squares, `[pieces, dim]`; or the panels of each piece.
    squares: Vec<f64>,
    panels64: Packed<f64>,
    panels32: Packed<f32>,
}

#[derive(Clone, Copy)]
struct Piece {
    group: usize,
    rows: usize,
    /// Where its panels begin; pieces of one row have none.
    at: usize,
}

impl<'a> Covariance<'a> {
    /// Of no rows yet; `row` gives the row of the array at a position.
    pub fn new(
        kind: Kind,
        groups: Option<Groups<'a>>,
        names: Names<'a>,
        [rows, layers, dim]: [usize; 3],
        row: &'a (dyn Fn(usize) -> usize + Sync),
    ) -> Result<Self> {
        let n_groups = groups.map_or(1, |groups| groups.n);
        if let Some(groups) = groups
            && (groups.labels.len() != rows || groups.labels.iter().any(|label| *label as usize >= groups.n))
        {
            return Err(Error::invalid(format!("{} labels below {} for {rows} rows", groups.labels.len(), groups.n)));
        }
        if names.layers.len() != layers {
            return Err(Error::shape(format!("{} names for {layers} layers", names.layers.len())));
        }
        let each = layers * n_groups * dim;
        let second = if kind == Kind::Diagonal { &[layers, n_groups, dim][..] } else { &[layers, n_groups, dim, dim] };
        let sums = Sums { n: vec![0; n_groups], mean: Vec::new(), second: zeros(second, "moments")? };
        let wrong = Mutex::new((0, usize::MAX));
        let means = Mutex::new(Mean::new(each));
        let (sums, spare) = (Mutex::new((sums, Between::new())), Mutex::default());
        Ok(Covariance { kind, groups, names, dim, row, sums, means, wrong, spare })
    }

    /// What was summed.
    pub fn into_sums(self) -> Sums {
        let (mut sums, _) = self.sums.into_inner().expect("no panic while held");
        sums.mean = self.means.into_inner().expect("no panic while held").whole();
        sums
    }

    /// A piece of rows that follow one another.
    fn piece(&self, packed: &mut Ready, group: usize, values: &[f32]) {
        let (dim, n) = (self.dim, values.len() / self.dim);
        let first = packed.means.push(values, dim);
        let mean = packed.means.parts(first, dim);
        let at = match self.kind {
            Kind::Diagonal => {
                let at = packed.squares.len();
                packed.squares.resize(at + dim, 0.0);
                for row in values.chunks_exact(dim) {
                    for (((sum, x), near), rest) in packed.squares[at..].iter_mut().zip(row).zip(mean[0]).zip(mean[1]) {
                        let away = (f64::from(*x) - near) - rest;
                        *sum += away * away;
                    }
                }
                at
            }
            _ if n == 1 => 0,
            Kind::Full64 => packed.panels64.push(values, dim, mean),
            Kind::Full32 => packed.panels32.push(values, dim, mean),
        };
        packed.pieces.push(Piece { group, rows: n, at });
    }

    /// Counts rows that are not finite.
    fn find_wrong(&self, block: &Block<'_>) {
        let mut wrong = self.wrong.lock().expect("no panic while held");
        for (i, row) in block.values.chunks_exact(self.dim).enumerate() {
            if row.iter().any(|x| !x.is_finite()) {
                wrong.0 += 1;
                wrong.1 = wrong.1.min((self.row)(block.positions.get(i)));
            }
        }
    }

    /// Lends out what was summed. No lock is held meanwhile, for the work is for all threads.
    fn with_sums(&self, work: impl FnOnce(&mut Sums, &mut Between)) {
        let (mut sums, mut between) = std::mem::take(&mut *self.sums.lock().expect("no panic while held"));
        work(&mut sums, &mut between);
        *self.sums.lock().expect("no panic while held") = (sums, between);
    }

    /// Merges means and the sums of squares; what is to be multiplied then, in order.
    ///
    /// Each piece adds a row to the products of its group, for how far its mean is from that of the rows before.
    /// Such rows wait until they are worth a pass over the matrix. How long is a matter of the pieces alone: with
    /// the windows, which are cut by the threads, results would depend on these.
    fn merge(&self, sums: &mut Sums, between: &mut Between, layer: usize, packed: &[Ready]) -> Vec<Step> {
        let (dim, n_groups) = (self.dim, sums.n.len());
        let mut means = self.means.lock().expect("no panic while held");
        let mut steps = Vec::new();
        for (number, packed) in packed.iter().enumerate() {
            for (i, piece) in packed.pieces.iter().enumerate() {
                let at = layer * n_groups + piece.group;
                let before = sums.n[piece.group] as usize;
                let away = means.merge(at * dim, before, packed.means.parts(i * dim, dim), piece.rows);
                if self.kind == Kind::Diagonal {
                    let second = sums.second[at * dim..(at + 1) * dim].iter_mut();
                    let own = &packed.squares[piece.at..piece.at + dim];
                    second.zip(own).zip(away).for_each(|((sum, own), away)| *sum += own + away * away);
                } else {
                    if piece.rows > 1 {
                        steps.push(Step::Piece(number, i));
                    }
                    if before == 0 {
                        away.for_each(drop);
                    } else {
                        let rows = between.entry(piece.group).or_default();
                        rows.extend(away);
                        if rows.len() >= WORTH * dim {
                            steps.push(Step::Between(piece.group, std::mem::take(rows)));
                        }
                    }
                }
                sums.n[piece.group] += piece.rows as u64;
            }
        }
        steps
    }

    /// Adds products to a layer's matrices.
    fn multiply(&self, second: &mut [f64], layer: usize, packed: &[Ready], steps: &[Step]) {
        match self.kind {
            Kind::Diagonal => {}
            Kind::Full64 => self.multiply_as(second, layer, packed, steps, |packed| &packed.panels64),
            Kind::Full32 => self.multiply_as(second, layer, packed, steps, |packed| &packed.panels32),
        }
    }

    fn multiply_as<T: Panel>(
        &self,
        second: &mut [f64],
        layer: usize,
        packed: &[Ready],
        steps: &[Step],
        panels: impl Fn(&Ready) -> &Packed<T>,
    ) {
        let dim = self.dim;
        let pack = |step: &Step| match step {
            Step::Between(_, rows) => pack_wide(rows, dim),
            Step::Piece(..) => Vec::new(),
        };
        let extra: Vec<Vec<T>> = steps.iter().map(pack).collect();
        let mut of_groups: BTreeMap<usize, Vec<(usize, &[T])>> = BTreeMap::new();
        for (step, extra) in steps.iter().zip(&extra) {
            let (group, rows, own) = match step {
                Step::Between(group, rows) => (*group, rows.len() / dim, &extra[..]),
                Step::Piece(number, i) => {
                    let (packed, piece) = (&packed[*number], packed[*number].pieces[*i]);
                    (piece.group, piece.rows, panels(packed).get(piece.at, piece.rows, dim))
                }
            };
            of_groups.entry(group).or_default().push((rows, own));
        }
        let each = self.groups.map_or(1, |groups| groups.n) * dim * dim;
        let matrices = second[layer * each..(layer + 1) * each].chunks_exact_mut(dim * dim);
        let mut work = Vec::new();
        for (group, matrix) in matrices.enumerate() {
            if let Some(pieces) = of_groups.get(&group) {
                let threads = rayon::current_num_threads();
                work.extend(parts::<T>(matrix, [dim, dim], true, threads).into_iter().map(|part| (pieces, part)));
            }
        }
        work.into_par_iter().with_max_len(1).for_each(|(pieces, mut part)| {
            for (rows, panels) in pieces {
                part.add_products(*rows, [panels, panels], true);
            }
        });
    }
}

impl Gatherer for Covariance<'_> {
    fn pack(&self, block: &Block<'_>) -> Result<State> {
        let dim = self.dim;
        let mut packed = self.spare.lock().expect("no panic while held").pop().unwrap_or_default();
        packed.clear();
        if dim == 0 {
            return Ok(Box::new(packed));
        }
        if let Some(groups) = self.groups {
            let label = |i: usize| groups.labels[block.positions.get(i)];
            let mut order: Vec<usize> = (0..block.positions.len()).collect();
            order.sort_by_key(|i| label(*i));
            let mut rows = Vec::new();
            for of_group in order.chunk_by(|a, b| label(*a) == label(*b)) {
                for piece in evenly(of_group.len()) {
                    rows.clear();
                    let picked = of_group[piece].iter();
                    rows.extend(picked.flat_map(|i| &block.values[i * dim..(i + 1) * dim]));
                    self.piece(&mut packed, label(of_group[0]) as usize, &rows);
                }
            }
        } else {
            for piece in evenly(block.positions.len()) {
                self.piece(&mut packed, 0, &block.values[piece.start * dim..piece.end * dim]);
            }
        }
        if packed.means.rest.iter().any(|rest| !rest.is_finite()) {
            self.find_wrong(block);
            packed.clear();
        }
        Ok(Box::new(packed))
    }

    fn take(&self, layer: usize, packed: Vec<State>) -> Result<()> {
        if self.dim == 0 {
            return Ok(());
        }
        let packed: Vec<Ready> = packed.into_iter().map(take_state::<Ready>).collect();
        self.with_sums(|sums, between| {
            let steps = self.merge(sums, between, layer, &packed);
            self.multiply(&mut sums.second, layer, &packed, &steps);
        });
        self.spare.lock().expect("no panic while held").extend(packed);
        Ok(())
    }

    fn end(&self, layer: usize) -> Result<()> {
        let (count, first) = *self.wrong.lock().expect("no panic while held");
        if count > 0 {
            return Err(self.names.wrong_rows(layer, count, first));
        }
        let dim = self.dim;
        self.with_sums(|sums, between| {
            let each = sums.n.len() * dim * dim;
            if self.kind != Kind::Diagonal && each > 0 {
                let rest = std::mem::take(between).into_iter().map(|(group, rows)| Step::Between(group, rows));
                self.multiply(&mut sums.second, layer, &[], &rest.collect::<Vec<_>>());
                sums.second[layer * each..(layer + 1) * each].par_chunks_exact_mut(dim * dim).for_each(|matrix| {
                    mirror(matrix, dim);
                });
            }
            if layer + 1 < self.names.layers.len() {
                sums.n.fill(0);
            }
        });
        Ok(())
    }
}

impl Ready {
    fn clear(&mut self) {
        self.pieces.clear();
        self.means.clear();
        self.squares.clear();
        self.panels64.clear();
        self.panels32.clear();
    }
}

/// `n` rows in as few pieces as can be, of nearly the same length.
pub fn evenly(n: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let pieces = n.div_ceil(PIECE);
    (0..pieces).map(move |i| n * i / pieces..n * (i + 1) / pieces)
}

/// Copies what is above the diagonal to below it.
fn mirror(matrix: &mut [f64], dim: usize) {
    /// Columns that are read together, so that each line of memory is read once.
    const SIDE: usize = 64;
    for from in (0..dim).step_by(SIDE) {
        for row in from + 1..dim {
            let (above, below) = matrix.split_at_mut(row * dim);
            for column in from..row.min(from + SIDE) {
                below[column] = above[column * dim + row];
            }
        }
    }
}
