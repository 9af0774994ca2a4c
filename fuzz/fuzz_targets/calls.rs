//! See `narrows::fuzz::calls`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::calls(data));
