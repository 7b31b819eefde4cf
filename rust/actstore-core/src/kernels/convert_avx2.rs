//! Conversions between float types with AVX2 and F16C, sixteen elements at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::avx2::{load128, load256, store128, store256};
use super::convert_scalar::{self as scalar, BF16, Conversions, F16, F32, SIZES, conversions};

/// The loops.
pub const CONVERSIONS: Conversions = conversions!(convert);

const LANES: usize = 16;

fn convert<const FROM: usize, const TO: usize>(src: &[u8], out: &mut [u8]) {
    // SAFETY: the table is handed out by the `detect` of its instruction set alone, which checks them.
    unsafe { vectors::<FROM, TO>(src, out) }
}

#[target_feature(enable = "avx2,f16c")]
fn vectors<const FROM: usize, const TO: usize>(src: &[u8], out: &mut [u8]) {
    let (mut src, mut out) = (src.chunks_exact(LANES * SIZES[FROM]), out.chunks_exact_mut(LANES * SIZES[TO]));
    for (src, out) in src.by_ref().zip(out.by_ref()) {
        store::<TO>(out, [load::<FROM, TO>(src, 0), load::<FROM, TO>(src, 1)]);
    }
    // The compiler does not do this where a 256-bit instruction reads memory and writes the lower half of a
    // register alone, as float64 to float32 does; SSE code then takes a hundred times as long.
    _mm256_zeroupper();
    scalar::convert::<FROM, TO>(src.remainder(), out.into_remainder());
}

/// One of two times eight elements, as float32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load<const FROM: usize, const TO: usize>(src: &[u8], half: usize) -> __m256 {
    match FROM {
        BF16 => {
            let bits = _mm256_cvtepu16_epi32(load128(src, 16 * half));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
        F16 => _mm256_cvtph_ps(load128(src, 16 * half)),
        F32 => _mm256_castsi256_ps(load256(src, 32 * half)),
        _ => {
            let four = |quarter: usize| {
                let doubles = _mm256_castsi256_pd(load256(src, 32 * quarter));
                if TO == F32 { _mm256_cvtpd_ps(doubles) } else { odd(doubles) }
            };
            _mm256_set_m128(four(2 * half + 1), four(2 * half))
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store<const TO: usize>(out: &mut [u8], floats: [__m256; 2]) {
    match TO {
        BF16 => {
            // Packing takes the halves of both registers in turn.
            let packed = _mm256_packus_epi32(to_bf16(floats[0]), to_bf16(floats[1]));
            store256(out, 0, _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
        F16 => {
            let [low, high] = floats.map(|x| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            store128(out, 0, low);
            store128(out, 16, high);
        }
        F32 => {
            store256(out, 0, _mm256_castps_si256(floats[0]));
            store256(out, 32, _mm256_castps_si256(floats[1]));
        }
        _ => {
            for (half, x) in floats.into_iter().enumerate() {
                let low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
                let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x));
                store256(out, 64 * half, _mm256_castpd_si256(low));
                store256(out, 64 * half + 32, _mm256_castpd_si256(high));
            }
        }
    }
}

/// bfloat16 in the lower halves of eight numbers. It is the upper half of the float32, after half of its
/// last place is added, or just less where it is even.
#[inline]
#[target_feature(enable = "avx2")]
fn to_bf16(floats: __m256) -> __m256i {
    let bits = _mm256_castps_si256(floats);
    let upper = _mm256_srli_epi32::<16>(bits);
    let up = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(floats, floats));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

/// Rounded to odd, as the scalar twin does it.
#[inline]
#[target_feature(enable = "avx2")]
fn odd(doubles: __m256d) -> __m128 {
    // The lower halves of four masks of 64 bits.
    let narrow = |mask: __m256d| {
        let (low, high) = (_mm256_castpd256_pd128(mask), _mm256_extractf128_pd::<1>(mask));
        _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(_mm_castpd_ps(low), _mm_castpd_ps(high)))
    };
    let near = _mm256_cvtpd_ps(doubles);
    let back = _mm256_cvtps_pd(near);
    let sign = _mm256_set1_pd(-0.0);
    let (size, size_back) = (_mm256_andnot_pd(sign, doubles), _mm256_andnot_pd(sign, back));
    let inexact = narrow(_mm256_cmp_pd::<_CMP_NEQ_OQ>(back, doubles));
    let beyond = narrow(_mm256_cmp_pd::<_CMP_GT_OQ>(size_back, size));
    // A mask is -1.
    let bits = _mm_add_epi32(_mm_castps_si128(near), beyond);
    _mm_castsi128_ps(_mm_or_si128(bits, _mm_srli_epi32::<31>(inexact)))
}
