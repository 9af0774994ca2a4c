//! The path of a listener. It is bound under a lock, and removed only if it still names this listener's socket.
//!
//! ```text
//!  take the lock file ── stat the path ─┬─ nothing ───────────────▶ bind, set group and mode, listen
//!                                       ├─ not a socket ──────────▶ NotASocket
//!                                       └─ a socket: connect ─┬─ refused ───▶ unlink, bind, ..., listen
//!                                                             ├─ connected ─▶ InUse, or HeldByFork
//!                                                             └─ full ──────▶ BacklogFull
//! ```
//!
//! # Invariants
//!
//! 1. Between the check of the path and `listen` no other listener of this library can bind or unlink the path.
//! 2. `bind` unlinks only a socket that refused a connection. A mount that shows the directory a second time (FUSE,
//!    overlay) shows the socket's file without its server: through it, a live server looks stale.
//! 3. Drop unlinks only a file whose device and inode are those that the path had after our bind. It never waits: while
//!    another process binds the path, drop leaves the path to that process. `BoundPath` shares the listening socket, so
//!    the inode number cannot be reused. If the lock file cannot be made, for example on a full file system, drop
//!    unlinks without a lock: the socket still listens then, so no other process replaces it.
//! 4. In a forked child drop unlinks nothing.
//! 5. The kernel's list of sockets has the absolute path without symbolic links, if that is short enough:
//!    systemd-tmpfiles does not delete sockets that it finds in that list.
//! 6. Clients can connect once the socket listens. By then it has its group and mode; before, its mode allows less.
//!
//! # Proof
//!
//! `tests/listener/accept.rs`: fifty processes race for a stale path, a live path, foreign files, drops;
//! `tests/listener/paths.rs`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connect::{why_not_bound, why_not_connected, why_not_locked};
use crate::error::BindError;
use crate::options::Options;
use crate::sys::foreign::{Listening, PeerSocket};
use crate::sys::fork_guard::ForkGuard;
use crate::sys::path::{Directory, Inode, lock_name};
use crate::sys::socket::{self, Connecting, MAX_PATH};
use crate::sys::syscall_error::errno;

/// A path that this process has bound.
pub(super) struct BoundPath {
    path: PathBuf,
    /// `None` for a socket that another process has bound. The field is dropped first, so the path is removed while the
    /// socket still listens.
    bound: Option<OwnedName>,
    socket: Arc<Listening>,
}

/// The name of a socket that this process has bound.
struct OwnedName {
    directory: Directory,
    name: OsString,
    inode: Inode,
    fork_guard: ForkGuard,
}

impl BoundPath {
    /// Binds the path, and listens.
    pub(super) fn take(path: &Path, options: &Options) -> Result<Self, BindError> {
        let fork_guard = ForkGuard::new().map_err(BindError::io("making the listener"))?;
        let (directory, name) = Directory::of(path)
            .map_err(|error| doing("opening the directory of", path)(why_not_bound(error, path)))?;
        let guard = directory.lock(name, Instant::now() + LOCK).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => BindError::Locked,
            // Without the lock file this process cannot bind. A server that listens at the path is the better error.
            _ => look(&directory, name, path).err().unwrap_or_else(|| {
                let lock = path.with_file_name(lock_name(name));
                let error = why_not_locked(error, &lock, path);
                doing("making or opening the lock file", &lock)(error)
            }),
        })?;
        if look(&directory, name, path)? == Found::StaleSocket {
            directory
                .unlink(name)
                .map_err(|error| doing("removing the stale", path)(why_not_bound(error, path)))?;
        }
        let (socket, inode) = occupy(&directory, name, path, options)?;
        drop(guard);
        let (path, name, socket) = (path.into(), name.into(), Arc::new(socket));
        Ok(Self { path, bound: Some(OwnedName { directory, name, inode, fork_guard }), socket })
    }

    /// Takes over a socket that listens already. The process that bound its path stays responsible for the path.
    pub(super) fn adopt(socket: OwnedFd, options: &Options) -> Result<Self, BindError> {
        let path = socket::listening_path(socket.as_fd())
            .map_err(BindError::io("taking over a listening socket"))?;
        let adopted = Self { path, bound: None, socket: Arc::new(Listening::adopted(socket)) };
        adopted.listen_again(options).map_err(BindError::io("taking over a listening socket"))?;
        Ok(adopted)
    }

    /// Makes this process the one whose credentials clients get that connect from now on: the kernel reports the last
    /// process that called `listen`.
    pub(super) fn listen_again(&self, options: &Options) -> io::Result<()> {
        socket::start_listening(self.socket.as_fd(), options.backlog_len())
    }

    /// Returns whether this process has bound the path and the path still names the listening socket.
    pub(super) fn is_named(&self) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.is_current().unwrap_or(false))
    }

    /// Returns the path, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the listening socket.
    pub(super) fn socket(&self) -> Arc<Listening> {
        Arc::clone(&self.socket)
    }
}

impl OwnedName {
    fn is_current(&self) -> io::Result<bool> {
        // The program may have closed the directory's descriptor, and the number may name another file by now.
        Ok(self.directory.is_ours() && self.directory.inode_of(&self.name)? == Some(self.inode))
    }

    fn remove(&self) -> io::Result<()> {
        if !self.is_current()? {
            return Ok(());
        }
        // Another process that holds the lock is binding the path. It finds our socket listening, or stale a moment
        // later, so this process leaves the path to it.
        let _guard = match self.directory.try_lock(&self.name) {
            Ok(None) => return Ok(()),
            locked => locked.ok(),
        };
        if self.is_current()? {
            self.directory.unlink(&self.name)?;
        }
        Ok(())
    }
}

impl Drop for OwnedName {
    fn drop(&mut self) {
        if self.fork_guard.same_process() {
            let _ = self.remove(); // A socket that could not be removed is stale, and `bind` replaces it.
        }
    }
}

impl fmt::Debug for BoundPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundPath").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How long to wait for the lock. A process holds it for microseconds.
const LOCK: Duration = Duration::from_secs(5);

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    BindError::io(format!("{what} {}", path.display()))
}

/// What is at a name that can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket that refuses connections.
    StaleSocket,
}

/// Checks whether the name can be bound.
fn look(directory: &Directory, name: &OsStr, path: &Path) -> Result<Found, BindError> {
    let inode = directory.inode_of(name);
    match inode.map_err(|error| doing("looking at", path)(why_not_bound(error, path)))? {
        None => return Ok(Found::Nothing),
        Some(inode) if !inode.is_socket => return Err(BindError::NotASocket),
        Some(_) => (),
    }
    match socket::connect(path) {
        Ok(Connecting::Connected(socket)) => Err(in_use(&socket.into())),
        Ok(Connecting::BacklogFull) => Err(BindError::BacklogFull),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Found::StaleSocket),
        Err(error) if errno(&error) == Some(WRONG_TYPE) => Err(BindError::InUse),
        Err(error) => Err(doing("asking whether a server lives at", path)(why_not_connected(error, path))),
    }
}

/// Returns the error for a socket that accepts connections: a live server holds it, or a fork of a server that has
/// ended.
fn in_use(socket: &PeerSocket) -> BindError {
    match socket::peer_cred(socket.as_fd()) {
        Ok(cred) if socket::peer_has_ended(socket.as_fd()) => BindError::HeldByFork { pid: cred.pid() },
        _ => BindError::InUse,
    }
}

/// EPROTOTYPE: a live socket of another type is bound there.
const WRONG_TYPE: i32 = 91;

/// Binds, sets group and mode, and listens. The socket refuses descriptors from clients. If a step after the bind
/// fails, the socket's file is removed again.
fn occupy(
    directory: &Directory,
    name: &OsStr,
    path: &Path,
    options: &Options,
) -> Result<(Listening, Inode), BindError> {
    let full = absolute(path, name);
    let socket = socket::bind_private(&full).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse,
        _ => doing("binding", path)(why_not_bound(error, path)),
    })?;
    let socket = Listening::new(socket);
    let listening = options
        .sharing()
        .map_or(Ok(()), |(group, mode)| directory.share(name, group, mode))
        .and_then(|()| socket::start_listening(socket.as_fd(), options.backlog_len()))
        .and_then(|()| directory.inode_of(name));
    match listening {
        Ok(Some(inode)) => Ok((socket, inode)),
        Ok(None) => Err(doing("binding", path)(io::ErrorKind::NotFound.into())),
        Err(error) => {
            let _ = directory.unlink(name);
            Err(doing("listening at", path)(error))
        }
    }
}

/// Returns the absolute path without symbolic links, if there is one and it is short enough for the kernel; else the
/// path as it was given.
fn absolute(path: &Path, name: &OsStr) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let full = fs::canonicalize(parent.unwrap_or_else(|| Path::new("."))).map(|parent| parent.join(name));
    full.ok().filter(|full| full.as_os_str().len() <= MAX_PATH).unwrap_or_else(|| path.into())
}
