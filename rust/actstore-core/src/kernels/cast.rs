//! Floats as bytes and bytes as floats, where they lie.
#![allow(unsafe_code)]

/// The bytes as float32, if they lie as float32 must.
pub fn as_floats(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: any four bytes are a float32, and `align_to` gives only those that are aligned.
    let (before, floats, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(floats)
}

/// The bytes of floats.
pub fn bytes_of(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: bytes need no alignment, and any four of them are a float32.
    unsafe { floats.align_to_mut::<u8>() }.1
}
