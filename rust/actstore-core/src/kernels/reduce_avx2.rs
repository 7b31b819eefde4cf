//! Sums and extremes over rows with AVX2 and FMA.
//!
//! A strip of sixteen columns, a cache line, is taken down all rows with its sums in registers. The
//! processors this was measured on (Zen 3 and 4) have two units that add, convert and compare and two
//! that multiply and add, so the additions of [`moments`] are made by the latter, as `x * 1 + y`: the
//! same bits, and a third less time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::reduce_scalar::{Extremes, Reduce, STRIP, add_rows_from, max_rows_from, moments_strip};

/// The loops.
pub const REDUCE: Reduce = Reduce {
    moments: detected!(moments(
        rows: &[f32], shift: &[f64], sums: &mut [f64], squares: &mut [f64], seen: &mut Extremes, wrong: &mut Vec<usize>
    )),
    add_rows: detected!(add_rows(rows: &[f32], weights: [f64; 2], sums: &mut [f64])),
    max_rows: detected!(max_rows(rows: &[f32], largest: &mut [f32])),
};

/// Four floats of a row as doubles.
#[inline]
#[target_feature(enable = "avx2")]
fn doubles(row: &[f32], at: usize) -> __m256d {
    let four: &[f32; 4] = row[at..at + 4].try_into().expect("four floats");
    // SAFETY: four floats are there, and the load needs no alignment.
    unsafe { _mm256_cvtps_pd(_mm_loadu_ps(four.as_ptr())) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn floats(row: &[f32], at: usize) -> __m256 {
    let eight: &[f32; 8] = row[at..at + 8].try_into().expect("eight floats");
    // SAFETY: eight floats are there, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(sums: &[f64], at: usize) -> __m256d {
    let four: &[f64; 4] = sums[at..at + 4].try_into().expect("four doubles");
    // SAFETY: four doubles are there, and the load needs no alignment.
    unsafe { _mm256_loadu_pd(four.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(sums: &mut [f64], at: usize, value: __m256d) {
    let four: &mut [f64; 4] = (&mut sums[at..at + 4]).try_into().expect("four doubles");
    // SAFETY: four doubles are there, and the store needs no alignment.
    unsafe { _mm256_storeu_pd(four.as_mut_ptr(), value) }
}

/// Most strips have no zero, and nothing larger than what was seen before. So for all strips only this is
/// found out, from the upper halves of the floats, of which a register holds sixteen; the few others are
/// looked at again, while they are in the first-level cache.
#[target_feature(enable = "avx2,fma")]
fn moments(
    rows: &[f32],
    shift: &[f64],
    sums: &mut [f64],
    squares: &mut [f64],
    seen: &mut Extremes,
    wrong: &mut Vec<usize>,
) {
    for at in (0..shift.len()).step_by(STRIP) {
        if at + STRIP > shift.len() {
            moments_strip(at, rows, shift, sums, squares, seen, wrong);
            break;
        }
        let calm = calm_below(seen);
        let none = shift[at..at + STRIP].iter().fold(0, |any, shift| any | shift.to_bits()) == 0;
        let strip = if none {
            strip::<false>(at, rows, shift, sums, squares, calm)
        } else {
            strip::<true>(at, rows, shift, sums, squares, calm)
        };
        match strip {
            Strip::Calm => {}
            Strip::Finite => look(at, rows, shift.len(), seen),
            Strip::Wrong => wrong.push(at),
        }
    }
}

/// What is in a strip.
enum Strip {
    /// No zero, and no value beyond what was seen.
    Calm,
    /// Maybe such a value.
    Finite,
    /// A value that is not finite.
    Wrong,
}

/// A size, as [`sizes`] gives them, below which a value that is not zero changes no extreme.
fn calm_below(seen: &Extremes) -> u16 {
    let near = seen.max.min(-seen.min);
    if near > 0.0 { ((near.to_bits() >> 16 << 1) as u16).saturating_sub(1) } else { 0 }
}

/// The sizes of sixteen floats: the bits below the sign of their upper halves, doubled, less one; so
/// that zero has the largest.
#[inline]
#[target_feature(enable = "avx2")]
fn sizes(row: &[f32]) -> __m256i {
    let sixteen: &[f32; STRIP] = row.try_into().expect("sixteen floats");
    let bytes = sixteen.as_ptr().cast::<u8>();
    // SAFETY: sixty-four bytes are there, and the loads need no alignment. The first begins at the upper
    // half of the first float.
    let (even, odd) = unsafe { (_mm256_loadu_si256(bytes.add(2).cast()), _mm256_loadu_si256(bytes.add(32).cast())) };
    let upper = _mm256_blend_epi16::<0b1010_1010>(even, odd);
    _mm256_add_epi16(_mm256_add_epi16(upper, upper), _mm256_set1_epi16(-1))
}

/// Adds a strip; `SHIFT` is whether any of its shifts is not zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn strip<const SHIFT: bool>(
    at: usize,
    rows: &[f32],
    shift: &[f64],
    sums: &mut [f64],
    squares: &mut [f64],
    calm: u16,
) -> Strip {
    const N: usize = STRIP / 4;
    // Not known to the compiler, which would make an addition of it.
    let one = _mm256_set1_pd(std::hint::black_box(1.0));
    let (mut s, mut q, mut shifts) = ([_mm256_setzero_pd(); N], [_mm256_setzero_pd(); N], [_mm256_setzero_pd(); N]);
    for i in 0..N {
        s[i] = load(sums, at + 4 * i);
        q[i] = load(squares, at + 4 * i);
        shifts[i] = load(shift, at + 4 * i);
    }
    let mut largest = _mm256_setzero_si256();
    for row in rows.chunks_exact(shift.len()) {
        let row = &row[at..at + STRIP];
        for i in 0..N {
            let x = doubles(row, 4 * i);
            let x = if SHIFT { _mm256_fmsub_pd(x, one, shifts[i]) } else { x };
            s[i] = _mm256_fmadd_pd(x, one, s[i]);
            q[i] = _mm256_fmadd_pd(x, x, q[i]);
        }
        largest = _mm256_max_epu16(largest, sizes(row));
    }
    let known = _mm256_max_epu16(largest, _mm256_set1_epi16(calm.cast_signed()));
    let beyond = _mm256_cmpeq_epi16(known, largest);
    let stirred = _mm256_testz_si256(beyond, beyond) == 0;
    if stirred {
        // Squares of float32 are far from the largest float64: one that is infinite or NaN comes of such
        // a value.
        let wrong = q.into_iter().fold(_mm256_setzero_pd(), |any, q| _mm256_or_pd(any, _mm256_sub_pd(q, q)));
        let wrong = _mm256_castpd_si256(wrong);
        if _mm256_testz_si256(wrong, wrong) == 0 {
            return Strip::Wrong;
        }
    }
    for i in 0..N {
        store(sums, at + 4 * i, s[i]);
        store(squares, at + 4 * i, q[i]);
    }
    if stirred { Strip::Finite } else { Strip::Calm }
}

/// Widens the extremes to a strip of finite values.
#[target_feature(enable = "avx2")]
fn look(at: usize, rows: &[f32], dim: usize, seen: &mut Extremes) {
    let (mut min, mut max) = (_mm256_set1_ps(seen.min), _mm256_set1_ps(seen.max));
    // No block in memory has so many rows that 32 bits do not hold the zeros of a column.
    let mut less_zeros = _mm256_setzero_si256();
    for row in rows.chunks_exact(dim) {
        let row = &row[at..at + STRIP];
        for half in 0..2 {
            let x = floats(row, 8 * half);
            min = _mm256_min_ps(min, x);
            max = _mm256_max_ps(max, x);
            let zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(x, _mm256_setzero_ps());
            less_zeros = _mm256_sub_epi32(less_zeros, _mm256_castps_si256(zero));
        }
    }
    let (mut low, mut high, mut zeros) = ([0f32; 8], [0f32; 8], [0u32; 8]);
    // SAFETY: eight values are there in each, and the stores need no alignment.
    unsafe {
        _mm256_storeu_ps(low.as_mut_ptr(), min);
        _mm256_storeu_ps(high.as_mut_ptr(), max);
        _mm256_storeu_si256(zeros.as_mut_ptr().cast(), less_zeros);
    }
    seen.zeros += zeros.into_iter().map(u64::from).sum::<u64>();
    // Adding zero makes both zeros one.
    seen.min = low.into_iter().fold(seen.min, f32::min) + 0.0;
    seen.max = high.into_iter().fold(seen.max, f32::max) + 0.0;
}

#[target_feature(enable = "avx2,fma")]
fn add_rows(rows: &[f32], [first, step]: [f64; 2], sums: &mut [f64]) {
    let mut at = 0;
    // Two cache lines: one has too few sums to hide how long an addition takes.
    while at + 2 * STRIP <= sums.len() {
        add_strip::<{ 2 * STRIP / 4 }>(at, rows, [first, step], sums);
        at += 2 * STRIP;
    }
    while at + 4 <= sums.len() {
        add_strip::<1>(at, rows, [first, step], sums);
        at += 4;
    }
    add_rows_from(at, rows, [first, step], sums);
}

/// Four times `N` columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_strip<const N: usize>(at: usize, rows: &[f32], [first, step]: [f64; 2], sums: &mut [f64]) {
    let (mut weight, step) = (_mm256_set1_pd(first), _mm256_set1_pd(step));
    let mut all = [_mm256_setzero_pd(); N];
    for (i, sum) in all.iter_mut().enumerate() {
        *sum = load(sums, at + 4 * i);
    }
    for row in rows.chunks_exact(sums.len()) {
        let row = &row[at..at + 4 * N];
        for (i, sum) in all.iter_mut().enumerate() {
            *sum = _mm256_fmadd_pd(doubles(row, 4 * i), weight, *sum);
        }
        weight = _mm256_add_pd(weight, step);
    }
    for (i, sum) in all.into_iter().enumerate() {
        store(sums, at + 4 * i, sum);
    }
}

#[target_feature(enable = "avx2,fma")]
fn max_rows(rows: &[f32], largest: &mut [f32]) {
    const N: usize = STRIP / 8;
    let dim = largest.len();
    let whole = dim / STRIP * STRIP;
    for at in (0..whole).step_by(STRIP) {
        let mut all = [_mm256_setzero_ps(); N];
        for (i, max) in all.iter_mut().enumerate() {
            *max = floats(largest, at + 8 * i);
        }
        let mut unordered = [_mm256_setzero_ps(); N];
        for row in rows.chunks_exact(dim) {
            let row = &row[at..at + STRIP];
            for i in 0..N {
                let x = floats(row, 8 * i);
                // Where either is NaN, or they are equal, the second stays.
                all[i] = _mm256_max_ps(x, all[i]);
                unordered[i] = _mm256_or_ps(unordered[i], _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            }
        }
        for i in 0..N {
            let nan = _mm256_set1_ps(f32::NAN);
            let max = _mm256_blendv_ps(all[i], nan, unordered[i]);
            let out: &mut [f32; 8] = (&mut largest[at + 8 * i..at + 8 * i + 8]).try_into().expect("eight floats");
            // SAFETY: eight floats are there, and the store needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), max) };
        }
    }
    max_rows_from(whole, rows, largest);
}
