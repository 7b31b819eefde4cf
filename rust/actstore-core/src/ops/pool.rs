//! One row for each example: the mean of its rows, their maximum, the first of them and the like.
//!
//! Sums are float64, in the order of the rows, and are rounded once. The fold of an example that is cut
//! by a run of the scan is the sum of its parts' sums; runs do not depend on threads.

use std::sync::Mutex;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::ops::scan::Reducer;
use crate::ops::sequence::{ByExample, Examples, Fold, Run};

/// What is made of an example's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Their sum over their number.
    Mean,
    /// The largest value of each dim; NaN where there is one.
    Max,
    /// The first.
    First,
    /// The last.
    Last,
    /// The mean with the weights 1, 2, 3 and so on, by the place in the example.
    Weighted,
    /// Their sum.
    Sum,
    /// The sum with those weights.
    WeightedSum,
}

impl Kind {
    /// Every kind and its name.
    pub const ALL: [(Kind, &'static str); 7] = [
        (Kind::Mean, "mean"),
        (Kind::Max, "max"),
        (Kind::First, "first"),
        (Kind::Last, "last"),
        (Kind::Weighted, "weighted"),
        (Kind::Sum, "sum"),
        (Kind::WeightedSum, "weighted_sum"),
    ];

    /// The kind of a name.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            Error::invalid(format!("no pooling '{name}': there are {}", names.join(", ")))
        })
    }
}

/// Where pooled rows go: `[examples, layers, dim]` of float32 or float64, in C order.
pub struct Output<'a> {
    /// Those of each example. Threads write to different layers of one.
    rows: Vec<Mutex<&'a mut [u8]>>,
    dtype: Dtype,
    dim: usize,
}

impl<'a> Output<'a> {
    /// Into `bytes`.
    pub fn new(bytes: &'a mut [u8], dtype: Dtype, shape: [usize; 3]) -> Result<Self> {
        let [examples, layers, dim] = shape;
        if !matches!(dtype, Dtype::Float32 | Dtype::Float64) {
            return Err(Error::invalid(format!("pooled rows are float32 or float64, not {}", dtype.name())));
        }
        let each = layers * dim * dtype.size();
        if bytes.len() != examples * each {
            return Err(Error::shape(format!("{} bytes are not {shape:?} of {}", bytes.len(), dtype.name())));
        }
        let rows = if each == 0 { Vec::new() } else { bytes.chunks_exact_mut(each).map(Mutex::new).collect() };
        Ok(Output { rows, dtype, dim })
    }

    /// Writes a row, each value rounded once.
    fn write(&self, example: usize, layer: usize, values: impl Iterator<Item = f64>) {
        let Some(rows) = self.rows.get(example) else { return };
        let mut rows = rows.lock().expect("no panic while held");
        let size = self.dim * self.dtype.size();
        let row = &mut rows[layer * size..(layer + 1) * size];
        if self.dtype == Dtype::Float64 {
            row.as_chunks_mut::<8>().0.iter_mut().zip(values).for_each(|(out, v)| *out = v.to_le_bytes());
        } else {
            row.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(out, v)| *out = (v as f32).to_le_bytes());
        }
    }
}

/// The reducer that pools each example into its row of `out`, zeros where it has none. Its states hold
/// nothing in the end.
pub fn pool<'a>(kind: Kind, examples: Examples, mut out: Output<'a>) -> Box<dyn Reducer + 'a> {
    let dim = out.dim;
    for (example, rows) in out.rows.iter_mut().enumerate() {
        if examples.positions(example).is_empty() {
            rows.get_mut().expect("no thread has it yet").fill(0);
        }
    }
    match kind {
        Kind::Max => Box::new(ByExample { examples, dim, fold: Largest { out } }),
        Kind::First | Kind::Last => Box::new(ByExample { examples, dim, fold: Edge { out, last: kind == Kind::Last } }),
        Kind::Mean | Kind::Weighted | Kind::Sum | Kind::WeightedSum => {
            Box::new(ByExample { examples, dim, fold: Sums { out, kind } })
        }
    }
}

struct Sums<'a> {
    out: Output<'a>,
    kind: Kind,
}

impl Fold for Sums<'_> {
    type Partial = Vec<f64>;

    fn start(&self) -> Vec<f64> {
        vec![0.0; self.out.dim]
    }

    fn add(&self, sums: &mut Vec<f64>, run: &Run<'_>) -> Result<()> {
        let weights = match self.kind {
            Kind::Weighted | Kind::WeightedSum => [run.place as f64 + 1.0, 1.0],
            _ => [1.0, 0.0],
        };
        if !sums.is_empty() {
            (kernels().reduce.add_rows)(run.values, weights, sums);
        }
        Ok(())
    }

    fn join(&self, sums: &mut Vec<f64>, after: Vec<f64>) {
        sums.iter_mut().zip(after).for_each(|(sum, more)| *sum += more);
    }

    fn finish(&self, example: usize, layer: usize, length: usize, sums: Vec<f64>) -> Result<()> {
        let n = length as u128;
        let over = match self.kind {
            Kind::Mean => n,
            Kind::Weighted => n * (n + 1) / 2,
            _ => 1,
        } as f64;
        self.out.write(example, layer, sums.into_iter().map(|sum| sum / over));
        Ok(())
    }
}

struct Largest<'a> {
    out: Output<'a>,
}

impl Fold for Largest<'_> {
    type Partial = Vec<f32>;

    fn start(&self) -> Vec<f32> {
        vec![f32::NEG_INFINITY; self.out.dim]
    }

    fn add(&self, largest: &mut Vec<f32>, run: &Run<'_>) -> Result<()> {
        if !largest.is_empty() {
            (kernels().reduce.max_rows)(run.values, largest);
        }
        Ok(())
    }

    fn join(&self, largest: &mut Vec<f32>, after: Vec<f32>) {
        if !largest.is_empty() {
            (kernels().reduce.max_rows)(&after, largest);
        }
    }

    fn finish(&self, example: usize, layer: usize, _length: usize, largest: Vec<f32>) -> Result<()> {
        self.out.write(example, layer, largest.into_iter().map(f64::from));
        Ok(())
    }
}

/// The first row, or the last.
struct Edge<'a> {
    out: Output<'a>,
    last: bool,
}

impl Fold for Edge<'_> {
    type Partial = ();

    fn start(&self) {}

    fn add(&self, (): &mut (), run: &Run<'_>) -> Result<()> {
        let dim = self.out.dim;
        let wanted = if self.last { run.length - 1 } else { 0 };
        if let Some(row) = wanted.checked_sub(run.place).and_then(|i| run.values.get(i * dim..(i + 1) * dim)) {
            self.out.write(run.example, run.layer, row.iter().copied().map(f64::from));
        }
        Ok(())
    }

    fn join(&self, (): &mut (), (): ()) {}

    fn finish(&self, _example: usize, _layer: usize, _length: usize, (): ()) -> Result<()> {
        Ok(())
    }
}
