//! The receiving half of a direction, over any memory: blocking, reassembly, borrowed messages.
//!
//! Nearly every message is ready and whole when it is asked for, with nothing else to do. It takes the fast path
//! (`try_recv_inline`, `try_recv_arena`, `next_owned`, `borrow_next`), which runs in [`ReceiverState::Idle`] alone.
//! Every other message takes [`next`](ReceiverCore::next).
//!
//! # Invariants
//!
//! 1. A message that was borrowed in place is released by its guard, or by the next call if the guard was forgotten: no
//!    message is received twice.
//! 2. The fast path does what the slow path would do, or nothing: a message that it leaves is found by the next scan.
//! 3. The first end that a call has reported is reported by all later calls.
//!
//! # Proof
//!
//! Everything that receives: the models, the exhaustive tests, the fuzz bodies `frame` and `ring_hostile`. `next_owned`
//! has the models of calls, and the fuzz bodies `calls` and `ring_hostile`.

use super::reassembly::Reassembly;
use super::wait_policy::WaitPolicy;
use super::{Wait, back_off_or_expire};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::SlotKind;
use crate::memory::{Deadline, INLINE_CAPACITY, Memory, OutOfBounds, OutOfMemory, Word, try_resize};
use crate::ring::{AwaitedRelease, CloseReason, Consumer, SlotContents, TryTake, WaitSlot, closed, park};

/// Why a receive failed; the public error enums are made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvCoreError {
    /// No whole message is ready, or the deadline passed.
    Empty,
    /// The message is longer than the buffer: its length. It was kept.
    BufferTooSmall(usize),
    /// There is no memory for the message: its length. It was kept.
    OutOfMemory(usize),
    /// The connection has ended.
    Ended(ConnectionError),
}

/// The result of receiving on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastRecv {
    /// The fast path does not apply. Nothing has happened, and the slow path receives the message.
    NotReceived,
    /// The message is received.
    Received(Received),
    /// The message is received. The caller then calls [`run_deferred`](ReceiverCore::run_deferred).
    ReceivedWithDeferred(Received),
}

impl From<ConnectionError> for RecvCoreError {
    fn from(ended: ConnectionError) -> Self {
        Self::Ended(ended)
    }
}

/// Length and tag of a message that was received.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send_tagged(b"hello", 7)?;
/// let mut buffer = [0; 64];
/// let received = b.recv(&mut buffer)?;
/// assert_eq!((&buffer[..received.len], received.tag), (&b"hello"[..], 7));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Bytes of the message.
    pub len: usize,
    /// The tag that the sender gave it; 0 if none.
    pub tag: u64,
}

impl From<&IncomingMessage> for Received {
    #[inline(always)]
    fn from(message: &IncomingMessage) -> Self {
        Self { len: message.len(), tag: message.tag() }
    }
}

/// A buffer that messages are copied into.
pub(crate) trait Buffer {
    /// Returns room for exactly `len` bytes, if the buffer has it or gets it without an allocation.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Receives the next message into this buffer.
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`].
    fn receive<M: Memory, P: WaitPolicy>(
        &mut self,
        from: &mut ReceiverCore<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvCoreError>;
}

impl Buffer for [u8] {
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.get_mut(..len)
    }

    fn receive<M: Memory, P: WaitPolicy>(
        &mut self,
        from: &mut ReceiverCore<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvCoreError> {
        from.recv(self, wait)
    }
}

impl Buffer for Vec<u8> {
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        // Written as `resize` does it, so that the compiler drops its second check. Without capacity, the slow path
        // grows the buffer.
        if len > self.len() && len - self.len() > self.capacity() - self.len() {
            return None;
        }
        self.resize(len, 0);
        Some(self)
    }

    fn receive<M: Memory, P: WaitPolicy>(
        &mut self,
        from: &mut ReceiverCore<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvCoreError> {
        from.recv_into(self, wait)
    }
}

/// A whole message that is ready.
#[derive(Clone, Copy, Debug)]
pub enum IncomingMessage {
    /// The message is in the ring.
    Placed(SlotContents),
    /// The message was reassembled in private memory: length and tag.
    Assembled(usize, u64),
    /// The message was short. It was copied into private memory and has left the ring: length and tag.
    Taken(usize, u64),
}

impl IncomingMessage {
    /// Returns the bytes of the message.
    pub fn len(&self) -> usize {
        match self {
            Self::Placed(arrival) => arrival.len,
            Self::Assembled(len, _) | Self::Taken(len, _) => *len,
        }
    }

    /// Returns whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its tag.
    pub fn tag(&self) -> u64 {
        match self {
            Self::Placed(arrival) => arrival.tag,
            Self::Assembled(_, tag) | Self::Taken(_, tag) => *tag,
        }
    }
}

/// The receiving half of a direction.
#[derive(Debug)]
pub struct ReceiverCore<M, P> {
    ring: Consumer<M>,
    policy: P,
    max_message: usize,
    partial: Reassembly,
    state: ReceiverState,
    /// The longest message that may stand in a slot.
    short: usize,
    /// The bytes of the last message that was [taken](IncomingMessage::Taken).
    taken: [u8; INLINE_CAPACITY],
}

/// What the receiver holds between two calls.
#[derive(Clone, Copy, Debug)]
enum ReceiverState {
    /// Nothing: no message and no fragment. The fast path may run.
    Idle,
    /// Fragments, or a message that was reassembled from them; or a scan that has not finished.
    Scanning,
    /// A whole message, which stays in the ring until it is released.
    Found(SlotContents),
    /// The same, borrowed by a guard.
    Borrowed(SlotContents),
    /// A reassembled message, borrowed by a guard.
    BorrowedReassembled,
    /// The end that the first call reported. All later calls report it too.
    Ended(ConnectionError),
}

/// The result of a scan of the ring.
#[derive(Debug)]
enum Scan {
    /// A whole message.
    Whole(IncomingMessage),
    /// No slot is ready.
    Dry,
    /// A whole cycle of fragments. More may be ready behind them.
    Busy,
}

impl<M: Memory, P: WaitPolicy> ReceiverCore<M, P> {
    /// Makes the receiver of a fresh ring whose first ticket is `first`.
    pub fn new(mem: M, policy: P, first: u64, max_message: usize) -> Self {
        Self {
            ring: Consumer::new(mem, first),
            policy,
            max_message,
            partial: Reassembly::default(),
            state: ReceiverState::Idle,
            short: INLINE_CAPACITY.min(max_message),
            taken: [0; INLINE_CAPACITY],
        }
    }

    /// Returns the ring.
    pub fn ring(&self) -> &Consumer<M> {
        &self.ring
    }

    /// Returns the bytes of private memory that fragments have taken.
    #[cfg(feature = "testing")]
    pub fn memory(&self) -> usize {
        self.partial.memory()
    }

    /// Returns the next whole message, which stays until it is [released](Self::release).
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn next(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        match self.state {
            ReceiverState::Idle => self.state = ReceiverState::Scanning,
            ReceiverState::Scanning | ReceiverState::Found(_) => {}
            ReceiverState::Borrowed(_) | ReceiverState::BorrowedReassembled => {
                self.release_borrowed()?;
                self.state = ReceiverState::Scanning;
            }
            ReceiverState::Ended(ended) => return Err(RecvCoreError::Ended(ended)),
        }
        let mut tries = 0_u32;
        loop {
            // The end is read before the stamps, so everything that was committed before the end is seen.
            let (ended, ticket) = (self.ring.ended(), self.ring.ticket());
            if let Some(end @ (ConnectionError::Closed | ConnectionError::ProtocolViolation)) = ended {
                return Err(self.end(end));
            }
            match (self.scan()?, ended, wait) {
                (Scan::Whole(message), _, _) => return Ok(message),
                // A cycle of slots is all that can have been committed before the end.
                (Scan::Dry | Scan::Busy, Some(end), _) => return Err(self.end(end)),
                (_, _, Wait::Never) => return Err(self.nothing()),
                (scan, _, Wait::Deadline(deadline)) => {
                    // Fragments have arrived, so the waits were not spurious.
                    tries = if self.ring.ticket() == ticket { tries } else { tries.min(1) };
                    self.wait_for_slot(&scan, deadline, tries)?;
                }
            }
            tries = tries.saturating_add(1);
        }
    }

    /// Copies the next message into `buffer`.
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`].
    #[inline(always)]
    pub fn recv(&mut self, buffer: &mut [u8], wait: Wait) -> Result<Received, RecvCoreError> {
        if let Some(message) = self.take(buffer) {
            return Ok(message);
        }
        let message = self.next(wait)?;
        let Some(into) = buffer.get_mut(..message.len()) else {
            return Err(RecvCoreError::BufferTooSmall(message.len()));
        };
        self.copy(&message, 0, into)?;
        self.release(&message)?;
        Ok(Received::from(&message))
    }

    /// Replaces the contents of `buffer` by the next message. Fragments are reassembled in `buffer`'s own memory,
    /// without a further copy. No error leaves any bytes of a message there.
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn recv_into(&mut self, buffer: &mut Vec<u8>, wait: Wait) -> Result<Received, RecvCoreError> {
        if let Some(message) = self.take(buffer) {
            return Ok(message);
        }
        // Fragments that arrive during this call go into the caller's buffer. Those of an earlier call stay where they
        // are.
        let traded = self.partial.exchange_buffer(buffer);
        let message = self.next(wait);
        if let Ok(message @ IncomingMessage::Assembled(..)) = message {
            self.partial.swap_into(buffer);
            return Ok(Received::from(&message));
        }
        if traded && !self.partial.exchange_buffer(buffer) {
            buffer.clear(); // The fragments keep the caller's memory; `buffer` now has the receiver's earlier one.
        }
        if matches!(message, Err(RecvCoreError::Ended(_))) {
            buffer.clear(); // It may hold fragments of a message that will never be whole.
        }
        let message = message?;
        if try_resize(buffer, message.len(), message.len()).is_err() {
            buffer.clear();
            return Err(RecvCoreError::OutOfMemory(message.len()));
        }
        let taken = self.copy(&message, 0, buffer).and_then(|()| self.release(&message));
        if taken.is_err() {
            buffer.clear(); // Bytes that were overwritten meanwhile are no message.
        }
        taken.map(|()| Received::from(&message))
    }

    /// Releases a message, after verifying that the peer has not modified it while it was read.
    ///
    /// # Errors
    ///
    /// `ProtocolViolation` if the peer has modified it; the connection is closed then.
    #[inline(always)]
    pub fn release(&mut self, message: &IncomingMessage) -> Result<(), RecvCoreError> {
        match message {
            IncomingMessage::Taken(..) => return Ok(()),
            IncomingMessage::Assembled(..) => self.partial.discard(),
            IncomingMessage::Placed(arrival) => {
                let unchanged = self.ring.verify(arrival);
                self.release_slot(arrival);
                unchanged.map_err(|violation| self.fail_protocol(violation))?;
            }
        }
        self.state = ReceiverState::Idle;
        Ok(())
    }

    /// Returns whether a receive would return at once. Takes the fragments that are ready, which alone are no message.
    pub fn ready(&mut self) -> bool {
        !matches!(self.next(Wait::Never), Err(RecvCoreError::Empty))
    }

    /// Returns whether there is something to receive: a message, a fragment, or the end.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.at_hand().is_some() || self.ring.is_ready()
    }

    /// Blocks until there is something to receive, or `also` returns true, or the awaited ticket of an outgoing ring is
    /// released. Returns `false` if the deadline passes first. A wait for either direction never spins.
    ///
    /// `tries` earlier waits of the same call returned without a result; after many of them it backs off first.
    pub fn wait_for_any(
        &mut self,
        outgoing: Option<(&M, AwaitedRelease)>,
        deadline: Deadline,
        tries: u32,
        also: impl Fn() -> bool,
    ) -> bool {
        if self.at_hand().is_some() {
            return true;
        }
        let Self { ring, policy, .. } = self;
        if !back_off_or_expire(ring.mem(), deadline, tries) {
            return false;
        }
        let released = || outgoing.is_some_and(|(mem, awaited)| awaited.is_released(mem));
        let look = || ring.is_ready() || also() || released();
        if outgoing.is_none() && policy.spin(deadline, look) {
            return true;
        }
        let wait_slot = match outgoing {
            None => WaitSlot::consumer(ring.mem()),
            Some((mem, awaited)) => {
                policy.stalled(tries);
                awaited.announce(mem);
                WaitSlot::either(ring.mem(), mem)
            }
        };
        let found = park(&wait_slot, deadline, tries, || look().then_some(()));
        policy.slept();
        found.is_some()
    }

    /// Checks the ring a few times, without reading the clock, if the wait policy expects a message at once. Returns
    /// whether there is something to receive.
    #[inline]
    pub fn spin_briefly(&mut self) -> bool {
        (0..self.policy.brief_spins()).any(|_| self.ring.is_ready())
    }

    /// Closes the connection because the peer broke a rule of the layer above, and returns how it has ended.
    #[cold]
    pub fn violated(&mut self, violation: ProtocolViolation) -> ConnectionError {
        match self.fail_protocol(violation) {
            RecvCoreError::Ended(ended) => ended,
            _ => ConnectionError::ProtocolViolation,
        }
    }

    /// Releases a borrowed message. The guard calls it when it is dropped, or the next call does if the guard was
    /// forgotten.
    ///
    /// # Errors
    ///
    /// `ProtocolViolation` if the peer has modified the message meanwhile; the connection is closed then.
    pub fn release_borrowed(&mut self) -> Result<(), RecvCoreError> {
        let unchanged = match &self.state {
            ReceiverState::Borrowed(arrival) => {
                let unchanged = self.ring.verify(arrival);
                self.ring.release(arrival);
                self.policy.active();
                unchanged
            }
            ReceiverState::BorrowedReassembled => {
                self.partial.discard();
                Ok(())
            }
            ReceiverState::Idle
            | ReceiverState::Scanning
            | ReceiverState::Found(_)
            | ReceiverState::Ended(_) => return Ok(()),
        };
        unchanged.map_err(|violation| self.fail_protocol(violation))?;
        self.state = ReceiverState::Idle;
        Ok(())
    }

    #[inline(always)]
    fn copy(&mut self, message: &IncomingMessage, at: usize, into: &mut [u8]) -> Result<(), RecvCoreError> {
        self.read_at(message, at, into)
            .map_err(|_| self.fail_protocol(ProtocolViolation("a payload outside the arena")))
    }

    /// Takes what is ready, at most one cycle of the ring: a whole message, or fragments of one.
    ///
    /// The bytes are limited to one arena as well. Fragments that are in the ring together fit into the arena together,
    /// but those of a hostile peer may overlap, and would make us copy a whole arena for each slot.
    #[inline(always)]
    fn scan(&mut self) -> Result<Scan, RecvCoreError> {
        if let Some(message) = self.at_hand() {
            return Ok(Scan::Whole(message));
        }
        let mut room = self.ring.mem().arena();
        for _ in 0..self.ring.mem().slots() {
            let arrival = match self.ring.next_slot() {
                Ok(None) => return Ok(Scan::Dry),
                Ok(Some(arrival)) => arrival,
                Err(violation) => return Err(self.fail_protocol(violation)),
            };
            self.partial.validate(&arrival, self.max_message).map_err(|v| self.fail_protocol(v))?;
            if matches!(arrival.kind, SlotKind::Inline | SlotKind::Whole) {
                self.partial.discard();
                self.state = ReceiverState::Found(arrival);
                return Ok(Scan::Whole(IncomingMessage::Placed(arrival)));
            }
            self.take_fragment(&arrival)?;
            if let Some(message) = self.at_hand() {
                return Ok(Scan::Whole(message));
            }
            let Some(left) = room.checked_sub(arrival.len as u64) else { break };
            room = left;
        }
        Ok(Scan::Busy)
    }

    /// Returns the whole message that was found already, if there is one.
    #[inline(always)]
    pub(super) fn at_hand(&self) -> Option<IncomingMessage> {
        match self.state {
            ReceiverState::Found(arrival) | ReceiverState::Borrowed(arrival) => {
                Some(IncomingMessage::Placed(arrival))
            }
            ReceiverState::Idle
            | ReceiverState::Scanning
            | ReceiverState::BorrowedReassembled
            | ReceiverState::Ended(_) => {
                self.partial.complete().map(|(len, tag)| IncomingMessage::Assembled(len, tag))
            }
        }
    }

    #[inline(always)]
    fn release_slot(&mut self, arrival: &SlotContents) {
        self.ring.release(arrival);
        self.policy.active();
    }

    #[inline(never)]
    fn take_fragment(&mut self, arrival: &SlotContents) -> Result<(), RecvCoreError> {
        let room = self.partial.room(arrival).map_err(RecvCoreError::OutOfMemory)?;
        let read = self.ring.read(arrival, 0, room).is_ok();
        let unchanged = self.ring.verify(arrival);
        self.release_slot(arrival);
        unchanged.map_err(|violation| self.fail_protocol(violation))?;
        if !read {
            return Err(self.fail_protocol(ProtocolViolation("a payload outside the arena")));
        }
        self.partial.advance(arrival);
        Ok(())
    }

    /// Waits until more may be ready.
    #[cold]
    fn wait_for_slot(&mut self, scan: &Scan, deadline: Deadline, tries: u32) -> Result<(), RecvCoreError> {
        // After a whole cycle of fragments more may be ready, so the next scan follows at once.
        let busy = matches!(scan, Scan::Busy) && back_off_or_expire(self.ring.mem(), deadline, tries);
        if busy || self.wait_for_any(None, deadline, tries, || false) { Ok(()) } else { Err(self.nothing()) }
    }

    /// Notes that no whole message is ready, and returns the error for it.
    fn nothing(&mut self) -> RecvCoreError {
        self.state = if self.partial.is_idle() { ReceiverState::Idle } else { ReceiverState::Scanning };
        RecvCoreError::Empty
    }

    /// Notes that the connection has ended, and returns the error for it. Fragments of a message that will never be
    /// whole are dropped.
    #[cold]
    fn end(&mut self, ended: ConnectionError) -> RecvCoreError {
        self.partial.discard();
        let first = if let ReceiverState::Ended(first) = self.state { first } else { ended };
        self.state = ReceiverState::Ended(first);
        RecvCoreError::Ended(first)
    }

    /// Closes the connection after a protocol violation, and returns the error for it.
    #[cold]
    pub(super) fn fail_protocol(&mut self, _violation: ProtocolViolation) -> RecvCoreError {
        self.ring.mem().set_close_reason(CloseReason::Violated as u64);
        self.ring.close();
        let end = closed(self.ring.mem(), Word::ProducerClosed).unwrap_or(ConnectionError::ProtocolViolation);
        self.end(end)
    }

    /// Copies the next message into `buffer` if the fast path applies and the message stands in its slot.
    #[inline(always)]
    pub(super) fn try_recv_inline<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> FastRecv {
        if !matches!(self.state, ReceiverState::Idle) {
            return FastRecv::NotReceived;
        }
        let attempt = self.ring.take(self.short, |len| buffer.room(len));
        self.finish_fast_path(attempt)
    }

    /// Copies the next message into `buffer` if the fast path applies and the message stands in the arena.
    #[inline(always)]
    pub(super) fn try_recv_arena<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> FastRecv {
        if !matches!(self.state, ReceiverState::Idle) {
            return FastRecv::NotReceived;
        }
        let attempt = self.ring.take_arena(self.max_message, |len| buffer.room(len));
        self.finish_fast_path(attempt)
    }

    #[inline(always)]
    fn finish_fast_path(&mut self, attempt: TryTake) -> FastRecv {
        match attempt {
            TryTake::Message { len, tag, wakes } => match wakes || self.policy.is_due() {
                true => FastRecv::ReceivedWithDeferred(Received { len, tag }),
                false => FastRecv::Received(Received { len, tag }),
            },
            TryTake::Nothing => FastRecv::NotReceived,
            TryTake::Torn => self.on_overwritten(),
        }
    }

    /// Takes the next message if the fast path applies and it is short. `room` gets its tag, its first 8 bytes and the
    /// number of bytes behind them, and returns where those are copied. Returns whether the message was taken; if not,
    /// the contents of the room are undefined.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        if !matches!(self.state, ReceiverState::Idle) {
            return false;
        }
        let attempt = self.ring.take_framed(self.short, room);
        let received = self.finish_fast_path(attempt);
        self.finish_deferred(received).is_some()
    }

    /// Returns the next whole message. A short message that is ready already leaves the ring at once: its bytes stay
    /// until the next call, and no later call returns it again. Any other message stays until it is
    /// [released](Self::release).
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn next_owned(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        if matches!(self.state, ReceiverState::Idle) {
            let Self { ring, short, taken, .. } = self;
            let attempt = ring.take(*short, |len| taken.get_mut(..len));
            let received = self.finish_fast_path(attempt);
            if let Some(message) = self.finish_deferred(received) {
                return Ok(IncomingMessage::Taken(message.len, message.tag));
            }
        }
        self.next(wait)
    }

    /// Borrows the next message in place. The next call releases it in any case.
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn borrow_next(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        if matches!(self.state, ReceiverState::Idle) {
            if let Some(arrival) = self.ring.peek_whole(self.short, self.max_message) {
                self.state = ReceiverState::Borrowed(arrival);
                return Ok(IncomingMessage::Placed(arrival));
            }
        }
        self.borrow_next_slow(wait)
    }

    #[inline(never)]
    fn borrow_next_slow(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        let message = self.next(wait)?;
        self.state = match message {
            IncomingMessage::Placed(arrival) => ReceiverState::Borrowed(arrival),
            IncomingMessage::Assembled(..) | IncomingMessage::Taken(..) => ReceiverState::BorrowedReassembled,
        };
        Ok(message)
    }

    fn take<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<Received> {
        let received = match self.try_recv_inline(buffer) {
            FastRecv::NotReceived => self.try_recv_arena(buffer),
            received => received,
        };
        self.finish_deferred(received)
    }

    /// Does what the fast path has deferred, and returns its message.
    #[inline(always)]
    fn finish_deferred(&mut self, received: FastRecv) -> Option<Received> {
        match received {
            FastRecv::Received(message) => Some(message),
            FastRecv::ReceivedWithDeferred(message) => {
                self.run_deferred();
                Some(message)
            }
            FastRecv::NotReceived => None,
        }
    }

    /// Does what the fast path has deferred: wakes the sender, and publishes the CPU that this side runs on.
    #[cold]
    pub(crate) fn run_deferred(&mut self) {
        self.ring.notify_producer();
        self.policy.publish_cpu();
    }

    /// Closes the connection because the peer overwrote a message while it was copied. The slow path reports it.
    #[cold]
    #[inline(never)]
    fn on_overwritten(&mut self) -> FastRecv {
        let _reported_by_the_slow_path =
            self.fail_protocol(ProtocolViolation("a stamp that moved under a reader"));
        FastRecv::NotReceived
    }

    /// Copies a range of a message into `into`.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if the range is not in the message.
    #[inline(always)]
    pub fn read_at(&self, message: &IncomingMessage, at: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        if let IncomingMessage::Placed(arrival) = message {
            return self.ring.read(arrival, at, into);
        }
        let end = at.checked_add(into.len()).ok_or(OutOfBounds)?;
        let bytes = self.private(message).and_then(|bytes| bytes.get(at..end)).ok_or(OutOfBounds)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    /// Replaces the contents of `buffer` by the message's bytes from `at` on.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if there is no memory for them; the buffer is empty then.
    #[inline(always)]
    pub fn read_on(
        &self,
        message: &IncomingMessage,
        at: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        let len = message.len().saturating_sub(at);
        if len > buffer.capacity() {
            buffer.clear();
            try_resize(buffer, len, len)?;
        }
        match self.private(message) {
            Some(bytes) => {
                buffer.clear();
                buffer.extend_from_slice(bytes.get(at..).unwrap_or_default());
            }
            None => {
                buffer.resize(len, 0);
                let _in_the_message = self.read_at(message, at, buffer);
            }
        }
        Ok(())
    }

    /// Returns the bytes of a message that is in private memory, or `None` if it is in the ring.
    #[inline]
    pub fn private(&self, message: &IncomingMessage) -> Option<&[u8]> {
        match message {
            IncomingMessage::Taken(len, _) => self.taken.get(..*len),
            IncomingMessage::Assembled(..) => Some(self.partial.bytes()),
            IncomingMessage::Placed(_) => None,
        }
    }

    /// Returns the bytes of a reassembled message.
    pub(super) fn assembled(&mut self) -> &mut [u8] {
        self.partial.bytes_mut()
    }
}
