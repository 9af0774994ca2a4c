//! The receiving half of a direction, over any memory: blocking, reassembly, what is lent.
//!
//! A message is *lent* from the moment a call returns it in place until it is given back; whatever the caller
//! does with the guard, the next call gives it back first, so nothing comes twice.

pub use super::incoming::{Incoming, Received, RecvFault};
use super::pace::Pace;
use super::partial::Partial;
use super::{Wait, may_wait_on};
use crate::error::{Ended, Violation};
use crate::layout::Kind;
use crate::mem::{INLINE, Memory, Until, Word, try_resize};
use crate::ring::{Arrival, Bed, Consumer, Fate, Wanted, ended, sleep};

/// The receiving half of a direction.
#[derive(Debug)]
pub struct Inbound<M, P> {
    pub(super) ring: Consumer<M>,
    pub(super) pace: P,
    pub(super) max_message: usize,
    pub(super) partial: Partial,
    /// A whole message in the ring, judged, and not yet given back.
    pub(super) at_hand: Option<Arrival>,
    /// What is at hand or complete was lent.
    pub(super) lent: bool,
    /// What the first call said that found the end: no later one says otherwise.
    over: Option<Ended>,
    /// Nothing is lent, at hand, in pieces or over.
    pub(super) plain: bool,
    /// The longest message that may stand in a slot.
    pub(super) short: usize,
    /// The last that was [taken](Incoming::Taken).
    pub(super) taken: [u8; INLINE],
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
            at_hand: None,
            lent: false,
            over: None,
            plain: true,
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
        if self.lent {
            self.give_back_lent()?;
        }
        self.plain = false;
        if let Some(over) = self.over {
            return Err(RecvFault::Ended(over));
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
        self.lent = false;
        match message {
            Incoming::Taken(..) => return Ok(()),
            Incoming::Assembled(..) => self.partial.discard(),
            Incoming::Placed(arrival) => {
                self.at_hand = None;
                let still = self.ring.verify(arrival);
                self.release(arrival);
                still.map_err(|violation| self.condemn(violation))?;
            }
        }
        self.plain = true;
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
    pub(super) fn give_back_lent(&mut self) -> Result<(), RecvFault> {
        self.lent = false;
        self.at_hand().map_or(Ok(()), |message| self.give_back(&message))
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
                self.at_hand = Some(arrival);
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
        match self.at_hand {
            Some(arrival) => Some(Incoming::Placed(arrival)),
            None => self.partial.complete().map(|(len, tag)| Incoming::Assembled(len, tag)),
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
        self.plain = self.partial.is_idle();
        RecvFault::Empty
    }

    /// The connection has ended: pieces of what will never be whole are dropped.
    #[cold]
    fn end(&mut self, ended: Ended) -> RecvFault {
        self.plain = false;
        self.partial.discard();
        (self.at_hand, self.lent) = (None, false);
        RecvFault::Ended(*self.over.get_or_insert(ended))
    }

    /// The peer lied: the connection is over for good.
    #[cold]
    pub(super) fn condemn(&mut self, _violation: Violation) -> RecvFault {
        self.ring.mem().settle(Fate::Violated as u64);
        self.ring.close();
        let end = ended(self.ring.mem(), Word::ProducerMark).unwrap_or(Ended::ProtocolViolated);
        self.end(end)
    }
}
