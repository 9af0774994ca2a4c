//! The reading side of a ring: look, judge, copy out, release. Never blocks.

use super::{closed, is_ready, parking, ready, writing};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::{Control, SlotKind};
use crate::memory::{ARENA_ALIGN, Fence, Field, Flag, Load, Memory, OutOfBounds, Span, Store, Word};

/// A ready ticket, judged: everything that decides has been loaded once and stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotContents {
    ticket: u64,
    /// What the slot carries.
    pub kind: SlotKind,
    /// The unfinished message before it is abandoned.
    pub abort: bool,
    /// Bytes of payload here.
    pub len: usize,
    /// Bytes of the whole message: more than `len` only for [`SlotKind::First`].
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
    /// Beyond this head it is published, and a sleeper looked for, whatever is unread.
    publish_by: u64,
    /// Bytes of the arena that were released since.
    unpublished_bytes: u64,
}

/// A message that was taken at once, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryTake {
    /// Something was in the way: nothing has happened.
    Nothing,
    /// It moved while it was copied: a lie.
    Torn,
    /// It was copied, and released.
    Message {
        /// Its bytes.
        len: usize,
        /// Its tag.
        tag: u64,
        /// The producer may sleep: [`Consumer::notify_producer`] comes next.
        wakes: bool,
    },
}

impl<M: Memory> Consumer<M> {
    /// The consumer of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, first: u64) -> Self {
        let due = publish_by(first, mem.slots());
        Self { mem, head: first, publish_by: due, unpublished_bytes: 0 }
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
    /// [`ProtocolViolation`] if the stamp or the control word is none that an honest producer writes here.
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

    /// What [`next_slot`](Self::next_slot) finds, if it is a whole message of at most `longest` bytes (`short`, in its slot)
    /// and nothing at all is in the way.
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

    /// Takes the next message, if it is ready, has at most `longest` bytes, stands in its slot, has room of exactly its
    /// length, and nothing at all is in the way: look, copy, verify, release.
    #[inline(always)]
    pub fn take<'b>(&mut self, longest: usize, room: impl FnOnce(usize) -> Option<&'b mut [u8]>) -> TryTake {
        let head = self.head;
        let offset = |word| Control::inline_len(word, longest).map(|len| (Span::Slot(head), len));
        self.take_from(offset, |_, [], len| room(len))
    }

    /// The same for one that begins with a word, which is not copied to the room: it decides, with the tag and the number
    /// of bytes behind it, whether there is any.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        longest: usize,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let head = self.head;
        let offset = |word| Control::inline_len(word, longest).map(|len| (Span::Slot(head), len));
        self.take_from(offset, room)
    }

    /// As [`take`](Self::take), for one that stands in the arena.
    #[inline(always)]
    pub fn take_arena<'b>(
        &mut self,
        longest: usize,
        room: impl FnOnce(usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let arena = self.mem.arena();
        let offset =
            |word| Control::arena_len_and_unit(word, arena, longest).map(|(len, at)| (Span::Arena(at), len));
        self.take_from(offset, |_, [], len| room(len))
    }

    /// A guess at where the next message stands, once it is ready: whoever takes it judges for itself.
    #[inline(always)]
    pub fn hint_in_arena(&self) -> bool {
        Control::hint_in_arena(self.mem.load_slot(self.head, Field::Control, Load::Relaxed))
    }

    #[inline(always)]
    fn take_from<'b, const FRONT: usize>(
        &mut self,
        offset: impl FnOnce(u64) -> Option<(Span, usize)>,
        room: impl FnOnce(u64, [u8; FRONT], usize) -> Option<&'b mut [u8]>,
    ) -> TryTake {
        let (mem, head) = (self.mem.view(), self.head);
        if closed(&mem, Word::ProducerClosed).is_some() || !is_ready(stamp(&mem, head), head) {
            return TryTake::Nothing;
        }
        let word = mem.load_slot(head, Field::Control, Load::Relaxed);
        let Some((span, len)) = offset(word) else { return TryTake::Nothing };
        let tag = mem.load_slot(head, Field::Tag, Load::Relaxed);
        let (mut front, Some(rest)) = ([0; FRONT], len.checked_sub(FRONT)) else { return TryTake::Nothing };
        if FRONT > 0 && (mem.copy_out(span, 0, &mut front).is_err() || !is_unchanged(&mem, head)) {
            return TryTake::Torn;
        }
        let Some(into) = room(tag, front, rest) else { return TryTake::Nothing };
        debug_assert_eq!(into.len(), rest, "what is asked for is what is filled");
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
        let asleep = publish(&mem, self.head);
        #[cfg(feature = "testing")]
        if !asleep {
            mem.checked(Flag::Producer, self.head);
        }
        TryTake::Message { len, tag, wakes: asleep }
    }

    /// Copies out of an arrival's payload, from `at` on.
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

    /// Whether what was read of an arrival until now was not written meanwhile.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if its stamp moved: the producer overwrote what it had committed.
    #[inline(always)]
    pub fn verify(&self, arrival: &SlotContents) -> Result<(), ProtocolViolation> {
        match is_unchanged(&self.mem, arrival.ticket) {
            true => Ok(()),
            false => Err(ProtocolViolation("a stamp that moved under a reader")),
        }
    }

    /// Releases an arrival: its slot and place go back to the producer, at once or with the next.
    ///
    /// An arrival that is not the next one is ignored: nothing is released twice.
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

    /// Whether the wait for a message is over: one is ready, or the direction has ended, or the
    /// stamp is a lie that the next look will find.
    #[inline]
    pub fn is_ready(&self) -> bool {
        // Relaxed, and in no order with the end: it says no more than that there is something to look at.
        let stamp = self.mem.load_slot(self.head, Field::Stamp, Load::Relaxed);
        !self.is_pending(stamp) || self.ended().is_some()
    }

    /// How this direction has ended, if it has. To be asked *before* [`next_slot`](Self::next_slot).
    #[inline]
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ProducerClosed)
    }

    /// Closes this side of the ring.
    pub fn close(&self) {
        super::close(&self.mem, Word::ConsumerClosed, Flag::Producer);
    }

    /// Whether a stamp is one that the slot has until its ticket is ready.
    fn is_pending(&self, stamp: u64) -> bool {
        let before = self.head.checked_sub(self.mem.slots()).map(ready);
        stamp == 0 || stamp == writing(self.head) || Some(stamp) == before
    }

    /// The total length that a first piece announces.
    fn total(&self, len: usize) -> Result<u64, ProtocolViolation> {
        let mut total = [0; 8];
        let read = self.mem.copy_out(Span::Slot(self.head), 0, &mut total);
        let total = u64::from_le_bytes(total);
        if read.is_err() || total <= len as u64 {
            return Err(ProtocolViolation("a first piece that is the whole message"));
        }
        Ok(total)
    }

    /// Publishes the head and wakes a producer that waits for space.
    #[inline(always)]
    fn publish_head(&mut self) {
        (self.publish_by, self.unpublished_bytes) = (publish_by(self.head, self.mem.slots()), 0);
        if publish(&self.mem, self.head) {
            self.wake_producer();
        }
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Producer, self.head);
    }

    /// Wakes the producer after a [`TryTake::Message`] that says so; with a head that is not published there is nothing to
    /// wake it for.
    #[cold]
    pub fn notify_producer(&self) {
        if self.publish_by != publish_by(self.head, self.mem.slots()) {
            return;
        }
        self.wake_producer();
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Producer, self.head);
    }

    /// While an unread message is in the ring, only if its release is the one that is waited for.
    #[cold]
    fn wake_producer(&self) {
        let wanted = self.mem.load(Word::AwaitedTicket, Load::Relaxed);
        if wanted < self.head || !has_unread(&self.mem, self.head) {
            parking::wake(&self.mem, Flag::Producer);
        }
    }
}

/// Whether no producer can be waiting for what this head releases, so that none must be looked for (invariant 5 of the
/// ring). While a message is unread the head is not even told, as a producer in full flow would fetch it each time.
#[inline(always)]
fn can_defer_publish<M: Memory>(mem: &M, head: u64, due: u64, hidden: u64) -> bool {
    if head > due {
        return false;
    }
    if has_unread(mem, head) {
        return hidden <= mem.arena() / 4;
    }
    if hidden > 0 {
        return false;
    }
    // pairs with the Acquire load in `Producer::refresh`.
    mem.store(Word::Head, head, Store::Release);
    true
}

/// Whether the message at this head is there already.
#[inline(always)]
fn has_unread<M: Memory>(mem: &M, head: u64) -> bool {
    is_ready(mem.load_slot(head, Field::Stamp, Load::Relaxed), head)
}

#[inline(always)]
fn stamp<M: Memory>(mem: &M, ticket: u64) -> u64 {
    // pairs with the Release store in `producer::commit`.
    mem.load_slot(ticket, Field::Stamp, Load::Acquire)
}

/// Whether a ticket's slot has not been written since it was ready.
#[inline(always)]
fn is_unchanged<M: Memory>(mem: &M, ticket: u64) -> bool {
    // pairs with the fence in `producer::open`.
    mem.fence(Fence::Acquire);
    mem.load_slot(ticket, Field::Stamp, Load::Relaxed) == ready(ticket)
}

/// Publishes a head; whether the producer sleeps.
#[inline(always)]
fn publish<M: Memory>(mem: &M, head: u64) -> bool {
    // pairs with the Acquire load in `Producer::refresh`.
    mem.store(Word::Head, head, Store::Release);
    parking::fence_and_check(mem, Flag::Producer)
}

/// The last head that need not be published while messages are unread, once this one is.
#[inline(always)]
fn publish_by(head: u64, slots: u64) -> u64 {
    head + slots / 4
}
