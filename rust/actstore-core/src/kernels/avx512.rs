//! AVX-512: what gains by twice the width; everything else is AVX2's.
#![allow(unsafe_code)]

use super::{Kernels, avx2};

/// The implementation, where the processor has what it needs.
pub fn detect() -> Option<&'static Kernels> {
    (avx2::detect().is_some() && is_x86_feature_detected!("avx512f")).then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "avx512",
    convert: super::convert_avx512::CONVERSIONS,
    scores: super::score_avx512::SCORES,
    products: super::products_avx512::PRODUCTS,
    ..avx2::KERNELS
};
