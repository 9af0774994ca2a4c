//! The only module with `unsafe` code and with system calls.
//!
//! ```text
//!   peer_monitor ── epoll ── pidfd ── socket ── cmsg     the end of peers; connections; control messages
//!       \             \        |        |
//!     fork_guard       `───── wait ── syscall_error      forks; waiting; errors
//!       /
//!   region ── memfd      path      spawn                 memory; paths; child processes
//! ```
//!
//! # Invariants
//!
//! 1. The system call that makes a descriptor makes it close-on-exec, and its result is owned at once: no code path
//!    leaks a descriptor.
//! 2. No function here blocks, except those that take a deadline. Operations that a peer could block run in
//!    [`offload`].
//! 3. A forked child that inherited an object changes no state of its parent: see [`fork_guard`].
//! 4. Errors name the system call that failed. [`syscall_error::errno`] returns the number.
//!
//! # Proof
//!
//! The tests at the bottom of each file, with the real kernel and real forks.

/// A step at which a test may end this process: see `failpoint`. Without the feature `testing` it expands to nothing.
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
