//! Runs `targets::round_trip`, which says what must hold.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| actstore_fuzz::targets::round_trip(data));
