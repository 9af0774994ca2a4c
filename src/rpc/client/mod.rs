//! The calling side: `SharedMemoryClient`, calls under way, streams, uploads, pushes.
//!
//! ```text
//!   SharedMemoryClient ──▶ ConnectionSource (reconnect.rs)   the connection that calls use now
//!                              └──▶ ClientConnection (connection.rs)   what a call is made of
//!                                      └──▶ Multiplexer (multiplexer.rs)   leader reads, followers wait
//!                                              └──▶ InFlightCalls (in_flight.rs)   slots, ids, windows
//! ```

mod call;
mod connection;
mod in_flight;
mod multiplexer;
mod push;
mod reconnect;
mod stats;
mod streams;

use std::fmt;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::{PeerCred, Stats, Wait};
use crate::connect::ConnectLimit;
use crate::error::{CallError, ConnectError};
use crate::options::Options;
use crate::stream::SharedMemoryStream;

use self::connection::ClientConnection;
use self::reconnect::ConnectionSource;
use super::wire::NOTIFY;

pub use call::{Canceller, PendingCall, Reply};
pub use in_flight::LostCall;
#[cfg(feature = "testing")]
pub use in_flight::{CallOutcome, InFlightCalls, Wakeup};
#[cfg(feature = "testing")]
pub use multiplexer::{Multiplexer, MultiplexerParts, MultiplexerState, WaitError};
pub use push::Pushes;
pub use reconnect::{ConnectionLoss, Reconnect};
pub use stats::ClientStats;
pub use streams::{ReplyStream, UploadCall, UploadStream};

/// Calls functions in another process, over a connection to a [`SharedMemoryServer`](crate::SharedMemoryServer) that
/// all threads of this process share.
///
/// Cloning is cheap and makes another handle of the same connection. The connection is closed when the last handle,
/// and the last call under way, is dropped. A thread that waits for its reply reads the ring itself. With one caller
/// no other thread takes part; with several, one of them reads for all.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer};
/// let folder = tempfile::tempdir()?;
/// let server = SharedMemoryServer::bind(folder.path().join("socket"))?
///     .method(1, |request, reply| {
///         reply.extend(request.bytes().iter().rev());
///         Ok(())
///     })
///     .spawn()?;
/// let client = SharedMemoryClient::connect(server.local_path().unwrap())?;
/// assert_eq!(*client.call(1, b"desserts")?, *b"stressed");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Calls also go over an existing stream, such as one of [`SharedMemoryStream::spawn`]:
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .inline(1, |request, reply| {
///         reply.extend(request.bytes());
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
///
/// let mut reply = Vec::new();
/// client.call_into(1, b"used again", &mut reply)?; // The steady state allocates nothing.
/// client.notify(1, b"without a reply")?;
/// assert_eq!(client.max_message(), 64 << 20);
/// assert_eq!(client.peer_cred().pid(), std::process::id());
/// assert_eq!(client.stats().dropped_replies, 0);
/// let other = client.clone(); // For another thread, over the same connection.
/// client.close(); // For all of them.
/// assert!(other.call(1, b"late").is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct SharedMemoryClient {
    source: Arc<ConnectionSource>,
}

impl SharedMemoryClient {
    /// Connects to the server at `path` with the default [`Options`], within 5 s. The client does not reconnect.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: [`Rejected`](ConnectError::Rejected) with the code `Busy` if the server has as many clients
    /// as it takes, [`NoCalls`](ConnectError::NoCalls) if the server serves streams instead of calls.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::builder(path).connect()
    }

    /// Returns a builder, which chooses options and what happens when the connection is lost, and then connects.
    ///
    /// ```no_run
    /// use narrows::{Options, Reconnect, SharedMemoryClient};
    /// let client = SharedMemoryClient::builder("/run/user/1000/socket")
    ///     .options(Options::new().max_message(1 << 20))
    ///     .reconnect(Reconnect::new())
    ///     .connect()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn builder(path: impl AsRef<Path>) -> ClientBuilder {
        ClientBuilder::new(path.as_ref())
    }

    /// Makes a client over an existing stream: one end of a `pair()`, of a spawned child, or of the parent. The other
    /// end serves it with [`serve_stream`](crate::SharedMemoryServer::serve_stream). Waits at most 5 s for the
    /// server's preface.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: the server refused, did not answer in time, or serves no calls.
    pub fn over(stream: SharedMemoryStream) -> Result<Self, ConnectError> {
        Self::over_with(stream, &Options::new())
    }

    /// Makes a client over an existing stream, with the windows and the handshake timeout of these options.
    ///
    /// Sizes belong to the connection: `slots`, `arena`, `max_message` and `max_calls_in_flight` must be those that
    /// it was made with, or be left at their defaults. Options that concern making a connection (`authorize`,
    /// `backlog`, …) have no effect.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new().spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over_with(a, &narrows::Options::new().push_window(4096))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: the server refused, did not answer in time, or serves no calls.
    /// [`BadOptions`](ConnectError::BadOptions) if an option is illegal, or names a size that the connection does not
    /// have.
    pub fn over_with(stream: SharedMemoryStream, options: &Options) -> Result<Self, ConnectError> {
        options.limits().map_err(ConnectError::BadOptions)?;
        if let Some(text) = stream.contradiction(options) {
            return Err(ConnectError::BadOptions(text));
        }
        let deadline = Instant::now().checked_add(options.connect_timeout_or_default());
        let connection = ClientConnection::exchange_preface(stream, options, deadline)?;
        Ok(Self { source: Arc::new(ConnectionSource::fixed(connection)) })
    }

    /// Calls a method, and returns its reply.
    ///
    /// Blocks until the reply arrives or the connection ends, without a deadline. The reply is allocated;
    /// [`call_into`](Self::call_into) reuses a buffer.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended.
    pub fn call(&self, method: u32, request: &[u8]) -> Result<Reply, CallError> {
        self.call_until(method, request, Wait::NO_DEADLINE)
    }

    /// Calls a method, and returns its reply, within `timeout`.
    ///
    /// A timeout that overflows `Instant` means no deadline. The server is sent the time that is left, and is asked
    /// to cancel the call when the deadline has passed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::CallError;
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .method(1, |request, _| {
    ///         while !request.is_cancelled() { // It works for long.
    ///             std::thread::yield_now();
    ///         }
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let late = client.call_timeout(1, b"when?", Duration::from_millis(5));
    /// assert!(matches!(late, Err(CallError::Timeout)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Timeout`] if the
    /// deadline passed first; a late reply is dropped.
    pub fn call_timeout(&self, method: u32, request: &[u8], timeout: Duration) -> Result<Reply, CallError> {
        self.call_until(method, request, Wait::for_duration(timeout))
    }

    /// Calls a method, and returns its reply, until `deadline` at most. The server is sent the time that is left, and
    /// is asked to cancel the call when the deadline has passed.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Timeout`] if the
    /// deadline passed first; a late reply is dropped.
    pub fn call_deadline(&self, method: u32, request: &[u8], deadline: Instant) -> Result<Reply, CallError> {
        self.call_until(method, request, Wait::Deadline(Some(deadline)))
    }

    /// Calls a method whose reply replaces what is in `buffer`. Blocks until the reply arrives or the connection
    /// ends, without a deadline.
    ///
    /// The buffer's memory is used again, so that the steady state allocates nothing. After an error the buffer is
    /// empty.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended.
    pub fn call_into(&self, method: u32, request: &[u8], buffer: &mut Vec<u8>) -> Result<(), CallError> {
        self.source.call(method, request, buffer, Wait::NO_DEADLINE)
    }

    /// Calls a method whose reply replaces what is in `buffer`, until `deadline` at most. After an error the buffer
    /// is empty.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Timeout`] if the
    /// deadline passed first; a late reply is dropped.
    pub fn call_into_deadline(
        &self,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        self.source.call(method, request, buffer, Wait::Deadline(Some(deadline)))
    }

    /// Sends a request and returns the call under way, so that one thread may have many calls under way.
    ///
    /// Blocks only while the ring has no room for the request, or while as many calls are under way as the connection
    /// takes ([`Options::max_calls_in_flight`]).
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .inline(1, |request, reply| {
    ///         reply.extend(request.bytes());
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let pending = (0..8_u8).map(|number| client.start_call(1, &[number])).collect::<Result<Vec<_>, _>>()?;
    /// for (number, pending) in (0..8).zip(pending) {
    ///     assert_eq!(*pending.wait()?, [number]);
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent.
    pub fn start_call(&self, method: u32, request: &[u8]) -> Result<PendingCall, CallError> {
        self.start_until(method, request, Wait::NO_DEADLINE)
    }

    /// Sends a request and returns the call under way. Blocks for room for at most `timeout`; the call itself may
    /// take longer.
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent. [`CallError::Timeout`] if there was no room in time.
    pub fn start_call_timeout(
        &self,
        method: u32,
        request: &[u8],
        timeout: Duration,
    ) -> Result<PendingCall, CallError> {
        self.start_until(method, request, Wait::for_duration(timeout))
    }

    /// Sends a request and returns the call under way; never blocks. It is for threads that must not block, such as
    /// that of a user interface.
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent. [`CallError::WouldBlock`] if the call would have to wait for room.
    /// After the connection was lost, the error is how it ended. With a policy to [`Reconnect`], a thread in the
    /// background makes a new connection meanwhile, and later calls use it.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new().inline(1, |_, _| Ok(())).spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// assert!(client.is_connected());
    /// let pending = client.try_start_call(1, b"")?; // And `pending.try_wait()` once a frame.
    /// pending.wait()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn try_start_call(&self, method: u32, request: &[u8]) -> Result<PendingCall, CallError> {
        self.start_until(method, request, Wait::Never).map_err(call::would_block)
    }

    /// Calls a method whose reply is a stream of chunks. Blocks only while there is no room for the request or for
    /// one more call.
    ///
    /// ```
    /// # use narrows::{Options, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// # let (a, b) = SharedMemoryStream::pair()?;
    /// # std::thread::spawn(move || SharedMemoryServer::new()
    /// .streaming(7, |request, chunks| {
    ///     for word in request.bytes().split(|byte| *byte == b' ') {
    ///         chunks.write_chunk(word)?;
    ///     }
    ///     Ok(())
    /// })
    /// # .serve_stream(a));
    /// # let client = SharedMemoryClient::over(b)?;
    /// let words: Vec<Vec<u8>> = client.call_streaming(7, b"mind the tide")?.collect::<Result<_, _>>()?;
    /// assert_eq!(words, [&b"mind"[..], b"the", b"tide"]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent. An error of the method comes with the stream.
    pub fn call_streaming(&self, method: u32, request: &[u8]) -> Result<ReplyStream, CallError> {
        let connection = self.source.get(Wait::NO_DEADLINE)?;
        ReplyStream::begin(connection.share(), method, request)
    }

    /// Calls a method that takes a stream of chunks and gives one reply. Blocks only while there is no room for the
    /// request or for one more call.
    ///
    /// ```
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
    /// upload.write_chunk(b"ebb and ")?;
    /// upload.write_chunk(b"flow")?;
    /// assert_eq!(*upload.finish()?, *b"ebb and flow");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent.
    pub fn start_upload(&self, method: u32, request: &[u8]) -> Result<UploadCall, CallError> {
        let connection = self.source.get(Wait::NO_DEADLINE)?;
        UploadCall::begin(connection.share(), method, request)
    }

    /// Calls a method that takes a stream of chunks and replies with another. Both directions may be used at once, by
    /// two threads or by one. Blocks only while there is no room for the request or for one more call.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .duplex(1, |_, chunks, out| {
    ///         for chunk in chunks {
    ///             out.write_chunk(&chunk?.to_ascii_uppercase())?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let (mut upload, mut replies) = client.start_duplex(1, b"")?;
    /// for word in [b"ebb", b"low"] {
    ///     upload.write_chunk(word)?;
    ///     assert_eq!(replies.next_chunk()?, Some(word.to_ascii_uppercase()));
    /// }
    /// upload.end()?;
    /// assert_eq!(replies.next_chunk()?, None);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent.
    pub fn start_duplex(
        &self,
        method: u32,
        request: &[u8],
    ) -> Result<(UploadStream, ReplyStream), CallError> {
        let connection = self.source.get(Wait::NO_DEADLINE)?;
        streams::begin_duplex(&connection.share(), method, request)
    }

    /// Sends a request whose caller does not wait for a reply.
    ///
    /// Success means that the request was sent, not that it was served: a failure of the method is not reported.
    /// Blocks only while there is no room for the request or for one more call.
    ///
    /// # Errors
    ///
    /// [`CallError`]: why the request was not sent.
    pub fn notify(&self, method: u32, request: &[u8]) -> Result<(), CallError> {
        let connection = self.source.get(Wait::NO_DEADLINE)?;
        connection.start(method, NOTIFY, request, &mut Vec::new(), Wait::NO_DEADLINE).map(drop)
    }

    /// Returns the credentials of the server's process, as the kernel reported them when the connection was made.
    pub fn peer_cred(&self) -> PeerCred {
        self.source.any().handle.cred()
    }

    /// Returns whether the connection is open: its end was not noticed, and it was not closed. A client that
    /// reconnects may have lost its connection, and makes another one with the next call.
    pub fn is_connected(&self) -> bool {
        self.source.any().handle.ended().is_none()
    }

    /// Returns the length of the longest request or reply, in bytes, as negotiated with the server.
    pub fn max_message(&self) -> usize {
        self.source.any().handle.max_message()
    }

    /// Returns the statistics of the connection, and the number of reconnects. All are zero in a forked child.
    pub fn stats(&self) -> ClientStats {
        let connection = self.source.any();
        let reconnects = self.source.reconnects();
        if !connection.handle.same_process() {
            return ClientStats::default();
        }
        let state = connection.mux.lock();
        let peak_fill = state.peak_fill();
        let Stats { sleeps, wakes, sending, receiving, full_stalls, peak_fill, .. } =
            connection.handle.stats(peak_fill);
        ClientStats {
            calls: state.calls.opened(),
            in_flight: state.calls.in_flight(),
            dropped_replies: state.calls.dropped(),
            reconnects,
            sleeps,
            wakes,
            sending,
            receiving,
            full_stalls,
            peak_fill,
        }
    }

    /// Closes the connection, for all handles. Calls under way fail with `Closed`, and no later call reconnects.
    pub fn close(&self) {
        self.source.close();
    }

    fn start_until(&self, method: u32, request: &[u8], wait: Wait) -> Result<PendingCall, CallError> {
        let connection = self.source.get(wait)?;
        let started = connection.start(method, 0, request, &mut Vec::new(), wait)?;
        Ok(PendingCall::new(connection.share(), started.id, method))
    }

    fn call_until(&self, method: u32, request: &[u8], wait: Wait) -> Result<Reply, CallError> {
        let mut buffer = Vec::new();
        self.source.call(method, request, &mut buffer, wait)?;
        Ok(Reply::new(buffer))
    }
}

impl fmt::Debug for SharedMemoryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryClient").field("peer", &self.peer_cred()).finish_non_exhaustive()
    }
}

/// Builds a client: chooses options and what happens when the connection is lost.
///
/// ```no_run
/// use std::time::Duration;
/// use narrows::{Options, Reconnect, SharedMemoryClient};
/// let client = SharedMemoryClient::builder("/run/engine.sock")
///     .options(Options::new().max_message(1 << 20))
///     .reconnect(Reconnect::new().on_loss(|lost| eprintln!("{} calls were lost", lost.calls.len())))
///     .connect()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ClientBuilder {
    path: PathBuf,
    options: Options,
    reconnect: Option<Reconnect>,
}

impl ClientBuilder {
    fn new(path: &Path) -> Self {
        // A later change of the working directory must not lead to another server.
        let path = path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path, options: Options::new(), reconnect: None }
    }

    /// Sets sizes, limits, the wait policy and the trusted users.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Makes a new connection after one was lost. Default: never.
    #[must_use]
    pub fn reconnect(mut self, policy: Reconnect) -> Self {
        self.reconnect = Some(policy);
        self
    }

    /// Connects, within the handshake timeout (5 s unless set).
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; the first connection is tried once, whatever the policy.
    pub fn connect(self) -> Result<SharedMemoryClient, ConnectError> {
        let deadline = Instant::now().checked_add(self.options.connect_timeout_or_default());
        let stream = self.options.connect_within(&self.path, ConnectLimit::deadline(deadline))?;
        let connection = ClientConnection::exchange_preface(stream, &self.options, deadline)?;
        let source = match self.reconnect {
            None => ConnectionSource::fixed(connection),
            Some(policy) => ConnectionSource::reconnecting(connection, self.path, self.options, policy),
        };
        Ok(SharedMemoryClient { source: Arc::new(source) })
    }
}

static_assertions::assert_impl_all!(SharedMemoryClient: Clone, Send, Sync);
