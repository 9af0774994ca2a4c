//! What nearly every message takes: claim, write, commit in one go, if nothing at all is in the way.
//!
//! It does what the steps of [`Producer`] would do one by one, or nothing.
//!
//! # Invariants
//!
//! Those of the ring. Whatever needs a look at the head, ends or abandons a message, or waits, is left to the steps.
//!
//! # Proof
//!
//! That of the steps: the models, `tests/ring/geometries.rs`, `tests/ring/exhaustive` and the fuzz bodies send both ways.

use super::ended;
use super::park::{asleep, wake};
use super::place::Arena;
use super::producer::{Claim, Cursor, Producer, commit, describe, open, short, slot_claim};
use crate::layout::{Control, Kind};
use crate::mem::{Flag, INLINE, Memory, Span, Tail, Word};

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
