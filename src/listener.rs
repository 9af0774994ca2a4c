//! A server's front door: binds a path, and turns clients into connections.
//!
//! ```text
//!   accept ─▶ Reception (listener/pending_handshakes.rs)      one epoll, driven by whoever calls accept
//!               ├── listening socket ── new client ─▶ Guest     up to 64 at once,
//!               ├── guests ── their Hello ─▶ Established         1 s for each, 100 ms if others wait
//!               ├── timer ── a guest's time is over
//!               └── eventfd ── closed by another thread
//!   drop   ─▶ Place (listener/bound_path.rs)              the path, removed if it is still ours
//! ```
//!
//! # Invariants
//!
//! 1. A client that fails, breaks the protocol or stays silent is never an error of `accept`; it costs one of 64 places
//!    for at most the handshake's timeout, and for 100 ms if others want it. The next client waits only if all are taken.
//! 2. A forked child drops its copy, which closes descriptors and does nothing else, or makes a
//!    listener with an epoll set of its own of it: the parent's set is never changed there.
//! 3. Only a socket that refuses connections is ever replaced, and only our own is ever removed.
//!
//! # Proof
//!
//! `tests/listener/handshake.rs`, `tests/listener/accept.rs`.

mod bound_path;
mod pending_handshakes;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
/// Dropping it removes the path, if it still belongs to this listener. Connections that were
/// accepted live on.
///
/// All methods take `&self`: several threads may accept from one listener; one of them at a time
/// drives the handshakes.
///
/// ```
/// use std::time::Duration;
/// use narrows::{SharedMemoryListener, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
/// assert!(listener.try_accept()?.is_none());
///
/// # let path = listener.local_path().to_owned();
/// let client = std::thread::spawn(move || SharedMemoryStream::connect(path)?.send(b"hello").map_err(std::io::Error::from));
/// let mut stream = listener.accept_timeout(Duration::from_secs(5))?; // `accept` waits for ever.
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
    reception: Mutex<PendingHandshakes>,
    epoll: Arc<Epoll>,
    state: Arc<ListenerState>,
    place: BoundPath,
    options: Options,
}

impl SharedMemoryListener {
    /// Binds the path with the default [`Options`].
    ///
    /// The socket's file is readable and writable by its owner alone. A path whose server is gone is
    /// taken over.
    ///
    /// # Errors
    ///
    /// See [`BindError`]; nothing is left behind then.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        Options::new().bind(path)
    }

    /// Waits for the next client whose handshake succeeds.
    ///
    /// # Errors
    ///
    /// [`AcceptError::Closed`], [`AcceptError::Forked`], [`AcceptError::DescriptorsClosed`] (within some seconds), or
    /// [`AcceptError::Io`]. With too many open
    /// files each call fails at once until one is closed: wait before the next.
    pub fn accept(&self) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(None)
    }

    /// Like [`accept`](Self::accept), for this long at most; too long to add means for ever.
    ///
    /// # Errors
    ///
    /// As `accept`, and [`AcceptError::Timeout`].
    pub fn accept_timeout(&self, timeout: Duration) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(deadline(timeout))
    }

    /// Like [`accept`](Self::accept), until this moment at most.
    ///
    /// # Errors
    ///
    /// As `accept`, and [`AcceptError::Timeout`].
    pub fn accept_deadline(&self, deadline: Instant) -> Result<SharedMemoryStream, AcceptError> {
        self.accept_until(Some(deadline))
    }

    /// A connection if one is ready, without waiting. It moves the pending handshakes on.
    ///
    /// # Errors
    ///
    /// As `accept`.
    pub fn try_accept(&self) -> Result<Option<SharedMemoryStream>, AcceptError> {
        match self.accept_deadline(Instant::now()) {
            Ok(stream) => Ok(Some(stream)),
            Err(AcceptError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Accepts without an end; ends when the listener or its descriptors are closed, or in a forked child.
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

    /// Whether the path still names this listener's socket: nobody has removed or replaced it.
    ///
    /// If not, no client finds the listener any more: bind anew. Always false for a socket that was taken over by
    /// [`Options::listen_on`]: its path is the business of the process that bound it.
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
        self.place.is_named()
    }

    /// Returns a copy of the listening socket, to hand over to another process: to a successor of this program, which
    /// takes it over by [`Options::listen_on`] and accepts from then on, so that no client is refused in between.
    ///
    /// The copy is close-on-exec. The path stays the business of this process: dropping the listener removes it, so end without
    /// dropping it, or let the successor bind the path anew.
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
    /// Too many open files.
    pub fn try_clone_socket(&self) -> io::Result<OwnedFd> {
        self.place.socket().as_fd().try_clone_to_owned()
    }

    /// The path, as it was given.
    pub fn local_path(&self) -> &Path {
        self.place.path()
    }

    /// In a forked child: takes over the inherited listener, for a daemon that forked after it bound,
    /// or for one of several workers that accept from the same path.
    ///
    /// Without this call everything in the child says [`AcceptError::Forked`]. The path stays the
    /// business of the process that bound it: only that one removes it. Clients in mid-handshake
    /// stay with the parent. In the process that bound it, it returns the listener as it is.
    ///
    /// Clients that connect from now on see this process as the server (`peer_cred`). Of several workers that is the last one to
    /// call this: once it has ended, a client without a deadline waits 5 s for the others to answer.
    ///
    /// ```no_run
    /// # fn fork() -> bool { true }
    /// let mut listener = narrows::SharedMemoryListener::bind("/run/user/1000/socket")?;
    /// if fork() {
    ///     listener = listener.after_fork()?; // In the child, which goes on accepting.
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`AcceptError::Io`] for want of descriptors.
    pub fn after_fork(mut self) -> Result<Self, AcceptError> {
        if self.state.fork_guard.same_process() {
            return Ok(self);
        }
        let limits = self.options.limits().map_err(|bad| AcceptError::Io(io::Error::other(bad)))?;
        self.place.listen_again(&self.options).map_err(AcceptError::Io)?;
        let state = Arc::new(ListenerState::new().map_err(AcceptError::Io)?);
        let reception =
            PendingHandshakes::open(self.place.socket(), &state.doorbell, limits, self.options.clone())
                .map_err(AcceptError::Io)?;
        (self.epoll, self.state) = (reception.epoll(), state);
        self.reception = Mutex::new(reception);
        Ok(self)
    }

    /// Takes other options for the clients that come from now on.
    pub(crate) fn amend(&mut self, options: &Options) -> Result<(), String> {
        let limits = options.limits()?;
        self.options = options.clone();
        self.reception.get_mut().amend(limits, options);
        Ok(())
    }

    /// How many handshakes came to nothing: refused, garbled, given up or too slow.
    pub fn failed_handshakes(&self) -> u64 {
        self.state.failed.load(Ordering::Relaxed)
    }

    /// A handle by which another thread can end every `accept`, now and later.
    pub fn closer(&self) -> ListenerCloser {
        ListenerCloser { state: Arc::clone(&self.state) }
    }

    fn accept_until(&self, deadline: Option<Instant>) -> Result<SharedMemoryStream, AcceptError> {
        let mut reception = self.enter(deadline)?;
        loop {
            self.state.check()?;
            match reception.serve(deadline, &self.state.failed).map_err(AcceptError::Io)? {
                AcceptOutcome::Came(established) => return Ok(self.stream_of(established)),
                AcceptOutcome::DescriptorsClosed => return Err(AcceptError::DescriptorsClosed),
                AcceptOutcome::Nothing if expired(deadline) => return Err(AcceptError::Timeout),
                AcceptOutcome::Nothing => (),
            }
        }
    }

    /// The right to drive the handshakes. Whoever holds it leaves when the listener is closed, so
    /// waiting for it ends too.
    fn enter(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, PendingHandshakes>, AcceptError> {
        self.state.check()?; // Before the lock: a fork may have copied it while it was held.
        match deadline {
            None => Ok(self.reception.lock()),
            Some(deadline) => self.reception.try_lock_until(deadline).ok_or(AcceptError::Timeout),
        }
    }

    fn stream_of(&self, established: Established) -> SharedMemoryStream {
        SharedMemoryStream::new(established, &self.options)
    }
}

impl Options {
    /// Takes over a Unix stream socket that listens already, with these options: one that a service manager has passed
    /// (socket activation), or that a predecessor of this program has handed over.
    ///
    /// The path and its mode stay as they are, and dropping the listener does not remove the path. Clients that connect
    /// from now on see this process as the server (`peer_cred`), not the one that has bound the socket.
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
    /// [`BindError::Io`] of kind `InvalidInput` if it is something else than such a socket; it is closed then. Else as
    /// [`bind`](Self::bind).
    pub fn listen_on(&self, socket: OwnedFd) -> Result<SharedMemoryListener, BindError> {
        self.listener(|options| BoundPath::adopt(socket, options))
    }

    /// Binds a listener at the path, with these options.
    ///
    /// A path whose server is gone is taken over: at which a socket stands that refuses connections. A lock file beside it
    /// (`.NAME.narrows-lock`) keeps others from doing so at the same time, and is removed before this returns. Through another view of
    /// the same directory (a FUSE or overlay mount) a live server looks stale, since the kernel finds its socket by the inode:
    /// bind one path through one view alone. The kernel's list of sockets (`/proc/net/unix`) has the absolute path without
    /// symbolic links, by which systemd-tmpfiles knows a live socket.
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
    /// See [`BindError`]; nothing is left behind then.
    pub fn bind(&self, path: impl AsRef<Path>) -> Result<SharedMemoryListener, BindError> {
        self.listener(|options| BoundPath::take(path.as_ref(), options))
    }

    fn listener(
        &self,
        place: impl FnOnce(&Self) -> Result<BoundPath, BindError>,
    ) -> Result<SharedMemoryListener, BindError> {
        let limits = self.limits().map_err(BindError::BadOptions)?;
        peer_monitor::start().map_err(BindError::io("watching for the end of clients"))?;
        let state = Arc::new(ListenerState::new().map_err(BindError::io("making the listener"))?);
        let place = place(self)?;
        let reception = PendingHandshakes::open(place.socket(), &state.doorbell, limits, self.clone())
            .map_err(BindError::io("making the listener"))?;
        let (epoll, reception) = (reception.epoll(), Mutex::new(reception));
        Ok(SharedMemoryListener { reception, epoll, state, place, options: self.clone() })
    }
}

/// An epoll descriptor, readable when [`try_accept`](SharedMemoryListener::try_accept) has work to
/// do: a client, or a handshake to move on or to give up. Never read from it.
impl AsFd for SharedMemoryListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl fmt::Debug for SharedMemoryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemoryListener").field("path", &self.local_path()).finish_non_exhaustive()
    }
}

/// Ends every `accept` of a listener. Cloneable; outlives the listener harmlessly.
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
    /// Makes every call of `accept`, now blocked or later, return [`AcceptError::Closed`]. The path
    /// stays until the listener is dropped, and who connects there waits until then: drop it soon. Does nothing in a forked child.
    pub fn close(&self) {
        if self.same_process() {
            self.state.closed.store(true, Ordering::Release);
            self.state.doorbell.signal();
        }
    }

    /// Whether this is no fork of the process that made the listener.
    pub(crate) fn same_process(&self) -> bool {
        self.state.fork_guard.same_process()
    }
}

impl fmt::Debug for ListenerCloser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerCloser").finish_non_exhaustive()
    }
}

/// An iterator of connections; see [`SharedMemoryListener::incoming`].
///
/// ```no_run
/// let listener = narrows::SharedMemoryListener::bind("/run/user/1000/socket")?;
/// for accepted in listener.incoming() {
///     match accepted {
///         Ok(mut stream) => drop(std::thread::spawn(move || stream.send(b"welcome"))),
///         Err(error) => {
///             eprintln!("{error}"); // Too many open files, mostly: the client still waits.
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

impl Iterator for Incoming<'_> {
    type Item = Result<SharedMemoryStream, AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.listener.accept() {
            Err(AcceptError::Closed | AcceptError::Forked | AcceptError::DescriptorsClosed) => None,
            result => Some(result),
        }
    }
}

/// What other threads may touch while one accepts. Never drained: once rung, it rings for ever.
struct ListenerState {
    fork_guard: ForkGuard,
    doorbell: Eventfd,
    closed: AtomicBool,
    failed: AtomicU64,
}

impl ListenerState {
    fn new() -> io::Result<Self> {
        let (fork_guard, doorbell) = (ForkGuard::new()?, Eventfd::new()?);
        Ok(Self { fork_guard, doorbell, closed: AtomicBool::new(false), failed: AtomicU64::new(0) })
    }

    fn check(&self) -> Result<(), AcceptError> {
        if !self.fork_guard.same_process() {
            return Err(AcceptError::Forked);
        }
        if self.closed.load(Ordering::Acquire) { Err(AcceptError::Closed) } else { Ok(()) }
    }
}
