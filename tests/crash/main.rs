//! Death at random moments and at every step: the survivor keeps what was committed, and is notified.
//!
//! A binary of its own, since it is a campaign with a command of its own: `cargo test -p narrows-tests --test crash`.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod kills;
mod steps;
