//! The specification of every loop, in plain code.

use half::{bf16, f16};

use super::Kernels;
use crate::dtype::Dtype;

/// The scalar implementation.
pub static KERNELS: Kernels = Kernels {
    name: "scalar",
    join2,
    join_bf16_f32: |low, high, out| join_half(low, high, out, widen_bf16),
    join_f16_f32: |low, high, out| join_half(low, high, out, |bits| f16::from_bits(bits).to_f32()),
    join4: |planes, out| join(&planes, out),
    split2,
    split4: |src, mut planes| split(src, &mut planes),
    bf16_f32: |src, out| widen(src, out, widen_bf16),
    f16_f32: |src, out| widen(src, out, |bits| f16::from_bits(bits).to_f32()),
    copy: |src, out| out.copy_from_slice(src),
    all_in: |bytes, set| bytes.iter().all(|b| set[usize::from(*b)]),
    prefetch: |_| (),
    reduce: super::reduce_scalar::REDUCE,
    scores: super::score_scalar::SCORES,
    products: super::products_scalar::PRODUCTS,
};

/// Exactly: a NaN keeps its payload, which the `half` crate would quiet.
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn join2(low: &[u8], high: &[u8], out: &mut [u8]) {
    for ((pair, low), high) in out.chunks_exact_mut(2).zip(low).zip(high) {
        pair.copy_from_slice(&[*low, *high]);
    }
}

fn split2(src: &[u8], low: &mut [u8], high: &mut [u8]) {
    for ((pair, low), high) in src.chunks_exact(2).zip(low).zip(high) {
        (*low, *high) = (pair[0], pair[1]);
    }
}

fn join_half(low: &[u8], high: &[u8], out: &mut [u8], value: impl Fn(u16) -> f32) {
    for ((slot, low), high) in out.chunks_exact_mut(4).zip(low).zip(high) {
        slot.copy_from_slice(&value(u16::from_le_bytes([*low, *high])).to_le_bytes());
    }
}

fn widen(src: &[u8], out: &mut [u8], value: impl Fn(u16) -> f32) {
    for (slot, pair) in out.chunks_exact_mut(4).zip(src.chunks_exact(2)) {
        slot.copy_from_slice(&value(u16::from_le_bytes([pair[0], pair[1]])).to_le_bytes());
    }
}

/// Any number of planes to elements of as many bytes.
pub fn join(planes: &[&[u8]], out: &mut [u8]) {
    for (i, element) in out.chunks_exact_mut(planes.len().max(1)).enumerate() {
        for (byte, plane) in element.iter_mut().zip(planes) {
            *byte = plane[i];
        }
    }
}

/// Elements to as many planes as they have bytes.
pub fn split(src: &[u8], planes: &mut [&mut [u8]]) {
    for (i, element) in src.chunks_exact(planes.len().max(1)).enumerate() {
        for (byte, plane) in element.iter().zip(planes.iter_mut()) {
            plane[i] = *byte;
        }
    }
}

/// blosc's bit shuffle undone: bit k of byte b of every element lies in row `8 b + k`. As in c-blosc 1,
/// a block whose number of elements is no multiple of eight is stored as it is.
pub fn unshuffle_bits(src: &[u8], size: usize, out: &mut [u8]) {
    let n = src.len() / size;
    let n = if n.is_multiple_of(8) { n } else { 0 };
    let row = n / 8;
    out[..n * size].fill(0);
    for (r, bits) in src[..n * size].chunks_exact(row.max(1)).enumerate() {
        let (byte, bit) = (r / 8, r % 8);
        for (i, word) in bits.iter().enumerate() {
            for k in 0..8 {
                out[(8 * i + k) * size + byte] |= (word >> k & 1) << bit;
            }
        }
    }
    out[n * size..].copy_from_slice(&src[n * size..]);
}

/// To float32, rounded to odd: rounding that once more gives what rounding once would have given
/// (Boldo and Melquiond, 2008). `half`'s own `from_f64` drops the lowest 32 bits first.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    if back == v || v.is_nan() {
        return near;
    }
    let bits = near.to_bits();
    f32::from_bits(if back.abs() > v.abs() { bits - 1 } else { bits } | 1)
}

/// Float to float, each value rounded once, to nearest even.
pub fn convert(src: &[u8], from: Dtype, dst: &mut [u8], to: Dtype) {
    fn halves(b: &[u8]) -> u16 {
        u16::from_le_bytes([b[0], b[1]])
    }
    let read: fn(&[u8]) -> f64 = match from {
        Dtype::BFloat16 => |b| bf16::from_bits(halves(b)).to_f64(),
        Dtype::Float16 => |b| f16::from_bits(halves(b)).to_f64(),
        Dtype::Float32 => |b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::Float64 => |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        _ => panic!("{} is not a float", from.name()),
    };
    let write: fn(f64, &mut [u8]) = match to {
        Dtype::BFloat16 => |v, out| out.copy_from_slice(&bf16::from_f32(to_odd(v)).to_le_bytes()),
        Dtype::Float16 => |v, out| out.copy_from_slice(&f16::from_f32(to_odd(v)).to_le_bytes()),
        Dtype::Float32 => |v, out| out.copy_from_slice(&(v as f32).to_le_bytes()),
        Dtype::Float64 => |v, out| out.copy_from_slice(&v.to_le_bytes()),
        _ => panic!("{} is not a float", to.name()),
    };
    for (value, slot) in src.chunks_exact(from.size()).zip(dst.chunks_exact_mut(to.size())) {
        write(read(value), slot);
    }
}
