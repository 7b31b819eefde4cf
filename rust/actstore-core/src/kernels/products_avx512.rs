//! Products of columns with AVX-512.
//!
//! Eight columns by three registers, a whole panel across, are held in twenty-four registers.
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
const TALL: usize = 8;
/// See [`TALL`].
const ACROSS: usize = 3;

square!(
    "avx512f",
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
    "avx512f",
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
