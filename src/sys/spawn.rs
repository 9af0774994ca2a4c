//! Handing a socket to a child process, across its exec.
//!
//! # Invariants
//!
//! 1. What runs between fork and exec makes system calls only: it neither allocates nor locks.
//! 2. A number from outside becomes a descriptor only if it names a socket with the inode that
//!    the parent told, and once in the life of a process: nothing else can own it then.
//!
//! # Proof
//!
//! A real child in the tests below.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::call::{self, INTERRUPTS};

/// Lets the child inherit the descriptor under its number, if it is still the socket with this
/// inode when the child is spawned.
///
/// The caller keeps it open until then and closes it afterwards: as long as this process has it
/// too, the end of the child does not hang up the other end.
pub(crate) fn inherit(command: &mut Command, fd: RawFd, inode: u64) {
    let keep = move || {
        if socket_inode_of(fd)? != inode {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: takes numbers only. If `fd` is not open, it fails.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: `keep` makes two system calls; its errors are numbers and take no memory.
    unsafe { command.pre_exec(keep) };
}

/// Owns a descriptor that this process inherited from its parent. Works once.
///
/// # Errors
///
/// It is no socket with this inode, or one was taken already.
pub(crate) fn take_inherited(fd: RawFd, inode: u64) -> io::Result<OwnedFd> {
    let found = socket_inode_of(fd);
    if found.ok() != Some(inode) {
        let text = "the inherited descriptor is not the socket that the parent passed";
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        let text = "the inherited descriptor was taken already";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    // SAFETY: it is open, is the socket that the parent made for this, and no earlier call owned
    // it: the flag above is set once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: changes the flags of a socket of ours.
    unsafe {
        let raw = fd.as_raw_fd();
        call::check("fcntl(F_SETFD)", libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC))?;
        let status = call::check("fcntl(F_GETFL)", libc::fcntl(raw, libc::F_GETFL))?;
        call::check("fcntl(F_SETFL)", libc::fcntl(raw, libc::F_SETFL, status | libc::O_NONBLOCK))?;
    }
    Ok(fd)
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

/// Also runs between fork and exec: no memory is taken, also not for errors.
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
            inherit(&mut command, fd, socket_inode(theirs.as_fd()).expect("socket"));
            let mut child = command.spawn().expect("spawns");
            drop(theirs);
            assert!(child.wait().expect("ends").success());
            assert!(wait_ready(ours.as_fd(), Readiness::Readable, None).expect("polls"));
            let mut buffer = [0; 8];
            assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Bytes(6));
            assert_eq!(read(ours.as_fd(), &mut buffer).expect("reads"), Transfer::Closed);
        });
    }

    #[test]
    fn a_socket_that_is_gone_fails_the_spawn() {
        // In a child, so that no other thread reuses the number.
        in_child(|| {
            let (_ours, theirs) = pair().expect("pair");
            let mut command = shell("true".into());
            inherit(&mut command, theirs.as_raw_fd(), socket_inode(theirs.as_fd()).expect("it"));
            drop(theirs);
            assert!(command.spawn().is_err());
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
            // SAFETY: as inherited: not close-on-exec, and blocking.
            unsafe { assert_eq!(libc::fcntl(raw, libc::F_SETFD, 0), 0) };
            for (fd, inode) in [(raw, other), (-1, inode), (1000, inode), (0, inode)] {
                let error = take_inherited(fd, inode).expect_err("wrong");
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
            }
            let taken = take_inherited(raw, inode).expect("right");
            // SAFETY: only asks.
            assert_eq!(unsafe { libc::fcntl(raw, libc::F_GETFD) }, libc::FD_CLOEXEC);
            let again = take_inherited(raw, inode).expect_err("once");
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
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
