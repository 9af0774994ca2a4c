//! A server that runs: what it does, and how it ends.

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
use crate::error::{BindError, CallError};
use crate::listener::{ListenerCloser, SharedMemoryListener};
use crate::stream::SharedMemoryStream;

/// A server that runs on threads of its own; made by
/// [`SharedMemoryServer::spawn`](crate::SharedMemoryServer::spawn).
///
/// Dropping it ends the server at once: use [`shutdown`](Self::shutdown) to let calls come to their end.
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

/// What a shutdown found.
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
    /// Calls that were cut off, because their time was over: their callers get `Disconnected`.
    pub cut_off: usize,
    /// Methods that still run, whose answers nobody will get; their threads end when they return.
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
                // The handle has no call that could report an end by closed descriptors. Connections go on.
                let _ended = accept_all(&state, &listener);
            })
            .map_err(BindError::io("starting the accepting thread"))?;
            handle.acceptor = Some(acceptor);
        }
        Ok(handle)
    }

    /// The path, as it was given; none of a server that has none.
    pub fn local_path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Serves one more connection, on a thread of its own: one end of a `pair()`, of a spawned child, or of the
    /// parent. In a forked child the stream is dropped: the server is the parent's.
    ///
    /// Sizes, and how many calls may be under way, are those that the connection was made with.
    pub fn adopt(&self, stream: SharedMemoryStream) {
        accept::admit(&self.state, stream);
    }

    /// The clients that are connected; none in a forked child.
    pub fn connections(&self) -> Vec<Connection> {
        self.state.connections()
    }

    /// What was done so far; nothing in a forked child.
    pub fn stats(&self) -> ServerStats {
        self.state.stats()
    }

    /// Sends a push to every client that has room for it, without waiting; how many had.
    ///
    /// # Errors
    ///
    /// [`CallError::Forked`] in a forked child.
    pub fn broadcast(&self, bytes: &[u8]) -> Result<usize, CallError> {
        if !self.state.same_process() {
            return Err(CallError::Forked);
        }
        Ok(self.connections().iter().filter(|connection| connection.try_push(bytes).is_ok()).count())
    }

    /// Ends the server: accepts no connection any more and removes the path, answers new calls with `ShuttingDown`, lets
    /// those under way come to their end for at most `timeout`, then closes all connections.
    ///
    /// A connection that has nothing under way is closed at once. Its client is sent word that no further call is begun:
    /// calls that come too late for an answer fail with `ShuttingDown` as well, and were never begun. Notifications that
    /// have come are served, those of clients that have gone included.
    ///
    /// Blocks for at most `timeout`. It never waits for a method that does not return. In a forked child it does nothing: the
    /// server is the parent's.
    pub fn shutdown(mut self, timeout: Duration) -> ShutdownReport {
        if !self.state.same_process() {
            return ShutdownReport { cut_off: 0, running: 0 };
        }
        self.stop_accepting();
        self.state.drain();
        self.state.wait_until_idle(Instant::now().checked_add(timeout));
        let cut_off = self.state.in_flight();
        self.state.stop();
        // The connections' threads leave now; what runs on is the methods' own.
        ShutdownReport { cut_off, running: self.state.stats().running }
    }

    fn stop_accepting(&mut self) {
        let Some(closer) = self.closer.take() else { return };
        closer.close();
        // A fork has no such thread, and a rule about who may connect is asked on that thread itself.
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
