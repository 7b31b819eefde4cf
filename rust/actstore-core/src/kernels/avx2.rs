//! AVX2 with F16C and FMA: every x86-64 server since 2015.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Kernels, scalar};

/// The implementation, where the processor has what it needs.
pub fn detect() -> Option<&'static Kernels> {
    let all = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("fma");
    all.then_some(&SHARED)
}

static SHARED: Kernels = KERNELS;

/// The loops.
pub const KERNELS: Kernels = Kernels {
    name: "avx2",
    join2: detected!(join2(low: &[u8], high: &[u8], out: &mut [u8])),
    join_bf16_f32: detected!(join_bf16_f32(low: &[u8], high: &[u8], out: &mut [u8])),
    join_f16_f32: detected!(join_f16_f32(low: &[u8], high: &[u8], out: &mut [u8])),
    join4: detected!(join4(planes: [&[u8]; 4], out: &mut [u8])),
    split2: detected!(split2(src: &[u8], low: &mut [u8], high: &mut [u8])),
    split4: detected!(split4(src: &[u8], planes: [&mut [u8]; 4])),
    convert: super::convert_avx2::CONVERSIONS,
    copy: detected!(copy(src: &[u8], out: &mut [u8])),
    all_in: detected!(all_in(bytes: &[u8], set: &[bool; 256])),
    prefetch,
    reduce: super::reduce_avx2::REDUCE,
    scores: super::score_avx2::SCORES,
    products: super::products_avx2::PRODUCTS,
};

#[inline]
#[target_feature(enable = "avx2")]
pub fn load128(src: &[u8], at: usize) -> __m128i {
    let src: &[u8; 16] = src[at..at + 16].try_into().expect("sixteen bytes");
    // SAFETY: sixteen bytes are there, and the load needs no alignment.
    unsafe { _mm_loadu_si128(src.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn load256(src: &[u8], at: usize) -> __m256i {
    let src: &[u8; 32] = src[at..at + 32].try_into().expect("thirty-two bytes");
    // SAFETY: thirty-two bytes are there, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn store128(out: &mut [u8], at: usize, value: __m128i) {
    let out: &mut [u8; 16] = (&mut out[at..at + 16]).try_into().expect("sixteen bytes");
    // SAFETY: sixteen bytes are there, and the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn store256(out: &mut [u8], at: usize, value: __m256i) {
    let out: &mut [u8; 32] = (&mut out[at..at + 32]).try_into().expect("thirty-two bytes");
    // SAFETY: thirty-two bytes are there, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx2")]
fn join2(low: &[u8], high: &[u8], out: &mut [u8]) {
    let n = low.len();
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        let (a, b) = (load128(low, i), load128(high, i));
        store128(out, 2 * i, _mm_unpacklo_epi8(a, b));
        store128(out, 2 * i + 16, _mm_unpackhi_epi8(a, b));
    }
    (scalar::KERNELS.join2)(&low[whole..], &high[whole..], &mut out[2 * whole..]);
}

#[target_feature(enable = "avx2")]
fn join_bf16_f32(low: &[u8], high: &[u8], out: &mut [u8]) {
    let n = low.len();
    let whole = n / 16 * 16;
    let zero = _mm_setzero_si128();
    for i in (0..whole).step_by(16) {
        let (a, b) = (load128(low, i), load128(high, i));
        for (half, pairs) in [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)].into_iter().enumerate() {
            // A bfloat16 is the upper half of the float32.
            store128(out, 4 * i + 32 * half, _mm_unpacklo_epi16(zero, pairs));
            store128(out, 4 * i + 32 * half + 16, _mm_unpackhi_epi16(zero, pairs));
        }
    }
    (scalar::KERNELS.join_bf16_f32)(&low[whole..], &high[whole..], &mut out[4 * whole..]);
}

#[target_feature(enable = "avx2,f16c")]
fn join_f16_f32(low: &[u8], high: &[u8], out: &mut [u8]) {
    let n = low.len();
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        let (a, b) = (load128(low, i), load128(high, i));
        for (half, pairs) in [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)].into_iter().enumerate() {
            store256(out, 4 * i + 32 * half, _mm256_castps_si256(_mm256_cvtph_ps(pairs)));
        }
    }
    (scalar::KERNELS.join_f16_f32)(&low[whole..], &high[whole..], &mut out[4 * whole..]);
}

#[target_feature(enable = "avx2")]
fn join4(planes: [&[u8]; 4], out: &mut [u8]) {
    let n = planes[0].len();
    let whole = n / 16 * 16;
    for i in (0..whole).step_by(16) {
        let [a, b, c, d] = planes.map(|plane| load128(plane, i));
        let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
        store128(out, 4 * i, _mm_unpacklo_epi16(ab, cd));
        store128(out, 4 * i + 16, _mm_unpackhi_epi16(ab, cd));
        let (ab, cd) = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
        store128(out, 4 * i + 32, _mm_unpacklo_epi16(ab, cd));
        store128(out, 4 * i + 48, _mm_unpackhi_epi16(ab, cd));
    }
    scalar::join(&planes.map(|plane| &plane[whole..]), &mut out[4 * whole..]);
}

#[target_feature(enable = "avx2")]
fn split2(src: &[u8], low: &mut [u8], high: &mut [u8]) {
    let n = low.len();
    let whole = n / 32 * 32;
    let mask = _mm256_set1_epi16(0xff);
    for i in (0..whole).step_by(32) {
        let (a, b) = (load256(src, 2 * i), load256(src, 2 * i + 32));
        let even = _mm256_packus_epi16(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
        let odd = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        store256(low, i, _mm256_permute4x64_epi64(even, 0b11_01_10_00));
        store256(high, i, _mm256_permute4x64_epi64(odd, 0b11_01_10_00));
    }
    (scalar::KERNELS.split2)(&src[2 * whole..], &mut low[whole..], &mut high[whole..]);
}

#[target_feature(enable = "avx2")]
fn split4(src: &[u8], planes: [&mut [u8]; 4]) {
    let n = planes[0].len();
    let whole = n / 16 * 16;
    let [p0, p1, p2, p3] = planes;
    // Within four elements, the bytes of each plane side by side.
    let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for i in (0..whole).step_by(16) {
        let load = |k: usize| _mm_shuffle_epi8(load128(src, 4 * i + 16 * k), order);
        let (a, b, c, d) = (load(0), load(1), load(2), load(3));
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        store128(p0, i, _mm_unpacklo_epi64(ab, cd));
        store128(p1, i, _mm_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        store128(p2, i, _mm_unpacklo_epi64(ab, cd));
        store128(p3, i, _mm_unpackhi_epi64(ab, cd));
    }
    scalar::split(&src[4 * whole..], &mut [&mut p0[whole..], &mut p1[whole..], &mut p2[whole..], &mut p3[whole..]]);
}

/// Loads and stores instead of libc's memcpy: `rep movsb` falls to a quarter of its speed when the
/// destination lies a few bytes past the source modulo the page size, as it does from a mapped file
/// into a malloc'ed array. libc uses it from some KiB on.
#[target_feature(enable = "avx2")]
fn copy(src: &[u8], out: &mut [u8]) {
    const SHORT: usize = 2048;
    assert_eq!(src.len(), out.len());
    if src.len() < SHORT {
        return out.copy_from_slice(src);
    }
    let (pieces, rest) = src.as_chunks::<128>();
    let (places, rest_of_out) = out.as_chunks_mut::<128>();
    for (piece, place) in pieces.iter().zip(places) {
        let (a, b) = (load256(piece, 0), load256(piece, 32));
        let (c, d) = (load256(piece, 64), load256(piece, 96));
        store256(place, 0, a);
        store256(place, 32, b);
        store256(place, 64, c);
        store256(place, 96, d);
    }
    rest_of_out.copy_from_slice(rest);
}

/// The set as a bit for each upper nibble, in a table over lower nibbles: two shuffles look up 32 bytes.
#[target_feature(enable = "avx2")]
fn all_in(bytes: &[u8], set: &[bool; 256]) -> bool {
    let table = |half: usize| {
        let mut rows = [0u8; 32];
        for (value, _) in set.iter().enumerate().filter(|(value, there)| **there && value / 128 == half) {
            rows[value % 16] |= 1 << (value / 16 % 8);
        }
        rows.copy_within(0..16, 16);
        load256(&rows, 0)
    };
    let (below, above) = (table(0), table(1));
    let mut bits = [0u8; 32];
    for (i, bit) in bits.iter_mut().enumerate() {
        *bit = 1 << (i % 8);
    }
    let bits = load256(&bits, 0);
    let (top, low) = (_mm256_set1_epi8(-128), _mm256_set1_epi8(0x8f_u8.cast_signed()));
    let nibble = _mm256_set1_epi8(15);
    let mut missing = _mm256_setzero_si256();
    let whole = bytes.len() / 32 * 32;
    for i in (0..whole).step_by(32) {
        let b = load256(bytes, i);
        // A shuffle gives 0 where the index has its top bit set: so each half sees its own bytes.
        let rows = _mm256_or_si256(
            _mm256_shuffle_epi8(below, _mm256_and_si256(b, low)),
            _mm256_shuffle_epi8(above, _mm256_and_si256(_mm256_xor_si256(b, top), low)),
        );
        let bit = _mm256_shuffle_epi8(bits, _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble));
        missing = _mm256_or_si256(missing, _mm256_cmpeq_epi8(_mm256_and_si256(rows, bit), _mm256_setzero_si256()));
    }
    _mm256_testz_si256(missing, missing) == 1 && (scalar::KERNELS.all_in)(&bytes[whole..], set)
}

/// At most the first pages of a long row: the hardware sees where it goes on.
fn prefetch(bytes: &[u8]) {
    for line in bytes[..bytes.len().min(4096)].chunks(64) {
        // SAFETY: a prefetch reads nothing that the program could see, whatever the address.
        unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) };
    }
}
