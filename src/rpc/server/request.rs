//! What a method receives: the request, and the reader and writer of its streams.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::io;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{BorrowedRequest, CallInfo};
use super::in_flight::{DEADLINE_LEN, UploadItem};
use super::session::{Connection, Session, call_error};
use crate::channel::{AdaptiveWait, IncomingMessage, Mapping, PeerCred, RawBytes};
use crate::error::{CallError, ConnectionError};
use crate::memory::{Deadline, Span};
use crate::rpc::wire::{DEADLINE, HEADER_LEN};

/// A call, as its method sees it.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .on_connect(|connection| match connection.set_state(String::from("a state of its own")) {
///         true => Ok(()),
///         false => Err("it has one".into()),
///     })
///     .inline(1, |request, reply| {
///         assert!(request.method() == 1 && request.len() == 8 && !request.is_empty());
///         assert!(request.deadline().is_some() && !request.is_cancelled());
///         let state = request.state::<String>().ok_or("no state")?;
///         println!("call {} of {:?}: {state}", request.id(), request.peer_cred());
///         let mut head = [0; 3];
///         request.read_at(0, &mut head)?; // A part of it, without a copy of the rest.
///         request.connection().try_push(b"a push")?;
///         match request.raw() {
///             Some(bytes) => assert_eq!(bytes.len(), 8), // In the ring: see `RawBytes`.
///             None => assert_eq!(request.bytes(), b"ebb flow"), // In private memory.
///         }
///         reply.extend(head);
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// assert_eq!(*client.call_timeout(1, b"ebb flow", Duration::from_secs(5))?, *b"ebb");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Request<'a> {
    session: &'a Arc<Session>,
    call: CallInfo,
    deadline: Option<Instant>,
    body: RequestBody<'a>,
}

/// Where the bytes of a request are.
enum RequestBody<'a> {
    Private(&'a [u8]),
    InRing { borrowed: BorrowedRequest<'a, Mapping, AdaptiveWait>, skip: usize, copy: LazyCopy<'a> },
}

/// A copy that is made when it is first used, in a buffer that is used again.
struct LazyCopy<'a> {
    scratch: Cell<Option<&'a mut Vec<u8>>>,
    made: OnceCell<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Makes a request of bytes in private memory. A deadline counts from when the call's first frame arrived, or
    /// from now.
    pub(super) fn private(
        session: &'a Arc<Session>,
        call: CallInfo,
        bytes: &'a [u8],
        arrived: Option<Instant>,
    ) -> Self {
        let (left, bytes) = match call.flags & DEADLINE {
            0 => (None, bytes),
            _ => bytes
                .split_at_checked(DEADLINE_LEN)
                .map_or((None, [].as_slice()), |(left, rest)| (Some(left), rest)),
        };
        Self {
            session,
            call,
            deadline: left.and_then(|left| deadline(left, arrived)),
            body: RequestBody::Private(bytes),
        }
    }

    /// Makes a request of bytes that are in the ring.
    pub(super) fn in_ring(
        session: &'a Arc<Session>,
        call: CallInfo,
        borrowed: BorrowedRequest<'a, Mapping, AdaptiveWait>,
        scratch: &'a mut Vec<u8>,
    ) -> Self {
        let (mut skip, mut limit) = (0, None);
        if call.flags & DEADLINE != 0 {
            let mut left = [0; DEADLINE_LEN];
            limit = borrowed.read(0, &mut left).and_then(|()| deadline(&left, None));
            skip = DEADLINE_LEN;
        }
        let copy = LazyCopy { scratch: Cell::new(Some(scratch)), made: OnceCell::new() };
        Self { session, call, deadline: limit, body: RequestBody::InRing { borrowed, skip, copy } }
    }

    /// Returns the number of the method that was called.
    pub fn method(&self) -> u32 {
        self.call.method
    }

    /// Returns the id of the call, which no other call of its connection has.
    pub fn id(&self) -> u64 {
        self.call.id
    }

    /// Returns the length of the request, in bytes.
    pub fn len(&self) -> usize {
        match &self.body {
            RequestBody::Private(bytes) => bytes.len(),
            RequestBody::InRing { borrowed, skip, .. } => borrowed.len().saturating_sub(*skip),
        }
    }

    /// Returns whether the request has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of the request.
    ///
    /// If an inline method's request is in the ring, the first call copies it into a buffer that is used again. Short
    /// requests are seldom in the ring.
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            RequestBody::Private(bytes) => bytes,
            RequestBody::InRing { borrowed, skip, copy } => copy.made.get_or_init(|| {
                let Some(scratch) = copy.scratch.take() else { return &[] };
                scratch.resize(borrowed.len().saturating_sub(*skip), 0);
                let _in_the_request = borrowed.read(*skip, scratch);
                &*scratch
            }),
        }
    }

    /// Copies the bytes from `offset` on into all of `into`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the request has fewer bytes; nothing is copied then.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "the request is shorter");
        match &self.body {
            RequestBody::Private(bytes) => {
                let end = offset.checked_add(into.len()).ok_or_else(short)?;
                into.copy_from_slice(bytes.get(offset..end).ok_or_else(short)?);
                Ok(())
            }
            RequestBody::InRing { borrowed, skip, .. } => {
                let at = offset.checked_add(*skip).ok_or_else(short)?;
                borrowed.read(at, into).ok_or_else(short)
            }
        }
    }

    /// Returns the bytes where they are in the ring, for an `unsafe` borrow that saves the copy. The terms are those
    /// of [`RecvGuard::raw`](crate::RecvGuard::raw).
    ///
    /// Only a request of an inline method that is contiguous in the ring has them. A short request seldom is, and one
    /// in fragments never is. For all others this returns `None`, and [`bytes`](Self::bytes) returns private memory.
    pub fn raw(&self) -> Option<RawBytes<'_>> {
        match &self.body {
            RequestBody::InRing { borrowed, skip, .. } => {
                let (memory, IncomingMessage::Placed(arrival)) = borrowed.message() else { return None };
                let (span, len): (Span, usize) = (arrival.span, self.len());
                memory.raw(span, HEADER_LEN + skip, len).map(RawBytes::new)
            }
            RequestBody::Private(_) => None,
        }
    }

    /// Returns whether the caller no longer waits for the call: it has cancelled, its deadline has passed and it has
    /// cancelled for that reason, or its connection has ended. A notification is served even if its sender has gone.
    /// Calls that the method makes are not cancelled with its own call.
    pub fn is_cancelled(&self) -> bool {
        !self.session.is_wanted(self.call)
    }

    /// Returns when the caller stops waiting, if it has a deadline. The deadline counts from the arrival of the call,
    /// before the call waited for a worker.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns the credentials of the caller's process, as the kernel reported them when the connection was made.
    pub fn peer_cred(&self) -> PeerCred {
        self.session.handle.cred()
    }

    /// Returns the caller's connection, which may be kept and used to push from any thread.
    pub fn connection(&self) -> Connection {
        Connection::new(self.session)
    }

    /// Returns the state that [`on_connect`](crate::SharedMemoryServer::on_connect) attached to the connection, if it
    /// has this type.
    pub fn state<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.session.state.get()?.downcast_ref()
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method())
            .field("id", &self.id())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Returns when the time that a caller has left is over; `None` if it overflows `Instant`.
fn deadline(left: &[u8], arrived: Option<Instant>) -> Option<Instant> {
    let left = left.try_into().map(u64::from_le_bytes).ok()?;
    arrived.unwrap_or_else(Instant::now).checked_add(Duration::from_nanos(left))
}

/// Writes the chunks of a reply stream.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .streaming(1, |request, chunks| {
///         let (head, rest) = request.bytes().split_at(4);
///         chunks.write_chunk(head)?;
///         for chunk in rest.chunks(chunks.max_chunk()) {
///             chunks.write_chunk_timeout(chunk, Duration::from_secs(5))?;
///         }
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// assert_eq!(client.call_streaming(1, b"ebb flow")?.count(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ChunkWriter<'a> {
    session: &'a Arc<Session>,
    id: u64,
}

impl<'a> ChunkWriter<'a> {
    pub(super) fn new(session: &'a Arc<Session>, id: u64) -> Self {
        Self { session, id }
    }

    /// Returns the length of the longest chunk, in bytes, as the negotiated window bounds it.
    pub fn max_chunk(&self) -> usize {
        self.session.max_chunk
    }

    /// Sends a chunk. Blocks while the client's window for this stream is full. Returns at once when the caller
    /// cancels or its connection ends.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`] if the chunk is longer than [`max_chunk`](Self::max_chunk), [`CallError::Cancelled`]
    /// if the caller has cancelled, [`CallError::OutOfMemory`] if the chunk cannot be kept until there is room,
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason why the connection ended.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), CallError> {
        self.write_until(chunk, None)
    }

    /// Sends a chunk, for at most `timeout`. A timeout that overflows `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`] if the chunk is longer than [`max_chunk`](Self::max_chunk), [`CallError::Cancelled`]
    /// if the caller has cancelled, [`CallError::OutOfMemory`] if the chunk cannot be kept until there is room,
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason why the connection ended. [`CallError::Timeout`] if the
    /// window was full until the deadline; nothing of the chunk was sent then.
    pub fn write_chunk_timeout(&mut self, chunk: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.write_until(chunk, Instant::now().checked_add(timeout))
    }

    fn write_until(&mut self, chunk: &[u8], deadline: Deadline) -> Result<(), CallError> {
        if !self.session.handle.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        if chunk.len() > self.session.max_chunk {
            return Err(CallError::TooLarge { len: chunk.len(), max: self.session.max_chunk });
        }
        self.session.connection.write_chunk(self.id, chunk, deadline).map_err(call_error)
    }
}

impl fmt::Debug for ChunkWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkWriter").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads the chunks of an upload. It is an iterator too, which yields an error once.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .upload(1, |_, chunks, reply| {
///         while let Some(chunk) = chunks.next_chunk()? { // Or as an iterator.
///             reply.extend(chunk);
///         }
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let mut upload = client.start_upload(1, b"")?;
/// upload.write_chunk(b"ebb")?;
/// assert_eq!(*upload.finish()?, *b"ebb");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ChunkReader<'a> {
    session: &'a Arc<Session>,
    id: u64,
    over: bool,
}

impl<'a> ChunkReader<'a> {
    pub(super) fn new(session: &'a Arc<Session>, id: u64) -> Self {
        Self { session, id, over: false }
    }

    /// Blocks until the next chunk, and returns it; returns `None` after the last. Returns at once when the caller
    /// cancels or its connection ends.
    ///
    /// # Errors
    ///
    /// [`CallError::Cancelled`] if the caller has cancelled, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason
    /// why the connection ended.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(None)
    }

    /// Waits for the next chunk, for at most `timeout`, and returns it; returns `None` after the last. A timeout that
    /// overflows `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError::Cancelled`] if the caller has cancelled, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason
    /// why the connection ended. [`CallError::Timeout`] if no chunk arrived in time.
    pub fn next_chunk_timeout(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Instant::now().checked_add(timeout))
    }

    fn next_until(&mut self, deadline: Deadline) -> Result<Option<Vec<u8>>, CallError> {
        if !self.session.handle.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        match self.session.connection.next_chunk(self.id, deadline).map_err(call_error)? {
            UploadItem::Chunk(chunk) => Ok(Some(chunk)),
            UploadItem::End => Ok(None),
        }
    }
}

impl FusedIterator for ChunkReader<'_> {}

impl Iterator for ChunkReader<'_> {
    type Item = Result<Vec<u8>, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.next_chunk().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl fmt::Debug for ChunkReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkReader").field("id", &self.id).finish_non_exhaustive()
    }
}
