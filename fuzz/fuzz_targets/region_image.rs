//! See `narrows::fuzz::region_image`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::region_image(data));
