//! What an array holds: of each layer the rows, the zeros, what is not finite and the range of values;
//! of each dim the moments.

use crate::error::Result;
use crate::kernels::reduce_scalar::Extremes;
use crate::ops::moments::Moments;
use crate::ops::scan::{Block, Reducer, State, state_of, take_state};

/// Floats and rows that are summed at once, where a block is larger than a cache.
const NEAR: [usize; 2] = [32 << 10, 128];

/// The reducer; its states become [`Layer`]s by [`Summarize::layers`].
pub struct Summarize {
    /// Layers.
    pub layers: usize,
    /// Values of a row.
    pub dim: usize,
}

/// The summary of a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// How many rows.
    pub rows: u64,
    /// Values that are not a number.
    pub nans: u64,
    /// Values that are infinite.
    pub infinities: u64,
    /// The zeros, and the least and the largest value, infinite ones too.
    pub extremes: Extremes,
    /// Of each dim.
    pub moments: Moments,
}

type Layers = Vec<Option<Box<Layer>>>;

impl Summarize {
    /// All layers; those without rows too.
    pub fn layers(&self, state: State) -> Vec<Layer> {
        let layers = take_state::<Layers>(state).into_iter();
        layers.map(|layer| layer.map_or_else(|| Layer::new(self.dim), |layer| *layer)).collect()
    }
}

impl Reducer for Summarize {
    fn new_state(&self) -> Result<State> {
        Ok(Box::new(vec![None; self.layers] as Layers))
    }

    fn update(&self, state: &mut State, block: &Block<'_>) -> Result<()> {
        let layer = &mut state_of::<Layers>(state)[block.layer];
        let layer = layer.get_or_insert_with(|| Box::new(Layer::new(self.dim)));
        layer.rows += block.positions.len() as u64;
        let rows = (NEAR[0] / self.dim.max(1)).clamp(1, NEAR[1]);
        block.values.chunks(rows * self.dim.max(1)).for_each(|tile| layer.add(tile));
        Ok(())
    }

    fn merge(&self, state: &mut State, after: State) -> Result<()> {
        for (layer, after) in state_of::<Layers>(state).iter_mut().zip(take_state::<Layers>(after)) {
            match (&mut *layer, after) {
                (Some(layer), Some(after)) => layer.merge(*after),
                (None, after) => *layer = after,
                (Some(_), None) => {}
            }
        }
        Ok(())
    }
}

impl Layer {
    /// Of no rows.
    pub fn new(dim: usize) -> Self {
        Layer { rows: 0, nans: 0, infinities: 0, extremes: Extremes::NONE, moments: Moments::new(dim) }
    }

    /// Takes in values of rows that are counted already.
    fn add(&mut self, values: &[f32]) {
        if self.moments.add(values, &mut self.extremes) {
            return;
        }
        for x in values {
            self.nans += u64::from(x.is_nan());
            self.infinities += u64::from(x.is_infinite());
            self.extremes.widen(*x);
        }
    }

    /// Adds that of other rows.
    pub fn merge(&mut self, after: Layer) {
        self.rows += after.rows;
        self.nans += after.nans;
        self.infinities += after.infinities;
        self.extremes.zeros += after.extremes.zeros;
        self.extremes.min = self.extremes.min.min(after.extremes.min);
        self.extremes.max = self.extremes.max.max(after.extremes.max);
        self.moments.merge(after.moments);
    }
}
