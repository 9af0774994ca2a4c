//! Handing a socket to a child process, across its exec.
//!
//! # Invariants
//!
//! 1. Nothing of ours runs between fork and exec, so that the standard library starts the child without a copy of this
//!    process's page tables (`posix_spawn`), which costs 40 ms for each GiB and may fail for want of memory.
//! 2. The child's end is inheritable only while the child is started. What another thread starts at that moment, by other
//!    means, inherits a copy too. That does no harm: such a program does not know the number or the nonce, the peer is
//!    the process that sends the nonce, and its death is reported by its pidfd. It only delays the hang-up of a child that
//!    lives on without its end.
//! 3. A number from outside becomes a descriptor only if it names a socket with the inode that the parent passed, and is still
//!    inheritable: taking it makes it close-on-exec, so a second copy of this library in the process finds it taken.
//!
//! # Proof
//!
//! A real child in the tests below; `tests/handover.rs` counts forks.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::call::{self, INTERRUPTS};
use super::fork::{PerProcess, Slot, per_process};

/// Starts the command; it inherits the descriptor under its number.
///
/// The caller closes its own copy afterwards: as long as this process has it, the end of the child does not hang up the
/// other end.
///
/// # Errors
///
/// Those of [`Command::spawn`]; there is no memory.
pub(crate) fn spawn_with(command: &mut Command, fd: BorrowedFd<'_>) -> io::Result<Child> {
    let turn = per_process(|| Ok(Spawning::default()))?;
    // One at a time, so that no child inherits the end of another.
    let _turn = turn.0.lock().unwrap_or_else(PoisonError::into_inner);
    set_flags(fd.as_raw_fd(), 0)?;
    let child = command.spawn();
    set_flags(fd.as_raw_fd(), libc::FD_CLOEXEC)?;
    child
}

#[derive(Default)]
struct Spawning(Mutex<()>);

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Spawning {
    const SLOT: Slot = Slot::Spawning;
}

/// What became of an attempt to take an inherited descriptor.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// It is ours.
    Taken(OwnedFd),
    /// It was taken before, by this copy of the library or another in the process.
    TakenBefore,
    /// The number names something else, or nothing: what stands between the parent and this process has closed it.
    Missing,
}

/// Owns a descriptor that this process inherited from its parent. Works once.
///
/// # Errors
///
/// Its flags cannot be changed.
pub(crate) fn take_inherited(fd: RawFd, inode: u64) -> io::Result<Inherited> {
    if TAKEN.load(Ordering::Acquire) {
        return Ok(Inherited::TakenBefore);
    }
    if socket_inode_of(fd).ok() != Some(inode) {
        return Ok(Inherited::Missing);
    }
    // SAFETY: takes numbers, and only asks.
    let flags = call::check("fcntl(F_GETFD)", unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    if flags & libc::FD_CLOEXEC != 0 || TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Inherited::TakenBefore);
    }
    set_flags(fd, libc::FD_CLOEXEC)?;
    // SAFETY: it is open, is the socket that the parent made for this, and was not owned before: it was not close-on-exec,
    // which an owner makes it, and the flag above is set once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: changes the status of a socket of ours.
    unsafe {
        let raw = fd.as_raw_fd();
        let status = call::check("fcntl(F_GETFL)", libc::fcntl(raw, libc::F_GETFL))?;
        call::check("fcntl(F_SETFL)", libc::fcntl(raw, libc::F_SETFL, status | libc::O_NONBLOCK))?;
    }
    Ok(Inherited::Taken(fd))
}

fn set_flags(fd: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers. If `fd` is not open, it fails.
    call::check("fcntl(F_SETFD)", unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// The inode of a socket, which distinguishes it from all other sockets that are open.
///
/// # Errors
///
/// It is no socket.
pub(crate) fn socket_inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    socket_inode_of(fd.as_raw_fd())
}

/// A random number that is not 0.
///
/// # Errors
///
/// The kernel has no random numbers.
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
            return Err(call::last("getrandom"));
        }
    }
    Err(io::Error::other("the kernel gives no random numbers"))
}

static TAKEN: AtomicBool = AtomicBool::new(false);

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
    use crate::sys::testing::in_child;
    use crate::sys::transfer::{Transfer, read};
    use crate::sys::wait::{Readiness, wait_ready};
    use std::os::fd::AsFd;

    fn shell(script: String) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_child_inherits_the_one_socket() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            let fd = theirs.as_raw_fd();
            let mut command = shell(format!("test -S /proc/self/fd/{fd} && echo hello >&{fd}"));
            let mut child = spawn_with(&mut command, theirs.as_fd()).expect("spawns");
            // SAFETY: only asks.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
            drop(theirs);
            assert!(child.wait().expect("ends").success());
            assert!(wait_ready(ours.as_fd(), Readiness::Readable, None).expect("polls"));
            let mut buffer = [0; 8];
            assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Bytes(6));
            assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Closed);
        });
    }

    #[test]
    fn an_inherited_socket_is_taken_once_and_only_if_it_is_the_right_one() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            let inode = socket_inode(theirs.as_fd()).expect("socket");
            let other = socket_inode(ours.as_fd()).expect("socket");
            assert_ne!(inode, other);
            let raw = std::os::fd::IntoRawFd::into_raw_fd(theirs);
            // As another copy of the library leaves it that has taken it.
            let before = take_inherited(raw, inode).expect("asks");
            assert!(matches!(before, Inherited::TakenBefore), "{before:?}");
            // As inherited: not close-on-exec, and blocking.
            set_flags(raw, 0).expect("open");
            for (fd, inode) in [(raw, other), (-1, inode), (1000, inode), (0, inode)] {
                let missing = take_inherited(fd, inode).expect("asks");
                assert!(matches!(missing, Inherited::Missing), "{missing:?}");
            }
            let Inherited::Taken(taken) = take_inherited(raw, inode).expect("right") else { panic!("ours") };
            // SAFETY: only asks.
            assert_eq!(unsafe { libc::fcntl(raw, libc::F_GETFD) }, libc::FD_CLOEXEC);
            let again = take_inherited(raw, inode).expect("asks");
            assert!(matches!(again, Inherited::TakenBefore), "{again:?}");
            drop(taken);
        });
    }

    #[test]
    fn nonces_differ_and_are_not_zero() {
        let (a, b) = (nonce().expect("random"), nonce().expect("random"));
        assert!(a != 0 && b != 0 && a != b);
    }

    #[test]
    fn a_file_has_no_socket_inode() {
        let file = std::fs::File::open("/dev/null").expect("opens");
        let error = socket_inode(file.as_fd()).expect_err("no socket");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
