//! Products of columns with AVX2 and FMA.
//!
//! Six columns by two registers are held in twelve registers, as in `score_avx2`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::Products;
use super::products_scalar::{self as scalar, Square, WIDE32, WIDE64, recompiled, square};

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

/// Columns of the first panel, and registers of the second, that are held at once.
const TALL: usize = 6;
/// See [`TALL`].
const ACROSS: usize = 2;

square!(
    "avx2,fma",
    square64,
    f64,
    WIDE64,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_storeu_pd
);
square!(
    "avx2,fma",
    square32,
    f32,
    WIDE32,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);
recompiled!("avx2,fma");
