//! Passes a socket to a child process, across its exec.
//!
//! ```text
//!   parent: pair ── child's end loses FD_CLOEXEC ── command.spawn() ── child's end is closed
//!                   '---------------- one spawn at a time ------------'
//!   child:  NARROWS_PARENT names number and inode ── a socket with that inode, not taken yet ── mark it as taken
//! ```
//!
//! The parent uses no `pre_exec` closure. With one the standard library forks, which copies the page tables of a large
//! parent (about 40 ms for each GiB, or `ENOMEM`). Without one it starts the child by `posix_spawn`, which copies
//! nothing.
//!
//! # Invariants
//!
//! 1. The child's end is inheritable only while [`start`] runs, and closed when it returns. Two calls do not overlap,
//!    unless one takes longer than [`MAX_LOCK_WAIT`].
//! 2. A process that another thread of the parent starts meanwhile, by other means, may inherit a copy of the child's
//!    end. It cannot use it: it has no nonce, the peer is the process that sent the Hello with the nonce, and that
//!    process is watched by its pidfd. A stream that is dropped shuts its socket down for all copies. The copy has one
//!    effect: if the child ends, or closes its end, before it has sent the Hello, the parent detects that only at the
//!    deadline of the spawn.
//! 3. A descriptor number from the environment is used only if it names a socket with the inode that the parent passed,
//!    and if that socket is not marked as taken: no other code can own it then.
//! 4. The mark is `O_NONBLOCK`: the parent hands over a blocking socket, and the process that takes it makes it
//!    non-blocking. It is a flag of the socket and not of the descriptor, so all processes that inherited the socket
//!    see it, and so does another copy of this library in the same process. `FD_CLOEXEC` cannot be the mark: runtimes
//!    (Node.js) set it on all descriptors that they inherit.
//!
//! # Proof
//!
//! A real child in the tests below; `tests/listener/trust.rs` counts forks, and takes a socket twice.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::fork_guard::{PerProcess, StaticSlot, per_process};
use super::pidfd::Pidfd;
use super::syscall_error::{self, INTERRUPTS};
use super::threads;

/// Starts the command. The child inherits the socket under the same number, in blocking mode, and this process closes
/// it.
///
/// # Errors
///
/// Those of the command; the flags of the socket could not be changed.
pub(crate) fn start(command: &mut Command, socket: OwnedFd) -> io::Result<Child> {
    let fd = socket.as_raw_fd();
    let _lock = SpawnLock::take()?;
    set_status(fd, |status| status & !libc::O_NONBLOCK)?;
    // SAFETY: changes the flags of a socket of ours.
    syscall_error::check("fcntl(F_SETFD)", unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    let started = command.spawn();
    drop(socket); // Before the lock is released. The child has its copy, since it runs its program by now.
    started.map_err(|error| threads::lacking(error).unwrap_or_else(|error| error))
}

/// Why a descriptor could not be taken. It was not changed.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// It was taken already.
    Taken,
    /// The number is not open.
    Closed,
    /// The number names another file.
    Other,
    /// A system call failed.
    Io(io::Error),
}

/// Takes ownership of a descriptor that this process inherited from its parent.
pub(crate) fn take_inherited(fd: RawFd, inode: u64) -> Result<OwnedFd, NotTaken> {
    let verify = || match socket_inode_of(fd) {
        Ok(found) if found == inode => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Err(NotTaken::Closed),
        _ => Err(NotTaken::Other),
    };
    verify()?; // Before the file of the lock is opened, which could get the number.
    let _exclusive = exclusive();
    verify()?;
    let mut free = false;
    set_status(fd, |status| {
        free = status & libc::O_NONBLOCK == 0;
        status | libc::O_NONBLOCK
    })
    .map_err(NotTaken::Io)?;
    if !free {
        return Err(NotTaken::Taken);
    }
    // SAFETY: it is open, and by its inode it is the socket that the parent made for this. It has no other owner: every
    // copy of this library sets the mark before it owns the socket, and the mark was not set.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: changes the flags of a socket of ours.
    let closes = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    syscall_error::check("fcntl(F_SETFD)", closes).map_err(NotTaken::Io)?;
    Ok(fd)
}

/// Kills the process of this pidfd, whose pid is `pid`, unless it has ended.
pub(crate) fn kill(process: &Pidfd, pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().filter(|&pid| pid > 1) else {
        return; // A process outside of our pid namespace has the pid 0, which would mean our own process group.
    };
    if !process.exited() {
        // `kill` by pid, which every filter permits. The process had not ended, so it was not reaped, and the pid is
        // still its own.
        // SAFETY: takes two numbers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Returns the inode of a socket, which distinguishes it from all other open sockets.
///
/// # Errors
///
/// The file is not a socket.
pub(crate) fn socket_inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    socket_inode_of(fd.as_raw_fd())
}

/// Returns a random number that is not 0.
///
/// # Errors
///
/// The kernel returns no random numbers.
pub(crate) fn nonce() -> io::Result<u64> {
    for _ in 0..INTERRUPTS {
        let mut bytes = [0; 8];
        // SAFETY: fills the local array.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        let value = u64::from_ne_bytes(bytes);
        if filled == 8 && value != 0 {
            return Ok(value);
        }
        if filled < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(syscall_error::last("getrandom"));
        }
    }
    Err(io::Error::other("the kernel gives no random numbers"))
}

/// How long one call of [`start`] waits for another. A `pre_exec` closure of the program, or an exec from a slow file
/// system, may take any time. Then the calls overlap, which invariant 2 makes harmless.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(1);

/// The lock of a process for [`start`]. A fork begins with its own: the parent's may be held at that moment.
#[derive(Debug, Default)]
struct SpawnLocks {
    taken: Mutex<bool>,
    released: Condvar,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for SpawnLocks {
    const SLOT: StaticSlot = StaticSlot::Spawns;
}

/// The held lock, with which a thread may have an inheritable descriptor.
#[derive(Debug)]
struct SpawnLock(&'static SpawnLocks);

impl SpawnLock {
    fn take() -> io::Result<Self> {
        let locks = per_process(|| Ok(SpawnLocks::default()))?;
        let taken = locks.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = locks.released.wait_timeout_while(taken, MAX_LOCK_WAIT, |taken| *taken);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = true;
        Ok(Self(locks))
    }
}

impl Drop for SpawnLock {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.released.notify_one();
    }
}

/// How often [`exclusive`] tries to take the lock, a millisecond apart.
const ATTEMPTS: u32 = 1000;

/// Keeps other copies of this library in this process from taking a descriptor at the same moment, since no system call
/// tests and sets a flag in one step. The copies share no memory, but `flock` excludes them: each `open` of the same
/// file is a lock owner of its own. The lock ends with the file. Without /proc there is no lock, and two copies would
/// have to run within a microsecond to collide.
fn exclusive() -> Option<File> {
    let file = File::open("/proc/self/stat").ok()?;
    for _ in 0..ATTEMPTS {
        // SAFETY: takes two numbers.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Some(file);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Changes the status flags of an open file.
fn set_status(fd: RawFd, change: impl FnOnce(i32) -> i32) -> io::Result<()> {
    // SAFETY: takes numbers only; fails if `fd` is not open.
    let status = syscall_error::check("fcntl(F_GETFL)", unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    syscall_error::check("fcntl(F_SETFL)", unsafe { libc::fcntl(fd, libc::F_SETFL, change(status)) })
        .map(drop)
}

fn socket_inode_of(fd: RawFd) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fills the local struct; fails if `fd` is not open.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fstat` succeeded, so it filled the struct.
    let stat = unsafe { stat.assume_init() };
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    }
    Ok(stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::pair;
    use crate::sys::socket_io::{Transfer, read};
    use crate::sys::testing::{fork, in_child};
    use crate::sys::wait::{Readiness, wait_ready};
    use std::os::fd::{AsFd, IntoRawFd};
    use std::os::unix::process::CommandExt;

    fn shell(script: String) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    /// Makes the socket blocking and not close-on-exec, as a child inherits it.
    fn inherited(socket: OwnedFd) -> RawFd {
        set_status(socket.as_raw_fd(), |status| status & !libc::O_NONBLOCK).expect("set");
        let fd = socket.into_raw_fd();
        // SAFETY: changes the flags of a descriptor that this test made.
        unsafe { assert_eq!(libc::fcntl(fd, libc::F_SETFD, 0), 0) };
        fd
    }

    #[test]
    fn a_child_inherits_the_one_socket() {
        in_child(|| {
            for own_closure in [false, true] {
                let (ours, theirs) = pair().expect("pair");
                let fd = theirs.as_raw_fd();
                let mut command = shell(format!("test -S /proc/self/fd/{fd} && echo hello >&{fd}"));
                if own_closure {
                    // SAFETY: the closure does nothing. Because of it the standard library forks.
                    unsafe { command.pre_exec(|| Ok(())) };
                }
                let mut child = start(&mut command, theirs).expect("spawns");
                assert!(child.wait().expect("ends").success());
                assert!(wait_ready(ours.as_fd(), Readiness::Readable, None).expect("polls"));
                let mut buffer = [0; 8];
                assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Bytes(6));
                assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Closed);
            }
        });
    }

    #[test]
    fn a_command_that_does_not_start_closes_the_socket_and_releases_the_lock() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            assert!(start(&mut Command::new("/no/such/program"), theirs).is_err());
            assert_eq!(read(ours.as_fd(), &mut [0; 8]).expect("reads"), Transfer::Closed);
            let locks = per_process(|| Ok(SpawnLocks::default())).expect("known");
            assert!(!*locks.taken.lock().expect("unlocked"), "the lock is free");
        });
    }

    #[test]
    fn one_command_is_started_at_a_time_and_a_fork_does_not_wait_for_its_parents() {
        let first = SpawnLock::take().expect("free");
        let other = fork(|| {
            let begun = std::time::Instant::now();
            let _own = SpawnLock::take().expect("free");
            i32::from(begun.elapsed() >= MAX_LOCK_WAIT)
        });
        assert_eq!(other.wait(), 0, "a lock of its own");
        thread::scope(|scope| {
            let second = scope.spawn(|| drop(SpawnLock::take().expect("locks")));
            thread::sleep(Duration::from_millis(50));
            assert!(!second.is_finished());
            drop(first);
        });
    }

    #[test]
    fn an_inherited_socket_is_taken_once_and_only_if_it_is_the_right_one() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            let inode = socket_inode(theirs.as_fd()).expect("socket");
            let other = socket_inode(ours.as_fd()).expect("socket");
            assert_ne!(inode, other);
            let raw = inherited(theirs);
            assert!(matches!(take_inherited(raw, other), Err(NotTaken::Other)));
            for fd in [-1, 1000] {
                assert!(matches!(take_inherited(fd, inode), Err(NotTaken::Closed)));
            }
            assert!(matches!(take_inherited(0, inode), Err(NotTaken::Other)));
            let taken = take_inherited(raw, inode).expect("right");
            // SAFETY: only asks.
            assert_eq!(unsafe { libc::fcntl(raw, libc::F_GETFD) }, libc::FD_CLOEXEC);
            assert!(matches!(take_inherited(raw, inode), Err(NotTaken::Taken)));
            drop(taken);
            assert!(matches!(take_inherited(raw, inode), Err(NotTaken::Closed)));
        });
    }

    #[test]
    fn a_runtime_that_marks_all_descriptors_takes_nothing() {
        in_child(|| {
            let (_ours, theirs) = pair().expect("pair");
            let inode = socket_inode(theirs.as_fd()).expect("socket");
            let raw = inherited(theirs);
            // SAFETY: changes the flags of a descriptor that this test made, as Node.js does when it starts.
            unsafe { assert_eq!(libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC), 0) };
            take_inherited(raw, inode).expect("free");
        });
    }

    #[test]
    fn of_many_that_take_at_once_one_succeeds() {
        in_child(|| {
            for _ in 0..50 {
                let (_ours, theirs) = pair().expect("pair");
                let inode = socket_inode(theirs.as_fd()).expect("socket");
                let raw = inherited(theirs);
                let start = std::sync::Barrier::new(4);
                let takers: Vec<_> = thread::scope(|scope| {
                    let take = || {
                        start.wait();
                        take_inherited(raw, inode)
                    };
                    let all: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                    all.into_iter().map(|taker| taker.join().expect("no panic")).collect()
                });
                assert_eq!(takers.iter().filter(|taken| taken.is_ok()).count(), 1, "{takers:?}");
            }
        });
    }

    #[test]
    fn nonces_differ_and_are_not_zero() {
        let (a, b) = (nonce().expect("random"), nonce().expect("random"));
        assert!(a != 0 && b != 0 && a != b);
    }

    #[test]
    fn a_file_has_no_socket_inode() {
        let file = File::open("/dev/null").expect("opens");
        let error = socket_inode(file.as_fd()).expect_err("no socket");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
