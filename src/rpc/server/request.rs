//! What a method gets: the request, and the two ends of its streams.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attendant::{Given, Started};
use super::hall::Gone;
use super::peer::{Connection, Peer};
use super::place::TIME;
use super::table::Upload;
use crate::channel::{AdaptiveWait, IncomingMessage, Mapping, PeerCred, RawBytes};
use crate::error::CallError;
use crate::mem::{Deadline, Span};
use crate::rpc::wire::{DEADLINE, HEAD};

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
///         request.connection().try_push(b"what nobody asked for")?;
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
    peer: &'a Arc<Peer>,
    started: Started,
    deadline: Option<Instant>,
    body: Body<'a>,
}

/// Where the bytes of a request stand.
enum Body<'a> {
    Private(&'a [u8]),
    Placed { given: Given<'a, Mapping, AdaptiveWait>, skip: usize, copy: Copy<'a> },
}

/// A copy that is made when it is asked for, in memory that is used again.
struct Copy<'a> {
    scratch: Cell<Option<&'a mut Vec<u8>>>,
    made: OnceCell<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// Of bytes in private memory. A deadline counts from when its first frame arrived, or from now.
    pub(super) fn private(
        peer: &'a Arc<Peer>,
        started: Started,
        bytes: &'a [u8],
        arrived: Option<Instant>,
    ) -> Self {
        let (left, bytes) = match started.flags & DEADLINE {
            0 => (None, bytes),
            _ => {
                bytes.split_at_checked(TIME).map_or((None, [].as_slice()), |(left, rest)| (Some(left), rest))
            }
        };
        Self {
            peer,
            started,
            deadline: left.and_then(|left| deadline(left, arrived)),
            body: Body::Private(bytes),
        }
    }

    /// Of bytes that stand in the ring.
    pub(super) fn placed(
        peer: &'a Arc<Peer>,
        started: Started,
        given: Given<'a, Mapping, AdaptiveWait>,
        scratch: &'a mut Vec<u8>,
    ) -> Self {
        let (mut skip, mut limit) = (0, None);
        if started.flags & DEADLINE != 0 {
            let mut left = [0; TIME];
            limit = given.frame.read(given.inbound, 0, &mut left).and_then(|()| deadline(&left, None));
            skip = TIME;
        }
        let copy = Copy { scratch: Cell::new(Some(scratch)), made: OnceCell::new() };
        Self { peer, started, deadline: limit, body: Body::Placed { given, skip, copy } }
    }

    /// What was called.
    pub fn method(&self) -> u32 {
        self.started.method
    }

    /// The call's number, which no other call of its connection has.
    pub fn id(&self) -> u64 {
        self.started.id
    }

    /// Bytes of the request.
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Private(bytes) => bytes.len(),
            Body::Placed { given, skip, .. } => given.frame.len().saturating_sub(*skip),
        }
    }

    /// Whether the request has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The request.
    ///
    /// Where an inline method's request stands in the ring, which short ones seldom do, the first call copies it, into
    /// memory that is used again.
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Private(bytes) => bytes,
            Body::Placed { given, skip, copy } => copy.made.get_or_init(|| {
                let Some(scratch) = copy.scratch.take() else { return &[] };
                scratch.resize(given.frame.len().saturating_sub(*skip), 0);
                let _in_the_request = given.frame.read(given.inbound, *skip, scratch);
                &*scratch
            }),
        }
    }

    /// Copies the bytes from `offset` on into all of `into`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the request has fewer; nothing is copied then.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "the request is shorter");
        match &self.body {
            Body::Private(bytes) => {
                let end = offset.checked_add(into.len()).ok_or_else(short)?;
                into.copy_from_slice(bytes.get(offset..end).ok_or_else(short)?);
                Ok(())
            }
            Body::Placed { given, skip, .. } => {
                let at = offset.checked_add(*skip).ok_or_else(short)?;
                given.frame.read(given.inbound, at, into).ok_or_else(short)
            }
        }
    }

    /// The bytes in place, for the `unsafe` borrow that spares a copy, on the terms of
    /// [`RecvGuard::raw`](crate::RecvGuard::raw). Only of an inline method whose request stands in one place in the
    /// ring: a short one seldom does, one in pieces never. Otherwise nothing, and [`bytes`](Self::bytes) is private memory
    /// already.
    pub fn raw(&self) -> Option<RawBytes<'_>> {
        match &self.body {
            Body::Placed { given, skip, .. } => {
                let IncomingMessage::Placed(arrival) = given.frame.message() else { return None };
                let (span, len): (Span, usize) = (arrival.span, self.len());
                given.inbound.ring().mem().raw(span, HEAD + skip, len).map(RawBytes::new)
            }
            Body::Private(_) => None,
        }
    }

    /// Whether the caller waits no more: it cancelled, which a call does when its deadline passes, or it is gone. A
    /// notification is served all the same when its sender is gone. What the method has called itself is not cancelled with
    /// it.
    pub fn is_cancelled(&self) -> bool {
        !self.peer.is_wanted(self.started)
    }

    /// When the caller will wait no more, if it said so: counted from the arrival of the call, before it waited for a
    /// worker.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What the kernel said about the caller's process.
    pub fn peer_cred(&self) -> PeerCred {
        self.peer.line.cred()
    }

    /// The caller's connection: to keep, and to push through from any thread.
    pub fn connection(&self) -> Connection {
        Connection::new(self.peer)
    }

    /// What [`on_connect`](crate::SharedMemoryServer::on_connect) attached to the connection.
    pub fn state<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.peer.state.get()?.downcast_ref()
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

/// When the time that a caller has left is over; too long for the clock is never.
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
    peer: &'a Arc<Peer>,
    id: u64,
}

impl<'a> ChunkWriter<'a> {
    pub(super) fn new(peer: &'a Arc<Peer>, id: u64) -> Self {
        Self { peer, id }
    }

    /// The longest chunk, in bytes: what the client's window takes.
    pub fn max_chunk(&self) -> usize {
        self.peer.max_chunk
    }

    /// Sends a chunk; blocks while the client's window for this stream is full, and ends at once when the caller
    /// cancels or is gone.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`], [`CallError::Cancelled`], or the end of the connection.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), CallError> {
        self.write_until(chunk, None)
    }

    /// As [`write_chunk`](Self::write_chunk), for at most `timeout`; nothing of the chunk was sent then.
    ///
    /// # Errors
    ///
    /// As there, and [`CallError::Timeout`].
    pub fn write_chunk_timeout(&mut self, chunk: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.write_until(chunk, Instant::now().checked_add(timeout))
    }

    fn write_until(&mut self, chunk: &[u8], until: Deadline) -> Result<(), CallError> {
        if !self.peer.line.same_process() {
            return Err(CallError::Forked);
        }
        if chunk.len() > self.peer.max_chunk {
            return Err(CallError::TooLarge { len: chunk.len(), max: self.peer.max_chunk });
        }
        self.peer.hall.write_chunk(self.id, chunk, until).map_err(gone)
    }
}

impl fmt::Debug for ChunkWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkWriter").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads the chunks of an upload; an iterator too, which gives an error once.
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
    peer: &'a Arc<Peer>,
    id: u64,
    over: bool,
}

impl<'a> ChunkReader<'a> {
    pub(super) fn new(peer: &'a Arc<Peer>, id: u64) -> Self {
        Self { peer, id, over: false }
    }

    /// Waits for the next chunk; `None` after the last. Ends at once when the caller cancels or is gone.
    ///
    /// # Errors
    ///
    /// [`CallError::Cancelled`], or the end of the connection.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(None)
    }

    /// As [`next_chunk`](Self::next_chunk), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As there, and [`CallError::Timeout`].
    pub fn next_chunk_timeout(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Instant::now().checked_add(timeout))
    }

    fn next_until(&mut self, until: Deadline) -> Result<Option<Vec<u8>>, CallError> {
        if !self.peer.line.same_process() {
            return Err(CallError::Forked);
        }
        match self.peer.hall.next_chunk(self.id, until).map_err(gone)? {
            Upload::Chunk(chunk) => Ok(Some(chunk)),
            Upload::End => Ok(None),
        }
    }
}

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

/// Why nobody takes it, as methods see it.
pub(super) fn gone(gone: Gone) -> CallError {
    match gone {
        Gone::Cancelled => CallError::Cancelled,
        Gone::Timeout => CallError::Timeout,
        Gone::OutOfMemory => CallError::OutOfMemory,
        Gone::Ended(ended) => ended.into(),
    }
}
