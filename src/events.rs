//! Log events about connections. Without the feature `log` these functions do nothing.
//!
//! | event | level |
//! |---|---|
//! | a connection was made, to a server or of a client | debug |
//! | a client was rejected, and why | warn; debug if it hung up |
//! | a connection was closed, by which side | debug |
//! | the peer's process died | warn |
//! | the peer broke the protocol | error |
//! | the program closed descriptors of the library, or the peer monitor cannot run: connections end | error |
//! | the peer monitor's thread was killed, or keeps a scheduling that delays it | warn |
//! | a descriptor of a peer could not be closed | warn |
//!
//! # Invariants
//!
//! 1. No code that sends or receives a message calls a function of this module.
//! 2. The end of a connection is logged once, after all threads that sleep on it were woken. The thread that closes the
//!    connection, the peer monitor's thread, or the thread that drops the connection logs it.
//!
//! # Proof
//!
//! `tests/stream/events.rs`.

use std::fmt::Display;

/// The target by which a program's logger can filter these events.
#[cfg(feature = "log")]
const TARGET: &str = "narrows";

macro_rules! emit {
    ($level:ident, $($text:tt)+) => {
        #[cfg(feature = "log")]
        log::$level!(target: TARGET, $($text)+);
        #[cfg(not(feature = "log"))]
        let _unused = format_args!($($text)+);
    };
}

/// Logs that a client has connected to its server, or a child to its parent.
pub(crate) fn connected(pid: u32, uid: u32) {
    emit!(debug, "connected to process {pid} of user {uid}");
}

/// Logs that a server has accepted a client, or a parent its child.
pub(crate) fn accepted(pid: u32, uid: u32) {
    emit!(debug, "accepted process {pid} of user {uid}");
}

/// Logs that a server has rejected a client.
pub(crate) fn rejected(pid: u32, uid: u32, why: &dyn Display) {
    emit!(warn, "rejected process {pid} of user {uid}: {why}");
}

/// Logs that a client hung up before its handshake was complete.
pub(crate) fn left(pid: u32, uid: u32) {
    emit!(debug, "process {pid} of user {uid} left before its handshake was over");
}

/// Logs that the program has closed descriptors of the peer monitor or of connections.
pub(crate) fn monitor_closed(connections: usize) {
    emit!(error, "the program has closed descriptors that belong to narrows: {connections} connections end");
}

/// Logs that the peer monitor's thread was killed and could not be started again.
pub(crate) fn monitor_killed(connections: usize) {
    emit!(error, "the peer monitor has lost its thread: {connections} connections end");
}

/// Logs that the peer monitor's thread was killed and is started again.
pub(crate) fn monitor_restarted() {
    emit!(warn, "the peer monitor's thread was killed, perhaps by a seccomp filter: it is started again");
}

/// Logs that the peer monitor's thread keeps the scheduling policy of the thread that started it.
pub(crate) fn monitor_not_reset(why: &dyn Display) {
    emit!(warn, "the peer monitor keeps the scheduling of the thread that made the first connection: {why}");
}

/// Logs that a descriptor from a peer stays open, as no thread is free to close it.
pub(crate) fn descriptor_lost() {
    emit!(warn, "a descriptor of a peer stays open: its close may block, and no thread is free to do it");
}

/// Logs that a connection has ended. `reason` is a number of `ring::CloseReason`; `by_peer` says whether the peer
/// closed.
pub(crate) fn ended(pid: u32, reason: u64, by_peer: bool) {
    match reason {
        0 | 1 if !by_peer => {
            emit!(debug, "closed the connection with process {pid}");
        }
        0..=2 => {
            emit!(debug, "process {pid} closed the connection");
        }
        3 => {
            emit!(warn, "process {pid} died, and with it the connection");
        }
        _ => {
            emit!(error, "process {pid} broke the protocol: the connection is closed");
        }
    }
}
