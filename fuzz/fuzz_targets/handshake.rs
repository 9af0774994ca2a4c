//! See `narrows::fuzz::handshake`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows::fuzz::handshake(data));
