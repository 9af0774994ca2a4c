//! The thread of a connection: it reads, obeys cancels, sends what was left, and sleeps when there is nothing.
//!
//! Its invariants are those of `hall.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::hall::Hall;
use super::post::Post;
use super::table::{Event, Failure};
use crate::channel::{
    AwaitedRelease, IncomingMessage, Lock, ReceiverCore, RecvCoreError, SendCoreError, SharedFlag,
    SyncBackend, Wait, WaitPolicy,
};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::mem::{Deadline, Memory};
use crate::rpc::frame::Frame;
use crate::rpc::wire::{DEADLINE, HEAD, Kind, MORE, Status};

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

    /// Hands a call on, or runs it if its method is inline; its request is whole. If it has a deadline, that counts from
    /// when its first frame arrived.
    fn run(&mut self, call: Started, request: Vec<u8>, arrived: Deadline);

    /// Runs an inline method, whose request is where it came; its reply, or why there is none.
    ///
    /// # Errors
    ///
    /// The answer to a call that has no reply.
    fn run_in_place(&mut self, call: Started, request: Given<'_, M, P>) -> Result<&mut Vec<u8>, Failure>;

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

/// A request where it came: in the ring, or in private memory.
#[derive(Debug)]
pub struct Given<'a, M, P> {
    pub(super) inbound: &'a ReceiverCore<M, P>,
    pub(super) frame: &'a Frame,
}

impl<'a, M: Memory, P: WaitPolicy> Given<'a, M, P> {
    /// The request, if it stands in private memory.
    #[inline]
    pub(super) fn private(&self) -> Option<&'a [u8]> {
        self.inbound.private(self.frame.message())?.get(HEAD..)
    }
}

/// The connection's own thread.
pub struct Attendant<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) hall: Arc<Hall<M, P, T>>,
    inbound: ReceiverCore<M, P>,
    bell: u64,
    wanted: Option<AwaitedRelease>,
    /// What has to be released before the client can be sent a goodbye.
    goodbye: Option<AwaitedRelease>,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Attendant<M, P, T> {
    /// Of a connection whose greetings were exchanged.
    pub fn new(hall: Arc<Hall<M, P, T>>, inbound: ReceiverCore<M, P>) -> Self {
        Self { hall, inbound, bell: 0, wanted: None, goodbye: None }
    }

    /// Serves until the connection ends, or the service is over: how it ended.
    pub fn attend(&mut self, service: &mut impl Service<M, P>) -> ConnectionError {
        let mut tries = 0_u32;
        let ended = loop {
            if service.is_over() && self.say_goodbye() {
                break ConnectionError::Closed;
            }
            match self.round(service) {
                Ok(true) => tries = 0,
                Ok(false) => {
                    // Once: a client whose words flicker must not keep us from resting.
                    if tries > 0 || !self.inbound.spin_briefly() {
                        self.rest(service, tries);
                    }
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
    pub(super) fn round(&mut self, service: &mut impl Service<M, P>) -> Result<bool, ConnectionError> {
        let mut busy = false;
        for _ in 0..ROUND {
            match self.inbound.next_owned(Wait::Never) {
                Ok(message) => self.frame(&message, service)?,
                Err(RecvCoreError::Ended(ended)) => return Err(ended),
                Err(RecvCoreError::OutOfMemory(_)) => {
                    return Err(self.inbound.violated(ProtocolViolation("a frame in fragments")));
                }
                Err(_) => break,
            }
            busy = true;
        }
        let bell = self.hall.ear.doorbell();
        if bell != self.bell {
            self.bell = bell;
            self.obey();
        }
        if self.hall.left.is_set() || self.wanted.is_some() {
            busy |= self.flush()?;
        }
        Ok(busy)
    }

    /// Says to the client that no call is begun any more, and nothing of those that were is left to be sent: what it has
    /// not been answered by then was never begun. False if there is no room for that now.
    fn say_goodbye(&mut self) -> bool {
        let mut post = self.hall.post.lock();
        let said = post.say_goodbye();
        self.goodbye = if said { None } else { post.wanted() };
        said
    }

    /// Waits for a frame, a cancel, something left behind, room for what is, or to be asked to leave: that nudge may
    /// have come when the last look was over.
    fn rest(&mut self, service: &impl Service<M, P>, tries: u32) {
        let Self { hall, inbound, bell, wanted, goodbye } = self;
        let outgoing = wanted.or(*goodbye).map(|wanted| (&hall.outgoing, wanted));
        let is_over = || goodbye.is_none() && service.is_over();
        let also = || hall.left.is_set() || hall.ear.doorbell() != *bell || is_over();
        let _something = inbound.wait_for_any(outgoing, None, tries, also);
    }

    #[inline]
    fn frame(
        &mut self,
        message: &IncomingMessage,
        service: &mut impl Service<M, P>,
    ) -> Result<(), ConnectionError> {
        let frame = Frame::open(&self.inbound, message);
        let frame = frame.map_err(|violation| self.inbound.violated(violation))?;
        let (head, id) = (frame.head, frame.id);
        let begins = head.kind == Kind::Call;
        let whole = begins && !head.has(MORE) && id != 0;
        let verdict = whole.then(|| service.admit(head.word, head.flags));
        if verdict == Some(Ok(true)) {
            return self.in_place(&frame, service);
        }
        let event = self.take(&frame, service, verdict)?;
        let hall = &self.hall;
        if begins && hall.is_called_off(id) {
            hall.with(|table| table.cancel(id));
            hall.left.set(true);
            return Ok(());
        }
        match event {
            Event::None if begins => hall.left.set(true), // Maybe it was not admitted.
            Event::None => {}
            Event::Run(at) => {
                let (started, request, arrived) = hall.with(|table| {
                    let (id, method, flags) = table.call(at);
                    (Started { id, method, flags }, table.request(at), table.arrival(at))
                });
                service.run(started, request, arrived);
            }
            Event::Failed(at) => {
                hall.left.set(true);
                T::Lock::<Post<M, P>>::notify(&hall.signals[at]);
            }
            Event::Call(at) => T::Lock::<Post<M, P>>::notify(&hall.signals[at]),
            Event::Push => T::Lock::<Post<M, P>>::notify(&hall.signals[hall.signals.len() - 1]),
        }
        Ok(())
    }

    /// Enters a frame in the table, and gives its message back. A call is judged once.
    fn take(
        &mut self,
        frame: &Frame,
        service: &mut impl Service<M, P>,
        verdict: Option<Result<bool, Failure>>,
    ) -> Result<Event, ConnectionError> {
        let Self { hall, inbound, .. } = self;
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(inbound, 0, into);
        };
        let admit = |method, flags| verdict.unwrap_or_else(|| service.admit(method, flags)).map(drop);
        let arrived = frame.head.has(DEADLINE).then(Instant::now); // No frame but a call has it.
        let event = hall.with(|table| table.take_at(arrived, frame.id, frame.head, frame.len(), read, admit));
        self.give_back(frame.message())?;
        event.map_err(|violation| self.inbound.violated(violation))
    }

    /// Runs an inline method while its request is where it came. It is entered when it has run: nobody else
    /// looks at its place meanwhile, and a liar's call is one that it might have made elsewhere.
    #[inline]
    fn in_place(&mut self, frame: &Frame, service: &mut impl Service<M, P>) -> Result<(), ConnectionError> {
        let Self { hall, inbound, .. } = self;
        let (id, head) = (frame.id, frame.head);
        let answered = if hall.is_called_off(id) {
            hall.answer_whole(frame, Err((Status::Cancelled, 0, String::new())))
        } else {
            let started = Started { id, method: head.word, flags: head.flags };
            hall.answer_whole(frame, service.run_in_place(started, Given { inbound, frame }))
        };
        answered.map_err(|violation| self.inbound.violated(violation))?;
        self.give_back(frame.message())
    }

    #[inline]
    fn give_back(&mut self, message: &IncomingMessage) -> Result<(), ConnectionError> {
        match self.inbound.release(message) {
            Ok(()) => Ok(()),
            Err(RecvCoreError::Ended(ended)) => Err(ended),
            Err(_) => Err(self.inbound.violated(ProtocolViolation("a message that cannot be given back"))),
        }
    }

    /// The bell was rung: ends the calls whose word says so.
    fn obey(&mut self) {
        let hall = &self.hall;
        for at in 0..hall.signals.len() - 1 {
            let id = hall.ear.oob(u32::try_from(at).unwrap_or(0));
            if id != 0 && hall.with(|table| table.cancel(id)).is_some() {
                hall.left.set(true);
                let at = hall.signal_of(id);
                T::Lock::<Post<M, P>>::notify(&hall.signals[at]);
            }
        }
    }

    /// Sends what is left; whether anything was sent.
    fn flush(&mut self) -> Result<bool, ConnectionError> {
        self.hall.left.set(false);
        let mut post = self.hall.post.lock();
        let before = post.out.ring().next();
        let flushed = post.flush(ROUND);
        self.wanted = match flushed {
            Err(SendCoreError::Full) => {
                let wanted = post.wanted();
                if wanted.is_none() {
                    self.hall.left.set(true); // There is room by now.
                }
                wanted
            }
            Err(SendCoreError::Ended(_)) => None, // What was received comes first: the next round finds the end.
            Err(_) => return Err(ConnectionError::Disconnected),
            Ok(()) => None,
        };
        if flushed.is_ok() && post.is_left() {
            self.hall.left.set(true);
        }
        Ok(post.out.ring().next() != before)
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for Attendant<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attendant").finish_non_exhaustive()
    }
}
