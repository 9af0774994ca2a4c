//! The path of a listener: bound under a lock, removed only if it is still ours.
//!
//! ```text
//!  lock file beside it ── what stands there? ─┬─ nothing ───────────────▶ bind, set group and mode, listen
//!                                             ├─ no socket ─────────────▶ NotASocket
//!                                             └─ a socket: connect ─┬─ refused ─▶ unlink, bind, ..., listen
//!                                                                   ├─ connected ─▶ InUse, or HeldByFork
//!                                                                   └─ full ─▶ BacklogFull
//! ```
//!
//! # Invariants
//!
//! 1. Between the look and the listening no other listener of this library can bind or unlink here.
//! 2. Only a socket that refused a connection is ever unlinked by a newcomer. A mount that shows the directory a second time
//!    (FUSE, overlay) shows the socket's file without its server: through it, a live server looks stale.
//! 3. Drop unlinks only what has the device and inode that stood there after our bind, and never waits: while another process
//!    binds there, the path is left for it. The place shares the listening socket, which holds the inode. Where no lock can be
//!    had, as on a full file system, it unlinks without: the socket still listens then, so no newcomer takes its path over.
//! 4. In a forked child drop unlinks nothing.
//! 5. The kernel's list of sockets has the absolute path without symbolic links, if that is short enough: systemd-tmpfiles spares
//!    what it finds there.
//! 6. The socket can be connected to once it listens. By then it has its group and mode, and it had less before.
//!
//! # Proof
//!
//! `tests/listener/accept.rs`: fifty processes race for a stale path, a live path, foreign files, drops; `tests/listener/paths.rs`.

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
    /// Nothing of a socket that another process has bound. Dropped first: the path goes while the socket still listens.
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
    /// Binds the path, and listens there.
    pub(super) fn take(path: &Path, options: &Options) -> Result<Self, BindError> {
        let fork_guard = ForkGuard::new().map_err(BindError::io("making the listener"))?;
        let (directory, name) = Directory::of(path)
            .map_err(|error| doing("opening the directory of", path)(why_not_bound(error, path)))?;
        let guard = directory.lock(name, Instant::now() + LOCK).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => BindError::Locked,
            // Nobody can bind here; that somebody does already says more.
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

    /// Takes over a socket that listens already. Its path stays the business of the process that bound it.
    pub(super) fn adopt(socket: OwnedFd, options: &Options) -> Result<Self, BindError> {
        let path = socket::listening_path(socket.as_fd())
            .map_err(BindError::io("taking over a listening socket"))?;
        let place = Self { path, bound: None, socket: Arc::new(Listening::adopted(socket)) };
        place.listen_again(options).map_err(BindError::io("taking over a listening socket"))?;
        Ok(place)
    }

    /// Makes this process the one that the kernel names to clients that connect from now on: the last one that called `listen`.
    pub(super) fn listen_again(&self, options: &Options) -> io::Result<()> {
        socket::start_listening(self.socket.as_fd(), options.backlog_len())
    }

    /// Whether the path still names the listening socket, if this process has bound it.
    pub(super) fn is_named(&self) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.is_current().unwrap_or(false))
    }

    /// The path, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The listening socket.
    pub(super) fn socket(&self) -> Arc<Listening> {
        Arc::clone(&self.socket)
    }
}

impl OwnedName {
    fn is_current(&self) -> io::Result<bool> {
        // The program may have closed the directory, and the number may name another one by now.
        Ok(self.directory.is_ours() && self.directory.inode_of(&self.name)? == Some(self.inode))
    }

    fn remove(&self) -> io::Result<()> {
        if !self.is_current()? {
            return Ok(());
        }
        // A process that binds here now finds our socket alive, or stale a moment later.
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
            let _ = self.remove(); // What could not be removed is stale, and can be taken over.
        }
    }
}

impl fmt::Debug for BoundPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How long to wait for the lock; its holders need microseconds.
const LOCK: Duration = Duration::from_secs(5);

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    BindError::io(format!("{what} {}", path.display()))
}

/// What stands at a name that can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket that refuses connections.
    StaleSocket,
}

/// Finds out whether the name can be bound.
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

/// A live server, or a fork that keeps the socket of one that has ended.
fn in_use(socket: &PeerSocket) -> BindError {
    match socket::peer_cred(socket.as_fd()) {
        Ok(cred) if socket::peer_has_ended(socket.as_fd()) => BindError::HeldByFork { pid: cred.pid() },
        _ => BindError::InUse,
    }
}

/// EPROTOTYPE: a socket of another type is bound and alive there.
const WRONG_TYPE: i32 = 91;

/// Binds, sets group and mode, and listens, for clients that pass no descriptors; what was bound without listening is removed
/// again.
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

/// The absolute path without symbolic links, if there is one and the kernel takes it; else the path as it was given.
fn absolute(path: &Path, name: &OsStr) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let full = fs::canonicalize(parent.unwrap_or_else(|| Path::new("."))).map(|parent| parent.join(name));
    full.ok().filter(|full| full.as_os_str().len() <= MAX_PATH).unwrap_or_else(|| path.into())
}
