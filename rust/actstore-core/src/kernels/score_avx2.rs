//! Scores of rows against queries with AVX2 and FMA.
//!
//! The panel loop holds six rows by sixteen queries in twelve registers: for each dim two loads of the
//! panel and six broadcasts feed twelve multiply-adds, so that the two multiply-add units, not the two
//! load ports, are what limits it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::score_scalar::{self as scalar, DEEP, FEW, WIDE, pairwise};
use super::{Dot64, Scores};

/// Rows that the panel loop holds at once.
const TALL: usize = 6;
/// The loops.
pub const SCORES: Scores = Scores {
    dot: detected!(dot(q: &[f32], x: &[f32]) -> f64),
    square_distance: detected!(square_distance(q: &[f32], x: &[f32]) -> f64),
    dot64: DOT64,
    dots64: detected!(dots64(a: &[f64], rows: &[f64], out: &mut [f64])),
    add_scaled64: detected!(add_scaled64(by: f64, x: &[f64], out: &mut [f64])),
    squares: detected!(squares(rows: &[f32], dim: usize, out: &mut [f32])),
    few: detected!(few(rows: &[f32], dim: usize, queries: &[f32], out: &mut [f32], squares: &mut [f32])),
    panel: detected!(panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], coming: &[f32])),
    add_up: detected!(add_up(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32])),
    raise: detected!(raise(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE])),
    work: detected!(work(rounds: usize) -> f64),
    passing: detected!(passing(
        scores: &[f32], base: &[f32; WIDE], slope: &[f32; WIDE], biases: &[f32], norms: &[f32], hits: &mut Vec<(u32, u16)>
    )),
};

const DOT64: Dot64 = detected!(dot64(a: &[f64], b: &[f64]) -> f64);

#[inline]
#[target_feature(enable = "avx2")]
fn load(floats: &[f32; 8]) -> __m256 {
    // SAFETY: eight floats are there, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(floats.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn doubles(floats: &[f32; 8]) -> [__m256d; 2] {
    let v = load(floats);
    [_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v))]
}

/// Eight float64 sums; the last few terms are added to the first of them.
macro_rules! eight {
    ($q:ident, $x:ident, $term:expr, $scalar:expr) => {{
        assert_eq!($q.len(), $x.len());
        let (qs, q_rest) = $q.as_chunks::<8>();
        let (xs, x_rest) = $x.as_chunks::<8>();
        let mut sums = [_mm256_setzero_pd(); 2];
        for (q, x) in qs.iter().zip(xs) {
            let (q, x) = (doubles(q), doubles(x));
            for i in 0..2 {
                sums[i] = _mm256_add_pd(sums[i], $term(q[i], x[i]));
            }
        }
        let mut all = [0f64; 8];
        let (low, high) = all.split_at_mut(4);
        for (sum, out) in sums.into_iter().zip([low, high]) {
            // SAFETY: four doubles are there, and the store needs no alignment.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr(), sum) };
        }
        for (sum, (q, x)) in all.iter_mut().zip(q_rest.iter().zip(x_rest)) {
            *sum += $scalar(f64::from(*q), f64::from(*x));
        }
        pairwise(all)
    }};
}

#[target_feature(enable = "avx2")]
fn dot(q: &[f32], x: &[f32]) -> f64 {
    eight!(q, x, |q, x| _mm256_mul_pd(q, x), |q: f64, x: f64| q * x)
}

#[target_feature(enable = "avx2")]
fn dot64(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [_mm256_setzero_pd(); 2];
    for (a, b) in a.iter().zip(b) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight doubles are there, and the loads need no alignment.
            let (a, b) = unsafe { (_mm256_loadu_pd(a[4 * i..].as_ptr()), _mm256_loadu_pd(b[4 * i..].as_ptr())) };
            *sum = _mm256_add_pd(*sum, _mm256_mul_pd(a, b));
        }
    }
    let mut all = [0f64; 8];
    for (sum, out) in sums.into_iter().zip(all.as_chunks_mut::<4>().0) {
        // SAFETY: four doubles are there, and the store needs no alignment.
        unsafe { _mm256_storeu_pd(out.as_mut_ptr(), sum) };
    }
    for (sum, (a, b)) in all.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a * b;
    }
    pairwise(all)
}

/// Rows that are multiplied at once, so that no sum waits for its own last addition.
const TOGETHER: usize = 4;

#[target_feature(enable = "avx2")]
fn dots64(a: &[f64], rows: &[f64], out: &mut [f64]) {
    let dim = a.len();
    let whole = dim / 8 * 8;
    let mut groups = rows.chunks_exact(dim * TOGETHER);
    for (rows, out) in groups.by_ref().zip(out.chunks_exact_mut(TOGETHER)) {
        let mut sums = [[_mm256_setzero_pd(); 2]; TOGETHER];
        for k in (0..whole).step_by(8) {
            for (r, sums) in sums.iter_mut().enumerate() {
                let (a, row) = (&a[k..k + 8], &rows[r * dim + k..r * dim + k + 8]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: eight doubles are there, and the loads need no alignment.
                    let (a, row) =
                        unsafe { (_mm256_loadu_pd(a[4 * i..].as_ptr()), _mm256_loadu_pd(row[4 * i..].as_ptr())) };
                    *sum = _mm256_add_pd(*sum, _mm256_mul_pd(a, row));
                }
            }
        }
        for (r, (sums, out)) in sums.into_iter().zip(out).enumerate() {
            let mut all = [0f64; 8];
            for (sum, part) in sums.into_iter().zip(all.as_chunks_mut::<4>().0) {
                // SAFETY: the doubles of a register are there, and the store needs no alignment.
                unsafe { _mm256_storeu_pd(part.as_mut_ptr(), sum) };
            }
            for (sum, (a, x)) in all.iter_mut().zip(a[whole..].iter().zip(&rows[r * dim + whole..])) {
                *sum += a * x;
            }
            *out = pairwise(all);
        }
    }
    let rest = groups.remainder();
    let done = (rows.len() - rest.len()) / dim;
    for (row, out) in rest.chunks_exact(dim).zip(&mut out[done..]) {
        *out = dot64(a, row);
    }
}

#[target_feature(enable = "avx2")]
fn add_scaled64(by: f64, x: &[f64], out: &mut [f64]) {
    super::score_scalar::add_scaled(by, x, out);
}

#[target_feature(enable = "avx2")]
fn square_distance(q: &[f32], x: &[f32]) -> f64 {
    eight!(
        q,
        x,
        |q, x| {
            let apart = _mm256_sub_pd(q, x);
            _mm256_mul_pd(apart, apart)
        },
        |q: f64, x: f64| (q - x) * (q - x)
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma")]
fn squares(rows: &[f32], dim: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        let (wide, rest) = row.as_chunks::<32>();
        let mut sums = [_mm256_setzero_ps(); 4];
        for floats in wide {
            for (sum, x) in sums.iter_mut().zip(floats.as_chunks::<8>().0) {
                let x = load(x);
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        let [a, b, c, d] = sums;
        let tail: f32 = rest.iter().map(|x| x * x).sum();
        *out = sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))) + tail;
    }
}

#[target_feature(enable = "avx2,fma")]
fn few(rows: &[f32], dim: usize, queries: &[f32], out: &mut [f32], squares: &mut [f32]) {
    match queries.len() / dim {
        1 => few_of::<1>(rows, dim, queries, out, squares),
        2 => few_of::<2>(rows, dim, queries, out, squares),
        3 => few_of::<3>(rows, dim, queries, out, squares),
        _ => few_of::<FEW>(rows, dim, queries, out, squares),
    }
}

#[target_feature(enable = "avx2,fma")]
fn few_of<const N: usize>(rows: &[f32], dim: usize, queries: &[f32], out: &mut [f32], squares: &mut [f32]) {
    assert_eq!(queries.len(), N * dim);
    let queries: [&[f32]; N] = std::array::from_fn(|j| &queries[j * dim..(j + 1) * dim]);
    for ((row, out), square) in rows.chunks_exact(dim).zip(out.as_chunks_mut::<WIDE>().0).zip(squares) {
        // Two sums for each, so that one addition need not wait for the other.
        let mut sums = [[_mm256_setzero_ps(); 2]; N];
        let mut own = [_mm256_setzero_ps(); 2];
        let (pairs, rest) = row.as_chunks::<16>();
        for (k, pair) in pairs.iter().enumerate() {
            let (halves, _) = pair.as_chunks::<8>();
            for half in 0..2 {
                let x = load(&halves[half]);
                own[half] = _mm256_fmadd_ps(x, x, own[half]);
                for j in 0..N {
                    debug_assert!(k * 16 + half * 8 + 8 <= queries[j].len());
                    // SAFETY: each query has `dim` floats, of which these are the 16 k + 8 half and on.
                    let q = unsafe { _mm256_loadu_ps(queries[j].as_ptr().add(k * 16 + half * 8)) };
                    sums[j][half] = _mm256_fmadd_ps(x, q, sums[j][half]);
                }
            }
        }
        let from = dim - rest.len();
        for j in 0..N {
            let tail: f32 = rest.iter().zip(&queries[j][from..]).map(|(x, q)| x * q).sum();
            out[j] = sum(_mm256_add_ps(sums[j][0], sums[j][1])) + tail;
        }
        *square = sum(_mm256_add_ps(own[0], own[1])) + rest.iter().map(|x| x * x).sum::<f32>();
    }
}

#[target_feature(enable = "avx2,fma")]
fn panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], coming: &[f32]) {
    let n = rows.len() / dim;
    let panels = packed.len() / (dim * WIDE);
    assert!(rows.len() == n * dim && packed.len() == panels * dim * WIDE && out.len() >= panels * n * WIDE);
    for (p, packed) in packed.chunks_exact(dim * WIDE).enumerate() {
        // The registers hold no more than one panel.
        let coming = if p == 0 { coming } else { &[] };
        one_panel(rows, dim, packed, &mut out[p * n * WIDE..(p + 1) * n * WIDE], coming);
    }
}

#[target_feature(enable = "avx2,fma")]
fn one_panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], coming: &[f32]) {
    let n = rows.len() / dim;
    let mut fetch = Fetch::new(coming);
    let blocks = dim.div_ceil(DEEP);
    for block in 0..blocks {
        let dims = dim * block / blocks..dim * (block + 1) / blocks;
        let mut row = 0;
        while row + TALL <= n {
            if coming.is_empty() {
                tile::<TALL, false>(rows, dim, packed, out, row, &dims, &mut fetch);
            } else {
                fetch.announce(TALL * dims.len());
                tile::<TALL, true>(rows, dim, packed, out, row, &dims, &mut fetch);
            }
            row += TALL;
        }
        match n - row {
            0 => {}
            1 => tile::<1, false>(rows, dim, packed, out, row, &dims, &mut fetch),
            2 => tile::<2, false>(rows, dim, packed, out, row, &dims, &mut fetch),
            3 => tile::<3, false>(rows, dim, packed, out, row, &dims, &mut fetch),
            4 => tile::<4, false>(rows, dim, packed, out, row, &dims, &mut fetch),
            _ => tile::<5, false>(rows, dim, packed, out, row, &dims, &mut fetch),
        }
    }
}

/// Fetches floats from memory while other work is done.
///
/// A prefetch of a page whose address is not in the translation buffers comes late (on a virtual machine,
/// where translating is slow). So one line of each page is prefetched well before the others. (Loads
/// in its place hold the processor up: what follows can't retire before they have come from memory.)
pub struct Fetch<'a> {
    floats: &'a [f32],
    announced: usize,
    next: *const f32,
}

impl<'a> Fetch<'a> {
    /// Floats of a page and of a cache line.
    const PAGE: usize = 1024;
    /// See above.
    pub const LINE: usize = 16;
    /// How far pages are announced ahead of their other lines, in floats.
    const AHEAD: usize = 4 * Self::PAGE;

    /// Of these.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn new(floats: &'a [f32]) -> Self {
        let mut fetch = Fetch { floats, announced: 0, next: floats.as_ptr() };
        if !floats.is_empty() {
            fetch.announce(Self::AHEAD);
        }
        fetch
    }

    /// Whether there is nothing to fetch.
    pub fn is_empty(&self) -> bool {
        self.floats.is_empty()
    }

    /// Prefetches a line of each page of the next `n` floats.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn announce(&mut self, n: usize) {
        let end = self.announced + n;
        for at in (self.announced.next_multiple_of(Self::PAGE)..end).step_by(Self::PAGE) {
            if let Some(first) = self.floats.get(at) {
                _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(first).cast());
            }
        }
        self.announced = end;
    }

    /// Prefetches the next few lines; past the end it does no harm.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn lines(&mut self, n: usize) {
        for _ in 0..n {
            _mm_prefetch::<_MM_HINT_T1>(self.next.cast());
            self.next = self.next.wrapping_add(Self::LINE);
        }
    }
}

/// Rows `row..row + T` by a panel, over some dims; the first dims set `out`, the others add to it. With
/// `FETCH`, as many floats are fetched as rows are read.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const T: usize, const FETCH: bool>(
    rows: &[f32],
    dim: usize,
    packed: &[f32],
    out: &mut [f32],
    row: usize,
    dims: &std::ops::Range<usize>,
    fetch: &mut Fetch<'_>,
) {
    /// Dims between fetches: half a line of each row.
    const EVERY: usize = 8;
    let mine = &rows[row * dim..(row + T) * dim];
    let packed = &packed[dims.start * WIDE..dims.end * WIDE];
    let out: &mut [f32] = &mut out[row * WIDE..(row + T) * WIDE];
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    let (x, q) = (mine.as_ptr(), packed.as_ptr());
    for k in 0..dims.len() {
        if FETCH && k % EVERY == 0 {
            fetch.lines(T * EVERY / Fetch::LINE);
        }
        // SAFETY: `k < dims.len()`, and the panel's slice has `dims.len()` times sixteen floats.
        let (low, high) = unsafe { (_mm256_loadu_ps(q.add(k * WIDE)), _mm256_loadu_ps(q.add(k * WIDE + 8))) };
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `t < T` rows of `dim` floats are there, and `dims` ends at `dim` at most.
            let x = unsafe { _mm256_broadcast_ss(&*x.add(t * dim + dims.start + k)) };
            sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
            sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
        }
    }
    for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<8>().0.chunks_exact_mut(2)) {
        for (sum, out) in sums.into_iter().zip(out) {
            let whole = if dims.start == 0 { sum } else { _mm256_add_ps(load(out), sum) };
            // SAFETY: eight floats are there, and the store needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), whole) };
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn passing(
    scores: &[f32],
    base: &[f32; WIDE],
    slope: &[f32; WIDE],
    biases: &[f32],
    norms: &[f32],
    hits: &mut Vec<(u32, u16)>,
) {
    let halves = |all: &[f32; WIDE]| {
        let (halves, _) = all.as_chunks::<8>();
        [load(&halves[0]), load(&halves[1])]
    };
    let (base, slope) = (halves(base), halves(slope));
    let rows = biases.iter().zip(norms);
    for (i, (scores, (bias, norm))) in scores.as_chunks::<WIDE>().0.iter().zip(rows).enumerate() {
        let (bias, norm) = (_mm256_set1_ps(*bias), _mm256_set1_ps(*norm));
        let (scores, _) = scores.as_chunks::<8>();
        let mut mask = 0;
        for half in 0..2 {
            let least = _mm256_add_ps(_mm256_add_ps(base[half], bias), _mm256_mul_ps(norm, slope[half]));
            let passes = _mm256_cmp_ps::<_CMP_NLT_UQ>(load(&scores[half]), least);
            mask |= _mm256_movemask_ps(passes) << (8 * half);
        }
        if mask != 0 {
            hits.push((i as u32, mask as u16));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn add_up(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32]) {
    super::score_scalar::add_up_by(products, centers, by, totals);
}

#[target_feature(enable = "avx2,fma")]
fn raise(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE]) {
    super::score_scalar::raise_by(scores, biases, best);
}

/// As many multiply-adds as the two units take, in twelve chains, of which each waits for its last.
#[target_feature(enable = "avx2,fma")]
fn work(rounds: usize) -> f64 {
    let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.5)), _mm256_set1_ps(std::hint::black_box(1.0)));
    let mut sums = [_mm256_setzero_ps(); 12];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm256_fmadd_ps(*s, a, b);
        }
    }
    std::hint::black_box(sums.into_iter().map(|s| sum(s)).sum::<f32>());
    (rounds * 12 * 8 * 2) as f64
}

const _: () = assert!(scalar::FEW == 4, "few has a case for each number of queries");
