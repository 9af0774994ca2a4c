//! The writing side of a ring: claim a ticket and a place, write, commit. Never blocks.
//!
//! A claim is private: until [`publish`](Producer::publish) nothing of it is visible, a forgotten
//! one costs nothing, and the next claim takes the same ticket.
//!
//! [`post`](Producer::post) and its kin do the steps of a whole message in one go, if nothing at all is in the way, or
//! nothing. Whatever needs a look at the head, ends or abandons a message, or waits, is left to the single steps. The
//! models, `tests/ring.rs`, the exhaustive tests and the fuzz bodies send both ways.

use super::park::{asleep, rouse, wake};
use super::place::Arena;
use super::{ended, ready, writing};
use crate::error::{Ended, Violation};
use crate::layout::{Control, Kind, LAST_TICKET};
use crate::mem::{Fence, Field, Flag, GRAIN, INLINE, Load, Memory, OutOfBounds, Span, Store, Tail, Word};
use std::ops::Range;

/// The next ticket and the place behind the last payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    ticket: u64,
    place: u64,
}

/// A ticket and a place that the producer may write to.
#[derive(Debug)]
pub struct Claim {
    ticket: u64,
    span: Span,
    len: usize,
    after: Cursor,
}

impl Claim {
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
pub enum Refusal {
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
    Violated(Violation),
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
pub struct Wanted {
    ticket: u64,
    head: u64,
}

impl Wanted {
    /// See [`Producer::released`].
    #[inline]
    pub fn released<M: Memory>(self, mem: &M) -> bool {
        if ended(mem, Word::ConsumerMark).is_some() {
            return true;
        }
        // Relaxed: the claim that follows loads it again, and acquires what was released.
        let head = mem.load(Word::Head, Load::Relaxed);
        head > self.ticket || head < self.head
    }

    /// See [`Producer::want`].
    pub fn ask<M: Memory>(self, mem: &M) {
        mem.store(Word::Wanted, self.ticket, Store::Relaxed);
    }
}

/// What became of a message that was to be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
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
        Self { mem, next: Cursor { ticket: first, place: 0 }, head: first, limit, arena, unfinished: false }
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
    pub fn left(&self) -> u64 {
        (LAST_TICKET + 1).saturating_sub(self.next.ticket)
    }

    /// Claims a ticket at `from`, and a place for `len` bytes if they do not fit into the slot.
    ///
    /// `from` is [`next`](Self::next), or the cursor behind the last claim of a batch.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; nothing has changed but what is known of the peer's head.
    #[inline(always)]
    pub fn claim(&mut self, from: Cursor, len: usize) -> Result<Claim, Refusal> {
        self.claim_ticket(from)?;
        if len > INLINE {
            return self.claim_place(from, len);
        }
        Ok(slot_claim(from, len))
    }

    /// Claims a ticket and a place for a piece of a long message, which always stands in the arena.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    pub fn claim_piece(&mut self, from: Cursor, len: usize) -> Result<Claim, Refusal> {
        self.claim_ticket(from)?;
        self.claim_place(from, len)
    }

    #[inline(always)]
    fn claim_ticket(&mut self, from: Cursor) -> Result<(), Refusal> {
        if from.ticket > LAST_TICKET {
            return Err(Refusal::Exhausted);
        }
        if from.ticket >= self.limit {
            self.refresh().map_err(Refusal::Violated)?;
            if from.ticket >= self.limit {
                return Err(Refusal::Full { needs: from.ticket - self.mem.slots() });
            }
        }
        Ok(())
    }

    /// Marks a claim's slot as being written: before the first write, or as it is committed (see the module above).
    #[inline(always)]
    pub fn open(&self, claim: &Claim) {
        open(&self.mem, claim.ticket);
    }

    /// Writes bytes of a claim's payload.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if they do not fit into the claim.
    #[inline(always)]
    pub fn write(&self, claim: &Claim, at: usize, bytes: &[u8], tail: Tail) -> Result<(), OutOfBounds> {
        match at.checked_add(bytes.len()) {
            Some(end) if end <= claim.len => self.mem.copy_in(claim.span, at, bytes, tail),
            _ => Err(OutOfBounds),
        }
    }

    /// Writes the first piece's total length, which stands in the slot.
    pub fn write_total(&self, claim: &Claim, total: u64) {
        let _in_a_slot = self.mem.copy_in(Span::Slot(claim.ticket), 0, &total.to_le_bytes(), Tail::Zero);
    }

    /// The claim with only what its first `len` bytes take of the arena: what the consumer will count.
    #[inline(always)]
    pub fn cut(&self, claim: &Claim, len: usize) -> Claim {
        let (len, all) = (len.min(claim.len), claim.len);
        let grains = |len: usize| (len as u64).next_multiple_of(GRAIN as u64);
        let place = match claim.span {
            Span::Arena(_) if len == 0 => self.next.place,
            Span::Arena(_) => claim.after.place - grains(all) + grains(len),
            Span::Slot(_) => claim.after.place,
        };
        Claim {
            ticket: claim.ticket,
            span: claim.span,
            len,
            after: Cursor { ticket: claim.after.ticket, place },
        }
    }

    /// Describes a written claim: its kind, its final length, its tag. Still private.
    #[inline(always)]
    pub fn describe(&mut self, claim: &Claim, kind: Kind, len: usize, tag: u64) {
        let place = match claim.span {
            Span::Slot(_) => 0,
            Span::Arena(place) => place,
        };
        // An empty payload needs no place: an arena kind of length 0 does not exist.
        let (kind, place) = if len == 0 { (Kind::Inline, 0) } else { (kind, place) };
        let abort = self.unfinished && kind.begins() && claim.ticket == self.next.ticket;
        let control = Control { kind, abort, len: short(len.min(claim.len)), place };
        describe(&self.mem, claim.ticket, control, tag);
        self.arena.set_end(claim.ticket, claim.after.place);
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
        rouse(&self.mem, Flag::Consumer);
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Consumer, to.ticket);
    }

    /// How this direction has ended, if it has.
    #[inline(always)]
    pub fn ended(&self) -> Option<Ended> {
        ended(&self.mem, Word::ConsumerMark)
    }

    /// Whether the wait for a ticket's release is over: it is released, or the direction has ended,
    /// or the head is a lie that the next claim will find.
    #[inline]
    pub fn released(&self, needs: u64) -> bool {
        self.wanted(needs).released(&self.mem)
    }

    /// Tells the consumer which release is waited for. Comes before the flag is raised.
    pub fn want(&self, needs: u64) {
        self.wanted(needs).ask(&self.mem);
    }

    /// The release of a ticket, to be waited for without the producer itself.
    #[inline]
    pub fn wanted(&self, ticket: u64) -> Wanted {
        Wanted { ticket, head: self.head }
    }

    /// Closes this side of the ring.
    pub fn close(&self) {
        super::close(&self.mem, Word::ProducerMark, Flag::Consumer);
    }

    #[inline(always)]
    fn claim_place(&mut self, from: Cursor, len: usize) -> Result<Claim, Refusal> {
        let bytes = len as u64;
        if bytes > self.mem.arena() {
            return Err(Refusal::TooLarge);
        }
        let (start, end) = self.arena.fit(from.place, bytes);
        if self.arena.far(end, bytes) || !self.arena.free(end) {
            return self.claim_after_a_look(from, len);
        }
        Ok(place_claim(from, start..end, self.mem.arena(), len))
    }

    /// Starts at the front again, if everything was released: all of the arena is in one piece then.
    ///
    /// # Errors
    ///
    /// [`Refusal::Violated`].
    pub fn return_to_the_front(&mut self) -> Result<(), Refusal> {
        self.refresh().map_err(Refusal::Violated)?;
        self.arena.look(self.next.place);
        if self.arena.is_free(self.next.place) {
            self.next.place = self.arena.restart(self.next.place);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn claim_after_a_look(&mut self, mut from: Cursor, len: usize) -> Result<Claim, Refusal> {
        if from == self.next {
            self.return_to_the_front()?;
            from = self.next;
        } else {
            self.refresh().map_err(Refusal::Violated)?;
            self.arena.look(from.place);
        }
        let (start, end) = self.arena.fit(from.place, len as u64);
        if !self.arena.free(end) {
            let needs = self.arena.needed(self.head..self.next.ticket, end);
            return Err(Refusal::Full { needs });
        }
        Ok(place_claim(from, start..end, self.mem.arena(), len))
    }

    /// Reads the peer's head and judges it.
    fn refresh(&mut self) -> Result<(), Violation> {
        // pairs with the Release store in `Consumer::publish_head`.
        let head = self.mem.load(Word::Head, Load::Acquire);
        if head < self.head || head > self.next.ticket {
            return Err(Violation("a head that went backwards or past the tail"));
        }
        if head > self.head {
            self.arena.release(head - 1);
            (self.head, self.limit) = (head, limit(head, self.mem.slots()));
        }
        self.arena.note(self.next.ticket - head);
        Ok(())
    }

    /// How full the ring was at most when the head was looked at, in thousandths of its slots or of its arena.
    pub fn fullest(&self) -> u32 {
        let (slots, bytes) = self.arena.most();
        let part = |taken: u64, of: u64| taken.saturating_mul(1000) >> of.trailing_zeros().min(63); // Powers of two.
        let most = part(slots, self.mem().slots()).max(part(bytes, self.mem().arena()));
        u32::try_from(most).unwrap_or(1000)
    }

    /// Sends a message that stands in its slot, if nothing at all is in the way.
    #[inline(always)]
    pub fn post(&mut self, message: &[u8], tag: u64) -> Posted {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.near();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || message.len() > INLINE || ended(&mem, Word::ConsumerMark).is_some() {
            return Posted::Nothing;
        }
        let claim = slot_claim(*next, message.len());
        open(&mem, claim.ticket);
        write(&mem, arena, &claim, &[message], tag);
        publish(&mem, next, &claim)
    }

    /// The same for a message that is some parts one behind the other, of `len` bytes together.
    #[inline(always)]
    pub fn post_parts(&mut self, parts: &[&[u8]; 3], len: usize, tag: u64) -> Posted {
        let Self { mem, arena, next, .. } = self;
        let mem = mem.near();
        let free = next.ticket < self.limit && !self.unfinished;
        if !free || len > INLINE || ended(&mem, Word::ConsumerMark).is_some() {
            return Posted::Nothing;
        }
        let claim = slot_claim(*next, len);
        open(&mem, claim.ticket);
        write(&mem, arena, &claim, parts, tag);
        publish(&mem, next, &claim)
    }

    /// As [`post`](Self::post), for a message that stands in the arena.
    #[inline(always)]
    pub fn post_placed(&mut self, message: &[u8], tag: u64) -> Posted {
        let free = self.next.ticket < self.limit && !self.unfinished;
        if !free || message.len() <= INLINE || self.ended().is_some() {
            return Posted::Nothing;
        }
        let Ok(claim) = self.claim_place(self.next, message.len()) else { return Posted::Nothing };
        let Self { mem, arena, next, .. } = self;
        let mem = mem.near();
        write(&mem, arena, &claim, &[message], tag);
        open(&mem, claim.ticket); // Not before: who spins on the slot fetches its line between a mark and the commit.
        publish(&mem, next, &claim)
    }

    /// Writes a message behind what is staged already, as [`post`](Self::post) does; the cursor behind it.
    #[inline(always)]
    pub fn stage(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        let mem = self.mem.near();
        if from.ticket >= self.limit || self.unfinished || message.len() > INLINE {
            return None;
        }
        let claim = slot_claim(from, message.len());
        open(&mem, claim.ticket);
        write(&mem, &mut self.arena, &claim, &[message], tag);
        Some(claim.after)
    }

    /// Wakes the consumer after [`Posted::Asleep`].
    #[cold]
    pub fn wake(&self) {
        wake(&self.mem, Flag::Consumer);
        #[cfg(feature = "testing")]
        self.mem.checked(Flag::Consumer, self.next.ticket);
    }
}

#[inline(always)]
fn open<M: Memory>(mem: &M, ticket: u64) {
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
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The first ticket that is not free while this is the head.
fn limit(head: u64, slots: u64) -> u64 {
    head.saturating_add(slots).min(LAST_TICKET + 1)
}

#[inline(always)]
fn slot_claim(from: Cursor, len: usize) -> Claim {
    let after = Cursor { ticket: from.ticket + 1, place: from.place };
    Claim { ticket: from.ticket, span: Span::Slot(from.ticket), len, after }
}

/// A claim of bytes that stand in an arena of this size.
#[inline(always)]
fn place_claim(from: Cursor, places: Range<u64>, arena: u64, len: usize) -> Claim {
    let place = (places.start & (arena - 1)) / GRAIN as u64;
    let place = u32::try_from(place).unwrap_or(u32::MAX); // Which no memory has.
    let after = Cursor { ticket: from.ticket + 1, place: places.end };
    Claim { ticket: from.ticket, span: Span::Arena(place), len, after }
}

/// Writes and describes a whole message that abandons nothing.
#[inline(always)]
fn write<M: Memory>(mem: &M, arena: &mut Arena, claim: &Claim, parts: &[&[u8]], tag: u64) {
    let mut at = 0;
    for part in parts {
        let _of_that_length = mem.copy_in(claim.span, at, part, Tail::Zero);
        at += part.len();
    }
    let (kind, place) = match claim.span {
        Span::Slot(_) => (Kind::Inline, 0),
        Span::Arena(place) => (Kind::Whole, place),
    };
    describe(mem, claim.ticket, Control { kind, abort: false, len: short(claim.len), place }, tag);
    arena.set_end(claim.ticket, claim.after.place);
}

/// Commits it, and looks for a sleeper.
#[inline(always)]
fn publish<M: Memory>(mem: &M, next: &mut Cursor, claim: &Claim) -> Posted {
    commit(mem, claim.ticket);
    *next = claim.after;
    if asleep(mem, Flag::Consumer) {
        return Posted::Asleep;
    }
    #[cfg(feature = "testing")]
    mem.checked(Flag::Consumer, claim.after.ticket);
    Posted::Done
}
