//! One parallel pass over blocks, for any number of reducers.
//!
//! The groups of rows are cut into runs that do not depend on the threads. Each run has states of its
//! own, and states are merged as a fixed tree over the runs, left with right: so a result is the same
//! for any number of threads, and few states are alive at once.

use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::blocks::{Blocks, Positions};
use crate::error::{Error, Kind, Result};
use crate::process::{Task, pool};

/// Runs that the groups are cut into at most: enough to keep threads busy to the end, few enough that
/// merging costs nothing.
const RUNS: usize = 64;
/// Floats of a block, which so stays in the second-level cache for all reducers.
pub const BLOCK: usize = 32 << 10;

/// Decoded rows of one layer.
pub struct Block<'a> {
    /// The layer's position among those of the source.
    pub layer: usize,
    /// Where the rows stand in the source.
    pub positions: Positions<'a>,
    /// The rows, one after the other.
    pub values: &'a [f32],
}

impl Block<'_> {
    /// The block in pieces of at most so many floats, one row at least.
    pub fn pieces(&self, floats: usize, mut work: impl FnMut(&Block<'_>) -> Result<()>) -> Result<()> {
        let n = self.positions.len();
        let dim = self.values.len() / n.max(1);
        let step = (floats / dim.max(1)).max(1);
        for start in (0..n).step_by(step) {
            let range = start..n.min(start.saturating_add(step));
            let values = &self.values[range.start * dim..range.end * dim];
            work(&Block { layer: self.layer, positions: self.positions.slice(range), values })?;
        }
        Ok(())
    }
}

/// What a reducer has gathered; its own type.
pub type State = Box<dyn Any + Send>;

/// An analysis that takes blocks one by one and whose states merge.
pub trait Reducer: Sync {
    /// A state that has seen nothing.
    fn new_state(&self) -> Result<State>;

    /// Takes in a block. Blocks of one layer come in the order of groups.
    fn update(&self, state: &mut State, block: &Block<'_>) -> Result<()>;

    /// Adds the state of what comes after.
    fn merge(&self, state: &mut State, after: State) -> Result<()>;

    /// Whether it wants a group's rows of a layer in one block.
    fn wants_groups(&self) -> bool {
        false
    }
}

/// A state as the type that its reducer made.
///
/// # Panics
/// When it is another reducer's.
pub fn state_of<T: 'static>(state: &mut State) -> &mut T {
    state.downcast_mut().expect("a reducer's own state")
}

/// As [`state_of`], taken.
///
/// # Panics
/// When it is another reducer's.
pub fn take_state<T: 'static>(state: State) -> T {
    *state.downcast().expect("a reducer's own state")
}

/// Runs all rows of all layers through the reducers; their states, in order.
pub fn scan(source: &dyn Blocks, reducers: &[&dyn Reducer], task: &Task) -> Result<Vec<State>> {
    let [rows, layers, dim] = source.shape();
    task.expect((rows * layers) as u64);
    let groups = source.groups();
    if groups == 0 || layers == 0 {
        return reducers.iter().map(|reducer| reducer.new_state()).collect();
    }
    let runs = RUNS.min(groups);
    let across = (RUNS / runs).clamp(1, layers);
    let block = if reducers.iter().any(|r| r.wants_groups()) { usize::MAX } else { (BLOCK / dim.max(1)).max(1) };
    let scan = Scan { source, reducers, task, runs, across, block, failed: AtomicBool::new(false) };
    pool(task.threads)?.install(|| scan.tree(0..runs * across))
}

struct Scan<'a> {
    source: &'a dyn Blocks,
    reducers: &'a [&'a dyn Reducer],
    task: &'a Task,
    /// Runs of groups, and of layers within each.
    runs: usize,
    across: usize,
    /// Rows of a block at most.
    block: usize,
    failed: AtomicBool,
}

impl Scan<'_> {
    fn tree(&self, leaves: Range<usize>) -> Result<Vec<State>> {
        if leaves.len() == 1 {
            let done = self.leaf(leaves.start);
            if done.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            return done;
        }
        let middle = leaves.start + leaves.len() / 2;
        let halves = rayon::join(|| self.tree(leaves.start..middle), || self.tree(middle..leaves.end));
        let (mut left, right) = match halves {
            (Ok(left), Ok(right)) => (left, right),
            // Of two errors, the one that is not merely the echo of the other.
            (Err(error), Err(other)) if error.kind == Kind::Interrupted => return Err(other),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        for ((reducer, state), after) in self.reducers.iter().zip(&mut left).zip(right) {
            reducer.merge(state, after)?;
        }
        Ok(left)
    }

    fn leaf(&self, leaf: usize) -> Result<Vec<State>> {
        let mut states: Vec<State> = self.reducers.iter().map(|r| r.new_state()).collect::<Result<_>>()?;
        let layers = share(self.source.shape()[1], self.across, leaf % self.across);
        let mut buffer = Vec::new();
        for group in share(self.source.groups(), self.runs, leaf / self.across) {
            let positions = self.source.positions(group);
            for layer in layers.clone() {
                self.task.check()?;
                if self.failed.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Interrupted, "another thread met an error"));
                }
                self.source.with_group(group, &[layer], &mut |decoded| {
                    for start in (0..positions.len()).step_by(self.block) {
                        let range = start..positions.len().min(start.saturating_add(self.block));
                        let values = decoded[0].floats(range.clone(), &mut buffer);
                        let block = Block { layer, positions: positions.slice(range), values };
                        for (reducer, state) in self.reducers.iter().zip(&mut states) {
                            reducer.update(state, &block)?;
                        }
                    }
                    Ok(())
                })?;
                self.task.advance(positions.len() as u64);
            }
        }
        Ok(states)
    }
}

/// The part of `n` things that is the `i`-th of `parts`.
fn share(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}
