//! A sender for many threads: one sender behind a lock, with the same promises about time.
//!
//! The lock is a [`Lock`](super::Lock), so that a model checker can stand in for it.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::sender::stats;
use super::sender_core::SendCoreError;
use super::stats::Sent;
use super::sync::with_lock;
use super::{Closer, Sender, Stats, Wait};
use crate::error::{ConnectionError, SendError, SendTimeoutError, TrySendError};
use crate::memory::Word;
use crate::ring::closed;
use crate::sys::connection::ConnectionInner;
use crate::sys::mapping::Mapping;

/// Sends messages to the peer from many threads; made by [`Sender::into_shared`].
///
/// A message is never mixed with another, and each thread's messages keep their order. The threads
/// take turns: while one waits for room the others wait behind it, `try_send` says `Full` and a
/// deadline passes as `Timeout`. A [`Closer`] ends the one that waits for room and all behind it.
/// Dropping the last clone closes this direction.
///
/// ```
/// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let (tx, _rx) = a.split();
/// let shared = tx.into_shared();
/// std::thread::scope(|s| {
///     for _ in 0..4 {
///         s.spawn(|| shared.send(b"from a thread"));
///     }
/// });
/// drop(shared);
/// assert_eq!(b.iter().count(), 4);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// It does what a [`Sender`] does, but for reservations and batches:
///
/// ```
/// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let (tx, _rx) = a.split();
/// let shared = tx.into_shared();
/// shared.send_tagged(b"with a tag", 7)?;
/// shared.send_vectored(&[b"in ".as_slice(), b"parts"].map(std::io::IoSlice::new), 8)?;
/// assert_eq!((shared.stats().messages_sent, shared.max_message()), (2, 64 << 20));
/// shared.closer().close();
/// assert!(shared.is_disconnected());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedSender {
    sender: Arc<Mutex<Sender>>,
    sent: Arc<Sent>,
    connection: Arc<ConnectionInner>,
}

impl SharedSender {
    pub(super) fn new(sender: Sender) -> Self {
        let (sent, connection) = (Arc::<Sent>::default(), Arc::clone(sender.connection()));
        sent.set(sender.counts(), sender.peak_fill());
        Self { sender: Arc::new(Mutex::new(sender)), sent, connection }
    }

    send_family! {
        /// Sends one message of any size.
        send_plain [&self] (message: &[u8]) -> ();
        send, try_send, send_timeout, send_deadline
    }

    send_family! {
        /// Sends one message with a tag: 64 bits that travel beside the payload.
        send_one [&self] (message: &[u8], tag: u64) -> ();
        send_tagged, try_send_tagged, send_tagged_timeout, send_tagged_deadline
    }

    send_family! {
        /// Sends one message that is the parts one behind the other, with a tag.
        send_parts [&self] (parts: &[IoSlice<'_>], tag: u64) -> ();
        send_vectored, try_send_vectored, send_vectored_timeout, send_vectored_deadline
    }

    /// A handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.connection)
    }

    /// The longest message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.connection.max_message()
    }

    /// Whether the connection has ended: no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        let outgoing = || Mapping::new(Arc::clone(&self.connection), self.connection.side().outgoing());
        !self.connection.same_process() || closed(&outgoing(), Word::ConsumerClosed).is_some()
    }

    /// What all threads have sent. Never blocks, not even while one of them does.
    pub fn stats(&self) -> Stats {
        stats(self.sent.counts(), self.sent.peak_fill(), &self.connection)
    }

    fn send_plain<H: CallMode>(&self, message: &[u8], how: H) -> Result<(), H::Send> {
        self.send_one(message, 0, how)
    }

    fn send_one<H: CallMode>(&self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        self.send_parts(&[IoSlice::new(message)], tag, how)
    }

    fn send_parts<H: CallMode>(&self, parts: &[IoSlice<'_>], tag: u64, how: H) -> Result<(), H::Send> {
        let fail = |fault| Err(H::send_error((fault, 0)));
        // Asked before the lock: a fork may have left it locked for ever.
        if !self.connection.same_process() {
            return fail(SendCoreError::Ended(ConnectionError::Forked));
        }
        let send = |sender: &mut Sender| {
            let sent = sender.send_parts(parts, tag, how);
            self.sent.set(sender.counts(), sender.peak_fill());
            sent
        };
        with_lock(&*self.sender, how.wait(), send).unwrap_or_else(|| fail(SendCoreError::Full))
    }
}

static_assertions::assert_impl_all!(SharedSender: Send, Sync, Clone);
