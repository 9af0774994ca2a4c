//! What nearly every message takes: it is there, whole, and nothing is in the way.
//!
//! # Invariants
//!
//! 1. It does what the longer way would do, or nothing: a message that it leaves is found by the next look.
//! 2. It runs only while nothing is lent, at hand, in pieces or over (`plain`): so no message comes twice.
//!
//! # Proof
//!
//! Everything that receives whole messages: the models, `tests/ring/exhaustive`, the fuzz bodies `frame` and `ring_hostile`;
//! `fetch` has the models of calls, and the fuzz bodies `calls` and `ring_hostile`.

use super::incoming::Buffer;
use super::{Inbound, Incoming, Pace, Received, RecvFault, Wait};
use crate::error::Violation;
use crate::mem::Memory;
use crate::ring::Took;

impl<M: Memory, P: Pace> Inbound<M, P> {
    /// Copies the next message if it is there, stands in its slot, and nothing is in the way.
    ///
    /// What is left to do then is [`after`](Self::after), if the other value says so.
    #[inline(always)]
    pub(crate) fn recv_at_once<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<(Received, bool)> {
        if !self.plain {
            return None;
        }
        let took = self.ring.take(self.short, |len| buffer.room(len));
        self.what_is_left(took)
    }

    /// The same for one that stands in the arena.
    #[inline(always)]
    pub(crate) fn recv_placed<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<(Received, bool)> {
        if !self.plain {
            return None;
        }
        let took = self.ring.take_placed(self.max_message, |len| buffer.room(len));
        self.what_is_left(took)
    }

    #[inline(always)]
    fn what_is_left(&mut self, took: Took) -> Option<(Received, bool)> {
        match took {
            Took::Message { len, tag, asleep } => Some((Received { len, tag }, asleep || self.pace.is_due())),
            Took::Nothing => None,
            Took::Torn => self.torn(),
        }
    }

    /// Copies what stands behind the first word of a short message that is there into the room that its tag, that word and
    /// its length get, if nothing is in the way; it has left the ring then. Else the room holds nothing of worth.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        if !self.plain {
            return false;
        }
        let took = self.ring.take_framed(self.short, room);
        match self.what_is_left(took) {
            Some((_, true)) => self.after(),
            Some((_, false)) => {}
            None => return false,
        }
        true
    }

    /// As [`next`](Self::next), but a short message that is there already leaves the ring at once: its bytes stay until
    /// the next call, and nobody gets it again.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline(always)]
    pub fn fetch(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        if self.plain {
            let Self { ring, short, taken, .. } = self;
            let took = ring.take(*short, |len| taken.get_mut(..len));
            if let Some((message, rest)) = self.what_is_left(took) {
                if rest {
                    self.after();
                }
                return Ok(Incoming::Taken(message.len, message.tag));
            }
        }
        self.next(wait)
    }

    /// Lends the next message in place: the next call gives it back, whatever happens.
    ///
    /// # Errors
    ///
    /// [`RecvFault`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn lend(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        if self.plain {
            if let Some(arrival) = self.ring.whole(self.short, self.max_message) {
                (self.plain, self.lent, self.at_hand) = (false, true, Some(arrival));
                return Ok(Incoming::Placed(arrival));
            }
        }
        self.lend_in_time(wait)
    }

    #[inline(never)]
    fn lend_in_time(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        let message = self.next(wait)?;
        self.lent = true;
        Ok(message)
    }

    pub(super) fn take<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<Received> {
        let (message, rest) = self.recv_at_once(buffer).or_else(|| self.recv_placed(buffer))?;
        if rest {
            self.after();
        }
        Some(message)
    }

    /// Does what is left after a message: wakes the sender, says where this side is.
    #[cold]
    pub(crate) fn after(&mut self) {
        self.ring.rouse();
        self.pace.tell();
    }

    /// A message moved while it was copied: the next look finds the connection condemned.
    #[cold]
    #[inline(never)]
    fn torn<T>(&mut self) -> Option<T> {
        let _told_by_the_next_look = self.condemn(Violation("a stamp that moved under a reader"));
        None
    }
}
