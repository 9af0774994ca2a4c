//! The thread of a connection: it reads, obeys cancels, sends what was left, and sleeps when there is nothing.
//!
//! Its invariants are those of `hall.rs`.

use std::fmt;
use std::sync::Arc;

use super::hall::Hall;
use super::post::Post;
use super::table::{Event, Failure};
use crate::channel::{Inbound, Incoming, Latch, Monitor, Pace, RecvFault, SendFault, Threads, Wait, Wanted};
use crate::error::{Ended, Violation};
use crate::mem::Memory;
use crate::rpc::wire::{HEAD, Head, Kind, MORE};

/// Frames after which the attendant looks at cancels and at what is to be sent, however many follow.
const ROUND: u32 = 32;

/// What a connection's thread does with calls.
pub trait Service<M, P> {
    /// Judges a call before anything of it is kept; whether its method runs inline.
    ///
    /// # Errors
    ///
    /// The answer to a call that is not admitted.
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, Failure>;

    /// Hands a call on, or runs it if its method is inline; its request is whole.
    fn run(&mut self, call: Started, request: Vec<u8>);

    /// Runs an inline method, whose request stands in the ring.
    fn run_in_place(&mut self, call: Started, request: Given<'_, M, P>);

    /// Asks the attendant to leave.
    fn is_over(&self) -> bool;
}

/// A call that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its id.
    pub id: u64,
    /// What is called.
    pub method: u32,
    /// How.
    pub flags: u8,
}

/// A request where it stands.
#[derive(Debug)]
pub struct Given<'a, M, P> {
    pub(super) inbound: &'a mut Inbound<M, P>,
    pub(super) message: Incoming,
    pub(super) skip: usize,
}

/// The connection's own thread.
pub struct Attendant<M: Memory + Send, P: Pace + Send, T: Threads> {
    hall: Arc<Hall<M, P, T>>,
    inbound: Inbound<M, P>,
    bell: u64,
    wanted: Option<Wanted>,
}

impl<M: Memory + Send, P: Pace + Send, T: Threads> Attendant<M, P, T> {
    /// Of a connection whose greetings were exchanged.
    pub fn new(hall: Arc<Hall<M, P, T>>, inbound: Inbound<M, P>) -> Self {
        Self { hall, inbound, bell: 0, wanted: None }
    }

    /// Serves until the connection ends, or the service is over: how it ended.
    pub fn attend(&mut self, service: &mut impl Service<M, P>) -> Ended {
        let mut tries = 0_u32;
        let ended = loop {
            if service.is_over() {
                break Ended::Closed;
            }
            match self.round(service) {
                Ok(true) => tries = 0,
                Ok(false) => {
                    self.rest(tries);
                    tries = tries.saturating_add(1);
                }
                Err(ended) => break ended,
            }
        };
        self.hall.end(ended);
        ended
    }

    /// Takes what is there, obeys cancels, sends what is left. Whether there was anything.
    #[inline]
    fn round(&mut self, service: &mut impl Service<M, P>) -> Result<bool, Ended> {
        let mut busy = false;
        for _ in 0..ROUND {
            match self.inbound.next(Wait::Never) {
                Ok(message) => self.frame(&message, service)?,
                Err(RecvFault::Ended(ended)) => return Err(ended),
                Err(_) => break,
            }
            busy = true;
        }
        let bell = self.hall.ear.bell();
        if bell != self.bell {
            self.bell = bell;
            self.obey();
        }
        if self.hall.left.is_up() || self.wanted.is_some() {
            busy |= self.flush()?;
        }
        Ok(busy)
    }

    /// Waits for a frame, a cancel, something left behind, or room for what is.
    fn rest(&mut self, tries: u32) {
        let Self { hall, inbound, bell, wanted } = self;
        let outgoing = wanted.map(|wanted| (&hall.outgoing, wanted));
        let also = || hall.left.is_up() || hall.ear.bell() != *bell;
        let _something = inbound.idle(outgoing, None, tries, also);
    }

    #[inline]
    fn frame(&mut self, message: &Incoming, service: &mut impl Service<M, P>) -> Result<(), Ended> {
        let mut head = [0; HEAD];
        let read = self.inbound.read_at(message, 0, &mut head);
        let head = match read {
            Ok(()) => Head::decode(head),
            Err(_) => Err(Violation("a message without a head")),
        };
        let head = head.map_err(|violation| self.inbound.violated(violation))?;
        let id = message.tag();
        let whole = head.kind == Kind::Call && !head.has(MORE) && id != 0;
        if whole && service.admit(head.word, head.flags) == Ok(true) {
            return self.in_place(id, head, message, service);
        }
        let event = self.take(id, head, message, service)?;
        let hall = &self.hall;
        if head.kind == Kind::Call && hall.is_called_off(id) {
            hall.with(|table| table.cancel(id));
            hall.left.set(true);
            return Ok(());
        }
        match event {
            Event::None if head.kind == Kind::Call => hall.left.set(true), // Maybe it was not admitted.
            Event::None => {}
            Event::Run(at) => {
                let (started, request) = hall.with(|table| {
                    let (id, method, flags) = table.call(at);
                    (Started { id, method, flags }, table.request(at))
                });
                service.run(started, request);
            }
            Event::Call(at) => T::Monitor::<Post<M, P>>::notify(&hall.signals[at]),
            Event::Push => T::Monitor::<Post<M, P>>::notify(&hall.signals[hall.signals.len() - 1]),
        }
        Ok(())
    }

    /// Enters a frame in the table, and gives its message back.
    fn take(
        &mut self,
        id: u64,
        head: Head,
        message: &Incoming,
        service: &mut impl Service<M, P>,
    ) -> Result<Event, Ended> {
        let Self { hall, inbound, .. } = self;
        let read = |into: &mut [u8]| {
            let _in_the_message = inbound.read_at(message, HEAD, into);
        };
        let admit = |method, flags| service.admit(method, flags).map(drop);
        let event = hall.with(|table| table.take(id, head, message.len() - HEAD, read, admit));
        self.give_back(message)?;
        event.map_err(|violation| self.inbound.violated(violation))
    }

    /// Runs an inline method while its request stands in the ring.
    #[inline]
    fn in_place(
        &mut self,
        id: u64,
        head: Head,
        message: &Incoming,
        service: &mut impl Service<M, P>,
    ) -> Result<(), Ended> {
        let begun = self.hall.with(|table| table.begin_whole(id, head, message.len() - HEAD));
        begun.map_err(|violation| self.inbound.violated(violation))?;
        if self.hall.is_called_off(id) {
            self.hall.with(|table| table.cancel(id));
            self.hall.left.set(true);
            return self.give_back(message);
        }
        let started = Started { id, method: head.word, flags: head.flags };
        let given = Given { inbound: &mut self.inbound, message: *message, skip: HEAD };
        service.run_in_place(started, given);
        self.give_back(message)
    }

    #[inline]
    fn give_back(&mut self, message: &Incoming) -> Result<(), Ended> {
        match self.inbound.give_back(message) {
            Ok(()) => Ok(()),
            Err(RecvFault::Ended(ended)) => Err(ended),
            Err(_) => Err(self.inbound.violated(Violation("a message that cannot be given back"))),
        }
    }

    /// The bell was rung: ends the calls whose word says so.
    fn obey(&mut self) {
        let hall = &self.hall;
        for at in 0..hall.signals.len() - 1 {
            let id = hall.ear.urgent(u32::try_from(at).unwrap_or(0));
            if id != 0 && hall.with(|table| table.cancel(id)).is_some() {
                hall.left.set(true);
                let at = hall.signal_of(id);
                T::Monitor::<Post<M, P>>::notify(&hall.signals[at]);
            }
        }
    }

    /// Sends what is left; whether anything was sent.
    fn flush(&mut self) -> Result<bool, Ended> {
        self.hall.left.set(false);
        let mut post = self.hall.post.lock();
        let before = post.out.ring().next();
        let flushed = post.flush(ROUND);
        self.wanted = match flushed {
            Err(SendFault::Full) => {
                let wanted = post.wanted();
                if wanted.is_none() {
                    self.hall.left.set(true); // There is room by now.
                }
                wanted
            }
            Err(SendFault::Ended(_)) => None, // What was received comes first: the next round finds the end.
            Err(_) => return Err(Ended::Disconnected),
            Ok(()) => None,
        };
        if flushed.is_ok() && post.is_left() {
            self.hall.left.set(true);
        }
        Ok(post.out.ring().next() != before)
    }
}

impl<M: Memory + Send, P: Pace + Send, T: Threads> fmt::Debug for Attendant<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attendant").finish_non_exhaustive()
    }
}
