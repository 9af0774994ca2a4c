//! One direction in private memory: what the ring guarantees with well-formed and with hostile peers.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod backoff;
mod exhaustive;
mod geometries;
mod hostile;
mod long_messages;
mod memory;
mod payload_race;
