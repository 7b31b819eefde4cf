//! Conversions between float types: the specification.
//!
//! A value is rounded once, to nearest even; too large, it becomes infinite. It goes through float32, which
//! holds every half; on the way from float64 to a half it is rounded to odd there, and rounding that once
//! more gives what rounding once would have given (Boldo and Melquiond, 2008).
//!
//! A NaN stays one: it becomes quiet and keeps its sign and the upper bits of its payload, as many as the
//! other type has. bfloat16 to float32 alone changes no bit, so there a signalling NaN stays one too.

use half::{bf16, f16};

use super::Unary;
use crate::dtype::Dtype;

/// A loop for each type converted from and, within, for each type converted to, as [`place`] orders them.
pub type Conversions = [[Unary; 4]; 4];

/// Where a float type is in [`Conversions`].
pub fn place(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::BFloat16 => Some(BF16),
        Dtype::Float16 => Some(F16),
        Dtype::Float32 => Some(F32),
        Dtype::Float64 => Some(F64),
        _ => None,
    }
}

/// The place of bfloat16.
pub const BF16: usize = 0;
/// The place of float16.
pub const F16: usize = 1;
/// The place of float32.
pub const F32: usize = 2;
/// The place of float64.
pub const F64: usize = 3;

/// Bytes of an element of each type.
pub const SIZES: [usize; 4] = [2, 2, 4, 8];

/// The table of a function that is generic over the type converted from and the one converted to.
macro_rules! conversions {
    ($convert:ident) => {{
        use $crate::kernels::convert_scalar::{BF16, F16, F32, F64};
        const SAME: $crate::kernels::Unary = |src, out| out.copy_from_slice(src);
        [
            [SAME, $convert::<BF16, F16>, $convert::<BF16, F32>, $convert::<BF16, F64>],
            [$convert::<F16, BF16>, SAME, $convert::<F16, F32>, $convert::<F16, F64>],
            [$convert::<F32, BF16>, $convert::<F32, F16>, SAME, $convert::<F32, F64>],
            [$convert::<F64, BF16>, $convert::<F64, F16>, $convert::<F64, F32>, SAME],
        ]
    }};
}
pub(super) use conversions;

/// The loops.
pub const CONVERSIONS: Conversions = conversions!(convert);

/// Converts elements one by one.
pub fn convert<const FROM: usize, const TO: usize>(src: &[u8], out: &mut [u8]) {
    for (src, out) in src.chunks_exact(SIZES[FROM]).zip(out.chunks_exact_mut(SIZES[TO])) {
        let float = match *src {
            [a, b] if FROM == BF16 => from_bf16(u16::from_le_bytes([a, b])),
            [a, b] => from_f16(u16::from_le_bytes([a, b])),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b, c, d, e, f, g, h] => {
                let double = f64::from_le_bytes([a, b, c, d, e, f, g, h]);
                if TO == F32 { nearest(double) } else { odd(double) }
            }
            _ => unreachable!("floats have two, four or eight bytes"),
        };
        match TO {
            BF16 => out.copy_from_slice(&bf16::from_f32(float).to_le_bytes()),
            F16 => out.copy_from_slice(&f16::from_f32(float).to_le_bytes()),
            F32 => out.copy_from_slice(&float.to_le_bytes()),
            _ => out.copy_from_slice(&widen(float).to_le_bytes()),
        }
    }
}

/// By its bits, as `half` would quiet a NaN.
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Quieting a NaN, as processors do.
pub fn from_f16(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// What Rust's own conversion does, and what processors do with NaN, of which Rust promises nothing.
fn widen(v: f32) -> f64 {
    if !v.is_nan() {
        return f64::from(v);
    }
    let bits = u64::from(v.to_bits());
    f64::from_bits((bits >> 31 << 63) | 0x7ff8 << 48 | (bits & 0x7f_ffff) << 29)
}

/// Likewise.
fn nearest(v: f64) -> f32 {
    if !v.is_nan() {
        return v as f32;
    }
    let bits = v.to_bits() >> 29;
    f32::from_bits((bits >> 34 << 31) as u32 | 0x7fc0_0000 | (bits & 0x7f_ffff) as u32)
}

/// Toward zero, and then the last bit says whether that was exact.
fn odd(v: f64) -> f32 {
    let near = nearest(v);
    let back = f64::from(near);
    if back == v || v.is_nan() {
        return near;
    }
    let bits = near.to_bits();
    f32::from_bits(if back.abs() > v.abs() { bits - 1 } else { bits } | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    const NAMES: [&str; 4] = ["bfloat16", "float16", "float32", "float64"];

    fn random(n: usize) -> Vec<u64> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 32
        };
        (0..n).map(|_| next() << 32 | next()).collect()
    }

    /// Every finite value of a type of this many bits of exponent and mantissa, and the one that would come
    /// next; as float64, which holds them and what lies halfway between.
    fn grid(exponent: u32, mantissa: u32) -> Vec<f64> {
        let least = 2f64.powi(2 - (1 << (exponent - 1)) - mantissa as i32);
        let value = |bits: u32| {
            let (power, fraction) = (bits >> mantissa, f64::from(bits & ((1 << mantissa) - 1)));
            let one = f64::from(1 << mantissa);
            if power == 0 { fraction * least } else { (one + fraction) * least * 2f64.powi(power as i32 - 1) }
        };
        (0..=((1 << exponent) - 1) << mantissa).map(value).collect()
    }

    fn float32s(v: f64) -> u64 {
        u64::from((v as f32).to_bits())
    }

    /// Bits of each type that are hard to convert: all halves; of the wider ones both halves' values, what lies
    /// halfway and beside either; what float32 rounds or does not hold; NaN of all kinds; anything.
    fn hard() -> [Vec<u64>; 4] {
        let halves: Vec<u64> = (0..1 << 16).collect();
        let (mut floats, mut doubles) = (random(1 << 17), random(1 << 17));
        for grid in [grid(8, 7), grid(5, 10)] {
            for pair in grid.windows(2) {
                let tie = (pair[0] + pair[1]) / 2.0;
                for v in [pair[0], tie, pair[1]] {
                    floats.extend([-1, 0, 1].map(|by| float32s(v).saturating_add_signed(by)));
                    // A part of the float64 that float32 drops, up to what it rounds to.
                    let by = [0, 1, 1 << 27, (1 << 28) - 1, 1 << 28, (1 << 28) + 1, (1 << 29) - 1, 1 << 29];
                    doubles.extend(
                        by.into_iter().flat_map(|by| [by, -by]).map(|by| v.to_bits().saturating_add_signed(by)),
                    );
                }
            }
        }
        for bits in random(1 << 15) {
            let (one, next) = (f32::from_bits(bits as u32), f32::from_bits(bits as u32 + 1));
            let tie = ((f64::from(one) + f64::from(next)) / 2.0).to_bits();
            doubles.extend([tie - 1, tie, tie + 1]);
            // Denormals, and NaN with any payload; below the lower half of a float64, too.
            floats.extend([bits & 0x7f_ffff, bits | 0x7f80_0000]);
            doubles.extend([
                bits >> 12,
                bits | 0x7ff << 52,
                0x7ff << 52 | bits & 0x1fff_ffff,
                0x7ff << 52 | bits & 0xff,
            ]);
        }
        let either_sign = |bits: Vec<u64>, top: u64| bits.iter().flat_map(|b| [*b, b ^ top]).collect();
        [halves.clone(), halves, either_sign(floats, 1 << 31), either_sign(doubles, 1 << 63)]
    }

    fn bytes(bits: &[u64], size: usize) -> Vec<u8> {
        bits.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(size)).collect()
    }

    fn bits(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }

    /// To the bit, NaN included.
    #[test]
    fn every_instruction_set_equals_the_scalar_twin() {
        for (from, all) in hard().iter().enumerate() {
            let all = bytes(all, SIZES[from]);
            for to in 0..4 {
                let n = all.len() / SIZES[from];
                let mut wanted = vec![0; n * SIZES[to]];
                CONVERSIONS[from][to](&all, &mut wanted);
                for kernels in available() {
                    let mut out = vec![1; wanted.len()];
                    kernels.convert[from][to](&all, &mut out);
                    for (i, (got, want)) in out.chunks(SIZES[to]).zip(wanted.chunks(SIZES[to])).enumerate() {
                        let source = bits(&all[i * SIZES[from]..(i + 1) * SIZES[from]]);
                        let (got, want, name) = (bits(got), bits(want), kernels.name);
                        assert!(
                            got == want,
                            "{name}: {} {source:#x} to {}: {got:#x}, not {want:#x}",
                            NAMES[from],
                            NAMES[to]
                        );
                    }
                    // Any length, from and to any address; what is beside the output stays as it was.
                    for len in (0..70).chain([127, 128, 129, 384, 1000]) {
                        for shift in [0, 1, 3, 8, 31] {
                            let (first, to_size) = (len * 37 % 5000, SIZES[to]);
                            let mut out = vec![7; shift + len * to_size + 64];
                            let src =
                                [&vec![0; shift][..], &all[first * SIZES[from]..(first + len) * SIZES[from]]].concat();
                            kernels.convert[from][to](&src[shift..], &mut out[shift..shift + len * to_size]);
                            let (before, rest) = out.split_at(shift);
                            let (got, after) = rest.split_at(len * to_size);
                            assert!(*got == wanted[first * to_size..(first + len) * to_size], "{} {len}", kernels.name);
                            assert!(before.iter().chain(after).all(|byte| *byte == 7));
                        }
                    }
                }
            }
        }
    }

    /// The nearest of a type's values, found by comparing with all of them.
    #[test]
    fn values_are_rounded_once_to_nearest_even() {
        let [_, _, floats, doubles] = hard();
        let floats = floats.into_iter().map(|bits| f64::from(f32::from_bits(bits as u32)));
        let doubles = doubles.into_iter().map(f64::from_bits);
        let all: Vec<f64> = floats.chain(doubles).filter(|v| !v.is_nan()).collect();
        for (to, grid, infinity) in [(BF16, grid(8, 7), 0x7f80), (F16, grid(5, 10), 0x7c00)] {
            assert_eq!(grid.len() - 1, infinity);
            for v in &all {
                let size = v.abs();
                let above = grid.partition_point(|g| *g < size).min(infinity);
                let below = above.saturating_sub(1);
                // Where either is near the other, both differences are exact.
                let near = match (size - grid[below]).total_cmp(&(grid[above] - size)) {
                    _ if size.is_infinite() => infinity,
                    std::cmp::Ordering::Less => below,
                    std::cmp::Ordering::Greater => above,
                    std::cmp::Ordering::Equal => (below + 1) & !1,
                };
                let sign = u64::from(v.is_sign_negative()) << 15;
                let mut out = [0; 2];
                CONVERSIONS[F64][to](&v.to_le_bytes(), &mut out);
                assert!(bits(&out) == near as u64 | sign, "{v:e} to {}: {:#x}, not {near:#x}", NAMES[to], bits(&out));
                if f64::from(*v as f32) == *v {
                    CONVERSIONS[F32][to](&(*v as f32).to_le_bytes(), &mut out);
                    assert_eq!(bits(&out), near as u64 | sign);
                }
            }
        }
    }

    /// Quiet, with the sign and the upper bits of the payload.
    #[test]
    fn what_becomes_of_a_nan() {
        // Bits of the whole and of the mantissa.
        let shapes = [(16, 7), (16, 10), (32, 23), (64, 52)];
        for (from, all) in hard().iter().enumerate() {
            let (width, mantissa) = shapes[from];
            let infinity = ((1u64 << (width - 1 - mantissa)) - 1) << mantissa;
            let is_nan = |bits: u64| bits & ((1 << (width - 1)) - 1) > infinity;
            for (to, (to_width, to_mantissa)) in shapes.into_iter().enumerate().filter(|(to, _)| *to != from) {
                for source in all.iter().map(|bits| bits & (u64::MAX >> (64 - width))).filter(|bits| is_nan(*bits)) {
                    let mut out = vec![0; SIZES[to]];
                    CONVERSIONS[from][to](&source.to_le_bytes()[..SIZES[from]], &mut out);
                    let payload = (source & ((1 << mantissa) - 1)) << (64 - mantissa) >> (64 - to_mantissa);
                    let exponent = ((1u64 << (to_width - 1 - to_mantissa)) - 1) << to_mantissa;
                    let quiet = if (from, to) == (BF16, F32) { 0 } else { 1 << (to_mantissa - 1) };
                    let want = source >> (width - 1) << (to_width - 1) | exponent | quiet | payload;
                    assert!(
                        bits(&out) == want,
                        "{} {source:#x} to {}: {:#x}, not {want:#x}",
                        NAMES[from],
                        NAMES[to],
                        bits(&out)
                    );
                }
            }
        }
    }
}
