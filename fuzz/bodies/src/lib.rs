//! The bodies of the fuzz targets: each takes any bytes, and panics if the library does what it must not.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   libFuzzer and AddressSanitizer ──┐
//!   tests/replay.rs             seeds and a random campaign ─────┴──▶ NAME(data) ──▶ the library
//! ```
//!
//! | body | calls | compared with |
//! |---|---|---|
//! | [`memory()`] | `memory::Memory`: `Heap` and the real mapping | an image of all bytes |
//! | [`handshake()`] | the codec, both state machines, control records | what each side offered; the same bytes, encoded again |
//! | [`descriptors()`] | a client on a real socket | the error for each kind and number of descriptors |
//! | [`frame()`] | control words, fragments, reassembly | a receiver in its simplest form |
//! | [`ring_hostile()`] | both ends over a hostile memory | limits of work and of private memory |
//! | [`ring_program()`] | both ends over private memory | a `VecDeque` of messages |
//! | [`region_image()`] | the public halves over real pages | no panic, no hang, errors that stay the same |
//! | [`calls()`] | the RPC layer: codec, tables, client and server | limits, with a hostile peer; the answers of the methods |
//!
//! # Invariants
//!
//! 1. The result of a body depends on its bytes alone. It reads the clock only to get a time that has passed.
//! 2. The time that a body takes is bounded for any bytes.
//!
//! The bodies use the library through `narrows::internal`, which exists with the feature `testing`.

#![forbid(unsafe_code)]

mod bytes;
mod calls;
mod descriptors;
mod frame;
mod handshake;
mod hostile_memory;
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

/// The function of a body.
pub type Body = fn(&[u8]);

/// All bodies with their names.
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
