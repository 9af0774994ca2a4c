//! The handle of a running server, and its shutdown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::accept::{self, accept_all};
use super::session::Connection;
use super::state::ServerState;
use super::stats::ServerStats;
use crate::channel::threads;
use crate::error::{BindError, CallError, ConnectionError};
use crate::listener::{ListenerCloser, SharedMemoryListener};
use crate::stream::SharedMemoryStream;

/// A running server; made by [`SharedMemoryServer::spawn`](crate::SharedMemoryServer::spawn).
///
/// Dropping it ends the server at once. [`shutdown`](Self::shutdown) lets calls under way end first.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let server = SharedMemoryServer::bind(folder.path().join("socket"))?.inline(1, |_, _| Ok(())).spawn()?;
/// let client = SharedMemoryClient::connect(server.local_path().expect("bound"))?;
/// client.call(1, b"")?;
/// assert_eq!((server.connections().len(), server.stats().calls), (1, 1));
/// assert_eq!(server.broadcast(b"to everybody")?, 1);
///
/// let (a, b) = SharedMemoryStream::pair()?;
/// server.adopt(b); // One more connection, without the path.
/// SharedMemoryClient::over(a)?.call(1, b"")?;
///
/// let drained = server.shutdown(Duration::from_secs(1));
/// assert_eq!(drained.cut_off, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "a server whose handle is dropped ends"]
pub struct ServerHandle {
    state: Arc<ServerState>,
    closer: Option<ListenerCloser>,
    path: Option<PathBuf>,
    acceptor: Option<JoinHandle<()>>,
}

/// What a shutdown left unfinished.
///
/// ```
/// use std::time::Duration;
/// let server = narrows::SharedMemoryServer::new().spawn()?;
/// let drained = server.shutdown(Duration::from_secs(5));
/// if drained.cut_off + drained.running > 0 {
///     eprintln!("{} calls were cut off, {} methods still run", drained.cut_off, drained.running);
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Calls that were cut off because the timeout passed. Their callers get `Disconnected`.
    pub cut_off: usize,
    /// Methods that still run, and whose answers are dropped. Their threads end when the methods return.
    pub running: usize,
}

impl ServerHandle {
    pub(super) fn start(
        state: Arc<ServerState>,
        listener: Option<SharedMemoryListener>,
    ) -> Result<Self, BindError> {
        let closer = listener.as_ref().map(SharedMemoryListener::closer);
        let path = listener.as_ref().map(|listener| listener.local_path().to_owned());
        let mut handle = Self { state, closer, path, acceptor: None };
        if let Some(listener) = listener {
            let state = Arc::clone(&handle.state);
            let acceptor = threads::spawn("narrows-accept", move || {
                // No method of the handle could report that the descriptors were closed. Open connections go on.
                let _ended = accept_all(&state, &listener);
            })
            .map_err(BindError::io("starting the accepting thread"))?;
            handle.acceptor = Some(acceptor);
        }
        Ok(handle)
    }

    /// Returns the path as it was given, or `None` of a server without one.
    pub fn local_path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Serves one more connection, on a thread of its own: one end of a `pair()`, of a spawned child, or of the
    /// parent. In a forked child the stream is dropped, since the server belongs to the parent.
    ///
    /// Sizes, and how many calls may be under way, are those that the connection was made with. The limits on
    /// connections apply: a connection above them is refused.
    pub fn adopt(&self, stream: SharedMemoryStream) {
        accept::admit(&self.state, stream);
    }

    /// Returns the connections of the clients; none in a forked child.
    pub fn connections(&self) -> Vec<Connection> {
        self.state.connections()
    }

    /// Returns the statistics since the start; all zero in a forked child.
    pub fn stats(&self) -> ServerStats {
        self.state.stats()
    }

    /// Sends a push to each client whose window has room for it, without waiting. Returns to how many clients it was
    /// sent.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child.
    pub fn broadcast(&self, bytes: &[u8]) -> Result<usize, CallError> {
        if !self.state.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        Ok(self.connections().iter().filter(|connection| connection.try_push(bytes).is_ok()).count())
    }

    /// Ends the server. It accepts no connection any more, removes the path, and answers new calls with
    /// `ShuttingDown`. It lets calls under way end, for at most `timeout`, and then closes all connections.
    ///
    /// A connection without calls under way is closed at once. Its client is sent a goodbye, behind which no call is
    /// begun: calls that arrive too late for an answer fail with `ShuttingDown` as well, and were never begun.
    /// Notifications that have arrived are served, including those of clients that have gone.
    ///
    /// Blocks for at most `timeout`. It never waits for a method that does not return. In a forked child it does
    /// nothing, since the server belongs to the parent.
    pub fn shutdown(mut self, timeout: Duration) -> ShutdownReport {
        if !self.state.same_process() {
            return ShutdownReport { cut_off: 0, running: 0 };
        }
        self.stop_accepting();
        self.state.drain();
        self.state.wait_until_idle(Instant::now().checked_add(timeout));
        let cut_off = self.state.in_flight();
        self.state.stop();
        // The connections' threads end now. The methods that still run have threads of their own.
        ShutdownReport { cut_off, running: self.state.stats().running }
    }

    fn stop_accepting(&mut self) {
        let Some(closer) = self.closer.take() else { return };
        closer.close();
        // A fork does not have that thread. The callback that authorizes clients runs on that thread itself, which
        // must not join itself.
        let other = |acceptor: &JoinHandle<()>| acceptor.thread().id() != thread::current().id();
        if let Some(acceptor) = self.acceptor.take().filter(other).filter(|_| closer.same_process()) {
            let _ended = acceptor.join();
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop_accepting();
        self.state.stop();
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("path", &self.path).finish_non_exhaustive()
    }
}
