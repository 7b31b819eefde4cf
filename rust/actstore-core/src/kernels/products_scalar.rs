//! Products of columns: what covariances are made of, and the specification of the loops for it.
//!
//! Rows come packed in panels: some columns of all rows side by side, `[rows, columns]`, zeros where there
//! are no more columns. A loop takes two panels and gives the products of each column of the first with
//! each of the second, summed over the rows. Sums of float64 are in the order of rows in float64, sums of
//! float32 in any order in float32.

use super::Products;

/// Columns of a panel of float64, and of float32: as many as rows of registers and registers of rows
/// come to in every instruction set.
pub const WIDE64: usize = 24;
/// See [`WIDE64`].
pub const WIDE32: usize = 48;

/// Sums of products of two panels' columns, `[columns of the first, columns of the second]`.
pub type Square<T, const W: usize> = [[T; W]; W];

/// The loops.
pub const PRODUCTS: Products = Products { square64, square32, add64, add32, center64, center32, sum_away };

/// A loop over panels in registers: `TALL` columns of the first by `ACROSS` registers of the second at a time, as
/// the file that uses it says.
#[cfg(target_arch = "x86_64")]
macro_rules! square {
    ($features:literal, $name:ident, $float:ty, $wide:ident, $lanes:literal, $zero:ident, $load:ident, $one:ident, $add:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name(a: &[$float], b: &[$float], out: &mut Square<$float, $wide>) {
            let rows = a.len() / $wide;
            assert!(a.len() == rows * $wide && b.len() == a.len());
            if rows == 0 {
                *out = [[0.0; $wide]; $wide];
                return;
            }
            for (i, out) in out.chunks_exact_mut(TALL).enumerate() {
                for j in (0..$wide).step_by(ACROSS * $lanes) {
                    let (a, b) = (a[i * TALL..].as_ptr(), b[j..].as_ptr());
                    let mut sums = [[$zero(); ACROSS]; TALL];
                    for k in 0..rows {
                        // SAFETY: the panels have `rows` rows of `$wide`, of which `ACROSS` registers from `j` on are read.
                        let b: [_; ACROSS] = std::array::from_fn(|r| unsafe { $load(b.add(k * $wide + r * $lanes)) });
                        for (t, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: likewise, and `i * TALL + t` is less than `$wide`.
                            let a = $one(unsafe { *a.add(k * $wide + t) });
                            for r in 0..ACROSS {
                                sums[r] = $add(a, b[r], sums[r]);
                            }
                        }
                    }
                    for (sums, out) in sums.into_iter().zip(&mut *out) {
                        for (sum, out) in sums.into_iter().zip(out[j..].as_chunks_mut::<$lanes>().0) {
                            // SAFETY: a register's floats are there, and the store needs no alignment.
                            unsafe { $store(out.as_mut_ptr(), sum) };
                        }
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use square;

/// A function of what is below, compiled for instructions that are named outside.
#[cfg(target_arch = "x86_64")]
macro_rules! recompiled {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn add64(sums: &Square<f64, WIDE64>, size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
            scalar::add(sums, size, out, at);
        }

        #[target_feature(enable = $features)]
        fn add32(sums: &Square<f32, WIDE32>, size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
            scalar::add(sums, size, out, at);
        }

        #[target_feature(enable = $features)]
        fn center64(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f64]) {
            scalar::center::<f64, WIDE64>(rows, dim, from, mean, out);
        }

        #[target_feature(enable = $features)]
        fn center32(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f32]) {
            scalar::center::<f32, WIDE32>(rows, dim, from, mean, out);
        }

        #[target_feature(enable = $features)]
        fn sum_away(rows: &[f32], near: &[f64], sums: &mut [f64]) {
            scalar::sum(rows, near, sums);
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use recompiled;

/// A panel's element.
pub trait Element: Copy + Default {
    /// A value, which may be rounded.
    fn of(value: f64) -> Self;
    /// As float64.
    fn wide(self) -> f64;
}

impl Element for f64 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

impl Element for f32 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

fn add64(sums: &Square<f64, WIDE64>, size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
    add(sums, size, out, at);
}

fn add32(sums: &Square<f32, WIDE32>, size: [usize; 2], out: &mut [&mut [f64]], at: usize) {
    add(sums, size, out, at);
}

/// Adds the first rows and columns of sums to rows of a matrix, from a column on.
#[inline(always)]
pub fn add<T: Element, const W: usize>(
    sums: &Square<T, W>,
    [rows, columns]: [usize; 2],
    out: &mut [&mut [f64]],
    at: usize,
) {
    for (sums, out) in sums.iter().zip(out).take(rows) {
        let out = &mut out[at..at + columns];
        if let Ok(out) = <&mut [f64; W]>::try_from(&mut *out) {
            // A length that the compiler knows.
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum.wide());
        } else {
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum.wide());
        }
    }
}

fn center64(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f64]) {
    center::<f64, WIDE64>(rows, dim, from, mean, out);
}

fn center32(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f32]) {
    center::<f32, WIDE32>(rows, dim, from, mean, out);
}

/// Packs a panel: the columns `from` on of rows of `dim`, less their means, which come in two parts: a value
/// near them that float32 holds, and what that lacks. Taken away one after the other, nothing is lost.
#[inline(always)]
pub fn center<T: Element, const W: usize>(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [T]) {
    let columns = W.min(dim - from);
    let own = mean.map(|part| {
        let mut own = [0.0; W];
        own[..columns].copy_from_slice(&part[from..from + columns]);
        own
    });
    for (row, out) in rows.chunks_exact(dim).zip(out.as_chunks_mut::<W>().0) {
        let row = &row[from..from + columns];
        if let Ok(row) = <&[f32; W]>::try_from(row) {
            for (((out, x), near), rest) in out.iter_mut().zip(row).zip(&own[0]).zip(&own[1]) {
                *out = T::of((f64::from(*x) - near) - rest);
            }
        } else {
            *out = [T::default(); W];
            for (((out, x), near), rest) in out.iter_mut().zip(row).zip(&own[0]).zip(&own[1]) {
                *out = T::of((f64::from(*x) - near) - rest);
            }
        }
    }
}

fn square64(a: &[f64], b: &[f64], out: &mut Square<f64, WIDE64>) {
    *out = [[0.0; WIDE64]; WIDE64];
    for (a, b) in a.as_chunks::<WIDE64>().0.iter().zip(b.as_chunks::<WIDE64>().0) {
        for (a, out) in a.iter().zip(&mut *out) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

fn square32(a: &[f32], b: &[f32], out: &mut Square<f32, WIDE32>) {
    *out = [[0.0; WIDE32]; WIDE32];
    for (a, b) in a.as_chunks::<WIDE32>().0.iter().zip(b.as_chunks::<WIDE32>().0) {
        for (a, out) in a.iter().zip(&mut *out) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

fn sum_away(rows: &[f32], near: &[f64], sums: &mut [f64]) {
    sum(rows, near, sums);
}

/// Adds how far rows are from values near them.
#[inline(always)]
pub fn sum(rows: &[f32], near: &[f64], sums: &mut [f64]) {
    for row in rows.chunks_exact(near.len()) {
        for ((sum, x), near) in sums.iter_mut().zip(row).zip(near) {
            *sum += f64::from(*x) - near;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    fn values(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed | 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f64 / f64::from(1 << 23) - 1.0
            })
            .collect()
    }

    #[test]
    fn panels_are_packed_and_sums_added_alike() {
        for dim in [1usize, 24, 40, 48, 100] {
            let rows: Vec<f32> = values(5 * dim, 2).iter().map(|x| *x as f32).collect();
            let near: Vec<f64> = values(dim, 4).iter().map(|x| f64::from(*x as f32)).collect();
            let rest: Vec<f64> = values(dim, 6).iter().map(|x| x * 1e-9).collect();
            let mean = [&near[..], &rest[..]];
            let away = |i: usize| (f64::from(rows[i]) - near[i % dim]) - rest[i % dim];
            for kernels in available() {
                let products = &kernels.products;
                let (mut out64, mut out32) = (vec![f64::NAN; 5 * WIDE64], vec![f32::NAN; 5 * WIDE32]);
                let mut sums = vec![1.0; 5 * dim];
                let mut sums: Vec<&mut [f64]> = sums.chunks_mut(dim).collect();
                for from in (0..dim).step_by(WIDE64) {
                    (products.center64)(&rows, dim, from, mean, &mut out64);
                    for (i, out) in out64.iter().enumerate() {
                        let (r, d) = (i / WIDE64, from + i % WIDE64);
                        let wanted = if d < dim { away(r * dim + d) } else { 0.0 };
                        assert_eq!(*out, wanted, "{}", kernels.name);
                    }
                    let mut square = [[0.0; WIDE64]; WIDE64];
                    square.iter_mut().zip(out64.as_chunks::<WIDE64>().0).for_each(|(to, row)| *to = *row);
                    (products.add64)(&square, [5, WIDE64.min(dim - from)], &mut sums, from);
                }
                for from in (0..dim).step_by(WIDE32) {
                    (products.center32)(&rows, dim, from, mean, &mut out32);
                    let mut square = [[0.0; WIDE32]; WIDE32];
                    square.iter_mut().zip(out32.as_chunks::<WIDE32>().0).for_each(|(to, row)| *to = *row);
                    (products.add32)(&square, [5, WIDE32.min(dim - from)], &mut sums, from);
                }
                let sums = sums.concat();
                for (i, sum) in sums.iter().enumerate() {
                    assert!((sum - 1.0 - 2.0 * away(i)).abs() < 1e-6, "{} {dim} {i}: {sum}", kernels.name);
                }
                let mut found = vec![0.0; dim];
                (products.sum_away)(&rows, &near, &mut found);
                for (d, found) in found.iter().enumerate() {
                    let wanted = (0..5).map(|r| f64::from(rows[r * dim + d]) - near[d]).fold(0.0, |a, b| a + b);
                    assert_eq!(*found, wanted, "{}", kernels.name);
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_sums_the_same_products() {
        for rows in [0usize, 1, 2, 7, 64, 255, 256] {
            let (a, b) = (values(rows * WIDE64, 3), values(rows * WIDE64, 7));
            let mut wanted = [[0.0; WIDE64]; WIDE64];
            square64(&a, &b, &mut wanted);
            let [a32, b32] =
                [5, 9].map(|seed| values(rows * WIDE32, seed).iter().map(|x| *x as f32).collect::<Vec<_>>());
            let mut wanted32 = [[0.0; WIDE32]; WIDE32];
            square32(&a32, &b32, &mut wanted32);
            for kernels in available() {
                let mut found = [[f64::NAN; WIDE64]; WIDE64];
                (kernels.products.square64)(&a, &b, &mut found);
                let close = |x: f64, y: f64, each: f64| (x - y).abs() <= each * (rows + 1) as f64;
                assert!(found.iter().flatten().zip(wanted.iter().flatten()).all(|(x, y)| close(*x, *y, 1e-15)));
                let mut found = [[f32::NAN; WIDE32]; WIDE32];
                (kernels.products.square32)(&a32, &b32, &mut found);
                let pairs = found.iter().flatten().zip(wanted32.iter().flatten());
                assert!(pairs.into_iter().all(|(x, y)| close(f64::from(*x), f64::from(*y), 1e-6)), "{}", kernels.name);
            }
        }
    }
}
