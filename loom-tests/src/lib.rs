//! Models of the shipped ring, checked by loom: every interleaving up to a preemption bound, and
//! every value that a weak memory could return; and the same models over weakened copies of it.
//!
//! ```text
//!   machine/    what the ring runs on: loom's words, cells and sleep
//!   models/     what is proved, over any `code`
//!   shipped     the models over the code that ships      tests/models.rs: all must hold
//!   weakened    the models over a copy in which one step is weak (made by build/)
//!                                                        tests/mutants.rs: one must fail, each time
//! ```
#![allow(unsafe_code)] // To look into loom's cells.

pub mod memory;
#[allow(clippy::duplicate_mod, reason = "the same models, over other code")]
pub mod mutated;
pub mod mutation;
mod run;
pub mod shipped;

pub use run::{MOST, Preemptions, TOO_MANY, alone, check_mine};
