//! Worlds so small that all of them can be visited: tests that enumerate instead of sampling.
//!
//! | module | the world | compared with |
//! |---|---|---|
//! | `rings` | every state that short programs reach in tiny rings | a queue, and the bounds of the protocol |
//! | `judgements` | every class of value of every word that is judged, in every cursor state | the tables of `src/ring/` |
//! | `orders` | every order of messages, halves and silence, for both machines of the handshake | a table of bytes |
//!
//! `tests/listener/handshake_exhaustive.rs` does the same for descriptors, with a kernel. What they do not show: two threads at once (`loom-tests/` does), rings of useful sizes
//! (`tests/ring/geometries.rs`), and values within a class that behave unlike it (the fuzzers look for those).

mod orders;
mod quiet;
mod rings;
mod validation;
mod world;
