//! The receiving half of a connection: the public type.

use std::cell::Cell;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::receiver_core::{Buffer, FastRecv, Received, ReceiverCore, RecvCoreError};
use super::wait_policy::{AdaptiveWait, WaitStrategy};
use super::{Closer, Stats, Wait, close_both};
use crate::error::{ConnectionError, RecvError, RecvTimeoutError, TryRecvError};
use crate::ring::CloseReason;
use crate::sys::connection::ConnectionInner;
use crate::sys::fork_guard::ForkGuard;
use crate::sys::mapping::{Mapping, RingRole};
use crate::sys::socket::PeerCred;

/// A message that was received without waiting. Its length plus one is never 0, so an `Option` of it has two words,
/// which are returned in registers.
struct FastReceived {
    len_plus_one: NonZeroUsize,
    tag: u64,
}

impl FastReceived {
    #[inline(always)]
    fn new(message: Received) -> Option<Self> {
        // No message is as long as the address space: it would not fit a ring.
        NonZeroUsize::new(message.len.wrapping_add(1))
            .map(|len_plus_one| Self { len_plus_one, tag: message.tag })
    }

    #[inline(always)]
    fn message(&self) -> Received {
        Received { len: self.len_plus_one.get() - 1, tag: self.tag }
    }
}

/// Receives messages from the peer; one half of a [`SharedMemoryStream`](crate::SharedMemoryStream).
///
/// It belongs to one thread at a time (`Send`, not `Sync`). Dropping it closes this direction: the
/// peer's sends fail with `Disconnected`.
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<narrows::Receiver>();
/// ```
///
/// ```
/// use std::time::Duration;
/// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
/// let (_tx, mut rx) = b.split();
/// let mut buffer = Vec::new();
/// assert!(rx.try_recv_into(&mut buffer) == Err(narrows::TryRecvError::WouldBlock));
/// a.send(b"hello")?;
/// rx.recv_into_timeout(&mut buffer, Duration::from_secs(1))?;
/// assert_eq!(buffer, b"hello");
/// assert_eq!((rx.stats().messages_received, rx.stats().bytes_received), (1, 5));
/// assert_eq!(rx.peer_cred().pid(), std::process::id());
/// rx.closer().close(); // From any thread.
/// assert_eq!(rx.recv(&mut [0; 8]), Err(narrows::RecvError::ConnectionLost(narrows::ConnectionError::Closed)));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Receiver {
    inb: ReceiverCore<Mapping, AdaptiveWait>,
    fork_guard: ForkGuard,
    messages: u64,
    bytes: u64,
    taken: bool,
    one_thread: PhantomData<Cell<()>>,
}

impl Receiver {
    pub(crate) fn new(connection: &Arc<ConnectionInner>, strategy: WaitStrategy) -> Self {
        let inb = inbound(connection, strategy);
        Self {
            inb,
            fork_guard: connection.fork_guard(),
            messages: 0,
            bytes: 0,
            taken: false,
            one_thread: PhantomData,
        }
    }

    /// Receives the next message into `buffer`. Blocks while there is no message.
    ///
    /// A message that is longer than the buffer is kept for the next call, and the error has its length.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: the buffer is too small, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    ///
    /// ```
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (_sender, mut receiver) = b.split();
    /// a.send(b"hello")?;
    /// let mut buffer = [0; 64];
    /// let received = receiver.recv(&mut buffer)?;
    /// assert_eq!(&buffer[..received.len], b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Received, RecvError> {
        self.recv_slice(buffer, Block)
    }

    /// Receives the next message into `buffer` if that is possible at once; never blocks.
    ///
    /// A message that is longer than the buffer is kept for the next call, and the error has its length.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`]: there is no message now, the buffer is too small, or the connection has ended: the peer
    /// closed it, died or violated the protocol.
    #[inline]
    pub fn try_recv(&mut self, buffer: &mut [u8]) -> Result<Received, TryRecvError> {
        self.recv_slice(buffer, NonBlocking)
    }

    /// Receives the next message into `buffer`, blocking for at most `timeout` while there is no message.
    ///
    /// A message that is longer than the buffer is kept for the next call, and the error has its length.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, the buffer is too small, or the connection has ended: the peer
    /// closed it, died or violated the protocol.
    #[inline]
    pub fn recv_timeout(
        &mut self,
        buffer: &mut [u8],
        timeout: Duration,
    ) -> Result<Received, RecvTimeoutError> {
        self.recv_slice(buffer, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Receives the next message into `buffer`, blocking until `deadline` at most while there is no message.
    ///
    /// A message that is longer than the buffer is kept for the next call, and the error has its length.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, the buffer is too small, or the connection has ended: the peer
    /// closed it, died or violated the protocol.
    #[inline]
    pub fn recv_deadline(
        &mut self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> Result<Received, RecvTimeoutError> {
        self.recv_slice(buffer, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Receives the next message, of any length, and replaces the contents of `buffer` by it. Blocks while there is
    /// no message.
    ///
    /// A buffer that is used again makes the steady state free of allocations. A message that comes in fragments is
    /// put together in the buffer's own memory; if a deadline passes in the middle of it, the fragments stay for the
    /// next call and the buffer is left empty. The buffer is empty too once the connection has ended.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: there is no memory for the message, or the connection has ended: the peer closed it, died or
    /// violated the protocol.
    ///
    /// ```
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (_sender, mut receiver) = b.split();
    /// let mut buffer = Vec::new();
    /// for message in [b"ebb".as_slice(), b"flow"] {
    ///     a.send(message)?;
    ///     receiver.recv_into(&mut buffer)?;
    ///     assert_eq!(buffer, message);
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn recv_into(&mut self, buffer: &mut Vec<u8>) -> Result<Received, RecvError> {
        self.recv_vec(buffer, Block)
    }

    /// Receives the next message, of any length, and replaces the contents of `buffer` by it if that is possible at
    /// once; never blocks.
    ///
    /// A buffer that is used again makes the steady state free of allocations. A message that comes in fragments is
    /// put together in the buffer's own memory; if not all of them have arrived, the fragments stay for the next call
    /// and the buffer is left empty. The buffer is empty too once the connection has ended.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`]: there is no message now, there is no memory for the message, or the connection has ended:
    /// the peer closed it, died or violated the protocol.
    #[inline]
    pub fn try_recv_into(&mut self, buffer: &mut Vec<u8>) -> Result<Received, TryRecvError> {
        self.recv_vec(buffer, NonBlocking)
    }

    /// Receives the next message, of any length, and replaces the contents of `buffer` by it, blocking for at most
    /// `timeout` while there is no message.
    ///
    /// A buffer that is used again makes the steady state free of allocations. A message that comes in fragments is
    /// put together in the buffer's own memory; if a deadline passes in the middle of it, the fragments stay for the
    /// next call and the buffer is left empty. The buffer is empty too once the connection has ended.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, there is no memory for the message, or the connection has
    /// ended: the peer closed it, died or violated the protocol.
    #[inline]
    pub fn recv_into_timeout(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Received, RecvTimeoutError> {
        self.recv_vec(buffer, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Receives the next message, of any length, and replaces the contents of `buffer` by it, blocking until
    /// `deadline` at most while there is no message.
    ///
    /// A buffer that is used again makes the steady state free of allocations. A message that comes in fragments is
    /// put together in the buffer's own memory; if a deadline passes in the middle of it, the fragments stay for the
    /// next call and the buffer is left empty. The buffer is empty too once the connection has ended.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, there is no memory for the message, or the connection has
    /// ended: the peer closed it, died or violated the protocol.
    #[inline]
    pub fn recv_into_deadline(
        &mut self,
        buffer: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<Received, RecvTimeoutError> {
        self.recv_vec(buffer, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Returns an iterator over the messages until the connection ends. It blocks while there is no message.
    ///
    /// A clean end ends the iteration. If the peer died or violated the protocol, or if there is no memory for a
    /// message, the last item is the error.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// a.send(b"one")?;
    /// drop(a);
    /// assert_eq!(b.iter().collect::<Result<Vec<_>, _>>()?, [b"one"]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn iter(&mut self) -> Iter<'_> {
        Iter { receiver: self, over: false }
    }

    /// Returns an iterator over the messages that are ready now. It never blocks, and ends when no message is ready or
    /// the connection has ended; the next receive reports which.
    pub fn try_iter(&mut self) -> TryIter<'_> {
        TryIter { receiver: self }
    }

    /// Returns a handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(self.connection())
    }

    /// Returns the state of this direction's pages. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn peek(&self) -> crate::sys::mapping::testing::Peek {
        let ring = self.inb_ref().ring();
        ring.mem().peek(ring.ticket())
    }

    /// Returns the counters of this half: the messages and bytes that it has received. The wait counters cover the
    /// whole connection.
    pub fn stats(&self) -> Stats {
        Stats {
            messages_received: self.messages,
            bytes_received: self.bytes,
            ..Stats::of(self.connection(), None)
        }
    }

    /// Returns the peer's credentials, as the kernel reported them when the connection was made.
    ///
    /// On a client they are those of the process that called `listen`. It may be another process than the one that
    /// serves (a daemon's starter, the parent of workers), but its user is the same. After a hand-over they are those
    /// of the child or of the parent.
    pub fn peer_cred(&self) -> PeerCred {
        self.connection().cred()
    }

    pub(crate) fn connection(&self) -> &Arc<ConnectionInner> {
        self.inb.ring().mem().connection()
    }

    /// Takes the core out. Dropping this half does not close the direction then: the caller must close it.
    pub(crate) fn into_inbound(mut self) -> ReceiverCore<Mapping, AdaptiveWait> {
        self.taken = true;
        let rest = inbound(self.connection(), WaitStrategy::Park); // Never used.
        std::mem::replace(&mut self.inb, rest)
    }

    pub(crate) fn inb(&mut self) -> &mut ReceiverCore<Mapping, AdaptiveWait> {
        &mut self.inb
    }

    pub(crate) fn inb_ref(&self) -> &ReceiverCore<Mapping, AdaptiveWait> {
        &self.inb
    }

    /// Checks that this process may use the connection: it must not be a forked child.
    #[inline(always)]
    pub(super) fn enter(&self) -> Result<(), RecvCoreError> {
        if self.connection().same_process() {
            Ok(())
        } else {
            Err(RecvCoreError::Ended(ConnectionError::Forked))
        }
    }

    #[inline(always)]
    pub(super) fn count(&mut self, message: Received) -> Received {
        self.messages += 1;
        self.bytes += message.len as u64;
        message
    }

    /// Makes sure that both directions are closed after a protocol violation: the core closes only its own.
    #[inline(always)]
    pub(super) fn note_end<T>(&self, result: Result<T, RecvCoreError>) -> Result<T, RecvCoreError> {
        if let Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation)) = result {
            close_both(self.connection(), CloseReason::Violated);
        }
        result
    }

    #[inline(always)]
    fn recv_slice<H: CallMode>(&mut self, buffer: &mut [u8], how: H) -> Result<Received, H::Recv> {
        self.recv_one(buffer, how)
    }

    #[inline(always)]
    fn recv_vec<H: CallMode>(&mut self, buffer: &mut Vec<u8>, how: H) -> Result<Received, H::Recv> {
        self.recv_one(buffer, how)
    }

    #[inline(always)]
    fn recv_one<B: Buffer + ?Sized, H: CallMode>(
        &mut self,
        buffer: &mut B,
        how: H,
    ) -> Result<Received, H::Recv> {
        match self.try_recv_inline(buffer) {
            Some(received) => Ok(received.message()),
            None => self.recv_slow(buffer, how),
        }
    }

    /// Receives a message on the fast path, which nearly every message takes that is ready already. It returns in
    /// registers, and calls functions only as its last step.
    #[inline(never)]
    fn try_recv_inline<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<FastReceived> {
        if !self.fork_guard.same_process() {
            return None;
        }
        match self.inb.try_recv_inline(buffer) {
            FastRecv::Received(message) => FastReceived::new(self.count(message)),
            FastRecv::ReceivedWithDeferred(message) => self.finish_deferred(message),
            FastRecv::NotReceived => None,
        }
    }

    /// Receives a message from the arena on the fast path.
    #[inline(never)]
    fn try_recv_arena<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Option<FastReceived> {
        match self.inb.try_recv_arena(buffer) {
            FastRecv::Received(message) => FastReceived::new(self.count(message)),
            FastRecv::ReceivedWithDeferred(message) => self.finish_deferred(message),
            FastRecv::NotReceived => None,
        }
    }

    #[cold]
    #[inline(never)]
    fn finish_deferred(&mut self, message: Received) -> Option<FastReceived> {
        self.inb.run_deferred();
        FastReceived::new(self.count(message))
    }

    #[inline(never)]
    fn recv_slow<B: Buffer + ?Sized, H: CallMode>(
        &mut self,
        buffer: &mut B,
        how: H,
    ) -> Result<Received, H::Recv> {
        if self.fork_guard.same_process() && self.wait_for_message(how.wait()) {
            let placed = self.inb.ring().hint_in_arena();
            let received = if placed { self.try_recv_arena(buffer) } else { self.try_recv_inline(buffer) };
            if let Some(received) = received {
                return Ok(received.message());
            }
        }
        let message = self.enter().and_then(|()| buffer.receive(&mut self.inb, how.wait()));
        let message = self.note_end(message).map_err(H::recv_error)?;
        Ok(self.count(message))
    }

    /// Returns whether there is something to receive, now or within a brief spin.
    #[inline(always)]
    pub(super) fn wait_for_message(&mut self, wait: Wait) -> bool {
        self.inb.is_ready() || (wait != Wait::Never && self.inb.spin_briefly())
    }
}

fn inbound(connection: &Arc<ConnectionInner>, strategy: WaitStrategy) -> ReceiverCore<Mapping, AdaptiveWait> {
    let mapping = || Mapping::new(Arc::clone(connection), 1 - connection.side().outgoing());
    let policy = AdaptiveWait::new(strategy, mapping(), RingRole::Consumer);
    ReceiverCore::new(mapping(), policy, connection.first_ticket(), connection.max_message())
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.taken && self.connection().same_process() {
            self.inb.ring().close();
        }
    }
}

/// An iterator over the messages until the connection ends, made by [`Receiver::iter`]. It blocks while there is no
/// message.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"one")?;
/// a.send(b"two")?;
/// drop(a);
/// for message in b.iter() {
///     println!("{} bytes", message?.len()); // An error: the peer died or violated the protocol.
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a> {
    receiver: &'a mut Receiver,
    over: bool,
}

impl<'a> IntoIterator for &'a mut Receiver {
    type Item = Result<Vec<u8>, RecvError>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FusedIterator for Iter<'_> {}

impl Iterator for Iter<'_> {
    type Item = Result<Vec<u8>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let mut buffer = Vec::new();
        match self.receiver.recv_into(&mut buffer) {
            Ok(_) => Some(Ok(buffer)),
            Err(error) => {
                self.over = true;
                let clean = matches!(
                    error,
                    RecvError::ConnectionLost(ConnectionError::Disconnected)
                        | RecvError::ConnectionLost(ConnectionError::Closed)
                );
                (!clean).then_some(Err(error))
            }
        }
    }
}

/// An iterator over the messages that are ready now, made by [`Receiver::try_iter`]. It never blocks.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"one")?;
/// a.send(b"two")?;
/// assert_eq!(b.try_iter().collect::<Vec<_>>(), [b"one", b"two"]);
/// assert_eq!(b.try_iter().next(), None); // None now; the next receive reports whether more can come.
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct TryIter<'a> {
    receiver: &'a mut Receiver,
}

impl Iterator for TryIter<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut buffer = Vec::new();
        self.receiver.try_recv_into(&mut buffer).ok().map(|_| buffer)
    }
}

static_assertions::assert_impl_all!(Receiver: Send);
static_assertions::assert_not_impl_any!(Receiver: Sync, Clone);
