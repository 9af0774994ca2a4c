//! See `narrows::fuzz::memory`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::memory(data));
