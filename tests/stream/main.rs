//! Streams: what is sent arrives, blocking calls end, and the end of a peer is reported with its reason.

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod blocked;
mod byte_streams;
mod events;
mod fork;
mod guards;
mod leaks;
mod peer_death;
mod peer_monitor;
mod public_types;
mod round_trips;
mod shared_sender;
mod signals;
mod soak;
mod stats;
mod waiting;
