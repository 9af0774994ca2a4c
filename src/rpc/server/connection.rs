//! One connection of a server: its own thread reads, any thread answers, nobody waits for room but that thread.
//!
//! ```text
//!   client ══ ring ══▶ Attendant (the connection's thread: always reads)
//!                          │ inline methods run here; others are handed on
//!                          ▼
//!                        Hall ── post (one lock): the calls, what is to be sent, the sending half
//!                          ▲
//!   workers, streams ──────┘ answer: what fits is sent at once, the rest is left; then a nudge
//!   client ◀══ ring ══ sent by whoever has something, or by the attendant once there is room
//! ```
//!
//! # Invariants
//!
//! 1. The attendant never waits for a worker, and no worker for the ring: what does not fit is left in the
//!    outbox, whose size the client's own windows bound.
//! 2. Whoever left something behind raises the latch before it nudges: the attendant, asleep or about to be, sees
//!    it or is woken (the fence in `parking::notify` pairs with the one in `parking::park`).
//! 3. The attendant lowers the latch before it looks at the outbox.
//! 4. Only the attendant sleeps on the flags of this side.
//! 5. A cancel is seen whether its word or its call comes first: both are looked at after the other was.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs this code: a worker that leaves an answer, a client that makes room, a
//! cancel, an end, in every order.

use std::fmt;

use super::in_flight::{CallFailure, ServedCalls, UploadItem};
use super::send_queue::{Payload, SendQueue};
use crate::channel::{IncomingSignals, Lock, SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::memory::{Deadline, Memory};
use crate::rpc::frame::Frame;
use crate::rpc::wire::{FrameHeader, FrameKind, Status, window_cost};
use crate::rpc::{CallOver, slot_index};

/// A connection, as all threads of the server share it.
pub struct ServerConnection<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) queue: T::Lock<SendQueue<M, P>>,
    pub(super) signals: Box<[T::Condvar]>,
    pub(super) has_unsent: T::Flag,
    pub(super) incoming: IncomingSignals<M>,
    pub(super) outgoing: M,
}

/// Why an answer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespondError {
    /// The caller has cancelled, or its time was over.
    Cancelled,
    /// The connection has ended.
    Ended(ConnectionError),
    /// The time that this wait had is over.
    Timeout,
    /// There is no memory to keep it until it can be sent.
    OutOfMemory,
}

/// The halves of a connection, apart.
#[derive(Debug)]
pub struct ServerConnectionParts<M, P> {
    /// Sends.
    pub outbound: SenderCore<M, P>,
    /// The outgoing direction.
    pub outgoing: M,
    /// The incoming direction.
    pub incoming: IncomingSignals<M>,
    /// The calls.
    pub calls: ServedCalls,
    /// The longest body of a frame.
    pub max_fragment: usize,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> ServerConnection<M, P, T> {
    /// A connection whose greetings were exchanged.
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

    /// Answers the client's greeting; what was pushed before goes out behind it.
    pub fn accept<R>(&self, answer: impl FnOnce(&mut SenderCore<M, P>) -> R) -> R {
        let mut queue = self.queue.lock();
        queue.accepted = true;
        answer(&mut queue.out)
    }

    /// Whether the caller has said that it waits no more, or the connection has ended.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.incoming.ended().is_some() || self.is_cancel_requested(id)
    }

    /// Whether a notification is to be served: it was not called off, and the connection goes on or the client has ended
    /// it.
    pub(super) fn is_notification_wanted(&self, id: u64) -> bool {
        let over = self.queue.lock().closed;
        let by_client = matches!(
            over.or_else(|| self.incoming.ended()),
            None | Some(ConnectionError::Disconnected | ConnectionError::PeerDied)
        );
        by_client && !self.is_cancel_requested(id)
    }

    /// Gives a call its last word. Dropped if nobody waits for it any more.
    #[inline]
    pub fn finish(&self, id: u64, head: FrameHeader, body: Payload<'_>) {
        let mut queue = self.queue.lock();
        if queue.closed.is_some() || self.is_cancel_requested(id) {
            return; // The attendant answers it.
        }
        if let Some(at) = queue.calls.begin_answer(id, true) {
            if queue.send_or_queue(at, id, head, body, true).is_err() {
                queue.calls.fail(at, (Status::OutOfMemory, 0, String::new()));
            }
            self.unlock_and_notify(queue);
        }
    }

    /// Enters a call that was whole in one frame, and answers it at once.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if it is not one that an honest client makes now.
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
                let said = queue.send_or_queue(
                    at,
                    frame.id,
                    FrameHeader::new(FrameKind::Reply, 0),
                    Payload::Owned(reply),
                    true,
                );
                debug_assert!(said.is_ok(), "a buffer of its own is kept as it is");
            }
            Err(failure) => queue.calls.fail(at, failure),
        }
        if queue.has_unsent() {
            self.has_unsent.set(true); // Its own thread is the one that sends it.
        }
        Ok(())
    }

    /// How full the way to the client was at most, as far as it was looked at.
    pub fn peak_fill(&self) -> u32 {
        self.queue.lock().out.ring().fullest()
    }

    /// Inline calls that were answered.
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
    /// [`Gone`]; nothing of the chunk was sent.
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
        let said = queue.send_or_queue(
            at,
            id,
            FrameHeader::new(FrameKind::Chunk, 0),
            Payload::Borrowed(chunk),
            false,
        );
        if said.is_err() {
            queue.calls.refund_credit(id, price);
        }
        self.unlock_and_notify(queue);
        said.map_err(|_| RespondError::OutOfMemory)
    }

    /// Sends a push, once the client's window has room for it.
    ///
    /// # Errors
    ///
    /// [`Gone`]; nothing of the push was sent. `Timeout` at once if `wait` is never.
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
        let said =
            queue.send_or_queue(at, 0, FrameHeader::new(FrameKind::Push, 0), Payload::Borrowed(bytes), false);
        if said.is_err() {
            queue.calls.refund_credit(0, price);
        }
        self.unlock_and_notify(queue);
        said.map_err(|_| RespondError::OutOfMemory)
    }

    /// The next chunk of an upload.
    ///
    /// # Errors
    ///
    /// [`Gone`].
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

    /// The calls, for what takes no time.
    pub fn with_calls<R>(&self, act: impl FnOnce(&mut ServedCalls) -> R) -> R {
        act(&mut self.queue.lock().calls)
    }

    /// How many calls may be under way.
    pub fn slots(&self) -> usize {
        self.signals.len() - 1
    }

    /// Whether no call is under way, and nothing is left to be sent.
    pub fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.calls.in_flight() == 0 && !queue.has_unsent()
    }

    /// Makes the attendant look up.
    pub fn notify_driver(&self) {
        self.has_unsent.set(true);
        self.incoming.notify_self();
    }

    /// The connection has ended: all who wait for it are told, and what was still to be sent is dropped.
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

    /// Waits until `done` says so; the lock is held then.
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

    /// Unlocks, and tells the attendant if something is left to be sent.
    fn unlock_and_notify(&self, queue: QueueGuard<'_, M, P, T>) {
        let left = queue.has_unsent();
        drop(queue);
        if left {
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
