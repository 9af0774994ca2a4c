//! The sending half of a direction, over any memory: blocking, cutting, abandoning.
//!
//! A message of at most [`whole`](SenderCore::whole) bytes takes one ticket, and a longer one if it is written
//! [in place](SenderCore::in_place). Else a longer one is cut
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

use super::io_slice_reader::IoSliceReader;
use super::wait_policy::WaitPolicy;
use super::{Wait, back_off_or_expire};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::SlotKind;
use crate::memory::{ARENA_ALIGN, Deadline, INLINE_CAPACITY, Memory, Padding, Span, Word};
use crate::ring::{CloseReason, Cursor, Producer, ReserveError, SlotReservation, TrySend, WaitSlot, park};

/// The longest message that is copied to one place, in bytes; beyond it, overlapping the two copies
/// pays. Also limited by the arena, but never below what a slot holds.
const MAX_WHOLE: usize = 256 << 10;

/// The longest piece of a cut message, in bytes.
const MAX_FRAGMENT: usize = 64 << 10;

/// Why a send failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendCoreError {
    /// No room now, or the deadline passed.
    Full,
    /// It never fits at once.
    TooLargeToTry,
    /// It is longer than this limit.
    TooLarge(usize),
    /// The last ticket is used.
    Exhausted,
    /// The connection has ended.
    Ended(ConnectionError),
}

/// What became of a message on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastSend {
    /// Something was in the way: nothing has happened, and the slow path sends it.
    NotSent,
    /// It is sent.
    Sent,
    /// It is sent, and [`run_deferred`](SenderCore::run_deferred) comes next.
    SentWithDeferred,
}

impl From<ConnectionError> for SendCoreError {
    fn from(ended: ConnectionError) -> Self {
        Self::Ended(ended)
    }
}

/// The sending half of a direction.
#[derive(Debug)]
pub struct SenderCore<M, P> {
    ring: Producer<M>,
    policy: P,
    max_message: usize,
    /// The longest message that stands in a slot.
    short: usize,
    whole: usize,
    in_place: usize,
    fragment: usize,
}

impl<M: Memory, P: WaitPolicy> SenderCore<M, P> {
    /// The sender of a fresh ring.
    pub fn new(mem: M, policy: P, first: u64, max_message: usize) -> Self {
        let arena = usize::try_from(mem.arena()).unwrap_or(MAX_WHOLE);
        let in_place = arena.max(INLINE_CAPACITY).min(max_message);
        let share = if mem.slots() < 4 { arena } else { (arena / 4).max(ARENA_ALIGN) };
        Self {
            ring: Producer::new(mem, first),
            policy,
            max_message,
            whole: in_place.min(MAX_WHOLE),
            in_place,
            short: INLINE_CAPACITY.min(max_message),
            fragment: share.min(MAX_FRAGMENT),
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
    /// [`SendCoreError`]; nothing of the message will be delivered.
    #[inline(always)]
    pub fn send(&mut self, parts: &[IoSlice<'_>], tag: u64, wait: Wait) -> Result<usize, SendCoreError> {
        let len = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        if len > self.whole {
            return self.send_fragmented(parts, len, tag, wait).map(|()| len);
        }
        let claim = self.reserve(len, wait)?;
        self.ring.mark_writing(&claim);
        self.fill(&claim, &mut IoSliceReader::new(parts))?;
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
    pub fn send_one(&mut self, message: &[u8], tag: u64, wait: Wait) -> Result<usize, SendCoreError> {
        let sent = match self.try_send_inline(message, tag) {
            FastSend::NotSent => self.try_send_arena(message, tag),
            sent => sent,
        };
        match sent {
            FastSend::SentWithDeferred => self.run_deferred(),
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
    ) -> Result<usize, SendCoreError> {
        let len = head.len().saturating_add(first.len()).saturating_add(second.len());
        if len <= self.short {
            let posted = self.ring.try_send_parts(&[&head, first, second], len, tag);
            match self.finish_fast_path(posted) {
                FastSend::SentWithDeferred => self.run_deferred(),
                FastSend::Sent => {}
                FastSend::NotSent => return self.send_parts([&head, first, second], tag, wait),
            }
            return Ok(len);
        }
        self.send_parts([&head, first, second], tag, wait)
    }

    #[inline(never)]
    fn send_parts(&mut self, parts: [&[u8]; 3], tag: u64, wait: Wait) -> Result<usize, SendCoreError> {
        self.send(&parts.map(IoSlice::new), tag, wait)
    }

    /// Sends one message at once if it is short, there is room, and nothing is in the way.
    #[inline(always)]
    pub(super) fn try_send_inline(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.short {
            return FastSend::NotSent;
        }
        let posted = self.ring.try_send(message, tag);
        self.finish_fast_path(posted)
    }

    /// The same for one that stands in the arena.
    #[inline(always)]
    pub(super) fn try_send_arena(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.whole {
            return FastSend::NotSent;
        }
        let posted = self.ring.try_send_arena(message, tag);
        self.finish_fast_path(posted)
    }

    #[inline(always)]
    fn finish_fast_path(&mut self, posted: TrySend) -> FastSend {
        match posted {
            TrySend::Nothing => FastSend::NotSent,
            TrySend::Done if !self.policy.is_due() => FastSend::Sent,
            TrySend::Done | TrySend::Asleep => FastSend::SentWithDeferred,
        }
    }

    /// Does what is left after a message: wakes the receiver, says where this side is.
    #[cold]
    pub fn run_deferred(&mut self) {
        self.ring.wake();
        self.policy.publish_cpu();
    }

    /// Claims a ticket and a place for a whole message of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; [`SendCoreError::TooLarge`] for more than [`in_place`](Self::in_place).
    #[inline(always)]
    pub fn reserve(&mut self, len: usize, wait: Wait) -> Result<SlotReservation, SendCoreError> {
        if len > self.in_place() {
            return Err(SendCoreError::TooLarge(self.in_place()));
        }
        self.check()?;
        self.reserve_or_wait(wait, |ring| ring.reserve(ring.next(), len))
    }

    /// Writes a short message behind what is staged already, if nothing is in the way.
    #[inline(always)]
    pub fn try_stage_inline(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        if message.len() > self.short || self.check().is_err() {
            return None;
        }
        self.ring.try_stage(from, message, tag)
    }

    /// Claims behind what is staged already; never blocks.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; `Full` also if it would fit once what is staged is flushed.
    pub fn stage(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, SendCoreError> {
        match self.ring.reserve(from, len) {
            Ok(claim) => Ok(claim),
            Err(ReserveError::Full { .. }) => Err(SendCoreError::Full),
            Err(refusal) => Err(self.error_of(refusal)),
        }
    }

    /// Commits a written claim as a whole message.
    #[inline(always)]
    pub fn commit(&mut self, claim: &SlotReservation, len: usize, tag: u64) {
        let claim = self.ring.truncate(claim, len);
        self.describe_whole(&claim, len, tag);
        self.publish(claim.after(), false);
    }

    /// Commits every described claim up to `to`, and wakes the receiver if it sleeps.
    #[inline(always)]
    pub fn publish(&mut self, to: Cursor, unfinished: bool) {
        self.ring.publish(to, unfinished);
        self.policy.active();
    }

    /// Describes a written claim as a whole message, still private.
    #[inline(always)]
    pub fn describe_whole(&mut self, claim: &SlotReservation, len: usize, tag: u64) {
        let kind = if matches!(claim.span(), Span::Slot(_)) { SlotKind::Inline } else { SlotKind::Whole };
        self.ring.describe(claim, kind, len, tag);
    }

    /// How the direction has ended, as an error.
    ///
    /// # Errors
    ///
    /// How it ended.
    #[inline(always)]
    pub fn check(&self) -> Result<(), ConnectionError> {
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
    pub fn fill(
        &mut self,
        claim: &SlotReservation,
        from: &mut IoSliceReader<'_>,
    ) -> Result<(), SendCoreError> {
        let mut at = 0;
        while at < claim.len() {
            let Some(bytes) = from.take(claim.len() - at) else { break };
            if self.ring.write(claim, at, bytes, Padding::Zero).is_err() {
                return Err(
                    self.error_of(ReserveError::Violated(ProtocolViolation("a place outside the arena")))
                );
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
    /// [`SendCoreError`], never `Full`.
    pub fn ticket_to_await(&mut self, len: usize) -> Result<Option<u64>, SendCoreError> {
        self.check()?;
        let from = self.ring.next();
        let claimed = match len > self.in_place {
            true => self.ring.reserve_fragment(from, self.fragment),
            false => self.ring.reserve(from, len),
        };
        match claimed {
            Ok(_) => Ok(None),
            Err(ReserveError::Full { needs }) => Ok(Some(needs)),
            Err(refusal) => Err(self.error_of(refusal)),
        }
    }

    #[inline(never)]
    fn send_fragmented(
        &mut self,
        parts: &[IoSlice<'_>],
        len: usize,
        tag: u64,
        wait: Wait,
    ) -> Result<(), SendCoreError> {
        if len > self.max_message {
            return Err(SendCoreError::TooLarge(self.max_message));
        }
        self.check()?;
        // No ticket behind an unfinished message could say that it is abandoned.
        if self.ring.remaining_tickets() < len.div_ceil(self.fragment) as u64 {
            return Err(SendCoreError::Exhausted);
        }
        if wait == Wait::Never {
            self.check_fits(len)?;
        }
        let (mut from, mut left) = (IoSliceReader::new(parts), len);
        while left > 0 {
            let size = left.min(self.fragment);
            let claim = self.reserve_or_wait(wait, |ring| ring.reserve_fragment(ring.next(), size))?;
            self.ring.mark_writing(&claim);
            self.fill(&claim, &mut from)?;
            let first = left == len;
            left -= size;
            self.publish_fragment(&claim, first.then_some(len), left == 0, tag);
            if left > 0 {
                self.check()?; // Behind the last piece it is too late: the message is committed.
            }
        }
        Ok(())
    }

    fn publish_fragment(&mut self, claim: &SlotReservation, total: Option<usize>, last: bool, tag: u64) {
        let kind = match (total, last) {
            (Some(total), _) => {
                self.ring.write_total(claim, total as u64);
                SlotKind::First
            }
            (None, false) => SlotKind::Middle,
            (None, true) => SlotKind::Last,
        };
        self.ring.describe(claim, kind, claim.len(), tag);
        self.publish(claim.after(), !last);
    }

    /// Whether all pieces of a message have room now.
    fn check_fits(&mut self, len: usize) -> Result<(), SendCoreError> {
        let pieces = len.div_ceil(self.fragment) as u64;
        if pieces > self.ring.mem().slots() || len as u64 > self.ring.mem().arena() {
            return Err(SendCoreError::TooLargeToTry);
        }
        if let Err(refusal) = self.ring.try_restart() {
            return Err(self.error_of(refusal));
        }
        let (mut at, mut left) = (self.ring.next(), len);
        while left > 0 {
            let size = left.min(self.fragment);
            match self.ring.reserve_fragment(at, size) {
                Ok(claim) => (at, left) = (claim.after(), left - size),
                Err(ReserveError::Full { .. }) => return Err(SendCoreError::Full),
                Err(refusal) => return Err(self.error_of(refusal)),
            }
        }
        Ok(())
    }

    /// Turns a refusal into a fault; a lie condemns the connection.
    #[cold]
    fn error_of(&mut self, refusal: ReserveError) -> SendCoreError {
        match refusal {
            ReserveError::Full { .. } => SendCoreError::Full,
            ReserveError::TooLarge => SendCoreError::TooLarge(self.in_place()),
            ReserveError::Exhausted => SendCoreError::Exhausted,
            ReserveError::Violated(_) => {
                let mem = self.ring.mem();
                mem.set_close_reason(CloseReason::Violated as u64);
                self.ring.close();
                crate::ring::closed(self.ring.mem(), Word::ConsumerClosed)
                    .unwrap_or(ConnectionError::ProtocolViolated)
                    .into()
            }
        }
    }

    /// Claims, waiting for space between tries.
    #[inline(always)]
    fn reserve_or_wait(
        &mut self,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<SlotReservation, ReserveError>,
    ) -> Result<SlotReservation, SendCoreError> {
        match claim(&mut self.ring) {
            Ok(claim) => Ok(claim),
            Err(refusal) => self.reserve_slow(refusal, wait, claim),
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_slow(
        &mut self,
        mut refusal: ReserveError,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<SlotReservation, ReserveError>,
    ) -> Result<SlotReservation, SendCoreError> {
        let mut tries = 0_u32;
        loop {
            match (refusal, wait) {
                (ReserveError::Full { .. }, Wait::Never) => return Err(SendCoreError::Full),
                (ReserveError::Full { needs }, Wait::Deadline(deadline)) => {
                    self.wait_for_room(needs, deadline, tries)?
                }
                (refusal, _) => return Err(self.error_of(refusal)),
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
    fn wait_for_room(&mut self, needs: u64, deadline: Deadline, tries: u32) -> Result<(), SendCoreError> {
        let Self { ring, policy, .. } = self;
        if !back_off_or_expire(ring.mem(), deadline, tries) {
            return Err(SendCoreError::Full);
        }
        policy.stalled(tries);
        if !policy.spin(deadline, || ring.is_released(needs)) {
            ring.announce_wait(needs);
            let found = park(&WaitSlot::producer(ring.mem()), deadline, tries, || {
                ring.is_released(needs).then_some(())
            });
            policy.slept();
            if found.is_none() {
                return Err(SendCoreError::Full);
            }
        }
        self.check().map_err(SendCoreError::Ended)
    }
}
