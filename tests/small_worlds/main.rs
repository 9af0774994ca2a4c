//! Worlds so small that all of them can be visited: tests that enumerate instead of sampling.
//!
//! | module | the world | compared with |
//! |---|---|---|
//! | `rings` | every state that short programs reach in tiny rings | a queue, and the bounds of the protocol |
//! | `judgements` | every class of value of every word that is judged, in every cursor state | the tables of `src/ring/` |
//! | `orders` | every order of messages, halves and silence, for both machines of the handshake | a table of bytes |
//! | `descriptors` | every number and kind of descriptors, and every truncation, over real sockets | a table of kinds |
//!
//! What they do not show: two threads at once (`loom-tests/` does), rings of useful sizes
//! (`tests/ring.rs`), and values within a class that behave unlike it (the fuzzers look for those).

#![allow(unsafe_code)] // The sockets' part makes descriptors by hand, in `support`.

#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod judgements;
mod orders;
mod quiet;
mod rings;
#[path = "../support/mod.rs"]
mod support;
