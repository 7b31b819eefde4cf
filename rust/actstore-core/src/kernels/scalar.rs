//! The specification of every loop, in plain code.

use super::Kernels;
use super::convert_scalar::{from_bf16, from_f16};

/// The scalar implementation.
pub static KERNELS: Kernels = Kernels {
    name: "scalar",
    join2,
    join_bf16_f32: |low, high, out| join_half(low, high, out, from_bf16),
    join_f16_f32: |low, high, out| join_half(low, high, out, from_f16),
    join4: |planes, out| join(&planes, out),
    split2,
    split4: |src, mut planes| split(src, &mut planes),
    convert: super::convert_scalar::CONVERSIONS,
    copy: |src, out| out.copy_from_slice(src),
    all_in: |bytes, set| bytes.iter().all(|b| set[usize::from(*b)]),
    prefetch: |_| (),
    reduce: super::reduce_scalar::REDUCE,
    scores: super::score_scalar::SCORES,
    products: super::products_scalar::PRODUCTS,
};

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
