//! A connection as one object: both halves, and the ways to make it.

use std::borrow::BorrowMut;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::{
    Batch, ByteReader, ByteWriter, Closer, ConnectionHandle, Iter, RawParts, Received, Receiver, RecvGuard,
    Reservation, Sender, Stats, TryIter,
};
use crate::connect::{self, ConnectLimit, Established, deadline};
use crate::error::{
    ConnectError, ConnectionError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, SpawnError,
    TryRecvError, TrySendError,
};
use crate::memory::{Deadline, Memory};
use crate::options::Options;
use crate::sys::socket::PeerCred;

/// A connection between two processes: sends and receives messages through shared memory.
///
/// It belongs to one thread at a time (`Send`, not `Sync`); [`split`](Self::split) makes two halves.
/// Dropping it closes both directions: the peer receives what was committed, then `Disconnected`. A process that ends without dropping it (`std::process::exit`, a return from `main`
/// while another thread holds it) has not said good-bye: the peer gets `PeerDied`.
///
/// ```
/// use narrows::{SharedMemoryListener, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
/// # let path = listener.local_path().to_owned();
/// let client = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
///     let mut stream = SharedMemoryStream::connect(path)?;
///     stream.send(b"ping")?;
///     let mut reply = Vec::new();
///     stream.recv_into(&mut reply)?;
///     Ok(reply)
/// });
/// let mut stream = listener.accept()?;
/// let mut buffer = [0; 64];
/// let received = stream.recv(&mut buffer)?;
/// stream.send(&buffer[..received.len])?;
/// assert_eq!(client.join().unwrap()?, b"ping");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Both ends in one process; what was committed before a close is received:
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?; // Both ends in one process, as for tests.
/// assert_eq!(a.peer_cred().pid(), std::process::id());
/// assert_eq!((a.max_message(), a.max_in_place()), (64 << 20, 1 << 20));
/// let mut batch = a.batch();
/// batch.push(b"ebb")?;
/// batch.push(b"flow")?;
/// drop(batch); // Sends both.
/// assert_eq!(b.try_iter().collect::<Vec<_>>(), [&b"ebb"[..], b"flow"]);
/// assert_eq!(a.stats().messages_sent, 2);
/// a.send(b"last")?;
/// let closer = a.closer(); // For another thread; `close` does the same here.
/// a.close();
/// assert_eq!(b.iter().collect::<Result<Vec<_>, _>>()?, [b"last"]);
/// assert!(b.is_disconnected());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SharedMemoryStream {
    sender: Sender,
    receiver: Receiver,
}

/// What a wait for either found.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let ready = a.wait_either(64)?;
/// assert!(ready.space && !ready.message);
/// b.send(b"news")?;
/// assert!(a.wait_either(64)?.message);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// A receive would end at once: with a message, or because the connection has ended.
    pub message: bool,
    /// A `try_send` of the length that was asked for would end at once: with success, or because
    /// the connection has ended.
    pub space: bool,
}

/// Methods of the stream that are those of its halves.
macro_rules! of_half {
    ($half:ident: $type:ident { $( $name:ident ( $($arg:ident: $ty:ty),* ) -> $out:ty; )* }) => {
        $(
            #[doc = concat!("See [`", stringify!($type), "::", stringify!($name), "`].")]
            ///
            /// # Errors
            ///
            /// As there.
            #[inline]
            pub fn $name(&mut self, $($arg: $ty),*) -> $out {
                self.$half.$name($($arg),*)
            }
        )*
    };
}

impl SharedMemoryStream {
    /// Connects to the listener at `path`, with the default [`Options`]; within 5 s.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], each cause its own variant. A path that nobody listens at fails at once.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Options::new().connect(path)
    }

    /// Connects to the listener at `path`, within `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn connect_timeout(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ConnectError> {
        Options::new().connect_timeout(path, timeout)
    }

    /// Makes both ends of a connection within this process.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], for want of memory or descriptors.
    pub fn pair() -> Result<(Self, Self), ConnectError> {
        Options::new().pair()
    }

    /// Starts `command` with one end of a new connection, and waits until the child has taken it by
    /// [`from_parent`](Self::from_parent); within 5 s from when the child exists.
    ///
    /// A shell or a launcher may stand between, if it passes the descriptor on: the peer, whose death is reported and which
    /// [`peer_cred`](Self::peer_cred) names, is the process that takes the connection. The child inherits the descriptor
    /// without a `pre_exec` closure, so a parent with much memory is not copied; a closure of yours must neither close
    /// that descriptor nor mark it as close-on-exec.
    ///
    /// ```no_run
    /// use std::process::Command;
    /// let (child, stream) = narrows::SharedMemoryStream::spawn(Command::new("backend").arg("-v"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SpawnError`]; the child was killed and reaped then, and the process that was taking the connection was killed.
    pub fn spawn(command: impl BorrowMut<Command>) -> Result<(Child, Self), SpawnError> {
        Options::new().spawn(command)
    }

    /// Takes the connection with which the parent started this process; works once, also if the process has several copies of
    /// this library.
    ///
    /// ```no_run
    /// // In the program that the parent started, first thing in `main`:
    /// let mut stream = narrows::SharedMemoryStream::from_parent()?;
    /// stream.send(b"here I am")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; `NoParent` if there is none to take, `ParentTaken` if it was taken, `BadParent` if it is not in this
    /// process: mostly since a wrapper has closed it.
    pub fn from_parent() -> Result<Self, ConnectError> {
        Options::new().from_parent()
    }

    /// The two halves, for two threads. The connection lives until both are dropped.
    ///
    /// ```
    /// let (a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, mut receiver) = a.split();
    /// let echo = std::thread::spawn(move || -> std::io::Result<()> {
    ///     let (mut sender, mut receiver) = b.split();
    ///     for message in receiver.iter() {
    ///         sender.send(&message?)?;
    ///     }
    ///     Ok(())
    /// });
    /// let sending = std::thread::spawn(move || sender.send(b"hello")); // And is dropped: nothing more will come.
    /// assert_eq!(receiver.iter().collect::<Result<Vec<_>, _>>()?, [b"hello"]);
    /// sending.join().unwrap()?;
    /// echo.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// The halves, to use both at once.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// b.send(b"tide")?;
    /// let (sender, receiver) = a.halves();
    /// let message = receiver.recv_ref()?; // Lent by one half, ...
    /// let mut room = sender.reserve(message.len())?; // ... answered by the other.
    /// std::io::copy(&mut &*message.to_vec()?, &mut room)?;
    /// room.commit()?;
    /// drop(message);
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"tide");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn halves(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }

    of_half! { sender: Sender {
        send(message: &[u8]) -> Result<(), SendError>;
        try_send(message: &[u8]) -> Result<(), TrySendError>;
        send_timeout(message: &[u8], timeout: Duration) -> Result<(), SendTimeoutError>;
        send_deadline(message: &[u8], deadline: Instant) -> Result<(), SendTimeoutError>;
        send_tagged(message: &[u8], tag: u64) -> Result<(), SendError>;
        try_send_tagged(message: &[u8], tag: u64) -> Result<(), TrySendError>;
        send_tagged_timeout(message: &[u8], tag: u64, timeout: Duration) -> Result<(), SendTimeoutError>;
        send_tagged_deadline(message: &[u8], tag: u64, deadline: Instant) -> Result<(), SendTimeoutError>;
        send_vectored(parts: &[IoSlice<'_>], tag: u64) -> Result<(), SendError>;
        try_send_vectored(parts: &[IoSlice<'_>], tag: u64) -> Result<(), TrySendError>;
        send_vectored_timeout(parts: &[IoSlice<'_>], tag: u64, timeout: Duration) -> Result<(), SendTimeoutError>;
        send_vectored_deadline(parts: &[IoSlice<'_>], tag: u64, deadline: Instant) -> Result<(), SendTimeoutError>;
        reserve(len: usize) -> Result<Reservation<'_>, SendError>;
        try_reserve(len: usize) -> Result<Reservation<'_>, TrySendError>;
        reserve_timeout(len: usize, timeout: Duration) -> Result<Reservation<'_>, SendTimeoutError>;
        reserve_deadline(len: usize, deadline: Instant) -> Result<Reservation<'_>, SendTimeoutError>;
    } }

    of_half! { receiver: Receiver {
        recv(buffer: &mut [u8]) -> Result<Received, RecvError>;
        try_recv(buffer: &mut [u8]) -> Result<Received, TryRecvError>;
        recv_timeout(buffer: &mut [u8], timeout: Duration) -> Result<Received, RecvTimeoutError>;
        recv_deadline(buffer: &mut [u8], deadline: Instant) -> Result<Received, RecvTimeoutError>;
        recv_into(buffer: &mut Vec<u8>) -> Result<Received, RecvError>;
        try_recv_into(buffer: &mut Vec<u8>) -> Result<Received, TryRecvError>;
        recv_into_timeout(buffer: &mut Vec<u8>, timeout: Duration) -> Result<Received, RecvTimeoutError>;
        recv_into_deadline(buffer: &mut Vec<u8>, deadline: Instant) -> Result<Received, RecvTimeoutError>;
        recv_ref() -> Result<RecvGuard<'_>, RecvError>;
        try_recv_ref() -> Result<RecvGuard<'_>, TryRecvError>;
        recv_ref_timeout(timeout: Duration) -> Result<RecvGuard<'_>, RecvTimeoutError>;
        recv_ref_deadline(deadline: Instant) -> Result<RecvGuard<'_>, RecvTimeoutError>;
    } }

    /// Collects messages and commits them together. See [`Sender::batch`].
    pub fn batch(&mut self) -> Batch<'_> {
        self.sender.batch()
    }

    /// Messages until the connection ends. See [`Receiver::iter`].
    pub fn iter(&mut self) -> Iter<'_> {
        self.receiver.iter()
    }

    /// Messages that are there now. See [`Receiver::try_iter`].
    pub fn try_iter(&mut self) -> TryIter<'_> {
        self.receiver.try_iter()
    }

    /// The longest message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.sender.max_message()
    }

    /// Finds a size that was chosen in these options and that the connection does not have.
    pub(crate) fn contradiction(&self, options: &Options) -> Option<String> {
        options.contradiction(&self.sender.connection().geometry(), self.max_message())
    }

    /// The longest message of one reservation, in bytes.
    pub fn max_in_place(&self) -> usize {
        self.sender.max_in_place()
    }

    /// Waits until a message has come, or there is room to send `len` bytes, whichever is first.
    ///
    /// So one thread can go on draining replies while it waits to send. For a message longer than
    /// [`max_in_place`](Self::max_in_place) it waits for room for its beginning, also if it is longer than any may be:
    /// that is for the send to tell. Once one direction has ended that one is always ready, and the next call in it
    /// tells how: use the other's own blocking calls from then on.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::Options::new().slots(1).pair()?;
    /// a.send(b"question")?; // The ring is full now: another send would wait.
    /// b.send(b"answer")?;
    /// let ready = a.wait_either(8)?;
    /// assert!(ready.message && !ready.space); // So receive first.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Never if the connection has ended: a direction that has ended is ready, and the next call in
    /// it tells how. When the peer drops its stream, one direction may be seen to end a moment before
    /// the other. [`SendTimeoutError::Forked`] in a forked child.
    pub fn wait_either(&mut self, len: usize) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, None)
    }

    /// As [`wait_either`](Self::wait_either), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`] if neither was ready in time.
    pub fn wait_either_timeout(&mut self, len: usize, timeout: Duration) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, Instant::now().checked_add(timeout))
    }

    /// As [`wait_either`](Self::wait_either), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`] if neither was ready in time.
    pub fn wait_either_deadline(&mut self, len: usize, deadline: Instant) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, Some(deadline))
    }

    /// The kernel's word about the peer when the connection was made.
    ///
    /// On a client that is the process that called `listen`, which may be another one than serves (a daemon's
    /// starter, the parent of workers); its user is the same. After a hand-over it is the child or the parent.
    pub fn peer_cred(&self) -> PeerCred {
        self.sender.connection().cred()
    }

    /// What this end has done so far.
    pub fn stats(&self) -> Stats {
        self.sender.stats().and_received(self.receiver.stats())
    }

    /// Whether the connection has ended: no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        self.sender.is_disconnected()
    }

    /// A handle that closes the connection from any thread.
    pub fn closer(&self) -> Closer {
        self.sender.closer()
    }

    /// Closes both directions, as dropping does; the peer receives what was committed before.
    pub fn close(self) {
        self.closer().close();
    }

    /// Makes a byte stream of each half, for code that reads and writes and knows of no messages.
    ///
    /// ```
    /// use std::io::{BufRead, Write};
    /// let (a, b) = narrows::SharedMemoryStream::pair()?;
    /// let ((_, mut writer), (mut reader, _)) = (a.into_bytes(), b.into_bytes());
    /// writeln!(writer, "mind the tide")?;
    /// let mut line = String::new();
    /// reader.read_line(&mut line)?;
    /// assert_eq!(line, "mind the tide\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_bytes(self) -> (ByteReader, ByteWriter) {
        (self.receiver.into_reader(), self.sender.into_writer())
    }

    /// What tells this connection from others of this process.
    pub(crate) fn id(&self) -> Option<crate::channel::ConnectionId> {
        crate::channel::ConnectionId::of(self.sender.connection())
    }

    /// The connection taken apart, for the layer of calls.
    pub(crate) fn into_ends(self) -> RawParts {
        let line = ConnectionHandle::new(self.sender.connection());
        RawParts {
            outbound: self.sender.into_outbound(),
            inbound: self.receiver.into_inbound(),
            handle: line,
        }
    }

    pub(crate) fn new(established: Established, options: &Options) -> Self {
        let connection = Arc::clone(&established.connection);
        Self {
            sender: Sender::new(&connection, options.strategy()),
            receiver: Receiver::new(&connection, options.strategy()),
        }
    }

    fn wait_until(&mut self, len: usize, deadline: Deadline) -> Result<Ready, SendTimeoutError> {
        if !(self.sender.connection().same_process() && self.receiver.connection().same_process()) {
            return Err(SendTimeoutError::Forked);
        }
        let mut tries = 0_u32;
        loop {
            let ticket = self.receiver.inb_ref().ring().ticket();
            let message = self.receiver.inb().ready();
            // Whatever is wrong with sending alone, the next send says it at once.
            let needs = self.sender.out().ticket_to_await(len).unwrap_or(None);
            let Some(needs) = needs.filter(|_| !message) else {
                return Ok(Ready { message, space: needs.is_none() });
            };
            if !self.sleep_for_either(needs, deadline, tries) {
                return Err(SendTimeoutError::Timeout);
            }
            // Who sends pieces does not play with us.
            let same = self.receiver.inb_ref().ring().ticket() == ticket;
            tries = if same { tries.saturating_add(1) } else { 1 };
        }
    }

    fn sleep_for_either(&mut self, needs: u64, deadline: Deadline, tries: u32) -> bool {
        let same = Arc::ptr_eq(self.sender.connection(), self.receiver.connection());
        let outgoing = self.sender.out().ring();
        if !same {
            // Halves of two connections, exchanged through `halves`: no peer would wake us for both.
            outgoing.mem().back_off(deadline);
            return !outgoing.mem().has_expired(deadline);
        }
        let wanted = outgoing.awaited_release(needs);
        self.receiver.inb().wait_for_any(Some((outgoing.mem(), wanted)), deadline, tries, || false)
    }
}

impl Options {
    /// Connects to the listener at `path`, within the handshake timeout (5 s unless set).
    ///
    /// ```no_run
    /// use narrows::{Options, WaitStrategy};
    /// let mut stream = Options::new().wait(WaitStrategy::Spin).connect("/run/user/1000/socket")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn connect(&self, path: impl AsRef<Path>) -> Result<SharedMemoryStream, ConnectError> {
        self.connect_timeout(path, self.connect_timeout_or_default())
    }

    /// Connects to the listener at `path`, within `timeout`; one too long for the clock is for ever.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn connect_timeout(
        &self,
        path: impl AsRef<Path>,
        timeout: Duration,
    ) -> Result<SharedMemoryStream, ConnectError> {
        self.connect_within(path.as_ref(), ConnectLimit::deadline(deadline(timeout)))
    }

    /// As [`connect_timeout`](Self::connect_timeout), within a limit that another thread may end.
    pub(crate) fn connect_within(
        &self,
        path: &Path,
        limit: ConnectLimit<'_>,
    ) -> Result<SharedMemoryStream, ConnectError> {
        Ok(SharedMemoryStream::new(connect::connect(path, self, limit)?, self))
    }

    /// Makes both ends of a connection within this process.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn pair(&self) -> Result<(SharedMemoryStream, SharedMemoryStream), ConnectError> {
        let (client, server) = connect::pair(self)?;
        Ok((SharedMemoryStream::new(client, self), SharedMemoryStream::new(server, self)))
    }

    /// Starts `command` with one end of a new connection, and waits until the child has taken it. See
    /// [`SharedMemoryStream::spawn`].
    ///
    /// ```no_run
    /// use std::process::Command;
    /// let options = narrows::Options::new().arena(8 << 20);
    /// let (child, stream) = options.spawn(Command::new("backend"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SpawnError`]; as for [`SharedMemoryStream::spawn`].
    pub fn spawn(
        &self,
        mut command: impl BorrowMut<Command>,
    ) -> Result<(Child, SharedMemoryStream), SpawnError> {
        let (child, established) = connect::spawn(command.borrow_mut(), self)?;
        Ok((child, SharedMemoryStream::new(established, self)))
    }

    /// Takes the connection with which the parent started this process; works once.
    ///
    /// ```no_run
    /// let stream = narrows::Options::new().arena(8 << 20).from_parent()?; // The smaller wish of both holds.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn from_parent(&self) -> Result<SharedMemoryStream, ConnectError> {
        Ok(SharedMemoryStream::new(connect::from_parent(self)?, self))
    }
}

/// The handshake socket. It never carries data: it becomes readable, with a hang-up, when the peer is
/// gone, and says nothing about messages.
impl AsFd for SharedMemoryStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.connection().as_fd()
    }
}

impl fmt::Debug for SharedMemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryStream").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

impl From<ConnectionError> for io::Error {
    fn from(ended: ConnectionError) -> Self {
        SendError::from(ended).into()
    }
}

static_assertions::assert_impl_all!(SharedMemoryStream: Send, AsFd);
static_assertions::assert_not_impl_any!(SharedMemoryStream: Sync, Clone);
