//! The bodies of the fuzzers: each takes any bytes, and panics if the library does what it must not.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   libFuzzer and AddressSanitizer ──┐
//!   tests/hostile/fuzz.rs               seeds and a random campaign ─────┴──▶ NAME(data) ──▶ the library
//! ```
//!
//! | body | drives | against |
//! |---|---|---|
//! | [`memory()`] | `mem::Memory`: `Heap` and the real mapping | an image of every byte |
//! | [`handshake()`] | codec, both machines, control records | what was wanted; the same bytes again |
//! | [`descriptors()`] | a real client on a socket | exactly one sealed memory of the right size |
//! | [`frame()`] | control words, pieces, reassembly | a table, and what really came |
//! | [`ring_hostile()`] | both ends over a memory that lies | bounds on work and on memory |
//! | [`ring_program()`] | both ends over an honest memory | a `VecDeque` of messages |
//! | [`region_image()`] | the public halves over real pages | no panic, no hang, errors that stay |
//! | [`calls()`] | the call layer: codec, both tables, desk and attendant | a liar; what was said |
//!
//! # Invariants
//!
//! 1. A body is a function of its bytes: it reads no clock but to name a moment that has passed.
//! 2. A body takes bounded time for any bytes.

mod bytes;
mod calls;
mod descriptors;
mod frame;
mod handshake;
mod liar;
mod memory;
mod region_image;
mod ring_hostile;
mod ring_program;

pub use calls::{CallTally, call_tally, calls};
pub use descriptors::descriptors;
pub use frame::frame;
pub use handshake::handshake;
pub use memory::memory;
pub use region_image::region_image;
pub use ring_hostile::ring_hostile;
pub use ring_program::{Tally, ring_program, tally};

/// A body.
pub type Body = fn(&[u8]);

/// Every body by its name.
pub const BODIES: [(&str, Body); 8] = [
    ("memory", memory),
    ("handshake", handshake),
    ("descriptors", descriptors),
    ("frame", frame),
    ("ring_hostile", ring_hostile),
    ("ring_program", ring_program),
    ("region_image", region_image),
    ("calls", calls),
];
