//! Rows packed in panels, and the products of their columns, added to matrices.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::kernels::products_scalar::{Element, WIDE32, WIDE64};

/// An element of panels.
pub trait Panel: Element + Send + Sync {
    /// Columns of a panel.
    const WIDE: usize;

    /// Packs a panel: of rows of `dim` the columns `from` on, less their means.
    fn center(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [Self]);

    /// Adds the products of the columns of two panels to rows of a matrix, from a column on.
    fn add_square(a: &[Self], b: &[Self], size: [usize; 2], out: &mut [&mut [f64]], at: usize);
}

impl Panel for f64 {
    const WIDE: usize = WIDE64;

    fn center(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f64]) {
        (kernels().products.center64)(rows, dim, from, mean, out);
    }

    fn add_square(a: &[f64], b: &[f64], size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
        let mut sums = [[0.0; WIDE64]; WIDE64];
        (kernels().products.square64)(a, b, &mut sums);
        (kernels().products.add64)(&sums, size, out, at);
    }
}

impl Panel for f32 {
    const WIDE: usize = WIDE32;

    fn center(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f32]) {
        (kernels().products.center32)(rows, dim, from, mean, out);
    }

    fn add_square(a: &[f32], b: &[f32], size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
        let mut sums = [[0.0; WIDE32]; WIDE32];
        (kernels().products.square32)(a, b, &mut sums);
        (kernels().products.add32)(&sums, size, out, at);
    }
}

/// Columns of the panels of rows of `dim`.
pub fn padded<T: Panel>(dim: usize) -> usize {
    dim.next_multiple_of(T::WIDE)
}

/// A block of a matrix: some panels of its rows by some of its columns. One thread adds to it at a time,
/// and what it needs of the packed rows stays in that thread's cache.
pub struct Part<'a> {
    /// Panels of the rows, and of the columns.
    pub panels: [Range<usize>; 2],
    /// Its rows.
    rows: Vec<&'a mut [f64]>,
}

/// A matrix of so many rows and columns in blocks, a few for each thread; where it is symmetric, those on and
/// above the diagonal alone.
pub fn parts<T: Panel>(
    matrix: &mut [f64],
    [rows, columns]: [usize; 2],
    symmetric: bool,
    threads: usize,
) -> Vec<Part<'_>> {
    let panels = [rows, columns].map(|dims| dims.div_ceil(T::WIDE));
    // As square as can be, and as many as it takes for even shares.
    let mut side = 1;
    while side * (side + 1) < 6 * threads {
        side += 1;
    }
    let cuts = panels.map(|panels| {
        let side = side.min(panels).max(1);
        (0..side).map(|i| panels * i / side..panels * (i + 1) / side).collect::<Vec<Range<usize>>>()
    });
    let mut out: Vec<Part<'_>> = Vec::new();
    let mut matrix = matrix.chunks_exact_mut(columns.max(1));
    for (i, tall) in cuts[0].iter().enumerate() {
        let first = if symmetric { i } else { 0 };
        let at = out.len();
        out.extend(cuts[1][first..].iter().map(|wide| Part { panels: [tall.clone(), wide.clone()], rows: Vec::new() }));
        for row in matrix.by_ref().take((tall.end * T::WIDE).min(rows) - tall.start * T::WIDE) {
            let mut rest = &mut row[cuts[1][first].start * T::WIDE..];
            for part in &mut out[at..] {
                let wide = part.panels[1].len() * T::WIDE;
                let (mine, others) = rest.split_at_mut(wide.min(rest.len()));
                part.rows.push(mine);
                rest = others;
            }
        }
    }
    out
}

impl Part<'_> {
    /// Adds the products of packed rows of one side with those of the other.
    pub fn add_products<T: Panel>(&mut self, rows: usize, [first, second]: [&[T]; 2], symmetric: bool) {
        let panel = rows * T::WIDE;
        let [tall, wide] = &self.panels;
        for (i, out) in tall.clone().zip(self.rows.chunks_mut(T::WIDE)) {
            let a = &first[i * panel..(i + 1) * panel];
            let from = if symmetric { wide.start.max(i) } else { wide.start };
            for j in from..wide.end {
                let at = (j - wide.start) * T::WIDE;
                let size = [out.len(), T::WIDE.min(out[0].len() - at)];
                T::add_square(a, &second[j * panel..(j + 1) * panel], size, out, at);
            }
        }
    }
}

/// Panels, one behind the other; what is there is written over when it is filled again.
#[derive(Default)]
pub struct Packed<T> {
    data: Vec<T>,
    used: usize,
}

impl<T: Panel> Packed<T> {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Packs rows of `dim`, less their mean; where they begin.
    pub fn push(&mut self, rows: &[f32], dim: usize, mean: [&[f64]; 2]) -> usize {
        let (n, at) = (rows.len() / dim, self.used);
        self.used = at + n * padded::<T>(dim);
        if self.data.len() < self.used {
            self.data.resize(self.used, T::default());
        }
        for (p, panel) in self.data[at..self.used].chunks_exact_mut(n * T::WIDE).enumerate() {
            T::center(rows, dim, p * T::WIDE, mean, panel);
        }
        at
    }

    /// Those of so many rows that begin there.
    pub fn get(&self, at: usize, rows: usize, dim: usize) -> &[T] {
        &self.data[at..at + rows * padded::<T>(dim)]
    }
}

/// The means of some rows, in two parts: values near them that float32 holds exactly, and what these lack.
/// So a mean is known to the last digits of how far rows are from it, however far from zero they are.
#[derive(Clone, Debug, Default)]
pub struct Mean {
    /// The values near them.
    pub near: Vec<f64>,
    /// The rest.
    pub rest: Vec<f64>,
}

impl Mean {
    /// Zeros.
    pub fn new(n: usize) -> Self {
        Mean { near: vec![0.0; n], rest: vec![0.0; n] }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.near.clear();
        self.rest.clear();
    }

    /// Puts the mean of rows of `dim` behind what is there; where it begins.
    pub fn push(&mut self, rows: &[f32], dim: usize) -> usize {
        let at = self.near.len();
        self.near.extend(rows[..dim].iter().map(|x| f64::from(*x)));
        self.rest.resize(at + dim, 0.0);
        (kernels().products.sum_away)(rows, &self.near[at..], &mut self.rest[at..]);
        let n = (rows.len() / dim) as f64;
        self.rest[at..].iter_mut().for_each(|sum| *sum /= n);
        at
    }

    /// The parts of `dim` means from one on.
    pub fn parts(&self, at: usize, dim: usize) -> [&[f64]; 2] {
        [&self.near[at..at + dim], &self.rest[at..at + dim]]
    }

    /// Takes in the means of `n` more rows, `more`, into means from one on, which are those of
    /// `before` rows; and gives, for each, the value of one more row whose products stand for what lies between.
    pub fn merge(&mut self, at: usize, before: usize, more: [&[f64]; 2], n: usize) -> impl Iterator<Item = f64> {
        let share = n as f64 / (before + n) as f64;
        let by = (before as f64 * share).sqrt();
        let dim = more[0].len();
        let own = self.near[at..at + dim].iter_mut().zip(&mut self.rest[at..at + dim]);
        own.zip(more[0].iter().zip(more[1])).map(move |((near, rest), (more_near, more_rest))| {
            let away = (more_near - *near) + (more_rest - *rest);
            if share == 1.0 {
                (*near, *rest) = (*more_near, *more_rest);
            } else {
                *rest += away * share;
            }
            by * away
        })
    }

    /// As numbers.
    pub fn whole(&self) -> Vec<f64> {
        self.near.iter().zip(&self.rest).map(|(near, rest)| near + rest).collect()
    }
}

/// As many zeros as the product of these extents, which a file may have named. An error where there is no memory
/// for them.
pub fn zeros(extents: &[usize], what: &str) -> Result<Vec<f64>> {
    let mut zeros = Vec::new();
    match extents.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent)) {
        Some(n) if zeros.try_reserve_exact(n).is_ok() => {
            zeros.resize(n, 0.0);
            Ok(zeros)
        }
        _ => {
            let message = format!("no memory for {what} of {extents:?} float64: select fewer layers");
            Err(Error::invalid(message))
        }
    }
}

/// Rows of `dim` as panels.
pub fn pack_wide<T: Panel>(rows: &[f64], dim: usize) -> Vec<T> {
    let n = rows.len() / dim;
    let mut panels = vec![T::default(); n * padded::<T>(dim)];
    for (i, row) in rows.chunks_exact(dim).enumerate() {
        for (d, x) in row.iter().enumerate() {
            panels[(d / T::WIDE * n + i) * T::WIDE + d % T::WIDE] = T::of(*x);
        }
    }
    panels
}
