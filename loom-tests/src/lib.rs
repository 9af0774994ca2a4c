//! Models of the shipped ring and RPC layer, checked by loom: every interleaving up to a preemption bound, and every value
//! that a weak memory model allows. The same models run over mutated copies of the code.
//!
//! ```text
//!   memory/     what the ring runs on: loom's words, cells and sleep
//!   models/     what is proved, over any `code`
//!   shipped     the models over the code that ships      tests/models.rs: all must hold
//!   mutated     the models over a copy in which one step is mutated (made by build/)
//!                                                        tests/mutants.rs: one must fail for each mutant
//! ```
#![allow(unsafe_code)] // To access the content of loom's cells.

pub mod memory;
#[allow(clippy::duplicate_mod, reason = "the same models over other code")]
pub mod mutated;
pub mod mutation;
mod run;
pub mod shipped;

pub use run::{MAX_EXECUTIONS, Preemptions, TOO_MANY_EXECUTIONS, check_requested, command_for};
