//! A pass in windows, for analyses whose state is too large for each thread to have one.
//!
//! Rows of a layer come in windows of groups. All threads decode a window, and give its groups to the
//! reducers, each with a state of its own, and to the gatherers, which pack them; then all threads work on
//! what is packed, while the next window is decoded. How long windows are depends on the threads, results do
//! not: what is made of a group depends on the group alone, and groups are taken in in order.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::blocks::Blocks;
use crate::error::Result;
use crate::ops::scan::{BLOCK, Block, Reducer, State};
use crate::process::{Task, pool};

/// Bytes of packed rows that a window comes to, two of which are there at once: few enough for what finds
/// pages and for the last cache, enough for all threads to have a group to decode.
const WINDOW: usize = 6 << 20;

/// An analysis of which there is one state, that all threads work on.
pub trait Gatherer: Sync {
    /// Makes a group's rows ready.
    fn pack(&self, block: &Block<'_>) -> Result<State>;

    /// Takes in what was packed of groups that follow one another, on all threads. Where the groups are cut
    /// into calls must make no difference.
    fn take(&self, layer: usize, packed: Vec<State>) -> Result<()>;

    /// Ends a layer.
    fn end(&self, layer: usize) -> Result<()>;
}

/// Runs all rows of all layers through reducers and gatherers; the reducers' states, in order.
pub fn gather(
    source: &dyn Blocks,
    reducers: &[&dyn Reducer],
    gatherers: &[&dyn Gatherer],
    task: &Task,
) -> Result<Vec<State>> {
    let [rows, layers, _] = source.shape();
    task.expect((rows * layers) as u64);
    let gather = Gather { source, reducers, gatherers, task, buffers: Mutex::default() };
    pool(task.threads)?.install(|| gather.run())
}

struct Gather<'a> {
    source: &'a dyn Blocks,
    reducers: &'a [&'a dyn Reducer],
    gatherers: &'a [&'a dyn Gatherer],
    task: &'a Task,
    /// Decoded groups, to be written over.
    buffers: Mutex<Vec<Vec<f32>>>,
}

/// Of a group: a state of each reducer, and what each gatherer packed.
type Decoded = (Vec<State>, Vec<State>);

impl Gather<'_> {
    fn run(&self) -> Result<Vec<State>> {
        let mut states = self.reducers.iter().map(|reducer| reducer.new_state()).collect::<Result<Vec<State>>>()?;
        let windows = self.windows();
        for layer in 0..self.source.shape()[1] {
            let mut ready = Vec::new();
            for window in &windows {
                let waiting = std::mem::take(&mut ready);
                let (decoded, taken) = rayon::join(|| self.decode(layer, window), || self.take(layer, waiting));
                ready = decoded?;
                merge(self.reducers, &mut states, taken?)?;
            }
            merge(self.reducers, &mut states, self.take(layer, ready)?)?;
            self.gatherers.iter().try_for_each(|gatherer| gatherer.end(layer))?;
        }
        Ok(states)
    }

    fn windows(&self) -> Vec<Range<usize>> {
        let row = self.source.shape()[2] * size_of::<f64>();
        let mut windows: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0;
        let window_bytes = WINDOW * rayon::current_num_threads().clamp(2, 16);
        for group in 0..self.source.groups() {
            let more = self.source.positions(group).len() * row;
            match windows.last_mut() {
                Some(window) if bytes + more <= window_bytes => window.end = group + 1,
                _ => {
                    windows.push(group..group + 1);
                    bytes = 0;
                }
            }
            bytes += more;
        }
        windows
    }

    fn decode(&self, layer: usize, window: &Range<usize>) -> Result<Vec<Decoded>> {
        let of_group = |group: usize| {
            self.task.check()?;
            let mut buffer = self.buffers.lock().expect("no panic while held").pop().unwrap_or_default();
            let mut found = Decoded::default();
            self.source.with_group(group, &[layer], &mut |decoded| {
                let positions = self.source.positions(group);
                let values = decoded[0].floats(0..positions.len(), &mut buffer);
                let block = Block { layer, positions, values };
                for reducer in self.reducers {
                    let mut state = reducer.new_state()?;
                    block.pieces(if reducer.wants_groups() { usize::MAX } else { BLOCK }, |piece| {
                        reducer.update(&mut state, piece)
                    })?;
                    found.0.push(state);
                }
                found.1 = self.gatherers.iter().map(|gatherer| gatherer.pack(&block)).collect::<Result<_>>()?;
                Ok(())
            })?;
            self.task.advance(self.source.positions(group).len() as u64);
            self.buffers.lock().expect("no panic while held").push(buffer);
            Ok(found)
        };
        window.clone().into_par_iter().with_max_len(1).map(of_group).collect()
    }

    /// Gives to the gatherers what is theirs; the reducers' states of each group.
    fn take(&self, layer: usize, groups: Vec<Decoded>) -> Result<Vec<Vec<State>>> {
        let (states, packed): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        let mut of_gatherers: Vec<Vec<State>> = self.gatherers.iter().map(|_| Vec::new()).collect();
        for packed in packed {
            of_gatherers.iter_mut().zip(packed).for_each(|(list, packed)| list.push(packed));
        }
        for (gatherer, packed) in self.gatherers.iter().zip(of_gatherers) {
            gatherer.take(layer, packed)?;
        }
        Ok(states)
    }
}

fn merge(reducers: &[&dyn Reducer], states: &mut [State], groups: Vec<Vec<State>>) -> Result<()> {
    for group in groups {
        for ((reducer, state), after) in reducers.iter().zip(&mut *states).zip(group) {
            reducer.merge(state, after)?;
        }
    }
    Ok(())
}
