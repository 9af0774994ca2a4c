//! The directory of a socket: a lock file beside a name in it, and what stands under a name.
//!
//! The directory itself is never locked: programs lock directories of their own, so that systemd-tmpfiles spares them, and
//! systemd-tmpfiles does while it cleans.
//!
//! # Invariants
//!
//! 1. All names are looked up in the directory that was opened: renaming it in between does not
//!    lead elsewhere. No name leads out of it, and no symbolic link is followed.
//! 2. A lock file is removed by its holder before it is unlocked, and a lock counts only while its name still names the file that
//!    was locked. So none is left behind, but by a process that is killed while it holds one; the next takes that one over.
//!    A lock file is an empty regular file. Any other file of that name is left alone, and is an error at once.
//! 3. The lock is released by an explicit unlock: a fork may hold a copy of the descriptor, and
//!    with it a lock that only closing would release.
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

/// A name is locked against all others that lock it, until this is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard unlocks the name"]
pub(crate) struct LockGuard<'a> {
    directory: &'a Directory,
    file: Descriptor,
    name: OsString,
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

impl Directory {
    /// Opens the directory that a path stands in, and returns the name in it.
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
        // O_PATH: names are looked up, but the directory is never read, and the process may not be allowed to read it.
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string; the call makes a new descriptor, which is ours alone.
        let fd = unsafe { syscall_error::owned("open the directory", libc::open(path.as_ptr(), flags)) };
        Ok(Self { fd: fd?.into() })
    }

    /// Returns whether the descriptor still names the directory: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.is_ours()
    }

    /// Returns a path of this name that is short, however long that of the directory is. It is valid in this process, while this
    /// is open.
    pub(super) fn short_path(&self, name: &OsStr) -> PathBuf {
        Path::new(DESCRIPTORS).join(self.fd.as_raw_fd().to_string()).join(name)
    }

    /// Waits for the lock beside this name, at the longest until the deadline.
    ///
    /// # Errors
    ///
    /// `TimedOut`: another process holds it; or as [`try_lock`](Self::try_lock).
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
            // O_NONBLOCK: else a lease on the file, which any process may take that can read it, holds this up.
            let flags = flags | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
            // SAFETY: the path is a C string; the call makes a new descriptor, which is ours alone.
            unsafe {
                let made = libc::openat(self.fd.as_raw_fd(), path.as_ptr(), flags, 0o600);
                syscall_error::owned("open the lock file", made).map(Descriptor::from)
            }
        };
        // What a killed process has left behind is opened without O_CREAT: in a directory that all may write to, the kernel may
        // refuse that for another user's file.
        let opened = match self.stat(&hidden)? {
            None => open(libc::O_CREAT | libc::O_EXCL),
            Some(stat) => is_lock(&stat).and_then(|()| open(0)),
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                return match syscall_error::errno(&error) {
                    // Made or removed meanwhile; a lease on it; a signal.
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

    /// What stands under this name, if anything.
    ///
    /// # Errors
    ///
    /// It is no plain name, or the system call failed.
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
    /// It is no plain name, or the system call failed.
    pub(crate) fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let name = plain(name)?;
        // SAFETY: the name is a C string.
        let result = unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), 0) };
        syscall_error::check("unlinkat", result).map(drop)
    }

    /// Opens what stands under this name, to change its group and mode; neither is changed by this.
    fn open_path(&self, name: &OsStr) -> io::Result<Descriptor> {
        let (name, flags) = (plain(name)?, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC);
        // SAFETY: the name is a C string; the call makes a new descriptor, which is ours alone.
        unsafe {
            syscall_error::owned("open the socket", libc::openat(self.fd.as_raw_fd(), name.as_ptr(), flags))
        }
        .map(Descriptor::from)
    }

    /// Gives what stands under this name to a group, if one is given, then sets its mode.
    ///
    /// # Errors
    ///
    /// It is no socket: another file has taken its name. The process may not do so; `/proc` is missing.
    pub(crate) fn share(&self, name: &OsStr, group: Option<u32>, mode: u32) -> io::Result<()> {
        let file = self.open_path(name)?;
        // Who may write to the directory can put a link to a file of this user there.
        if stat_of(&file)?.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file has taken the socket's name"));
        }
        if let Some(group) = group {
            let keep = libc::uid_t::MAX;
            // SAFETY: the path is an empty C string: the descriptor itself is meant.
            let given =
                unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), keep, group, libc::AT_EMPTY_PATH) };
            syscall_error::check("fchownat", given)?;
        }
        // The kernel changes the mode of a descriptor without access only by this path.
        let path = CString::new(format!("{DESCRIPTORS}/{}", file.as_raw_fd()))?;
        // SAFETY: the path is a C string.
        syscall_error::check("chmod", unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
    }
}

impl LockGuard<'_> {
    /// Whether the name still names the file that is locked, and the file is a lock file: its last holder may have removed it
    /// meanwhile, and a program may have written to it.
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
            let _left_behind = self.directory.unlink(&self.name); // It locks as well the next time.
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

/// Verifies that this is a lock file of this library, which no program keeps anything in.
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

/// What a process wants to do with a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Enter a directory.
    Enter,
    /// Write to a file, to connect to a socket, or to change the names in a directory.
    Write,
}

/// Returns whether owner and mode let this process do so, with the user and the rights that it has now.
pub(crate) fn permits(path: &Path, access: Access) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let mode = match access {
        Access::Enter => libc::X_OK,
        Access::Write => libc::W_OK,
    };
    // SAFETY: the path is a C string.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) == 0 }
}

/// Where the kernel shows the descriptors of this process as files.
pub(super) const DESCRIPTORS: &str = "/proc/self/fd";
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
