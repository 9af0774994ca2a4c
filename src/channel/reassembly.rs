//! The reassembly of a long message: its fragments so far, in private memory that grows with what has arrived.

use crate::error::ProtocolViolation;
use crate::layout::SlotKind;
use crate::memory::{OutOfMemory, try_resize};
use crate::ring::SlotContents;

/// The reassembly of one message.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    /// Its first `filled` bytes are the message so far; the bytes behind them are left from earlier messages.
    buffer: Vec<u8>,
    filled: usize,
    total: usize,
    tag: u64,
    state: ReassemblyState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReassemblyState {
    #[default]
    Idle,
    Filling,
    Complete,
}

impl Reassembly {
    /// Returns the bytes of private memory that this message and earlier ones have taken.
    #[cfg(feature = "testing")]
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }

    /// Validates the next fragment or message against what came before it. One that is left in the ring may be
    /// validated again.
    pub(super) fn validate(&self, arrival: &SlotContents, max: usize) -> Result<(), ProtocolViolation> {
        let filling = self.state == ReassemblyState::Filling;
        if arrival.kind.begins() {
            if filling != arrival.abort {
                return Err(ProtocolViolation(if filling {
                    "a message inside a message"
                } else {
                    "an abort of nothing"
                }));
            }
            return match arrival.total <= max as u64 {
                true => Ok(()),
                false => Err(ProtocolViolation("a message longer than agreed")),
            };
        }
        let left = self.total - self.filled;
        let fits = if arrival.kind == SlotKind::Last { arrival.len == left } else { arrival.len < left };
        if filling && fits { Ok(()) } else { Err(ProtocolViolation("a piece that does not fit its message")) }
    }

    /// Returns room for the fragment's bytes, behind those that came before. A first fragment replaces a message that
    /// was aborted. The buffer grows with what has arrived, not with the announced total.
    ///
    /// # Errors
    ///
    /// The length of the whole message, if there is no memory for as much of it as has arrived; nothing has changed
    /// then.
    pub(super) fn room(&mut self, arrival: &SlotContents) -> Result<&mut [u8], usize> {
        let first = arrival.kind == SlotKind::First;
        let total = if first { usize::try_from(arrival.total).unwrap_or(usize::MAX) } else { self.total };
        let end = if first { arrival.len } else { self.filled + arrival.len };
        if self.buffer.len() < end {
            try_resize(&mut self.buffer, end, total).map_err(|OutOfMemory| total)?;
        }
        if first {
            (self.filled, self.total, self.tag, self.state) =
                (0, total, arrival.tag, ReassemblyState::Filling);
        }
        Ok(&mut self.buffer[self.filled..end])
    }

    /// Notes that the fragment's bytes have been copied.
    pub(super) fn advance(&mut self, arrival: &SlotContents) {
        self.filled += arrival.len;
        if arrival.kind == SlotKind::Last {
            self.state = ReassemblyState::Complete;
        }
    }

    /// Returns whether no message has begun.
    pub(super) fn is_idle(&self) -> bool {
        self.state == ReassemblyState::Idle
    }

    /// Returns length and tag of the message if it is complete.
    pub(super) fn complete(&self) -> Option<(usize, u64)> {
        (self.state == ReassemblyState::Complete).then_some((self.filled, self.tag))
    }

    /// Returns the bytes of the message so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Returns the bytes of the message so far.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.filled]
    }

    /// Exchanges the buffer for the next message with the caller's, if no message has begun. Returns whether it did.
    #[inline(always)]
    pub(super) fn exchange_buffer(&mut self, buffer: &mut Vec<u8>) -> bool {
        let idle = self.is_idle();
        if idle {
            std::mem::swap(&mut self.buffer, buffer);
        }
        idle
    }

    /// Moves the message into the caller's buffer, and keeps that buffer's memory for the next message.
    pub(super) fn swap_into(&mut self, into: &mut Vec<u8>) {
        self.buffer.truncate(self.filled);
        std::mem::swap(&mut self.buffer, into);
        self.discard();
    }

    /// Discards the message; its memory stays for the next one.
    pub(super) fn discard(&mut self) {
        (self.filled, self.total, self.state) = (0, 0, ReassemblyState::Idle);
    }
}
