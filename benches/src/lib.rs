//! Runs the same work through many ways to send a message between two processes, and says what each took.
//!
//! ```text
//!  system     what an adaptor implements: System, SendHalf, ReceiveHalf; the Work it is given
//!  source     the messages, and how each is judged
//!  driver      both sides of one piece of work          ─▶ SideReport;  many_connections: of many connections
//!  run        rows, rounds, processes, watchdog        ─▶ Trial, Record (JSON)
//!  probe      is the machine the same before and after?
//!  report     medians and spread, tables; plot: pictures; targets: what was promised and what is held
//!  limits     what the hardware and the kernel allow, as systems beside the others
//!  sys        the only unsafe
//! ```
//!
//! A benchmark is a binary whose `main` calls [`main`] with its [`Subject`]s (see [`systems!`]) and the rows it
//! wants of each. The binary starts itself twice for each row, once for each side.
//!
//! What it shows: what a program pays that makes a message in its own memory, has it sent, and reads all of
//! it at the other end. What it does not: a program that does other work in between, whose caches are colder.

mod command;
mod driver;
pub mod limits;
mod many_connections;
mod plot;
mod probe;
mod record;
mod report;
mod run;
mod sample;
mod source;
#[allow(unsafe_code)] // The only place.
mod sys;
mod system;
pub mod targets;

pub use anyhow::{Error, Result, anyhow, bail, ensure};

pub use command::{enter_repository, machine, main};
pub use driver::{Job, Measurement, Subject};
pub use plot::Chart;
pub use probe::cpu_seconds_of_others;
pub use record::{CpuPlacement, Latency, Record, Row, SideReport, Trial};
pub use sample::{Stopwatch, UsageMeter, dense};
pub use source::{Check, Checked, Source};
pub use sys::{SharedBytes, cpu_seconds, cpu_seconds_of_children, die_with_parent, monotonic};
pub use system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

/// Lists the systems of a binary: `systems![Narrows, UnixStream]`.
#[macro_export]
macro_rules! systems {
    ($($system:ty),* $(,)?) => { vec![$($crate::Subject::of::<$system>()),*] };
}
