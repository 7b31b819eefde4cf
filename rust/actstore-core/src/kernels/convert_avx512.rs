//! Conversions between float types with AVX-512, sixteen elements at a time.
//!
//! bfloat16 is rounded in integers: the instruction for it takes denormals for zero.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::convert_scalar::{self as scalar, BF16, Conversions, F16, F32, SIZES, conversions};

/// The loops.
pub const CONVERSIONS: Conversions = conversions!(convert);

const LANES: usize = 16;

fn convert<const FROM: usize, const TO: usize>(src: &[u8], out: &mut [u8]) {
    // SAFETY: the table is handed out by the `detect` of its instruction set alone, which checks them.
    unsafe { vectors::<FROM, TO>(src, out) }
}

#[target_feature(enable = "avx512f")]
fn vectors<const FROM: usize, const TO: usize>(src: &[u8], out: &mut [u8]) {
    let (mut src, mut out) = (src.chunks_exact(LANES * SIZES[FROM]), out.chunks_exact_mut(LANES * SIZES[TO]));
    for (src, out) in src.by_ref().zip(out.by_ref()) {
        store::<TO>(out, load::<FROM, TO>(src));
    }
    scalar::convert::<FROM, TO>(src.remainder(), out.into_remainder());
}

/// Sixteen elements as float32.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const FROM: usize, const TO: usize>(src: &[u8]) -> __m512 {
    match FROM {
        BF16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load256(src)))),
        F16 => _mm512_cvtph_ps(load256(src)),
        F32 => _mm512_castsi512_ps(load512(src, 0)),
        _ => {
            let eight = |half: usize| {
                let doubles = _mm512_castsi512_pd(load512(src, 64 * half));
                if TO == F32 { _mm512_cvtpd_ps(doubles) } else { odd(doubles) }
            };
            let low = _mm512_castps_pd(_mm512_castps256_ps512(eight(0)));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(eight(1))))
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const TO: usize>(out: &mut [u8], floats: __m512) {
    match TO {
        BF16 => store256(out, to_bf16(floats)),
        F16 => store256(out, _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(floats)),
        F32 => store512(out, 0, _mm512_castps_si512(floats)),
        _ => {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(floats)));
            store512(out, 0, _mm512_castpd_si512(_mm512_cvtps_pd(_mm512_castps512_ps256(floats))));
            store512(out, 64, _mm512_castpd_si512(_mm512_cvtps_pd(high)));
        }
    }
}

/// The upper half of the float32, after half of its last place is added, or just less where it is even.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_bf16(floats: __m512) -> __m256i {
    let bits = _mm512_castps_si512(floats);
    let upper = _mm512_srli_epi32::<16>(bits);
    let up = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(floats, floats);
    _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)))
}

/// Toward zero, and then the last bit says whether that was exact.
#[inline]
#[target_feature(enable = "avx512f")]
fn odd(doubles: __m512d) -> __m256 {
    let cut = _mm512_cvt_roundpd_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(doubles);
    let inexact = _mm512_cmp_pd_mask::<_CMP_NEQ_OQ>(_mm512_cvtps_pd(cut), doubles);
    let last = _mm512_castsi512_si256(_mm512_maskz_set1_epi32(inexact.into(), 1));
    _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(cut), last))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load512(src: &[u8], at: usize) -> __m512i {
    let src: &[u8; 64] = src[at..at + 64].try_into().expect("sixty-four bytes");
    // SAFETY: sixty-four bytes are there, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(src.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load256(src: &[u8]) -> __m256i {
    let src: &[u8; 32] = src[..32].try_into().expect("thirty-two bytes");
    // SAFETY: thirty-two bytes are there, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(src.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store512(out: &mut [u8], at: usize, value: __m512i) {
    let out: &mut [u8; 64] = (&mut out[at..at + 64]).try_into().expect("sixty-four bytes");
    // SAFETY: sixty-four bytes are there, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store256(out: &mut [u8], value: __m256i) {
    let out: &mut [u8; 32] = (&mut out[..32]).try_into().expect("thirty-two bytes");
    // SAFETY: thirty-two bytes are there, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), value) }
}
