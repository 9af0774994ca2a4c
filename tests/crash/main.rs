//! Death at random moments and at every step: the survivor keeps what was committed, and is notified.
//!
//! It is a binary of its own, since it is a campaign with a command of its own: `cargo test -p narrows-tests --test crash`.

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod kills;
mod steps;
