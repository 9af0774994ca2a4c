//! The sending half of a connection, as users hold it.

use std::cell::Cell;
use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outbound::{Outbound, SendFault};
use super::pace::{WaitStrategy, Waiting};
use super::stats::Sent;
use super::{Batch, ByteWriter, Closer, Reservation, SharedSender, Stats, Wait, shut};
use crate::error::{Ended, SendError, SendTimeoutError, TrySendError};
use crate::ring::Fate;
use crate::sys::link::Link;
use crate::sys::mapping::{Mapping, Role};
use crate::sys::socket::PeerCred;

/// Sends messages to the peer; one half of a [`SharedMemoryStream`](crate::SharedMemoryStream).
///
/// It belongs to one thread at a time (`Send`, not `Sync`);
/// [`into_shared`](Self::into_shared) makes one for many. Dropping it closes this direction: the
/// peer receives what was committed, then `Disconnected`.
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
pub struct Sender {
    out: Outbound<Mapping, Waiting>,
    sent: Arc<Sent>,
    taken: bool,
    one_thread: PhantomData<Cell<()>>,
}

/// A fault, and the length of the message that met it.
pub(super) type Failed = (SendFault, usize);

impl Sender {
    pub(crate) fn new(link: &Arc<Link>, strategy: WaitStrategy) -> Self {
        let out = outbound(link, strategy);
        Self { out, sent: Arc::default(), taken: false, one_thread: PhantomData }
    }

    send_family! {
        /// Sends one message of any size from 0 bytes to [`max_message`](Self::max_message).
        send_plain [&mut self] (message: &[u8]) -> ();
        send, try_send, send_timeout, send_deadline
    }

    send_family! {
        /// Sends one message with a tag: 64 bits that travel beside the payload.
        send_one [&mut self] (message: &[u8], tag: u64) -> ();
        send_tagged, try_send_tagged, send_tagged_timeout, send_tagged_deadline
    }

    send_family! {
        /// Sends one message that is the parts one behind the other, with a tag.
        send_parts [&mut self] (parts: &[IoSlice<'_>], tag: u64) -> ();
        send_vectored, try_send_vectored, send_vectored_timeout, send_vectored_deadline
    }

    send_family! {
        /// Reserves room for a message of at most `len` bytes, to be written in place and committed.
        ///
        /// `len` is at most [`max_in_place`](Self::max_in_place).
        reserve_room [&mut self] (len: usize) -> Reservation<'_>;
        reserve, try_reserve, reserve_timeout, reserve_deadline
    }

    /// Collects messages and commits them together: one fence, and at most one wake.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch::new(self)
    }

    /// The longest message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.out.max_message()
    }

    /// The longest message, in bytes, that one reservation may hold.
    pub fn max_in_place(&self) -> usize {
        self.out.in_place()
    }

    /// Makes a sender that many threads may share.
    pub fn into_shared(self) -> SharedSender {
        SharedSender::new(self)
    }

    /// Makes a byte stream of it: each write is a message.
    pub fn into_writer(self) -> ByteWriter {
        ByteWriter::new(self)
    }

    /// A handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(self.link())
    }

    /// How the pages of this direction look. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn peek(&mut self) -> crate::sys::mapping::testing::Peek {
        self.out().ring().mem().peek(0)
    }

    /// Whether the connection has ended: no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        !self.link().same_process() || self.out.check().is_err()
    }

    /// What this half has sent; the system calls are those of the whole connection.
    pub fn stats(&self) -> Stats {
        stats(&self.sent, self.link())
    }

    pub(super) fn sent(&self) -> &Arc<Sent> {
        &self.sent
    }

    /// The kernel's word about the peer; see [`SharedMemoryStream::peer_cred`].
    ///
    /// [`SharedMemoryStream::peer_cred`]: crate::SharedMemoryStream::peer_cred
    pub fn peer_cred(&self) -> PeerCred {
        self.link().cred()
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        self.out.ring().mem().link()
    }

    pub(crate) fn out(&mut self) -> &mut Outbound<Mapping, Waiting> {
        &mut self.out
    }

    /// The half itself; whoever takes it closes the direction.
    pub(crate) fn into_outbound(mut self) -> Outbound<Mapping, Waiting> {
        self.taken = true;
        let rest = outbound(self.link(), WaitStrategy::Park); // Never used.
        std::mem::replace(&mut self.out, rest)
    }

    /// Whether this process may touch the connection.
    #[inline(always)]
    pub(super) fn enter(&self) -> Result<(), SendFault> {
        if self.link().same_process() { Ok(()) } else { Err(SendFault::Ended(Ended::Forked)) }
    }

    #[inline]
    pub(super) fn count(&mut self, bytes: usize) {
        self.add(1, bytes as u64);
    }

    #[inline]
    pub(super) fn add(&mut self, messages: u64, bytes: u64) {
        self.sent.add(messages, bytes);
    }

    /// Makes sure that a liar's connection is closed in both directions.
    #[inline(always)]
    pub(super) fn settle<T>(&self, result: Result<T, SendFault>) -> Result<T, SendFault> {
        if let Err(SendFault::Ended(Ended::ProtocolViolated)) = result {
            shut(self.link(), Fate::Violated);
        }
        result
    }

    #[inline(always)]
    pub(super) fn send_parts(&mut self, parts: &[IoSlice<'_>], tag: u64, wait: Wait) -> Result<(), Failed> {
        let sent = self.enter().and_then(|()| self.out.send(parts, tag, wait));
        match self.settle(sent) {
            Ok(len) => {
                self.count(len);
                Ok(())
            }
            Err(fault) => {
                Err((fault, parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()))))
            }
        }
    }

    #[inline(always)]
    pub(super) fn send_one(&mut self, message: &[u8], tag: u64, wait: Wait) -> Result<(), Failed> {
        self.send_parts(&[IoSlice::new(message)], tag, wait)
    }

    #[inline(always)]
    pub(super) fn send_plain(&mut self, message: &[u8], wait: Wait) -> Result<(), Failed> {
        self.send_one(message, 0, wait)
    }

    fn reserve_room(&mut self, len: usize, wait: Wait) -> Result<Reservation<'_>, Failed> {
        let claim = self.enter().and_then(|()| self.out.claim(len, wait));
        match self.settle(claim) {
            Ok(claim) => Ok(Reservation::new(self, claim)),
            Err(fault) => Err((fault, len)),
        }
    }
}

fn outbound(link: &Arc<Link>, strategy: WaitStrategy) -> Outbound<Mapping, Waiting> {
    let mapping = || Mapping::new(Arc::clone(link), link.side().outgoing());
    let pace = Waiting::new(strategy, mapping(), Role::Producer);
    Outbound::new(mapping(), pace, link.first_ticket(), link.max_message())
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.taken && self.link().same_process() {
            self.out.ring().close();
        }
    }
}

/// What was sent, and the system calls of the whole connection.
pub(super) fn stats(sent: &Sent, link: &Link) -> Stats {
    let ((messages_sent, bytes_sent), (sleeps, wakes)) = (sent.counts(), link.system_calls());
    Stats { messages_sent, bytes_sent, sleeps, wakes, ..Stats::default() }
}

pub(super) fn blocking((fault, len): Failed) -> SendError {
    match fault {
        SendFault::TooLarge(max) => SendError::TooLarge { len, max },
        SendFault::Exhausted => SendError::Exhausted,
        SendFault::Ended(ended) => ended.into(),
        // A wait without a deadline ends with room or with the connection.
        SendFault::Full | SendFault::TooLargeToTry => SendError::Closed,
    }
}

pub(super) fn trying((fault, len): Failed) -> TrySendError {
    match fault {
        SendFault::Full => TrySendError::Full,
        SendFault::TooLargeToTry => TrySendError::TooLargeToTry { len },
        SendFault::TooLarge(max) => TrySendError::TooLarge { len, max },
        SendFault::Exhausted => TrySendError::Exhausted,
        SendFault::Ended(ended) => ended.into(),
    }
}

pub(super) fn timing((fault, len): Failed) -> SendTimeoutError {
    match fault {
        SendFault::Full | SendFault::TooLargeToTry => SendTimeoutError::Timeout,
        SendFault::TooLarge(max) => SendTimeoutError::TooLarge { len, max },
        SendFault::Exhausted => SendTimeoutError::Exhausted,
        SendFault::Ended(ended) => ended.into(),
    }
}

static_assertions::assert_impl_all!(Sender: Send);
static_assertions::assert_not_impl_any!(Sender: Sync, Clone);
