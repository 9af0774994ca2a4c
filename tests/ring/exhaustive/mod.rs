//! Rings so small that all their states can be visited: tests that enumerate instead of sampling.
//!
//! | module | enumerates | compared with |
//! |---|---|---|
//! | `rings` | every state that short programs reach in tiny rings | a queue, and the bounds of the protocol |
//! | `validation` | every class of value of every word that is validated, in every cursor state | the tables of `src/ring/` |
//! | `orders` | every order of messages, halves and silence, for both state machines of the handshake | a table of bytes |
//!
//! `tests/listener/handshake_exhaustive.rs` does the same for descriptors, with a kernel. These tests do not cover two threads at
//! once (`loom-tests/` does), rings of useful sizes (`tests/ring/geometries.rs`), and values that behave unlike their class (the
//! fuzzers look for those).

mod orders;
mod quiet;
mod rings;
mod validation;
mod world;
