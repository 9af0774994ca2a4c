//! A long message on its way in: pieces so far, in private memory that grows with what came.

use crate::error::Violation;
use crate::layout::Kind;
use crate::ring::Arrival;

/// The reassembly of one message.
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// Its first `filled` bytes are the message so far; what is behind is left from earlier ones.
    buffer: Vec<u8>,
    filled: usize,
    total: usize,
    tag: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Filling,
    Complete,
}

impl Partial {
    /// Bytes of memory taken, of this message and of earlier ones.
    #[cfg(feature = "testing")]
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }

    /// Judges the next arrival against what came before it; the abort bit is obeyed here.
    pub(super) fn judge(&mut self, arrival: &Arrival, max: usize) -> Result<(), Violation> {
        let filling = self.state == State::Filling;
        if arrival.kind.begins() {
            if filling != arrival.abort {
                return Err(Violation(if filling {
                    "a message inside a message"
                } else {
                    "an abort of nothing"
                }));
            }
            self.discard();
            return match arrival.total <= max as u64 {
                true => Ok(()),
                false => Err(Violation("a message longer than agreed")),
            };
        }
        let left = self.total - self.filled;
        let fits = if arrival.kind == Kind::Last { arrival.len == left } else { arrival.len < left };
        if filling && fits { Ok(()) } else { Err(Violation("a piece that does not fit its message")) }
    }

    /// Room for the arrival's bytes, behind those that came before. Grows by what came.
    pub(super) fn room(&mut self, arrival: &Arrival) -> &mut [u8] {
        if arrival.kind == Kind::First {
            self.total = usize::try_from(arrival.total).unwrap_or(usize::MAX);
            self.tag = arrival.tag;
            self.state = State::Filling;
        }
        let end = self.filled + arrival.len;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.filled..end]
    }

    /// The arrival's bytes are in.
    pub(super) fn advance(&mut self, arrival: &Arrival) {
        self.filled += arrival.len;
        if arrival.kind == Kind::Last {
            self.state = State::Complete;
        }
    }

    /// Whether there is nothing of any message.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Length and tag of a complete message.
    pub(super) fn complete(&self) -> Option<(usize, u64)> {
        (self.state == State::Complete).then_some((self.filled, self.tag))
    }

    /// The bytes of the message so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// The bytes of the message so far.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.filled]
    }

    /// While there is no message, exchanges the memory for the next one with the caller's; whether
    /// it did.
    #[inline(always)]
    pub(super) fn trade(&mut self, buffer: &mut Vec<u8>) -> bool {
        let idle = self.is_idle();
        if idle {
            std::mem::swap(&mut self.buffer, buffer);
        }
        idle
    }

    /// Gives the message away and takes the caller's memory for the next one.
    pub(super) fn swap_into(&mut self, into: &mut Vec<u8>) {
        self.buffer.truncate(self.filled);
        std::mem::swap(&mut self.buffer, into);
        self.discard();
    }

    /// Forgets the message; the memory stays for the next one.
    pub(super) fn discard(&mut self) {
        (self.filled, self.total, self.state) = (0, 0, State::Idle);
    }
}
