//! Scores as the ranking contract has them, and what it takes to bound them by quick float32 products.
//!
//! A score is a sum over layers, or the greatest of them. For each such ballot a query is scaled so that
//! the sum of its quick products is the score less what depends on the query or the row alone:
//!
//! | metric | query is scaled by | row's products by | of the query alone | of the row alone |
//! |---|---|---|---|---|
//! | dot | w | 1 | | |
//! | cos | w / norm of q | 1 / norm of x | | |
//! | l2 | 2 w | 1 | -w qq | -w xx |
//!
//! The error of the products is at most `error_bound` times sum |w q x|, which Cauchy and Schwarz bound by
//! the norms.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::score_scalar::{FEW, WIDE, error_bound};
use crate::kernels::{Scores, kernels};

/// How a row and a query are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The dot product.
    Dot,
    /// The cosine; 0 for a vector of zeros.
    Cos,
    /// The squared distance, negated.
    L2,
}

/// How the scores of several layers become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Their weighted sum.
    Sum,
    /// The greatest.
    Max,
}

impl Metric {
    /// `dot`, `cos` or `l2`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "dot" => Ok(Metric::Dot),
            "cos" => Ok(Metric::Cos),
            "l2" => Ok(Metric::L2),
            other => Err(Error::invalid(format!("metric '{other}': give 'dot', 'cos' or 'l2'"))),
        }
    }
}

impl Combine {
    /// `sum` or `max`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "sum" => Ok(Combine::Sum),
            "max" => Ok(Combine::Max),
            other => Err(Error::invalid(format!("combine '{other}': give 'sum' or 'max'"))),
        }
    }
}

/// Queries against some layers.
pub struct Queries<'a> {
    values: &'a [f32],
    n: usize,
    /// Whether there is one vector for each layer, or one for all.
    by_layer: bool,
    layers: usize,
    dim: usize,
    metric: Metric,
    combine: Combine,
    weights: Option<&'a [f64]>,
}

impl<'a> Queries<'a> {
    /// Norms of scaled queries between which quick scores keep their bound.
    const NORMAL: Range<f64> = 1e-12..1e15;
    /// The greatest weight for which they do.
    const HEAVY: f64 = 100.0;

    /// Queries `[n, 1 or layers, dim]`.
    pub fn new(
        values: &'a [f32],
        shape: [usize; 3],
        source: [usize; 3],
        metric: Metric,
        combine: Combine,
        weights: Option<&'a [f64]>,
    ) -> Result<Self> {
        let [n, across, dim] = shape;
        let [_, layers, source_dim] = source;
        if values.len() != n * across * dim || dim != source_dim || (across != 1 && across != layers) {
            return Err(Error::shape(format!(
                "queries of {shape:?} for {layers} layers of dim {source_dim}: expected [n, 1 or {layers}, {source_dim}]"
            )));
        }
        if dim == 0 || layers == 0 {
            return Err(Error::shape("nothing to compare: no layers, or a dim of 0"));
        }
        if let Some(weights) = weights {
            if combine == Combine::Max {
                return Err(Error::invalid("weights go with combine='sum'"));
            }
            if weights.len() != layers || weights.iter().any(|w| !w.is_finite()) {
                return Err(Error::invalid(format!("weights: expected {layers} finite numbers, one for each layer")));
            }
        }
        if let Some(i) = values.iter().position(|v| v.is_nan()) {
            return Err(Error::invalid(format!("query {} holds a NaN", i / (across * dim))));
        }
        Ok(Queries { values, n, by_layer: across > 1, layers, dim, metric, combine, weights })
    }

    /// How many.
    pub fn n(&self) -> usize {
        self.n
    }

    fn query(&self, j: usize, layer: usize) -> &'a [f32] {
        let at = if self.by_layer { j * self.layers + layer } else { j } * self.dim;
        &self.values[at..at + self.dim]
    }

    fn weight(&self, layer: usize) -> f64 {
        self.weights.map_or(1.0, |weights| weights[layer])
    }

    /// Some of the queries, made ready.
    pub fn prepare(&'a self, range: Range<usize>) -> Prepared<'a> {
        let dot = kernels().scores.dot;
        let n = range.len();
        let squares = range.clone().flat_map(|j| (0..self.layers).map(move |l| (j, l)));
        let squares: Vec<f64> = squares.map(|(j, l)| dot(self.query(j, l), self.query(j, l))).collect();
        let scale = |j: usize, layer: usize| match (self.metric, squares[j * self.layers + layer]) {
            (Metric::Dot, _) => self.weight(layer),
            (Metric::L2, _) => 2.0 * self.weight(layer),
            (Metric::Cos, 0.0) => 0.0,
            (Metric::Cos, square) => self.weight(layer) / square.sqrt(),
        };
        // One layer's scaled queries serve all, where nothing tells them apart.
        let kinds = if self.by_layer || self.weights.is_some() { self.layers } else { 1 };
        let packs = (0..kinds).map(|layer| self.pack(&range, layer, |j| scale(j, layer))).collect();
        let ballots: Vec<Range<usize>> = match self.combine {
            Combine::Sum => std::iter::once(0..self.layers).collect(),
            Combine::Max => (0..self.layers).map(|l| l..l + 1).collect(),
        };
        let ballots = ballots.into_iter().map(|layers| self.ballot(layers, n, &squares, &scale)).collect();
        Prepared { queries: self, first: range.start, n, packs, squares, ballots }
    }

    /// Scaled queries of a layer: in panels, `[dim, 16]` each, or as they are when they are few.
    fn pack(&self, range: &Range<usize>, layer: usize, scale: impl Fn(usize) -> f64) -> Vec<f32> {
        let n = range.len();
        let scaled = |j: usize| {
            let scale = scale(j);
            self.query(range.start + j, layer).iter().map(move |q| (f64::from(*q) * scale) as f32)
        };
        if n <= FEW {
            return (0..n).flat_map(scaled).collect();
        }
        let mut packed = vec![0.0; n.div_ceil(WIDE) * WIDE * self.dim];
        for j in 0..n {
            let panel = &mut packed[j / WIDE * WIDE * self.dim..];
            for (slot, q) in panel[j % WIDE..].iter_mut().step_by(WIDE).zip(scaled(j)) {
                *slot = q;
            }
        }
        packed
    }

    fn ballot(&self, layers: Range<usize>, n: usize, squares: &[f64], scale: &dyn Fn(usize, usize) -> f64) -> Ballot {
        let bound = error_bound(self.dim) + (2 * layers.len() + 16) as f64 * f64::from(f32::EPSILON);
        let weights: Vec<f64> = layers.clone().map(|l| self.weight(l)).collect();
        let heaviest = weights.iter().fold(0f64, |most, w| most.max(w.abs()));
        let mut slopes = vec![0f32; n.div_ceil(WIDE) * WIDE];
        let mut terms = Vec::with_capacity(n);
        for (j, slope) in (0..n).zip(&mut slopes) {
            let of = |l: usize| squares[j * self.layers + l];
            // Norms of the scaled query.
            let norms: Vec<f64> = layers.clone().map(|l| scale(j, l).abs() * of(l).sqrt()).collect();
            let hard = heaviest > Self::HEAVY || norms.iter().any(|n| *n != 0.0 && !Self::NORMAL.contains(n));
            let norm = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
            let (shift, slack) = match self.metric {
                Metric::Dot => (0.0, 0.0),
                Metric::Cos => (0.0, 2.0 * bound * weights.iter().map(|w| w.abs()).sum::<f64>()),
                Metric::L2 => {
                    let terms = || layers.clone().map(|l| self.weight(l) * of(l));
                    (terms().sum::<f64>(), bound * terms().map(f64::abs).sum::<f64>())
                }
            };
            if self.metric != Metric::Cos {
                *slope = (-1.001 * bound * norm) as f32;
            }
            terms.push(Term { shift, slack, hard });
        }
        Ballot { metric: self.metric, layers, weights, bound, terms, slopes }
    }
}

/// What does not depend on the row, for one query.
struct Term {
    /// What is to be added to a score to compare it with the sum of products.
    shift: f64,
    /// How far that may be off, whatever the row.
    slack: f64,
    /// The bound does not hold.
    hard: bool,
}

/// The sum of some layers' scores.
pub struct Ballot {
    metric: Metric,
    /// The layers.
    pub layers: Range<usize>,
    weights: Vec<f64>,
    bound: f64,
    terms: Vec<Term>,
    slopes: Vec<f32>,
}

impl Ballot {
    /// Whether products are divided by the row's norm.
    pub fn divides(&self) -> bool {
        self.metric == Metric::Cos
    }

    /// What a sum of products must reach for a score of `reached`, whatever the row.
    pub fn base(&self, j: usize, reached: f32) -> f32 {
        let Term { shift, slack, hard } = self.terms[j];
        if hard || reached == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        // A score that is rounded up to it has reached it too.
        let reached = f64::from(reached.min(f32::MAX));
        let roundings = 4.0 * f64::from(f32::EPSILON) * (reached.abs() + shift.abs());
        (reached + shift - slack - roundings - 1e-38) as f32
    }

    /// How much less it must reach for each unit of the row's norm, for a panel of queries.
    pub fn slopes(&self, panel: usize) -> &[f32; WIDE] {
        &self.slopes.as_chunks::<WIDE>().0[panel]
    }

    /// Biases and norms of rows, from the squares of their norms by layer.
    pub fn sides(&self, squares: &[Vec<f32>], dim: usize, biases: &mut [f32], norms: &mut [f32]) {
        biases.fill(0.0);
        norms.fill(0.0);
        if self.metric == Metric::Cos {
            return;
        }
        for (l, w) in self.layers.clone().zip(&self.weights) {
            let by = if self.metric == Metric::L2 { (w - 3.0 * self.bound * w.abs()) as f32 } else { 0.0 };
            for ((square, bias), norm) in squares[l].iter().zip(&mut *biases).zip(&mut *norms) {
                *bias += by * square;
                *norm += square;
            }
        }
        // What underflowed may have been this much.
        let lost = ((self.layers.len() * dim) as f64 * 1.5e-45) as f32;
        let more = (1.0 + 3.0 * self.bound) as f32;
        norms.iter_mut().for_each(|norm| *norm = (*norm * more + lost).sqrt() * 1.000_001);
    }
}

/// Some queries, ready to be scored.
pub struct Prepared<'a> {
    queries: &'a Queries<'a>,
    first: usize,
    /// How many.
    pub n: usize,
    packs: Vec<Vec<f32>>,
    /// Of each query and layer.
    squares: Vec<f64>,
    /// The sums of which the greatest is the score.
    pub ballots: Vec<Ballot>,
}

impl Prepared<'_> {
    /// Elements of a vector.
    pub fn dim(&self) -> usize {
        self.queries.dim
    }

    /// Whether they begin with the first of all.
    pub fn are_first(&self) -> bool {
        self.first == 0
    }

    /// Whether there are few enough for no panels.
    pub fn are_few(&self) -> bool {
        self.n <= FEW
    }

    /// Scaled queries of a layer: a panel, or all of a few.
    pub fn packed(&self, layer: usize, panel: usize) -> &[f32] {
        let pack = &self.packs[layer.min(self.packs.len() - 1)];
        if self.are_few() {
            return pack;
        }
        let length = WIDE * self.queries.dim;
        &pack[panel * length..(panel + 1) * length]
    }

    /// The score of a row, given by layers, and the layer that decided it.
    pub fn exact(&self, j: usize, row: &[&[f32]], scores: &Scores) -> (f64, u32) {
        let Queries { layers, metric, combine, .. } = *self.queries;
        let of = |l: usize| {
            let (q, x) = (self.queries.query(self.first + j, l), row[l]);
            match metric {
                Metric::Dot => (scores.dot)(q, x),
                Metric::L2 => -(scores.square_distance)(q, x),
                Metric::Cos => {
                    let (qq, xx) = (self.squares[j * layers + l], (scores.dot)(x, x));
                    if qq == 0.0 || xx == 0.0 { 0.0 } else { (scores.dot)(q, x) / (qq.sqrt() * xx.sqrt()) }
                }
            }
        };
        match combine {
            Combine::Sum => {
                let term = |l: usize| self.queries.weights.map_or_else(|| of(l), |weights| weights[l] * of(l));
                ((1..layers).fold(term(0), |sum, l| sum + term(l)), 0)
            }
            Combine::Max => (1..layers).fold((of(0), 0), |(best, layer), l| {
                let score = of(l);
                if score > best || score.is_nan() { (score, l as u32) } else { (best, layer) }
            }),
        }
    }
}
