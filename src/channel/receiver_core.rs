//! The receiving half of a direction, over any memory: blocking, reassembly, borrowed messages.
//!
//! Nearly every message is there, whole, and nothing is in the way: it takes the fast path (`recv_at_once`, `recv_placed`,
//! `fetch`, `lend`), which runs in [`State::Idle`] alone. All else takes [`next`](Inbound::next).
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
//! Everything that receives: the models, the exhaustive tests, the fuzz bodies `frame` and `ring_hostile`; `fetch` has the models
//! of calls, and the fuzz bodies `calls` and `ring_hostile`.

use super::pace::Pace;
use super::partial::Partial;
use super::{Wait, may_wait_on};
use crate::error::{Ended, Violation};
use crate::layout::Kind;
use crate::mem::{INLINE, Memory, OutOfBounds, OutOfMemory, Until, Word, try_resize};
use crate::ring::{Arrival, Bed, Consumer, Fate, Took, Wanted, ended, sleep};

/// Why a receive failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvFault {
    /// No whole message is there, or the deadline passed.
    Empty,
    /// The message has so many bytes; it was kept.
    BufferTooSmall(usize),
    /// There is no memory for the message, which has so many bytes; it was kept.
    OutOfMemory(usize),
    /// The connection has ended.
    Ended(Ended),
}

impl From<Ended> for RecvFault {
    fn from(ended: Ended) -> Self {
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

impl From<&Incoming> for Received {
    #[inline(always)]
    fn from(message: &Incoming) -> Self {
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
    /// [`RecvFault`].
    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault>;
}

impl Buffer for [u8] {
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.get_mut(..len)
    }

    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault> {
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

    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault> {
        from.recv_into(self, wait)
    }
}

/// A whole message that is there.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// It stands in the ring.
    Placed(Arrival),
    /// It was reassembled in private memory: length and tag.
    Assembled(usize, u64),
    /// It was short, was copied into private memory, and has left the ring: length and tag.
    Taken(usize, u64),
}

impl Incoming {
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
pub struct Inbound<M, P> {
    ring: Consumer<M>,
    pace: P,
    max_message: usize,
    partial: Partial,
    state: State,
    /// The longest message that may stand in a slot.
    short: usize,
    /// The last that was [taken](Incoming::Taken).
    taken: [u8; INLINE],
}

/// What the receiver holds between two calls.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing: no message, no fragment. The fast path may run.
    Idle,
    /// Fragments, or a message that was reassembled from them; or a scan has not come to its end.
    Scanning,
    /// A whole message, which stays in the ring until it is released.
    Found(Arrival),
    /// The same, borrowed by a guard.
    Borrowed(Arrival),
    /// A reassembled message, borrowed by a guard.
    BorrowedReassembled,
    /// The end: what the first call reported that found it, and all later ones report.
    Ended(Ended),
}

/// What a look at the ring found.
#[derive(Debug)]
enum Lap {
    /// A whole message.
    Whole(Incoming),
    /// Nothing that is ready.
    Dry,
    /// A whole lap of pieces, and maybe more behind.
    Busy,
}

impl<M: Memory, P: Pace> Inbound<M, P> {
    /// The receiver of a fresh ring.
    pub fn new(mem: M, pace: P, first: u64, max_message: usize) -> Self {
        Self {
            ring: Consumer::new(mem, first),
            pace,
            max_message,
            partial: Partial::default(),
            state: State::Idle,
            short: INLINE.min(max_message),
            taken: [0; INLINE],
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

    /// The next whole message, which stays until it is [given back](Self::give_back).
    ///
    /// # Errors
    ///
    /// [`RecvFault`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn next(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        match self.state {
            State::Idle => self.state = State::Scanning,
            State::Scanning | State::Found(_) => {}
            State::Borrowed(_) | State::BorrowedReassembled => {
                self.give_back_lent()?;
                self.state = State::Scanning;
            }
            State::Ended(ended) => return Err(RecvFault::Ended(ended)),
        }
        let mut tries = 0_u32;
        loop {
            // The end is read before the stamps: what was committed before it is then seen.
            let (ended, ticket) = (self.ring.ended(), self.ring.ticket());
            if let Some(end @ (Ended::Closed | Ended::ProtocolViolated)) = ended {
                return Err(self.end(end));
            }
            match (self.lap()?, ended, wait) {
                (Lap::Whole(message), _, _) => return Ok(message),
                // A lap is all that can have been committed before the end.
                (Lap::Dry | Lap::Busy, Some(end), _) => return Err(self.end(end)),
                (_, _, Wait::Never) => return Err(self.nothing()),
                (lap, _, Wait::Until(until)) => {
                    // Who sends pieces does not play with us.
                    tries = if self.ring.ticket() == ticket { tries } else { tries.min(1) };
                    self.linger(&lap, until, tries)?;
                }
            }
            tries = tries.saturating_add(1);
        }
    }

    /// Copies the next message into `buffer`.
    ///
    /// # Errors
    ///
    /// [`RecvFault`].
    #[inline(always)]
    pub fn recv(&mut self, buffer: &mut [u8], wait: Wait) -> Result<Received, RecvFault> {
        if let Some(message) = self.take(buffer) {
            return Ok(message);
        }
        let message = self.next(wait)?;
        let Some(into) = buffer.get_mut(..message.len()) else {
            return Err(RecvFault::BufferTooSmall(message.len()));
        };
        self.copy(&message, 0, into)?;
        self.give_back(&message)?;
        Ok(Received::from(&message))
    }

    /// Replaces what is in `buffer` by the next message. A message that comes in pieces is
    /// reassembled in `buffer`'s own memory, without a further copy; no fault leaves any of it there.
    ///
    /// # Errors
    ///
    /// [`RecvFault`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn recv_into(&mut self, buffer: &mut Vec<u8>, wait: Wait) -> Result<Received, RecvFault> {
        if let Some(message) = self.take(buffer) {
            return Ok(message);
        }
        // Pieces that come during this call go where they are wanted; those of an earlier one stay.
        let traded = self.partial.trade(buffer);
        let message = self.next(wait);
        if let Ok(message @ Incoming::Assembled(..)) = message {
            self.partial.swap_into(buffer);
            return Ok(Received::from(&message));
        }
        if traded && !self.partial.trade(buffer) {
            buffer.clear(); // Its memory stays with the pieces.
        }
        if matches!(message, Err(RecvFault::Ended(_))) {
            buffer.clear(); // It may hold pieces of what will never be whole.
        }
        let message = message?;
        if try_resize(buffer, message.len(), message.len()).is_err() {
            buffer.clear();
            return Err(RecvFault::OutOfMemory(message.len()));
        }
        let taken = self.copy(&message, 0, buffer).and_then(|()| self.give_back(&message));
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
    pub fn give_back(&mut self, message: &Incoming) -> Result<(), RecvFault> {
        match message {
            Incoming::Taken(..) => return Ok(()),
            Incoming::Assembled(..) => self.partial.discard(),
            Incoming::Placed(arrival) => {
                let still = self.ring.verify(arrival);
                self.release(arrival);
                still.map_err(|violation| self.condemn(violation))?;
            }
        }
        self.state = State::Idle;
        Ok(())
    }

    /// Whether a call to receive would end at once. Takes the pieces that are there, which alone are
    /// no message.
    pub fn ready(&mut self) -> bool {
        !matches!(self.next(Wait::Never), Err(RecvFault::Empty))
    }

    /// Whether there is something to look at: a message, a piece, or the end.
    #[inline]
    pub fn stirred(&self) -> bool {
        self.at_hand().is_some() || self.ring.stirred()
    }

    /// Waits until there is something to look at, or `also` says so, or what is wanted of an outgoing
    /// ring is released; a wait for either never spins. False if the deadline passed first.
    ///
    /// `tries` waits of the same call came to nothing before: after many of them it naps.
    pub fn idle(
        &mut self,
        outgoing: Option<(&M, Wanted)>,
        until: Until,
        tries: u32,
        also: impl Fn() -> bool,
    ) -> bool {
        if self.at_hand().is_some() {
            return true;
        }
        let Self { ring, pace, .. } = self;
        if !may_wait_on(ring.mem(), until, tries) {
            return false;
        }
        let either = || outgoing.is_some_and(|(mem, wanted)| wanted.released(mem));
        let look = || ring.stirred() || also() || either();
        if outgoing.is_none() && pace.pass(until, look) {
            return true;
        }
        let bed = match outgoing {
            None => Bed::consumer(ring.mem()),
            Some((mem, wanted)) => {
                pace.stalled(tries);
                wanted.ask(mem);
                Bed::either(ring.mem(), mem)
            }
        };
        let found = sleep(&bed, until, tries, || look().then_some(()));
        pace.slept();
        found.is_some()
    }

    /// Looks a few times, without the clock, if the answer is expected at once; whether there is something.
    #[inline]
    pub fn glance(&mut self) -> bool {
        (0..self.pace.glances()).any(|_| self.ring.stirred())
    }

    /// The peer broke a rule of the layer above: the connection is over for good.
    #[cold]
    pub fn violated(&mut self, violation: Violation) -> Ended {
        match self.condemn(violation) {
            RecvFault::Ended(ended) => ended,
            _ => Ended::ProtocolViolated,
        }
    }

    /// Gives back what was lent: the guard's end, or the next call if the guard was forgotten.
    ///
    /// # Errors
    ///
    /// As [`give_back`](Self::give_back).
    pub fn give_back_lent(&mut self) -> Result<(), RecvFault> {
        let unchanged = match &self.state {
            State::Borrowed(arrival) => {
                let unchanged = self.ring.verify(arrival);
                self.ring.release(arrival);
                self.pace.active();
                unchanged
            }
            State::BorrowedReassembled => {
                self.partial.discard();
                Ok(())
            }
            State::Idle | State::Scanning | State::Found(_) | State::Ended(_) => return Ok(()),
        };
        unchanged.map_err(|violation| self.condemn(violation))?;
        self.state = State::Idle;
        Ok(())
    }

    #[inline(always)]
    fn copy(&mut self, message: &Incoming, at: usize, into: &mut [u8]) -> Result<(), RecvFault> {
        self.read_at(message, at, into).map_err(|_| self.condemn(Violation("a payload outside the arena")))
    }

    /// Takes what is ready, at most one lap of the ring: a whole message, or pieces of one.
    ///
    /// Pieces that stand in the ring together have room in the arena together; a liar's may overlap, and would keep
    /// us copying a whole arena for each slot.
    #[inline(always)]
    fn lap(&mut self) -> Result<Lap, RecvFault> {
        if let Some(message) = self.at_hand() {
            return Ok(Lap::Whole(message));
        }
        let mut room = self.ring.mem().arena();
        for _ in 0..self.ring.mem().slots() {
            let arrival = match self.ring.arrival() {
                Ok(None) => return Ok(Lap::Dry),
                Ok(Some(arrival)) => arrival,
                Err(violation) => return Err(self.condemn(violation)),
            };
            self.partial.judge(&arrival, self.max_message).map_err(|v| self.condemn(v))?;
            if matches!(arrival.kind, Kind::Inline | Kind::Whole) {
                self.partial.discard();
                self.state = State::Found(arrival);
                return Ok(Lap::Whole(Incoming::Placed(arrival)));
            }
            self.take_piece(&arrival)?;
            if let Some(message) = self.at_hand() {
                return Ok(Lap::Whole(message));
            }
            let Some(left) = room.checked_sub(arrival.len as u64) else { break };
            room = left;
        }
        Ok(Lap::Busy)
    }

    /// The whole message that was found already, if there is one.
    #[inline(always)]
    pub(super) fn at_hand(&self) -> Option<Incoming> {
        match self.state {
            State::Found(arrival) | State::Borrowed(arrival) => Some(Incoming::Placed(arrival)),
            State::Idle | State::Scanning | State::BorrowedReassembled | State::Ended(_) => {
                self.partial.complete().map(|(len, tag)| Incoming::Assembled(len, tag))
            }
        }
    }

    #[inline(always)]
    fn release(&mut self, arrival: &Arrival) {
        self.ring.release(arrival);
        self.pace.active();
    }

    #[inline(never)]
    fn take_piece(&mut self, arrival: &Arrival) -> Result<(), RecvFault> {
        let room = self.partial.room(arrival).map_err(RecvFault::OutOfMemory)?;
        let read = self.ring.read(arrival, 0, room).is_ok();
        let still = self.ring.verify(arrival);
        self.release(arrival);
        still.map_err(|violation| self.condemn(violation))?;
        if !read {
            return Err(self.condemn(Violation("a payload outside the arena")));
        }
        self.partial.advance(arrival);
        Ok(())
    }

    /// Passes the time until there may be more.
    #[cold]
    fn linger(&mut self, lap: &Lap, until: Until, tries: u32) -> Result<(), RecvFault> {
        let busy = matches!(lap, Lap::Busy) && may_wait_on(self.ring.mem(), until, tries);
        if busy || self.idle(None, until, tries, || false) { Ok(()) } else { Err(self.nothing()) }
    }

    /// No whole message is there, and none at hand.
    fn nothing(&mut self) -> RecvFault {
        self.state = if self.partial.is_idle() { State::Idle } else { State::Scanning };
        RecvFault::Empty
    }

    /// The connection has ended: pieces of what will never be whole are dropped.
    #[cold]
    fn end(&mut self, ended: Ended) -> RecvFault {
        self.partial.discard();
        let first = if let State::Ended(first) = self.state { first } else { ended };
        self.state = State::Ended(first);
        RecvFault::Ended(first)
    }

    /// The peer lied: the connection is over for good.
    #[cold]
    pub(super) fn condemn(&mut self, _violation: Violation) -> RecvFault {
        self.ring.mem().settle(Fate::Violated as u64);
        self.ring.close();
        let end = ended(self.ring.mem(), Word::ProducerMark).unwrap_or(Ended::ProtocolViolated);
        self.end(end)
    }

    /// Copies the next message if it is there, stands in its slot, and nothing is in the way.
    ///
    /// What is left to do then is [`after`](Self::after), if the other value says so.
    #[inline(always)]
    pub(crate) fn recv_at_once<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<(Received, bool)> {
        if !matches!(self.state, State::Idle) {
            return None;
        }
        let took = self.ring.take(self.short, |len| buffer.room(len));
        self.what_is_left(took)
    }

    /// The same for one that stands in the arena.
    #[inline(always)]
    pub(crate) fn recv_placed<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<(Received, bool)> {
        if !matches!(self.state, State::Idle) {
            return None;
        }
        let took = self.ring.take_placed(self.max_message, |len| buffer.room(len));
        self.what_is_left(took)
    }

    #[inline(always)]
    fn what_is_left(&mut self, took: Took) -> Option<(Received, bool)> {
        match took {
            Took::Message { len, tag, asleep } => Some((Received { len, tag }, asleep || self.pace.is_due())),
            Took::Nothing => None,
            Took::Torn => self.torn(),
        }
    }

    /// Copies what stands behind the first word of a short message that is there into the room that its tag, that word and
    /// its length get, if nothing is in the way; it has left the ring then. Else the room holds nothing of worth.
    #[inline(always)]
    pub fn take_framed<'b>(
        &mut self,
        room: impl FnOnce(u64, [u8; 8], usize) -> Option<&'b mut [u8]>,
    ) -> bool {
        if !matches!(self.state, State::Idle) {
            return false;
        }
        let took = self.ring.take_framed(self.short, room);
        match self.what_is_left(took) {
            Some((_, true)) => self.after(),
            Some((_, false)) => {}
            None => return false,
        }
        true
    }

    /// As [`next`](Self::next), but a short message that is there already leaves the ring at once: its bytes stay until
    /// the next call, and nobody gets it again.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline(always)]
    pub fn fetch(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        if matches!(self.state, State::Idle) {
            let Self { ring, short, taken, .. } = self;
            let took = ring.take(*short, |len| taken.get_mut(..len));
            if let Some((message, rest)) = self.what_is_left(took) {
                if rest {
                    self.after();
                }
                return Ok(Incoming::Taken(message.len, message.tag));
            }
        }
        self.next(wait)
    }

    /// Lends the next message in place: the next call gives it back, whatever happens.
    ///
    /// # Errors
    ///
    /// [`RecvFault`], but never `BufferTooSmall`.
    #[inline(always)]
    pub fn lend(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        if matches!(self.state, State::Idle) {
            if let Some(arrival) = self.ring.whole(self.short, self.max_message) {
                self.state = State::Borrowed(arrival);
                return Ok(Incoming::Placed(arrival));
            }
        }
        self.lend_in_time(wait)
    }

    #[inline(never)]
    fn lend_in_time(&mut self, wait: Wait) -> Result<Incoming, RecvFault> {
        let message = self.next(wait)?;
        self.state = match message {
            Incoming::Placed(arrival) => State::Borrowed(arrival),
            Incoming::Assembled(..) | Incoming::Taken(..) => State::BorrowedReassembled,
        };
        Ok(message)
    }

    fn take<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<Received> {
        let (message, rest) = self.recv_at_once(buffer).or_else(|| self.recv_placed(buffer))?;
        if rest {
            self.after();
        }
        Some(message)
    }

    /// Does what is left after a message: wakes the sender, says where this side is.
    #[cold]
    pub(crate) fn after(&mut self) {
        self.ring.rouse();
        self.pace.tell();
    }

    /// A message moved while it was copied: the next look finds the connection condemned.
    #[cold]
    #[inline(never)]
    fn torn<T>(&mut self) -> Option<T> {
        let _told_by_the_next_look = self.condemn(Violation("a stamp that moved under a reader"));
        None
    }

    /// Copies a range of a message that is there.
    ///
    /// # Errors
    ///
    /// Only if the range is not in the message.
    #[inline(always)]
    pub fn read_at(&self, message: &Incoming, at: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        if let Incoming::Placed(arrival) = message {
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
    pub fn read_on(&self, message: &Incoming, at: usize, buffer: &mut Vec<u8>) -> Result<(), OutOfMemory> {
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
    pub fn private(&self, message: &Incoming) -> Option<&[u8]> {
        match message {
            Incoming::Taken(len, _) => self.taken.get(..*len),
            Incoming::Assembled(..) => Some(self.partial.bytes()),
            Incoming::Placed(_) => None,
        }
    }

    /// The bytes of a reassembled message.
    pub(super) fn assembled(&mut self) -> &mut [u8] {
        self.partial.bytes_mut()
    }
}
