//! Streams of chunks: replies, uploads, and both at once.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::{Canceller, Reply, would_block};
use super::connection::{ClientConnection, StartedCall};
use super::in_flight::CallOutcome;
use super::multiplexer::WaitError;
use crate::channel::Wait;
use crate::error::CallError;
use crate::rpc::CallOver;
use crate::rpc::flow_control::window_cost;
use crate::rpc::fragment::Fragmenter;
use crate::rpc::nesting::Awaited;
use crate::rpc::wire::{FrameHeader, FrameKind, STREAM, UPLOAD};

/// The chunks of a reply, until its end or an error; made by
/// [`SharedMemoryClient::call_streaming`](crate::SharedMemoryClient::call_streaming).
///
/// The iterator blocks for each chunk, ends after the last one, and yields an error once. Chunks that are not taken
/// hold up this stream alone: the server's method waits once
/// [`Options::stream_window`](crate::Options::stream_window) bytes are under way. Dropping the stream before its end
/// cancels the call.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .streaming(1, |request, chunks| {
///         request.bytes().chunks(4).try_for_each(|chunk| chunks.write_chunk(chunk))?;
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let mut stream = client.call_streaming(1, b"ebb flow")?;
/// println!("call {}", stream.id());
/// assert_eq!(stream.next_chunk()?, Some(b"ebb ".to_vec()));
/// assert_eq!(stream.next_chunk_timeout(Duration::from_secs(5))?, Some(b"flow".to_vec()));
/// assert_eq!(stream.next_chunk()?, None);
/// client.call_streaming(1, b"never mind")?.cancel();
/// let canceller = client.call_streaming(1, b"for another thread")?.canceller();
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "a stream that is dropped is cancelled"]
pub struct ReplyStream {
    connection: Arc<ClientConnection>,
    id: u64,
    over: bool,
}

/// A chunk, or the outcome of the call.
enum Next {
    Chunk(Vec<u8>),
    End(CallOutcome),
}

impl ReplyStream {
    pub(super) fn begin(
        connection: Arc<ClientConnection>,
        method: u32,
        request: &[u8],
    ) -> Result<Self, CallError> {
        let id = connection.start(method, STREAM, request, &mut Vec::new(), Wait::NO_DEADLINE)?.id;
        Ok(Self { connection, id, over: false })
    }

    /// Returns the id of the call, which no other call of the connection has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Blocks until the next chunk, and returns it; returns `None` after the last.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the method's error, or the reason why the connection ended. The stream is over then, and later
    /// calls return `None`. Only a limit on waits in a method of a server
    /// ([`nested_call_timeout`](crate::SharedMemoryServer::nested_call_timeout)) gives [`CallError::Timeout`]; the
    /// stream goes on after it.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Wait::NO_DEADLINE)
    }

    /// Waits for the next chunk, for at most `timeout`, and returns it; returns `None` after the last. A timeout that
    /// overflows `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the method's error, or the reason why the connection ended; the stream is over then. After
    /// [`CallError::Timeout`] the stream goes on.
    pub fn next_chunk_timeout(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Wait::for_duration(timeout))
    }

    /// Waits for the next chunk, until `deadline` at most, and returns it; returns `None` after the last.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the method's error, or the reason why the connection ended; the stream is over then. After
    /// [`CallError::Timeout`] the stream goes on.
    pub fn next_chunk_deadline(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Wait::Deadline(Some(deadline)))
    }

    /// Returns the next chunk if it has arrived, or `None` after the last; never blocks.
    ///
    /// # Errors
    ///
    /// [`CallError::WouldBlock`] if no chunk has arrived; the stream goes on. Any other [`CallError`] is the method's
    /// error, or the reason why the connection ended; the stream is over then.
    pub fn try_next_chunk(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        self.next_until(Wait::Never).map_err(would_block)
    }

    /// Cancels the call, like dropping it.
    pub fn cancel(self) {}

    /// Returns a handle that cancels the call from any thread, also while another thread waits for a chunk.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.connection, self.id)
    }

    fn next_until(&mut self, wait: Wait) -> Result<Option<Vec<u8>>, CallError> {
        let wait = self.connection.check_and_limit(&[], wait, Awaited::Flow)?;
        if self.over {
            return Ok(None);
        }
        let (connection, id) = (&self.connection, self.id);
        connection.return_credit(wait, |calls| calls.take_owed_credit(id).map(|owed| (id, owed)));
        let next =
            connection.mux.wait(connection.mux.signal_of(id), wait, |calls| match calls.next_chunk(id) {
                Some(chunk) => Some(Next::Chunk(chunk)),
                None => calls.take_outcome(id, &mut Vec::new()).map(Next::End),
            });
        match next {
            Ok(Next::Chunk(chunk)) => {
                // The chunk is returned at once, also if the server does not read.
                connection
                    .return_credit(Wait::Never, |calls| calls.take_owed_credit(id).map(|owed| (id, owed)));
                Ok(Some(chunk))
            }
            Ok(Next::End(end)) => {
                self.over = true;
                if end == CallOutcome::OutOfMemory {
                    connection.abandon(id); // Otherwise the server's method would go on.
                }
                connection.outcome(end).map(|()| None)
            }
            Err(WaitError::Timeout) => Err(CallError::Timeout),
            Err(stop) => {
                self.over = true;
                Err(connection.call_error(stop))
            }
        }
    }
}

impl FusedIterator for ReplyStream {}

impl Iterator for ReplyStream {
    type Item = Result<Vec<u8>, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.next_chunk();
        if next.is_err() && !self.over {
            // In a method, a wait without a deadline may time out before the stream ends. The iteration ends then:
            // its caller would wait for one chunk after another otherwise.
            self.over = true;
            self.connection.abandon(self.id);
        }
        next.transpose()
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if !self.over {
            self.connection.abandon(self.id);
        }
    }
}

impl fmt::Debug for ReplyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Sends the chunks of an upload. Dropping it before [`end`](Self::end) cancels the call.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .duplex(1, |_, chunks, out| {
///         let bytes = chunks.try_fold(0, |sum, chunk| chunk.map(|chunk| sum + chunk.len()))?;
///         Ok(out.write_chunk(bytes.to_string().as_bytes())?)
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let (mut upload, mut replies) = client.start_duplex(1, b"")?;
/// upload.write_chunk(&vec![7; upload.max_chunk()])?; // About three quarters of the window.
/// upload.write_chunk(b"more")?; // Waits while the window is full.
/// upload.end()?;
/// assert_eq!(replies.next_chunk()?, Some(b"786372".to_vec()));
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "an upload that is dropped is cancelled"]
pub struct UploadStream {
    connection: Arc<ClientConnection>,
    id: u64,
    seq: u16,
    over: bool,
}

impl UploadStream {
    fn new(connection: Arc<ClientConnection>, started: &StartedCall) -> Self {
        Self { connection, id: started.id, seq: started.seq, over: false }
    }

    /// Returns the length of the longest chunk, in bytes, as the negotiated window bounds it.
    pub fn max_chunk(&self) -> usize {
        self.connection.max_chunk()
    }

    /// Sends a chunk. Blocks while the server's window for this stream is full, without a deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: [`TooLarge`](CallError::TooLarge) if the chunk is longer than [`max_chunk`](Self::max_chunk),
    /// [`Cancelled`](CallError::Cancelled) if the server has ended the call already: its reply, or its stream, has
    /// the reason. Otherwise the reason why the connection ended.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), CallError> {
        self.write_until(chunk, Wait::NO_DEADLINE)
    }

    /// Sends a chunk, for at most `timeout`. A timeout that overflows `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: [`TooLarge`](CallError::TooLarge) if the chunk is longer than [`max_chunk`](Self::max_chunk),
    /// [`Cancelled`](CallError::Cancelled) if the server has ended the call already, or the reason why the connection
    /// ended. After a [`Timeout`](CallError::Timeout) either nothing of the chunk was sent, and the upload goes on,
    /// or the call is cancelled.
    pub fn write_chunk_timeout(&mut self, chunk: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.write_until(chunk, Wait::for_duration(timeout))
    }

    /// Ends the upload: the server learns that no chunk follows. Blocks while the ring has no room.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the reason why the connection ended.
    pub fn end(mut self) -> Result<(), CallError> {
        self.send_end(Wait::NO_DEADLINE)
    }

    fn send_end(&mut self, wait: Wait) -> Result<(), CallError> {
        let wait = self.connection.check_and_limit(&[], wait, Awaited::Flow)?;
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::End, 0), 0);
        match self.connection.mux.send_item(&mut fragmenter, [&[], &[]], &mut self.seq, self.id, wait) {
            Ok(()) | Err(WaitError::CallOver) => {
                self.over = true;
                Ok(())
            }
            Err(stop) => {
                self.connection.after_failed_send(self.id, stop, wait);
                Err(self.connection.call_error(stop))
            }
        }
    }

    fn write_until(&mut self, chunk: &[u8], wait: Wait) -> Result<(), CallError> {
        let (connection, id) = (&self.connection, self.id);
        let wait = connection.check_and_limit(&[], wait, Awaited::Flow)?;
        if self.over {
            return Err(CallError::Cancelled);
        }
        if chunk.len() > connection.max_chunk() {
            return Err(CallError::TooLarge { len: chunk.len(), max: connection.max_chunk() });
        }
        let price = window_cost(chunk.len());
        let room = connection.mux.wait(connection.mux.signal_of(id), wait, |calls| {
            match calls.spend_credit(id, price) {
                Ok(false) => None,
                Ok(true) => Some(true),
                Err(CallOver) => Some(false),
            }
        });
        match room {
            Ok(true) => {}
            Ok(false) => {
                self.over = true;
                return Err(CallError::Cancelled);
            }
            Err(stop) => return Err(connection.call_error(stop)),
        }
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Chunk, 0), chunk.len());
        match connection.mux.send_item(&mut fragmenter, [chunk, &[]], &mut self.seq, id, wait) {
            Ok(()) => Ok(()),
            Err(stop) => {
                if stop == WaitError::Timeout && fragmenter.is_unsent() {
                    connection.mux.lock().calls.refund_credit(id, price);
                } else {
                    self.over = true;
                    connection.after_failed_send(id, stop, wait);
                    connection.abandon_unless_over(id, stop);
                }
                Err(connection.call_error(stop))
            }
        }
    }
}

impl Drop for UploadStream {
    fn drop(&mut self) {
        if !self.over {
            self.connection.abandon(self.id);
        }
    }
}

impl fmt::Debug for UploadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadStream").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An upload with one reply; made by [`SharedMemoryClient::start_upload`](crate::SharedMemoryClient::start_upload).
/// Dropping it before [`finish`](Self::finish) cancels the call.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .upload(1, |_, chunks, reply| {
///         for chunk in chunks {
///             reply.extend(chunk?);
///         }
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let mut upload = client.start_upload(1, b"")?;
/// assert!(upload.max_chunk() >= 4);
/// upload.write_chunk(b"ebb ")?;
/// upload.write_chunk_timeout(b"and flow", Duration::from_secs(5))?;
/// assert_eq!(*upload.finish()?, *b"ebb and flow");
/// client.start_upload(1, b"never mind")?.cancel();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "an upload that is dropped is cancelled"]
pub struct UploadCall {
    upload: UploadStream,
    taken: bool,
}

impl UploadCall {
    pub(super) fn begin(
        connection: Arc<ClientConnection>,
        method: u32,
        request: &[u8],
    ) -> Result<Self, CallError> {
        let started = connection.start(method, UPLOAD, request, &mut Vec::new(), Wait::NO_DEADLINE)?;
        Ok(Self { upload: UploadStream::new(connection, &started), taken: false })
    }

    /// Returns the length of the longest chunk, in bytes, as the negotiated window bounds it.
    pub fn max_chunk(&self) -> usize {
        self.upload.max_chunk()
    }

    /// Sends a chunk. Blocks while the server's window for this stream is full, without a deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: [`TooLarge`](CallError::TooLarge) if the chunk is longer than [`max_chunk`](Self::max_chunk),
    /// [`Cancelled`](CallError::Cancelled) if the server has ended the call already: [`finish`](Self::finish) returns
    /// the reason. Otherwise the reason why the connection ended.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), CallError> {
        self.upload.write_chunk(chunk)
    }

    /// Sends a chunk, for at most `timeout`. A timeout that overflows `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: [`TooLarge`](CallError::TooLarge) if the chunk is longer than [`max_chunk`](Self::max_chunk),
    /// [`Cancelled`](CallError::Cancelled) if the server has ended the call already, or the reason why the connection
    /// ended. After a [`Timeout`](CallError::Timeout) either nothing of the chunk was sent, and the upload goes on,
    /// or the call is cancelled.
    pub fn write_chunk_timeout(&mut self, chunk: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.upload.write_chunk_timeout(chunk, timeout)
    }

    /// Ends the upload, and blocks until the reply arrives, without a deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended.
    pub fn finish(self) -> Result<Reply, CallError> {
        self.finish_until(Wait::NO_DEADLINE)
    }

    /// Ends the upload, and waits for the reply, for at most `timeout`. A timeout that overflows `Instant` means no
    /// deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. After [`CallError::Timeout`] the
    /// call is cancelled.
    pub fn finish_timeout(self, timeout: Duration) -> Result<Reply, CallError> {
        self.finish_until(Wait::for_duration(timeout))
    }

    /// Cancels the call, like dropping it.
    pub fn cancel(self) {}

    fn finish_until(mut self, wait: Wait) -> Result<Reply, CallError> {
        if !self.upload.over {
            self.upload.send_end(wait)?;
        }
        let wait = self.upload.connection.check_and_limit(&[], wait, Awaited::Answer)?;
        let mut buffer = Vec::new();
        let end = self.upload.connection.wait_for_outcome(self.upload.id, &mut buffer, wait);
        self.taken = true;
        self.upload.connection.finish(self.upload.id, end, &mut buffer)?;
        Ok(Reply::new(buffer))
    }
}

impl Drop for UploadCall {
    fn drop(&mut self) {
        if !self.taken {
            self.upload.connection.abandon(self.upload.id);
        }
    }
}

/// Starts a call with chunks in both directions.
pub(super) fn begin_duplex(
    connection: &Arc<ClientConnection>,
    method: u32,
    request: &[u8],
) -> Result<(UploadStream, ReplyStream), CallError> {
    let started = connection.start(method, UPLOAD | STREAM, request, &mut Vec::new(), Wait::NO_DEADLINE)?;
    let upload = UploadStream::new(Arc::clone(connection), &started);
    Ok((upload, ReplyStream { connection: Arc::clone(connection), id: started.id, over: false }))
}

static_assertions::assert_impl_all!(ReplyStream: Send);
static_assertions::assert_impl_all!(UploadStream: Send);
