//! The directory of a socket: the lock file beside a name, and the file that a name refers to.
//!
//! The directory itself is never locked: programs lock their own directories so that systemd-tmpfiles does not clean
//! them, and systemd-tmpfiles locks them while it cleans.
//!
//! # Invariants
//!
//! 1. All names are looked up in the directory that was opened, also if it is renamed meanwhile. No name leads out of
//!    it, and no symbolic link is followed.
//! 2. The holder removes a lock file before it unlocks it, and a lock counts only while its name still names the locked
//!    file. So a lock file is left behind only by a process that is killed while it holds the lock; the next process
//!    takes that file over. A lock file is an empty regular file. Any other file of that name is not changed, and is an
//!    error at once.
//! 3. The lock is released by an explicit unlock. A fork may hold a copy of the descriptor, so closing ours might not
//!    release the lock.
//!
//! # Proof
//!
//! Tests below.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::descriptor::Descriptor;
use super::syscall_error;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: Descriptor,
}

/// The lock of a name, until this is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks the name"]
pub(crate) struct LockGuard<'a> {
    directory: &'a Directory,
    file: Descriptor,
    name: OsString,
}

/// The file that a name refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    /// The file system.
    pub(crate) dev: u64,
    /// The inode number.
    pub(crate) ino: u64,
    /// Whether it is a socket.
    pub(crate) is_socket: bool,
}

impl Directory {
    /// Opens the directory of a path, and returns the path's last component.
    ///
    /// # Errors
    ///
    /// The path ends in no name, or there is no such directory.
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
    /// There is no such directory.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // O_PATH: names are looked up, but the directory is never read, and the process may lack the permission to read
        // it.
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string; the call makes a new descriptor, which is ours alone.
        let fd = unsafe { syscall_error::owned("open the directory", libc::open(path.as_ptr(), flags)) };
        Ok(Self { fd: fd?.into() })
    }

    /// Returns whether the descriptor still names the directory: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.is_ours()
    }

    /// Returns a short path of this name, also if the path of the directory is long. It is valid in this process while
    /// this directory is open.
    pub(super) fn short_path(&self, name: &OsStr) -> PathBuf {
        Path::new(DESCRIPTORS).join(self.fd.as_raw_fd().to_string()).join(name)
    }

    /// Blocks until it has taken the lock beside this name, until the deadline at most.
    ///
    /// # Errors
    ///
    /// `TimedOut`: another process holds the lock. Else the errors of [`try_lock`](Self::try_lock).
    pub(crate) fn lock(&self, name: &OsStr, deadline: Instant) -> io::Result<LockGuard<'_>> {
        loop {
            if let Some(guard) = self.try_lock(name)? {
                return Ok(guard);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "another process holds the lock file of the socket";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(left.min(PAUSE));
        }
    }

    /// Takes the lock beside this name, if it is free now.
    ///
    /// # Errors
    ///
    /// Another file has the name of the lock file (`AlreadyExists`), or the system call failed.
    pub(crate) fn try_lock(&self, name: &OsStr) -> io::Result<Option<LockGuard<'_>>> {
        let hidden = lock_name(name);
        let path = plain(&hidden)?;
        let open = |flags: libc::c_int| {
            // O_NONBLOCK: otherwise a lease on the file, which any process that can read it may take, would block this.
            let flags = flags | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
            // SAFETY: the path is a C string; the call makes a new descriptor, which is ours alone.
            unsafe {
                let made = libc::openat(self.fd.as_raw_fd(), path.as_ptr(), flags, 0o600);
                syscall_error::owned("open the lock file", made).map(Descriptor::from)
            }
        };
        // A lock file that a killed process has left behind is opened without O_CREAT: in a directory that all users
        // may write to, the kernel may refuse O_CREAT for another user's file.
        let opened = match self.stat(&hidden)? {
            None => open(libc::O_CREAT | libc::O_EXCL),
            Some(stat) => is_lock(&stat).and_then(|()| open(0)),
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                return match syscall_error::errno(&error) {
                    // The file was made or removed meanwhile; a process has a lease on it; a signal.
                    Some(libc::EEXIST | libc::ENOENT | libc::EWOULDBLOCK | libc::EINTR) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        is_lock(&stat_of(&file)?)?;
        // SAFETY: takes two numbers.
        let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if let Err(error) = syscall_error::check("flock", locked) {
            return match syscall_error::errno(&error) {
                Some(libc::EWOULDBLOCK | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        // From here on the guard's drop removes the file, if it is still the one that the name names.
        let guard = LockGuard { directory: self, file, name: hidden };
        let current = guard.is_current()?;
        Ok(current.then_some(guard))
    }

    /// Returns the file that this name refers to, if there is one.
    ///
    /// # Errors
    ///
    /// The name is not a plain file name, or the system call failed.
    pub(crate) fn inode_of(&self, name: &OsStr) -> io::Result<Option<Inode>> {
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        let is_socket = stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        Ok(Some(Inode { dev: stat.st_dev, ino: stat.st_ino, is_socket }))
    }

    fn stat(&self, name: &OsStr) -> io::Result<Option<libc::stat>> {
        let name = plain(name)?;
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: the name is a C string, and the call fills the local struct.
        let result = unsafe { libc::fstatat(self.fd.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags) };
        match syscall_error::check("fstatat", result) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // SAFETY: `fstatat` succeeded, so it filled the struct.
        Ok(Some(unsafe { stat.assume_init() }))
    }

    /// Removes this name.
    ///
    /// # Errors
    ///
    /// The name is not a plain file name, or the system call failed.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let name = plain(name)?;
        // SAFETY: the name is a C string.
        let result = unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), 0) };
        syscall_error::check("unlinkat", result).map(drop)
    }

    /// Opens the file of this name with O_PATH, so that its group and mode can be changed.
    fn open_path(&self, name: &OsStr) -> io::Result<Descriptor> {
        let (name, flags) = (plain(name)?, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC);
        // SAFETY: the name is a C string; the call makes a new descriptor, which is ours alone.
        unsafe {
            syscall_error::owned("open the socket", libc::openat(self.fd.as_raw_fd(), name.as_ptr(), flags))
        }
        .map(Descriptor::from)
    }

    /// Sets the group of the socket with this name, if one is given, then its mode.
    ///
    /// # Errors
    ///
    /// The name refers to another file, which has replaced the socket; the process may not change group or mode;
    /// `/proc` is missing.
    pub(crate) fn share(&self, name: &OsStr, group: Option<u32>, mode: u32) -> io::Result<()> {
        let file = self.open_path(name)?;
        // A process that may write to the directory can put a link to a file of this user there.
        if stat_of(&file)?.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file has taken the socket's name"));
        }
        if let Some(group) = group {
            let keep = libc::uid_t::MAX;
            // SAFETY: the path is an empty C string, so the call changes the file of the descriptor.
            let given =
                unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), keep, group, libc::AT_EMPTY_PATH) };
            syscall_error::check("fchownat", given)?;
        }
        // For an O_PATH descriptor the kernel changes the mode only through this path.
        let path = CString::new(format!("{DESCRIPTORS}/{}", file.as_raw_fd()))?;
        // SAFETY: the path is a C string.
        syscall_error::check("chmod", unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
    }
}

impl LockGuard<'_> {
    /// Returns whether the name still names the locked file, and the file is a lock file. The last holder may have
    /// removed it meanwhile, and a program may have written to it.
    fn is_current(&self) -> io::Result<bool> {
        let held = stat_of(&self.file)?;
        let named = self.directory.inode_of(&self.name)?;
        let is_named = named.is_some_and(|named| (named.dev, named.ino) == (held.st_dev, held.st_ino));
        Ok(is_named && is_lock(&held).is_ok())
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        if self.is_current().unwrap_or(false) {
            // A file that could not be removed is used as the lock file the next time.
            let _left_behind = self.directory.unlink(&self.name);
        }
        // SAFETY: takes two numbers. It cannot fail: the descriptor is open and locked.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Returns the name of the lock file beside a name.
pub(crate) fn lock_name(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".narrows-lock");
    hidden
}

/// Verifies that this is a lock file of this library: an empty regular file.
fn is_lock(stat: &libc::stat) -> io::Result<()> {
    let found = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if stat.st_size == 0 => return Ok(()),
        libc::S_IFREG => "a file with contents",
        libc::S_IFDIR => "a directory",
        libc::S_IFLNK => "a symbolic link",
        _ => "a special file",
    };
    let text = format!("{found} has its name: move it away");
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

fn stat_of(file: &Descriptor) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fills the local struct, which is read only after the call succeeded.
    unsafe {
        syscall_error::check("fstat", libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()))?;
        Ok(stat.assume_init())
    }
}

/// An access to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Enter a directory.
    Enter,
    /// Write to a file, to connect to a socket, or to change the names in a directory.
    Write,
}

/// Returns whether owner and mode permit this access, with the user and the privileges that this process has now.
pub(crate) fn permits(path: &Path, access: Access) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mode = match access {
        Access::Enter => libc::X_OK,
        Access::Write => libc::W_OK,
    };
    // SAFETY: the path is a C string.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

/// The directory in which the kernel shows the descriptors of this process as files.
pub(super) const DESCRIPTORS: &str = "/proc/self/fd";
/// How long to wait between two attempts to take a lock. A process holds a lock for a few system calls.
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
    fn one_holds_the_lock_and_the_next_gets_it_and_no_file_is_left() {
        let dir = tempfile::tempdir().expect("directory");
        let name = OsStr::new("socket");
        let one = Directory::open(dir.path()).expect("opens");
        let two = Directory::open(dir.path()).expect("opens");
        let guard = one.lock(name, Instant::now()).expect("locks");
        let _another = one.lock(OsStr::new("other"), Instant::now()).expect("another name is free");
        let start = Instant::now();
        let error = two.lock(name, start + Duration::from_millis(30)).expect_err("held");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(30));
        // A fork that keeps the descriptor does not keep the lock.
        let child = fork(|| {
            loop {
                sleep(Duration::from_secs(1));
            }
        });
        drop(guard);
        let guard = two.lock(name, Instant::now() + PATIENCE).expect("free");
        drop((guard, _another));
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
        child.kill();
    }

    #[test]
    fn many_threads_hold_the_lock_one_by_one() {
        let dir = tempfile::tempdir().expect("directory");
        let held = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let directory = Directory::open(dir.path()).expect("opens");
                    for _ in 0..50 {
                        let guard =
                            directory.lock(OsStr::new("socket"), Instant::now() + PATIENCE).expect("locks");
                        assert!(!held.swap(true, std::sync::atomic::Ordering::AcqRel), "two hold it");
                        held.store(false, std::sync::atomic::Ordering::Release);
                        drop(guard);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }

    #[test]
    fn names_are_looked_up_in_the_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("socket");
        let (lock, name) = Directory::of(&path).expect("opens");
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
        let lock = Directory::open(dir.path()).expect("opens");
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(lock.inode_of(name.as_ref()).is_err() && lock.unlink(name.as_ref()).is_err());
        }
        assert!(Directory::of(Path::new("/")).is_err());
        assert!(Directory::of(Path::new("plain")).is_ok());
        assert!(Directory::open(Path::new("/dev/null")).is_err());
    }
}
