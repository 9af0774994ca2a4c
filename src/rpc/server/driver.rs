//! The thread of a connection: it reads, obeys cancels, sends what was left, and sleeps when there is nothing.
//!
//! Its invariants are those of `hall.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::connection::ServerConnection;
use super::in_flight::{CallEvent, CallFailure};
use super::send_queue::SendQueue;
use crate::channel::{
    AwaitedRelease, IncomingMessage, Lock, ReceiverCore, RecvCoreError, SendCoreError, SharedFlag,
    SyncBackend, Wait, WaitPolicy,
};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::memory::{Deadline, Memory};
use crate::rpc::frame::Frame;
use crate::rpc::wire::{DEADLINE, FrameKind, HEADER_LEN, MORE, Status};

/// Frames after which the attendant looks at cancels and at what is to be sent, however many follow.
const FRAMES_PER_POLL: u32 = 32;

/// What a connection's thread does with calls.
pub trait Dispatch<M, P> {
    /// Judges a call before anything of it is kept; whether its method runs inline.
    ///
    /// # Errors
    ///
    /// The answer to a call that is not admitted.
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, CallFailure>;

    /// Hands a call on, or runs it if its method is inline; its request is whole. If it has a deadline, that counts from
    /// when its first frame arrived.
    fn dispatch(&mut self, call: CallInfo, request: Vec<u8>, arrived: Deadline);

    /// Runs an inline method, whose request is where it came; its reply, or why there is none.
    ///
    /// # Errors
    ///
    /// The answer to a call that has no reply.
    fn run_inline(
        &mut self,
        call: CallInfo,
        request: BorrowedRequest<'_, M, P>,
    ) -> Result<&mut Vec<u8>, CallFailure>;

    /// Asks the attendant to leave.
    fn is_done(&self) -> bool;
}

/// A call that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallInfo {
    /// Its id.
    pub id: u64,
    /// What is called.
    pub method: u32,
    /// How.
    pub flags: u8,
}

/// A request where it came: in the ring, or in private memory.
#[derive(Debug)]
pub struct BorrowedRequest<'a, M, P> {
    pub(super) inbound: &'a ReceiverCore<M, P>,
    pub(super) frame: &'a Frame,
}

impl<'a, M: Memory, P: WaitPolicy> BorrowedRequest<'a, M, P> {
    /// The request, if it stands in private memory.
    #[inline]
    pub(super) fn private(&self) -> Option<&'a [u8]> {
        self.inbound.private(self.frame.message())?.get(HEADER_LEN..)
    }
}

/// The connection's own thread.
pub struct ConnectionDriver<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) connection: Arc<ServerConnection<M, P, T>>,
    inbound: ReceiverCore<M, P>,
    seen_doorbell: u64,
    awaited: Option<AwaitedRelease>,
    /// What has to be released before the client can be sent a goodbye.
    goodbye_awaits: Option<AwaitedRelease>,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> ConnectionDriver<M, P, T> {
    /// Of a connection whose greetings were exchanged.
    pub fn new(connection: Arc<ServerConnection<M, P, T>>, inbound: ReceiverCore<M, P>) -> Self {
        Self { connection, inbound, seen_doorbell: 0, awaited: None, goodbye_awaits: None }
    }

    /// Serves until the connection ends, or the service is over: how it ended.
    pub fn run(&mut self, dispatch: &mut impl Dispatch<M, P>) -> ConnectionError {
        let mut tries = 0_u32;
        let ended = loop {
            if dispatch.is_done() && self.send_goodbye() {
                break ConnectionError::Closed;
            }
            match self.poll_once(dispatch) {
                Ok(true) => tries = 0,
                Ok(false) => {
                    // Once: a client whose words flicker must not keep us from resting.
                    if tries > 0 || !self.inbound.spin_briefly() {
                        self.wait(dispatch, tries);
                    }
                    tries = tries.saturating_add(1);
                }
                Err(ended) => break ended,
            }
        };
        self.connection.close(ended);
        ended
    }

    /// Takes what is there, obeys cancels, sends what is left. Whether there was anything.
    #[inline]
    pub(super) fn poll_once(&mut self, dispatch: &mut impl Dispatch<M, P>) -> Result<bool, ConnectionError> {
        let mut busy = false;
        for _ in 0..FRAMES_PER_POLL {
            match self.inbound.next_owned(Wait::Never) {
                Ok(message) => self.on_frame(&message, dispatch)?,
                Err(RecvCoreError::Ended(ended)) => return Err(ended),
                Err(RecvCoreError::OutOfMemory(_)) => {
                    return Err(self.inbound.violated(ProtocolViolation("a frame in fragments")));
                }
                Err(_) => break,
            }
            busy = true;
        }
        let doorbell = self.connection.incoming.doorbell();
        if doorbell != self.seen_doorbell {
            self.seen_doorbell = doorbell;
            self.process_cancels();
        }
        if self.connection.has_unsent.is_set() || self.awaited.is_some() {
            busy |= self.flush()?;
        }
        Ok(busy)
    }

    /// Says to the client that no call is begun any more, and nothing of those that were is left to be sent: what it has
    /// not been answered by then was never begun. False if there is no room for that now.
    fn send_goodbye(&mut self) -> bool {
        let mut queue = self.connection.queue.lock();
        let said = queue.send_goodbye();
        self.goodbye_awaits = if said { None } else { queue.awaited_release() };
        said
    }

    /// Waits for a frame, a cancel, something left behind, room for what is, or to be asked to leave: that nudge may
    /// have come when the last look was over.
    fn wait(&mut self, dispatch: &impl Dispatch<M, P>, tries: u32) {
        let Self { connection, inbound, seen_doorbell: doorbell, awaited: wanted, goodbye_awaits: goodbye } =
            self;
        let outgoing = wanted.or(*goodbye).map(|wanted| (&connection.outgoing, wanted));
        let is_over = || goodbye.is_none() && dispatch.is_done();
        let also =
            || connection.has_unsent.is_set() || connection.incoming.doorbell() != *doorbell || is_over();
        let _something = inbound.wait_for_any(outgoing, None, tries, also);
    }

    #[inline]
    fn on_frame(
        &mut self,
        message: &IncomingMessage,
        dispatch: &mut impl Dispatch<M, P>,
    ) -> Result<(), ConnectionError> {
        let frame = Frame::open(&self.inbound, message);
        let frame = frame.map_err(|violation| self.inbound.violated(violation))?;
        let (head, id) = (frame.head, frame.id);
        let begins = head.kind == FrameKind::Call;
        let whole = begins && !head.has_flag(MORE) && id != 0;
        let verdict = whole.then(|| dispatch.admit(head.word, head.flags));
        if verdict == Some(Ok(true)) {
            return self.run_inline(&frame, dispatch);
        }
        let event = self.enter_frame(&frame, dispatch, verdict)?;
        let connection = &self.connection;
        if begins && connection.is_cancel_requested(id) {
            connection.with_calls(|calls| calls.cancel(id));
            connection.has_unsent.set(true);
            return Ok(());
        }
        match event {
            CallEvent::None if begins => connection.has_unsent.set(true), // Maybe it was not admitted.
            CallEvent::None => {}
            CallEvent::Run(at) => {
                let (call, request, arrived) = connection.with_calls(|calls| {
                    let (id, method, flags) = calls.call(at);
                    (CallInfo { id, method, flags }, calls.take_request(at), calls.arrival(at))
                });
                dispatch.dispatch(call, request, arrived);
            }
            CallEvent::Failed(at) => {
                connection.has_unsent.set(true);
                T::Lock::<SendQueue<M, P>>::notify(&connection.signals[at]);
            }
            CallEvent::Call(at) => T::Lock::<SendQueue<M, P>>::notify(&connection.signals[at]),
            CallEvent::Push => {
                T::Lock::<SendQueue<M, P>>::notify(&connection.signals[connection.signals.len() - 1])
            }
        }
        Ok(())
    }

    /// Enters a frame in the table, and gives its message back. A call is judged once.
    fn enter_frame(
        &mut self,
        frame: &Frame,
        dispatch: &mut impl Dispatch<M, P>,
        verdict: Option<Result<bool, CallFailure>>,
    ) -> Result<CallEvent, ConnectionError> {
        let Self { connection, inbound, .. } = self;
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(inbound, 0, into);
        };
        let admit = |method, flags| verdict.unwrap_or_else(|| dispatch.admit(method, flags)).map(drop);
        let arrived = frame.head.has_flag(DEADLINE).then(Instant::now); // No frame but a call has it.
        let event = connection
            .with_calls(|calls| calls.on_frame_at(arrived, frame.id, frame.head, frame.len(), read, admit));
        self.release(frame.message())?;
        event.map_err(|violation| self.inbound.violated(violation))
    }

    /// Runs an inline method while its request is where it came. It is entered when it has run: nobody else
    /// looks at its place meanwhile, and a liar's call is one that it might have made elsewhere.
    #[inline]
    fn run_inline(
        &mut self,
        frame: &Frame,
        dispatch: &mut impl Dispatch<M, P>,
    ) -> Result<(), ConnectionError> {
        let Self { connection, inbound, .. } = self;
        let (id, head) = (frame.id, frame.head);
        let answered = if connection.is_cancel_requested(id) {
            connection.answer_inline(frame, Err((Status::Cancelled, 0, String::new())))
        } else {
            let call = CallInfo { id, method: head.word, flags: head.flags };
            connection.answer_inline(frame, dispatch.run_inline(call, BorrowedRequest { inbound, frame }))
        };
        answered.map_err(|violation| self.inbound.violated(violation))?;
        self.release(frame.message())
    }

    #[inline]
    fn release(&mut self, message: &IncomingMessage) -> Result<(), ConnectionError> {
        match self.inbound.release(message) {
            Ok(()) => Ok(()),
            Err(RecvCoreError::Ended(ended)) => Err(ended),
            Err(_) => Err(self.inbound.violated(ProtocolViolation("a message that cannot be given back"))),
        }
    }

    /// The bell was rung: ends the calls whose word says so.
    fn process_cancels(&mut self) {
        let connection = &self.connection;
        for at in 0..connection.signals.len() - 1 {
            let id = connection.incoming.oob(u32::try_from(at).unwrap_or(0));
            if id != 0 && connection.with_calls(|calls| calls.cancel(id)).is_some() {
                connection.has_unsent.set(true);
                let at = connection.signal_of(id);
                T::Lock::<SendQueue<M, P>>::notify(&connection.signals[at]);
            }
        }
    }

    /// Sends what is left; whether anything was sent.
    fn flush(&mut self) -> Result<bool, ConnectionError> {
        self.connection.has_unsent.set(false);
        let mut queue = self.connection.queue.lock();
        let before = queue.out.ring().next();
        let flushed = queue.flush(FRAMES_PER_POLL);
        self.awaited = match flushed {
            Err(SendCoreError::Full) => {
                let wanted = queue.awaited_release();
                if wanted.is_none() {
                    self.connection.has_unsent.set(true); // There is room by now.
                }
                wanted
            }
            Err(SendCoreError::Ended(_)) => None, // What was received comes first: the next round finds the end.
            Err(_) => return Err(ConnectionError::Disconnected),
            Ok(()) => None,
        };
        if flushed.is_ok() && queue.has_unsent() {
            self.connection.has_unsent.set(true);
        }
        Ok(queue.out.ring().next() != before)
    }
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for ConnectionDriver<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionDriver").finish_non_exhaustive()
    }
}

#[cfg(feature = "testing")]
impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> ConnectionDriver<M, P, T> {
    /// Does what can be done without waiting. Whether there was anything.
    ///
    /// # Errors
    ///
    /// How the connection ended; everybody was told.
    pub fn step(&mut self, dispatch: &mut impl Dispatch<M, P>) -> Result<bool, ConnectionError> {
        self.poll_once(dispatch).inspect_err(|&ended| self.connection.close(ended))
    }
}

#[cfg(feature = "testing")]
impl<M: Memory, P: WaitPolicy> BorrowedRequest<'_, M, P> {
    /// The request.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.frame.len()];
        self.frame.read(self.inbound, 0, &mut bytes).expect("in the message");
        bytes
    }
}
