//! The receiving side of a ring: validate the next slot, copy the payload out, release it. Never blocks.

use super::{closed, is_ready, parking, ready, writing};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::{Control, SlotKind};
use crate::memory::{ARENA_ALIGN, Fence, Field, Flag, Load, Memory, OutOfBounds, Span, Store, Word};

/// A ready ticket that was validated. Each word that decides anything was loaded once and is kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotContents {
    ticket: u64,
    /// What the slot carries.
    pub kind: SlotKind,
    /// The unfinished message before it is abandoned.
    pub abort: bool,
    /// Bytes of payload here.
    pub len: usize,
    /// Bytes of the whole message. It is more than `len` only for [`SlotKind::First`].
    pub total: u64,
    /// The tag.
    pub tag: u64,
    /// Where the payload is.
    pub span: Span,
}

/// The receiving side of a ring.
#[derive(Debug)]
pub struct Consumer<M> {
    mem: M,
    head: u64,
    /// Once the head is past this, it is published and the producer's flag is checked, even if messages are unread.
    publish_by: u64,
    /// Bytes of the arena that were released since the head was last published.
    unpublished_bytes: u64,
}

/// The result of taking a message on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryTake {
    /// The fast path does not apply. Nothing has happened.
    Nothing,
    /// The producer overwrote it while it was copied: a protocol violation.
    Torn,
    /// The message was copied and released.
    Message {
        /// Its bytes.
        len: usize,
        /// Its tag.
        tag: u64,
        /// Whether the producer may sleep. The caller then calls [`Consumer::notify_producer`].
        wakes: bool,
    },
}

impl<M: Memory> Consumer<M> {
    /// Makes the consumer of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, first: u64) -> Self {
        let publish_by = publish_by(first, mem.slots());
        Self { mem, head: first, publish_by, unpublished_bytes: 0 }
    }

    /// Returns the ring's memory.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// Returns the next ticket to receive.
    #[inline]
    pub fn ticket(&self) -> u64 {
        self.head
    }

    /// Returns the next message or fragment, or `None` if it is not ready.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if a well-formed producer would not write this stamp or this control word here.
    #[inline(always)]
    pub fn next_slot(&self) -> Result<Option<SlotContents>, ProtocolViolation> {
        let stamp = stamp(&self.mem, self.head);
        if !is_ready(stamp, self.head) {
            return if self.is_pending(stamp) {
                Ok(None)
            } else {
                Err(ProtocolViolation("a stamp of no ticket here"))
            };
        }
        let word = self.mem.load_slot(self.head, Field::Control, Load::Relaxed);
        let tag = self.mem.load_slot(self.head, Field::Tag, Load::Relaxed);
        let Control { kind, abort, len, unit: offset } = Control::decode(word, self.mem.arena())?;
        let span = if kind == SlotKind::Inline { Span::Slot(self.head) } else { Span::Arena(offset) };
        let len = len as usize;
        let total = if kind == SlotKind::First { self.total(len)? } else { len as u64 };
        Ok(Some(SlotContents { ticket: self.head, kind, abort, len, total, tag, span }))
    }

    /// Returns the next message if it is ready, whole, and the fast path applies: the direction is open, and the
    /// message has at most `short` bytes in its slot or at most `longest` bytes in the arena. Otherwise returns `None`,
    /// and [`next_slot`](Self::next_slot) decides.
    #[inline(always)]
    pub fn peek_whole(&self, short: usize, longest: usize) -> Option<SlotContents> {
        let (mem, head) = (self.mem.view(), self.head);
        if closed(&mem, Word::ProducerClosed).is_some() || !is_ready(stamp(&mem, head), head) {
            return None;
        }
        let word = mem.load_slot(head, Field::Control, Load::Relaxed);
        let tag = mem.load_slot(head, Field::Tag, Load::Relaxed);
        let (kind, span, len) = match Control::inline_len(word, short) {
            Some(len) => (SlotKind::Inline, Span::Slot(head), len),
            None => {
                let (len, offset) = Control::arena_len_and_unit(word, mem.arena(), longest)?;
                (SlotKind::Whole, Span::Arena(offset), len)
            }
        };
        Some(SlotContents { ticket: head, kind, abort: false, len, total: len as u64, tag, span })
    }

    /// Takes the next message if it is ready, stands in its slot, has at most `longest` bytes, and abandons no other
    /// message. Copies it into the bytes that `room` returns for its length, verifies that it was not overwritten
    /// meanwhile, and releases it. Does nothing if `room` returns `None`.
    #[inline(always)]
    pub fn take<'b>(&mut self, longest: usize, room: impl FnOnce(usize) -> Option<&'b mut [u8]>) -> TryTake {
        let head = self.head;
        let locate = |word| Control::inline_len(word, longest).map(|len| (Span::Slot(head), len));
        self.take_from(locate, |_, [], len| room(len))
    }

    /// Takes the next message as [`take`](Self::take) does, but hands its first 8 bytes to `room` instead of copying
    /// them. `room` decides from the tag, those bytes and the number of bytes behind them whether there is room.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        longest: usize,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let head = self.head;
        let locate = |word| Control::inline_len(word, longest).map(|len| (Span::Slot(head), len));
        self.take_from(locate, room)
    }

    /// Takes the next message if it is ready, stands in the arena, has at most `longest` bytes, and abandons no other
    /// message. Copies, verifies and releases it as [`take`](Self::take) does.
    #[inline(always)]
    pub fn take_arena<'b>(
        &mut self,
        longest: usize,
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let arena = self.mem.arena();
        let locate =
            |word| Control::arena_len_and_unit(word, arena, longest).map(|(len, at)| (Span::Arena(at), len));
        self.take_from(locate, |_, [], len| room(len))
    }

    /// Returns whether the next message, which is ready, seems to stand in the arena. This is a hint: the call that
    /// takes the message validates it.
    #[inline(always)]
    pub fn hint_in_arena(&self) -> bool {
        Control::hint_in_arena(self.mem.load_slot(self.head, Field::Control, Load::Relaxed))
    }

    #[inline(always)]
    fn take_from<'b, const FRONT: usize>(
        &mut self,
        locate: impl FnOnce(u64) -> Option<(Span, usize)>,
        room: impl FnOnce(u64, [u8; FRONT], usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let (mem, head) = (self.mem.view(), self.head);
        if closed(&mem, Word::ProducerClosed).is_some() || !is_ready(stamp(&mem, head), head) {
            return TryTake::Nothing;
        }
        let word = mem.load_slot(head, Field::Control, Load::Relaxed);
        let Some((span, len)) = locate(word) else { return TryTake::Nothing };
        let tag = mem.load_slot(head, Field::Tag, Load::Relaxed);
        let (mut front, Some(rest)) = ([0; FRONT], len.checked_sub(FRONT)) else { return TryTake::Nothing };
        // The first bytes decide about the room, so they are verified before `room` sees them.
        if FRONT > 0 && (mem.copy_out(span, 0, &mut front).is_err() || !is_unchanged(&mem, head)) {
            return TryTake::Torn;
        }
        let Some(into) = room(tag, front, rest) else { return TryTake::Nothing };
        debug_assert_eq!(into.len(), rest, "the room has the length that was asked for");
        let read = mem.copy_out(span, FRONT, into);
        if read.is_err() || !is_unchanged(&mem, head) {
            return TryTake::Torn;
        }
        self.head = head + 1;
        if let Span::Arena(_) = span {
            self.unpublished_bytes += (len as u64).next_multiple_of(ARENA_ALIGN as u64);
        }
        if can_defer_publish(&mem, self.head, self.publish_by, self.unpublished_bytes) {
            return TryTake::Message { len, tag, wakes: false };
        }
        (self.publish_by, self.unpublished_bytes) = (publish_by(self.head, mem.slots()), 0);
        // The wake itself is left to the caller: this function is inlined, and a wake is rare.
        let asleep = publish(&mem, self.head);
        #[cfg(feature = "testing")]
        if !asleep {
            mem.checked(Flag::Producer, self.head);
        }
        TryTake::Message { len, tag, wakes: asleep }
    }

    /// Copies a range of the payload, from `at` on, into `bytes`.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if the range is not in the payload.
    #[inline(always)]
    pub fn read(&self, arrival: &SlotContents, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        match at.checked_add(bytes.len()) {
            Some(end) if end <= arrival.len => self.mem.copy_out(arrival.span, at, bytes),
            _ => Err(OutOfBounds),
        }
    }

    /// Checks that the producer has not written to the slot since it was ready. What was read until now is only valid
    /// then.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if the stamp has changed: the producer overwrote what it had committed.
    #[inline(always)]
    pub fn verify(&self, arrival: &SlotContents) -> Result<(), ProtocolViolation> {
        match is_unchanged(&self.mem, arrival.ticket) {
            true => Ok(()),
            false => Err(ProtocolViolation("a stamp that moved under a reader")),
        }
    }

    /// Releases a slot: the slot and its arena bytes go back to the producer, at once or together with a later release.
    ///
    /// A slot that is not the next one is ignored, so no slot is released twice.
    #[inline(always)]
    pub fn release(&mut self, arrival: &SlotContents) {
        if arrival.ticket != self.head {
            return;
        }
        self.head += 1;
        if arrival.kind != SlotKind::Inline {
            self.unpublished_bytes += (arrival.len as u64).next_multiple_of(ARENA_ALIGN as u64);
        }
        if !can_defer_publish(&self.mem, self.head, self.publish_by, self.unpublished_bytes) {
            self.publish_head();
        }
    }

    /// Returns whether the wait for a message is over: one is ready, the direction has ended, or the stamp is a
    /// protocol violation, which the next call to [`next_slot`](Self::next_slot) reports.
    #[inline]
    pub fn is_ready(&self) -> bool {
        // Relaxed, and in no order with the end: the result only says that the next call finds something.
        let stamp = self.mem.load_slot(self.head, Field::Stamp, Load::Relaxed);
        !self.is_pending(stamp) || self.ended().is_some()
    }

    /// Returns how this direction has ended, or `None` if it is open. Must be called *before*
    /// [`next_slot`](Self::next_slot).
    #[inline]
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ProducerClosed)
    }

    /// Closes this side of the ring.
    pub fn close(&self) {
        super::close(&self.mem, Word::ConsumerClosed, Flag::Producer);
    }

    /// Returns whether a stamp is one that the slot has before its ticket is ready.
    fn is_pending(&self, stamp: u64) -> bool {
        let before = self.head.checked_sub(self.mem.slots()).map(ready);
        stamp == 0 || stamp == writing(self.head) || Some(stamp) == before
    }

    /// Returns the total length that a first fragment announces.
    fn total(&self, len: usize) -> Result<u64, ProtocolViolation> {
        let mut total = [0; 8];
        let read = self.mem.copy_out(Span::Slot(self.head), 0, &mut total);
        let total = u64::from_le_bytes(total);
        if read.is_err() || total <= len as u64 {
            return Err(ProtocolViolation("a first piece that is the whole message"));
        }
        Ok(total)
    }

    /// Publishes the head, and wakes a producer that waits for space.
    #[inline(always)]
    fn publish_head(&mut self) {
        (self.publish_by, self.unpublished_bytes) = (publish_by(self.head, self.mem.slots()), 0);
        if publish(&self.mem, self.head) {
            self.wake_producer();
        }
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Producer, self.head);
    }

    /// Wakes the producer after a [`TryTake::Message`] that asks for it. Does nothing while the head is not published:
    /// then nothing was released that the producer could wait for.
    #[cold]
    pub fn notify_producer(&self) {
        if self.publish_by != publish_by(self.head, self.mem.slots()) {
            return;
        }
        self.wake_producer();
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Producer, self.head);
    }

    /// Wakes the producer. While an unread message is in the ring, it does so only if the release that the producer
    /// waits for has been made.
    #[cold]
    fn wake_producer(&self) {
        // A hint, written by the peer. A wrong value costs the peer itself a late wake-up.
        let awaited = self.mem.load(Word::AwaitedTicket, Load::Relaxed);
        if awaited < self.head || !has_unread(&self.mem, self.head) {
            parking::wake(&self.mem, Flag::Producer);
        }
    }
}

/// Returns whether no producer can be waiting for what this head releases, so that the check of its flag can be left
/// out (invariant 5 of the ring). While a message is unread, the head is not even published: a producer that sends
/// continuously would fetch its cache line each time.
#[inline(always)]
fn can_defer_publish<M: Memory>(mem: &M, head: u64, publish_by: u64, unpublished_bytes: u64) -> bool {
    if head > publish_by {
        return false;
    }
    if has_unread(mem, head) {
        return unpublished_bytes <= mem.arena() / 4;
    }
    if unpublished_bytes > 0 {
        return false;
    }
    // Pairs with the Acquire load in `Producer::refresh`.
    mem.store(Word::Head, head, Store::Release);
    true
}

/// Returns whether the message at this head is ready.
#[inline(always)]
fn has_unread<M: Memory>(mem: &M, head: u64) -> bool {
    is_ready(mem.load_slot(head, Field::Stamp, Load::Relaxed), head)
}

#[inline(always)]
fn stamp<M: Memory>(mem: &M, ticket: u64) -> u64 {
    // Pairs with the Release store in `producer::commit`.
    mem.load_slot(ticket, Field::Stamp, Load::Acquire)
}

/// Returns whether a ticket's slot has not been written since it was ready.
#[inline(always)]
fn is_unchanged<M: Memory>(mem: &M, ticket: u64) -> bool {
    // Pairs with the fence in `producer::mark_writing`.
    mem.fence(Fence::Acquire);
    mem.load_slot(ticket, Field::Stamp, Load::Relaxed) == ready(ticket)
}

/// Publishes a head and returns whether the producer sleeps.
#[inline(always)]
fn publish<M: Memory>(mem: &M, head: u64) -> bool {
    // Pairs with the Acquire load in `Producer::refresh`.
    mem.store(Word::Head, head, Store::Release);
    parking::fence_and_check(mem, Flag::Producer)
}

/// Returns the last head that may stay unpublished while messages are unread, once this one is published.
#[inline(always)]
fn publish_by(head: u64, slots: u64) -> u64 {
    head + slots / 4
}
