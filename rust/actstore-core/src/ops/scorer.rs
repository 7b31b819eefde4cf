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
//! Where rows stand for what a map makes of them ([`crate::ops::fold`]), q is the query that took the map,
//! its products are less by what the query has with the map's mean, and norms are those of what is meant.
//!
//! The error of the products is at most `error_bound` times sum |w q x|, which Cauchy and Schwarz bound by
//! the norms.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::Positions;
use crate::error::{Error, Result};
use crate::kernels::score_scalar::{FEW, WIDE, error_bound};
use crate::kernels::{Scores, kernels};
use crate::ops::fold::{Fold, Folded, Maps, fold};

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
    /// Whether scores are distances, negated.
    distances: bool,
    fold: Option<Fold<'a>>,
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
        let by_layer = across > 1;
        Ok(Queries { values, n, by_layer, layers, dim, metric, combine, weights, distances: false, fold: None })
    }

    /// Scores of l2 become distances that are not squared, those of cos what they lack of 1 (in each layer);
    /// both negated.
    pub fn as_distances(mut self) -> Self {
        self.distances = true;
        self
    }

    /// Takes rows for what a map makes of them.
    pub fn folded(mut self, fold: Fold<'a>, rows: usize) -> Result<Self> {
        let needed = if self.metric == Metric::Dot { 0 } else { rows * self.layers };
        if fold.norms.len() < needed {
            return Err(Error::shape(format!("{} norms for {rows} rows of {} layers", fold.norms.len(), self.layers)));
        }
        self.fold = Some(fold);
        Ok(self)
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
        let n = range.len();
        let pairs: Vec<(usize, usize)> = range.clone().flat_map(|j| (0..self.layers).map(move |l| (j, l))).collect();
        let folded: Vec<Folded> = match &self.fold {
            None => Vec::new(),
            Some(own) => self.fold_all(&own.maps, &range),
        };
        let dot = kernels().scores.dot;
        let squares: Vec<f64> = if self.fold.is_some() {
            folded.iter().map(|folded| folded.square).collect()
        } else {
            pairs.iter().map(|(j, l)| dot(self.query(*j, *l), self.query(*j, *l))).collect()
        };
        let scale = |j: usize, layer: usize| match (self.metric, squares[j * self.layers + layer]) {
            (Metric::Dot, _) => self.weight(layer),
            (Metric::L2, _) => 2.0 * self.weight(layer),
            (Metric::Cos, 0.0) => 0.0,
            (Metric::Cos, square) => self.weight(layer) / square.sqrt(),
        };
        // One layer's scaled queries serve all, where nothing tells them apart.
        let alike = !self.by_layer && self.weights.is_none() && self.fold.is_none();
        let kinds = if alike { 1 } else { self.layers };
        let packs = (0..kinds).map(|layer| {
            let scaled = |j: usize| -> Box<dyn Iterator<Item = f32> + '_> {
                let scale = scale(j, layer);
                match folded.get(j * self.layers + layer) {
                    Some(folded) => Box::new(folded.vector.iter().map(move |q| (q * scale) as f32)),
                    None => {
                        let query = self.query(range.start + j, layer);
                        Box::new(query.iter().map(move |q| (f64::from(*q) * scale) as f32))
                    }
                }
            };
            self.pack(n, scaled)
        });
        let packs = packs.collect();
        let centers = (0..if folded.is_empty() { 0 } else { self.layers }).map(|layer| {
            let mut centers = vec![0f32; n.next_multiple_of(WIDE)];
            for (j, center) in centers.iter_mut().enumerate().take(n) {
                *center = (folded[j * self.layers + layer].center * scale(j, layer)) as f32;
            }
            centers
        });
        let centers = centers.collect();
        let means = folded.iter().take(self.layers).map(|folded| folded.mean_norm as f32 * 1.000_001).collect();
        let ballots: Vec<Range<usize>> = match self.combine {
            Combine::Sum => std::iter::once(0..self.layers).collect(),
            Combine::Max => (0..self.layers).map(|l| l..l + 1).collect(),
        };
        let own: Vec<f64> =
            if folded.is_empty() { squares.clone() } else { folded.iter().map(|folded| folded.own).collect() };
        let of = OfQueries { squares: &squares, own: &own, scale: &scale };
        let ballots = ballots.into_iter().map(|layers| self.ballot(layers, n, &of)).collect();
        Prepared { queries: self, first: range.start, n, packs, squares, folded, centers, means, ballots }
    }

    /// All of the queries taken through the maps, by query, then by layer.
    fn fold_all(&self, maps: &Maps<'_>, range: &Range<usize>) -> Vec<Folded> {
        /// Queries that go together: each row of a map is fetched once for all of them.
        const TOGETHER: usize = 8;
        let starts: Vec<usize> = range.clone().step_by(TOGETHER).collect();
        let of_some = |start: usize| {
            let some = start..range.end.min(start + TOGETHER);
            let by_layer: Vec<Vec<Folded>> = (0..self.layers)
                .map(|l| fold(maps, l, &some.clone().map(|j| self.query(j, l)).collect::<Vec<_>>()))
                .collect();
            let mut by_layer: Vec<_> = by_layer.into_iter().map(Vec::into_iter).collect();
            some.flat_map(|_| by_layer.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        starts.into_par_iter().flat_map_iter(of_some).collect()
    }

    /// Scaled queries of a layer: in panels, `[dim, 16]` each, or as they are when they are few.
    fn pack<'b>(&self, n: usize, scaled: impl Fn(usize) -> Box<dyn Iterator<Item = f32> + 'b>) -> Vec<f32> {
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

    fn ballot(&self, layers: Range<usize>, n: usize, queries: &OfQueries<'_>) -> Ballot {
        let bound = error_bound(self.dim) + (2 * layers.len() + 16) as f64 * f64::from(f32::EPSILON);
        let weights: Vec<f64> = layers.clone().map(|l| self.weight(l)).collect();
        let heaviest = weights.iter().fold(0f64, |most, w| most.max(w.abs()));
        let mut slopes = vec![0f32; n.div_ceil(WIDE) * WIDE];
        let mut terms = Vec::with_capacity(n);
        for (j, slope) in (0..n).zip(&mut slopes) {
            let at = |l: usize| j * self.layers + l;
            let of = |l: usize| queries.squares[at(l)];
            // Norms of the scaled query.
            let norms = layers.clone().map(|l| (queries.scale)(j, l).abs() * queries.own[at(l)].sqrt());
            let norms: Vec<f64> = norms.collect();
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
            if self.metric != Metric::Cos || self.fold.is_some() {
                *slope = (-1.001 * bound * norm) as f32;
            }
            terms.push(Term { shift, slack, hard });
        }
        let (metric, distances, folded) = (self.metric, self.distances, self.fold.is_some());
        Ballot { metric, distances, folded, layers, weights, bound, terms, slopes }
    }
}

/// What ballots are made of, by query and layer.
struct OfQueries<'a> {
    /// Squares of norms: of the query, or of what it is mapped to.
    squares: &'a [f64],
    /// Squares of norms of what is multiplied with rows.
    own: &'a [f64],
    scale: &'a dyn Fn(usize, usize) -> f64,
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
    distances: bool,
    folded: bool,
    /// The layers.
    pub layers: Range<usize>,
    weights: Vec<f64>,
    bound: f64,
    terms: Vec<Term>,
    slopes: Vec<f32>,
}

impl Ballot {
    /// Whether it is the products of one layer as they are.
    pub fn is_plain(&self) -> bool {
        self.layers.len() == 1 && !self.divides() && !self.folded
    }

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
        let reached = match self.metric {
            _ if !self.distances => reached,
            Metric::L2 => -reached * reached * (1.0 + 4.0 * f64::from(f32::EPSILON)),
            Metric::Cos => reached + self.layers.len() as f64,
            Metric::Dot => reached,
        };
        let roundings = 4.0 * f64::from(f32::EPSILON) * (reached.abs() + shift.abs());
        (reached + shift - slack - roundings - 1e-38) as f32
    }

    /// How much less it must reach for each unit of the row's norm, for a panel of queries.
    pub fn slopes(&self, panel: usize) -> &[f32; WIDE] {
        &self.slopes.as_chunks::<WIDE>().0[panel]
    }

    /// What is to be taken from a sum of products less its row's bias to come near the score, how near, for a
    /// row of that norm and blur, and whether that holds.
    pub fn near(&self, j: usize, norm: f32, blur: f32) -> (f64, f64, bool) {
        let Term { shift, slack, hard } = self.terms[j];
        let own = f64::from(-self.slopes[j]) * f64::from(norm) + f64::from(blur);
        let shift = if self.distances && self.metric == Metric::Cos { shift + self.layers.len() as f64 } else { shift };
        (shift, own + slack + 8.0 * f64::from(f32::EPSILON) * shift.abs() + 1e-37, hard)
    }

    /// Biases and norms of rows, and how far the biases are off at most.
    pub fn sides(&self, rows: &RowNorms<'_>, dim: usize, biases: &mut [f32], norms: &mut [f32], blurs: &mut [f32]) {
        biases.fill(0.0);
        blurs.fill(0.0);
        norms.fill(0.0);
        if self.metric == Metric::Cos && !self.folded {
            return;
        }
        for (l, w) in self.layers.clone().zip(&self.weights) {
            if self.metric == Metric::L2 {
                let by = (w - 3.0 * self.bound * w.abs()) as f32;
                let off = (8.0 * self.bound * w.abs()) as f32;
                for ((bias, blur), square) in biases.iter_mut().zip(&mut *blurs).zip(&rows.meant[l]) {
                    *bias += by * square;
                    *blur += off * square;
                }
            }
            if !self.folded {
                norms.iter_mut().zip(&rows.squares[l]).for_each(|(norm, square)| *norm += square);
                continue;
            }
            // The mean is taken away after the product, and rounds as it does.
            let (mean, divides) = (rows.means[l], self.divides());
            for ((norm, square), inverse) in norms.iter_mut().zip(&rows.squares[l]).zip(&rows.inverses[l]) {
                let own = (square.sqrt() * 1.000_01 + mean) * if divides { *inverse } else { 1.0 };
                *norm += own * own;
            }
        }
        // What underflowed may have been this much.
        let lost = ((self.layers.len() * dim) as f64 * 1.5e-45) as f32;
        let more = (1.0 + 3.0 * self.bound) as f32;
        norms.iter_mut().for_each(|norm| *norm = (*norm * more + lost).sqrt() * 1.000_001);
    }
}

/// What is known of some rows, by layer.
pub struct RowNorms<'a> {
    /// Squares of their norms.
    pub squares: &'a [Vec<f32>],
    /// Squares of the norms of what they stand for.
    pub meant: &'a [Vec<f32>],
    /// One over these norms.
    pub inverses: &'a [Vec<f32>],
    /// The norms of the means that their maps take away.
    pub means: &'a [f32],
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
    /// The same, taken through maps, where there are any.
    folded: Vec<Folded>,
    /// Of each layer, what a query's products are to be less.
    centers: Vec<Vec<f32>>,
    /// Of each layer, the norm of what its map takes away.
    pub means: Vec<f32>,
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

    /// Scaled queries of a layer: some panels, or all of a few.
    pub fn packed(&self, layer: usize, panels: Range<usize>) -> &[f32] {
        let pack = &self.packs[layer.min(self.packs.len() - 1)];
        if self.are_few() {
            return pack;
        }
        let length = WIDE * self.queries.dim;
        &pack[panels.start * length..panels.end * length]
    }

    /// What the products of a layer with a panel of queries are to be less, where rows are mapped.
    pub fn centers(&self, layer: usize, panel: usize) -> Option<&[f32; WIDE]> {
        self.centers.get(layer).map(|centers| &centers.as_chunks::<WIDE>().0[panel])
    }

    /// The norm of what a row at a position stands for in a layer, where rows are mapped.
    pub fn meant(&self, position: usize, layer: usize) -> Option<f64> {
        let fold = self.queries.fold.as_ref()?;
        fold.norms.get(position * self.queries.layers + layer).copied()
    }

    /// The squares of these norms of rows at some positions, in float32.
    pub fn squares_meant(&self, positions: Positions<'_>, layer: usize, out: &mut [f32]) {
        let norms = self.queries.fold.as_ref().map_or(&[][..], |fold| fold.norms);
        let square = |norm: f64| (norm * norm) as f32;
        match positions {
            Positions::Run(first, n) => {
                let own = norms[first * self.queries.layers..(first + n) * self.queries.layers].iter();
                let own = own.skip(layer).step_by(self.queries.layers);
                out.iter_mut().zip(own).for_each(|(out, norm)| *out = square(*norm));
            }
            Positions::List(list) => {
                for (out, position) in out.iter_mut().zip(list) {
                    *out = square(norms[position * self.queries.layers + layer]);
                }
            }
        }
    }

    /// Whether rows are mapped, and norms needed.
    pub fn has_norms(&self) -> bool {
        self.queries.fold.is_some() && self.queries.metric != Metric::Dot
    }

    /// The score of a row, given by layers, and the layer that decided it.
    pub fn exact(&self, j: usize, position: usize, row: &[&[f32]], scores: &Scores) -> (f64, u32) {
        let Queries { layers, metric, combine, distances, .. } = *self.queries;
        let of = |l: usize| {
            if let Some(folded) = self.folded.get(j * layers + l) {
                return self.of_folded(folded, position, l, row[l], scores);
            }
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
        let (score, layer) = match combine {
            Combine::Sum => {
                let term = |l: usize| self.queries.weights.map_or_else(|| of(l), |weights| weights[l] * of(l));
                ((1..layers).fold(term(0), |sum, l| sum + term(l)), 0)
            }
            Combine::Max => (1..layers).fold((of(0), 0), |(best, layer), l| {
                let score = of(l);
                if score > best || score.is_nan() { (score, l as u32) } else { (best, layer) }
            }),
        };
        let score = match metric {
            Metric::L2 if distances => -(-score).sqrt(),
            Metric::Cos if distances && combine == Combine::Sum => score - layers as f64,
            Metric::Cos if distances => score - 1.0,
            _ => score,
        };
        (score, layer)
    }

    fn of_folded(&self, folded: &Folded, position: usize, layer: usize, row: &[f32], scores: &Scores) -> f64 {
        let wide: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let product = (scores.dot64)(&folded.vector, &wide) - folded.center;
        let norm = self.meant(position, layer).unwrap_or(0.0);
        match self.queries.metric {
            Metric::Dot => product,
            // Equal vectors may come out a rounding apart.
            Metric::L2 => -(folded.square + norm * norm - 2.0 * product).max(0.0),
            Metric::Cos if folded.square == 0.0 || norm == 0.0 => 0.0,
            Metric::Cos => product / (folded.square.sqrt() * norm),
        }
    }
}
