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
//! `loom-tests/src/models/calls.rs` runs this code: a worker that queues an answer, a client that makes room, a
//! cancel and a close, in every order.

use std::fmt;

use super::in_flight::{CallFailure, ServedCalls, UploadItem};
use super::send_queue::{Payload, SendQueue};
use crate::channel::{IncomingSignals, Lock, SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::memory::{Deadline, Memory};
use crate::rpc::flow_control::window_cost;
use crate::rpc::wire::Frame;
use crate::rpc::wire::{FrameHeader, FrameKind, Status};
use crate::rpc::{CallOver, slot_index};

/// A connection, as all threads of the server share it.
pub struct ServerConnection<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) queue: T::Lock<SendQueue<M, P>>,
    pub(super) signals: Box<[T::Condvar]>,
    pub(super) has_unsent: T::Flag,
    pub(super) incoming: IncomingSignals<M>,
    pub(super) outgoing: M,
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
        queue.accepted = true;
        answer(&mut queue.out)
    }

    /// Returns whether the caller has cancelled the call, or the connection has ended.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.incoming.ended().is_some() || self.is_cancel_requested(id)
    }

    /// Returns whether a notification is to be served: the client has not cancelled it, and this side has not ended
    /// the connection. The client may have closed it or died.
    pub(super) fn is_notification_wanted(&self, id: u64) -> bool {
        let over = self.queue.lock().closed;
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
        if queue.closed.is_some() || self.is_cancel_requested(id) {
            return; // The driver answers it.
        }
        if let Some(at) = queue.calls.begin_answer(id, true) {
            if queue.send_or_queue(at, id, head, body, true).is_err() {
                queue.calls.fail(at, (Status::OutOfMemory, 0, String::new()));
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
        queue.inline_answered += 1;
        if let Ok(reply) = &answer {
            if queue.try_reply_inline(frame, reply) {
                return Ok(());
            }
        }
        let at = queue.calls.begin_inline(frame.id, frame.head, frame.len())?;
        match answer {
            Ok(reply) => {
                queue.calls.stop_receiving(at);
                let sent = queue.send_or_queue(
                    at,
                    frame.id,
                    FrameHeader::new(FrameKind::Reply, 0),
                    Payload::Owned(reply),
                    true,
                );
                debug_assert!(sent.is_ok(), "a buffer of its own is kept as it is");
            }
            Err(failure) => queue.calls.fail(at, failure),
        }
        if queue.has_unsent() {
            self.has_unsent.set(true); // This is the driver's own thread: it sends it.
        }
        Ok(())
    }

    /// Returns the highest fill level of the ring to the client, in thousandths, as far as it was sampled.
    pub fn peak_fill(&self) -> u32 {
        self.queue.lock().out.ring().peak_fill()
    }

    /// Returns the number of inline calls that were answered.
    pub fn inline_answered(&self) -> u64 {
        self.queue.lock().inline_answered
    }

    /// Ends a call with an error, behind the chunks that its method has written.
    pub fn fail(&self, id: u64, failure: &CallFailure) {
        let mut queue = self.queue.lock();
        if queue.closed.is_none() && queue.calls.is_running(id) {
            let at = queue.calls.slot_of(id);
            queue.calls.queue_failure(at, failure);
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
            false => match queue.calls.spend_credit(id, price) {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(CallOver) => Some(Err(RespondError::Cancelled)),
            },
        })?;
        let Some(at) = queue.calls.begin_answer(id, false) else { return Err(RespondError::Cancelled) };
        let sent = queue.send_or_queue(
            at,
            id,
            FrameHeader::new(FrameKind::Chunk, 0),
            Payload::Borrowed(chunk),
            false,
        );
        if sent.is_err() {
            queue.calls.refund_credit(id, price);
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
            Wait::Deadline(deadline) => self
                .wait_for(signal, deadline, |queue| queue.calls.spend_push_credit(price).then_some(Ok(())))?,
            Wait::Never => {
                let mut queue = self.queue.lock();
                if let Some(ended) = queue.closed {
                    return Err(RespondError::Ended(ended));
                }
                if !queue.calls.spend_push_credit(price) {
                    return Err(RespondError::Timeout);
                }
                queue
            }
        };
        let at = queue.calls.push_slot();
        let sent =
            queue.send_or_queue(at, 0, FrameHeader::new(FrameKind::Push, 0), Payload::Borrowed(bytes), false);
        if sent.is_err() {
            queue.calls.refund_credit(0, price);
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
            false => match queue.calls.next_upload(id) {
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
        act(&mut self.queue.lock().calls)
    }

    /// Returns how many calls may be under way.
    pub fn slots(&self) -> usize {
        self.signals.len() - 1
    }

    /// Returns whether no call is under way and nothing is left to be sent.
    pub fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.calls.in_flight() == 0 && !queue.has_unsent()
    }

    /// Wakes the driver, or makes it look again before it sleeps.
    pub fn notify_driver(&self) {
        self.has_unsent.set(true);
        self.incoming.notify_self();
    }

    /// Records that the connection has ended, and wakes all threads that wait for it. What was still to be sent is
    /// never sent.
    pub(super) fn close(&self, ended: ConnectionError) {
        self.queue.lock().closed.get_or_insert(ended);
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
            if let Some(ended) = queue.closed {
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
