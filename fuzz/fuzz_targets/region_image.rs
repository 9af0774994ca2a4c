//! See `narrows_fuzz_bodies::region_image`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows_fuzz_bodies::region_image(data));
