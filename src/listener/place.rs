//! The path of a listener: taken under a lock, given back only if it is still ours.
//!
//! ```text
//!  flock(parent directory) ── what stands there? ─┬─ nothing ───────────────▶ bind, listen
//!                                                 ├─ no socket ─────────────▶ NotASocket
//!                                                 └─ a socket: knock ─┬─ refused ─▶ unlink, bind, listen
//!                                                                     └─ answered, or full ─▶ InUse
//! ```
//!
//! # Invariants
//!
//! 1. Between the look and the listening nobody else who takes the lock can bind or unlink here.
//! 2. Only a socket that refused a connection is ever unlinked by a newcomer.
//! 3. Drop unlinks only what has the device and inode that stood there after our bind. The place
//!    shares the listening socket, which holds the inode: nobody else can have it by then.
//! 4. In a forked child drop unlinks nothing.
//!
//! # Proof
//!
//! `tests/listener.rs`: fifty processes race for a stale path, a live path, foreign files, drops.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::BindError;
use crate::sys::call::errno;
use crate::sys::foreign::Listening;
use crate::sys::fork::Canary;
use crate::sys::path::{DirLock, Inode};
use crate::sys::socket;

/// A path that this process has bound.
pub(super) struct Place {
    path: PathBuf,
    directory: DirLock,
    name: OsString,
    inode: Inode,
    canary: Canary,
    socket: Arc<Listening>,
}

impl Place {
    /// Takes the path, and listens there.
    pub(super) fn take(path: &Path, backlog: i32) -> Result<Self, BindError> {
        let canary = Canary::new().map_err(BindError::io("making the listener"))?;
        let (directory, name) = DirLock::of(path).map_err(doing("opening the directory of", path))?;
        let guard = directory.lock(Instant::now() + LOCK).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => BindError::Locked,
            _ => doing("locking the directory of", path)(error),
        })?;
        clear(&directory, name, path)?;
        let (socket, inode) = occupy(&directory, name, path, backlog)?;
        drop(guard);
        let (path, name, socket) = (path.into(), name.into(), Arc::new(socket));
        Ok(Self { path, directory, name, inode, canary, socket })
    }

    /// The path, as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The listening socket.
    pub(super) fn socket(&self) -> Arc<Listening> {
        Arc::clone(&self.socket)
    }

    fn give_back(&self) -> io::Result<()> {
        // Without the lock it is left to the next server, which finds it stale.
        let _guard = self.directory.lock(Instant::now() + LOCK)?;
        if self.directory.inode_of(&self.name)? == Some(self.inode) {
            self.directory.unlink(&self.name)?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.canary.same_process() {
            let _ = self.give_back(); // What could not be removed is stale, and can be taken over.
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How long to wait for the lock of the directory; its holders need microseconds.
const LOCK: Duration = Duration::from_secs(5);

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    BindError::io(format!("{what} {}", path.display()))
}

/// Makes sure that nothing stands at the name.
fn clear(directory: &DirLock, name: &OsStr, path: &Path) -> Result<(), BindError> {
    match directory.inode_of(name).map_err(doing("looking at", path))? {
        None => return Ok(()),
        Some(inode) if !inode.is_socket => return Err(BindError::NotASocket),
        Some(_) => (),
    }
    match socket::connect(path) {
        Ok(_) => Err(BindError::InUse),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            directory.unlink(name).map_err(doing("removing the stale", path))
        }
        Err(error) if errno(&error) == Some(WRONG_TYPE) => Err(BindError::InUse),
        Err(error) => Err(doing("asking whether a server lives at", path)(error)),
    }
}

/// EPROTOTYPE: a socket of another type is bound and alive there.
const WRONG_TYPE: i32 = 91;

/// Binds and listens, for clients that pass no descriptors; what was bound without listening is removed again.
fn occupy(
    directory: &DirLock,
    name: &OsStr,
    path: &Path,
    backlog: i32,
) -> Result<(Listening, Inode), BindError> {
    let socket = socket::bind_private(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse,
        _ => doing("binding", path)(error),
    })?;
    let socket = Listening::new(socket);
    let listening = socket::start_listening(socket.as_fd(), backlog).and_then(|()| directory.inode_of(name));
    match listening {
        Ok(Some(inode)) => Ok((socket, inode)),
        Ok(None) => Err(doing("binding", path)(io::ErrorKind::NotFound.into())),
        Err(error) => {
            let _ = directory.unlink(name);
            Err(doing("listening at", path)(error))
        }
    }
}
