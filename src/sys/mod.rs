//! The only place with `unsafe` and with system calls.
//!
//! ```text
//!   lifeline ── epoll ── pidfd ── socket ── cmsg      who is there, and what they send
//!       \         \        |        |
//!        fork      `───── wait ── call               which process are we, and what failed
//!       /
//!   region ── memfd      path      spawn             memory; names; children
//! ```
//!
//! # Invariants
//!
//! 1. Every descriptor is close-on-exec from the system call that makes it on, and owned from
//!    there on: there is no path on which one leaks.
//! 2. No function here blocks, but for those that take a deadline; what a peer could make block runs in [`offload`].
//! 3. An object that a fork copied changes nothing of its parent's: see [`fork`].
//! 4. Errors name the call that failed; [`syscall_error::errno`] gives the number back.
//!
//! # Proof
//!
//! Real kernel, real forks: the tests at the bottom of each file.

/// A step at which a test may end this process: see `failpoint`. Without the feature it is nothing.
macro_rules! failpoint {
    ($name:expr) => {
        #[cfg(feature = "testing")]
        crate::sys::failpoint::hit($name);
    };
}

pub(crate) mod cmsg;
pub(crate) mod connection;
mod copy;
pub(crate) mod cpu;
pub(crate) mod descriptor;
pub(crate) mod epoll;
#[cfg(feature = "testing")]
pub mod failpoint;
pub(crate) mod foreign;
pub(crate) mod fork_guard;
mod futex;
#[cfg(feature = "testing")]
pub(crate) mod fuzz_region;
#[cfg(feature = "testing")]
pub mod lost_wakeup_check;
pub(crate) mod mapping;
pub(crate) mod memfd;
pub(crate) mod offload;
pub(crate) mod path;
pub(crate) mod peer_monitor;
pub(crate) mod pidfd;
pub mod probe;
mod procfs;
pub(crate) mod raw_span;
pub(crate) mod region;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod socket_io;
pub(crate) mod spawn;
pub(crate) mod syscall_error;
pub(crate) mod threads;
pub(crate) mod timer;
pub(crate) mod wait;
pub(crate) mod wait_counters;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
