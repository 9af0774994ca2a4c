//! The serving side: `SharedMemoryServer`, its methods, connections and threads.
//!
//! ```text
//!   SharedMemoryServer ── builder: methods, limits, callbacks
//!     └─▶ ServerState (state.rs) ── the accepting thread (accept.rs) ── one thread per connection (dispatcher.rs, driver.rs)
//!            │                                                            inline methods run there
//!            ├── workers (workers.rs): other methods
//!            ├── a thread per stream: streaming, upload and duplex methods
//!            └── ServerHandle (handle.rs): stats, connections, shutdown
//! ```

mod accept;
mod activity;
mod connection;
mod dispatcher;
mod driver;
mod handle;
mod in_flight;
mod methods;
mod request;
mod send_queue;
mod session;
mod state;
mod stats;
mod workers;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BindError, CallError, HandlerError};
use crate::listener::SharedMemoryListener;
use crate::options::Options;
use crate::stream::SharedMemoryStream;

use methods::{HandlerResult, Method, Methods};
use state::{Callbacks, ServerLimits, ServerState};

#[cfg(feature = "testing")]
pub use connection::{RespondError, ServerConnection, ServerConnectionParts};
#[cfg(feature = "testing")]
pub use driver::{BorrowedRequest, CallInfo, ConnectionDriver, Dispatch};
pub use handle::{ServerHandle, ShutdownReport};
#[cfg(feature = "testing")]
pub use in_flight::{CallEvent, CallFailure, CallLimits, ServedCalls, UploadItem};
pub use request::{ChunkReader, ChunkWriter, Request};
#[cfg(feature = "testing")]
pub use send_queue::Payload;
pub use session::Connection;
pub use stats::ServerStats;

/// Serves calls of other processes: methods by number, run by a pool of workers, inline, or as streams.
///
/// ```no_run
/// use narrows::SharedMemoryServer;
/// SharedMemoryServer::bind("/run/user/1000/shout.sock")?
///     .method(1, |request, reply| {
///         reply.extend(request.bytes().to_ascii_uppercase());
///         Ok(())
///     })
///     .serve()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Each connection has a thread that reads and never waits for a method; a method's panic is caught and answered.
/// One slow or stuck client delays no other.
///
/// A panic can be caught only in a program that is built with `panic = "unwind"`, the default. With `panic = "abort"` a
/// method's panic ends the process, and every client gets [`PeerDied`](crate::CallError::PeerDied).
///
/// All that can be chosen:
///
/// ```
/// use std::time::Duration;
/// use narrows::{HandlerError, SharedMemoryServer};
/// let folder = tempfile::tempdir()?;
/// let server = SharedMemoryServer::bind(folder.path().join("socket"))?
///     .workers(4) // Of the pool, ...
///     .queue(100) // ... and calls that may wait for one.
///     .max_workers_per_process(3)
///     .max_connections(10)
///     .max_connections_per_process(5)
///     .nested_call_timeout(Duration::from_secs(10))
///     .max_calls_in_flight(16)
///     .max_streams(8)
///     .on_connect(|connection| match connection.peer_cred().uid() {
///         0 => Err(HandlerError::from("not for root")),
///         _ => Ok(()),
///     })
///     .on_disconnect(|connection, how| eprintln!("client {} has gone: {how}", connection.id()))
///     .fallback(|request, _| Err(HandlerError::new(404, format!("no method {}", request.method()))))
///     .spawn()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SharedMemoryServer {
    listener: Option<SharedMemoryListener>,
    options: Options,
    methods: Methods,
    callbacks: Callbacks,
    limits: ServerLimits,
}

impl SharedMemoryServer {
    /// A server without a path, for streams that are there: [`serve_stream`](Self::serve_stream), and
    /// [`adopt`](ServerHandle::adopt).
    pub fn new() -> Self {
        Self::with(None, Options::new())
    }

    /// Binds a path, with the default [`Options`]. Clients that connect wait until it serves.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        Self::bind_with(path, &Options::new())
    }

    /// Binds a path, with these options.
    ///
    /// ```
    /// use narrows::{Options, SharedMemoryServer};
    /// let folder = tempfile::tempdir()?;
    /// let options = Options::new().arena(4 << 20).stream_window(4 << 20);
    /// let server = SharedMemoryServer::bind_with(folder.path().join("socket"), &options)?.spawn()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind_with(path: impl AsRef<Path>, options: &Options) -> Result<Self, BindError> {
        Ok(Self::with(Some(options.bind(path)?), options.clone()))
    }

    /// Serves on a listening socket that was passed to this process, with these options, as
    /// [`Options::listen_on`] takes it over.
    ///
    /// ```
    /// use narrows::{Options, SharedMemoryClient, SharedMemoryListener, SharedMemoryServer};
    /// let folder = tempfile::tempdir()?;
    /// let bound = SharedMemoryListener::bind(folder.path().join("socket"))?; // Or a service manager has.
    /// let socket = bound.try_clone_socket()?;
    /// let server = SharedMemoryServer::listen_on(socket, &Options::new())?.inline(1, |_, _| Ok(())).spawn()?;
    /// SharedMemoryClient::connect(bound.local_path())?.call(1, b"")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn listen_on(socket: OwnedFd, options: &Options) -> Result<Self, BindError> {
        Ok(Self::with(Some(options.listen_on(socket)?), options.clone()))
    }

    fn with(listener: Option<SharedMemoryListener>, options: Options) -> Self {
        let (methods, callbacks, limits) = Default::default();
        Self { listener, options, methods, callbacks, limits }
    }

    /// A method that runs in the pool of workers: it reads the request and writes the reply.
    ///
    /// It may take its time, and may wait for anything, its own connection included; only the other workers
    /// serve meanwhile. So a method that calls a method of the pool of this same server needs another worker for that:
    /// with only one the call is refused as [`CallError::WouldDeadlock`]. Servers whose pools call each other need more
    /// [`workers`](Self::workers) each than calls of that kind are ever under way.
    ///
    /// What it calls itself ends no later than [`Request::deadline`], or after
    /// [`nested_call_timeout`](Self::nested_call_timeout) if there is none: a call on its thread fails with `Timeout` then.
    /// That its caller cancels does not cancel what it calls: a method that waits for long looks at
    /// [`Request::is_cancelled`].
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .method(1, |request, reply| {
    ///         let text = std::str::from_utf8(request.bytes()).map_err(|_| "no text")?;
    ///         let number: u64 = text.parse().map_err(|_| "no number")?; // The caller's `CallError::Failed`.
    ///         let doubled = number.checked_mul(2).ok_or("too large")?;
    ///         reply.extend(doubled.to_string().bytes());
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// assert_eq!(*client.call(1, b"21")?, *b"42");
    /// assert!(client.call(1, b"ebb").is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn method<F>(mut self, id: u32, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut Vec<u8>) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        self.methods.register(id, Method::Pooled(Arc::new(method)));
        self
    }

    /// A method that runs on the connection's own thread, with the lowest latency.
    ///
    /// Its connection is not served meanwhile, so it must be short. What would wait for its own connection is refused as
    /// [`CallError::WouldDeadlock`]: a push that finds no room, and a call over the other end of the connection, if that is
    /// in this process. It may call another process, and its calls end no later than [`Request::deadline`]; one
    /// without any deadline fails with `Timeout` after [`nested_call_timeout`](Self::nested_call_timeout), since processes
    /// whose inline methods call each other might wait for each other.
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
    /// assert_eq!(*client.call(1, b"ebb")?, *b"ebb");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn inline<F>(mut self, id: u32, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut Vec<u8>) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        self.methods.register(id, Method::Inline(Arc::new(method)));
        self
    }

    /// A method that replies with a stream of chunks, on a thread of its own.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .streaming(1, |request, chunks| {
    ///         for word in request.bytes().split(|byte| *byte == b' ') {
    ///             chunks.write_chunk(word)?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// assert_eq!(client.call_streaming(1, b"mind the tide")?.count(), 3);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn streaming<F>(mut self, id: u32, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut ChunkWriter<'_>) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        self.methods.register(id, Method::Streaming(Arc::new(method)));
        self
    }

    /// A method that takes a stream of chunks and gives one reply, on a thread of its own.
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
    /// upload.write_chunk(b"ebb")?;
    /// assert_eq!(*upload.finish()?, *b"ebb");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn upload<F>(mut self, id: u32, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut ChunkReader<'_>, &mut Vec<u8>) -> Result<(), HandlerError>
            + Send
            + Sync
            + 'static,
    {
        self.methods.register(id, Method::Upload(Arc::new(method)));
        self
    }

    /// A method that takes a stream of chunks and gives one, on a thread of its own.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .duplex(1, |_, chunks, out| {
    ///         for chunk in chunks {
    ///             out.write_chunk(&chunk?)?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let (mut upload, mut replies) = client.start_duplex(1, b"")?;
    /// upload.write_chunk(b"ebb")?;
    /// assert_eq!(replies.next_chunk()?, Some(b"ebb".to_vec()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn duplex<F>(mut self, id: u32, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut ChunkReader<'_>, &mut ChunkWriter<'_>) -> Result<(), HandlerError>
            + Send
            + Sync
            + 'static,
    {
        self.methods.register(id, Method::Duplex(Arc::new(method)));
        self
    }

    /// What answers calls of numbers that no method has, in the pool; registered once. Default: `UnknownMethod`.
    #[must_use]
    pub fn fallback<F>(mut self, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync + 'static,
    {
        self.methods.register_fallback(Method::Pooled(Arc::new(method)));
        self
    }

    /// Decides about each client, by its credentials, before its first call; may attach state to its connection.
    /// The text of an error reaches the client, as [`RejectCode::Refused`](crate::RejectCode::Refused); what exceeds 64 bytes is
    /// cut off between two words. A later one replaces it.
    #[must_use]
    pub fn on_connect(
        mut self,
        authorize: impl Fn(&Connection) -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Self {
        self.callbacks.connect = Some(Arc::new(authorize));
        self
    }

    /// Is told when a connection that [`on_connect`](Self::on_connect) let in has ended, and how; also if it was never
    /// welcomed because the server stopped. A later one replaces it.
    #[must_use]
    pub fn on_disconnect(mut self, notify: impl Fn(&Connection, CallError) + Send + Sync + 'static) -> Self {
        self.callbacks.disconnect = Some(Arc::new(notify));
        self
    }

    /// Workers of the pool, at least 1: so many of its methods run at once. Default: one for each CPU, and 4 at least.
    ///
    /// While the calls of one process occupy all workers, one thread more serves those of other processes. With one worker
    /// there is none, and no two methods run at once.
    ///
    /// Connections with calls that wait take turns, and so do processes: a client that has many calls under way delays
    /// another one's call until one of the workers is free.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.limits.workers = workers.max(1);
        self
    }

    /// Workers that the connections of one process may occupy at once, at least 1; its other calls wait. Default: all
    /// [`workers`](Self::workers), with one thread more for other processes. A bound that is chosen takes the place of that
    /// thread, and holds for this process itself as well. Processes that this process's namespace does not show count as
    /// one for each user.
    #[must_use]
    pub fn max_workers_per_process(mut self, workers: usize) -> Self {
        self.limits.workers_per_process = Some(workers);
        self
    }

    /// Calls that may wait for a worker, of all connections together, at least 1; one more is `Busy`. Those of one
    /// other process may be half of them. Default 1024.
    #[must_use]
    pub fn queue(mut self, calls: usize) -> Self {
        self.limits.queue = calls.max(1);
        self
    }

    /// Connections at once; one more is refused with the code `Busy`. Default 1024.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.connections = connections;
        self
    }

    /// Connections of one process at once; one more is refused with the code `Busy`. Default: half of
    /// [`max_connections`](Self::max_connections); those of this process itself are not bounded then. Processes that
    /// this process's namespace does not show count as one for each user.
    #[must_use]
    pub fn max_connections_per_process(mut self, connections: usize) -> Self {
        self.limits.connections_per_process = Some(connections);
        self
    }

    /// How long a method, or a callback, may wait on its thread for what it calls, if neither that call nor the one which
    /// the method serves has a deadline: for a reply, for a chunk or a push, for room for a call or a push. It fails with
    /// [`Timeout`](CallError::Timeout) then. Default 30 s; [`Duration::MAX`] sets no limit.
    ///
    /// A cycle of calls over several processes, or over the pool of one, comes to an end by this alone. A streaming,
    /// upload or duplex method has a thread of its own, which nobody else needs: it waits without a limit for chunks and
    /// pushes, which may be silent for long.
    #[must_use]
    pub fn nested_call_timeout(mut self, timeout: Duration) -> Self {
        self.limits.nested_timeout = timeout;
        self
    }

    /// Calls of one connection that may be under way at once: a power of two from 1 to 256. Default 64, or what
    /// the options say. A client waits before it begins one more.
    ///
    /// It is agreed when a connection is made, so it is for those that are accepted at the path. Any other connection has
    /// what [`Options::max_calls_in_flight`] of its two ends said: a server without a path does not start with another
    /// number, and [`serve_stream`](Self::serve_stream) refuses a stream that has another.
    ///
    /// # Panics
    ///
    /// If it is not such a number.
    #[must_use]
    pub fn max_calls_in_flight(mut self, calls: u32) -> Self {
        assert!(
            calls.is_power_of_two() && calls <= 256,
            "calls in flight must be a power of two from 1 to 256"
        );
        self.options = self.options.max_calls_in_flight(calls);
        self
    }

    /// Streaming, upload and duplex methods of one connection that may run at once; one more is `Busy`.
    /// Default 32.
    #[must_use]
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.limits.streams = streams;
        self
    }

    /// Serves on this thread for ever. Use [`spawn`](Self::spawn) to have a handle that ends it.
    ///
    /// The threads that it starts, workers among them, inherit the CPU affinity, scheduling policy and nice value of the thread
    /// that calls this: call it from one that is scheduled as the methods shall be.
    ///
    /// # Errors
    ///
    /// [`BindError`], for want of threads, without a path, if a method's number or the fallback was registered twice, or, within
    /// some seconds, if the program closed the descriptors of the listener.
    pub fn serve(self) -> Result<(), BindError> {
        let (state, listener) = self.start()?;
        let listener = listener.ok_or_else(no_path)?;
        let accepted = accept::accept_all(&state, &listener);
        accepted.map_err(|error| BindError::io("accepting clients")(error.into()))
    }

    /// Serves on threads of its own, which inherit the CPU affinity, scheduling policy and nice value of the calling thread.
    ///
    /// # Errors
    ///
    /// [`BindError`], for want of threads, if a method's number or the fallback was registered twice, or for
    /// [`max_calls_in_flight`](Self::max_calls_in_flight) without a path.
    pub fn spawn(self) -> Result<ServerHandle, BindError> {
        if self.listener.is_none() && self.options.bounds_calls() {
            return Err(BindError::BadOptions(
                "max_calls_in_flight is for connections that are accepted at a path: choose it in the \
                 `Options` that make the connection"
                    .into(),
            ));
        }
        let (state, listener) = self.start()?;
        ServerHandle::start(state, listener)
    }

    /// Serves one connection on this thread until it ends: one end of a `pair()`, or of the parent. Blocks until the
    /// notifications that the client had sent have been served, too.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = std::thread::spawn(move || SharedMemoryServer::new().inline(1, |_, _| Ok(())).serve_stream(b));
    /// let client = SharedMemoryClient::over(a)?;
    /// client.call(1, b"")?;
    /// drop(client);
    /// server.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: how the connection ended, if not by the client's hang-up; `Busy`, with the reason, if it could not
    /// be served; [`BadOptions`](CallError::BadOptions) if what was registered twice, or a size that the connection does
    /// not have, forbids it.
    pub fn serve_stream(self, stream: SharedMemoryStream) -> Result<(), CallError> {
        if let Some(text) = stream.contradiction(&self.options) {
            return Err(CallError::BadOptions(text));
        }
        let (state, _) = self.start().map_err(|error| match error {
            BindError::BadOptions(text) => CallError::BadOptions(text),
            error => CallError::Busy(error.to_string()),
        })?;
        let served = dispatcher::serve(&state, stream);
        state.queue.wait_until_notified(None);
        state.stop();
        served
    }

    fn start(self) -> Result<(Arc<ServerState>, Option<SharedMemoryListener>), BindError> {
        let mut listener = self.listener;
        if let Some(listener) = &mut listener {
            listener.amend(&self.options).map_err(BindError::BadOptions)?;
        }
        self.options.limits().map_err(BindError::BadOptions)?;
        if let Some(text) = self.methods.duplicate {
            return Err(BindError::BadOptions(text));
        }
        let state = ServerState::new(self.options, self.methods, self.callbacks, self.limits);
        let state = state.map_err(BindError::io("starting the workers"))?;
        Ok((state, listener))
    }
}

fn no_path() -> BindError {
    BindError::BadOptions("a server without a path: use `bind`, or `serve_stream`".into())
}

impl Default for SharedMemoryServer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SharedMemoryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}
