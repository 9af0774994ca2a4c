//! The sending half of a direction, over any memory: blocking, cutting, abandoning.
//!
//! A message of at most [`whole`](Outbound::whole) bytes takes one ticket, and a longer one if it is written
//! [in place](Outbound::in_place). Else a longer one is cut
//! into pieces, each published (and its reader woken) before the next is waited for, so it flows
//! through a ring of any size. Whoever leaves between two pieces has abandoned the message: the
//! ticket of the next message says so.
//!
//! # Invariants
//!
//! 1. What a sender waits for is a ticket that a well-formed receiver releases, and behind which it looks for a sleeper (`ring`,
//!    invariant 5).
//! 2. A wait outlives neither its deadline nor the connection, whatever the peer's head says.
//!
//! # Proof
//!
//! The models of full rings and of false heads; the tests of blocked calls and of hostile rings.

use std::io::IoSlice;

use super::gather::Gather;
use super::pace::Pace;
use super::{Wait, may_wait_on};
use crate::error::{Ended, Violation};
use crate::layout::Kind;
use crate::mem::{GRAIN, INLINE, Memory, Span, Tail, Until, Word};
use crate::ring::{Bed, Claim, Cursor, Fate, Posted, Producer, Refusal, sleep};

/// The longest message that is copied to one place, in bytes; beyond it, overlapping the two copies
/// pays. Also limited by the arena, but never below what a slot holds.
const LONGEST_WHOLE: usize = 256 << 10;

/// The longest piece of a cut message, in bytes.
const LONGEST_PIECE: usize = 64 << 10;

/// Why a send failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFault {
    /// No room now, or the deadline passed.
    Full,
    /// It never fits at once.
    TooLargeToTry,
    /// It is longer than this limit.
    TooLarge(usize),
    /// The last ticket is used.
    Exhausted,
    /// The connection has ended.
    Ended(Ended),
}

/// What became of a message on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastSend {
    /// Something was in the way: nothing has happened, and the slow path sends it.
    NotSent,
    /// It is sent.
    Sent,
    /// It is sent, and [`after`](Outbound::after) comes next.
    SentThenAfter,
}

impl From<Ended> for SendFault {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// The sending half of a direction.
#[derive(Debug)]
pub struct Outbound<M, P> {
    ring: Producer<M>,
    pace: P,
    max_message: usize,
    /// The longest message that stands in a slot.
    short: usize,
    whole: usize,
    in_place: usize,
    piece: usize,
}

impl<M: Memory, P: Pace> Outbound<M, P> {
    /// The sender of a fresh ring.
    pub fn new(mem: M, pace: P, first: u64, max_message: usize) -> Self {
        let arena = usize::try_from(mem.arena()).unwrap_or(LONGEST_WHOLE);
        let in_place = arena.max(INLINE).min(max_message);
        let share = if mem.slots() < 4 { arena } else { (arena / 4).max(GRAIN) };
        Self {
            ring: Producer::new(mem, first),
            pace,
            max_message,
            whole: in_place.min(LONGEST_WHOLE),
            in_place,
            short: INLINE.min(max_message),
            piece: share.min(LONGEST_PIECE),
        }
    }

    /// The ring.
    pub fn ring(&self) -> &Producer<M> {
        &self.ring
    }

    /// The ring, to write claims.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn ring_mut(&mut self) -> &mut Producer<M> {
        &mut self.ring
    }

    /// The longest message, in bytes.
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// The longest message that may be written in place, in bytes.
    pub fn in_place(&self) -> usize {
        self.in_place
    }

    /// The longest message that is copied to one place, in bytes.
    pub fn whole(&self) -> usize {
        self.whole
    }

    /// Sends one message, which is the parts one behind the other.
    ///
    /// # Errors
    ///
    /// [`SendFault`]; nothing of the message will be delivered.
    #[inline(always)]
    pub fn send(&mut self, parts: &[IoSlice<'_>], tag: u64, wait: Wait) -> Result<usize, SendFault> {
        let len = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        if len > self.whole {
            return self.send_cut(parts, len, tag, wait).map(|()| len);
        }
        let claim = self.claim(len, wait)?;
        self.ring.open(&claim);
        self.fill(&claim, &mut Gather::new(parts))?;
        self.commit(&claim, len, tag);
        Ok(len)
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[inline(always)]
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn send_one(&mut self, message: &[u8], tag: u64, wait: Wait) -> Result<usize, SendFault> {
        let sent = match self.send_at_once(message, tag) {
            FastSend::NotSent => self.send_placed(message, tag),
            sent => sent,
        };
        match sent {
            FastSend::SentThenAfter => self.after(),
            FastSend::Sent => {}
            FastSend::NotSent => return self.send(&[IoSlice::new(message)], tag, wait),
        }
        Ok(message.len())
    }

    /// Sends one message that is a word and two parts.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    #[inline(always)]
    pub fn send_framed(
        &mut self,
        head: [u8; 8],
        [first, second]: [&[u8]; 2],
        tag: u64,
        wait: Wait,
    ) -> Result<usize, SendFault> {
        let len = head.len().saturating_add(first.len()).saturating_add(second.len());
        if len <= self.short {
            let posted = self.ring.post_parts(&[&head, first, second], len, tag);
            match self.what_is_left(posted) {
                FastSend::SentThenAfter => self.after(),
                FastSend::Sent => {}
                FastSend::NotSent => return self.send_parts([&head, first, second], tag, wait),
            }
            return Ok(len);
        }
        self.send_parts([&head, first, second], tag, wait)
    }

    #[inline(never)]
    fn send_parts(&mut self, parts: [&[u8]; 3], tag: u64, wait: Wait) -> Result<usize, SendFault> {
        self.send(&parts.map(IoSlice::new), tag, wait)
    }

    /// Sends one message at once if it is short, there is room, and nothing is in the way.
    #[inline(always)]
    pub(super) fn send_at_once(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.short {
            return FastSend::NotSent;
        }
        let posted = self.ring.post(message, tag);
        self.what_is_left(posted)
    }

    /// The same for one that stands in the arena.
    #[inline(always)]
    pub(super) fn send_placed(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.whole {
            return FastSend::NotSent;
        }
        let posted = self.ring.post_placed(message, tag);
        self.what_is_left(posted)
    }

    #[inline(always)]
    fn what_is_left(&mut self, posted: Posted) -> FastSend {
        match posted {
            Posted::Nothing => FastSend::NotSent,
            Posted::Done if !self.pace.is_due() => FastSend::Sent,
            Posted::Done | Posted::Asleep => FastSend::SentThenAfter,
        }
    }

    /// Does what is left after a message: wakes the receiver, says where this side is.
    #[cold]
    pub fn after(&mut self) {
        self.ring.wake();
        self.pace.tell();
    }

    /// Claims a ticket and a place for a whole message of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`SendFault`]; [`SendFault::TooLarge`] for more than [`in_place`](Self::in_place).
    #[inline(always)]
    pub fn claim(&mut self, len: usize, wait: Wait) -> Result<Claim, SendFault> {
        if len > self.in_place() {
            return Err(SendFault::TooLarge(self.in_place()));
        }
        self.check()?;
        self.claim_or_wait(wait, |ring| ring.claim(ring.next(), len))
    }

    /// Writes a short message behind what is staged already, if nothing is in the way.
    #[inline(always)]
    pub fn stage_at_once(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        if message.len() > self.short || self.check().is_err() {
            return None;
        }
        self.ring.stage(from, message, tag)
    }

    /// Claims behind what is staged already; never blocks.
    ///
    /// # Errors
    ///
    /// [`SendFault`]; `Full` also if it would fit once what is staged is flushed.
    pub fn stage(&mut self, from: Cursor, len: usize) -> Result<Claim, SendFault> {
        match self.ring.claim(from, len) {
            Ok(claim) => Ok(claim),
            Err(Refusal::Full { .. }) => Err(SendFault::Full),
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// Commits a written claim as a whole message.
    #[inline(always)]
    pub fn commit(&mut self, claim: &Claim, len: usize, tag: u64) {
        let claim = self.ring.cut(claim, len);
        self.describe_whole(&claim, len, tag);
        self.publish(claim.after(), false);
    }

    /// Commits every described claim up to `to`, and wakes the receiver if it sleeps.
    #[inline(always)]
    pub fn publish(&mut self, to: Cursor, unfinished: bool) {
        self.ring.publish(to, unfinished);
        self.pace.active();
    }

    /// Describes a written claim as a whole message, still private.
    #[inline(always)]
    pub fn describe_whole(&mut self, claim: &Claim, len: usize, tag: u64) {
        let kind = if matches!(claim.span(), Span::Slot(_)) { Kind::Inline } else { Kind::Whole };
        self.ring.describe(claim, kind, len, tag);
    }

    /// How the direction has ended, as an error.
    ///
    /// # Errors
    ///
    /// How it ended.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Ended> {
        match self.ring.ended() {
            None => Ok(()),
            Some(ended) => Err(ended),
        }
    }

    /// Writes as many of the gathered bytes as the claim holds.
    ///
    /// # Errors
    ///
    /// None with a claim of this ring: then the connection is condemned rather than trusted.
    #[inline(always)]
    pub fn fill(&mut self, claim: &Claim, from: &mut Gather<'_>) -> Result<(), SendFault> {
        let mut at = 0;
        while at < claim.len() {
            let Some(bytes) = from.take(claim.len() - at) else { break };
            if self.ring.write(claim, at, bytes, Tail::Zero).is_err() {
                return Err(self.refuse(Refusal::Violated(Violation("a place outside the arena"))));
            }
            at += bytes.len();
        }
        Ok(())
    }

    /// The ticket whose release a message of `len` bytes needs, or nothing if there is room: for the first piece of one
    /// that does not fit the arena, for all of any other.
    ///
    /// # Errors
    ///
    /// [`SendFault`], never `Full`.
    pub fn needs(&mut self, len: usize) -> Result<Option<u64>, SendFault> {
        self.check()?;
        let from = self.ring.next();
        let claimed = match len > self.in_place {
            true => self.ring.claim_piece(from, self.piece),
            false => self.ring.claim(from, len),
        };
        match claimed {
            Ok(_) => Ok(None),
            Err(Refusal::Full { needs }) => Ok(Some(needs)),
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    #[inline(never)]
    fn send_cut(&mut self, parts: &[IoSlice<'_>], len: usize, tag: u64, wait: Wait) -> Result<(), SendFault> {
        if len > self.max_message {
            return Err(SendFault::TooLarge(self.max_message));
        }
        self.check()?;
        // No ticket behind an unfinished message could say that it is abandoned.
        if self.ring.left() < len.div_ceil(self.piece) as u64 {
            return Err(SendFault::Exhausted);
        }
        if wait == Wait::Never {
            self.fits_at_once(len)?;
        }
        let (mut from, mut left) = (Gather::new(parts), len);
        while left > 0 {
            let size = left.min(self.piece);
            let claim = self.claim_or_wait(wait, |ring| ring.claim_piece(ring.next(), size))?;
            self.ring.open(&claim);
            self.fill(&claim, &mut from)?;
            let first = left == len;
            left -= size;
            self.publish_piece(&claim, first.then_some(len), left == 0, tag);
            if left > 0 {
                self.check()?; // Behind the last piece it is too late: the message is committed.
            }
        }
        Ok(())
    }

    fn publish_piece(&mut self, claim: &Claim, total: Option<usize>, last: bool, tag: u64) {
        let kind = match (total, last) {
            (Some(total), _) => {
                self.ring.write_total(claim, total as u64);
                Kind::First
            }
            (None, false) => Kind::Middle,
            (None, true) => Kind::Last,
        };
        self.ring.describe(claim, kind, claim.len(), tag);
        self.publish(claim.after(), !last);
    }

    /// Whether all pieces of a message have room now.
    fn fits_at_once(&mut self, len: usize) -> Result<(), SendFault> {
        let pieces = len.div_ceil(self.piece) as u64;
        if pieces > self.ring.mem().slots() || len as u64 > self.ring.mem().arena() {
            return Err(SendFault::TooLargeToTry);
        }
        if let Err(refusal) = self.ring.return_to_the_front() {
            return Err(self.refuse(refusal));
        }
        let (mut at, mut left) = (self.ring.next(), len);
        while left > 0 {
            let size = left.min(self.piece);
            match self.ring.claim_piece(at, size) {
                Ok(claim) => (at, left) = (claim.after(), left - size),
                Err(Refusal::Full { .. }) => return Err(SendFault::Full),
                Err(refusal) => return Err(self.refuse(refusal)),
            }
        }
        Ok(())
    }

    /// Turns a refusal into a fault; a lie condemns the connection.
    #[cold]
    fn refuse(&mut self, refusal: Refusal) -> SendFault {
        match refusal {
            Refusal::Full { .. } => SendFault::Full,
            Refusal::TooLarge => SendFault::TooLarge(self.in_place()),
            Refusal::Exhausted => SendFault::Exhausted,
            Refusal::Violated(_) => {
                let mem = self.ring.mem();
                mem.settle(Fate::Violated as u64);
                self.ring.close();
                crate::ring::ended(self.ring.mem(), Word::ConsumerMark)
                    .unwrap_or(Ended::ProtocolViolated)
                    .into()
            }
        }
    }

    /// Claims, waiting for space between tries.
    #[inline(always)]
    fn claim_or_wait(
        &mut self,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<Claim, Refusal>,
    ) -> Result<Claim, SendFault> {
        match claim(&mut self.ring) {
            Ok(claim) => Ok(claim),
            Err(refusal) => self.claim_in_time(refusal, wait, claim),
        }
    }

    #[cold]
    #[inline(never)]
    fn claim_in_time(
        &mut self,
        mut refusal: Refusal,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<Claim, Refusal>,
    ) -> Result<Claim, SendFault> {
        let mut tries = 0_u32;
        loop {
            match (refusal, wait) {
                (Refusal::Full { .. }, Wait::Never) => return Err(SendFault::Full),
                (Refusal::Full { needs }, Wait::Until(until)) => self.linger(needs, until, tries)?,
                (refusal, _) => return Err(self.refuse(refusal)),
            }
            match claim(&mut self.ring) {
                Ok(claim) => return Ok(claim),
                Err(again) => refusal = again,
            }
            tries = tries.saturating_add(1);
        }
    }

    /// Passes the time until a release.
    #[cold]
    fn linger(&mut self, needs: u64, until: Until, tries: u32) -> Result<(), SendFault> {
        let Self { ring, pace, .. } = self;
        if !may_wait_on(ring.mem(), until, tries) {
            return Err(SendFault::Full);
        }
        pace.stalled(tries);
        if !pace.pass(until, || ring.released(needs)) {
            ring.want(needs);
            let found =
                sleep(&Bed::producer(ring.mem()), until, tries, || ring.released(needs).then_some(()));
            pace.slept();
            if found.is_none() {
                return Err(SendFault::Full);
            }
        }
        self.check().map_err(SendFault::Ended)
    }
}
