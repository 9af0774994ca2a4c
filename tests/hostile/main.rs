//! Peers that break the rules with the bare pages or sockets in their hands, and systems that refuse what the library asks for.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod low_memory;
mod old_kernel;
mod pages;
