//! Peers that violate the protocol by writing to the shared pages or sockets, and systems that refuse what the library asks for.

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod low_memory;
mod old_kernel;
mod pages;
