//! The sending half of a direction, over any memory: blocking, fragmentation, abandoned messages.
//!
//! A message of at most [`whole`](SenderCore::whole) bytes takes one ticket. So does a longer one that is written
//! [in place](SenderCore::in_place). Any other longer message is split into fragments. Each fragment is published, and
//! the receiver woken, before the sender waits for the next one's room, so the message flows through a ring of any
//! size. A call that fails between two fragments has abandoned the message: the slot of the next message says so.
//!
//! # Invariants
//!
//! 1. A sender waits for a ticket that a well-formed receiver releases, and after whose release the receiver checks for
//!    a waiting sender (`ring`, invariant 5).
//! 2. A wait ends with its deadline and with the connection, whatever the peer's head says.
//!
//! # Proof
//!
//! The models of full rings and of wrong heads; the tests of blocked calls and of hostile rings.

use std::io::IoSlice;

use super::io_slice_reader::IoSliceReader;
use super::wait_policy::WaitPolicy;
use super::{Wait, back_off_or_expire};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::SlotKind;
use crate::memory::{ARENA_ALIGN, Deadline, INLINE_CAPACITY, Memory, Padding, Span, Word};
use crate::ring::{CloseReason, Cursor, Producer, ReserveError, SlotReservation, TrySend, WaitSlot, park};

/// The longest message that is copied as a whole, in bytes. For longer ones it is faster if the sender's and the
/// receiver's copies overlap. The arena limits it too, but never below what a slot holds.
const MAX_WHOLE: usize = 256 << 10;

/// The longest fragment of a message, in bytes.
const MAX_FRAGMENT: usize = 64 << 10;

/// Why a send failed; the public error enums are made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendCoreError {
    /// There is no room now, or the deadline passed.
    Full,
    /// The message never fits into the ring at once.
    TooLargeToTry,
    /// The message is longer than this limit.
    TooLarge(usize),
    /// All tickets of the direction are used.
    Exhausted,
    /// The connection has ended.
    Ended(ConnectionError),
}

/// The result of sending on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastSend {
    /// The fast path does not apply. Nothing has happened, and the slow path sends the message.
    NotSent,
    /// The message is sent.
    Sent,
    /// The message is sent. The caller then calls [`run_deferred`](SenderCore::run_deferred).
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
    /// The longest message that is sent in a slot.
    short: usize,
    whole: usize,
    in_place: usize,
    fragment: usize,
}

impl<M: Memory, P: WaitPolicy> SenderCore<M, P> {
    /// Makes the sender of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, policy: P, first: u64, max_message: usize) -> Self {
        let arena = usize::try_from(mem.arena()).unwrap_or(MAX_WHOLE);
        let in_place = arena.max(INLINE_CAPACITY).min(max_message);
        // At least four fragments fit into the arena, so the sender writes one while the receiver copies another.
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

    /// Returns the ring.
    pub fn ring(&self) -> &Producer<M> {
        &self.ring
    }

    /// Returns the ring, to write reservations.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn ring_mut(&mut self) -> &mut Producer<M> {
        &mut self.ring
    }

    /// Returns the longest message, in bytes.
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// Returns the longest message that may be written in place, in bytes.
    pub fn in_place(&self) -> usize {
        self.in_place
    }

    /// Returns the longest message that is copied as a whole, in bytes.
    pub fn whole(&self) -> usize {
        self.whole
    }

    /// Sends one message that consists of the parts one behind the other.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; nothing of the message is delivered then.
    #[inline(always)]
    pub fn send(&mut self, parts: &[IoSlice<'_>], tag: u64, wait: Wait) -> Result<usize, SendCoreError> {
        let len = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        if len > self.whole {
            return self.send_fragmented(parts, len, tag, wait).map(|()| len);
        }
        let reservation = self.reserve(len, wait)?;
        self.ring.mark_writing(&reservation);
        self.fill(&reservation, &mut IoSliceReader::new(parts))?;
        self.commit(&reservation, len, tag);
        Ok(len)
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; nothing of the message is delivered then.
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

    /// Sends one message that consists of 8 bytes and two parts.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; nothing of the message is delivered then.
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
            let attempt = self.ring.try_send_parts(&[&head, first, second], len, tag);
            match self.finish_fast_path(attempt) {
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

    /// Sends one message in a slot if the fast path applies: it is short, there is room, and there is nothing else to
    /// do.
    #[inline(always)]
    pub(super) fn try_send_inline(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.short {
            return FastSend::NotSent;
        }
        let attempt = self.ring.try_send(message, tag);
        self.finish_fast_path(attempt)
    }

    /// Sends one message in the arena if the fast path applies.
    #[inline(always)]
    pub(super) fn try_send_arena(&mut self, message: &[u8], tag: u64) -> FastSend {
        if message.len() > self.whole {
            return FastSend::NotSent;
        }
        let attempt = self.ring.try_send_arena(message, tag);
        self.finish_fast_path(attempt)
    }

    #[inline(always)]
    fn finish_fast_path(&mut self, attempt: TrySend) -> FastSend {
        match attempt {
            TrySend::Nothing => FastSend::NotSent,
            TrySend::Done if !self.policy.is_due() => FastSend::Sent,
            TrySend::Done | TrySend::Asleep => FastSend::SentWithDeferred,
        }
    }

    /// Does what the fast path has deferred: wakes the receiver, and publishes the CPU that this side runs on.
    #[cold]
    pub fn run_deferred(&mut self) {
        self.ring.wake();
        self.policy.publish_cpu();
    }

    /// Reserves a ticket and `len` bytes for a whole message. Waits for room as `wait` says.
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

    /// Writes a short message behind what is staged already, if the fast path applies. Returns the cursor behind it.
    #[inline(always)]
    pub fn try_stage_inline(&mut self, from: Cursor, message: &[u8], tag: u64) -> Option<Cursor> {
        if message.len() > self.short || self.check().is_err() {
            return None;
        }
        self.ring.try_stage(from, message, tag)
    }

    /// Reserves room for `len` bytes behind what is staged already. Never blocks.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`]; `Full` also if there would be room once what is staged is flushed.
    pub fn stage(&mut self, from: Cursor, len: usize) -> Result<SlotReservation, SendCoreError> {
        match self.ring.reserve(from, len) {
            Ok(reservation) => Ok(reservation),
            Err(ReserveError::Full { .. }) => Err(SendCoreError::Full),
            Err(error) => Err(self.error_of(error)),
        }
    }

    /// Commits the first `len` bytes of a written reservation as a whole message.
    #[inline(always)]
    pub fn commit(&mut self, reservation: &SlotReservation, len: usize, tag: u64) {
        let reservation = self.ring.truncate(reservation, len);
        self.describe_whole(&reservation, len, tag);
        self.publish(reservation.after(), false);
    }

    /// Commits every described reservation up to `to`, and wakes the receiver if it sleeps.
    #[inline(always)]
    pub fn publish(&mut self, to: Cursor, unfinished: bool) {
        self.ring.publish(to, unfinished);
        self.policy.active();
    }

    /// Describes a written reservation as a whole message. It stays private.
    #[inline(always)]
    pub fn describe_whole(&mut self, reservation: &SlotReservation, len: usize, tag: u64) {
        let kind =
            if matches!(reservation.span(), Span::Slot(_)) { SlotKind::Inline } else { SlotKind::Whole };
        self.ring.describe(reservation, kind, len, tag);
    }

    /// Checks that the direction is open.
    ///
    /// # Errors
    ///
    /// How the direction has ended.
    #[inline(always)]
    pub fn check(&self) -> Result<(), ConnectionError> {
        match self.ring.ended() {
            None => Ok(()),
            Some(ended) => Err(ended),
        }
    }

    /// Writes as many bytes from `from` as the reservation holds.
    ///
    /// # Errors
    ///
    /// None for a reservation of this ring. If a copy fails all the same, the connection is closed as violated.
    #[inline(always)]
    pub fn fill(
        &mut self,
        reservation: &SlotReservation,
        from: &mut IoSliceReader<'_>,
    ) -> Result<(), SendCoreError> {
        let mut at = 0;
        while at < reservation.len() {
            let Some(bytes) = from.take(reservation.len() - at) else { break };
            if self.ring.write(reservation, at, bytes, Padding::Zero).is_err() {
                return Err(
                    self.error_of(ReserveError::Violated(ProtocolViolation("a place outside the arena")))
                );
            }
            at += bytes.len();
        }
        Ok(())
    }

    /// Returns the ticket whose release a message of `len` bytes needs, or `None` if there is room. A message longer
    /// than the arena needs room for its first fragment, any other message for all of its bytes.
    ///
    /// # Errors
    ///
    /// [`SendCoreError`], but never `Full`.
    pub fn ticket_to_await(&mut self, len: usize) -> Result<Option<u64>, SendCoreError> {
        self.check()?;
        let from = self.ring.next();
        let attempt = match len > self.in_place {
            true => self.ring.reserve_fragment(from, self.fragment),
            false => self.ring.reserve(from, len),
        };
        match attempt {
            Ok(_) => Ok(None),
            Err(ReserveError::Full { needs }) => Ok(Some(needs)),
            Err(error) => Err(self.error_of(error)),
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
        // If the tickets ran out in the middle, no later slot could say that the message is abandoned.
        if self.ring.remaining_tickets() < len.div_ceil(self.fragment) as u64 {
            return Err(SendCoreError::Exhausted);
        }
        if wait == Wait::Never {
            self.check_fits(len)?;
        }
        let (mut from, mut left) = (IoSliceReader::new(parts), len);
        while left > 0 {
            let size = left.min(self.fragment);
            let reservation = self.reserve_or_wait(wait, |ring| ring.reserve_fragment(ring.next(), size))?;
            self.ring.mark_writing(&reservation);
            self.fill(&reservation, &mut from)?;
            let first = left == len;
            left -= size;
            self.publish_fragment(&reservation, first.then_some(len), left == 0, tag);
            if left > 0 {
                self.check()?; // After the last fragment the message is committed, so an end is no error of this send.
            }
        }
        Ok(())
    }

    fn publish_fragment(
        &mut self,
        reservation: &SlotReservation,
        total: Option<usize>,
        last: bool,
        tag: u64,
    ) {
        let kind = match (total, last) {
            (Some(total), _) => {
                self.ring.write_total(reservation, total as u64);
                SlotKind::First
            }
            (None, false) => SlotKind::Middle,
            (None, true) => SlotKind::Last,
        };
        self.ring.describe(reservation, kind, reservation.len(), tag);
        self.publish(reservation.after(), !last);
    }

    /// Checks that all fragments of a message have room now.
    fn check_fits(&mut self, len: usize) -> Result<(), SendCoreError> {
        let fragments = len.div_ceil(self.fragment) as u64;
        if fragments > self.ring.mem().slots() || len as u64 > self.ring.mem().arena() {
            return Err(SendCoreError::TooLargeToTry);
        }
        if let Err(error) = self.ring.try_restart() {
            return Err(self.error_of(error));
        }
        let (mut at, mut left) = (self.ring.next(), len);
        while left > 0 {
            let size = left.min(self.fragment);
            match self.ring.reserve_fragment(at, size) {
                Ok(reservation) => (at, left) = (reservation.after(), left - size),
                Err(ReserveError::Full { .. }) => return Err(SendCoreError::Full),
                Err(error) => return Err(self.error_of(error)),
            }
        }
        Ok(())
    }

    /// Converts the ring's error. A protocol violation of the peer closes the connection.
    #[cold]
    fn error_of(&mut self, error: ReserveError) -> SendCoreError {
        match error {
            ReserveError::Full { .. } => SendCoreError::Full,
            ReserveError::TooLarge => SendCoreError::TooLarge(self.in_place()),
            ReserveError::Exhausted => SendCoreError::Exhausted,
            ReserveError::Violated(_) => {
                let mem = self.ring.mem();
                mem.set_close_reason(CloseReason::Violated as u64);
                self.ring.close();
                crate::ring::closed(self.ring.mem(), Word::ConsumerClosed)
                    .unwrap_or(ConnectionError::ProtocolViolation)
                    .into()
            }
        }
    }

    /// Reserves, and waits for room between the attempts.
    #[inline(always)]
    fn reserve_or_wait(
        &mut self,
        wait: Wait,
        mut reserve: impl FnMut(&mut Producer<M>) -> Result<SlotReservation, ReserveError>,
    ) -> Result<SlotReservation, SendCoreError> {
        match reserve(&mut self.ring) {
            Ok(reservation) => Ok(reservation),
            Err(error) => self.reserve_slow(error, wait, reserve),
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_slow(
        &mut self,
        mut error: ReserveError,
        wait: Wait,
        mut reserve: impl FnMut(&mut Producer<M>) -> Result<SlotReservation, ReserveError>,
    ) -> Result<SlotReservation, SendCoreError> {
        let mut tries = 0_u32;
        loop {
            match (error, wait) {
                (ReserveError::Full { .. }, Wait::Never) => return Err(SendCoreError::Full),
                (ReserveError::Full { needs }, Wait::Deadline(deadline)) => {
                    self.wait_for_room(needs, deadline, tries)?
                }
                (error, _) => return Err(self.error_of(error)),
            }
            match reserve(&mut self.ring) {
                Ok(reservation) => return Ok(reservation),
                Err(again) => error = again,
            }
            tries = tries.saturating_add(1);
        }
    }

    /// Waits for the release of a ticket.
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
