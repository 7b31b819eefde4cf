//! Examples: how the rows of a selection belong to them, and folds of each example's rows into one thing.
//!
//! Rows come in blocks that know nothing of examples, so one example may lie in several blocks, and in
//! several states. What is open at the end of a state is kept in it, joined when states merge, and
//! given away as soon as all of an example's rows are in: as long as rows come example by example, a
//! state holds two unfinished examples of each layer at most, however long they are. Selections that mix the
//! rows of many examples keep as many open.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::blocks::Positions;
use crate::error::{Error, Result};
use crate::ops::scan::{Block, Reducer, State, state_of, take_state};

/// Which positions of a selection are whose: those of example e are `offset[e]..offset[e + 1]`.
#[derive(Clone, Debug)]
pub struct Examples {
    offset: Vec<usize>,
}

impl Examples {
    /// Examples that share out `rows` rows.
    pub fn new(offset: Vec<usize>, rows: usize) -> Result<Self> {
        let wrong = if offset.is_empty() {
            "offset is empty; it has one entry more than there are examples".into()
        } else if offset[0] != 0 {
            format!("offset begins with {}, not 0", offset[0])
        } else if let Some(e) = offset.windows(2).position(|pair| pair[0] > pair[1]) {
            format!("offset falls from {} to {} at example {e}", offset[e], offset[e + 1])
        } else if offset[offset.len() - 1] != rows {
            format!("offset ends with {}, but there are {rows} rows", offset[offset.len() - 1])
        } else {
            return Ok(Examples { offset });
        };
        Err(Error::invalid(wrong))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.offset.len() - 1
    }

    /// Whether none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The positions of an example.
    pub fn positions(&self, example: usize) -> Range<usize> {
        self.offset[example]..self.offset[example + 1]
    }

    /// The example that a position is of.
    pub fn of(&self, position: usize) -> usize {
        self.offset.partition_point(|first| *first <= position) - 1
    }
}

/// Rows of one example and layer that follow one another in it.
pub struct Run<'a> {
    /// The number of the example.
    pub example: usize,
    /// The layer's position among those of the source.
    pub layer: usize,
    /// The rows that the example has in all.
    pub length: usize,
    /// The place of the first of these in it.
    pub place: usize,
    /// The rows, one after the other.
    pub values: &'a [f32],
}

/// What is made of the rows of each example and layer.
///
/// Rows come in their order where the selection has its rows in the order of the array, and then `join`
/// is given what comes after; otherwise they come in the order of the array.
pub trait Fold: Sync {
    /// What has been made of some of the rows.
    type Partial: Send + 'static;

    /// Of none.
    fn start(&self) -> Self::Partial;

    /// Takes in rows.
    fn add(&self, partial: &mut Self::Partial, run: &Run<'_>) -> Result<()>;

    /// Takes in what was made of other rows.
    fn join(&self, partial: &mut Self::Partial, after: Self::Partial);

    /// Gives away what was made of all rows of an example that has any.
    fn finish(&self, example: usize, layer: usize, length: usize, partial: Self::Partial) -> Result<()>;
}

/// The reducer that folds each example.
pub struct ByExample<F> {
    /// Whose the rows are.
    pub examples: Examples,
    /// Values of a row.
    pub dim: usize,
    /// What to make of them.
    pub fold: F,
}

/// What is open, by layer and example.
type Open<P> = BTreeMap<(usize, usize), Started<P>>;

struct Started<P> {
    partial: P,
    /// Rows taken in.
    seen: usize,
}

impl<F: Fold> ByExample<F> {
    /// Takes in rows that follow one another in the selection, the first at `position`.
    fn take(&self, open: &mut Open<F::Partial>, layer: usize, position: usize, values: &[f32], n: usize) -> Result<()> {
        let (mut done, mut example) = (0, self.examples.of(position));
        while done < n {
            let own = self.examples.positions(example);
            let more = (n - done).min(own.end.saturating_sub(position + done));
            if more > 0 {
                let values = &values[done * self.dim..(done + more) * self.dim];
                let run = Run { example, layer, length: own.len(), place: position + done - own.start, values };
                self.add(open, &run, more)?;
            }
            done += more;
            example += 1;
        }
        Ok(())
    }

    fn add(&self, open: &mut Open<F::Partial>, run: &Run<'_>, n: usize) -> Result<()> {
        let key = (run.layer, run.example);
        let begun = if n < run.length { open.remove(&key) } else { None };
        let mut started = begun.unwrap_or_else(|| Started { partial: self.fold.start(), seen: 0 });
        self.fold.add(&mut started.partial, run)?;
        started.seen += n;
        self.keep(open, key, started)
    }

    /// Keeps an example open, or finishes it.
    fn keep(&self, open: &mut Open<F::Partial>, key: (usize, usize), started: Started<F::Partial>) -> Result<()> {
        let length = self.examples.positions(key.1).len();
        if started.seen == length {
            return self.fold.finish(key.1, key.0, length, started.partial);
        }
        open.insert(key, started);
        Ok(())
    }
}

impl<F: Fold> Reducer for ByExample<F> {
    fn new_state(&self) -> Result<State> {
        Ok(Box::new(Open::<F::Partial>::new()))
    }

    fn update(&self, state: &mut State, block: &Block<'_>) -> Result<()> {
        let open = state_of::<Open<F::Partial>>(state);
        let list = match block.positions {
            Positions::Run(first, n) => return self.take(open, block.layer, first, block.values, n),
            Positions::List(list) => list,
        };
        // In the order of the selection: with it, rows of an example that follow one another here and
        // there are found, and each example's rows in a block come in their own order.
        let mut order: Vec<(usize, usize)> = list.iter().copied().zip(0..).collect();
        if !order.is_sorted() {
            order.sort_unstable();
        }
        for run in order.chunk_by(|a, b| (a.0 + 1, a.1 + 1) == *b) {
            let (position, i) = run[0];
            let values = &block.values[i * self.dim..(i + run.len()) * self.dim];
            self.take(open, block.layer, position, values, run.len())?;
        }
        Ok(())
    }

    fn merge(&self, state: &mut State, after: State) -> Result<()> {
        let open = state_of::<Open<F::Partial>>(state);
        for (key, after) in take_state::<Open<F::Partial>>(after) {
            let started = match open.remove(&key) {
                Some(mut started) => {
                    self.fold.join(&mut started.partial, after.partial);
                    started.seen += after.seen;
                    started
                }
                None => after,
            };
            self.keep(open, key, started)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::blocks::Dense;
    use crate::dtype::Dtype;
    use crate::ops::scan::scan;
    use crate::process::Task;
    use crate::selection::Rows;

    const DIM: usize = 600;

    /// Gathers the rows of examples, by what their first value says.
    struct Gather<'a> {
        rows: Rows<'a>,
        examples: &'a Examples,
        finished: Mutex<Vec<(usize, usize)>>,
    }

    impl Fold for Gather<'_> {
        type Partial = Vec<usize>;

        fn start(&self) -> Vec<usize> {
            Vec::new()
        }

        fn add(&self, places: &mut Vec<usize>, run: &Run<'_>) -> Result<()> {
            assert_eq!(run.length, self.examples.positions(run.example).len());
            for (i, row) in run.values.chunks(DIM).enumerate() {
                let position = self.examples.positions(run.example).start + run.place + i;
                assert_eq!(row[0] as usize, self.rows.get(position) * 2 + run.layer);
                places.push(run.place + i);
            }
            Ok(())
        }

        fn join(&self, places: &mut Vec<usize>, after: Vec<usize>) {
            places.extend(after);
        }

        fn finish(&self, example: usize, layer: usize, length: usize, mut places: Vec<usize>) -> Result<()> {
            if matches!(self.rows, Rows::Range(..)) {
                assert!(places.is_sorted());
            }
            places.sort_unstable();
            assert!(places.into_iter().eq(0..length));
            self.finished.lock().unwrap().push((example, layer));
            Ok(())
        }
    }

    #[test]
    fn every_row_comes_to_its_place_once() {
        const N: usize = 2500;
        let values: Vec<u8> =
            (0..N * 2 * DIM).flat_map(|i| if i % DIM == 0 { (i / DIM) as f32 } else { 0.5 }.to_le_bytes()).collect();
        let mixed: Vec<i64> = (0..3000).map(|i| i * 7919 % N as i64).collect();
        let turned: Vec<i64> = (0..3000).rev().map(|i| i % N as i64).collect();
        for rows in
            [Rows::Range(0, N), Rows::Range(17, 2400), Rows::List(&mixed), Rows::List(&turned), Rows::Range(3, 3)]
        {
            for step in [1, 37, 900, 5000] {
                let n = rows.len();
                // Some are empty, at the ends too.
                let mut offset: Vec<usize> = (0..n).step_by(step).flat_map(|first| [first, first]).collect();
                offset.extend([n, n]);
                offset[0] = 0;
                for threads in [1, 3] {
                    let examples = Examples::new(offset.clone(), n).unwrap();
                    let fold = Gather { rows, examples: &examples, finished: Mutex::default() };
                    let by = ByExample { examples: examples.clone(), dim: DIM, fold };
                    let source = Dense::new(&values, Dtype::Float32, [N, 2, DIM], rows, None).unwrap();
                    let state = scan(&source, &[&by], &Task::new(threads)).unwrap().remove(0);
                    assert!(take_state::<Open<Vec<usize>>>(state).is_empty());
                    let mut finished = by.fold.finished.into_inner().unwrap();
                    finished.sort_unstable();
                    let there = (0..examples.len()).filter(|e| !examples.positions(*e).is_empty());
                    assert!(finished.into_iter().eq(there.flat_map(|e| [(e, 0), (e, 1)])));
                }
            }
        }
    }

    #[test]
    fn a_long_example_is_one_partial_in_a_state() {
        let examples = Examples::new(vec![0, 10, 1_000_000], 1_000_000).unwrap();
        let rows = Rows::Range(0, 0);
        let fold = Gather { rows, examples: &examples, finished: Mutex::default() };
        let by = ByExample { examples: examples.clone(), dim: 0, fold };
        let mut state = by.new_state().unwrap();
        for first in (5..1000).step_by(5) {
            by.update(&mut state, &Block { layer: 0, positions: Positions::Run(first, 5), values: &[] }).unwrap();
        }
        assert_eq!(state_of::<Open<Vec<usize>>>(&mut state).len(), 2);
    }

    #[test]
    fn offsets_that_share_out_nothing_are_refused() {
        for (offset, rows) in [(vec![], 0), (vec![1, 3], 3), (vec![0, 2, 1, 3], 3), (vec![0, 2], 3), (vec![0, 4], 3)] {
            assert_eq!(Examples::new(offset, rows).unwrap_err().kind, crate::Kind::InvalidInput);
        }
        assert!(Examples::new(vec![0], 0).unwrap().is_empty());
    }
}
