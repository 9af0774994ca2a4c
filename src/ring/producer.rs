//! The sending side of a ring: reserve a ticket and arena bytes, write, commit. Never blocks.
//!
//! A reservation is private until [`publish`](Producer::publish): the consumer sees nothing of it. A reservation that
//! is forgotten costs nothing, and the next reservation takes the same ticket.
//!
//! The fast path ([`try_send`](Producer::try_send), `try_send_parts`, `try_send_arena`, `try_stage`) does all steps of
//! a whole message in one call, or does nothing. A send that must read the head, that ends or abandons a message, or
//! that waits is left to the single steps. The models, `tests/ring`, the exhaustive tests and the fuzz bodies send both
//! ways.

use super::arena::Arena;
use super::parking::{fence_and_check, notify, wake};
use super::{closed, ready, writing};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::{Control, LAST_TICKET, SlotKind};
use crate::memory::{
    ARENA_ALIGN, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span, Store, Word,
};
use std::ops::Range;

/// The next ticket, and the arena offset behind the last payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    ticket: u64,
    offset: u64,
}

/// A ticket and the bytes that the producer may write for it, in its slot or in the arena.
#[derive(Debug)]
pub struct SlotReservation {
    ticket: u64,
    span: Span,
    len: usize,
    after: Cursor,
}

impl SlotReservation {
    /// Returns where its payload stands.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Returns how many bytes it may hold.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it may hold none.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the cursor behind it, for the next reservation of a batch.
    pub fn after(&self) -> Cursor {
        self.after
    }
}

/// Why a reservation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// There is no room until this ticket is released.
    Full {
        /// The ticket.
        needs: u64,
    },
    /// The payload is longer than the arena.
    TooLarge,
    /// All tickets of the direction are used.
    Exhausted,
    /// The peer's head violates the protocol.
    Violated(ProtocolViolation),
}

/// The sending side of a ring.
#[derive(Debug)]
pub struct Producer<M> {
    mem: M,
    next: Cursor,
    head: u64,
    /// The first ticket that must not be reserved before the head is read again.
    limit: u64,
    arena: Arena,
    /// The ring holds the first fragments of an unfinished message. The next slot carries its next fragment, or
    /// abandons it.
    unfinished: bool,
}

/// A release that a producer waits for, and the head that it knew when it found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedRelease {
    ticket: u64,
    head: u64,
}

impl AwaitedRelease {
    /// Returns whether the wait is over: the ticket is released, the direction has ended, or the head is a protocol
    /// violation, which the next reservation reports.
    #[inline]
    pub fn is_released<M: Memory>(self, mem: &M) -> bool {
        if closed(mem, Word::ConsumerClosed).is_some() {
            return true;
        }
        // Relaxed: the reservation that follows loads the head again with Acquire.
        let head = mem.load(Word::Head, Load::Relaxed);
        head > self.ticket || head < self.head
    }

    /// Publishes for the consumer which release is waited for. Must come before the wait slot is armed.
    pub fn announce<M: Memory>(self, mem: &M) {
        mem.store(Word::AwaitedTicket, self.ticket, Store::Relaxed);
    }
}

/// The result of sending a message on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySend {
    /// The fast path does not apply. Nothing has happened.
    Nothing,
    /// The message is sent.
    Done,
    /// The message is sent, and the consumer may sleep. The caller then calls [`Producer::wake`].
    Asleep,
}

impl<M: Memory> Producer<M> {
    /// Makes the producer of a fresh ring whose first ticket is `first`.
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

    /// Returns the ring's memory.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// Returns the cursor at which the next message begins.
    #[inline]
    pub fn next(&self) -> Cursor {
        self.next
    }

    /// Returns how many tickets this direction has left.
    pub fn remaining_tickets(&self) -> u64 {
        (LAST_TICKET + 1).saturating_sub(self.next.ticket)
    }

    /// Reserves the ticket at `from`, and `len` bytes of the arena if they do not fit into the slot.
    ///
    /// `from` is [`next`](Self::next), or the cursor behind the last reservation of a batch.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]. Nothing has changed then, except that the producer may have read a newer head.
    #[inline(always)]
    pub fn reserve(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, ReserveError> {
        self.reserve_slot(from)?;
        if len > INLINE_CAPACITY {
            return self.reserve_arena(from, len);
        }
        Ok(slot_reservation(from, len))
    }

    /// Reserves a ticket and `len` bytes of the arena for a fragment of a long message. A fragment always stands in the
    /// arena.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]. Nothing has changed then, except that the producer may have read a newer head.
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

    /// Marks a reserved slot as being written. Must come before the first write, or immediately before the commit (see
    /// `ring/`).
    #[inline(always)]
    pub fn mark_writing(&self, reservation: &SlotReservation) {
        mark_writing(&self.mem, reservation.ticket);
    }

    /// Writes bytes of a reservation's payload, from `at` on.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if they do not fit into the reservation.
    #[inline(always)]
    pub fn write(
        &self,
        reservation: &SlotReservation,
        at: usize,
        bytes: &[u8],
        tail: Padding,
    ) -> Result<(), OutOfBounds> {
        match at.checked_add(bytes.len()) {
            Some(end) if end <= reservation.len => self.mem.copy_in(reservation.span, at, bytes, tail),
            _ => Err(OutOfBounds),
        }
    }

    /// Writes the total length of a message into the slot of its first fragment.
    pub fn write_total(&self, reservation: &SlotReservation, total: u64) {
        let _in_a_slot =
            self.mem.copy_in(Span::Slot(reservation.ticket), 0, &total.to_le_bytes(), Padding::Zero);
    }

    /// Returns the reservation with only the arena bytes that its first `len` bytes take, which is what the consumer
    /// will count.
    #[inline(always)]
    pub fn truncate(&self, reservation: &SlotReservation, len: usize) -> SlotReservation {
        let (len, all) = (len.min(reservation.len), reservation.len);
        let aligned = |len: usize| (len as u64).next_multiple_of(ARENA_ALIGN as u64);
        let offset = match reservation.span {
            Span::Arena(_) if len == 0 => self.next.offset,
            Span::Arena(_) => reservation.after.offset - aligned(all) + aligned(len),
            Span::Slot(_) => reservation.after.offset,
        };
        SlotReservation {
            ticket: reservation.ticket,
            span: reservation.span,
            len,
            after: Cursor { ticket: reservation.after.ticket, offset },
        }
    }

    /// Writes the control word and the tag of a written reservation. The reservation stays private.
    #[inline(always)]
    pub fn describe(&mut self, reservation: &SlotReservation, kind: SlotKind, len: usize, tag: u64) {
        let offset = match reservation.span {
            Span::Slot(_) => 0,
            Span::Arena(offset) => offset,
        };
        // An empty payload is always inline: an arena kind of length 0 is a protocol violation.
        let (kind, offset) = if len == 0 { (SlotKind::Inline, 0) } else { (kind, offset) };
        let abort = self.unfinished && kind.begins() && reservation.ticket == self.next.ticket;
        let control = Control { kind, abort, len: len_u32(len.min(reservation.len)), unit: offset };
        describe(&self.mem, reservation.ticket, control, tag);
        self.arena.set_end(reservation.ticket, reservation.after.offset);
    }

    /// Commits every described reservation up to `to`, and wakes the consumer if it sleeps.
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

    /// Returns how this direction has ended, or `None` if it is open.
    #[inline(always)]
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ConsumerClosed)
    }

    /// Returns whether the wait for a ticket's release is over: it is released, the direction has ended, or the head is
    /// a protocol violation, which the next reservation reports.
    #[inline]
    pub fn is_released(&self, needs: u64) -> bool {
        self.awaited_release(needs).is_released(&self.mem)
    }

    /// Publishes for the consumer which release is waited for. Must come before the wait slot is armed.
    pub fn announce_wait(&self, needs: u64) {
        self.awaited_release(needs).announce(&self.mem);
    }

    /// Returns the release of a ticket in a form that can be waited for without the producer itself.
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

    /// Starts at the front of the arena again if everything was released: the whole arena is contiguous then.
    ///
    /// # Errors
    ///
    /// [`ReserveError::Violated`] if the peer's head goes backwards or past the tail.
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

    /// Reads the peer's head and validates it.
    fn refresh(&mut self) -> Result<(), ProtocolViolation> {
        // Pairs with the Release store in `consumer::publish`.
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

    /// Returns how full the ring was at most when the head was read, in thousandths of its slots or of its arena,
    /// whichever is more.
    pub fn peak_fill(&self) -> u32 {
        let (slots, bytes) = self.arena.peak();
        let part = |taken: u64, of: u64| taken.saturating_mul(1000) >> of.trailing_zeros().min(63); // Powers of two.
        let most = part(slots, self.mem().slots()).max(part(bytes, self.mem().arena()));
        u32::try_from(most).unwrap_or(1000)
    }

    /// Sends a message in its slot if the fast path applies: the slot is known to be free, no message is unfinished,
    /// the message fits into the slot, and the direction is open.
    #[inline(always)]
    pub fn try_send(&mut self, message: &[u8], tag: u64) -> TrySend {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || message.len() > INLINE_CAPACITY || closed(&mem, Word::ConsumerClosed).is_some() {
            return TrySend::Nothing;
        }
        let reservation = slot_reservation(*next, message.len());
        mark_writing(&mem, reservation.ticket);
        write(&mem, arena, &reservation, &[message], tag);
        publish(&mem, next, &reservation)
    }

    /// Sends a message that consists of three parts, of `len` bytes together, in its slot if the fast path applies.
    #[inline(always)]
    pub fn try_send_parts(&mut self, parts: &[&[u8]; 3], len: usize, tag: u64) -> TrySend {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || len > INLINE_CAPACITY || closed(&mem, Word::ConsumerClosed).is_some() {
            return TrySend::Nothing;
        }
        let reservation = slot_reservation(*next, len);
        mark_writing(&mem, reservation.ticket);
        write(&mem, arena, &reservation, parts, tag);
        publish(&mem, next, &reservation)
    }

    /// Sends a message in the arena if the fast path applies: the slot and the arena bytes are known to be free, no
    /// message is unfinished, the message does not fit into a slot, and the direction is open.
    #[inline(always)]
    pub fn try_send_arena(&mut self, message: &[u8], tag: u64) -> TrySend {
        let free = self.next.ticket < self.limit && !self.unfinished;
        if !free || message.len() <= INLINE_CAPACITY || self.ended().is_some() {
            return TrySend::Nothing;
        }
        let Ok(reservation) = self.reserve_arena(self.next, message.len()) else { return TrySend::Nothing };
        let Self { mem, arena, next, .. } = self;
        let mem = mem.view();
        write(&mem, arena, &reservation, &[message], tag);
        // Not before the write: a consumer that spins on the stamp would fetch its cache line between the two stores.
        mark_writing(&mem, reservation.ticket);
        publish(&mem, next, &reservation)
    }

    /// Writes a message in its slot behind what is staged already, without committing it, if the fast path applies.
    /// Returns the cursor behind it.
    #[inline(always)]
    pub fn try_stage(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        let mem = self.mem.view();
        if from.ticket >= self.limit || self.unfinished || message.len() > INLINE_CAPACITY {
            return None;
        }
        let reservation = slot_reservation(from, message.len());
        mark_writing(&mem, reservation.ticket);
        write(&mem, &mut self.arena, &reservation, &[message], tag);
        Some(reservation.after)
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
    // Pairs with the fence in `consumer::is_unchanged`.
    mem.fence(Fence::Release);
}

#[inline(always)]
fn describe<M: Memory>(mem: &M, ticket: u64, control: Control, tag: u64) {
    mem.store_slot(ticket, Field::Control, control.encode(), Store::Relaxed);
    mem.store_slot(ticket, Field::Tag, tag, Store::Relaxed);
}

#[inline(always)]
fn commit<M: Memory>(mem: &M, ticket: u64) {
    // Pairs with the Acquire load in `consumer::stamp`.
    mem.store_slot(ticket, Field::Stamp, ready(ticket), Store::Release);
}

/// Converts a length, which is at most that of an arena.
#[inline(always)]
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Returns the first ticket that is not free while this is the head.
fn limit(head: u64, slots: u64) -> u64 {
    head.saturating_add(slots).min(LAST_TICKET + 1)
}

#[inline(always)]
fn slot_reservation(from: Cursor, len: usize) -> SlotReservation {
    let after = Cursor { ticket: from.ticket + 1, offset: from.offset };
    SlotReservation { ticket: from.ticket, span: Span::Slot(from.ticket), len, after }
}

/// Makes the reservation of bytes in an arena of `arena` bytes.
#[inline(always)]
fn arena_reservation(from: Cursor, offsets: Range<u64>, arena: u64, len: usize) -> SlotReservation {
    let offset = (offsets.start & (arena - 1)) / ARENA_ALIGN as u64;
    let offset = u32::try_from(offset).unwrap_or(u32::MAX); // No memory has that unit: the copy fails.
    let after = Cursor { ticket: from.ticket + 1, offset: offsets.end };
    SlotReservation { ticket: from.ticket, span: Span::Arena(offset), len, after }
}

/// Writes and describes a whole message that abandons no other.
#[inline(always)]
fn write<M: Memory>(mem: &M, arena: &mut Arena, reservation: &SlotReservation, parts: &[&[u8]], tag: u64) {
    let mut at = 0;
    for part in parts {
        let _of_that_length = mem.copy_in(reservation.span, at, part, Padding::Zero);
        at += part.len();
    }
    let (kind, offset) = match reservation.span {
        Span::Slot(_) => (SlotKind::Inline, 0),
        Span::Arena(offset) => (SlotKind::Whole, offset),
    };
    describe(
        mem,
        reservation.ticket,
        Control { kind, abort: false, len: len_u32(reservation.len), unit: offset },
        tag,
    );
    arena.set_end(reservation.ticket, reservation.after.offset);
}

/// Commits a described message, and checks whether the consumer sleeps.
#[inline(always)]
fn publish<M: Memory>(mem: &M, next: &mut Cursor, reservation: &SlotReservation) -> TrySend {
    commit(mem, reservation.ticket);
    *next = reservation.after;
    if fence_and_check(mem, Flag::Consumer) {
        return TrySend::Asleep;
    }
    #[cfg(feature = "testing")]
    mem.checked(Flag::Consumer, reservation.after.ticket);
    TrySend::Done
}
