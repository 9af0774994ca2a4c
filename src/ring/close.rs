//! How a direction ends: the peer's closed flag, and this side's close reason for the connection.
//!
//! | close reason | set by | calls return |
//! |---|---|---|
//! | 0 | - | the connection is open |
//! | `Closed` | this process | `Closed`, at once |
//! | `Disconnected` | the peer monitor: hang-up without a closed flag | committed messages, then `Disconnected` |
//! | `Died` | the peer monitor: the peer's process ended | committed messages, then `PeerDied` |
//! | `Violated` | this side, on a protocol violation | `ProtocolViolation`, at once |
//!
//! The peer's closed flag takes precedence over `Died`: a peer that has closed its end before its process ended is
//! reported as `Disconnected`.

use crate::error::ConnectionError;
use crate::memory::{Flag, Load, Memory, Store, Word};

use super::parking::{force_notify, notify};

/// Why a connection has ended: the values of [`Word::CloseReason`] except 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Closed by this process.
    Closed = 1,
    /// The peer hung up without setting its closed flag.
    Disconnected = 2,
    /// The peer's process ended without setting its closed flag.
    Died = 3,
    /// The peer broke the protocol.
    Violated = 4,
}

impl CloseReason {
    fn of(word: u64) -> Option<Self> {
        match word {
            0 => None,
            1 => Some(Self::Closed),
            2 => Some(Self::Disconnected),
            3 => Some(Self::Died),
            _ => Some(Self::Violated),
        }
    }
}

/// Returns how this direction has ended, or `None` if it is open. `peer` is the closed flag of the other side.
///
/// A consumer must read this *before* it reads the stamp. It reports the end only when no message is left to receive,
/// except `Closed` and `ProtocolViolation`, which it reports at once.
#[inline(always)]
pub fn closed<M: Memory>(mem: &M, peer: Word) -> Option<ConnectionError> {
    // Pairs with the Release in `Memory::set_close_reason`.
    let reason = mem.load(Word::CloseReason, Load::Acquire);
    // Pairs with the Release store in `close`.
    let closed = mem.load(peer, Load::Acquire);
    if reason | closed == 0 { None } else { Some(error_of(reason, closed)) }
}

#[cold]
fn error_of(reason: u64, closed: u64) -> ConnectionError {
    match CloseReason::of(reason) {
        Some(CloseReason::Closed) => ConnectionError::Closed,
        Some(CloseReason::Violated) => ConnectionError::ProtocolViolation,
        Some(CloseReason::Died) if closed == 0 => ConnectionError::PeerDied,
        _ => ConnectionError::Disconnected,
    }
}

/// Closes this side's end of a direction: sets its closed flag `own`, and wakes the other side's thread that waits on
/// `theirs`.
pub fn close<M: Memory>(mem: &M, own: Word, theirs: Flag) {
    // Pairs with the Acquire load in `closed`. Release, since the thread that closes may be another one than the thread
    // that committed.
    mem.store(own, 1, Store::Release);
    notify(mem, theirs);
}

/// Closes a connection in both directions: sets both closed flags of this side and its close reason, and wakes the
/// waiting threads of both sides.
///
/// The closed flags come first. A thread that receives `Closed` may end the process at once, and the peer must then
/// find the flags set.
pub fn close_both<M: Memory>(outgoing: &M, incoming: &M, reason: CloseReason) {
    // Pairs with the Acquire load in `closed`. The consumer's flag publishes no data, so it is Relaxed.
    outgoing.store(Word::ProducerClosed, 1, Store::Release);
    incoming.store(Word::ConsumerClosed, 1, Store::Relaxed);
    on_peer_gone(outgoing, incoming, reason);
    notify(outgoing, Flag::Consumer);
    notify(incoming, Flag::Producer);
}

/// Sets the close reason of a connection that has none, and wakes this side's two waiting threads. The peer monitor
/// calls it when it has found the peer gone.
pub fn on_peer_gone<M: Memory>(outgoing: &M, incoming: &M, reason: CloseReason) {
    // Release inside `set_close_reason`: pairs with the Acquire load in `closed`.
    outgoing.set_close_reason(reason as u64);
    force_notify(incoming, Flag::Consumer);
    force_notify(outgoing, Flag::Producer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Heap;

    #[test]
    fn a_close_and_a_gone_peer_set_the_reason_and_the_flags() {
        for (close, reason) in [(true, CloseReason::Closed), (false, CloseReason::Died)] {
            let rings = [Heap::new(1, 64, 1), Heap::new(1, 64, 1)];
            let [outgoing, incoming] = &rings;
            outgoing.store_flag(Flag::Producer, 1);
            incoming.store_flag(Flag::Consumer, 1);
            if close {
                close_both(outgoing, incoming, reason)
            } else {
                on_peer_gone(outgoing, incoming, reason)
            }
            assert_eq!(outgoing.load(Word::CloseReason, Load::Relaxed), reason as u64);
            assert_eq!([outgoing.load_flag(Flag::Producer), incoming.load_flag(Flag::Consumer)], [0, 0]);
            let closed_flags = [
                outgoing.load(Word::ProducerClosed, Load::Relaxed),
                incoming.load(Word::ConsumerClosed, Load::Relaxed),
            ];
            assert_eq!(closed_flags, [u64::from(close); 2], "a peer that died has set no closed flag");
        }
    }
}
