//! The serving side: `SharedMemoryServer`, its methods, connections and threads.
//!
//! ```text
//!   SharedMemoryServer ── builder: methods, limits, callbacks
//!     └─▶ ServerState (state.rs) ── the accepting thread (accept.rs)
//!            ├── one thread per connection (dispatcher.rs, connection.rs): inline methods
//!            ├── workers (workers.rs): other methods
//!            ├── a thread per stream: streaming, upload and duplex methods
//!            └── ServerHandle (handle.rs): stats, connections, shutdown
//! ```

mod accept;
mod activity;
mod connection;
mod dispatcher;
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

use crate::error::{BindError, ConnectionError, HandlerError, ServeError};
use crate::listener::SharedMemoryListener;
use crate::options::Options;
use crate::stream::SharedMemoryStream;

use methods::{HandlerResult, Method, Methods};
use state::{Callbacks, ServerLimits, ServerState};

#[cfg(feature = "testing")]
pub use connection::{
    BorrowedRequest, CallInfo, ConnectionDriver, Dispatch, RespondError, ServerConnection,
    ServerConnectionParts,
};
pub use handle::{ServerHandle, ShutdownReport};
#[cfg(feature = "testing")]
pub use in_flight::{CallEvent, CallFailure, CallLimits, ServedCalls, UploadItem};
pub use request::{ChunkReader, ChunkWriter, Request};
#[cfg(feature = "testing")]
pub use send_queue::Payload;
pub use session::Connection;
pub use stats::ServerStats;

/// Serves calls of other processes: numbered methods, which a pool of workers runs, the connection's own thread
/// (inline), or a thread of their own (streams).
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
/// Each connection has a thread that reads and never waits for a method of another thread. A method's panic is caught
/// and answered. A slow or stuck client delays no other.
///
/// A panic can be caught only in a program that is built with `panic = "unwind"`, the default. With `panic = "abort"`
/// a method's panic ends the process, and every client gets [`PeerDied`](crate::CallError::ConnectionLost(ConnectionError::PeerDied)).
///
/// All settings:
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
///     .on_disconnect(|connection, how| eprintln!("client {} has left: {how}", connection.id()))
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
    /// Makes a server without a path, for existing streams: [`serve_stream`](Self::serve_stream) serves one on the
    /// calling thread, and [`adopt`](ServerHandle::adopt) on a thread of its own.
    pub fn new() -> Self {
        Self::with(None, Options::new())
    }

    /// Binds a path with the default [`Options`]. Clients that connect wait until the server serves.
    ///
    /// # Errors
    ///
    /// [`BindError`]: the path cannot be bound.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        Self::bind_with(path, &Options::new())
    }

    /// Binds a path with these options. Clients that connect wait until the server serves.
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
    /// [`BindError`]: an option is illegal, or the path cannot be bound.
    pub fn bind_with(path: impl AsRef<Path>, options: &Options) -> Result<Self, BindError> {
        Ok(Self::with(Some(options.bind(path)?), options.clone()))
    }

    /// Makes a server on a listening socket that was passed to this process, with these options. The socket is taken
    /// over by [`Options::listen_on`].
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
    /// [`BindError`]: an option is illegal, or the socket cannot be taken over.
    pub fn listen_on(socket: OwnedFd, options: &Options) -> Result<Self, BindError> {
        Ok(Self::with(Some(options.listen_on(socket)?), options.clone()))
    }

    fn with(listener: Option<SharedMemoryListener>, options: Options) -> Self {
        let (methods, callbacks, limits) = Default::default();
        Self { listener, options, methods, callbacks, limits }
    }

    /// Registers a method that runs in the pool of workers. It reads the request and writes the reply.
    ///
    /// It may run for long, and may wait for anything, including its own connection: the other workers serve calls
    /// meanwhile. A method that calls a method of the pool of this same server needs another worker for that. With
    /// only one worker such a call is refused as [`CallError::WouldDeadlock`](crate::CallError::WouldDeadlock). Servers whose pools call each other
    /// need more [`workers`](Self::workers) each than calls of that kind are ever under way.
    ///
    /// A call that the method makes on its thread ends no later than [`Request::deadline`], or after
    /// [`nested_call_timeout`](Self::nested_call_timeout) if there is no deadline: it fails with `Timeout` then. A
    /// cancel of the method's own call does not cancel the calls that it makes. A method that waits for long should
    /// check [`Request::is_cancelled`].
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

    /// Registers a method that runs on the connection's own thread, with the lowest latency.
    ///
    /// The connection is not served while the method runs, so the method must be short. A wait for its own connection
    /// is refused as [`CallError::WouldDeadlock`](crate::CallError::WouldDeadlock): a push that finds no room, and a call over the other end of the
    /// connection if that end is in this process. The method may call another process. Its calls end no later than
    /// [`Request::deadline`]. A call without any deadline fails with `Timeout` after
    /// [`nested_call_timeout`](Self::nested_call_timeout), since processes whose inline methods call each other might
    /// wait for each other.
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

    /// Registers a method that replies with a stream of chunks, and runs on a thread of its own.
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

    /// Registers a method that takes a stream of chunks and gives one reply, and runs on a thread of its own.
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

    /// Registers a method that takes a stream of chunks and replies with another, and runs on a thread of its own.
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

    /// Registers a method of the pool that answers calls of numbers without a method. It can be registered once.
    /// Default: such calls fail with `UnknownMethod`.
    #[must_use]
    pub fn fallback<F>(mut self, method: F) -> Self
    where
        F: Fn(&Request<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync + 'static,
    {
        self.methods.register_fallback(Method::Pooled(Arc::new(method)));
        self
    }

    /// Sets a callback that decides about each client by its credentials, before the client's first call. It may
    /// attach state to the connection. The text of an error reaches the client as
    /// [`RejectCode::Refused`](crate::RejectCode::Refused); a text of more than 64 bytes is cut off between two
    /// words. A later callback replaces an earlier one.
    #[must_use]
    pub fn on_connect(
        mut self,
        authorize: impl Fn(&Connection) -> Result<(), HandlerError> + Send + Sync + 'static,
    ) -> Self {
        self.callbacks.connect = Some(Arc::new(authorize));
        self
    }

    /// Sets a callback that is called when a connection that [`on_connect`](Self::on_connect) admitted has ended,
    /// with the reason. It is also called for a connection that was not accepted because the server stopped
    /// meanwhile. A later callback replaces an earlier one.
    #[must_use]
    pub fn on_disconnect(
        mut self,
        notify: impl Fn(&Connection, ConnectionError) + Send + Sync + 'static,
    ) -> Self {
        self.callbacks.disconnect = Some(Arc::new(notify));
        self
    }

    /// Sets the number of workers of the pool, at least 1: how many of its methods run at once. Default: one for each
    /// CPU, and 4 at least.
    ///
    /// While the calls of one process occupy all workers, one more thread serves the calls of other processes. With
    /// one worker there is no such thread, and no two methods of the pool run at once.
    ///
    /// Connections with calls that wait take turns, and so do processes: a client with many calls under way delays
    /// another client's call until one of the workers is free.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.limits.workers = workers.max(1);
        self
    }

    /// Sets how many workers the connections of one process may occupy at once, at least 1; its other calls wait.
    /// Default: all [`workers`](Self::workers), and one more thread for other processes. A bound that is set replaces
    /// that thread, and holds for this process itself as well. Processes that are outside this process's pid
    /// namespace count as one for each user.
    #[must_use]
    pub fn max_workers_per_process(mut self, workers: usize) -> Self {
        self.limits.workers_per_process = Some(workers);
        self
    }

    /// Sets how many calls may wait for a worker, of all connections together, at least 1. A call above that fails
    /// with `Busy`. Calls of one other process may take half of the queue. Default 1024.
    #[must_use]
    pub fn queue(mut self, calls: usize) -> Self {
        self.limits.queue = calls.max(1);
        self
    }

    /// Sets how many connections may be open at once. One above that is refused with the code `Busy`. Default 1024.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.connections = connections;
        self
    }

    /// Sets how many connections of one process may be open at once. One above that is refused with the code `Busy`.
    /// Default: half of [`max_connections`](Self::max_connections), without a bound for this process itself.
    /// Processes that are outside this process's pid namespace count as one for each user.
    #[must_use]
    pub fn max_connections_per_process(mut self, connections: usize) -> Self {
        self.limits.connections_per_process = Some(connections);
        self
    }

    /// Sets how long a method or a callback may wait on its thread for a call that it makes, if neither that call nor
    /// the call that the method serves has a deadline. This holds for waits for a reply, for a chunk or a push, and
    /// for room for a call or a push. Such a wait fails with [`Timeout`](crate::CallError::Timeout). Default 30 s;
    /// [`Duration::MAX`] sets no limit.
    ///
    /// Only this limit ends a cycle of calls over several processes, or over the pool of one process. A streaming,
    /// upload or duplex method has a thread of its own, which no other call needs. It waits without a limit for
    /// chunks and pushes, which may be silent for long.
    #[must_use]
    pub fn nested_call_timeout(mut self, timeout: Duration) -> Self {
        self.limits.nested_timeout = timeout;
        self
    }

    /// Sets how many calls of one connection may be under way at once: a power of two from 1 to 256. Default 64, or
    /// what the options say. A client waits before it begins one more.
    ///
    /// The number is negotiated when a connection is made, so it holds for connections that are accepted at the path.
    /// Any other connection has the number of [`Options::max_calls_in_flight`] of its two ends. A server without a
    /// path that sets another number does not start, and [`serve_stream`](Self::serve_stream) refuses a stream with
    /// another number.
    ///
    /// # Panics
    ///
    /// If `calls` is not a power of two from 1 to 256.
    #[must_use]
    pub fn max_calls_in_flight(mut self, calls: u32) -> Self {
        assert!(
            calls.is_power_of_two() && calls <= 256,
            "calls in flight must be a power of two from 1 to 256"
        );
        self.options = self.options.max_calls_in_flight(calls);
        self
    }

    /// Sets how many streaming, upload and duplex methods of one connection may run at once. A call above that fails
    /// with `Busy`. Default 32.
    #[must_use]
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.limits.streams = streams;
        self
    }

    /// Serves on this thread, and returns only with an error or when the listener is closed. [`spawn`](Self::spawn)
    /// returns a handle that ends the server.
    ///
    /// The threads that it starts, including the workers, inherit the CPU affinity, scheduling policy and nice value
    /// of the calling thread. Call it from a thread that is scheduled as the methods should be.
    ///
    /// # Errors
    ///
    /// [`BindError`]: there are no threads, the server has no path, a method's number or the fallback was registered
    /// twice, or the program closed the descriptors of the listener, which is noticed within a few seconds.
    pub fn serve(self) -> Result<(), BindError> {
        let (state, listener) = self.start()?;
        let listener = listener.ok_or_else(no_path)?;
        let accepted = accept::accept_all(&state, &listener);
        accepted.map_err(|error| BindError::io("accepting clients")(error.into()))
    }

    /// Serves on threads of its own, and returns a handle. The threads inherit the CPU affinity, scheduling policy
    /// and nice value of the calling thread.
    ///
    /// # Errors
    ///
    /// [`BindError`]: there are no threads, a method's number or the fallback was registered twice, or
    /// [`max_calls_in_flight`](Self::max_calls_in_flight) was set on a server without a path.
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
    /// notifications that the client had sent were served, too.
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
    /// [`ServeError::ConnectionLost`]: how the connection ended, unless the client closed it. [`ServeError::NotStarted`] if
    /// there are no threads, an option is illegal or names a size that the connection does not have, or a method's number or
    /// the fallback was registered twice.
    pub fn serve_stream(self, stream: SharedMemoryStream) -> Result<(), ServeError> {
        if let Some(text) = stream.contradiction(&self.options) {
            return Err(ServeError::NotStarted(BindError::BadOptions(text)));
        }
        let (state, _) = self.start().map_err(ServeError::NotStarted)?;
        let served = dispatcher::serve(&state, stream);
        state.queue.wait_until_notified(None);
        state.stop();
        served.map_err(ServeError::from)
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
