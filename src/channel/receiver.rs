//! The receiving half of a connection, as users hold it.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::receiver_core::{Buffer, Received, ReceiverCore, RecvCoreError};
use super::wait_policy::{AdaptiveWait, WaitStrategy};
use super::{ByteReader, Closer, RecvGuard, Stats, Wait, close_both};
use crate::error::{ConnectionError, RecvError, RecvTimeoutError, TryRecvError};
use crate::ring::CloseReason;
use crate::sys::connection::ConnectionInner;
use crate::sys::fork_guard::ForkGuard;
use crate::sys::mapping::{Mapping, RingRole};
use crate::sys::socket::PeerCred;

/// More bytes than any message has.
const NOTHING: usize = usize::MAX;

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
/// assert!(rx.try_recv_into(&mut buffer).is_err_and(|error| error.is_empty()));
/// a.send(b"hello")?;
/// rx.recv_into_timeout(&mut buffer, Duration::from_secs(1))?;
/// assert_eq!(buffer, b"hello");
/// assert_eq!((rx.stats().messages_received, rx.stats().bytes_received), (1, 5));
/// assert_eq!(rx.peer_cred().pid(), std::process::id());
/// rx.closer().close(); // From any thread.
/// assert_eq!(rx.recv(&mut [0; 8]), Err(narrows::RecvError::Closed));
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

    recv_family! {
        /// Copies the next message into `buffer`. If it is longer than the buffer, it is kept and
        /// the error tells its length.
        recv_slice [&mut self] (buffer: &mut [u8]) -> Received;
        recv, try_recv, recv_timeout, recv_deadline;
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
    }

    recv_family! {
        /// Replaces what is in `buffer` by the next message, whatever its length.
        ///
        /// Reusing the buffer makes the steady state free of allocations. A message that comes in
        /// pieces is put together in the buffer's own memory; if a deadline passes in the middle of
        /// it, the pieces stay for the next call and the buffer is left empty. The buffer is empty too
        /// once the connection has ended.
        recv_vec [&mut self] (buffer: &mut Vec<u8>) -> Received;
        recv_into, try_recv_into, recv_into_timeout, recv_into_deadline;
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
    }

    recv_family! {
        /// Lends the next message where it stands; dropping the guard gives it back.
        recv_borrowed [&mut self] () -> RecvGuard<'_>;
        recv_ref, try_recv_ref, recv_ref_timeout, recv_ref_deadline;
        ///
        /// ```
        /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
        /// let (_sender, mut receiver) = b.split();
        /// a.send(b"0123456789")?;
        /// let message = receiver.recv_ref()?;
        /// let mut middle = [0; 2];
        /// message.read_at(4, &mut middle)?;
        /// assert_eq!(&middle, b"45");
        /// # Ok::<(), std::io::Error>(())
        /// ```
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
    ///
    /// ```
    /// use std::io::Read;
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (_sender, receiver) = b.split();
    /// a.send(b"ebb and ")?;
    /// a.send(b"flow")?;
    /// drop(a);
    /// let mut text = String::new();
    /// receiver.into_reader().read_to_string(&mut text)?;
    /// assert_eq!(text, "ebb and flow");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_reader(self) -> ByteReader {
        ByteReader::new(self)
    }

    /// A handle that closes the whole connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(self.connection())
    }

    /// How the pages of this direction look. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn peek(&self) -> crate::sys::mapping::testing::Peek {
        let ring = self.inb_ref().ring();
        ring.mem().peek(ring.ticket())
    }

    /// What this half has received; how it waited is told of the whole connection.
    pub fn stats(&self) -> Stats {
        Stats {
            messages_received: self.messages,
            bytes_received: self.bytes,
            ..Stats::of(self.connection(), None)
        }
    }

    /// The kernel's word about the peer; see [`SharedMemoryStream::peer_cred`].
    ///
    /// [`SharedMemoryStream::peer_cred`]: crate::SharedMemoryStream::peer_cred
    pub fn peer_cred(&self) -> PeerCred {
        self.connection().cred()
    }

    pub(crate) fn connection(&self) -> &Arc<ConnectionInner> {
        self.inb.ring().mem().connection()
    }

    /// The half itself; whoever takes it closes the direction.
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

    /// Whether this process may touch the connection.
    #[inline(always)]
    pub(super) fn enter(&self) -> Result<(), RecvCoreError> {
        if self.connection().same_process() {
            Ok(())
        } else {
            Err(RecvCoreError::Ended(ConnectionError::Forked))
        }
    }

    #[inline(always)]
    fn count(&mut self, message: Received) -> Received {
        self.messages += 1;
        self.bytes += message.len as u64;
        message
    }

    /// Makes sure that a liar's connection is closed in both directions.
    #[inline(always)]
    pub(super) fn note_end<T>(&self, result: Result<T, RecvCoreError>) -> Result<T, RecvCoreError> {
        if let Err(RecvCoreError::Ended(ConnectionError::ProtocolViolated)) = result {
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
        let message = self.recv_at_once(buffer);
        if message.len == NOTHING { self.recv_slow(buffer, how) } else { Ok(message) }
    }

    /// What nearly every message takes that is there already; it returns in registers ([`NOTHING`] bytes: none), and
    /// calls nothing but as its last step.
    #[inline(never)]
    fn recv_at_once<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Received {
        let nothing = Received { len: NOTHING, tag: 0 };
        if !self.fork_guard.same_process() {
            return nothing;
        }
        match self.inb.try_recv_inline(buffer) {
            Some((message, false)) => self.count(message),
            Some((message, true)) => self.recv_rest(message),
            None => nothing,
        }
    }

    /// The same for one that stands in the arena.
    #[inline(never)]
    fn recv_placed<B: Buffer + ?Sized>(&mut self, buffer: &mut B) -> Received {
        let nothing = Received { len: NOTHING, tag: 0 };
        match self.inb.try_recv_arena(buffer) {
            Some((message, false)) => self.count(message),
            Some((message, true)) => self.recv_rest(message),
            None => nothing,
        }
    }

    #[cold]
    #[inline(never)]
    fn recv_rest(&mut self, message: Received) -> Received {
        self.inb.run_deferred();
        self.count(message)
    }

    #[inline(never)]
    fn recv_slow<B: Buffer + ?Sized, H: CallMode>(
        &mut self,
        buffer: &mut B,
        how: H,
    ) -> Result<Received, H::Recv> {
        if self.fork_guard.same_process() && self.wait_for_message(how.wait()) {
            let placed = self.inb.ring().hint_in_arena();
            let message = if placed { self.recv_placed(buffer) } else { self.recv_at_once(buffer) };
            if message.len != NOTHING {
                return Ok(message);
            }
        }
        let message = self.enter().and_then(|()| buffer.receive(&mut self.inb, how.wait()));
        let message = self.note_end(message).map_err(H::recv_error)?;
        Ok(self.count(message))
    }

    /// Whether there is something to look at, now or within a glance.
    #[inline(always)]
    fn wait_for_message(&mut self, wait: Wait) -> bool {
        self.inb.is_ready() || (wait != Wait::Never && self.inb.spin_briefly())
    }

    #[inline(always)]
    fn recv_borrowed<H: CallMode>(&mut self, how: H) -> Result<RecvGuard<'_>, H::Recv> {
        let message = self.borrow_next(how.wait()).map_err(H::recv_error)?;
        Ok(RecvGuard::new(self, message))
    }

    #[inline(never)]
    fn borrow_next(&mut self, wait: Wait) -> Result<Received, RecvCoreError> {
        self.enter()?;
        self.wait_for_message(wait);
        let message = self.inb.borrow_next(wait);
        let message = self.note_end(message)?;
        Ok(self.count(Received::from(&message)))
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

/// Messages until the connection ends; see [`Receiver::iter`].
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"one")?;
/// a.send(b"two")?;
/// drop(a);
/// for message in b.iter() {
///     println!("{} bytes", message?.len()); // An error: the peer died, or lied.
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
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
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"one")?;
/// a.send(b"two")?;
/// assert_eq!(b.try_iter().collect::<Vec<_>>(), [b"one", b"two"]);
/// assert_eq!(b.try_iter().next(), None); // Nothing now; the next receive tells whether more can come.
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
