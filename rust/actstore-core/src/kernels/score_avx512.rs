//! Scores of rows against queries with AVX-512.
//!
//! The panel loop holds twelve rows by two panels of sixteen queries in twenty-four registers: for each dim
//! two loads and twelve broadcasts feed twenty-four multiply-adds. One panel alone has a broadcast for each
//! multiply-add, and is limited by the load ports.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::score_avx2::{Fetch, SCORES as AVX2};
use super::score_scalar::{DEEP, WIDE};
use super::{Dot64, Scores};

/// Rows that the panel loop holds at once.
const TALL: usize = 12;

/// The loops; few queries wait for memory, whatever the registers.
pub const SCORES: Scores = Scores {
    dot64: DOT64,
    dots64: detected!(dots64(a: &[f64], rows: &[f64], out: &mut [f64])),
    add_scaled64: detected!(add_scaled64(by: f64, x: &[f64], out: &mut [f64])),
    squares: detected!(squares(rows: &[f32], dim: usize, out: &mut [f32])),
    panel: detected!(panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], coming: &[f32])),
    add_up: detected!(add_up(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32])),
    raise: detected!(raise(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE])),
    work: detected!(work(rounds: usize) -> f64),
    ..AVX2
};

const DOT64: Dot64 = detected!(dot64(a: &[f64], b: &[f64]) -> f64);

#[inline]
#[target_feature(enable = "avx512f")]
fn load(floats: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen floats are there, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(floats.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn dot64(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sum = _mm512_setzero_pd();
    for (a, b) in a.iter().zip(b) {
        // SAFETY: eight doubles are there, and the loads need no alignment.
        let (a, b) = unsafe { (_mm512_loadu_pd(a.as_ptr()), _mm512_loadu_pd(b.as_ptr())) };
        sum = _mm512_add_pd(sum, _mm512_mul_pd(a, b));
    }
    let mut sums = [0f64; 8];
    // SAFETY: eight doubles are there, and the store needs no alignment.
    unsafe { _mm512_storeu_pd(sums.as_mut_ptr(), sum) };
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a * b;
    }
    super::score_scalar::pairwise(sums)
}

/// Rows that are multiplied at once, so that no sum waits for its own last addition.
const TOGETHER: usize = 8;

#[target_feature(enable = "avx512f")]
fn dots64(a: &[f64], rows: &[f64], out: &mut [f64]) {
    let dim = a.len();
    let whole = dim / 8 * 8;
    let mut groups = rows.chunks_exact(dim * TOGETHER);
    for (rows, out) in groups.by_ref().zip(out.chunks_exact_mut(TOGETHER)) {
        let mut sums = [[_mm512_setzero_pd(); 1]; TOGETHER];
        for k in (0..whole).step_by(8) {
            for (r, sums) in sums.iter_mut().enumerate() {
                let (a, row) = (&a[k..k + 8], &rows[r * dim + k..r * dim + k + 8]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: eight doubles are there, and the loads need no alignment.
                    let (a, row) =
                        unsafe { (_mm512_loadu_pd(a[8 * i..].as_ptr()), _mm512_loadu_pd(row[8 * i..].as_ptr())) };
                    *sum = _mm512_add_pd(*sum, _mm512_mul_pd(a, row));
                }
            }
        }
        for (r, (sums, out)) in sums.into_iter().zip(out).enumerate() {
            let mut all = [0f64; 8];
            for (sum, part) in sums.into_iter().zip(all.as_chunks_mut::<8>().0) {
                // SAFETY: the doubles of a register are there, and the store needs no alignment.
                unsafe { _mm512_storeu_pd(part.as_mut_ptr(), sum) };
            }
            for (sum, (a, x)) in all.iter_mut().zip(a[whole..].iter().zip(&rows[r * dim + whole..])) {
                *sum += a * x;
            }
            *out = super::score_scalar::pairwise(all);
        }
    }
    let rest = groups.remainder();
    let done = (rows.len() - rest.len()) / dim;
    for (row, out) in rest.chunks_exact(dim).zip(&mut out[done..]) {
        *out = dot64(a, row);
    }
}

#[target_feature(enable = "avx512f")]
fn add_scaled64(by: f64, x: &[f64], out: &mut [f64]) {
    super::score_scalar::add_scaled(by, x, out);
}

#[target_feature(enable = "avx512f")]
fn squares(rows: &[f32], dim: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        let (wide, rest) = row.as_chunks::<64>();
        let mut sums = [_mm512_setzero_ps(); 4];
        for floats in wide {
            for (sum, x) in sums.iter_mut().zip(floats.as_chunks::<16>().0) {
                let x = load(x);
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        let [a, b, c, d] = sums;
        let tail: f32 = rest.iter().map(|x| x * x).sum();
        *out = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))) + tail;
    }
}

#[target_feature(enable = "avx512f")]
fn panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], coming: &[f32]) {
    let n = rows.len() / dim;
    let panels = packed.len() / (dim * WIDE);
    assert!(rows.len() == n * dim && packed.len() == panels * dim * WIDE && out.len() >= panels * n * WIDE);
    let mut fetch = Fetch::new(coming);
    let (one, two) = packed.split_at(dim * WIDE);
    let (out_one, out_two) = out.split_at_mut(n * WIDE);
    if two.is_empty() {
        panels_of::<1>(rows, dim, [one], [out_one], &mut fetch);
    } else {
        panels_of::<2>(rows, dim, [one, two], [out_one, out_two], &mut fetch);
    }
}

#[target_feature(enable = "avx512f")]
fn panels_of<const P: usize>(
    rows: &[f32],
    dim: usize,
    packed: [&[f32]; P],
    mut out: [&mut [f32]; P],
    fetch: &mut Fetch<'_>,
) {
    let n = rows.len() / dim;
    let blocks = dim.div_ceil(DEEP);
    for block in 0..blocks {
        let dims = dim * block / blocks..dim * (block + 1) / blocks;
        let mut row = 0;
        while row + TALL <= n {
            if fetch.is_empty() {
                tile::<TALL, P, false>(rows, dim, packed, &mut out, row, &dims, fetch);
            } else {
                fetch.announce(TALL * dims.len());
                tile::<TALL, P, true>(rows, dim, packed, &mut out, row, &dims, fetch);
            }
            row += TALL;
        }
        while row + 4 <= n {
            tile::<4, P, false>(rows, dim, packed, &mut out, row, &dims, fetch);
            row += 4;
        }
        while row < n {
            tile::<1, P, false>(rows, dim, packed, &mut out, row, &dims, fetch);
            row += 1;
        }
    }
}

/// Rows `row..row + T` by the panels, over some dims; the first dims set `out`, the others add to it. With
/// `FETCH`, as many floats are fetched as rows are read.
#[inline]
#[target_feature(enable = "avx512f")]
fn tile<const T: usize, const P: usize, const FETCH: bool>(
    rows: &[f32],
    dim: usize,
    packed: [&[f32]; P],
    out: &mut [&mut [f32]; P],
    row: usize,
    dims: &std::ops::Range<usize>,
    fetch: &mut Fetch<'_>,
) {
    /// Dims between fetches: half a line of each row.
    const EVERY: usize = 8;
    let x = rows[row * dim..(row + T) * dim].as_ptr();
    let q = packed.map(|panel| panel[dims.start * WIDE..dims.end * WIDE].as_ptr());
    let mut sums = [[_mm512_setzero_ps(); P]; T];
    for k in 0..dims.len() {
        if FETCH && k % EVERY == 0 {
            fetch.lines(T * EVERY / Fetch::LINE);
        }
        // SAFETY: `k < dims.len()`, and each panel's slice has `dims.len()` times sixteen floats.
        let q = q.map(|q| unsafe { _mm512_loadu_ps(q.add(k * WIDE)) });
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `t < T` rows of `dim` floats are there, and `dims` ends at `dim` at most.
            let x = _mm512_set1_ps(unsafe { *x.add(t * dim + dims.start + k) });
            for p in 0..P {
                sums[p] = _mm512_fmadd_ps(x, q[p], sums[p]);
            }
        }
    }
    for (p, out) in out.iter_mut().enumerate() {
        let out = out[row * WIDE..(row + T) * WIDE].as_chunks_mut::<WIDE>().0;
        for (sums, out) in sums.iter().zip(out) {
            let whole = if dims.start == 0 { sums[p] } else { _mm512_add_ps(load(out), sums[p]) };
            // SAFETY: sixteen floats are there, and the store needs no alignment.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), whole) };
        }
    }
}

/// By hand: compilers take the rows for the lanes, and gather them.
#[target_feature(enable = "avx512f")]
fn add_up(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32]) {
    let center = load(centers);
    let rows = products.as_chunks::<WIDE>().0.iter().zip(totals.as_chunks_mut::<WIDE>().0);
    for ((products, totals), by) in rows.zip(by) {
        let whole = _mm512_fmadd_ps(_mm512_set1_ps(*by), _mm512_sub_ps(load(products), center), load(totals));
        // SAFETY: sixteen floats are there, and the store needs no alignment.
        unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), whole) };
    }
}

#[target_feature(enable = "avx512f")]
fn raise(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE]) {
    super::score_scalar::raise_by(scores, biases, best);
}

/// As many multiply-adds as the units take, in twelve chains, of which each waits for its last.
#[target_feature(enable = "avx512f")]
fn work(rounds: usize) -> f64 {
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.5)), _mm512_set1_ps(std::hint::black_box(1.0)));
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_fmadd_ps(*s, a, b);
        }
    }
    std::hint::black_box(sums.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum::<f32>());
    (rounds * 12 * 16 * 2) as f64
}
