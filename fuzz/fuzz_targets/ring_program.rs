//! See `narrows::fuzz::ring_program`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::ring_program(data));
