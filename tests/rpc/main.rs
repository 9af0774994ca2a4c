//! Calls between processes.

extern crate narrows_tests as narrows; // The library, built with the internals that tests need.

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod calls;
mod deadlocks;
mod death;
mod errors;
mod flow_control;
mod hostile;
mod order;
mod over_streams;
mod protocol;
mod reconnect;
mod scale;
mod tables;
mod typed;
