//! The same models over a copy of that code in which one step at a time can be mutated.

/// Made from the shipped sources by `build/`.
#[allow(missing_docs, unused, unreachable_pub, unexpected_cfgs, clippy::all, clippy::pedantic)]
pub mod code {
    include!(concat!(env!("OUT_DIR"), "/mutated.rs"));
}

#[path = "models/mod.rs"]
pub mod models;
