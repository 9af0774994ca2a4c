//! See `narrows::fuzz::descriptors`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::descriptors(data));
