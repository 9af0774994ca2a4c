//! The driver of a connection: it receives, processes cancels, sends what was queued, and sleeps when there is
//! nothing to do.
//!
//! Its invariants are those of `connection.rs`.

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
use crate::rpc::wire::Frame;
use crate::rpc::wire::{DEADLINE, FrameKind, HEADER_LEN, MORE, Status};

/// The number of frames after which the driver looks at cancels and at what is to be sent, however many frames
/// follow.
const FRAMES_PER_POLL: u32 = 32;

/// How a driver hands calls over to the server.
pub trait Dispatch<M, P> {
    /// Decides whether to admit a call, before any of its bytes are kept. Returns whether its method runs inline.
    ///
    /// # Errors
    ///
    /// The answer to a call that is not admitted.
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, CallFailure>;

    /// Dispatches a call whose request is complete, or runs it if its method is inline. `arrived` is when its first
    /// frame arrived, from which its deadline counts; `None` if it has no deadline.
    fn dispatch(&mut self, call: CallInfo, request: Vec<u8>, arrived: Deadline);

    /// Runs an inline method, whose request is still where it arrived, and returns its reply.
    ///
    /// # Errors
    ///
    /// The answer to a call that has no reply.
    fn run_inline(
        &mut self,
        call: CallInfo,
        request: BorrowedRequest<'_, M, P>,
    ) -> Result<&mut Vec<u8>, CallFailure>;

    /// Returns whether the driver should stop.
    fn is_done(&self) -> bool;
}

/// A call that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallInfo {
    /// The id of the call.
    pub id: u64,
    /// The number of the method.
    pub method: u32,
    /// The flags of the Call frame.
    pub flags: u8,
}

/// A request where it arrived: in the ring, or in private memory.
#[derive(Debug)]
pub struct BorrowedRequest<'a, M, P> {
    pub(super) inbound: &'a ReceiverCore<M, P>,
    pub(super) frame: &'a Frame,
}

impl<'a, M: Memory, P: WaitPolicy> BorrowedRequest<'a, M, P> {
    /// Returns the request, if it is in private memory.
    #[inline]
    pub(super) fn private(&self) -> Option<&'a [u8]> {
        self.inbound.private(self.frame.message())?.get(HEADER_LEN..)
    }
}

/// The driver of a connection, which runs on the connection's own thread.
pub struct ConnectionDriver<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) connection: Arc<ServerConnection<M, P, T>>,
    inbound: ReceiverCore<M, P>,
    seen_doorbell: u64,
    awaited: Option<AwaitedRelease>,
    /// What the client has to release before a goodbye can be sent.
    goodbye_awaits: Option<AwaitedRelease>,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> ConnectionDriver<M, P, T> {
    /// Returns the driver of a connection whose client has sent its preface.
    pub fn new(connection: Arc<ServerConnection<M, P, T>>, inbound: ReceiverCore<M, P>) -> Self {
        Self { connection, inbound, seen_doorbell: 0, awaited: None, goodbye_awaits: None }
    }

    /// Serves until the connection ends or `dispatch` is done. Returns how it ended.
    pub fn run(&mut self, dispatch: &mut impl Dispatch<M, P>) -> ConnectionError {
        let mut tries = 0_u32;
        let ended = loop {
            if dispatch.is_done() && self.send_goodbye() {
                break ConnectionError::Closed;
            }
            match self.poll_once(dispatch) {
                Ok(true) => tries = 0,
                Ok(false) => {
                    // Only once: a hostile client that changes its words all the time must not keep this thread
                    // spinning.
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

    /// Receives what is there, processes cancels, and sends what was queued. Returns whether it did anything.
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

    /// Sends a goodbye: the server begins no call any more, and nothing is left to be sent of the calls that it
    /// began. A call that is unanswered then was never begun. Returns false if there is no room now.
    fn send_goodbye(&mut self) -> bool {
        let mut queue = self.connection.queue.lock();
        let sent = queue.send_goodbye();
        self.goodbye_awaits = if sent { None } else { queue.awaited_release() };
        sent
    }

    /// Waits for a frame, a cancel, something that was queued, room for what was queued, or `dispatch` to be done.
    /// The driver may have been notified after it last checked, so the wait checks all of these again.
    fn wait(&mut self, dispatch: &impl Dispatch<M, P>, tries: u32) {
        let Self { connection, inbound, seen_doorbell, awaited, goodbye_awaits } = self;
        let outgoing = awaited.or(*goodbye_awaits).map(|release| (&connection.outgoing, release));
        let is_over = || goodbye_awaits.is_none() && dispatch.is_done();
        let also = || {
            connection.has_unsent.is_set() || connection.incoming.doorbell() != *seen_doorbell || is_over()
        };
        let _found = inbound.wait_for_any(outgoing, None, tries, also);
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
        let admitted = whole.then(|| dispatch.admit(head.word, head.flags));
        if admitted == Some(Ok(true)) {
            return self.run_inline(&frame, dispatch);
        }
        let event = self.enter_frame(&frame, dispatch, admitted)?;
        let connection = &self.connection;
        if begins && connection.is_cancel_requested(id) {
            connection.with_calls(|calls| calls.cancel(id));
            connection.has_unsent.set(true);
            return Ok(());
        }
        match event {
            // If the call was not admitted, its error is queued.
            CallEvent::None if begins => connection.has_unsent.set(true),
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

    /// Enters a frame in the calls, and releases its message. A call is admitted once.
    fn enter_frame(
        &mut self,
        frame: &Frame,
        dispatch: &mut impl Dispatch<M, P>,
        admitted: Option<Result<bool, CallFailure>>,
    ) -> Result<CallEvent, ConnectionError> {
        let Self { connection, inbound, .. } = self;
        let read = |into: &mut [u8]| {
            let _in_the_message = frame.read(inbound, 0, into);
        };
        let admit = |method, flags| admitted.unwrap_or_else(|| dispatch.admit(method, flags)).map(drop);
        let arrived = frame.head.has_flag(DEADLINE).then(Instant::now); // Only Call frames have the flag.
        let event = connection
            .with_calls(|calls| calls.on_frame_at(arrived, frame.id, frame.head, frame.len(), read, admit));
        self.release(frame.message())?;
        event.map_err(|violation| self.inbound.violated(violation))
    }

    /// Runs an inline method while its request is still where it arrived. The call is entered after the method has
    /// run. No other thread looks at its slot meanwhile. A hostile client's call with an illegal id runs too, which
    /// is no more than the client could have got with a legal one.
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

    /// Cancels the calls that the out-of-band words name, after the doorbell has changed.
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

    /// Sends what was queued. Returns whether anything was sent.
    fn flush(&mut self) -> Result<bool, ConnectionError> {
        self.connection.has_unsent.set(false);
        let mut queue = self.connection.queue.lock();
        let before = queue.out.ring().next();
        let flushed = queue.flush(FRAMES_PER_POLL);
        self.awaited = match flushed {
            Err(SendCoreError::Full) => {
                let awaited = queue.awaited_release();
                if awaited.is_none() {
                    self.connection.has_unsent.set(true); // There is room now: flush again.
                }
                awaited
            }
            Err(SendCoreError::Ended(_)) => None, // Frames that were received come first: the next poll finds the end.
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
    /// Does what can be done without waiting. Returns whether it did anything.
    ///
    /// # Errors
    ///
    /// How the connection ended. All threads that wait for it were woken.
    pub fn step(&mut self, dispatch: &mut impl Dispatch<M, P>) -> Result<bool, ConnectionError> {
        self.poll_once(dispatch).inspect_err(|&ended| self.connection.close(ended))
    }
}

#[cfg(feature = "testing")]
impl<M: Memory, P: WaitPolicy> BorrowedRequest<'_, M, P> {
    /// Copies the request.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.frame.len()];
        self.frame.read(self.inbound, 0, &mut bytes).expect("in the message");
        bytes
    }
}
