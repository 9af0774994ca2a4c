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
//!    it or is woken (the fence in `park::rouse` pairs with the one in `park::sleep`).
//! 3. The attendant lowers the latch before it looks at the outbox.
//! 4. Only the attendant sleeps on the flags of this side.
//! 5. A cancel is seen whether its word or its call comes first: both are looked at after the other was.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs this code: a worker that leaves an answer, a client that makes room, a
//! cancel, an end, in every order.

use std::fmt;

use super::post::{Body, Post};
use super::table::{Failure, Table, Upload};
use crate::channel::{IncomingSignals, Lock, SenderCore, SharedFlag, SyncBackend, Wait, WaitPolicy};
use crate::error::{ConnectionError, ProtocolViolation};
use crate::mem::{Deadline, Memory};
use crate::rpc::frame::Frame;
use crate::rpc::wire::{Head, Kind, Status, cost};
use crate::rpc::{Over, place_of};

/// A connection, as all threads of the server share it.
pub struct Hall<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> {
    pub(super) post: T::Lock<Post<M, P>>,
    pub(super) signals: Box<[T::Condvar]>,
    pub(super) left: T::Flag,
    pub(super) ear: IncomingSignals<M>,
    pub(super) outgoing: M,
}

/// Why an answer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
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
pub struct Parts<M, P> {
    /// Sends.
    pub outbound: SenderCore<M, P>,
    /// The outgoing direction.
    pub outgoing: M,
    /// The incoming direction.
    pub ear: IncomingSignals<M>,
    /// The calls.
    pub table: Table,
    /// The longest body of a frame.
    pub piece: usize,
}

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Hall<M, P, T> {
    /// A connection whose greetings were exchanged.
    pub fn new(parts: Parts<M, P>) -> Self {
        let Parts { outbound, outgoing, ear, table, piece } = parts;
        let signals = table.places() + 1;
        Self {
            post: Lock::new(Post::new(table, outbound, piece)),
            signals: (0..signals).map(|_| T::Condvar::default()).collect(),
            left: T::Flag::default(),
            ear,
            outgoing,
        }
    }

    /// Answers the client's greeting; what was pushed before goes out behind it.
    pub fn open<R>(&self, answer: impl FnOnce(&mut SenderCore<M, P>) -> R) -> R {
        let mut post = self.post.lock();
        post.open = true;
        answer(&mut post.out)
    }

    /// Whether the caller has said that it waits no more, or the connection has ended.
    pub fn is_cancelled(&self, id: u64) -> bool {
        self.ear.ended().is_some() || self.is_called_off(id)
    }

    /// Whether a notification is to be served: it was not called off, and the connection goes on or the client has ended
    /// it.
    pub(super) fn is_notification_wanted(&self, id: u64) -> bool {
        let over = self.post.lock().over;
        let by_client = matches!(
            over.or_else(|| self.ear.ended()),
            None | Some(ConnectionError::Disconnected | ConnectionError::PeerDied)
        );
        by_client && !self.is_called_off(id)
    }

    /// Gives a call its last word. Dropped if nobody waits for it any more.
    #[inline]
    pub fn finish(&self, id: u64, head: Head, body: Body<'_>) {
        let mut post = self.post.lock();
        if post.over.is_some() || self.is_called_off(id) {
            return; // The attendant answers it.
        }
        if let Some(at) = post.table.answering(id, true) {
            if post.say(at, id, head, body, true).is_err() {
                post.table.fail(at, (Status::OutOfMemory, 0, String::new()));
            }
            self.leave(post);
        }
    }

    /// Enters a call that was whole in one frame, and answers it at once.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if it is not one that an honest client makes now.
    #[inline]
    pub(super) fn answer_whole(
        &self,
        frame: &Frame,
        answer: Result<&mut Vec<u8>, Failure>,
    ) -> Result<(), ProtocolViolation> {
        let mut post = self.post.lock();
        post.answered += 1;
        if let Ok(reply) = &answer {
            if post.answer_now(frame, reply) {
                return Ok(());
            }
        }
        let at = post.table.begin_whole(frame.id, frame.head, frame.len())?;
        match answer {
            Ok(reply) => {
                post.table.close(at);
                let said = post.say(at, frame.id, Head::new(Kind::Reply, 0), Body::Own(reply), true);
                debug_assert!(said.is_ok(), "a buffer of its own is kept as it is");
            }
            Err(failure) => post.table.fail(at, failure),
        }
        if post.is_left() {
            self.left.set(true); // Its own thread is the one that sends it.
        }
        Ok(())
    }

    /// How full the way to the client was at most, as far as it was looked at.
    pub fn fullest(&self) -> u32 {
        self.post.lock().out.ring().fullest()
    }

    /// Inline calls that were answered.
    pub fn answered(&self) -> u64 {
        self.post.lock().answered
    }

    /// Ends a call with an error, behind the chunks that its method has written.
    pub fn fail(&self, id: u64, failure: &Failure) {
        let mut post = self.post.lock();
        if post.over.is_none() && post.table.runs(id) {
            let at = post.table.at(id);
            post.table.conclude(at, failure);
            drop(post);
            self.nudge();
        }
    }

    /// Sends a chunk of a reply stream, once the client's window has room for it.
    ///
    /// # Errors
    ///
    /// [`Gone`]; nothing of the chunk was sent.
    pub fn write_chunk(&self, id: u64, chunk: &[u8], until: Deadline) -> Result<(), Gone> {
        let price = cost(chunk.len());
        let signal = self.signal_of(id);
        let mut post = self.wait(signal, until, |post| match self.is_called_off(id) {
            true => Some(Err(Gone::Cancelled)),
            false => match post.table.spend(id, price) {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(Over) => Some(Err(Gone::Cancelled)),
            },
        })?;
        let Some(at) = post.table.answering(id, false) else { return Err(Gone::Cancelled) };
        let said = post.say(at, id, Head::new(Kind::Chunk, 0), Body::Lent(chunk), false);
        if said.is_err() {
            post.table.refund(id, price);
        }
        self.leave(post);
        said.map_err(|_| Gone::OutOfMemory)
    }

    /// Sends a push, once the client's window has room for it.
    ///
    /// # Errors
    ///
    /// [`Gone`]; nothing of the push was sent. `Timeout` at once if `wait` is never.
    pub fn push(&self, bytes: &[u8], wait: Wait) -> Result<(), Gone> {
        let price = cost(bytes.len());
        let signal = self.signals.len() - 1;
        let mut post = match wait {
            Wait::Until(until) => {
                self.wait(signal, until, |post| post.table.spend_push(price).then_some(Ok(())))?
            }
            Wait::Never => {
                let mut post = self.post.lock();
                if let Some(ended) = post.over {
                    return Err(Gone::Ended(ended));
                }
                if !post.table.spend_push(price) {
                    return Err(Gone::Timeout);
                }
                post
            }
        };
        let at = post.table.pushing();
        let said = post.say(at, 0, Head::new(Kind::Push, 0), Body::Lent(bytes), false);
        if said.is_err() {
            post.table.refund(0, price);
        }
        self.leave(post);
        said.map_err(|_| Gone::OutOfMemory)
    }

    /// The next chunk of an upload.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn next_chunk(&self, id: u64, until: Deadline) -> Result<Upload, Gone> {
        let signal = self.signal_of(id);
        let mut found = None;
        let mut post = self.wait(signal, until, |post| match self.is_called_off(id) {
            true => Some(Err(Gone::Cancelled)),
            false => match post.table.upload(id) {
                Ok(None) => None,
                Ok(upload) => {
                    found = upload;
                    Some(Ok(()))
                }
                Err(Over) => Some(Err(Gone::Cancelled)),
            },
        })?;
        post.flush_credit();
        self.leave(post);
        found.ok_or(Gone::Cancelled)
    }

    /// The calls, for what takes no time.
    pub fn with<R>(&self, act: impl FnOnce(&mut Table) -> R) -> R {
        act(&mut self.post.lock().table)
    }

    /// How many calls may be under way.
    pub fn places(&self) -> usize {
        self.signals.len() - 1
    }

    /// Whether no call is under way, and nothing is left to be sent.
    pub fn is_quiet(&self) -> bool {
        let post = self.post.lock();
        post.table.in_flight() == 0 && !post.is_left()
    }

    /// Makes the attendant look up.
    pub fn nudge(&self) {
        self.left.set(true);
        self.ear.notify_self();
    }

    /// The connection has ended: all who wait for it are told, and what was still to be sent is dropped.
    pub(super) fn end(&self, ended: ConnectionError) {
        self.post.lock().over.get_or_insert(ended);
        self.signals.iter().for_each(T::Lock::<Post<M, P>>::notify);
    }

    pub(super) fn signal_of(&self, id: u64) -> usize {
        place_of(id, self.places())
    }

    #[inline]
    pub(super) fn is_called_off(&self, id: u64) -> bool {
        self.ear.oob(u32::try_from(self.signal_of(id)).unwrap_or(0)) == id
    }

    /// Waits until `done` says so; the lock is held then.
    fn wait(
        &self,
        signal: usize,
        until: Deadline,
        mut done: impl FnMut(&mut Post<M, P>) -> Option<Result<(), Gone>>,
    ) -> Result<PostOf<'_, M, P, T>, Gone> {
        let mut post = self.post.lock();
        let mut in_time = true;
        loop {
            if let Some(ended) = post.over {
                return Err(Gone::Ended(ended));
            }
            if let Some(result) = done(&mut post) {
                return result.map(|()| post);
            }
            if !in_time {
                return Err(Gone::Timeout);
            }
            (post, in_time) = self.post.wait(post, &self.signals[signal], until);
        }
    }

    /// Unlocks, and tells the attendant if something is left to be sent.
    fn leave(&self, post: PostOf<'_, M, P, T>) {
        let left = post.is_left();
        drop(post);
        if left {
            self.nudge();
        }
    }
}

type PostOf<'a, M, P, T> = <<T as SyncBackend>::Lock<Post<M, P>> as Lock<Post<M, P>>>::Guard<'a>;

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> fmt::Debug for Hall<M, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hall").finish_non_exhaustive()
    }
}
