//! The reading side of a ring: look, judge, copy out, release. Never blocks.

use super::{ended, park, ready, writing};
use crate::error::{Ended, Violation};
use crate::layout::{Control, Kind, LAST_TICKET};
use crate::mem::{Fence, Field, Flag, GRAIN, Load, Memory, OutOfBounds, Span, Store, Word};

/// A ready ticket, judged: everything that decides has been loaded once and stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    ticket: u64,
    /// What the slot carries.
    pub kind: Kind,
    /// The unfinished message before it is abandoned.
    pub abort: bool,
    /// Bytes of payload here.
    pub len: usize,
    /// Bytes of the whole message: more than `len` only for [`Kind::First`].
    pub total: u64,
    /// The tag.
    pub tag: u64,
    /// Where the payload stands.
    pub span: Span,
}

/// The reading side.
#[derive(Debug)]
pub struct Consumer<M> {
    mem: M,
    head: u64,
    published: u64,
    hidden: u64,
}

impl<M: Memory> Consumer<M> {
    /// The consumer of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, first: u64) -> Self {
        Self { mem, head: first, published: first, hidden: 0 }
    }

    /// The memory.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// The next ticket to read.
    #[inline]
    pub fn ticket(&self) -> u64 {
        self.head
    }

    /// The next message or piece, if it is ready.
    ///
    /// # Errors
    ///
    /// [`Violation`] if the stamp or the control word is none that an honest producer writes here.
    #[inline(always)]
    pub fn arrival(&self) -> Result<Option<Arrival>, Violation> {
        // pairs with the Release store in `Producer::publish`.
        let stamp = self.mem.load_slot(self.head, Field::Stamp, Load::Acquire);
        if stamp != ready(self.head) || self.head > LAST_TICKET {
            return if self.waiting(stamp) { Ok(None) } else { Err(Violation("a stamp of no ticket here")) };
        }
        let word = self.mem.load_slot(self.head, Field::Control, Load::Relaxed);
        let tag = self.mem.load_slot(self.head, Field::Tag, Load::Relaxed);
        let Control { kind, abort, len, place } = Control::decode(word, self.mem.arena())?;
        let span = if kind == Kind::Inline { Span::Slot(self.head) } else { Span::Arena(place) };
        let len = len as usize;
        let total = if kind == Kind::First { self.total(len)? } else { len as u64 };
        Ok(Some(Arrival { ticket: self.head, kind, abort, len, total, tag, span }))
    }

    /// Copies out of an arrival's payload, from `at` on.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if the range is not in the payload.
    #[inline(always)]
    pub fn read(&self, arrival: &Arrival, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        match at.checked_add(bytes.len()) {
            Some(end) if end <= arrival.len => self.mem.copy_out(arrival.span, at, bytes),
            _ => Err(OutOfBounds),
        }
    }

    /// Whether what was read of an arrival until now was not written meanwhile.
    ///
    /// # Errors
    ///
    /// [`Violation`] if its stamp moved: the producer overwrote what it had committed.
    #[inline(always)]
    pub fn verify(&self, arrival: &Arrival) -> Result<(), Violation> {
        // pairs with the fence in `Producer::open`.
        self.mem.fence(Fence::Acquire);
        let stamp = self.mem.load_slot(arrival.ticket, Field::Stamp, Load::Relaxed);
        if stamp == ready(arrival.ticket) {
            Ok(())
        } else {
            Err(Violation("a stamp that moved under a reader"))
        }
    }

    /// Releases an arrival: its slot and place go back to the producer, at once or with the next.
    ///
    /// An arrival that is not the next one is ignored: nothing is released twice.
    #[inline(always)]
    pub fn release(&mut self, arrival: &Arrival) {
        if arrival.ticket != self.head {
            return;
        }
        self.head += 1;
        if arrival.kind != Kind::Inline {
            self.hidden += (arrival.len as u64).next_multiple_of(GRAIN as u64);
        }
        let next = self.mem.load_slot(self.head, Field::Stamp, Load::Relaxed);
        let unread = next == ready(self.head) && self.head <= LAST_TICKET;
        let few = self.head - self.published <= self.mem.slots() / 4 && self.hidden <= self.mem.arena() / 4;
        if !(unread && few) {
            self.publish_head(unread);
            #[cfg(feature = "testing")]
            self.mem.checked(Flag::Producer, self.head);
        }
    }

    /// Whether the wait for a message is over: one is ready, or the direction has ended, or the
    /// stamp is a lie that the next look will find.
    #[inline]
    pub fn stirred(&self) -> bool {
        // Relaxed, and in no order with the end: it says no more than that there is something to look at.
        let stamp = self.mem.load_slot(self.head, Field::Stamp, Load::Relaxed);
        !self.waiting(stamp) || self.ended().is_some()
    }

    /// How this direction has ended, if it has. To be asked *before* [`arrival`](Self::arrival).
    #[inline]
    pub fn ended(&self) -> Option<Ended> {
        ended(&self.mem, Word::ProducerMark)
    }

    /// Closes this side of the ring.
    pub fn close(&self) {
        super::close(&self.mem, Word::ConsumerMark, Flag::Producer);
    }

    /// Whether a stamp is one that the slot has until its ticket is ready.
    fn waiting(&self, stamp: u64) -> bool {
        let before = self.head.checked_sub(self.mem.slots()).map(ready);
        stamp == 0 || stamp == writing(self.head) || Some(stamp) == before
    }

    /// The total length that a first piece announces.
    fn total(&self, len: usize) -> Result<u64, Violation> {
        let mut total = [0; 8];
        let read = self.mem.copy_out(Span::Slot(self.head), 0, &mut total);
        let total = u64::from_le_bytes(total);
        if read.is_err() || total <= len as u64 {
            return Err(Violation("a first piece that is the whole message"));
        }
        Ok(total)
    }

    /// Publishes the head and wakes a producer that waits for space; while an unread message is in
    /// the ring, only if it is the release that it waits for.
    fn publish_head(&mut self, unread: bool) {
        (self.published, self.hidden) = (self.head, 0);
        // pairs with the Acquire load in `Producer::refresh`.
        self.mem.store(Word::Head, self.head, Store::Release);
        // pairs with the fence in `park::sleep`.
        self.mem.fence(Fence::Full);
        if self.mem.load_flag(Flag::Producer) == 0 {
            return;
        }
        let wanted = self.mem.load(Word::Wanted, Load::Relaxed);
        if !(unread && wanted >= self.head) {
            park::wake(&self.mem, Flag::Producer);
        }
    }
}
