//! How connections are made: listeners and their paths, the handshake, spawned children, and which peers are trusted.

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod foreign_descriptors;
mod handshake;
mod handshake_exhaustive;
mod paths;
mod spawn;
mod trust;
mod workers;
