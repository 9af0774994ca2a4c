//! See `narrows_fuzz_bodies::ring_program`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narrows_fuzz_bodies::ring_program(data));
