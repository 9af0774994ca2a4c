//! How a direction ends: the peer's mark, and this side's verdict about the connection.
//!
//! | fate | set by | what calls return |
//! |---|---|---|
//! | 0 | - | the connection lives |
//! | `Closed` | this process | `Closed`, at once |
//! | `Disconnected` | the lifeline: hang-up, no mark | what was committed, then `Disconnected` |
//! | `Died` | the lifeline: the peer's process ended | what was committed, then `PeerDied` |
//! | `Violated` | this side, on a lie | `ProtocolViolated`, at once |
//!
//! A mark of the peer counts before `Disconnected` and `Died`: who said good-bye did not die.

use crate::error::ConnectionError;
use crate::memory::{Flag, Load, Memory, Store, Word};

use super::parking::{force_notify, notify};

/// What became of a connection: the values of [`Word::CloseReason`] but 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Closed by this process.
    Closed = 1,
    /// The peer hung up without a mark.
    Disconnected = 2,
    /// The peer's process ended without a mark.
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

/// How this direction has ended, if it has; `peer` is the word that the other side marks.
///
/// A consumer must look for the end *before* it looks at the stamp, and report it only when nothing
/// is left to receive (but for `Closed` and `ProtocolViolated`, which end it at once).
#[inline(always)]
pub fn closed<M: Memory>(mem: &M, peer: Word) -> Option<ConnectionError> {
    // pairs with the Release in `Memory::set_close_reason`.
    let reason = mem.load(Word::CloseReason, Load::Acquire);
    // pairs with the Release store in `close`.
    let closed = mem.load(peer, Load::Acquire);
    if reason | closed == 0 { None } else { Some(error_of(reason, closed)) }
}

#[cold]
fn error_of(reason: u64, closed: u64) -> ConnectionError {
    match CloseReason::of(reason) {
        Some(CloseReason::Closed) => ConnectionError::Closed,
        Some(CloseReason::Violated) => ConnectionError::ProtocolViolated,
        Some(CloseReason::Died) if closed == 0 => ConnectionError::PeerDied,
        _ => ConnectionError::Disconnected,
    }
}

/// Marks this side's end of a direction as closed, and wakes the other side's sleeper.
pub fn close<M: Memory>(mem: &M, own: Word, theirs: Flag) {
    // pairs with the Acquire load in `ended`: who closes may be another thread than who committed.
    mem.store(own, 1, Store::Release);
    notify(mem, theirs);
}

/// This process closes a connection: its marks, its fate, and a wake for all four sleepers.
///
/// The marks come first: whoever is told `Closed` may end the process at once, and has said good-bye.
pub fn close_both<M: Memory>(outgoing: &M, incoming: &M, reason: CloseReason) {
    // pairs with the Acquire load in `ended`; the other mark carries nothing.
    outgoing.store(Word::ProducerClosed, 1, Store::Release);
    incoming.store(Word::ConsumerClosed, 1, Store::Relaxed);
    on_peer_gone(outgoing, incoming, reason);
    notify(outgoing, Flag::Consumer);
    notify(incoming, Flag::Producer);
}

/// The lifeline found the peer gone: the connection gets its fate if it has none, and this side's two
/// sleepers are woken.
pub fn on_peer_gone<M: Memory>(outgoing: &M, incoming: &M, reason: CloseReason) {
    // Release, within; pairs with the Acquire load in `ended`.
    outgoing.set_close_reason(reason as u64);
    force_notify(incoming, Flag::Consumer);
    force_notify(outgoing, Flag::Producer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Heap;

    #[test]
    fn what_closes_and_what_buries_settle_mark_and_lower() {
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
            let marks = [
                outgoing.load(Word::ProducerClosed, Load::Relaxed),
                incoming.load(Word::ConsumerClosed, Load::Relaxed),
            ];
            assert_eq!(marks, [u64::from(close); 2], "who died said nothing");
        }
    }
}
