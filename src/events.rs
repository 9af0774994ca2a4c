//! What becomes of connections, for the program's log: with the feature `log`, and else nothing at all.
//!
//! | event | level |
//! |---|---|
//! | a connection was made, to a server or of a client | debug |
//! | a client was sent away, and why | warn; debug if it left by itself |
//! | a connection was closed, by which side | debug |
//! | the peer's process died | warn |
//! | the peer broke the protocol | error |
//! | the program closed descriptors of the library, or the peer monitor cannot run: connections end | error |
//! | the peer monitor's thread was killed, or keeps a scheduling that delays it | warn |
//! | a descriptor of a peer could not be closed | warn |
//!
//! # Invariants
//!
//! 1. No message's way leads here.
//! 2. Each connection's end is told once, after all who sleep on it were woken: by the thread that closes it, by the
//!    lifeline's, or by the one that drops it.
//!
//! # Proof
//!
//! `tests/stream/events.rs`.

use std::fmt::Display;

/// By which a program's logger knows them.
#[cfg(feature = "log")]
const TARGET: &str = "narrows";

macro_rules! emit {
    ($level:ident, $($text:tt)+) => {
        #[cfg(feature = "log")]
        log::$level!(target: TARGET, $($text)+);
        #[cfg(not(feature = "log"))]
        let _nobody_listens = format_args!($($text)+);
    };
}

/// A client reached its server, or a child its parent.
pub(crate) fn connected(pid: u32, uid: u32) {
    emit!(debug, "connected to process {pid} of user {uid}");
}

/// A server let a client in, or a parent its child.
pub(crate) fn accepted(pid: u32, uid: u32) {
    emit!(debug, "accepted process {pid} of user {uid}");
}

/// A server sent a client away.
pub(crate) fn rejected(pid: u32, uid: u32, why: &dyn Display) {
    emit!(warn, "rejected process {pid} of user {uid}: {why}");
}

/// A client went before it was let in.
pub(crate) fn left(pid: u32, uid: u32) {
    emit!(debug, "process {pid} of user {uid} left before its handshake was over");
}

/// The program closed descriptors of the peer monitor or of connections.
pub(crate) fn monitor_closed(connections: usize) {
    emit!(error, "the program has closed descriptors that belong to narrows: {connections} connections end");
}

/// The peer monitor's thread was killed and could not be started again.
pub(crate) fn monitor_killed(connections: usize) {
    emit!(error, "the peer monitor has lost its thread: {connections} connections end");
}

/// The peer monitor's thread was killed.
pub(crate) fn monitor_restarted() {
    emit!(warn, "the peer monitor's thread was killed, perhaps by a seccomp filter: it is started again");
}

/// The peer monitor's thread is scheduled as the thread that started it.
pub(crate) fn monitor_not_reset(why: &dyn Display) {
    emit!(warn, "the peer monitor keeps the scheduling of the thread that made the first connection: {why}");
}

/// A descriptor that came from a peer stays open: no thread can be had to close it.
pub(crate) fn descriptor_lost() {
    emit!(warn, "a descriptor of a peer stays open: its close may block, and no thread is free to do it");
}

/// A connection has ended: its fate as `ring::CloseReason` has it, and whether the peer has said good-bye.
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
