//! One connection of a server. Its driver thread receives, any thread may answer, and only the driver waits for room.
//!
//! ```text
//!   client ══ ring ══▶ ConnectionDriver (the connection's own thread: always reads)
//!                          │ inline methods run here; other calls are dispatched
//!                          ▼
//!                        ServerConnection ── SendQueue (one lock): the calls, queued items, the sending half
//!                          ▲
//!   workers, streams ──────┘ answer: what fits is sent at once, the rest is queued and the driver is notified
//!   client ◀══ ring ══ sent by any thread that has an answer, or by the driver once there is room
//! ```
//!
//! # Invariants
//!
//! 1. The driver never waits for a worker, and no worker waits for the ring. What does not fit is queued in the
//!    outbox, whose size the client's own windows bound.
//! 2. A thread that queues something sets `has_unsent` before it notifies the driver. The driver, asleep or about to
//!    sleep, sees the flag or is woken (the fence in `parking::notify` pairs with the one in `parking::park`).
//! 3. The driver clears `has_unsent` before it looks at the outbox.
//! 4. Only the driver sleeps on the flags of this side.
//! 5. A cancel is seen whether its out-of-band word or its call arrives first: the driver looks for each of them
//!    after it has found the other.
//!
//! # Proof
//!
//! `loom-tests/src/models/server_replies.rs` and `streamed.rs` run this code: a worker that queues an answer, a client
//! that makes room, a cancel and a close, in every order.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::in_flight::{CallEvent, CallFailure, ServedCalls, UploadItem};
use super::send_queue::{Payload, SendQueue};
use crate::channel::{
    AwaitedRelease, IncomingMessage, IncomingSignals, Lock, ReceiverCore, RecvCoreError, SendCoreError,
    SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy,
};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::memory::{Deadline, Memory};
use crate::rpc::flow_control::window_cost;
use crate::rpc::wire::{DEADLINE, Frame, FrameHeader, FrameKind, HEADER_LEN, MORE, Status};
use crate::rpc::{CallOver, slot_index};

/// A connection, as all threads of the server share it.
pub struct ServerConnection<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    queue: T::Lock<SendQueue<M, P>>,
    signals: Box<[T::Condvar]>,
    has_unsent: T::Flag,
    incoming: IncomingSignals<M>,
    outgoing: M,
}

/// Why an answer, a chunk or a push was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespondError {
    /// The caller has cancelled the call, or the call is over.
    Cancelled,
    /// The connection has ended.
    Ended(ConnectionError),
    /// The deadline of this wait passed.
    Timeout,
    /// There is no memory to keep it until it can be sent.
    OutOfMemory,
}

/// The parts of a server connection.
#[derive(Debug)]
pub struct ServerConnectionParts<M, P> {
    /// The sending half.
    pub outbound: SenderCore<M, P>,
    /// The memory of the outgoing direction.
    pub outgoing: M,
    /// What any thread may read of the incoming direction.
    pub incoming: IncomingSignals<M>,
    /// The calls.
    pub calls: ServedCalls,
    /// The longest body of a frame, in bytes.
    pub max_fragment: usize,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> ServerConnection<M, P, T> {
    /// Returns a connection whose client has sent its preface. Items are queued until [`accept`](Self::accept) has
    /// answered it.
    pub fn new(parts: ServerConnectionParts<M, P>) -> Self {
        let ServerConnectionParts { outbound, outgoing, incoming, calls, max_fragment } = parts;
        let signals = calls.slots() + 1;
        Self {
            queue: Lock::new(SendQueue::new(calls, outbound, max_fragment)),
            signals: (0..signals).map(|_| T::Condvar::default()).collect(),
            has_unsent: T::Flag::default(),
            incoming,
            outgoing,
        }
    }

    /// Answers the client's preface. What was pushed before is sent behind the answer.
    pub fn accept<R>(&self, answer: impl FnOnce(&mut SenderCore<M, P>) -> R) -> R {
        let mut queue = self.queue.lock();
        answer(queue.accept())
    }

    /// Returns whether the caller has cancelled the call, or the connection has ended.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.incoming.ended().is_some() || self.is_cancel_requested(id)
    }

    /// Returns whether a notification is to be served: the client has not cancelled it, and this side has not ended
    /// the connection. The client may have closed it or died.
    pub(super) fn is_notification_wanted(&self, id: u64) -> bool {
        let over = self.queue.lock().closed();
        let by_client = matches!(
            over.or_else(|| self.incoming.ended()),
            None | Some(ConnectionError::Disconnected | ConnectionError::PeerDied)
        );
        by_client && !self.is_cancel_requested(id)
    }

    /// Sends the final item of a call. Dropped if the call is over or its cancel was requested.
    #[inline]
    pub fn finish(&self, id: u64, head: FrameHeader, body: Payload<'_>) {
        let mut queue = self.queue.lock();
        if queue.closed().is_some() || self.is_cancel_requested(id) {
            return; // The driver answers it.
        }
        if let Some(at) = queue.calls().begin_answer(id, true) {
            if queue.send_or_queue(at, id, head, body, true).is_err() {
                queue.calls().fail(at, (Status::OutOfMemory, 0, String::new()));
            }
            self.unlock_and_notify(queue);
        }
    }

    /// Enters a call that arrived whole in one frame, and answers it at once.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no well-formed client makes this call now.
    #[inline]
    pub(super) fn answer_inline(
        &self,
        frame: &Frame,
        answer: Result<&mut Vec<u8>, CallFailure>,
    ) -> Result<(), ProtocolViolation> {
        let mut queue = self.queue.lock();
        queue.count_inline();
        if let Ok(reply) = &answer {
            if queue.try_reply_inline(frame, reply) {
                return Ok(());
            }
        }
        let at = queue.calls().begin_inline(frame.id, frame.head, frame.len())?;
        match answer {
            Ok(reply) => {
                queue.calls().stop_receiving(at);
                let sent = queue.send_or_queue(
                    at,
                    frame.id,
                    FrameHeader::new(FrameKind::Reply, 0),
                    Payload::Owned(reply),
                    true,
                );
                debug_assert!(sent.is_ok(), "a buffer of its own is kept as it is");
            }
            Err(failure) => queue.calls().fail(at, failure),
        }
        if queue.has_unsent() {
            self.has_unsent.set(true); // This is the driver's own thread: it sends it.
        }
        Ok(())
    }

    /// Returns the highest fill level of the ring to the client, in thousandths, as far as it was sampled.
    pub fn peak_fill(&self) -> u32 {
        self.queue.lock().peak_fill()
    }

    /// Returns the number of inline calls that were answered.
    pub fn inline_answered(&self) -> u64 {
        self.queue.lock().inline_answered()
    }

    /// Ends a call with an error, behind the chunks that its method has written.
    pub fn fail(&self, id: u64, failure: &CallFailure) {
        let mut queue = self.queue.lock();
        if queue.closed().is_none() && queue.calls().is_running(id) {
            let at = queue.calls().slot_of(id);
            queue.calls().queue_failure(at, failure);
            drop(queue);
            self.notify_driver();
        }
    }

    /// Sends a chunk of a reply stream, once the client's window has room for it.
    ///
    /// # Errors
    ///
    /// [`RespondError`]; nothing of the chunk was sent.
    pub fn write_chunk(&self, id: u64, chunk: &[u8], deadline: Deadline) -> Result<(), RespondError> {
        let price = window_cost(chunk.len());
        let signal = self.signal_of(id);
        let mut queue = self.wait_for(signal, deadline, |queue| match self.is_cancel_requested(id) {
            true => Some(Err(RespondError::Cancelled)),
            false => match queue.calls().spend_credit(id, price) {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(CallOver) => Some(Err(RespondError::Cancelled)),
            },
        })?;
        let Some(at) = queue.calls().begin_answer(id, false) else { return Err(RespondError::Cancelled) };
        let sent = queue.send_or_queue(
            at,
            id,
            FrameHeader::new(FrameKind::Chunk, 0),
            Payload::Borrowed(chunk),
            false,
        );
        if sent.is_err() {
            queue.calls().refund_credit(id, price);
        }
        self.unlock_and_notify(queue);
        sent.map_err(|_| RespondError::OutOfMemory)
    }

    /// Sends a push, once the client's window has room for it. If `wait` is `Never`, it does not wait for that.
    ///
    /// # Errors
    ///
    /// [`RespondError`]; nothing of the push was sent. `Timeout` if there was no room in time.
    pub fn push(&self, bytes: &[u8], wait: Wait) -> Result<(), RespondError> {
        let price = window_cost(bytes.len());
        let signal = self.signals.len() - 1;
        let mut queue = match wait {
            Wait::Deadline(deadline) => self.wait_for(signal, deadline, |queue| {
                queue.calls().spend_push_credit(price).then_some(Ok(()))
            })?,
            Wait::Never => {
                let mut queue = self.queue.lock();
                if let Some(ended) = queue.closed() {
                    return Err(RespondError::Ended(ended));
                }
                if !queue.calls().spend_push_credit(price) {
                    return Err(RespondError::Timeout);
                }
                queue
            }
        };
        let at = queue.calls().push_slot();
        let sent =
            queue.send_or_queue(at, 0, FrameHeader::new(FrameKind::Push, 0), Payload::Borrowed(bytes), false);
        if sent.is_err() {
            queue.calls().refund_credit(0, price);
        }
        self.unlock_and_notify(queue);
        sent.map_err(|_| RespondError::OutOfMemory)
    }

    /// Waits for the next chunk of an upload, or its end.
    ///
    /// # Errors
    ///
    /// [`RespondError`].
    pub fn next_chunk(&self, id: u64, deadline: Deadline) -> Result<UploadItem, RespondError> {
        let signal = self.signal_of(id);
        let mut found = None;
        let mut queue = self.wait_for(signal, deadline, |queue| match self.is_cancel_requested(id) {
            true => Some(Err(RespondError::Cancelled)),
            false => match queue.calls().next_upload(id) {
                Ok(None) => None,
                Ok(upload) => {
                    found = upload;
                    Some(Ok(()))
                }
                Err(CallOver) => Some(Err(RespondError::Cancelled)),
            },
        })?;
        queue.flush_credit();
        self.unlock_and_notify(queue);
        found.ok_or(RespondError::Cancelled)
    }

    /// Runs a closure on the calls, under the lock. The closure must not wait.
    pub fn with_calls<R>(&self, act: impl FnOnce(&mut ServedCalls) -> R) -> R {
        act(self.queue.lock().calls())
    }

    /// Returns how many calls may be under way.
    pub fn slots(&self) -> usize {
        self.signals.len() - 1
    }

    /// Returns how the incoming direction has ended, if it has.
    pub(super) fn incoming_ended(&self) -> Option<ConnectionError> {
        self.incoming.ended()
    }

    /// Returns whether no call is under way and nothing is left to be sent.
    pub fn is_idle(&self) -> bool {
        self.queue.lock().is_idle()
    }

    /// Wakes the driver, or makes it look again before it sleeps.
    pub fn notify_driver(&self) {
        self.has_unsent.set(true);
        self.incoming.notify_self();
    }

    /// Records that the connection has ended, and wakes all threads that wait for it. What was still to be sent is
    /// never sent.
    pub(super) fn close(&self, ended: ConnectionError) {
        self.queue.lock().close(ended);
        self.signals.iter().for_each(T::Lock::<SendQueue<M, P>>::notify);
    }

    pub(super) fn signal_of(&self, id: u64) -> usize {
        slot_index(id, self.slots())
    }

    #[inline]
    pub(super) fn is_cancel_requested(&self, id: u64) -> bool {
        self.incoming.oob(u32::try_from(self.signal_of(id)).unwrap_or(0)) == id
    }

    /// Waits until `done` returns a result. Returns with the lock held.
    fn wait_for(
        &self,
        signal: usize,
        deadline: Deadline,
        mut done: impl FnMut(&mut SendQueue<M, P>) -> Option<Result<(), RespondError>>,
    ) -> Result<QueueGuard<'_, M, P, T>, RespondError> {
        let mut queue = self.queue.lock();
        let mut in_time = true;
        loop {
            if let Some(ended) = queue.closed() {
                return Err(RespondError::Ended(ended));
            }
            if let Some(result) = done(&mut queue) {
                return result.map(|()| queue);
            }
            if !in_time {
                return Err(RespondError::Timeout);
            }
            (queue, in_time) = self.queue.wait(queue, &self.signals[signal], deadline);
        }
    }

    /// Unlocks, and notifies the driver if something is left to be sent.
    fn unlock_and_notify(&self, queue: QueueGuard<'_, M, P, T>) {
        let has_unsent = queue.has_unsent();
        drop(queue);
        if has_unsent {
            self.notify_driver();
        }
    }
}

type QueueGuard<'a, M, P, T> =
    <<T as SyncBackend>::Lock<SendQueue<M, P>> as Lock<SendQueue<M, P>>>::Guard<'a>;

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for ServerConnection<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConnection").finish_non_exhaustive()
    }
}

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
    inbound: &'a ReceiverCore<M, P>,
    frame: &'a Frame,
}

impl<'a, M: Memory, P: WaitPolicy> BorrowedRequest<'a, M, P> {
    /// Returns the length of the request, in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.frame.len()
    }

    /// Copies the bytes from `at` on; returns nothing if the request has fewer.
    #[inline]
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> Option<()> {
        self.frame.read(self.inbound, at, into)
    }

    /// Returns the memory of the ring, and the message in it, whose first bytes are the header of the frame.
    pub(super) fn message(&self) -> (&'a M, &'a IncomingMessage) {
        (self.inbound.ring().mem(), self.frame.message())
    }

    /// Returns the request, if it is in private memory.
    #[inline]
    pub(super) fn private(&self) -> Option<&'a [u8]> {
        self.inbound.private(self.frame.message())?.get(HEADER_LEN..)
    }
}

/// The driver of a connection, which runs on the connection's own thread.
pub struct ConnectionDriver<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    connection: Arc<ServerConnection<M, P, T>>,
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
        let before = queue.position();
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
        Ok(queue.position() != before)
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
