//! The inner loops. Each has a scalar twin, which is its specification; the instruction set is chosen
//! once, at run time, and named by [`instruction_set`].
//!
//! All of them work on bytes, little-endian and of any alignment: a plane holds the k-th byte of every
//! element (blosc's shuffle), `join` puts elements together from their planes, `split` takes them apart.

/// A safe function over one compiled for instructions that a `detect` has seen.
#[cfg(target_arch = "x86_64")]
macro_rules! detected {
    ($name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {
        |$($arg: $type),*| $(-> $out)? {
            // SAFETY: such a table is handed out by the `detect` of its instruction set alone, which checks them.
            unsafe { $name($($arg),*) }
        }
    };
}

mod cast;
pub mod convert_scalar;
mod floats;
pub mod huffman;
pub mod products_scalar;
pub mod reduce_scalar;
pub mod scalar;
pub mod score_scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod convert_avx2;
#[cfg(target_arch = "x86_64")]
mod convert_avx512;
#[cfg(target_arch = "x86_64")]
mod products_avx2;
#[cfg(target_arch = "x86_64")]
mod products_avx512;
#[cfg(target_arch = "x86_64")]
mod reduce_avx2;
#[cfg(target_arch = "x86_64")]
mod score_avx2;
#[cfg(target_arch = "x86_64")]
mod score_avx512;

use std::sync::OnceLock;

pub use cast::{as_floats, bytes_of};
pub use floats::{StandardMode, keep_denormals};

use crate::dtype::Dtype;

type Unary = fn(&[u8], &mut [u8]);
type Join2 = fn(&[u8], &[u8], &mut [u8]);
type Join4 = fn([&[u8]; 4], &mut [u8]);
type Split2 = fn(&[u8], &mut [u8], &mut [u8]);
type AllIn = fn(&[u8], &[bool; 256]) -> bool;
type Split4 = fn(&[u8], [&mut [u8]; 4]);

/// One implementation of each loop.
pub struct Kernels {
    /// The instruction set.
    pub name: &'static str,
    /// Two planes to 2-byte elements.
    pub join2: Join2,
    /// Two planes of bfloat16 to float32.
    pub join_bf16_f32: Join2,
    /// Two planes of float16 to float32.
    pub join_f16_f32: Join2,
    /// Four planes to 4-byte elements.
    pub join4: Join4,
    /// 2-byte elements to two planes.
    pub split2: Split2,
    /// 4-byte elements to four planes.
    pub split4: Split4,
    /// Float types to others.
    pub convert: convert_scalar::Conversions,
    /// Bytes as they are.
    pub copy: Unary,
    /// Whether all bytes are in a set.
    pub all_in: AllIn,
    /// Tells the processor that bytes will be read soon.
    pub prefetch: fn(&[u8]),
    /// Sums and extremes over rows.
    pub reduce: reduce_scalar::Reduce,
    /// Scores of rows against queries.
    pub scores: Scores,
    /// Products of columns.
    pub products: Products,
}

/// The loops of search; see [`score_scalar`], which specifies them. Rows are `[n, dim]`, `dim` at least 1.
#[allow(clippy::type_complexity)]
pub struct Scores {
    /// The dot product, exactly as the ranking contract has it.
    pub dot: fn(&[f32], &[f32]) -> f64,
    /// The squared distance, likewise.
    pub square_distance: fn(&[f32], &[f32]) -> f64,
    /// The dot product of vectors that are float64, likewise.
    pub dot64: Dot64,
    /// The same with each of some rows, `[n, dim]`.
    pub dots64: fn(&[f64], &[f64], &mut [f64]),
    /// Adds a vector, times a number, to another; multiplied, then added.
    pub add_scaled64: fn(f64, &[f64], &mut [f64]),
    /// The quick sum of squares of each row.
    pub squares: fn(&[f32], usize, &mut [f32]),
    /// Quick products of rows with up to [`score_scalar::FEW`] queries `[n, dim]`, and the sums of squares.
    pub few: fn(&[f32], usize, &[f32], &mut [f32], &mut [f32]),
    /// Quick products of rows with one or two panels, `[dim, 16]` each, of queries, as `[panels, n, 16]`.
    /// Meanwhile the last argument, what will be read next, is fetched from memory.
    pub panel: fn(&[f32], usize, &[f32], &mut [f32], &[f32]),
    /// Where `[n, 16]` scores are not below base + bias + norm x slope: base and slope are of a query, bias
    /// and norm of a row. Pushes the row and a bit for each query.
    pub passing: Passing,
    /// Adds to `[n, 16]` totals products less what is of each query, times what is of each row.
    pub add_up: AddUp,
    /// Raises the best of each of sixteen queries by `[n, 16]` scores, each less its row's bias.
    pub raise: Raise,
    /// Nothing but float32 multiply-adds in registers; how many operations they were.
    pub work: fn(usize) -> f64,
}

type Dot64 = fn(&[f64], &[f64]) -> f64;

/// The loops of covariances; see [`products_scalar`], which specifies them.
#[allow(clippy::type_complexity)]
pub struct Products {
    /// The products of two panels' columns, summed over their rows.
    pub square64: fn(&[f64], &[f64], &mut Square64),
    /// Likewise, in float32.
    pub square32: fn(&[f32], &[f32], &mut Square32),
    /// Adds so many rows and columns of sums to rows of a matrix, from a column on.
    pub add64: fn(&Square64, [usize; 2], &mut [&mut [f64]], usize),
    /// Likewise, of float32.
    pub add32: fn(&Square32, [usize; 2], &mut [&mut [f64]], usize),
    /// Packs a panel: of rows of so many values the columns from one on, less their means in two parts.
    pub center64: fn(&[f32], usize, usize, [&[f64]; 2], &mut [f64]),
    /// Likewise, rounded to float32.
    pub center32: fn(&[f32], usize, usize, [&[f64]; 2], &mut [f32]),
    /// Adds to sums how far rows are from values near them.
    pub sum_away: fn(&[f32], &[f64], &mut [f64]),
}

type Square64 = products_scalar::Square<f64, { products_scalar::WIDE64 }>;
type Square32 = products_scalar::Square<f32, { products_scalar::WIDE32 }>;
type Wide = [f32; score_scalar::WIDE];
type AddUp = fn(&[f32], &Wide, &[f32], &mut [f32]);
type Raise = fn(&[f32], &[f32], &mut Wide);
type Passing = fn(&[f32], &Wide, &Wide, &[f32], &[f32], &mut Vec<(u32, u16)>);

/// The best implementation this processor runs, or the one named by `ACTSTORE_INSTRUCTION_SET` when the
/// process first asks.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let wanted = std::env::var("ACTSTORE_INSTRUCTION_SET").ok();
        let all = available();
        *all.iter().find(|kernels| Some(kernels.name) == wanted.as_deref()).unwrap_or(&all[0])
    })
}

/// Every implementation this processor runs, the best first.
pub fn available() -> Vec<&'static Kernels> {
    let mut list = vec![&scalar::KERNELS];
    #[cfg(target_arch = "x86_64")]
    for kernels in [avx2::detect(), avx512::detect()].into_iter().flatten() {
        list.insert(0, kernels);
    }
    list
}

/// The name of the instruction set in use.
pub fn instruction_set() -> &'static str {
    kernels().name
}

/// Converts elements of one float type to another; equal types are copied.
///
/// # Panics
/// When the lengths do not hold the same number of elements, or a type is not a float and they differ.
pub fn convert(src: &[u8], from: Dtype, dst: &mut [u8], to: Dtype) {
    assert_eq!(src.len() / from.size(), dst.len() / to.size());
    if from == to {
        return (kernels().copy)(src, dst);
    }
    let place =
        |dtype: Dtype| convert_scalar::place(dtype).unwrap_or_else(|| panic!("{} is not a float", dtype.name()));
    (kernels().convert[place(from)][place(to)])(src, dst);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect()
    }

    /// Lengths around every vector width, starts at every alignment.
    #[test]
    fn every_instruction_set_equals_the_scalar_twin() {
        for kernels in available() {
            for n in (0..70).chain([127, 128, 129, 384, 1000]) {
                for shift in [0, 1, 3, 8, 31] {
                    let raw = bytes(n * 4 + 64, n as u64 * 31 + shift as u64);
                    let src = &raw[shift..];
                    let planes: Vec<&[u8]> = (0..4).map(|k| &src[k * n / 2..k * n / 2 + n]).collect();
                    let check2 = |f: Join2, g: Join2, width: usize| {
                        let (mut a, mut b) = (vec![0; n * width], vec![1; n * width]);
                        f(planes[0], planes[1], &mut a);
                        g(planes[0], planes[1], &mut b);
                        assert!(a == b, "{} n={n}", kernels.name);
                    };
                    check2(kernels.join2, scalar::KERNELS.join2, 2);
                    check2(kernels.join_bf16_f32, scalar::KERNELS.join_bf16_f32, 4);
                    check2(kernels.join_f16_f32, scalar::KERNELS.join_f16_f32, 4);

                    let all = [planes[0], planes[1], planes[2], planes[3]];
                    let (mut a, mut b) = (vec![0; n * 4], vec![1; n * 4]);
                    (kernels.join4)(all, &mut a);
                    (scalar::KERNELS.join4)(all, &mut b);
                    assert!(a == b);

                    let mut parts = vec![vec![0u8; n]; 4];
                    let [p0, p1, p2, p3] = parts.get_disjoint_mut([0, 1, 2, 3]).unwrap();
                    (kernels.split4)(&a, [p0, p1, p2, p3]);
                    assert!((0..4).all(|k| parts[k] == all[k]));
                    let (mut p0, mut p1) = (vec![0u8; n], vec![0u8; n]);
                    (kernels.split2)(&src[..2 * n], &mut p0, &mut p1);
                    let mut joined = vec![0; 2 * n];
                    (scalar::KERNELS.join2)(&p0, &p1, &mut joined);
                    assert!(joined == src[..2 * n]);

                    let mut set = [false; 256];
                    src.iter().take(60).for_each(|b| set[usize::from(*b)] = true);
                    assert!((kernels.all_in)(&src[..n.min(60)], &set));
                    assert_eq!((kernels.all_in)(&src[..n], &set), (scalar::KERNELS.all_in)(&src[..n], &set));
                    let mut copied = vec![0; n];
                    (kernels.copy)(&src[..n], &mut copied);
                    assert!(copied == src[..n]);
                }
            }
        }
    }

    /// All 65,536 values of both half types, NaN and denormals among them, against the `half` crate.
    #[test]
    fn halves_convert_as_the_half_crate_does() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (dtype, reference) in [
            (Dtype::BFloat16, (|b| half::bf16::from_bits(b).to_f32()) as fn(u16) -> f32),
            (Dtype::Float16, |b| half::f16::from_bits(b).to_f32()),
        ] {
            let mut out = vec![0u8; all.len() * 2];
            convert(&all, dtype, &mut out, Dtype::Float32);
            for (bits, got) in (0..=u16::MAX).zip(out.chunks_exact(4)) {
                let got = f32::from_le_bytes(got.try_into().unwrap());
                let want = reference(bits);
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{dtype:?} {bits:#x}");
            }
        }
    }
}
