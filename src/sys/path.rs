//! The directory of a socket: a lock on it without a name of its own, and what stands under a name.
//!
//! # Invariants
//!
//! 1. All names are looked up in the directory that was opened: renaming it in between does not
//!    lead elsewhere. No name leads out of it, and no symbolic link is followed.
//! 2. The lock is released by an explicit unlock: a fork may hold a copy of the descriptor, and
//!    with it a lock that only closing would release.
//!
//! # Proof
//!
//! Tests below.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::call;
use super::descriptor::Descriptor;

/// An open directory.
#[derive(Debug)]
pub(crate) struct DirLock {
    fd: Descriptor,
}

/// The directory is locked against all others that lock it, until this is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks the directory"]
pub(crate) struct Guard<'a> {
    directory: &'a DirLock,
}

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    /// The file system.
    pub(crate) dev: u64,
    /// The number in it.
    pub(crate) ino: u64,
    /// Whether it is a socket.
    pub(crate) is_socket: bool,
}

impl DirLock {
    /// Opens the directory that a path stands in, and returns the name in it.
    ///
    /// # Errors
    ///
    /// The path ends in no name, or the directory cannot be read.
    pub(crate) fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        Ok((Self::open(parent.unwrap_or_else(|| Path::new(".")))?, name))
    }

    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// It is no directory, or cannot be read.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string; the call makes a new descriptor, which is ours alone.
        let fd = unsafe { call::owned("open the directory", libc::open(path.as_ptr(), flags)) };
        Ok(Self { fd: fd?.into() })
    }

    /// Waits for the lock, at the longest until the deadline.
    ///
    /// # Errors
    ///
    /// `TimedOut`: another process holds it; or the system call failed.
    pub(crate) fn lock(&self, until: Instant) -> io::Result<Guard<'_>> {
        loop {
            if self.try_lock()? {
                return Ok(Guard { directory: self });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "another process holds the lock on the directory of the socket";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(left.min(PAUSE));
        }
    }

    /// What stands under this name, if anything.
    ///
    /// # Errors
    ///
    /// It is no plain name, or the system call failed.
    pub(crate) fn inode_of(&self, name: &OsStr) -> io::Result<Option<Inode>> {
        let name = plain(name)?;
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the name is a C string, and the call fills the local struct.
        let result = unsafe { libc::fstatat(self.fd.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags) };
        match call::check("fstatat", result) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // SAFETY: `fstatat` succeeded, so it filled the struct.
        let stat = unsafe { stat.assume_init() };
        let is_socket = stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        Ok(Some(Inode { dev: stat.st_dev, ino: stat.st_ino, is_socket }))
    }

    /// Removes this name.
    ///
    /// # Errors
    ///
    /// It is no plain name, or the system call failed.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let name = plain(name)?;
        // SAFETY: the name is a C string.
        let result = unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), 0) };
        call::check("unlinkat", result).map(drop)
    }

    fn try_lock(&self) -> io::Result<bool> {
        // SAFETY: takes two numbers.
        let result = unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        match call::check("flock", result) {
            Ok(_) => Ok(true),
            Err(error) => match call::errno(&error) {
                Some(libc::EWOULDBLOCK | libc::EINTR) => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: takes two numbers. It cannot fail: the descriptor is open and locked.
        unsafe { libc::flock(self.directory.fd.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Short against the time in which a lock is held, which is a few system calls.
const PAUSE: Duration = Duration::from_millis(2);

fn plain(name: &OsStr) -> io::Result<CString> {
    let bytes = name.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
    }
    Ok(CString::new(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::bind_private;
    use crate::sys::testing::{PATIENCE, fork};

    #[test]
    fn one_holds_the_lock_and_the_next_gets_it() {
        let dir = tempfile::tempdir().expect("directory");
        let one = DirLock::open(dir.path()).expect("opens");
        let two = DirLock::open(dir.path()).expect("opens");
        let guard = one.lock(Instant::now()).expect("locks");
        let start = Instant::now();
        let error = two.lock(start + Duration::from_millis(30)).expect_err("held");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(30));
        // A fork that keeps the descriptor does not keep the lock.
        let child = fork(|| {
            loop {
                sleep(Duration::from_secs(1));
            }
        });
        drop(guard);
        let guard = two.lock(Instant::now() + PATIENCE).expect("free");
        drop(guard);
        child.kill();
    }

    #[test]
    fn names_are_looked_up_in_the_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("socket");
        let (lock, name) = DirLock::of(&path).expect("opens");
        assert_eq!(lock.inode_of(name).expect("looks"), None);
        let _socket = bind_private(&path).expect("binds");
        let inode = lock.inode_of(name).expect("looks").expect("there");
        assert!(inode.is_socket);
        std::fs::write(dir.path().join("file"), b"").expect("writes");
        std::os::unix::fs::symlink(&path, dir.path().join("link")).expect("links");
        for other in ["file", "link"] {
            let found = lock.inode_of(other.as_ref()).expect("looks").expect("there");
            assert!(!found.is_socket && found.ino != inode.ino, "{other}");
        }
        lock.unlink(name).expect("unlinks");
        assert_eq!(lock.inode_of(name).expect("looks"), None);
        assert_eq!(lock.unlink(name).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_plain_names_and_directories() {
        let dir = tempfile::tempdir().expect("directory");
        let lock = DirLock::open(dir.path()).expect("opens");
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(lock.inode_of(name.as_ref()).is_err() && lock.unlink(name.as_ref()).is_err());
        }
        assert!(DirLock::of(Path::new("/")).is_err());
        assert!(DirLock::of(Path::new("plain")).is_ok());
        assert!(DirLock::open(Path::new("/dev/null")).is_err());
    }
}
