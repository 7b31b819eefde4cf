//! The best k of a stream of scored rows: score descending, then row ascending.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, Ordering as Memory};

/// A row and its score, which is not NaN. The greater of two is the worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The score, rounded to float32.
    pub score: f32,
    /// What was decisive: a layer's position.
    pub layer: u32,
    /// The row.
    pub row: i64,
}

impl Eq for Hit {}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = other.score.partial_cmp(&self.score).expect("scores are numbers");
        // Rows may share a name: then any order will do that does not depend on threads.
        by_score.then(self.row.cmp(&other.row)).then(self.layer.cmp(&other.layer))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The best so far of one query, in one thread.
#[derive(Default)]
pub struct TopK {
    worst_first: BinaryHeap<Hit>,
}

impl TopK {
    /// Takes a hit in if it is among the best `k`; the score to beat if that rose.
    pub fn push(&mut self, hit: Hit, k: usize) -> Option<f32> {
        if self.worst_first.len() < k {
            self.worst_first.push(hit);
        } else {
            let mut worst = self.worst_first.peek_mut()?;
            if hit >= *worst {
                return None;
            }
            *worst = hit;
        }
        (self.worst_first.len() == k).then(|| self.worst_first.peek().map(|worst| worst.score))?
    }

    /// All of them, in no order.
    pub fn into_hits(self) -> Vec<Hit> {
        self.worst_first.into_vec()
    }
}

/// A score that all threads know to be reached by k rows: it only rises.
pub struct Threshold(AtomicU32);

impl Threshold {
    /// None, or what was asked for as the least.
    pub fn new(least: f32) -> Self {
        Threshold(AtomicU32::new(ordered(least)))
    }

    /// Rows below it are not among the best.
    pub fn get(&self) -> f32 {
        let bits = self.0.load(Memory::Relaxed);
        f32::from_bits(if bits >> 31 == 1 { bits ^ 1 << 31 } else { !bits })
    }

    /// Raises it.
    pub fn raise(&self, score: f32) {
        self.0.fetch_max(ordered(score), Memory::Relaxed);
    }
}

/// Bits that compare as the floats do.
fn ordered(score: f32) -> u32 {
    let bits = score.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_k_whatever_the_order() {
        let scores = [1.0f32, 3.0, 3.0, -1.0, 0.0, 3.0, f32::INFINITY, f32::NEG_INFINITY, 1.0];
        for k in 1..12 {
            for turn in 0..scores.len() {
                let mut top = TopK::default();
                for i in 0..scores.len() {
                    let row = (i * 4 + turn) % scores.len();
                    top.push(Hit { score: scores[row], layer: 0, row: row as i64 }, k);
                }
                let mut found = top.into_hits();
                found.sort();
                let rows: Vec<i64> = found.iter().map(|hit| hit.row).collect();
                assert_eq!(rows, [6, 1, 2, 5, 0, 8, 4, 3, 7][..k.min(9)]);
            }
        }
    }

    #[test]
    fn a_threshold_only_rises() {
        let threshold = Threshold::new(f32::NEG_INFINITY);
        for (score, wanted) in [(-2.0, -2.0), (-3.0, -2.0), (-0.5, -0.5), (1.5, 1.5), (0.0, 1.5)] {
            threshold.raise(score);
            assert_eq!(threshold.get(), wanted);
        }
    }
}
