//! A decoded chunk's elements: in C order, converted, where they belong.

use std::cell::RefCell;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::format::blosc::Decoded;
use crate::format::memory;
use crate::format::zarr::ArrayMeta;
use crate::kernels::{self, kernels, scalar};

/// Bytes that are put together from planes before they are converted: they stay in the first-level cache.
const PIECE: usize = 8 << 10;

thread_local! {
    static PIECES: RefCell<[u8; PIECE]> = const { RefCell::new([0; PIECE]) };
}

/// Elements `first..first + n` of a chunk, converted.
pub fn emit(decoded: &Decoded<'_>, first: usize, n: usize, from: Dtype, out: &mut [u8], to: Dtype) {
    let k = kernels();
    match decoded {
        Decoded::Elements(bytes) => {
            kernels::convert(&bytes[first * from.size()..(first + n) * from.size()], from, out, to);
        }
        Decoded::Planes(planes) => {
            let plane = |i: usize| &planes[i][first..first + n];
            match (from, to) {
                (Dtype::BFloat16, Dtype::Float32) => (k.join_bf16_f32)(plane(0), plane(1), out),
                (Dtype::Float16, Dtype::Float32) => (k.join_f16_f32)(plane(0), plane(1), out),
                _ if from == to => match from.size() {
                    2 => (k.join2)(plane(0), plane(1), out),
                    4 => (k.join4)([plane(0), plane(1), plane(2), plane(3)], out),
                    size => scalar::join(&(0..size).map(plane).collect::<Vec<_>>(), out),
                },
                _ => PIECES.with_borrow_mut(|piece| {
                    let step = PIECE / from.size();
                    for (i, out) in out.chunks_mut(step * to.size()).enumerate() {
                        let n = out.len() / to.size();
                        let piece = &mut piece[..n * from.size()];
                        emit(decoded, first + i * step, n, from, piece, from);
                        kernels::convert(piece, from, out, to);
                    }
                }),
            }
        }
    }
}

/// A chunk in C order and little-endian, which ours are as they come.
pub fn straighten<'a>(decoded: Decoded<'a>, meta: &ArrayMeta, elements: &'a mut Vec<u8>) -> Result<Decoded<'a>> {
    let size = meta.dtype.size();
    if meta.chain.order.is_none() && !(meta.chain.big_endian && size > 1) {
        return Ok(decoded);
    }
    let n = meta.chunk.iter().product();
    let mut stored = memory::zeros(n * size, "a chunk in another order")?;
    emit(&decoded, 0, n, meta.dtype, &mut stored, meta.dtype);
    if meta.chain.big_endian {
        stored.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    let Some(order) = &meta.chain.order else {
        *elements = stored;
        return Ok(Decoded::Elements(elements));
    };
    // Stored axis i is axis `order[i]`; strides of the stored layout, by axis.
    let mut strides = [0usize; 3];
    let mut step = 1;
    for axis in order.iter().rev() {
        strides[*axis] = step;
        step *= meta.chunk[*axis];
    }
    elements.clear();
    memory::reserve(elements, n * size, "a chunk in C order")?;
    for i in 0..meta.chunk[0] {
        for j in 0..meta.chunk[1] {
            for k in 0..meta.chunk[2] {
                let at = (i * strides[0] + j * strides[1] + k * strides[2]) * size;
                elements.extend_from_slice(&stored[at..at + size]);
            }
        }
    }
    Ok(Decoded::Elements(elements))
}
