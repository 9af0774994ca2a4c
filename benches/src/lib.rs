//! The harness of the benchmarks: runs the same work through many ways to send a message between two processes, and
//! reports what each costs.
//!
//! ```text
//!  system     the traits of an adaptor: System, SendHalf, ReceiveHalf; the Work and the Job that it is given
//!  source     the messages, and how each is validated
//!  driver     both sides of one piece of work          ─▶ SideReport;  endpoint: one side; many_connections
//!  timing     samples of a counter, usage of CPU and memory
//!  run        rows, rounds, processes, watchdog        ─▶ Trial, Record (JSON)
//!  probe      the machine: is it the same before and after a row?
//!  figures    medians and spread; report: tables; plot: pictures; targets: ratios that must hold
//!  limits     the limits of the hardware and the kernel, as systems beside narrows_streams
//!  process, retry   starting a process; waiting for the other side
//!  sys        the only unsafe
//! ```
//!
//! A benchmark is a binary whose `main` calls [`main`] with its [`Subject`]s (see [`systems!`]) and the rows it
//! wants of each. The binary starts itself twice for each row, once for each side.
//!
//! The figures show the cost for a program that makes a message in its own memory, sends it, and reads all of it at the
//! other end. They do not show a program that does other work in between, whose caches are colder.

mod command;
mod driver;
mod endpoint;
mod figures;
pub mod limits;
mod many_connections;
pub mod narrows_streams;
mod plot;
mod probe;
mod process;
mod record;
mod report;
mod retry;
mod run;
mod source;
#[allow(unsafe_code)] // The only place.
mod sys;
mod system;
pub mod targets;
mod timing;

pub use anyhow::{Context, Error, Result, anyhow, bail, ensure};

pub use command::{enter_repository, main};
pub use driver::{Measurement, Subject};
pub use figures::Summary;
pub use probe::{busy_seconds, cpu_seconds_of_others, machine};
pub use process::{Output, Process};
pub use record::{CpuPlacement, Latency, Row, SideReport};
pub use retry::retry;
pub use source::{Check, Source};
pub use sys::{cpu_seconds, cpu_seconds_of_children, die_with_parent, monotonic};
pub use system::{Access, Job, ReceiveBuffer, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};
pub use timing::{UsageMeter, dense};
