//! Products of columns with AVX-512.
//!
//! Eight columns by three registers, a whole panel across, are held in twenty-four registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::Products;
use super::products_scalar::{self as scalar, Square, WIDE32, WIDE64, recompiled};

/// The loops.
pub const PRODUCTS: Products = Products {
    square64: detected!(square64(a: &[f64], b: &[f64], out: &mut Square<f64, WIDE64>)),
    square32: detected!(square32(a: &[f32], b: &[f32], out: &mut Square<f32, WIDE32>)),
    add64: detected!(add64(sums: &Square<f64, WIDE64>, size: [usize; 2], out: &mut [&mut [f64]], at: usize)),
    add32: detected!(add32(sums: &Square<f32, WIDE32>, size: [usize; 2], out: &mut [&mut [f64]], at: usize)),
    center64: detected!(center64(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f64])),
    center32: detected!(center32(rows: &[f32], dim: usize, from: usize, mean: [&[f64]; 2], out: &mut [f32])),
    sum_away: detected!(sum_away(rows: &[f32], near: &[f64], sums: &mut [f64])),
};

/// One loop: $tall columns of the first panel by $across registers of the second at a time.
macro_rules! square {
    ($name:ident, $float:ty, $wide:ident, $lanes:literal, $zero:ident, $load:ident, $one:ident, $add:ident, $store:ident) => {
        #[target_feature(enable = "avx512f")]
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

/// Columns of the first panel, and registers of the second, that are held at once.
const TALL: usize = 8;
/// See [`TALL`].
const ACROSS: usize = 3;

square!(
    square64,
    f64,
    WIDE64,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_storeu_pd
);
square!(
    square32,
    f32,
    WIDE32,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
recompiled!("avx512f");
