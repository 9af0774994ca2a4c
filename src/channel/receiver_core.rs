//! The receiving half of a direction, over any memory: blocking, reassembly, borrowed messages.
//!
//! Nearly every message is there, whole, and nothing is in the way: it takes the fast path (`try_recv_inline`,
//! `try_recv_arena`, `next_owned`, `borrow_next`), which runs in [`ReceiverState::Idle`] alone. All else takes
//! [`next`](ReceiverCore::next).
//!
//! # Invariants
//!
//! 1. A message that was borrowed in place is released by its guard, or by the next call if the guard was forgotten: no
//!    message is received twice.
//! 2. The fast path does what the slow path would do, or nothing: a message that it leaves is found by the next scan.
//! 3. The first end that a call has reported stays.
//!
//! # Proof
//!
//! Everything that receives: the models, the exhaustive tests, the fuzz bodies `frame` and `ring_hostile`; `next_owned` has the models
//! of calls, and the fuzz bodies `calls` and `ring_hostile`.

use super::reassembly::Reassembly;
use super::wait_policy::WaitPolicy;
use super::{Wait, back_off_or_expire};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::layout::SlotKind;
use crate::memory::{Deadline, INLINE_CAPACITY, Memory, OutOfBounds, OutOfMemory, Word, try_resize};
use crate::ring::{AwaitedRelease, CloseReason, Consumer, SlotContents, TryTake, WaitSlot, closed, park};

/// Why a receive failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvCoreError {
    /// No whole message is there, or the deadline passed.
    Empty,
    /// The message has so many bytes; it was kept.
    BufferTooSmall(usize),
    /// There is no memory for the message, which has so many bytes; it was kept.
    OutOfMemory(usize),
    /// The connection has ended.
    Ended(ConnectionError),
}

/// What became of a message on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FastRecv {
    /// Something was in the way: nothing has happened, and the slow path receives it.
    NotReceived,
    /// It is received.
    Received(Received),
    /// It is received, and [`run_deferred`](ReceiverCore::run_deferred) comes next.
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

/// What a message is copied into.
pub(crate) trait Buffer {
    /// Room for exactly so many bytes, if it has or gets it.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// The next message, into this.
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
        // Written as `resize` has it, which then does not look again. Without room the longer way grows the buffer.
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

/// A whole message that is there.
#[derive(Clone, Copy, Debug)]
pub enum IncomingMessage {
    /// It stands in the ring.
    Placed(SlotContents),
    /// It was reassembled in private memory: length and tag.
    Assembled(usize, u64),
    /// It was short, was copied into private memory, and has left the ring: length and tag.
    Taken(usize, u64),
}

impl IncomingMessage {
    /// Bytes of the message.
    pub fn len(&self) -> usize {
        match self {
            Self::Placed(arrival) => arrival.len,
            Self::Assembled(len, _) | Self::Taken(len, _) => *len,
        }
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its tag.
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
    /// The last that was [taken](IncomingMessage::Taken).
    taken: [u8; INLINE_CAPACITY],
}

/// What the receiver holds between two calls.
#[derive(Clone, Copy, Debug)]
enum ReceiverState {
    /// Nothing: no message, no fragment. The fast path may run.
    Idle,
    /// Fragments, or a message that was reassembled from them; or a scan has not come to its end.
    Scanning,
    /// A whole message, which stays in the ring until it is released.
    Found(SlotContents),
    /// The same, borrowed by a guard.
    Borrowed(SlotContents),
    /// A reassembled message, borrowed by a guard.
    BorrowedReassembled,
    /// The end: what the first call reported that found it, and all later ones report.
    Ended(ConnectionError),
}

/// What a look at the ring found.
#[derive(Debug)]
enum Scan {
    /// A whole message.
    Whole(IncomingMessage),
    /// Nothing that is ready.
    Dry,
    /// A whole lap of pieces, and maybe more behind.
    Busy,
}

impl<M: Memory, P: WaitPolicy> ReceiverCore<M, P> {
    /// The receiver of a fresh ring.
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

    /// The ring.
    pub fn ring(&self) -> &Consumer<M> {
        &self.ring
    }

    /// Bytes of private memory that pieces have taken.
    #[cfg(feature = "testing")]
    pub fn memory(&self) -> usize {
        self.partial.memory()
    }

    /// The next whole message, which stays until it is [given back](Self::release).
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
            // The end is read before the stamps: what was committed before it is then seen.
            let (ended, ticket) = (self.ring.ended(), self.ring.ticket());
            if let Some(end @ (ConnectionError::Closed | ConnectionError::ProtocolViolated)) = ended {
                return Err(self.end(end));
            }
            match (self.scan()?, ended, wait) {
                (Scan::Whole(message), _, _) => return Ok(message),
                // A lap is all that can have been committed before the end.
                (Scan::Dry | Scan::Busy, Some(end), _) => return Err(self.end(end)),
                (_, _, Wait::Never) => return Err(self.nothing()),
                (lap, _, Wait::Deadline(deadline)) => {
                    // Who sends pieces does not play with us.
                    tries = if self.ring.ticket() == ticket { tries } else { tries.min(1) };
                    self.wait_for_slot(&lap, deadline, tries)?;
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

    /// Replaces what is in `buffer` by the next message. A message that comes in pieces is
    /// reassembled in `buffer`'s own memory, without a further copy; no fault leaves any of it there.
    ///
    /// # Errors
    ///
    /// [`RecvCoreError`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn recv_into(&mut self, buffer: &mut Vec<u8>, wait: Wait) -> Result<Received, RecvCoreError> {
        if let Some(message) = self.take(buffer) {
            return Ok(message);
        }
        // Pieces that come during this call go where they are wanted; those of an earlier one stay.
        let traded = self.partial.exchange_buffer(buffer);
        let message = self.next(wait);
        if let Ok(message @ IncomingMessage::Assembled(..)) = message {
            self.partial.swap_into(buffer);
            return Ok(Received::from(&message));
        }
        if traded && !self.partial.exchange_buffer(buffer) {
            buffer.clear(); // Its memory stays with the pieces.
        }
        if matches!(message, Err(RecvCoreError::Ended(_))) {
            buffer.clear(); // It may hold pieces of what will never be whole.
        }
        let message = message?;
        if try_resize(buffer, message.len(), message.len()).is_err() {
            buffer.clear();
            return Err(RecvCoreError::OutOfMemory(message.len()));
        }
        let taken = self.copy(&message, 0, buffer).and_then(|()| self.release(&message));
        if taken.is_err() {
            buffer.clear(); // Torn bytes are no message.
        }
        taken.map(|()| Received::from(&message))
    }

    /// Gives a message back, having judged that it stood still while it was read.
    ///
    /// # Errors
    ///
    /// `ProtocolViolated` if it did not; the connection is condemned then.
    #[inline(always)]
    pub fn release(&mut self, message: &IncomingMessage) -> Result<(), RecvCoreError> {
        match message {
            IncomingMessage::Taken(..) => return Ok(()),
            IncomingMessage::Assembled(..) => self.partial.discard(),
            IncomingMessage::Placed(arrival) => {
                let still = self.ring.verify(arrival);
                self.release_slot(arrival);
                still.map_err(|violation| self.fail_protocol(violation))?;
            }
        }
        self.state = ReceiverState::Idle;
        Ok(())
    }

    /// Whether a call to receive would end at once. Takes the pieces that are there, which alone are
    /// no message.
    pub fn ready(&mut self) -> bool {
        !matches!(self.next(Wait::Never), Err(RecvCoreError::Empty))
    }

    /// Whether there is something to look at: a message, a piece, or the end.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.at_hand().is_some() || self.ring.is_ready()
    }

    /// Waits until there is something to look at, or `also` says so, or what is wanted of an outgoing
    /// ring is released; a wait for either never spins. False if the deadline passed first.
    ///
    /// `tries` waits of the same call came to nothing before: after many of them it naps.
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
        let either = || outgoing.is_some_and(|(mem, wanted)| wanted.is_released(mem));
        let look = || ring.is_ready() || also() || either();
        if outgoing.is_none() && policy.spin(deadline, look) {
            return true;
        }
        let wait_slot = match outgoing {
            None => WaitSlot::consumer(ring.mem()),
            Some((mem, wanted)) => {
                policy.stalled(tries);
                wanted.announce(mem);
                WaitSlot::either(ring.mem(), mem)
            }
        };
        let found = park(&wait_slot, deadline, tries, || look().then_some(()));
        policy.slept();
        found.is_some()
    }

    /// Looks a few times, without the clock, if the answer is expected at once; whether there is something.
    #[inline]
    pub fn spin_briefly(&mut self) -> bool {
        (0..self.policy.brief_spins()).any(|_| self.ring.is_ready())
    }

    /// The peer broke a rule of the layer above: the connection is over for good.
    #[cold]
    pub fn violated(&mut self, violation: ProtocolViolation) -> ConnectionError {
        match self.fail_protocol(violation) {
            RecvCoreError::Ended(ended) => ended,
            _ => ConnectionError::ProtocolViolated,
        }
    }

    /// Gives back what was lent: the guard's end, or the next call if the guard was forgotten.
    ///
    /// # Errors
    ///
    /// As [`release`](Self::release).
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

    /// Takes what is ready, at most one lap of the ring: a whole message, or pieces of one.
    ///
    /// Pieces that stand in the ring together have room in the arena together; a liar's may overlap, and would keep
    /// us copying a whole arena for each slot.
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

    /// The whole message that was found already, if there is one.
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
        let still = self.ring.verify(arrival);
        self.release_slot(arrival);
        still.map_err(|violation| self.fail_protocol(violation))?;
        if !read {
            return Err(self.fail_protocol(ProtocolViolation("a payload outside the arena")));
        }
        self.partial.advance(arrival);
        Ok(())
    }

    /// Passes the time until there may be more.
    #[cold]
    fn wait_for_slot(&mut self, lap: &Scan, deadline: Deadline, tries: u32) -> Result<(), RecvCoreError> {
        let busy = matches!(lap, Scan::Busy) && back_off_or_expire(self.ring.mem(), deadline, tries);
        if busy || self.wait_for_any(None, deadline, tries, || false) { Ok(()) } else { Err(self.nothing()) }
    }

    /// No whole message is there, and none at hand.
    fn nothing(&mut self) -> RecvCoreError {
        self.state = if self.partial.is_idle() { ReceiverState::Idle } else { ReceiverState::Scanning };
        RecvCoreError::Empty
    }

    /// The connection has ended: pieces of what will never be whole are dropped.
    #[cold]
    fn end(&mut self, ended: ConnectionError) -> RecvCoreError {
        self.partial.discard();
        let first = if let ReceiverState::Ended(first) = self.state { first } else { ended };
        self.state = ReceiverState::Ended(first);
        RecvCoreError::Ended(first)
    }

    /// The peer lied: the connection is over for good.
    #[cold]
    pub(super) fn fail_protocol(&mut self, _violation: ProtocolViolation) -> RecvCoreError {
        self.ring.mem().set_close_reason(CloseReason::Violated as u64);
        self.ring.close();
        let end = closed(self.ring.mem(), Word::ProducerClosed).unwrap_or(ConnectionError::ProtocolViolated);
        self.end(end)
    }

    /// Copies the next message if it is there, stands in its slot, and nothing is in the way.
    ///
    #[inline(always)]
    pub(super) fn try_recv_inline<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> FastRecv {
        if !matches!(self.state, ReceiverState::Idle) {
            return FastRecv::NotReceived;
        }
        let took = self.ring.take(self.short, |len| buffer.room(len));
        self.finish_fast_path(took)
    }

    /// The same for one that stands in the arena.
    #[inline(always)]
    pub(super) fn try_recv_arena<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> FastRecv {
        if !matches!(self.state, ReceiverState::Idle) {
            return FastRecv::NotReceived;
        }
        let took = self.ring.take_arena(self.max_message, |len| buffer.room(len));
        self.finish_fast_path(took)
    }

    #[inline(always)]
    fn finish_fast_path(&mut self, took: TryTake) -> FastRecv {
        match took {
            TryTake::Message { len, tag, wakes } => match wakes || self.policy.is_due() {
                true => FastRecv::ReceivedWithDeferred(Received { len, tag }),
                false => FastRecv::Received(Received { len, tag }),
            },
            TryTake::Nothing => FastRecv::NotReceived,
            TryTake::Torn => self.on_overwritten(),
        }
    }

    /// Copies what stands behind the first word of a short message that is there into the room that its tag, that word and
    /// its length get, if nothing is in the way; it has left the ring then. Else the room holds nothing of worth.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        if !matches!(self.state, ReceiverState::Idle) {
            return false;
        }
        let took = self.ring.take_framed(self.short, room);
        let received = self.finish_fast_path(took);
        self.finish_deferred(received).is_some()
    }

    /// As [`next`](Self::next), but a short message that is there already leaves the ring at once: its bytes stay until
    /// the next call, and nobody gets it again.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline(always)]
    pub fn next_owned(&mut self, wait: Wait) -> Result<IncomingMessage, RecvCoreError> {
        if matches!(self.state, ReceiverState::Idle) {
            let Self { ring, short, taken, .. } = self;
            let took = ring.take(*short, |len| taken.get_mut(..len));
            let received = self.finish_fast_path(took);
            if let Some(message) = self.finish_deferred(received) {
                return Ok(IncomingMessage::Taken(message.len, message.tag));
            }
        }
        self.next(wait)
    }

    /// Lends the next message in place: the next call gives it back, whatever happens.
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

    /// Returns the message of the fast path, behind what it has deferred.
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

    /// Does what is left after a message: wakes the sender, says where this side is.
    #[cold]
    pub(crate) fn run_deferred(&mut self) {
        self.ring.notify_producer();
        self.policy.publish_cpu();
    }

    /// A message moved while it was copied: the next look finds the connection condemned.
    #[cold]
    #[inline(never)]
    fn on_overwritten(&mut self) -> FastRecv {
        let _told_by_the_next_look =
            self.fail_protocol(ProtocolViolation("a stamp that moved under a reader"));
        FastRecv::NotReceived
    }

    /// Copies a range of a message that is there.
    ///
    /// # Errors
    ///
    /// Only if the range is not in the message.
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

    /// Replaces what is in `buffer` by what the message has from `at` on.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; the buffer is empty.
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

    /// The bytes of a message that stands in private memory.
    #[inline]
    pub fn private(&self, message: &IncomingMessage) -> Option<&[u8]> {
        match message {
            IncomingMessage::Taken(len, _) => self.taken.get(..*len),
            IncomingMessage::Assembled(..) => Some(self.partial.bytes()),
            IncomingMessage::Placed(_) => None,
        }
    }

    /// The bytes of a reassembled message.
    pub(super) fn assembled(&mut self) -> &mut [u8] {
        self.partial.bytes_mut()
    }
}
