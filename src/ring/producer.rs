//! The writing side of a ring: claim a ticket and a place, write, commit. Never blocks.
//!
//! A claim is private: until [`publish`](Producer::publish) nothing of it is visible, a forgotten
//! one costs nothing, and the next claim takes the same ticket.
//!
//! [`try_send`](Producer::try_send) and its kin do the steps of a whole message in one go, if nothing at all is in the way, or
//! nothing. Whatever needs a look at the head, ends or abandons a message, or waits, is left to the single steps. The
//! models, `tests/ring`, the exhaustive tests and the fuzz bodies send both ways.

use super::arena::Arena;
use super::parking::{fence_and_check, notify, wake};
use super::{closed, ready, writing};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::{Control, LAST_TICKET, SlotKind};
use crate::memory::{
    ARENA_ALIGN, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span, Store, Word,
};
use std::ops::Range;

/// The next ticket and the place behind the last payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    ticket: u64,
    offset: u64,
}

/// A ticket and a place that the producer may write to.
#[derive(Debug)]
pub struct SlotReservation {
    ticket: u64,
    span: Span,
    len: usize,
    after: Cursor,
}

impl SlotReservation {
    /// Where its payload stands.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Bytes that it may hold.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it may hold none.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The cursor behind it, for the next claim of a batch.
    pub fn after(&self) -> Cursor {
        self.after
    }
}

/// Why a claim is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// No room until this ticket is released.
    Full {
        /// The ticket.
        needs: u64,
    },
    /// It can never fit into the arena.
    TooLarge,
    /// The last ticket is used.
    Exhausted,
    /// The peer's head is a lie.
    Violated(ProtocolViolation),
}

/// The writing side.
#[derive(Debug)]
pub struct Producer<M> {
    mem: M,
    next: Cursor,
    head: u64,
    /// The first ticket that may not be claimed without a look at the head.
    limit: u64,
    arena: Arena,
    /// A message stands unfinished in the ring: its next piece follows, or it is abandoned.
    unfinished: bool,
}

/// A release that somebody waits for, and the head that was known when it was found wanting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedRelease {
    ticket: u64,
    head: u64,
}

impl AwaitedRelease {
    /// See [`Producer::is_released`].
    #[inline]
    pub fn is_released<M: Memory>(self, mem: &M) -> bool {
        if closed(mem, Word::ConsumerClosed).is_some() {
            return true;
        }
        // Relaxed: the claim that follows loads it again, and acquires what was released.
        let head = mem.load(Word::Head, Load::Relaxed);
        head > self.ticket || head < self.head
    }

    /// See [`Producer::announce_wait`].
    pub fn announce<M: Memory>(self, mem: &M) {
        mem.store(Word::AwaitedTicket, self.ticket, Store::Relaxed);
    }
}

/// What became of a message that was to be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySend {
    /// Something was in the way: nothing has happened.
    Nothing,
    /// It is sent.
    Done,
    /// It is sent, and the consumer may sleep: [`Producer::wake`] comes next.
    Asleep,
}

impl<M: Memory> Producer<M> {
    /// The producer of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, first: u64) -> Self {
        let arena = Arena::new(mem.arena(), mem.slots());
        let limit = limit(first, mem.slots());
        Self { mem, next: Cursor { ticket: first, offset: 0 }, head: first, limit, arena, unfinished: false }
    }

    /// Writes the initial words of a fresh ring in private memory.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn format(mem: &M, first: u64) {
        mem.store(Word::Head, first, Store::Relaxed);
    }

    /// The memory.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// Where the next message begins.
    #[inline]
    pub fn next(&self) -> Cursor {
        self.next
    }

    /// How many tickets this direction has left.
    pub fn remaining_tickets(&self) -> u64 {
        (LAST_TICKET + 1).saturating_sub(self.next.ticket)
    }

    /// Claims a ticket at `from`, and a place for `len` bytes if they do not fit into the slot.
    ///
    /// `from` is [`next`](Self::next), or the cursor behind the last claim of a batch.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]; nothing has changed but what is known of the peer's head.
    #[inline(always)]
    pub fn reserve(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, ReserveError> {
        self.reserve_slot(from)?;
        if len > INLINE_CAPACITY {
            return self.reserve_arena(from, len);
        }
        Ok(slot_reservation(from, len))
    }

    /// Claims a ticket and a place for a piece of a long message, which always stands in the arena.
    ///
    /// # Errors
    ///
    /// As for [`reserve`](Self::reserve).
    pub fn reserve_fragment(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, ReserveError> {
        self.reserve_slot(from)?;
        self.reserve_arena(from, len)
    }

    #[inline(always)]
    fn reserve_slot(&mut self, from: Cursor) -> Result<(), ReserveError> {
        if from.ticket > LAST_TICKET {
            return Err(ReserveError::Exhausted);
        }
        if from.ticket >= self.limit {
            self.refresh().map_err(ReserveError::Violated)?;
            if from.ticket >= self.limit {
                return Err(ReserveError::Full { needs: from.ticket - self.mem.slots() });
            }
        }
        Ok(())
    }

    /// Marks a claim's slot as being written: before the first write, or as it is committed (see the module above).
    #[inline(always)]
    pub fn mark_writing(&self, claim: &SlotReservation) {
        mark_writing(&self.mem, claim.ticket);
    }

    /// Writes bytes of a claim's payload.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if they do not fit into the claim.
    #[inline(always)]
    pub fn write(
        &self,
        claim: &SlotReservation,
        at: usize,
        bytes: &[u8],
        tail: Padding,
    ) -> Result<(), OutOfBounds> {
        match at.checked_add(bytes.len()) {
            Some(end) if end <= claim.len => self.mem.copy_in(claim.span, at, bytes, tail),
            _ => Err(OutOfBounds),
        }
    }

    /// Writes the first piece's total length, which stands in the slot.
    pub fn write_total(&self, claim: &SlotReservation, total: u64) {
        let _in_a_slot = self.mem.copy_in(Span::Slot(claim.ticket), 0, &total.to_le_bytes(), Padding::Zero);
    }

    /// The claim with only what its first `len` bytes take of the arena: what the consumer will count.
    #[inline(always)]
    pub fn truncate(&self, claim: &SlotReservation, len: usize) -> SlotReservation {
        let (len, all) = (len.min(claim.len), claim.len);
        let grains = |len: usize| (len as u64).next_multiple_of(ARENA_ALIGN as u64);
        let offset = match claim.span {
            Span::Arena(_) if len == 0 => self.next.offset,
            Span::Arena(_) => claim.after.offset - grains(all) + grains(len),
            Span::Slot(_) => claim.after.offset,
        };
        SlotReservation {
            ticket: claim.ticket,
            span: claim.span,
            len,
            after: Cursor { ticket: claim.after.ticket, offset },
        }
    }

    /// Describes a written claim: its kind, its final length, its tag. Still private.
    #[inline(always)]
    pub fn describe(&mut self, claim: &SlotReservation, kind: SlotKind, len: usize, tag: u64) {
        let offset = match claim.span {
            Span::Slot(_) => 0,
            Span::Arena(offset) => offset,
        };
        // An empty payload needs no place: an arena kind of length 0 does not exist.
        let (kind, offset) = if len == 0 { (SlotKind::Inline, 0) } else { (kind, offset) };
        let abort = self.unfinished && kind.begins() && claim.ticket == self.next.ticket;
        let control = Control { kind, abort, len: len_u32(len.min(claim.len)), unit: offset };
        describe(&self.mem, claim.ticket, control, tag);
        self.arena.set_end(claim.ticket, claim.after.offset);
    }

    /// Commits every described claim up to `to`, and wakes the consumer if it sleeps.
    ///
    /// `unfinished` says that the last of them leaves a message unfinished.
    #[inline(always)]
    pub fn publish(&mut self, to: Cursor, unfinished: bool) {
        for ticket in self.next.ticket..to.ticket {
            commit(&self.mem, ticket);
        }
        if to.ticket > self.next.ticket {
            self.unfinished = unfinished;
        }
        self.next = to;
        notify(&self.mem, Flag::Consumer);
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Consumer, to.ticket);
    }

    /// How this direction has ended, if it has.
    #[inline(always)]
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ConsumerClosed)
    }

    /// Whether the wait for a ticket's release is over: it is released, or the direction has ended,
    /// or the head is a lie that the next claim will find.
    #[inline]
    pub fn is_released(&self, needs: u64) -> bool {
        self.awaited_release(needs).is_released(&self.mem)
    }

    /// Tells the consumer which release is waited for. Comes before the flag is raised.
    pub fn announce_wait(&self, needs: u64) {
        self.awaited_release(needs).announce(&self.mem);
    }

    /// The release of a ticket, to be waited for without the producer itself.
    #[inline]
    pub fn awaited_release(&self, ticket: u64) -> AwaitedRelease {
        AwaitedRelease { ticket, head: self.head }
    }

    /// Closes this side of the ring.
    pub fn close(&self) {
        super::close(&self.mem, Word::ProducerClosed, Flag::Consumer);
    }

    #[inline(always)]
    fn reserve_arena(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, ReserveError> {
        let bytes = len as u64;
        if bytes > self.mem.arena() {
            return Err(ReserveError::TooLarge);
        }
        let (start, end) = self.arena.fit_contiguous(from.offset, bytes);
        if self.arena.needs_recheck(end, bytes) || !self.arena.has_room(end) {
            return self.reserve_after_refresh(from, len);
        }
        Ok(arena_reservation(from, start..end, self.mem.arena(), len))
    }

    /// Starts at the front again, if everything was released: all of the arena is in one piece then.
    ///
    /// # Errors
    ///
    /// [`ReserveError::Violated`].
    pub fn try_restart(&mut self) -> Result<(), ReserveError> {
        self.refresh().map_err(ReserveError::Violated)?;
        self.arena.note_check(self.next.offset);
        if self.arena.is_free(self.next.offset) {
            self.next.offset = self.arena.restart(self.next.offset);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn reserve_after_refresh(
        &mut self,
        mut from: Cursor,
        len: usize,
    ) -> Result<SlotReservation, ReserveError> {
        if from == self.next {
            self.try_restart()?;
            from = self.next;
        } else {
            self.refresh().map_err(ReserveError::Violated)?;
            self.arena.note_check(from.offset);
        }
        let (start, end) = self.arena.fit_contiguous(from.offset, len as u64);
        if !self.arena.has_room(end) {
            let needs = self.arena.ticket_to_await(self.head..self.next.ticket, end);
            return Err(ReserveError::Full { needs });
        }
        Ok(arena_reservation(from, start..end, self.mem.arena(), len))
    }

    /// Reads the peer's head and judges it.
    fn refresh(&mut self) -> Result<(), ProtocolViolation> {
        // pairs with the Release store in `Consumer::publish_head`.
        let head = self.mem.load(Word::Head, Load::Acquire);
        if head < self.head || head > self.next.ticket {
            return Err(ProtocolViolation("a head that went backwards or past the tail"));
        }
        if head > self.head {
            self.arena.release(head - 1);
            (self.head, self.limit) = (head, limit(head, self.mem.slots()));
        }
        self.arena.note_fill(self.next.ticket - head);
        Ok(())
    }

    /// How full the ring was at most when the head was looked at, in thousandths of its slots or of its arena.
    pub fn fullest(&self) -> u32 {
        let (slots, bytes) = self.arena.peak();
        let part = |taken: u64, of: u64| taken.saturating_mul(1000) >> of.trailing_zeros().min(63); // Powers of two.
        let most = part(slots, self.mem().slots()).max(part(bytes, self.mem().arena()));
        u32::try_from(most).unwrap_or(1000)
    }

    /// Sends a message that stands in its slot, if nothing at all is in the way.
    #[inline(always)]
    pub fn try_send(&mut self, message: &[u8], tag: u64) -> TrySend {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || message.len() > INLINE_CAPACITY || closed(&mem, Word::ConsumerClosed).is_some() {
            return TrySend::Nothing;
        }
        let claim = slot_reservation(*next, message.len());
        mark_writing(&mem, claim.ticket);
        write(&mem, arena, &claim, &[message], tag);
        publish(&mem, next, &claim)
    }

    /// The same for a message that is some parts one behind the other, of `len` bytes together.
    #[inline(always)]
    pub fn try_send_parts(&mut self, parts: &[&[u8]; 3], len: usize, tag: u64) -> TrySend {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || len > INLINE_CAPACITY || closed(&mem, Word::ConsumerClosed).is_some() {
            return TrySend::Nothing;
        }
        let claim = slot_reservation(*next, len);
        mark_writing(&mem, claim.ticket);
        write(&mem, arena, &claim, parts, tag);
        publish(&mem, next, &claim)
    }

    /// As [`try_send`](Self::try_send), for a message that stands in the arena.
    #[inline(always)]
    pub fn try_send_arena(&mut self, message: &[u8], tag: u64) -> TrySend {
        let free = self.next.ticket < self.limit && !self.unfinished;
        if !free || message.len() <= INLINE_CAPACITY || self.ended().is_some() {
            return TrySend::Nothing;
        }
        let Ok(claim) = self.reserve_arena(self.next, message.len()) else { return TrySend::Nothing };
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        write(&mem, arena, &claim, &[message], tag);
        mark_writing(&mem, claim.ticket); // Not before: who spins on the slot fetches its line between a mark and the commit.
        publish(&mem, next, &claim)
    }

    /// Writes a message behind what is staged already, as [`try_send`](Self::try_send) does; the cursor behind it.
    #[inline(always)]
    pub fn try_stage(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        let mem = self.mem.view();
        if from.ticket >= self.limit || self.unfinished || message.len() > INLINE_CAPACITY {
            return None;
        }
        let claim = slot_reservation(from, message.len());
        mark_writing(&mem, claim.ticket);
        write(&mem, &mut self.arena, &claim, &[message], tag);
        Some(claim.after)
    }

    /// Wakes the consumer after [`TrySend::Asleep`].
    #[cold]
    pub fn wake(&self) {
        wake(&self.mem, Flag::Consumer);
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Consumer, self.next.ticket);
    }
}

#[inline(always)]
fn mark_writing<M: Memory>(mem: &M, ticket: u64) {
    mem.store_slot(ticket, Field::Stamp, writing(ticket), Store::Relaxed);
    // pairs with the fence in `consumer::still`.
    mem.fence(Fence::Release);
}

#[inline(always)]
fn describe<M: Memory>(mem: &M, ticket: u64, control: Control, tag: u64) {
    mem.store_slot(ticket, Field::Control, control.encode(), Store::Relaxed);
    mem.store_slot(ticket, Field::Tag, tag, Store::Relaxed);
}

#[inline(always)]
fn commit<M: Memory>(mem: &M, ticket: u64) {
    // pairs with the Acquire load in `consumer::stamp`.
    mem.store_slot(ticket, Field::Stamp, ready(ticket), Store::Release);
}

/// A length of at most an arena.
#[inline(always)]
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The first ticket that is not free while this is the head.
fn limit(head: u64, slots: u64) -> u64 {
    head.saturating_add(slots).min(LAST_TICKET + 1)
}

#[inline(always)]
fn slot_reservation(from: Cursor, len: usize) -> SlotReservation {
    let after = Cursor { ticket: from.ticket + 1, offset: from.offset };
    SlotReservation { ticket: from.ticket, span: Span::Slot(from.ticket), len, after }
}

/// A claim of bytes that stand in an arena of this size.
#[inline(always)]
fn arena_reservation(from: Cursor, offsets: Range<u64>, arena: u64, len: usize) -> SlotReservation {
    let offset = (offsets.start & (arena - 1)) / ARENA_ALIGN as u64;
    let offset = u32::try_from(offset).unwrap_or(u32::MAX); // Which no memory has.
    let after = Cursor { ticket: from.ticket + 1, offset: offsets.end };
    SlotReservation { ticket: from.ticket, span: Span::Arena(offset), len, after }
}

/// Writes and describes a whole message that abandons nothing.
#[inline(always)]
fn write<M: Memory>(mem: &M, arena: &mut Arena, claim: &SlotReservation, parts: &[&[u8]], tag: u64) {
    let mut at = 0;
    for part in parts {
        let _of_that_length = mem.copy_in(claim.span, at, part, Padding::Zero);
        at += part.len();
    }
    let (kind, offset) = match claim.span {
        Span::Slot(_) => (SlotKind::Inline, 0),
        Span::Arena(offset) => (SlotKind::Whole, offset),
    };
    describe(mem, claim.ticket, Control { kind, abort: false, len: len_u32(claim.len), unit: offset }, tag);
    arena.set_end(claim.ticket, claim.after.offset);
}

/// Commits it, and looks for a sleeper.
#[inline(always)]
fn publish<M: Memory>(mem: &M, next: &mut Cursor, claim: &SlotReservation) -> TrySend {
    commit(mem, claim.ticket);
    *next = claim.after;
    if fence_and_check(mem, Flag::Consumer) {
        return TrySend::Asleep;
    }
    #[cfg(feature = "testing")]
    mem.checked(Flag::Consumer, claim.after.ticket);
    TrySend::Done
}
