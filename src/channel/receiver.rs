//! The receiving half of a connection, as users hold it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inbound::{Inbound, Incoming, RecvFault};
use super::pace::{WaitStrategy, Waiting};
use super::{ByteReader, Closer, RecvGuard, Stats, Wait, shut};
use crate::error::{Ended, RecvError, RecvTimeoutError, TryRecvError};
use crate::ring::Fate;
use crate::sys::link::Link;
use crate::sys::mapping::{Mapping, Role};
use crate::sys::socket::PeerCred;

/// Length and tag of a message that was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Bytes of the message.
    pub len: usize,
    /// The tag that the sender gave it; 0 if none.
    pub tag: u64,
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
pub struct Receiver {
    inb: Inbound<Mapping, Waiting>,
    messages: u64,
    bytes: u64,
    taken: bool,
    one_thread: PhantomData<Cell<()>>,
}

impl Receiver {
    pub(crate) fn new(link: &Arc<Link>, strategy: WaitStrategy) -> Self {
        let inb = inbound(link, strategy);
        Self { inb, messages: 0, bytes: 0, taken: false, one_thread: PhantomData }
    }

    recv_family! {
        /// Copies the next message into `buffer`. If it is longer than the buffer, it is kept and
        /// the error tells its length.
        recv_slice [&mut self] (buffer: &mut [u8]) -> Received;
        recv, try_recv, recv_timeout, recv_deadline
    }

    recv_family! {
        /// Replaces what is in `buffer` by the next message, whatever its length.
        ///
        /// Reusing the buffer makes the steady state free of allocations. A message that comes in
        /// pieces is put together in the buffer's own memory; if a deadline passes in the middle of
        /// it, the pieces stay for the next call and the buffer is left empty. The buffer is empty too
        /// once the connection has ended.
        recv_vec [&mut self] (buffer: &mut Vec<u8>) -> Received;
        recv_into, try_recv_into, recv_into_timeout, recv_into_deadline
    }

    recv_family! {
        /// Lends the next message where it stands; dropping the guard gives it back.
        recv_lent [&mut self] () -> RecvGuard<'_>;
        recv_ref, try_recv_ref, recv_ref_timeout, recv_ref_deadline
    }

    /// Messages until the connection ends; blocks between them.
    ///
    /// A clean end ends the iteration; the peer's death or lie comes once as an error.
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

    /// Messages that are there now; never blocks, and ends at the first that is not, or with the
    /// connection: the next receive tells which.
    pub fn try_iter(&mut self) -> TryIter<'_> {
        TryIter { receiver: self }
    }

    /// Makes a byte stream of it, which loses no byte between messages.
    pub fn into_reader(self) -> ByteReader {
        ByteReader::new(self)
    }

    /// A handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(self.link())
    }

    /// How the pages of this direction look. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn peek(&self) -> crate::sys::mapping::testing::Peek {
        let ring = self.inb_ref().ring();
        ring.mem().peek(ring.ticket())
    }

    /// What this half has received; the system calls are those of the whole connection.
    pub fn stats(&self) -> Stats {
        let (sleeps, wakes) = self.link().system_calls();
        Stats {
            messages_received: self.messages,
            bytes_received: self.bytes,
            sleeps,
            wakes,
            ..Stats::default()
        }
    }

    /// The kernel's word about the peer; see [`SharedMemoryStream::peer_cred`].
    ///
    /// [`SharedMemoryStream::peer_cred`]: crate::SharedMemoryStream::peer_cred
    pub fn peer_cred(&self) -> PeerCred {
        self.link().cred()
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        self.inb.ring().mem().link()
    }

    /// The half itself; whoever takes it closes the direction.
    pub(crate) fn into_inbound(mut self) -> Inbound<Mapping, Waiting> {
        self.taken = true;
        let rest = inbound(self.link(), WaitStrategy::Park); // Never used.
        std::mem::replace(&mut self.inb, rest)
    }

    pub(crate) fn inb(&mut self) -> &mut Inbound<Mapping, Waiting> {
        &mut self.inb
    }

    pub(crate) fn inb_ref(&self) -> &Inbound<Mapping, Waiting> {
        &self.inb
    }

    /// Whether this process may touch the connection.
    #[inline(always)]
    pub(super) fn enter(&self) -> Result<(), RecvFault> {
        if self.link().same_process() { Ok(()) } else { Err(RecvFault::Ended(Ended::Forked)) }
    }

    #[inline(always)]
    pub(super) fn count(&mut self, message: &Incoming) -> Received {
        self.messages += 1;
        self.bytes += message.len() as u64;
        Received { len: message.len(), tag: message.tag() }
    }

    /// Makes sure that a liar's connection is closed in both directions.
    #[inline(always)]
    pub(super) fn settle<T>(&self, result: Result<T, RecvFault>) -> Result<T, RecvFault> {
        if let Err(RecvFault::Ended(Ended::ProtocolViolated)) = result {
            shut(self.link(), Fate::Violated);
        }
        result
    }

    #[inline(always)]
    fn recv_slice(&mut self, buffer: &mut [u8], wait: Wait) -> Result<Received, RecvFault> {
        self.enter()?;
        let message = self.inb.recv(buffer, wait);
        self.settle(message).map(|message| self.count(&message))
    }

    #[inline(always)]
    fn recv_vec(&mut self, buffer: &mut Vec<u8>, wait: Wait) -> Result<Received, RecvFault> {
        self.enter()?;
        let message = self.inb.recv_into(buffer, wait);
        self.settle(message).map(|message| self.count(&message))
    }

    fn recv_lent(&mut self, wait: Wait) -> Result<RecvGuard<'_>, RecvFault> {
        self.enter()?;
        let message = self.inb.lend(wait);
        let message = self.settle(message)?;
        self.count(&message);
        Ok(RecvGuard::new(self, message))
    }
}

fn inbound(link: &Arc<Link>, strategy: WaitStrategy) -> Inbound<Mapping, Waiting> {
    let mapping = || Mapping::new(Arc::clone(link), 1 - link.side().outgoing());
    let pace = Waiting::new(strategy, mapping(), Role::Consumer);
    Inbound::new(mapping(), pace, link.first_ticket(), link.max_message())
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.taken && self.link().same_process() {
            self.inb.ring().close();
        }
    }
}

/// Messages until the connection ends; see [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a> {
    receiver: &'a mut Receiver,
    over: bool,
}

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
                let clean = matches!(error, RecvError::Disconnected | RecvError::Closed);
                (!clean).then_some(Err(error))
            }
        }
    }
}

/// Messages that are there now; see [`Receiver::try_iter`].
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

pub(super) fn blocking(fault: RecvFault) -> RecvError {
    match fault {
        RecvFault::BufferTooSmall(needed) => RecvError::BufferTooSmall { needed },
        RecvFault::Ended(ended) => ended.into(),
        // A wait without a deadline ends with a message or with the connection.
        RecvFault::Empty => RecvError::Closed,
    }
}

pub(super) fn trying(fault: RecvFault) -> TryRecvError {
    match fault {
        RecvFault::Empty => TryRecvError::Empty,
        RecvFault::BufferTooSmall(needed) => TryRecvError::BufferTooSmall { needed },
        RecvFault::Ended(ended) => ended.into(),
    }
}

pub(super) fn timing(fault: RecvFault) -> RecvTimeoutError {
    match fault {
        RecvFault::Empty => RecvTimeoutError::Timeout,
        RecvFault::BufferTooSmall(needed) => RecvTimeoutError::BufferTooSmall { needed },
        RecvFault::Ended(ended) => ended.into(),
    }
}

static_assertions::assert_impl_all!(Receiver: Send);
static_assertions::assert_not_impl_any!(Receiver: Sync, Clone);
