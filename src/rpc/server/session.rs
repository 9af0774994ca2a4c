//! A client, as the server knows it: its connection, its state, and the handle that methods may keep.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::connection::CallInfo;
use super::connection::{RespondError, ServerConnection};
use crate::channel::{AdaptiveWait, ConnectionHandle, Mapping, PeerCred, RealSync, Stats, Wait};
use crate::error::{CallError, ConnectionError};
use crate::rpc::nesting::{self, Awaited};
use crate::rpc::wire::NOTIFY;

pub(super) type MappedServerConnection = ServerConnection<Mapping, AdaptiveWait, RealSync>;

/// A client's process, as the limits count it. Processes outside this process's pid namespace count as one for each
/// user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProcessId {
    pid: u32,
    uid: u32,
    own: bool,
}

impl ProcessId {
    pub(super) fn of(cred: PeerCred) -> Self {
        Self { pid: cred.pid(), uid: cred.uid(), own: cred.pid() == std::process::id() }
    }

    /// Returns whether it is this process itself.
    pub(super) fn is_own(self) -> bool {
        self.own
    }
}

/// A client and what belongs to it.
pub(crate) struct Session {
    pub(super) id: u64,
    pub(super) process: ProcessId,
    pub(super) connection: Arc<MappedServerConnection>,
    pub(super) handle: ConnectionHandle,
    pub(super) state: OnceLock<Box<dyn Any + Send + Sync>>,
    pub(super) max_chunk: usize,
    pub(super) max_push: usize,
    pub(super) max_reply: usize,
    /// The number of methods that run for the client, including those whose calls were given up.
    pub(super) running: AtomicUsize,
    /// The number of those that have a thread of their own.
    pub(super) streams: AtomicUsize,
}

impl Session {
    /// Returns whether the method of this call should run, or go on. A notification is wanted until it is cancelled
    /// or this side ends the connection, even if its sender has gone.
    pub(super) fn is_wanted(&self, call: CallInfo) -> bool {
        if !self.handle.same_process() {
            return false;
        }
        match call.flags & NOTIFY {
            0 => !self.connection.is_cancelled(call.id),
            _ => self.connection.is_notification_wanted(call.id),
        }
    }

    /// Returns the wait statistics of the connection.
    pub(super) fn stats(&self) -> Stats {
        self.handle.stats(Some(self.connection.peak_fill()))
    }
}

/// Counts a method that runs, until the guard is dropped.
pub(super) struct CountGuard<'a>(pub(super) &'a AtomicUsize);

impl<'a> CountGuard<'a> {
    /// Counts one more.
    pub(super) fn one(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's connection: the identity of the client, and a way to push to it.
///
/// It may be kept, cloned and used from any thread, and does not keep the connection open.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::time::Duration;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .on_connect(|connection| {
///         connection.set_state(AtomicU32::new(0));
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// client.notify(0, b"")?; // The server lists it by now.
/// let connection = server.connections().pop().expect("one");
/// println!("client {} is process {}", connection.id(), connection.peer_cred().pid());
/// assert_eq!(connection.with_state(|count: &AtomicU32| count.fetch_add(1, Ordering::Relaxed)), Some(0));
/// connection.push(b"first")?; // Waits while the client's window is full.
/// connection.push_timeout(b"second", Duration::from_secs(1))?;
/// assert_eq!(connection.max_push(), 786_368); // Three quarters of the window, less 64.
/// connection.try_push(b"third")?;
/// assert_eq!(client.pushes().take(3).count(), 3);
/// connection.close();
/// assert!(!connection.is_connected());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Connection {
    id: u64,
    cred: PeerCred,
    session: Weak<Session>,
}

impl Connection {
    pub(super) fn new(session: &Arc<Session>) -> Self {
        Self { id: session.id, cred: session.handle.cred(), session: Arc::downgrade(session) }
    }

    /// Returns the id of the connection, which no other connection of the server has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the credentials of the client's process, as the kernel reported them when it connected.
    pub fn peer_cred(&self) -> PeerCred {
        self.cred
    }

    /// Returns whether the connection is open, so that a push may succeed.
    pub fn is_connected(&self) -> bool {
        self.session.upgrade().is_some_and(|session| session.handle.ended().is_none())
    }

    /// Attaches state to the connection, for its methods to use. Works once;
    /// [`on_connect`](crate::SharedMemoryServer::on_connect) is the best place. Returns false if the connection has
    /// state already, or has ended.
    pub fn set_state<T: Send + Sync + 'static>(&self, state: T) -> bool {
        self.session.upgrade().is_some_and(|session| session.state.set(Box::new(state)).is_ok())
    }

    /// Calls `look` with the attached state, and returns its result. Returns `None` if the connection has ended, has
    /// no state, or its state has another type.
    pub fn with_state<T: Send + Sync + 'static, R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        let session = self.session.upgrade()?;
        session.state.get()?.downcast_ref().map(look)
    }

    /// Returns the length of the longest push, in bytes: about three quarters of the client's window for pushes, and at most
    /// the longest message. Returns 0 once the connection has ended.
    pub fn max_push(&self) -> usize {
        self.session.upgrade().map_or(0, |session| session.max_push)
    }

    /// Sends the client a push. Blocks while the client's window for pushes is full, that is, while the client does
    /// not take them. Success means that the push was sent, not that the client took it. In a method it waits until
    /// the deadline of the method's call at most. In a method of the pool whose call has no deadline, it waits for
    /// [`nested_call_timeout`](crate::SharedMemoryServer::nested_call_timeout) at most.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`] if the push is longer than the window allows, [`CallError::WouldDeadlock`] if it had
    /// to wait in an inline method, of this connection or another, [`CallError::Timeout`] after such a limit of a
    /// method, [`CallError::OutOfMemory`] if the push cannot be kept until there is room in the ring,
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason why the connection ended.
    pub fn push(&self, bytes: &[u8]) -> Result<(), CallError> {
        self.push_until(bytes, Wait::NO_DEADLINE)
    }

    /// Sends the client a push, and waits for room in its window for at most `timeout`. A timeout that overflows
    /// `Instant` means no deadline.
    ///
    /// # Errors
    ///
    /// [`CallError::Timeout`] if the window was full until the deadline; nothing of the push was sent then.
    /// [`CallError::TooLarge`] if the push is longer than the window allows, [`CallError::WouldDeadlock`] if it had
    /// to wait in an inline method, [`CallError::OutOfMemory`] if the push cannot be kept until there is room in the
    /// ring, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason why the connection ended.
    pub fn push_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), CallError> {
        self.push_until(bytes, Wait::Deadline(Instant::now().checked_add(timeout)))
    }

    /// Sends the client a push; never waits.
    ///
    /// # Errors
    ///
    /// [`CallError::WouldBlock`] while the client's window for pushes is full. [`CallError::TooLarge`] if the push is
    /// longer than the window allows, [`CallError::OutOfMemory`] if the push cannot be kept until there is room in
    /// the ring, [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, or the reason why the connection ended.
    pub fn try_push(&self, bytes: &[u8]) -> Result<(), CallError> {
        match self.push_until(bytes, Wait::Never) {
            Err(CallError::Timeout) => Err(CallError::WouldBlock),
            result => result,
        }
    }

    /// Closes the connection. The client's calls fail with `Disconnected`.
    pub fn close(&self) {
        if let Some(session) = self.session.upgrade() {
            session.handle.closer().close();
        }
    }

    fn push_until(&self, bytes: &[u8], wait: Wait) -> Result<(), CallError> {
        let session =
            self.session.upgrade().ok_or(CallError::ConnectionLost(ConnectionError::Disconnected))?;
        if !session.handle.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        if bytes.len() > session.max_push {
            return Err(CallError::TooLarge { len: bytes.len(), max: session.max_push });
        }
        let driver = nesting::is_driver();
        let pushed = session
            .connection
            .push(bytes, if driver { Wait::Never } else { nesting::limit(wait, Awaited::Flow) });
        if driver && pushed == Err(RespondError::Timeout) && wait != Wait::Never {
            return Err(CallError::WouldDeadlock);
        }
        pushed.map_err(call_error)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("peer", &self.cred).finish_non_exhaustive()
    }
}

/// Converts the reason why an answer was not taken, for methods.
pub(super) fn call_error(error: RespondError) -> CallError {
    match error {
        RespondError::Cancelled => CallError::Cancelled,
        RespondError::Timeout => CallError::Timeout,
        RespondError::OutOfMemory => CallError::OutOfMemory,
        RespondError::Ended(ended) => ended.into(),
    }
}

static_assertions::assert_impl_all!(Connection: Clone, Send, Sync);
