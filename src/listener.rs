//! The listener of a server: binds a path, and turns clients into connections.
//!
//! ```text
//!   accept ─▶ PendingHandshakes (listener/pending_handshakes.rs)   one epoll, driven by the thread that calls accept
//!               ├── listening socket ── new client ─▶ Acceptor    up to 64 at once,
//!               ├── acceptors ── their Hello ─▶ Established        1 s for each, 100 ms if other clients wait
//!               ├── timer ── the deadline of an acceptor
//!               └── eventfd ── closed by another thread
//!   drop   ─▶ BoundPath (listener/bound_path.rs)                  the path, removed if it is still ours
//! ```
//!
//! # Invariants
//!
//! 1. A client that fails, violates the protocol or stays silent is never an error of `accept`. It takes one of 64
//!    slots for at most the handshake's timeout, or for 100 ms if other clients need the slot. The next client waits
//!    only while all slots are taken.
//! 2. A forked child either drops its copy of the listener, which only closes descriptors, or calls `after_fork`, which
//!    makes a new epoll set. The child never changes the parent's epoll set.
//! 3. `bind` replaces only a socket that refuses connections, and drop removes only the socket of this listener.
//!
//! # Proof
//!
//! `tests/listener/handshake.rs`, `tests/listener/accept.rs`.

mod bound_path;
mod pending_handshakes;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::connect::{Established, deadline, expired};
use crate::error::{AcceptError, BindError};
use crate::options::Options;
use crate::stream::SharedMemoryStream;
use crate::sys::epoll::{Epoll, Eventfd};
use crate::sys::fork_guard::ForkGuard;
use crate::sys::peer_monitor;

use bound_path::BoundPath;
use pending_handshakes::{AcceptOutcome, PendingHandshakes};

/// A bound path at which clients connect.
///
/// Dropping it removes the path, if it still belongs to this listener. Accepted connections stay open.
///
/// All methods take `&self`: several threads may accept from one listener. One of them at a time drives the handshakes.
///
/// ```
/// use std::time::Duration;
/// use narrows::{AcceptError, SharedMemoryListener, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
/// assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
///
/// # let path = listener.local_path().to_owned();
/// let client = std::thread::spawn(move || SharedMemoryStream::connect(path)?.send(b"hello").map_err(std::io::Error::from));
/// let mut stream = listener.accept_timeout(Duration::from_secs(5))?; // `accept` has no deadline.
/// let mut message = Vec::new();
/// stream.recv_into(&mut message)?;
/// assert_eq!(message, b"hello");
/// assert_eq!(listener.failed_handshakes(), 0);
/// client.join().unwrap()?;
///
/// let path = listener.local_path().to_owned();
/// drop(listener);
/// assert!(!path.exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SharedMemoryListener {
    pending: Mutex<PendingHandshakes>,
    epoll: Arc<Epoll>,
    state: Arc<ListenerState>,
    bound_path: BoundPath,
    options: Options,
}

impl SharedMemoryListener {
    /// Binds the path with the default [`Options`].
    ///
    /// The socket's file is readable and writable by its owner alone. A socket whose server has ended is replaced.
    ///
    /// # Errors
    ///
    /// [`BindError`]: a live server listens at the path, a file that is not a socket is there, another process binds
    /// the path at the same time, or a system call failed. A failed call leaves no file behind.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        Options::new().bind(path)
    }

    /// Blocks until the next client has completed its handshake, and returns the connection to it.
    ///
    /// # Errors
    ///
    /// [`AcceptError::Closed`], [`AcceptError::Forked`], [`AcceptError::DescriptorsClosed`] (reported within a few
    /// seconds), or [`AcceptError::Io`]. With too many open files each call fails at once until a file is closed: wait
    /// before the next call.
    pub fn accept(&self) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(None)
    }

    /// Blocks until the next client has completed its handshake, for at most `timeout`, and returns the connection to
    /// it.
    ///
    /// A timeout that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`AcceptError::Timeout`], or one of the errors of [`accept`](Self::accept).
    pub fn accept_timeout(&self, timeout: Duration) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(deadline(timeout))
    }

    /// Blocks until the next client has completed its handshake, until `deadline` at most, and returns the connection
    /// to it.
    ///
    /// # Errors
    ///
    /// [`AcceptError::Timeout`], or one of the errors of [`accept`](Self::accept).
    pub fn accept_deadline(&self, deadline: Instant) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(Some(deadline))
    }

    /// Returns a connection if a handshake is complete; never blocks. Advances the pending handshakes.
    ///
    /// # Errors
    ///
    /// [`AcceptError::WouldBlock`] if no handshake is complete, or one of the errors of [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_deadline(Instant::now()).map_err(|error| match error {
            AcceptError::Timeout => AcceptError::WouldBlock,
            error => error,
        })
    }

    /// Returns an iterator over accepted connections. Each step blocks without a deadline.
    ///
    /// The iteration ends when the listener or its descriptors are closed, and in a forked child.
    ///
    /// ```
    /// use narrows::{SharedMemoryListener, SharedMemoryStream};
    /// let folder = tempfile::tempdir()?;
    /// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
    /// let (path, closer) = (listener.local_path().to_owned(), listener.closer());
    /// let server = std::thread::spawn(move || listener.incoming().filter(Result::is_ok).count());
    /// SharedMemoryStream::connect(path)?;
    /// closer.close();
    /// assert!(server.join().unwrap() <= 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Returns whether the path still names this listener's socket, which means that it was neither removed nor
    /// replaced.
    ///
    /// If not, no new client can reach the listener: bind the path again. Always false for a socket that was taken over
    /// by [`Options::listen_on`]: the process that bound its path is responsible for the path.
    ///
    /// ```
    /// let folder = tempfile::tempdir()?;
    /// let listener = narrows::SharedMemoryListener::bind(folder.path().join("socket"))?;
    /// assert!(listener.owns_path());
    /// std::fs::remove_file(listener.local_path())?; // What cleans up `/tmp` may do.
    /// assert!(!listener.owns_path());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn owns_path(&self) -> bool {
        self.bound_path.is_named()
    }

    /// Returns a copy of the listening socket, to hand over to a successor of this program.
    ///
    /// The successor takes the socket over with [`Options::listen_on`] and accepts from then on, so no client is
    /// refused in between. The copy is close-on-exec. This process stays responsible for the path: dropping the
    /// listener removes it. So exit without dropping the listener, or let the successor bind the path again.
    ///
    /// ```
    /// use narrows::{Options, SharedMemoryListener, SharedMemoryStream};
    /// let folder = tempfile::tempdir()?;
    /// let first = SharedMemoryListener::bind(folder.path().join("socket"))?;
    /// let second = Options::new().listen_on(first.try_clone_socket()?)?;
    /// let path = first.local_path().to_owned();
    /// let client = std::thread::spawn(move || SharedMemoryStream::connect(path).map(drop));
    /// second.accept()?;
    /// client.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn try_clone_socket(&self) -> io::Result<OwnedFd> {
        self.bound_path.socket().as_fd().try_clone_to_owned()
    }

    /// Returns the path, as it was given.
    pub fn local_path(&self) -> &Path {
        self.bound_path.path()
    }

    /// Takes over the inherited listener in a forked child: in a daemon that forked after it bound the path, or in one
    /// of several workers that accept from the same path.
    ///
    /// Without this call every method of the listener fails with [`AcceptError::Forked`] in the child. Only the process
    /// that bound the path removes it. Clients in mid-handshake stay with the parent. In the process that bound the
    /// path, this returns the listener unchanged.
    ///
    /// Clients that connect from now on see this process as the server (`peer_cred`). Of several workers that is the
    /// last one to call this: once it has ended, a client without a deadline waits 5 s for the others to answer.
    ///
    /// ```no_run
    /// # fn fork() -> bool { true }
    /// let mut listener = narrows::SharedMemoryListener::bind("/run/user/1000/socket")?;
    /// if fork() {
    ///     listener = listener.after_fork()?; // In the child, which accepts from then on.
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AcceptError::Io`] if no descriptors are left.
    pub fn after_fork(mut self) -> Result<Self, AcceptError> {
        if self.state.fork_guard.same_process() {
            return Ok(self);
        }
        let limits = self.options.limits().map_err(|bad| AcceptError::Io(io::Error::other(bad)))?;
        self.bound_path.listen_again(&self.options).map_err(AcceptError::Io)?;
        let state = Arc::new(ListenerState::new().map_err(AcceptError::Io)?);
        let pending =
            PendingHandshakes::open(self.bound_path.socket(), &state.doorbell, limits, self.options.clone())
                .map_err(AcceptError::Io)?;
        (self.epoll, self.state) = (pending.epoll(), state);
        self.pending = Mutex::new(pending);
        Ok(self)
    }

    /// Sets the options for clients that connect from now on.
    pub(crate) fn amend(&mut self, options: &Options) -> Result<(), String> {
        let limits = options.limits()?;
        self.options = options.clone();
        self.pending.get_mut().amend(limits, options);
        Ok(())
    }

    /// Returns how many handshakes failed: the server refused the client, or the client sent malformed bytes, hung up
    /// or was too slow.
    pub fn failed_handshakes(&self) -> u64 {
        self.state.failed.load(Ordering::Relaxed)
    }

    /// Returns a handle with which another thread can end every `accept`, now and later.
    pub fn closer(&self) -> ListenerCloser {
        ListenerCloser { state: Arc::clone(&self.state) }
    }

    fn accept_until(&self, deadline: Option<Instant>) -> Result<SharedMemoryStream, AcceptError> {
        let mut pending = self.lock_pending(deadline)?;
        loop {
            self.state.check()?;
            match pending.serve(deadline, &self.state.failed).map_err(AcceptError::Io)? {
                AcceptOutcome::Came(established) => return Ok(self.stream_of(established)),
                AcceptOutcome::DescriptorsClosed => return Err(AcceptError::DescriptorsClosed),
                AcceptOutcome::Nothing if expired(deadline) => return Err(AcceptError::Timeout),
                AcceptOutcome::Nothing => (),
            }
        }
    }

    /// Locks the pending handshakes, which gives the calling thread the right to drive them. The thread that holds the
    /// lock releases it when the listener is closed, so waiting for the lock ends too.
    fn lock_pending(
        &self,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'_, PendingHandshakes>, AcceptError> {
        self.state.check()?; // Before the lock: a fork may have copied it while it was held.
        match deadline {
            None => Ok(self.pending.lock()),
            Some(deadline) => self.pending.try_lock_until(deadline).ok_or(AcceptError::Timeout),
        }
    }

    fn stream_of(&self, established: Established) -> SharedMemoryStream {
        SharedMemoryStream::new(established, &self.options)
    }
}

impl Options {
    /// Takes over a Unix stream socket that listens already, with these options. A service manager may have passed it
    /// (socket activation), or a predecessor of this program may have handed it over.
    ///
    /// The path and its mode stay as they are, and dropping the listener does not remove the path. Clients that connect
    /// from now on see this process as the server (`peer_cred`), not the process that bound the socket.
    ///
    /// ```no_run
    /// use std::os::fd::{FromRawFd, OwnedFd};
    /// use narrows::Options;
    /// // systemd passes the first socket of its `.socket` unit as descriptor 3, and sets LISTEN_FDS and LISTEN_PID.
    /// let activated = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    /// let listener = match activated {
    ///     // SAFETY: the service manager has passed this descriptor to this process, and nothing else here owns it.
    ///     true => Options::new().listen_on(unsafe { OwnedFd::from_raw_fd(3) })?,
    ///     false => Options::new().bind("/run/backend/socket")?,
    /// };
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BindError::Io`] of kind `InvalidInput` if the descriptor is not such a socket; it is closed then.
    /// [`BindError::BadOptions`], or [`BindError::Io`] if another system call failed.
    pub fn listen_on(&self, socket: OwnedFd) -> Result<SharedMemoryListener, BindError> {
        self.listener(|options| BoundPath::adopt(socket, options))
    }

    /// Binds a listener at the path, with these options.
    ///
    /// A socket whose server has ended is replaced: such a socket refuses connections. A lock file beside the path
    /// (`.NAME.narrows-lock`) keeps other processes from replacing it at the same time, and is removed before this
    /// returns. Through another view of the same directory (a FUSE or overlay mount) a live server looks stale, since
    /// the kernel finds its socket by the inode: bind one path through one view only. The kernel's list of sockets
    /// (`/proc/net/unix`) shows the absolute path without symbolic links, by which systemd-tmpfiles recognizes a live
    /// socket.
    ///
    /// ```
    /// use narrows::Options;
    /// let folder = tempfile::tempdir()?;
    /// let listener = Options::new().max_message(1 << 20).bind(folder.path().join("socket"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BindError`]: the options are not legal, a live server listens at the path, a file that is not a socket is
    /// there, another process binds the path at the same time, or a system call failed. A failed call leaves no file
    /// behind.
    pub fn bind(&self, path: impl AsRef<Path>) -> Result<SharedMemoryListener, BindError> {
        self.listener(|options| BoundPath::take(path.as_ref(), options))
    }

    fn listener(
        &self,
        bind: impl FnOnce(&Self) -> Result<BoundPath, BindError>,
    ) -> Result<SharedMemoryListener, BindError> {
        let limits = self.limits().map_err(BindError::BadOptions)?;
        peer_monitor::start().map_err(BindError::io("watching for the end of clients"))?;
        let state = Arc::new(ListenerState::new().map_err(BindError::io("making the listener"))?);
        let bound_path = bind(self)?;
        let pending = PendingHandshakes::open(bound_path.socket(), &state.doorbell, limits, self.clone())
            .map_err(BindError::io("making the listener"))?;
        let (epoll, pending) = (pending.epoll(), Mutex::new(pending));
        Ok(SharedMemoryListener { pending, epoll, state, bound_path, options: self.clone() })
    }
}

/// Returns an epoll descriptor that is readable while [`try_accept`](SharedMemoryListener::try_accept) has work to do:
/// a new client, or a handshake to advance or to give up. Never read from it.
impl AsFd for SharedMemoryListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The number of the descriptor that [`as_fd`](AsFd::as_fd) returns.
impl AsRawFd for SharedMemoryListener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl fmt::Debug for SharedMemoryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryListener").field("path", &self.local_path()).finish_non_exhaustive()
    }
}

/// Ends every `accept` of a listener. It can be cloned, and may outlive the listener.
///
/// ```
/// use narrows::{AcceptError, SharedMemoryListener};
/// let folder = tempfile::tempdir()?;
/// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
/// let closer = listener.closer();
/// let server = std::thread::spawn(move || listener.accept().map(drop));
/// closer.close();
/// assert!(matches!(server.join().unwrap(), Err(AcceptError::Closed)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct ListenerCloser {
    state: Arc<ListenerState>,
}

impl ListenerCloser {
    /// Makes every call of `accept` return [`AcceptError::Closed`], whether it is blocked now or starts later.
    ///
    /// The path stays until the listener is dropped, and a client that connects there waits until then: drop the
    /// listener soon. Does nothing in a forked child.
    pub fn close(&self) {
        if self.same_process() {
            self.state.closed.store(true, Ordering::Release);
            self.state.doorbell.signal();
        }
    }

    /// Returns whether this is the process that made the listener, and not a fork of it.
    pub(crate) fn same_process(&self) -> bool {
        self.state.fork_guard.same_process()
    }
}

impl fmt::Debug for ListenerCloser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerCloser").finish_non_exhaustive()
    }
}

/// An iterator over accepted connections, returned by [`SharedMemoryListener::incoming`].
///
/// ```no_run
/// let listener = narrows::SharedMemoryListener::bind("/run/user/1000/socket")?;
/// for accepted in listener.incoming() {
///     match accepted {
///         Ok(mut stream) => drop(std::thread::spawn(move || stream.send(b"welcome"))),
///         Err(error) => {
///             eprintln!("{error}"); // Usually too many open files: the client still waits.
///             std::thread::sleep(std::time::Duration::from_millis(100));
///         }
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a SharedMemoryListener,
}

impl<'a> IntoIterator for &'a SharedMemoryListener {
    type Item = Result<SharedMemoryStream, AcceptError>;
    type IntoIter = Incoming<'a>;

    fn into_iter(self) -> Incoming<'a> {
        self.incoming()
    }
}

impl Iterator for Incoming<'_> {
    type Item = Result<SharedMemoryStream, AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.listener.accept() {
            Err(AcceptError::Closed | AcceptError::Forked | AcceptError::DescriptorsClosed) => None,
            result => Some(result),
        }
    }
}

/// The state that other threads may access while one thread accepts.
struct ListenerState {
    fork_guard: ForkGuard,
    /// Wakes the thread that accepts once the listener is closed. It is never read, so it stays readable from then on.
    doorbell: Eventfd,
    closed: AtomicBool,
    failed: AtomicU64,
}

impl ListenerState {
    fn new() -> io::Result<Self> {
        let (fork_guard, doorbell) = (ForkGuard::new()?, Eventfd::new()?);
        Ok(Self { fork_guard, doorbell, closed: AtomicBool::new(false), failed: AtomicU64::new(0) })
    }

    /// Fails in a forked child, and once the listener is closed.
    fn check(&self) -> Result<(), AcceptError> {
        if !self.fork_guard.same_process() {
            return Err(AcceptError::Forked);
        }
        if self.closed.load(Ordering::Acquire) { Err(AcceptError::Closed) } else { Ok(()) }
    }
}
