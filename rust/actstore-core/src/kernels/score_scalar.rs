//! Scores of rows against queries: the specification of the loops that search runs.
//!
//! Two kinds. The exact ones are the ranking contract: float64, eight accumulators by index modulo 8,
//! multiplied and then added, summed pairwise; every instruction set gives the same bits. The quick
//! ones are float32 products of which only an error bound is promised ([`error_bound`]); they find
//! the few rows that the exact ones look at.

use super::Scores;

/// Queries that a panel holds side by side.
pub const WIDE: usize = 16;
/// Queries that are scored without a panel.
pub const FEW: usize = 4;
/// Products that the quick loops add to one float32 sum at most, before that is added to the whole.
pub const DEEP: usize = 256;

/// The loops.
pub const SCORES: Scores =
    Scores { dot, square_distance, dot64, dots64, add_scaled64, squares, few, panel, passing, add_up, raise, work };

/// How far a quick sum of `n` products may be from the exact one, in units of sum |q x|: a rounding for
/// each addition that a product goes through (of a panel, those of its block and those of the blocks;
/// without one, a sixteenth of all), and some for its own, the scaling of the query and what is made of it.
pub fn error_bound(n: usize) -> f64 {
    let roundings = n.min(DEEP) + n.div_ceil(16) + 16;
    1.01 * roundings as f64 * f64::from(f32::EPSILON) / 2.0
}

fn eight<T: Copy + Into<f64>>(q: &[T], x: &[T], term: impl Fn(f64, f64) -> f64) -> f64 {
    assert_eq!(q.len(), x.len());
    let mut sums = [0f64; 8];
    let (qs, q_rest) = q.as_chunks::<8>();
    let (xs, x_rest) = x.as_chunks::<8>();
    for (q, x) in qs.iter().zip(xs) {
        for i in 0..8 {
            sums[i] += term(q[i].into(), x[i].into());
        }
    }
    for (sum, (q, x)) in sums.iter_mut().zip(q_rest.iter().zip(x_rest)) {
        *sum += term((*q).into(), (*x).into());
    }
    pairwise(sums)
}

/// The sum of eight.
pub fn pairwise(s: [f64; 8]) -> f64 {
    ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
}

fn dot(q: &[f32], x: &[f32]) -> f64 {
    eight(q, x, |q, x| q * x)
}

fn square_distance(q: &[f32], x: &[f32]) -> f64 {
    eight(q, x, |q, x| (q - x) * (q - x))
}

fn dot64(a: &[f64], b: &[f64]) -> f64 {
    eight(a, b, |a, b| a * b)
}

fn dots64(a: &[f64], rows: &[f64], out: &mut [f64]) {
    for (row, out) in rows.chunks_exact(a.len()).zip(out) {
        *out = dot64(a, row);
    }
}

fn add_scaled64(by: f64, x: &[f64], out: &mut [f64]) {
    add_scaled(by, x, out);
}

/// Inlined, to be compiled for the instructions of its caller, which keep the two roundings.
#[inline(always)]
pub fn add_scaled(by: f64, x: &[f64], out: &mut [f64]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += by * x);
}

fn squares(rows: &[f32], dim: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out) {
        *out = quick(row, row);
    }
}

fn quick(q: &[f32], x: &[f32]) -> f32 {
    let blocks = q.chunks(DEEP).zip(x.chunks(DEEP));
    blocks.map(|(q, x)| q.iter().zip(x).map(|(q, x)| q * x).sum::<f32>()).sum()
}

fn few(rows: &[f32], dim: usize, queries: &[f32], out: &mut [f32], squares: &mut [f32]) {
    for ((row, out), square) in rows.chunks_exact(dim).zip(out.as_chunks_mut::<WIDE>().0).zip(squares) {
        for (query, out) in queries.chunks_exact(dim).zip(out) {
            *out = quick(query, row);
        }
        *square = quick(row, row);
    }
}

fn panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32], _coming: &[f32]) {
    let n = rows.len() / dim;
    for (panel, out) in packed.chunks_exact(dim * WIDE).zip(out.chunks_mut((n * WIDE).max(1))) {
        one_panel(rows, dim, panel, out);
    }
}

fn one_panel(rows: &[f32], dim: usize, packed: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(dim).zip(out.as_chunks_mut::<WIDE>().0) {
        *out = [0.0; WIDE];
        for (row, packed) in row.chunks(DEEP).zip(packed.chunks(DEEP * WIDE)) {
            let mut sums = [0f32; WIDE];
            for (x, qs) in row.iter().zip(packed.as_chunks::<WIDE>().0) {
                for (sum, q) in sums.iter_mut().zip(qs) {
                    *sum += x * q;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}

fn passing(
    scores: &[f32],
    base: &[f32; WIDE],
    slope: &[f32; WIDE],
    biases: &[f32],
    norms: &[f32],
    hits: &mut Vec<(u32, u16)>,
) {
    let rows = biases.iter().zip(norms);
    for (i, (scores, (bias, norm))) in scores.as_chunks::<WIDE>().0.iter().zip(rows).enumerate() {
        let mut mask = 0;
        for (j, score) in scores.iter().enumerate() {
            // A NaN passes.
            let fails = *score < base[j] + bias + norm * slope[j];
            mask |= u16::from(!fails) << j;
        }
        if mask != 0 {
            hits.push((i as u32, mask));
        }
    }
}

fn add_up(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32]) {
    add_up_by(products, centers, by, totals);
}

/// Inlined, to be compiled for the instructions of its caller.
#[inline(always)]
pub fn add_up_by(products: &[f32], centers: &[f32; WIDE], by: &[f32], totals: &mut [f32]) {
    let rows = products.as_chunks::<WIDE>().0.iter().zip(totals.as_chunks_mut::<WIDE>().0);
    for ((products, totals), by) in rows.zip(by) {
        for ((total, product), center) in totals.iter_mut().zip(products).zip(centers) {
            *total += by * (product - center);
        }
    }
}

fn raise(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE]) {
    raise_by(scores, biases, best);
}

/// Inlined, to be compiled for the instructions of its caller.
#[inline(always)]
pub fn raise_by(scores: &[f32], biases: &[f32], best: &mut [f32; WIDE]) {
    let mut so_far = *best;
    for (scores, bias) in scores.as_chunks::<WIDE>().0.iter().zip(biases) {
        for (best, score) in so_far.iter_mut().zip(scores) {
            let score = score - bias;
            *best = if score > *best { score } else { *best };
        }
    }
    *best = so_far;
}

fn work(rounds: usize) -> f64 {
    let (a, b) = (std::hint::black_box(0.5f32), std::hint::black_box(1.0f32));
    let mut sums = [0f32; 32];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    std::hint::black_box(sums.iter().sum::<f32>());
    (rounds * 32 * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    fn floats(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                // Scales apart, as outlier channels have them.
                unit * if state.is_multiple_of(61) { 300.0 } else { 1.0 }
            })
            .collect()
    }

    #[test]
    fn exact_scores_have_the_same_bits_on_every_instruction_set() {
        for n in (0..40).chain([383, 384, 385, 1000]) {
            let (mut q, x) = (floats(n, 3), floats(n, 8));
            for special in [0.0, f32::NAN, f32::INFINITY, 1e-42, 3e38] {
                let wide = |floats: &[f32]| floats.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                for kernels in available() {
                    let scores = &kernels.scores;
                    assert_eq!((scores.dot)(&q, &x).to_bits(), dot(&q, &x).to_bits(), "{} n={n}", kernels.name);
                    assert_eq!((scores.dot64)(&wide(&q), &wide(&x)).to_bits(), dot(&q, &x).to_bits());
                    if n > 0 {
                        let rows: Vec<f64> =
                            (0..13).flat_map(|i| wide(&x).into_iter().map(move |x| x * f64::from(i))).collect();
                        let (mut dots, mut wanted) = ([0.0; 13], [0.0; 13]);
                        (scores.dots64)(&wide(&q), &rows, &mut dots);
                        dots64(&wide(&q), &rows, &mut wanted);
                        assert_eq!(dots.map(f64::to_bits), wanted.map(f64::to_bits), "{} n={n}", kernels.name);
                        let (mut sum, mut other) = (wide(&x), wide(&x));
                        (scores.add_scaled64)(0.3, &wide(&q), &mut sum);
                        add_scaled64(0.3, &wide(&q), &mut other);
                        assert!(sum.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()));
                    }
                    assert_eq!(
                        (scores.square_distance)(&q, &x).to_bits(),
                        square_distance(&q, &x).to_bits(),
                        "{} n={n}",
                        kernels.name
                    );
                }
                if let Some(value) = q.last_mut() {
                    *value = special;
                }
            }
        }
    }

    #[test]
    fn quick_scores_keep_their_bound() {
        for dim in [1usize, 7, 8, 15, 16, 17, 31, 33, 255, 256, 257, 384, 1000, 5000] {
            for n in [0usize, 1, 5, 6, 7, 13, 31] {
                let (rows, queries) = (floats(n * dim, 5), floats(2 * WIDE * dim, 9));
                let query = |j: usize| &queries[j * dim..(j + 1) * dim];
                let packed: Vec<f32> = (0..2 * WIDE * dim)
                    .map(|i| query(i / (WIDE * dim) * WIDE + i % WIDE)[i % (WIDE * dim) / WIDE])
                    .collect();
                for kernels in available() {
                    let scores = &kernels.scores;
                    for panels in [1, 2] {
                        let mut out = vec![f32::NAN; panels * n * WIDE];
                        let packed = &packed[..panels * dim * WIDE];
                        (scores.panel)(&rows, dim, packed, &mut out, &rows[..rows.len().min(n)]);
                        for (i, row) in rows.chunks_exact(dim).enumerate() {
                            for j in 0..panels * WIDE {
                                close(out[(j / WIDE * n + i) * WIDE + j % WIDE], row, query(j));
                            }
                        }
                    }
                    let mut own = vec![f32::NAN; n];
                    (scores.squares)(&rows, dim, &mut own);
                    for few_n in 1..=FEW {
                        let (mut few, mut squares) = (vec![0.0; n * WIDE], vec![0.0; n]);
                        (scores.few)(&rows, dim, &queries[..few_n * dim], &mut few, &mut squares);
                        for (i, row) in rows.chunks_exact(dim).enumerate() {
                            for j in 0..few_n {
                                close(few[i * WIDE + j], row, &queries[j * dim..(j + 1) * dim]);
                            }
                            close(squares[i], row, row);
                        }
                    }
                    for (i, row) in rows.chunks_exact(dim).enumerate() {
                        close(own[i], row, row);
                    }
                }
            }
        }
    }

    fn close(found: f32, row: &[f32], query: &[f32]) {
        let products = row.iter().zip(query).map(|(x, q)| f64::from(*x) * f64::from(*q));
        let (exact, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        assert!((f64::from(found) - exact).abs() <= error_bound(row.len()) * size, "{found} {exact}");
    }

    #[test]
    fn the_best_are_the_same_on_every_instruction_set() {
        let (scores, biases) = (floats(WIDE * 50, 2), floats(50, 4));
        let mut wanted = [f32::NEG_INFINITY; WIDE];
        for (i, score) in scores.iter().enumerate() {
            wanted[i % WIDE] = wanted[i % WIDE].max(score - biases[i / WIDE]);
        }
        for kernels in available() {
            let mut best = [f32::NEG_INFINITY; WIDE];
            (kernels.scores.raise)(&scores[..WIDE * 20], &biases[..20], &mut best);
            (kernels.scores.raise)(&scores[WIDE * 20..], &biases[20..], &mut best);
            assert_eq!(best, wanted, "{}", kernels.name);
        }
    }

    #[test]
    fn the_same_scores_pass_on_every_instruction_set() {
        let (scores, rest) = (floats(WIDE * 50, 2), floats(132, 4));
        let mut scores = scores;
        scores[17] = f32::NAN;
        scores[40] = f32::NEG_INFINITY;
        let mut base: [f32; WIDE] = rest[..WIDE].try_into().unwrap();
        base[3] = f32::NEG_INFINITY;
        base[4] = f32::INFINITY;
        let slope: [f32; WIDE] = rest[WIDE..2 * WIDE].try_into().unwrap();
        let (biases, norms) = rest[32..].split_at(50);
        let mut wanted = Vec::new();
        passing(&scores, &base, &slope, biases, norms, &mut wanted);
        assert!(wanted.iter().any(|(row, mask)| *row == 1 && mask >> 1 & 1 == 1));
        for kernels in available() {
            let mut found = Vec::new();
            (kernels.scores.passing)(&scores, &base, &slope, biases, norms, &mut found);
            assert_eq!(found, wanted, "{}", kernels.name);
        }
    }
}
