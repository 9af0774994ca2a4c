//! A sender for many threads: one sender behind a lock, with the same promises about deadlines.
//!
//! The lock is a [`Lock`](super::Lock), so that a model checker can replace it.

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
/// Messages of several threads are never mixed, and each thread's messages keep their order. While one thread waits for
/// room, the others wait behind it: [`try_send`](Self::try_send) returns `Full`, and a deadline that passes returns
/// `Timeout`. A [`Closer`] ends the call that waits for room and all calls behind it. Dropping the last clone closes
/// this direction.
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
/// It does what a [`Sender`] does, except reservations and batches:
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

impl Sender {
    /// Makes a sender that many threads may share.
    ///
    /// ```
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (sender, _receiver) = a.split();
    /// let sender = sender.into_shared();
    /// let other = sender.clone();
    /// std::thread::spawn(move || other.send(b"from there")).join().unwrap()?;
    /// sender.send(b"from here")?;
    /// assert_eq!(b.try_iter().count(), 2);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_shared(self) -> SharedSender {
        SharedSender::new(self)
    }
}

impl SharedSender {
    pub(super) fn new(sender: Sender) -> Self {
        let (sent, connection) = (Arc::<Sent>::default(), Arc::clone(sender.connection()));
        sent.set(sender.counts(), sender.peak_fill());
        Self { sender: Arc::new(Mutex::new(sender)), sent, connection }
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message). Blocks while the ring has no room, or
    /// another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_plain(message, Block)
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message) if that is possible at once; never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_send(&self, message: &[u8]) -> Result<(), TrySendError> {
        self.send_plain(message, NonBlocking)
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message), blocking for at most `timeout` while the
    /// ring has no room, or another thread waits for room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendTimeoutError> {
        self.send_plain(message, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message), blocking until `deadline` at most while
    /// the ring has no room, or another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendTimeoutError> {
        self.send_plain(message, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload. Blocks while the ring has no room, or
    /// another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn send_tagged(&self, message: &[u8], tag: u64) -> Result<(), SendError> {
        self.send_one(message, tag, Block)
    }

    /// Sends one message with a tag, 64 bits that travel beside the payload, if that is possible at once; never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_send_tagged(&self, message: &[u8], tag: u64) -> Result<(), TrySendError> {
        self.send_one(message, tag, NonBlocking)
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload, blocking for at most `timeout` while the
    /// ring has no room, or another thread waits for room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_tagged_timeout(
        &self,
        message: &[u8],
        tag: u64,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.send_one(message, tag, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload, blocking until `deadline` at most while
    /// the ring has no room, or another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_tagged_deadline(
        &self,
        message: &[u8],
        tag: u64,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError> {
        self.send_one(message, tag, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Sends one message that consists of the parts one behind the other, with a tag. Blocks while the ring has no
    /// room, or another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn send_vectored(&self, parts: &[IoSlice<'_>], tag: u64) -> Result<(), SendError> {
        self.send_parts(parts, tag, Block)
    }

    /// Sends one message that consists of the parts one behind the other, with a tag, if that is possible at once;
    /// never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_send_vectored(&self, parts: &[IoSlice<'_>], tag: u64) -> Result<(), TrySendError> {
        self.send_parts(parts, tag, NonBlocking)
    }

    /// Sends one message that consists of the parts one behind the other, with a tag, blocking for at most `timeout`
    /// while the ring has no room, or another thread waits for room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_vectored_timeout(
        &self,
        parts: &[IoSlice<'_>],
        tag: u64,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.send_parts(parts, tag, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message that consists of the parts one behind the other, with a tag, blocking until `deadline` at
    /// most while the ring has no room, or another thread waits for room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_vectored_deadline(
        &self,
        parts: &[IoSlice<'_>],
        tag: u64,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError> {
        self.send_parts(parts, tag, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Returns a handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.connection)
    }

    /// Returns the longest message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.connection.max_message()
    }

    /// Returns whether the connection has ended, so that no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        let outgoing = || Mapping::new(Arc::clone(&self.connection), self.connection.side().outgoing());
        !self.connection.same_process() || closed(&outgoing(), Word::ConsumerClosed).is_some()
    }

    /// Returns the counters of what all threads have sent. The wait counters cover the whole connection. Never blocks,
    /// even while another thread is blocked in a send.
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
        // Checked before the lock: another thread may have held it during a fork, and then it stays locked in the
        // child.
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
