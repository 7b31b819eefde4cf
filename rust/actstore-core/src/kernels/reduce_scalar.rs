//! Sums, extremes and counts over rows: the specification of the loops that reducers run.
//!
//! All sums are float64 and go down the rows of a column one by one, in their order, so that every
//! instruction set gives the same bits. Rows are `[n, dim]`, where `dim`, the length of what is summed
//! into, is at least 1.

/// The loops.
pub const REDUCE: Reduce = Reduce { moments, add_rows, max_rows };

/// Columns that [`Reduce::moments`] takes together.
pub const STRIP: usize = 16;

/// One implementation of each loop.
pub struct Reduce {
    /// Adds the deviations of rows from a shift to one sum, and their squares (multiplied and added as
    /// one) to another; widens the extremes to the values. A strip of columns in which a value is not
    /// finite is left as it was and pushed, by its first column; then the extremes are of no use.
    pub moments: Moments,
    /// Adds rows to a sum: the first times the first weight, each other times the last weight and the
    /// second, a step. Weights are whole numbers, exact below 2^29.
    pub add_rows: fn(&[f32], [f64; 2], &mut [f64]),
    /// Raises the largest values to those of the rows. A NaN stays; of equal values the first.
    pub max_rows: fn(&[f32], &mut [f32]),
}

type Moments = fn(&[f32], shift: &[f64], sums: &mut [f64], squares: &mut [f64], &mut Extremes, wrong: &mut Vec<usize>);

/// What [`Reduce::moments`] sees besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extremes {
    /// The least value; a zero counts as positive.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// How many are zero.
    pub zeros: u64,
}

impl Extremes {
    /// Of no values.
    pub const NONE: Extremes = Extremes { min: f32::INFINITY, max: f32::NEG_INFINITY, zeros: 0 };

    /// Widens them to a value; not to NaN.
    #[inline(always)]
    pub fn widen(&mut self, x: f32) {
        self.zeros += u64::from(x == 0.0);
        // Adding zero makes both zeros one.
        self.min = self.min.min(x + 0.0);
        self.max = self.max.max(x + 0.0);
    }
}

fn moments(
    rows: &[f32],
    shift: &[f64],
    sums: &mut [f64],
    squares: &mut [f64],
    seen: &mut Extremes,
    wrong: &mut Vec<usize>,
) {
    for at in (0..shift.len()).step_by(STRIP) {
        moments_strip(at, rows, shift, sums, squares, seen, wrong);
    }
}

fn add_rows(rows: &[f32], weights: [f64; 2], sums: &mut [f64]) {
    add_rows_from(0, rows, weights, sums);
}

fn max_rows(rows: &[f32], largest: &mut [f32]) {
    max_rows_from(0, rows, largest);
}

/// The moments of a strip, from column `at` on. Inlined, as those below are, to be compiled for the
/// instructions of the caller.
#[inline(always)]
pub fn moments_strip(
    at: usize,
    rows: &[f32],
    shift: &[f64],
    sums: &mut [f64],
    squares: &mut [f64],
    seen: &mut Extremes,
    wrong: &mut Vec<usize>,
) {
    let dim = shift.len();
    let n = STRIP.min(dim - at);
    let (mut s, mut q) = ([0f64; STRIP], [0f64; STRIP]);
    s[..n].copy_from_slice(&sums[at..at + n]);
    q[..n].copy_from_slice(&squares[at..at + n]);
    let shift = &shift[at..at + n];
    let mut finite = true;
    for row in rows.chunks_exact(dim) {
        for (((x, shift), s), q) in row[at..at + n].iter().zip(shift).zip(&mut s).zip(&mut q) {
            let away = f64::from(*x) - shift;
            *s += away;
            *q = away.mul_add(away, *q);
            finite &= x.is_finite();
            seen.widen(*x);
        }
    }
    if finite {
        sums[at..at + n].copy_from_slice(&s[..n]);
        squares[at..at + n].copy_from_slice(&q[..n]);
    } else {
        wrong.push(at);
    }
}

/// Adds the columns from `column` on.
#[inline(always)]
pub fn add_rows_from(column: usize, rows: &[f32], [mut weight, step]: [f64; 2], sums: &mut [f64]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, x) in sums[column..].iter_mut().zip(&row[column..]) {
            *sum = f64::from(*x).mul_add(weight, *sum);
        }
        weight += step;
    }
}

/// Raises the columns from `column` on.
#[inline(always)]
pub fn max_rows_from(column: usize, rows: &[f32], largest: &mut [f32]) {
    for row in rows.chunks_exact(largest.len()) {
        for (largest, x) in largest[column..].iter_mut().zip(&row[column..]) {
            if *x > *largest || x.is_nan() {
                *largest = *x;
            }
        }
    }
}

/// Values of each sign and exponent, by the upper nine bits of the float32. Neighbours count in tables
/// of their own: an addition to a counter that was just written would wait for it.
pub fn count_exponents(values: &[f32], counts: &mut [u64; 512]) {
    let mut tables = [[0u32; 512]; 4];
    // A counter of 32 bits does for so many.
    for values in values.chunks(1 << 30) {
        let (fours, rest) = values.as_chunks::<4>();
        for four in fours {
            for (x, table) in four.iter().zip(&mut tables) {
                table[(x.to_bits() >> 23) as usize] += 1;
            }
        }
        for x in rest {
            tables[0][(x.to_bits() >> 23) as usize] += 1;
        }
        for table in &mut tables {
            for (count, more) in counts.iter_mut().zip(table) {
                *count += u64::from(std::mem::take(more));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    const DIMS: [usize; 14] = [1, 3, 4, 7, 8, 12, 15, 16, 17, 31, 33, 64, 100, 384];
    const SPECIAL: [f32; 8] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-42, -3e-45, f32::MAX, f32::MIN];

    /// Values of all scales, every `often`-th one special.
    fn floats(n: usize, seed: u64, often: usize) -> Vec<f32> {
        let mut state = seed | 1;
        (0..n)
            .map(|i| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                let scale = [1.0, 1e-3, 300.0, 1e20, 0.0][(state >> 8) as usize % 5];
                if i % often == often - 1 { SPECIAL[(state >> 12) as usize % 8] } else { unit * scale }
            })
            .collect()
    }

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|v| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() }).collect()
    }

    /// Dims around every width of strip, and starts that are not aligned.
    fn each_case(mut check: impl FnMut(&[f32], usize)) {
        for dim in DIMS {
            for n in [0, 1, 2, 3, 5, 9, 40] {
                for often in [usize::MAX, 97, 5] {
                    let start = (dim + n) % 3;
                    check(&floats(start + n * dim, (dim * 100 + n) as u64, often)[start..], dim);
                }
            }
        }
    }

    #[test]
    fn moments_have_the_same_bits_on_every_instruction_set() {
        each_case(|rows, dim| {
            let mut shift: Vec<f64> = floats(dim, 5, usize::MAX).iter().map(|v| f64::from(*v)).collect();
            if dim > 40 {
                // Strips without a shift have a loop of their own.
                shift[16..33].fill(0.0);
            }
            let before: Vec<f64> = floats(2 * dim, 7, usize::MAX).iter().map(|v| f64::from(*v)).collect();
            // Extremes that some, all or none of the values are beyond.
            let mut known = Extremes::NONE;
            rows.iter().take(rows.len() / 2).filter(|x| x.is_finite()).for_each(|x| known.widen(*x));
            let run = |moments: Moments| {
                let (mut sums, mut squares, mut wrong) = (before[..dim].to_vec(), before[dim..].to_vec(), Vec::new());
                let mut seen = known;
                moments(rows, &shift, &mut sums, &mut squares, &mut seen, &mut wrong);
                (seen, bits(&sums), bits(&squares), wrong)
            };
            let wanted = run(moments);
            let finite =
                |at: &usize| rows.chunks(dim).flat_map(|row| row[*at..].iter().take(STRIP)).all(|x| x.is_finite());
            assert!((0..dim).step_by(STRIP).filter(|at| !finite(at)).eq(wanted.3.iter().copied()));
            for kernels in available() {
                let found = run(kernels.reduce.moments);
                assert!((&found.1, &found.2, &found.3) == (&wanted.1, &wanted.2, &wanted.3), "{} {dim}", kernels.name);
                if wanted.3.is_empty() {
                    assert_eq!(found.0, wanted.0, "{} {dim}", kernels.name);
                    assert_eq!(found.0.min.to_bits(), wanted.0.min.to_bits());
                    assert_eq!(found.0.max.to_bits(), wanted.0.max.to_bits());
                }
            }
        });
    }

    #[test]
    fn sums_and_maxima_have_the_same_bits_on_every_instruction_set() {
        each_case(|rows, dim| {
            let start: Vec<f64> = floats(dim, 3, usize::MAX).iter().map(|v| f64::from(*v)).collect();
            let highest = floats(dim, 4, 6);
            for weights in [[1.0, 0.0], [3.0, 1.0]] {
                let mut sums = start.clone();
                add_rows(rows, weights, &mut sums);
                for kernels in available() {
                    let mut s = start.clone();
                    (kernels.reduce.add_rows)(rows, weights, &mut s);
                    assert!(bits(&s) == bits(&sums), "{} {dim}", kernels.name);
                }
            }
            let mut largest = highest.clone();
            max_rows(rows, &mut largest);
            for kernels in available() {
                let mut m = highest.clone();
                (kernels.reduce.max_rows)(rows, &mut m);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(m.iter().zip(&largest).all(same), "{} {dim} {m:?} {largest:?}", kernels.name);
            }
        });
    }

    #[test]
    fn every_value_is_counted_by_its_upper_nine_bits() {
        for n in [0, 1, 3, 4, 5, 1000, 4099] {
            let values = floats(n, n as u64, 7);
            let mut wanted = [3; 512];
            values.iter().for_each(|x| wanted[(x.to_bits() >> 23) as usize] += 1);
            let mut counts = [3; 512];
            count_exponents(&values, &mut counts);
            assert_eq!(counts, wanted);
        }
    }
}
