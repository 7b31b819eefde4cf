//! How many values have which sign and exponent: an answer to which range a narrower type must span.

use crate::error::Result;
use crate::kernels::reduce_scalar::count_exponents;
use crate::ops::scan::{Block, Reducer, State, state_of, take_state};

/// Values by the upper nine bits of the float32: the sign, then the exponent.
pub type Counts = [u64; 512];

/// The reducer; its states become [`Counts`] by [`Histogram::counts`].
pub struct Histogram {
    /// How many there are of.
    pub layers: usize,
}

type Layers = Vec<Option<Box<Counts>>>;

impl Histogram {
    /// Of all layers; those without rows too.
    pub fn counts(&self, state: State) -> Vec<Counts> {
        take_state::<Layers>(state).into_iter().map(|counts| counts.map_or([0; 512], |counts| *counts)).collect()
    }
}

impl Reducer for Histogram {
    fn new_state(&self) -> Result<State> {
        Ok(Box::new(vec![None; self.layers] as Layers))
    }

    fn update(&self, state: &mut State, block: &Block<'_>) -> Result<()> {
        let counts = state_of::<Layers>(state)[block.layer].get_or_insert_with(|| Box::new([0; 512]));
        count_exponents(block.values, counts);
        Ok(())
    }

    fn merge(&self, state: &mut State, after: State) -> Result<()> {
        for (counts, after) in state_of::<Layers>(state).iter_mut().zip(take_state::<Layers>(after)) {
            match (&mut *counts, after) {
                (Some(counts), Some(after)) => counts.iter_mut().zip(*after).for_each(|(count, more)| *count += more),
                (None, after) => *counts = after,
                (Some(_), None) => {}
            }
        }
        Ok(())
    }
}
