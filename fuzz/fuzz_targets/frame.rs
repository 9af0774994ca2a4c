//! See `narrows::fuzz::frame`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::frame(data));
