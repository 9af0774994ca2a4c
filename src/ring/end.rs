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

use crate::error::Ended;
use crate::mem::{Flag, Load, Memory, Store, Word};

use super::park::{alarm, rouse};

/// What became of a connection: the values of [`Word::Fate`] but 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Closed by this process.
    Closed = 1,
    /// The peer hung up without a mark.
    Disconnected = 2,
    /// The peer's process ended without a mark.
    Died = 3,
    /// The peer broke the protocol.
    Violated = 4,
}

impl Fate {
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
pub fn ended<M: Memory>(mem: &M, peer: Word) -> Option<Ended> {
    // pairs with `Memory::settle`.
    let fate = mem.load(Word::Fate, Load::Acquire);
    // pairs with the Release store in `close`.
    let mark = mem.load(peer, Load::Acquire);
    if fate | mark == 0 { None } else { Some(told(fate, mark)) }
}

#[cold]
fn told(fate: u64, mark: u64) -> Ended {
    match Fate::of(fate) {
        Some(Fate::Closed) => Ended::Closed,
        Some(Fate::Violated) => Ended::ProtocolViolated,
        Some(Fate::Died) if mark == 0 => Ended::PeerDied,
        _ => Ended::Disconnected,
    }
}

/// Marks this side's end of a direction as closed, and wakes the other side's sleeper.
pub fn close<M: Memory>(mem: &M, own: Word, theirs: Flag) {
    // pairs with the Acquire load in `ended`: who closes may be another thread than who committed.
    mem.store(own, 1, Store::Release);
    rouse(mem, theirs);
}

/// This process closes a connection: its marks, its fate, and a wake for all four sleepers.
///
/// The marks come first: whoever is told `Closed` may end the process at once, and has said good-bye.
pub fn shut<M: Memory>(outgoing: &M, incoming: &M, fate: Fate) {
    // pairs with the Acquire load in `ended`; the other mark carries nothing.
    outgoing.store(Word::ProducerMark, 1, Store::Release);
    incoming.store(Word::ConsumerMark, 1, Store::Relaxed);
    bury(outgoing, incoming, fate);
    rouse(outgoing, Flag::Consumer);
    rouse(incoming, Flag::Producer);
}

/// The lifeline found the peer gone: the connection gets its fate if it has none, and this side's two
/// sleepers are woken.
pub fn bury<M: Memory>(outgoing: &M, incoming: &M, fate: Fate) {
    // Release, within; pairs with the Acquire load in `ended`.
    outgoing.settle(fate as u64);
    alarm(incoming, Flag::Consumer);
    alarm(outgoing, Flag::Producer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Heap;

    #[test]
    fn what_closes_and_what_buries_settle_mark_and_lower() {
        for (close, fate) in [(true, Fate::Closed), (false, Fate::Died)] {
            let rings = [Heap::new(1, 64, 1), Heap::new(1, 64, 1)];
            let [outgoing, incoming] = &rings;
            outgoing.store_flag(Flag::Producer, 1);
            incoming.store_flag(Flag::Consumer, 1);
            if close {
                shut(outgoing, incoming, fate)
            } else {
                bury(outgoing, incoming, fate)
            }
            assert_eq!(outgoing.load(Word::Fate, Load::Relaxed), fate as u64);
            assert_eq!([outgoing.load_flag(Flag::Producer), incoming.load_flag(Flag::Consumer)], [0, 0]);
            let marks = [
                outgoing.load(Word::ProducerMark, Load::Relaxed),
                incoming.load(Word::ConsumerMark, Load::Relaxed),
            ];
            assert_eq!(marks, [u64::from(close); 2], "who died said nothing");
        }
    }
}
