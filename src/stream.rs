//! A connection as one object: both halves, and the functions that make it.

use std::borrow::BorrowMut;
use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
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
/// Dropping it closes both directions: the peer receives what was committed, then `Disconnected`. A process that ends
/// without dropping its stream (`std::process::exit`, or a return from `main` while another thread holds the stream) is
/// reported to the peer as `PeerDied`.
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

/// What [`SharedMemoryStream::wait_either`] found ready.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let ready = a.wait_either(64)?;
/// assert!(ready.space && !ready.message);
/// b.send(b"hello")?;
/// assert!(a.wait_either(64)?.message);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// A receive would return at once: with a message, or because the connection has ended.
    pub message: bool,
    /// A `try_send` of the requested length would return at once: with success, or because the connection has ended.
    pub space: bool,
}

/// Declares methods of the stream that call the method of the same name of one half.
macro_rules! of_half {
    ($half:ident { $( $(#[$doc:meta])* $name:ident ( $($arg:ident: $ty:ty),* ) -> $out:ty; )* }) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $name(&mut self, $($arg: $ty),*) -> $out {
                self.$half.$name($($arg),*)
            }
        )*
    };
}

impl SharedMemoryStream {
    /// Connects to the listener at `path`, with the default [`Options`]. Blocks until the handshake is complete, for at
    /// most 5 s.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which has a variant for each cause. If no server listens at the path, the call fails at once.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Options::new().connect(path)
    }

    /// Connects to the listener at `path`, with the default [`Options`]. Blocks until the handshake is complete, for at
    /// most `timeout`; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which has a variant for each cause. If no server listens at the path, the call fails at once.
    pub fn connect_timeout(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ConnectError> {
        Options::new().connect_timeout(path, timeout)
    }

    /// Makes both ends of a connection within this process.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Io`] if there is no memory or no descriptor left.
    pub fn pair() -> Result<(Self, Self), ConnectError> {
        Options::new().pair()
    }

    /// Starts `command` with one end of a new connection. Blocks until the child has taken that end with
    /// [`from_parent`](Self::from_parent), for at most 5 s after the start of the child.
    ///
    /// `command` may be a shell or a launcher that starts the actual child and passes the descriptor on. The peer is
    /// the process that takes the connection: its death is reported, and [`peer_cred`](Self::peer_cred) names it. The
    /// child inherits the descriptor without a `pre_exec` closure, so a parent with much memory is not copied. A
    /// closure that the program adds itself must neither close that descriptor nor mark it as close-on-exec.
    ///
    /// ```no_run
    /// use std::process::Command;
    /// let (child, stream) = narrows::SharedMemoryStream::spawn(Command::new("backend").arg("-v"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SpawnError`]. The child was killed and reaped then, and a process that was taking the connection was killed.
    pub fn spawn(command: impl BorrowMut<Command>) -> Result<(Child, Self), SpawnError> {
        Options::new().spawn(command)
    }

    /// Takes the connection with which the parent started this process. Only one call succeeds, also if the process has
    /// several copies of this library.
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
    /// [`ConnectError`]: `NoParent` if the process was not started with a connection, `ParentTaken` if it was taken
    /// already, `BadParent` if the descriptor is not in this process, usually since a wrapper has closed it.
    pub fn from_parent() -> Result<Self, ConnectError> {
        Options::new().from_parent()
    }

    /// Returns the two halves, for two threads. The connection stays open until both are dropped.
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
    /// let sending = std::thread::spawn(move || sender.send(b"hello")); // Drops the sender.
    /// assert_eq!(receiver.iter().collect::<Result<Vec<_>, _>>()?, [b"hello"]);
    /// sending.join().unwrap()?;
    /// echo.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Returns both halves by reference, so that a borrow of one does not block the other.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// b.send(b"tide")?;
    /// let (sender, receiver) = a.halves();
    /// let message = receiver.recv_ref()?; // Borrows one half ...
    /// let mut reply = sender.reserve(message.len())?; // ... while the other half sends.
    /// std::io::copy(&mut &*message.to_vec()?, &mut reply)?;
    /// reply.commit()?;
    /// drop(message);
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"tide");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn halves(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }

    of_half! { sender {
        /// Sends one message. Blocks while the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendError`]: the message is longer than [`max_message`](Self::max_message), or the connection has ended:
        /// the peer closed it, died or violated the protocol.
        send(message: &[u8]) -> Result<(), SendError>;
        /// Sends one message. Never blocks: fails if the ring has no room now.
        ///
        /// # Errors
        ///
        /// [`TrySendError`]: the ring has no room now, the message is longer than [`max_message`](Self::max_message),
        /// or the connection has ended: the peer closed it, died or violated the protocol. A message that does not fit
        /// into an empty ring fails with [`TrySendError::TooLargeToTry`].
        try_send(message: &[u8]) -> Result<(), TrySendError>;
        /// Sends one message. Blocks for at most `timeout` while the ring has no room.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_timeout(message: &[u8], timeout: Duration) -> Result<(), SendTimeoutError>;
        /// Sends one message. Blocks until `deadline` at most while the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_deadline(message: &[u8], deadline: Instant) -> Result<(), SendTimeoutError>;
        /// Sends one message with a tag: 64 bits that travel beside the payload. Blocks while the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendError`]: the message is longer than [`max_message`](Self::max_message), or the connection has ended:
        /// the peer closed it, died or violated the protocol.
        ///
        /// ```
        /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
        /// a.send_tagged(b"hello", 7)?;
        /// assert_eq!(b.recv_ref()?.tag(), 7);
        /// # Ok::<(), std::io::Error>(())
        /// ```
        send_tagged(message: &[u8], tag: u64) -> Result<(), SendError>;
        /// Sends one message with a tag: 64 bits that travel beside the payload. Never blocks: fails if the ring has no
        /// room now.
        ///
        /// # Errors
        ///
        /// [`TrySendError`]: the ring has no room now, the message is longer than [`max_message`](Self::max_message),
        /// or the connection has ended: the peer closed it, died or violated the protocol. A message that does not fit
        /// into an empty ring fails with [`TrySendError::TooLargeToTry`].
        try_send_tagged(message: &[u8], tag: u64) -> Result<(), TrySendError>;
        /// Sends one message with a tag: 64 bits that travel beside the payload. Blocks for at most `timeout` while the
        /// ring has no room.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_tagged_timeout(message: &[u8], tag: u64, timeout: Duration) -> Result<(), SendTimeoutError>;
        /// Sends one message with a tag: 64 bits that travel beside the payload. Blocks until `deadline` at most while
        /// the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_tagged_deadline(message: &[u8], tag: u64, deadline: Instant) -> Result<(), SendTimeoutError>;
        /// Sends one message, which is the concatenation of `parts`, with a tag. Blocks while the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendError`]: the message is longer than [`max_message`](Self::max_message), or the connection has ended:
        /// the peer closed it, died or violated the protocol.
        ///
        /// ```
        /// use std::io::IoSlice;
        /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
        /// a.send_vectored(&[IoSlice::new(b"head"), IoSlice::new(b" and body")], 0)?;
        /// assert_eq!(b.recv_ref()?.to_vec()?, b"head and body");
        /// # Ok::<(), std::io::Error>(())
        /// ```
        send_vectored(parts: &[IoSlice<'_>], tag: u64) -> Result<(), SendError>;
        /// Sends one message, which is the concatenation of `parts`, with a tag. Never blocks: fails if the ring has no
        /// room now.
        ///
        /// # Errors
        ///
        /// [`TrySendError`]: the ring has no room now, the message is longer than [`max_message`](Self::max_message),
        /// or the connection has ended: the peer closed it, died or violated the protocol. A message that does not fit
        /// into an empty ring fails with [`TrySendError::TooLargeToTry`].
        try_send_vectored(parts: &[IoSlice<'_>], tag: u64) -> Result<(), TrySendError>;
        /// Sends one message, which is the concatenation of `parts`, with a tag. Blocks for at most `timeout` while the
        /// ring has no room.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_vectored_timeout(parts: &[IoSlice<'_>], tag: u64, timeout: Duration) -> Result<(), SendTimeoutError>;
        /// Sends one message, which is the concatenation of `parts`, with a tag. Blocks until `deadline` at most while
        /// the ring has no room.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, the message is longer than
        /// [`max_message`](Self::max_message), or the connection has ended: the peer closed it, died or violated the
        /// protocol. No part of the message is delivered then.
        send_vectored_deadline(parts: &[IoSlice<'_>], tag: u64, deadline: Instant) -> Result<(), SendTimeoutError>;
        /// Reserves room for a message of `len` bytes, which the program writes in place, in shared memory. Blocks
        /// while the ring has no room.
        ///
        /// The message is sent by [`Reservation::commit`]. Dropping the reservation without a commit gives the room
        /// back.
        ///
        /// # Errors
        ///
        /// [`SendError`]: `len` is more than [`max_in_place`](Self::max_in_place), or the connection has ended: the
        /// peer closed it, died or violated the protocol.
        reserve(len: usize) -> Result<Reservation<'_>, SendError>;
        /// Reserves room for a message of `len` bytes, which the program writes in place, in shared memory. Never
        /// blocks: fails if the ring has no room now.
        ///
        /// The message is sent by [`Reservation::commit`]. Dropping the reservation without a commit gives the room
        /// back.
        ///
        /// # Errors
        ///
        /// [`TrySendError`]: the ring has no room now, `len` is more than [`max_in_place`](Self::max_in_place), or the
        /// connection has ended: the peer closed it, died or violated the protocol.
        try_reserve(len: usize) -> Result<Reservation<'_>, TrySendError>;
        /// Reserves room for a message of `len` bytes, which the program writes in place, in shared memory. Blocks for
        /// at most `timeout` while the ring has no room.
        ///
        /// The message is sent by [`Reservation::commit`]. Dropping the reservation without a commit gives the room
        /// back.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, `len` is more than [`max_in_place`](Self::max_in_place),
        /// or the connection has ended: the peer closed it, died or violated the protocol.
        reserve_timeout(len: usize, timeout: Duration) -> Result<Reservation<'_>, SendTimeoutError>;
        /// Reserves room for a message of `len` bytes, which the program writes in place, in shared memory. Blocks
        /// until `deadline` at most while the ring has no room.
        ///
        /// The message is sent by [`Reservation::commit`]. Dropping the reservation without a commit gives the room
        /// back.
        ///
        /// # Errors
        ///
        /// [`SendTimeoutError`]: the ring had no room in time, `len` is more than [`max_in_place`](Self::max_in_place),
        /// or the connection has ended: the peer closed it, died or violated the protocol.
        reserve_deadline(len: usize, deadline: Instant) -> Result<Reservation<'_>, SendTimeoutError>;
    } }

    of_half! { receiver {
        /// Receives the next message into `buffer`. Blocks while there is no message.
        ///
        /// A message that is longer than the buffer is kept for the next call, and the error has its length.
        ///
        /// # Errors
        ///
        /// [`RecvError`]: the buffer is too small, or the connection has ended: the peer closed it, died or violated
        /// the protocol.
        recv(buffer: &mut [u8]) -> Result<Received, RecvError>;
        /// Receives the next message into `buffer`. Never blocks: fails if there is no message now.
        ///
        /// A message that is longer than the buffer is kept for the next call, and the error has its length.
        ///
        /// # Errors
        ///
        /// [`TryRecvError`]: there is no message now, the buffer is too small, or the connection has ended: the peer
        /// closed it, died or violated the protocol.
        try_recv(buffer: &mut [u8]) -> Result<Received, TryRecvError>;
        /// Receives the next message into `buffer`. Blocks for at most `timeout` while there is no message.
        ///
        /// A message that is longer than the buffer is kept for the next call, and the error has its length.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, the buffer is too small, or the connection has ended: the
        /// peer closed it, died or violated the protocol.
        recv_timeout(buffer: &mut [u8], timeout: Duration) -> Result<Received, RecvTimeoutError>;
        /// Receives the next message into `buffer`. Blocks until `deadline` at most while there is no message.
        ///
        /// A message that is longer than the buffer is kept for the next call, and the error has its length.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, the buffer is too small, or the connection has ended: the
        /// peer closed it, died or violated the protocol.
        recv_deadline(buffer: &mut [u8], deadline: Instant) -> Result<Received, RecvTimeoutError>;
        /// Receives the next message, of any length, and replaces the contents of `buffer` by it. Blocks while there is
        /// no message.
        ///
        /// The buffer's memory is used again, so the steady state allocates nothing. If a deadline passes in the middle
        /// of a message in fragments, the fragments are kept for the next call and the buffer is left empty. The buffer
        /// is also empty once the connection has ended.
        ///
        /// # Errors
        ///
        /// [`RecvError`]: there is no memory for the message, or the connection has ended: the peer closed it, died or
        /// violated the protocol.
        recv_into(buffer: &mut Vec<u8>) -> Result<Received, RecvError>;
        /// Receives the next message, of any length, and replaces the contents of `buffer` by it. Never blocks: fails
        /// if there is no message now.
        ///
        /// The buffer's memory is used again, so the steady state allocates nothing. If a deadline passes in the middle
        /// of a message in fragments, the fragments are kept for the next call and the buffer is left empty. The buffer
        /// is also empty once the connection has ended.
        ///
        /// # Errors
        ///
        /// [`TryRecvError`]: there is no message now, there is no memory for the message, or the connection has ended:
        /// the peer closed it, died or violated the protocol.
        try_recv_into(buffer: &mut Vec<u8>) -> Result<Received, TryRecvError>;
        /// Receives the next message, of any length, and replaces the contents of `buffer` by it. Blocks for at most
        /// `timeout` while there is no message.
        ///
        /// The buffer's memory is used again, so the steady state allocates nothing. If a deadline passes in the middle
        /// of a message in fragments, the fragments are kept for the next call and the buffer is left empty. The buffer
        /// is also empty once the connection has ended.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, there is no memory for the message, or the connection has
        /// ended: the peer closed it, died or violated the protocol.
        recv_into_timeout(buffer: &mut Vec<u8>, timeout: Duration) -> Result<Received, RecvTimeoutError>;
        /// Receives the next message, of any length, and replaces the contents of `buffer` by it. Blocks until
        /// `deadline` at most while there is no message.
        ///
        /// The buffer's memory is used again, so the steady state allocates nothing. If a deadline passes in the middle
        /// of a message in fragments, the fragments are kept for the next call and the buffer is left empty. The buffer
        /// is also empty once the connection has ended.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, there is no memory for the message, or the connection has
        /// ended: the peer closed it, died or violated the protocol.
        recv_into_deadline(buffer: &mut Vec<u8>, deadline: Instant) -> Result<Received, RecvTimeoutError>;
        /// Receives the next message without copying it: the guard reads it in shared memory. Blocks while there is no
        /// message.
        ///
        /// Dropping the guard releases the message. A message that came in fragments is copied first.
        ///
        /// # Errors
        ///
        /// [`RecvError`]: there is no memory for a message in fragments, or the connection has ended: the peer closed
        /// it, died or violated the protocol.
        recv_ref() -> Result<RecvGuard<'_>, RecvError>;
        /// Receives the next message without copying it: the guard reads it in shared memory. Never blocks: fails if
        /// there is no message now.
        ///
        /// Dropping the guard releases the message. A message that came in fragments is copied first.
        ///
        /// # Errors
        ///
        /// [`TryRecvError`]: there is no message now, there is no memory for a message in fragments, or the connection
        /// has ended: the peer closed it, died or violated the protocol.
        try_recv_ref() -> Result<RecvGuard<'_>, TryRecvError>;
        /// Receives the next message without copying it: the guard reads it in shared memory. Blocks for at most
        /// `timeout` while there is no message.
        ///
        /// Dropping the guard releases the message. A message that came in fragments is copied first.
        ///
        /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, there is no memory for a message in fragments, or the
        /// connection has ended: the peer closed it, died or violated the protocol.
        recv_ref_timeout(timeout: Duration) -> Result<RecvGuard<'_>, RecvTimeoutError>;
        /// Receives the next message without copying it: the guard reads it in shared memory. Blocks until `deadline`
        /// at most while there is no message.
        ///
        /// Dropping the guard releases the message. A message that came in fragments is copied first.
        ///
        /// # Errors
        ///
        /// [`RecvTimeoutError`]: no message came in time, there is no memory for a message in fragments, or the
        /// connection has ended: the peer closed it, died or violated the protocol.
        recv_ref_deadline(deadline: Instant) -> Result<RecvGuard<'_>, RecvTimeoutError>;
    } }

    /// Returns a batch, which collects messages and commits them together.
    pub fn batch(&mut self) -> Batch<'_> {
        self.sender.batch()
    }

    /// Returns an iterator over the messages until the connection ends; blocks between them.
    ///
    /// A clean end ends the iteration. The peer's death or a protocol violation comes once as an error.
    pub fn iter(&mut self) -> Iter<'_> {
        self.receiver.iter()
    }

    /// Returns an iterator over the messages that have come; never blocks.
    ///
    /// It ends when there is no message now, or when the connection has ended: the next receive reports which.
    pub fn try_iter(&mut self) -> TryIter<'_> {
        self.receiver.try_iter()
    }

    /// Returns the maximum length of a message, in bytes, as agreed with the peer.
    pub fn max_message(&self) -> usize {
        self.sender.max_message()
    }

    /// Returns a text about a size that these options set and that the connection does not have, if there is one.
    pub(crate) fn contradiction(&self, options: &Options) -> Option<String> {
        options.contradiction(&self.sender.connection().geometry(), self.max_message())
    }

    /// Returns the maximum length of one reservation, in bytes.
    pub fn max_in_place(&self) -> usize {
        self.sender.max_in_place()
    }

    /// Blocks until a message has come, or there is room to send `len` bytes, whichever is first.
    ///
    /// With this, one thread can drain replies while it waits to send. For a message longer than
    /// [`max_in_place`](Self::max_in_place) it waits for room for the first fragment. It does so also for a length
    /// above [`max_message`](Self::max_message), which only the send reports as an error. Once one direction has ended,
    /// that direction is always ready, and the next call in it reports how it ended: use the blocking calls of the
    /// other direction from then on.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::Options::new().slots(1).pair()?;
    /// a.send(b"question")?; // The ring is full now: another send would wait.
    /// b.send(b"answer")?;
    /// let ready = a.wait_either(8)?;
    /// assert!(ready.message && !ready.space); // Receive first.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child. The end of the connection is not an error here: a direction that
    /// has ended is ready, and the next call in it reports how it ended. When the peer drops its stream, one direction
    /// may end a moment before the other.
    pub fn wait_either(&mut self, len: usize) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, None)
    }

    /// Blocks until a message has come, or there is room to send `len` bytes, for at most `timeout`; one that overflows
    /// [`Instant`] means no deadline. [`wait_either`](Self::wait_either) describes what counts as ready.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`] if neither was ready in time, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child.
    pub fn wait_either_timeout(&mut self, len: usize, timeout: Duration) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, Instant::now().checked_add(timeout))
    }

    /// Blocks until a message has come, or there is room to send `len` bytes, until `deadline` at most.
    /// [`wait_either`](Self::wait_either) describes what counts as ready.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError::Timeout`] if neither was ready in time, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child.
    pub fn wait_either_deadline(&mut self, len: usize, deadline: Instant) -> Result<Ready, SendTimeoutError> {
        self.wait_until(len, Some(deadline))
    }

    /// Returns the peer's credentials, as the kernel reported them when the connection was made.
    ///
    /// On a client they are those of the process that called `listen`. That may be another process than the one that
    /// serves (the process that started a daemon, the parent of workers); its user is the same. For a connection of a
    /// parent and its child, the peer is the child or the parent.
    pub fn peer_cred(&self) -> PeerCred {
        self.sender.connection().cred()
    }

    /// Returns the statistics of this end.
    pub fn stats(&self) -> Stats {
        self.sender.stats().and_received(self.receiver.stats())
    }

    /// Returns whether the connection has ended: no later send can succeed.
    pub fn is_disconnected(&self) -> bool {
        self.sender.is_disconnected()
    }

    /// Returns a handle that closes the connection from any thread.
    pub fn closer(&self) -> Closer {
        self.sender.closer()
    }

    /// Closes both directions, as dropping does; the peer receives what was committed before.
    pub fn close(self) {
        self.closer().close();
    }

    /// Converts each half into a byte stream, for code that uses `Read` and `Write` instead of messages.
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

    /// Returns a value that identifies this connection among those of this process.
    pub(crate) fn id(&self) -> Option<crate::channel::ConnectionId> {
        crate::channel::ConnectionId::of(self.sender.connection())
    }

    /// Takes the connection apart, for the layer of remote calls.
    pub(crate) fn into_ends(self) -> RawParts {
        let handle = ConnectionHandle::new(self.sender.connection());
        RawParts { outbound: self.sender.into_outbound(), inbound: self.receiver.into_inbound(), handle }
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
            return Err(SendTimeoutError::ConnectionLost(ConnectionError::Forked));
        }
        let mut tries = 0_u32;
        loop {
            let ticket = self.receiver.inb_ref().ring().ticket();
            let message = self.receiver.inb().ready();
            // An error of the sending direction counts as ready: the next send reports it at once.
            let needs = self.sender.out().ticket_to_await(len).unwrap_or(None);
            let Some(needs) = needs.filter(|_| !message) else {
                return Ok(Ready { message, space: needs.is_none() });
            };
            if !self.sleep_for_either(needs, deadline, tries) {
                return Err(SendTimeoutError::Timeout);
            }
            // A fragment that arrived is progress, also if the message is not complete: the spurious wakeups are
            // counted from the start again.
            let same = self.receiver.inb_ref().ring().ticket() == ticket;
            tries = if same { tries.saturating_add(1) } else { 1 };
        }
    }

    fn sleep_for_either(&mut self, needs: u64, deadline: Deadline, tries: u32) -> bool {
        let same = Arc::ptr_eq(self.sender.connection(), self.receiver.connection());
        let outgoing = self.sender.out().ring();
        if !same {
            // The program exchanged halves of two connections through `halves`. No peer would wake this thread for
            // both, so it polls.
            outgoing.mem().back_off(deadline);
            return !outgoing.mem().has_expired(deadline);
        }
        let wanted = outgoing.awaited_release(needs);
        self.receiver.inb().wait_for_any(Some((outgoing.mem(), wanted)), deadline, tries, || false)
    }
}

impl Options {
    /// Connects to the listener at `path`. Blocks until the handshake is complete, for at most the
    /// [`handshake_timeout`](Self::handshake_timeout) (5 s by default).
    ///
    /// ```no_run
    /// use narrows::{Options, WaitStrategy};
    /// let mut stream = Options::new().wait(WaitStrategy::Spin).connect("/run/user/1000/socket")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which has a variant for each cause. If no server listens at the path, the call fails at once,
    /// unless [`wait_for_server`](Self::wait_for_server) is set.
    pub fn connect(&self, path: impl AsRef<Path>) -> Result<SharedMemoryStream, ConnectError> {
        self.connect_timeout(path, self.connect_timeout_or_default())
    }

    /// Connects to the listener at `path`. Blocks until the handshake is complete, for at most `timeout`; one that
    /// overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which has a variant for each cause. If no server listens at the path, the call fails at once,
    /// unless [`wait_for_server`](Self::wait_for_server) is set.
    pub fn connect_timeout(
        &self,
        path: impl AsRef<Path>,
        timeout: Duration,
    ) -> Result<SharedMemoryStream, ConnectError> {
        self.connect_within(path.as_ref(), ConnectLimit::deadline(deadline(timeout)))
    }

    /// Connects to the listener at `path`, within a limit that another thread may end.
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
    /// [`ConnectError::BadOptions`] if the options are not legal, [`ConnectError::Io`] if there is no memory or no
    /// descriptor left.
    pub fn pair(&self) -> Result<(SharedMemoryStream, SharedMemoryStream), ConnectError> {
        let (client, server) = connect::pair(self)?;
        Ok((SharedMemoryStream::new(client, self), SharedMemoryStream::new(server, self)))
    }

    /// Starts `command` with one end of a new connection. Blocks until the child has taken that end with
    /// [`from_parent`](Self::from_parent), for at most the [`handshake_timeout`](Self::handshake_timeout) (5 s by
    /// default) after the start of the child. [`SharedMemoryStream::spawn`] has the details.
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
    /// [`SpawnError`]. The child was killed and reaped then, and a process that was taking the connection was killed.
    pub fn spawn(
        &self,
        mut command: impl BorrowMut<Command>,
    ) -> Result<(Child, SharedMemoryStream), SpawnError> {
        let (child, established) = connect::spawn(command.borrow_mut(), self)?;
        Ok((child, SharedMemoryStream::new(established, self)))
    }

    /// Takes the connection with which the parent started this process. Only one call succeeds.
    ///
    /// ```no_run
    /// let stream = narrows::Options::new().arena(8 << 20).from_parent()?; // The smaller size of both sides is used.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: `NoParent` if the process was not started with a connection, `ParentTaken` if it was taken
    /// already, `BadParent` if the descriptor is not in this process, usually since a wrapper has closed it.
    pub fn from_parent(&self) -> Result<SharedMemoryStream, ConnectError> {
        Ok(SharedMemoryStream::new(connect::from_parent(self)?, self))
    }
}

/// Returns the handshake socket. It never carries data: it becomes readable, with a hang-up, when the peer has closed
/// the connection or ended. It does not show whether there are messages.
impl AsFd for SharedMemoryStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.connection().as_fd()
    }
}

/// The number of the descriptor that [`as_fd`](AsFd::as_fd) returns.
impl AsRawFd for SharedMemoryStream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<'a> IntoIterator for &'a mut SharedMemoryStream {
    type Item = Result<Vec<u8>, RecvError>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for SharedMemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryStream").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

static_assertions::assert_impl_all!(SharedMemoryStream: Send, AsFd, AsRawFd);
static_assertions::assert_not_impl_any!(SharedMemoryStream: Sync, Clone);
