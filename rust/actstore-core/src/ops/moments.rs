//! Mean and squared deviations of each column, in one pass and to the last digits.
//!
//! What is summed are float64 deviations from a shift near the mean, since squares of values that lie a
//! million deviations from zero would cancel. The shift is a float32, so that taking it away is exact,
//! and is kept until the mean has drifted from it; it is zero where the mean is near zero, which spares
//! the subtraction. Tiles of rows merge as in Chan, Golub and LeVeque (1983).

use crate::kernels::kernels;
use crate::kernels::reduce_scalar::{Extremes, STRIP};

/// Rows that are summed before they merge with those before; of the very first, no more than were added
/// at once: their shift is one of the values, and the rounding of their squares may grow with the square
/// of their number.
const TILE: u64 = 1024;
/// How many standard deviations the mean may be from the shift: squares lose twice as many bits as this has.
const DRIFT: f64 = 16.0;

/// The moments of each column over the finite values in it.
#[derive(Clone, Debug)]
pub struct Moments {
    rows: u64,
    /// Of these rows, the values that are not finite.
    missing: Vec<u64>,
    /// The mean: the shift, and what that lacks.
    shift: Vec<f64>,
    offset: Vec<f64>,
    m2: Vec<f64>,
    /// Columns that have no value yet.
    fresh: usize,
    /// Whether anything was ever missing.
    ragged: bool,
    /// Rows that are summed and not merged yet, and what of them is missing.
    waiting: u64,
    gaps: Vec<u64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Strips in which the last rows had a value that is not finite.
    wrong: Vec<usize>,
}

impl Moments {
    /// Of no rows.
    pub fn new(dim: usize) -> Self {
        let zeros = || vec![0.0; dim];
        Moments {
            rows: 0,
            missing: vec![0; dim],
            shift: zeros(),
            offset: zeros(),
            m2: zeros(),
            fresh: dim,
            ragged: false,
            waiting: 0,
            gaps: vec![0; dim],
            sums: zeros(),
            squares: zeros(),
            wrong: Vec::new(),
        }
    }

    /// From what [`Moments::columns`] gave.
    pub fn restore(rows: u64, columns: &[Column]) -> Self {
        let mut new = Moments::new(columns.len());
        new.rows = rows;
        for (d, column) in columns.iter().enumerate() {
            new.missing[d] = column.missing;
            new.ragged |= column.missing > 0;
            if column.missing < rows {
                new.shift[d] = f64::from(column.mean as f32);
                new.offset[d] = column.mean - new.shift[d];
                new.m2[d] = column.m2;
                new.fresh -= 1;
            }
        }
        new
    }

    /// Takes in rows, and widens the extremes to them. Where a value is not finite, says no and leaves
    /// the extremes.
    pub fn add(&mut self, rows: &[f32], seen: &mut Extremes) -> bool {
        let dim = self.shift.len();
        if self.fresh > 0 {
            self.settle();
            self.shift_fresh(rows);
        }
        self.wrong.clear();
        let moments = kernels().reduce.moments;
        let before = *seen;
        moments(rows, &self.shift, &mut self.sums, &mut self.squares, seen, &mut self.wrong);
        for at in &self.wrong {
            self.ragged = true;
            let strip = *at..dim.min(at + STRIP);
            for row in rows.chunks_exact(dim) {
                for (d, x) in strip.clone().zip(&row[strip.clone()]) {
                    if x.is_finite() {
                        let away = f64::from(*x) - self.shift[d];
                        self.sums[d] += away;
                        self.squares[d] += away * away;
                    } else {
                        self.gaps[d] += 1;
                    }
                }
            }
        }
        self.waiting += (rows.len() / dim) as u64;
        if self.waiting >= TILE {
            self.settle();
        }
        if !self.wrong.is_empty() {
            *seen = before;
        }
        self.wrong.is_empty()
    }

    /// Shifts columns that have no values yet to the first of these rows.
    fn shift_fresh(&mut self, rows: &[f32]) {
        let dim = self.shift.len();
        for d in 0..dim {
            if self.missing[d] == self.rows
                && let Some(first) = rows[d..].iter().step_by(dim).find(|x| x.is_finite())
            {
                self.shift[d] = f64::from(*first);
            }
        }
    }

    /// Merges the rows that wait.
    pub fn settle(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let fresh = self.fresh > 0;
        let sums = self.sums.iter().zip(&self.squares).zip(self.offset.iter_mut().zip(&mut self.m2));
        if !self.ragged {
            // The same numbers for all columns: the loop is a few multiplications.
            let n = self.waiting as f64;
            let join = Join::new(self.rows as f64, n);
            sums.for_each(|((sum, square), (offset, m2))| join.apply_sums(offset, m2, *sum, *square, 1.0 / n));
        } else {
            for ((gap, missing), ((sum, square), (offset, m2))) in self.gaps.iter_mut().zip(&mut self.missing).zip(sums)
            {
                let n = (self.waiting - *gap) as f64;
                let join = Join::new((self.rows - *missing) as f64, n);
                if n > 0.0 {
                    join.apply_sums(offset, m2, *sum, *square, 1.0 / n);
                }
                *missing += std::mem::take(gap);
            }
        }
        self.rows += self.waiting;
        self.waiting = 0;
        self.sums.fill(0.0);
        self.squares.fill(0.0);
        self.shift_again(fresh);
    }

    /// Moves shifts from which the mean has drifted, and new ones, which were any value.
    fn shift_again(&mut self, all: bool) {
        let rows = self.rows as f64;
        let far = DRIFT * DRIFT;
        let mut drifted = all;
        for (offset, m2) in self.offset.iter().zip(&self.m2) {
            drifted |= offset * offset * rows > far * m2;
        }
        if !drifted {
            return;
        }
        self.fresh = 0;
        for d in 0..self.shift.len() {
            let n = (self.rows - self.missing[d]) as f64;
            self.fresh += usize::from(n == 0.0);
            if all || self.offset[d] * self.offset[d] * n > far * self.m2[d] {
                let mean = self.shift[d] + self.offset[d];
                let shift = if mean * mean * n <= far * self.m2[d] { 0.0 } else { f64::from(mean as f32) };
                self.offset[d] += self.shift[d] - shift;
                self.shift[d] = shift;
            }
        }
    }

    /// Adds those of other rows.
    pub fn merge(&mut self, mut after: Moments) {
        self.settle();
        after.settle();
        for d in 0..self.shift.len() {
            let (n, more) = ((self.rows - self.missing[d]) as f64, (after.rows - after.missing[d]) as f64);
            if n == 0.0 {
                (self.shift[d], self.offset[d], self.m2[d]) = (after.shift[d], after.offset[d], after.m2[d]);
            } else if more > 0.0 {
                let mean = (after.shift[d] - self.shift[d]) + after.offset[d];
                Join::new(n, more).apply(&mut self.offset[d], &mut self.m2[d], mean, after.m2[d]);
            }
            self.missing[d] += after.missing[d];
        }
        self.ragged |= after.ragged;
        self.rows += after.rows;
        self.shift_again(true);
    }

    /// What is known of each column.
    pub fn columns(&mut self) -> Vec<Column> {
        self.settle();
        (0..self.shift.len())
            .map(|d| Column {
                missing: self.missing[d],
                mean: if self.missing[d] == self.rows { f64::NAN } else { self.shift[d] + self.offset[d] },
                m2: self.m2[d],
            })
            .collect()
    }
}

/// The moments of a column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Values that are not finite, and so not in the others.
    pub missing: u64,
    /// NaN where there are no values.
    pub mean: f64,
    /// The sum of squared deviations from the mean.
    pub m2: f64,
}

/// How two sets of values become one.
struct Join {
    /// The part of all that the second is.
    share: f64,
    /// How much a deviation between the means, squared, counts.
    between: f64,
}

impl Join {
    fn new(n: f64, more: f64) -> Self {
        let share = if more > 0.0 { more / (n + more) } else { 0.0 };
        Join { share, between: n * share }
    }

    /// The second as the sum of its values and their squares, and one over their number.
    #[inline]
    fn apply_sums(&self, mean: &mut f64, m2: &mut f64, sum: f64, square: f64, one_over: f64) {
        let more = sum * one_over;
        self.apply(mean, m2, more, (square - sum * more).max(0.0));
    }

    #[inline]
    fn apply(&self, mean: &mut f64, m2: &mut f64, more_mean: f64, more_m2: f64) {
        let delta = more_mean - *mean;
        *mean += delta * self.share;
        *m2 += more_m2 + delta * delta * self.between;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two passes in float64 over deviations from the first value, which are exact.
    fn two_passes(values: &[f32]) -> (f64, f64) {
        let first = f64::from(values[0]);
        let away: Vec<f64> = values.iter().map(|x| f64::from(*x) - first).collect();
        let mean = away.iter().sum::<f64>() / away.len() as f64;
        (first + mean, away.iter().map(|a| (a - mean) * (a - mean)).sum())
    }

    fn random(n: usize, seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed | 1;
        (0..n).map(move |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
    }

    fn check(columns: &[Vec<f32>], cuts: &[usize]) {
        let (dim, n) = (columns.len(), columns[0].len());
        let rows: Vec<f32> = (0..n * dim).map(|i| columns[i % dim][i / dim]).collect();
        let mut states = Vec::new();
        for cut in cuts.windows(2) {
            let mut moments = Moments::new(dim);
            for block in rows[cut[0] * dim..cut[1] * dim].chunks(85 * dim) {
                moments.add(block, &mut Extremes { ..Extremes::NONE });
            }
            states.push(moments);
        }
        let mut all = states.remove(0);
        states.into_iter().for_each(|state| all.merge(state));
        // A state that was written down and restored does as well.
        let mut restored = Moments::restore(0, &vec![Column { missing: 0, mean: f64::NAN, m2: 0.0 }; dim]);
        restored.merge(Moments::restore(n as u64, &all.columns()));
        for (d, column) in columns.iter().enumerate() {
            let finite: Vec<f32> = column.iter().copied().filter(|x| x.is_finite()).collect();
            for found in [all.columns()[d], restored.columns()[d]] {
                assert_eq!(found.missing as usize, n - finite.len());
                if finite.is_empty() {
                    assert!(found.mean.is_nan() && found.m2 == 0.0);
                    continue;
                }
                let (mean, m2) = two_passes(&finite);
                let deviation = (m2 / finite.len() as f64).sqrt();
                assert!((found.mean - mean).abs() <= 1e-9 * deviation + 1e-15 * mean.abs(), "{found:?} {mean} {m2}");
                assert!((found.m2 - m2).abs() <= 1e-10 * m2, "column {d}: {} {m2}", found.m2);
            }
        }
    }

    #[test]
    fn values_far_from_zero_and_drifting_ones_keep_their_digits() {
        let n = 3000;
        let noise = |seed| random(n, seed);
        let mut columns: Vec<Vec<f32>> = Vec::new();
        for far in [0.0, 1.0, 1e3, 1e6, 1.5e7] {
            columns.push(noise(3).map(|x| (x * 4.0 + far) as f32).collect());
            columns.push(noise(5).map(|x| (x * 4.0 - far) as f32).collect());
            // The first value is far from the others.
            columns.push(noise(7).enumerate().map(|(i, x)| (x + if i == 0 { far } else { 1.0 }) as f32).collect());
            // The mean drifts.
            columns.push(noise(9).enumerate().map(|(i, x)| (x + far * i as f64) as f32).collect());
        }
        columns.push(vec![2.75e7; n]);
        columns.push(vec![0.0; n]);
        columns.push(noise(11).map(|x| (x * 1e-42) as f32).collect());
        columns.push(noise(13).map(|x| (x * 6e38) as f32).collect());
        check(&columns, &[0, n]);
        check(&columns, &[0, 1, 130, 130, 1000, 2000, n]);
    }

    #[test]
    fn missing_values_leave_the_others_of_their_column() {
        let n = 1000;
        let columns: Vec<Vec<f32>> = (0..37)
            .map(|d: usize| {
                let wrong = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][d % 3];
                random(n, d as u64)
                    .enumerate()
                    .map(|(i, x)| match d {
                        0 => wrong,
                        1..=3 if i < 200 * d => wrong,
                        20..=25 if i % d == 0 => wrong,
                        _ => (x + 1e6) as f32,
                    })
                    .collect()
            })
            .collect();
        check(&columns, &[0, n]);
        check(&columns, &[0, 10, 300, n]);
    }
}
