//! The sending half of a connection: the public type.

use std::cell::Cell;
use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::sender_core::{FastSend, SendCoreError, SenderCore};
use super::wait_policy::{AdaptiveWait, WaitStrategy};
use super::{Closer, Stats, Wait, close_both};
use crate::error::{ConnectionError, SendError, SendTimeoutError, TrySendError};
use crate::memory::INLINE_CAPACITY;
use crate::ring::{CloseReason, SlotReservation};
use crate::sys::connection::ConnectionInner;
use crate::sys::fork_guard::ForkGuard;
use crate::sys::mapping::{Mapping, RingRole};
use crate::sys::socket::PeerCred;

/// Sends messages to the peer; one half of a [`SharedMemoryStream`](crate::SharedMemoryStream).
///
/// It belongs to one thread at a time (`Send`, not `Sync`); [`into_shared`](Self::into_shared) makes a sender for many
/// threads. Dropping it closes this direction: the peer receives what was committed, then `Disconnected`.
///
/// ```
/// let (a, b) = narrows::SharedMemoryStream::pair()?;
/// let ((mut tx, _rx), (_tx, mut rx)) = (a.split(), b.split());
/// tx.send(b"hello")?;
/// let mut buffer = Vec::new();
/// rx.recv_into(&mut buffer)?;
/// assert_eq!(buffer, b"hello");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<narrows::Sender>();
/// ```
///
/// Deadlines, counters and limits:
///
/// ```
/// use std::time::Duration;
/// let (a, b) = narrows::SharedMemoryStream::pair()?;
/// let (mut tx, _rx) = a.split();
/// tx.send_timeout(b"in time or never", Duration::from_secs(1))?;
/// tx.try_send(b"now or never")?;
/// assert_eq!((tx.stats().messages_sent, tx.stats().bytes_sent), (2, 28));
/// assert_eq!((tx.max_message(), tx.max_in_place()), (64 << 20, 1 << 20));
/// assert_eq!(tx.peer_cred().pid(), std::process::id());
/// tx.closer().close();
/// assert!(tx.is_disconnected());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Sender {
    out: SenderCore<Mapping, AdaptiveWait>,
    /// The last reservation. It is kept here, since moving it just after it was written costs more than the rest of a
    /// reserve.
    reserved: Option<SlotReservation>,
    fork_guard: ForkGuard,
    messages: u64,
    bytes: u64,
    taken: bool,
    one_thread: PhantomData<Cell<()>>,
}

impl Sender {
    pub(crate) fn new(connection: &Arc<ConnectionInner>, strategy: WaitStrategy) -> Self {
        let (out, fork_guard) = (outbound(connection, strategy), connection.fork_guard());
        Self { out, reserved: None, fork_guard, messages: 0, bytes: 0, taken: false, one_thread: PhantomData }
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message). Blocks while the ring has no room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    ///
    /// ```
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, _receiver) = a.split();
    /// sender.send(b"hello")?;
    /// sender.send(&[])?; // An empty message is one, too.
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"hello");
    /// assert_eq!(b.recv_ref()?.len(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.send_plain(message, Block)
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message) if that is possible at once; never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<(), TrySendError> {
        self.send_plain(message, NonBlocking)
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message), blocking for at most `timeout` while the
    /// ring has no room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<(), SendTimeoutError> {
        self.send_plain(message, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message of 0 bytes to [`max_message`](Self::max_message), blocking until `deadline` at most while
    /// the ring has no room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_deadline(&mut self, message: &[u8], deadline: Instant) -> Result<(), SendTimeoutError> {
        self.send_plain(message, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload. Blocks while the ring has no room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    ///
    /// ```
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, _receiver) = a.split();
    /// sender.send_tagged(b"hello", 7)?;
    /// assert_eq!(b.recv_ref()?.tag(), 7);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn send_tagged(&mut self, message: &[u8], tag: u64) -> Result<(), SendError> {
        self.send_one(message, tag, Block)
    }

    /// Sends one message with a tag, 64 bits that travel beside the payload, if that is possible at once; never blocks.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_send_tagged(&mut self, message: &[u8], tag: u64) -> Result<(), TrySendError> {
        self.send_one(message, tag, NonBlocking)
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload, blocking for at most `timeout` while the
    /// ring has no room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_tagged_timeout(
        &mut self,
        message: &[u8],
        tag: u64,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.send_one(message, tag, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message with a tag: 64 bits that travel beside the payload, blocking until `deadline` at most while
    /// the ring has no room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_tagged_deadline(
        &mut self,
        message: &[u8],
        tag: u64,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError> {
        self.send_one(message, tag, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Sends one message that consists of the parts one behind the other, with a tag. Blocks while the ring has no
    /// room.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    ///
    /// ```
    /// use std::io::IoSlice;
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, _receiver) = a.split();
    /// sender.send_vectored(&[IoSlice::new(b"head"), IoSlice::new(b" and body")], 0)?;
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"head and body");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn send_vectored(&mut self, parts: &[IoSlice<'_>], tag: u64) -> Result<(), SendError> {
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
    pub fn try_send_vectored(&mut self, parts: &[IoSlice<'_>], tag: u64) -> Result<(), TrySendError> {
        self.send_parts(parts, tag, NonBlocking)
    }

    /// Sends one message that consists of the parts one behind the other, with a tag, blocking for at most `timeout`
    /// while the ring has no room.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_vectored_timeout(
        &mut self,
        parts: &[IoSlice<'_>],
        tag: u64,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.send_parts(parts, tag, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Sends one message that consists of the parts one behind the other, with a tag, blocking until `deadline` at
    /// most while the ring has no room.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn send_vectored_deadline(
        &mut self,
        parts: &[IoSlice<'_>],
        tag: u64,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError> {
        self.send_parts(parts, tag, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Returns the longest message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.out.max_message()
    }

    /// Returns the longest message, in bytes, that one reservation may hold.
    pub fn max_in_place(&self) -> usize {
        self.out.in_place()
    }

    /// Returns a handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(self.connection())
    }

    /// Returns the state of this direction's pages. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn peek(&mut self) -> crate::sys::mapping::testing::Peek {
        self.out().ring().mem().peek(0)
    }

    /// Returns whether the connection has ended, so that no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        !self.connection().same_process() || self.out.check().is_err()
    }

    /// Returns the counters of this half: the messages and bytes that it has sent. The wait counters cover the whole
    /// connection.
    pub fn stats(&self) -> Stats {
        stats(self.counts(), self.peak_fill(), self.connection())
    }

    /// Returns how full this direction was at most when its head was read, in thousandths.
    pub(super) fn peak_fill(&self) -> u32 {
        self.out.ring().peak_fill()
    }

    /// Returns the messages and bytes sent so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.messages, self.bytes)
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
        self.out.ring().mem().connection()
    }

    /// Returns the core, and the last reservation.
    #[inline(always)]
    pub(super) fn reserved(
        &mut self,
    ) -> (&mut SenderCore<Mapping, AdaptiveWait>, &mut Option<SlotReservation>) {
        (&mut self.out, &mut self.reserved)
    }

    pub(crate) fn out(&mut self) -> &mut SenderCore<Mapping, AdaptiveWait> {
        &mut self.out
    }

    /// Takes the core out. Dropping this half does not close the direction then: the caller must close it.
    pub(crate) fn into_outbound(mut self) -> SenderCore<Mapping, AdaptiveWait> {
        self.taken = true;
        let rest = outbound(self.connection(), WaitStrategy::Park); // Never used.
        std::mem::replace(&mut self.out, rest)
    }

    /// Checks that this process may use the connection: it must not be a forked child.
    #[inline(always)]
    pub(super) fn enter(&self) -> Result<(), SendCoreError> {
        if self.connection().same_process() {
            Ok(())
        } else {
            Err(SendCoreError::Ended(ConnectionError::Forked))
        }
    }

    #[inline(always)]
    pub(super) fn count(&mut self, bytes: usize) {
        self.add(1, bytes as u64);
    }

    #[inline(always)]
    pub(super) fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }

    /// Makes sure that both directions are closed after a protocol violation: the core closes only its own.
    #[inline(always)]
    pub(super) fn note_end<T>(&self, result: Result<T, SendCoreError>) -> Result<T, SendCoreError> {
        if let Err(SendCoreError::Ended(ConnectionError::ProtocolViolation)) = result {
            close_both(self.connection(), CloseReason::Violated);
        }
        result
    }

    #[inline(always)]
    pub(super) fn send_plain<H: CallMode>(&mut self, message: &[u8], how: H) -> Result<(), H::Send> {
        self.send_one(message, 0, how)
    }

    #[inline(always)]
    pub(super) fn send_one<H: CallMode>(&mut self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        let sent = match message.len() <= INLINE_CAPACITY {
            true => self.send_at_once(message, tag),
            false => self.send_in_arena(message, tag),
        };
        if sent { Ok(()) } else { self.send_slow(message, tag, how) }
    }

    /// Sends a message on the fast path, which nearly every message takes. It returns in a register, and calls
    /// functions only as its last step.
    #[inline(never)]
    fn send_at_once(&mut self, message: &[u8], tag: u64) -> bool {
        if !self.is_ours() {
            return false;
        }
        let sent = self.out.try_send_inline(message, tag);
        self.finish_fast_path(sent, message.len())
    }

    /// Sends a message in the arena on the fast path.
    #[inline(never)]
    fn send_in_arena(&mut self, message: &[u8], tag: u64) -> bool {
        if !self.is_ours() {
            return false;
        }
        let sent = self.out.try_send_arena(message, tag);
        self.finish_fast_path(sent, message.len())
    }

    #[inline(always)]
    fn finish_fast_path(&mut self, sent: FastSend, len: usize) -> bool {
        match sent {
            FastSend::Sent => self.count(len),
            FastSend::SentWithDeferred => return self.send_rest(len),
            FastSend::NotSent => return false,
        }
        true
    }

    #[inline(always)]
    pub(super) fn is_ours(&self) -> bool {
        self.fork_guard.same_process()
    }

    #[cold]
    #[inline(never)]
    fn send_rest(&mut self, len: usize) -> bool {
        self.count(len);
        self.out.run_deferred();
        true
    }

    #[inline(never)]
    fn send_slow<H: CallMode>(&mut self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        self.send_parts(&[IoSlice::new(message)], tag, how)
    }

    pub(super) fn send_parts<H: CallMode>(
        &mut self,
        parts: &[IoSlice<'_>],
        tag: u64,
        how: H,
    ) -> Result<(), H::Send> {
        let sent = self.enter().and_then(|()| self.out.send(parts, tag, how.wait()));
        let len = self.note_end(sent).map_err(|fault| H::send_error((fault, total(parts))))?;
        self.count(len);
        Ok(())
    }
}

fn total(parts: &[IoSlice<'_>]) -> usize {
    parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()))
}

fn outbound(connection: &Arc<ConnectionInner>, strategy: WaitStrategy) -> SenderCore<Mapping, AdaptiveWait> {
    let mapping = || Mapping::new(Arc::clone(connection), connection.side().outgoing());
    let policy = AdaptiveWait::new(strategy, mapping(), RingRole::Producer);
    SenderCore::new(mapping(), policy, connection.first_ticket(), connection.max_message())
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.taken && self.connection().same_process() {
            self.out.ring().close();
        }
    }
}

/// Returns the counters of what was sent, and of how the whole connection has waited.
pub(super) fn stats(
    (messages_sent, bytes_sent): (u64, u64),
    peak_fill: u32,
    connection: &ConnectionInner,
) -> Stats {
    Stats { messages_sent, bytes_sent, ..Stats::of(connection, Some(peak_fill)) }
}

static_assertions::assert_impl_all!(Sender: Send);
static_assertions::assert_not_impl_any!(Sender: Sync, Clone);
