//! Converts the results of system calls: errors name the call.
//!
//! # Invariants
//!
//! 1. An error keeps its [`io::ErrorKind`] and, through [`errno`], its number.
//! 2. `errno` is read directly after the call, before other code can change it.
//! 3. No descriptor of the library has the number of a standard stream, also if the program has closed those: `Command`
//!    gives these numbers to the streams of a child, and other code writes to them.
//!
//! # Proof
//!
//! Unit tests below.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::FailedCall;

/// How often a call that a signal interrupted is tried again, before it counts as not possible now. None of the calls
/// sleeps, so signals interrupt them rarely.
pub(crate) const INTERRUPTS: usize = 64;

/// Converts the result of a call that returns -1 on error.
pub(crate) fn check(call: &'static str, result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(last(call));
    }
    failpoint!(call);
    Ok(result)
}

/// Returns the error of the call that was just made.
pub(crate) fn last(call: &'static str) -> io::Error {
    named(call, io::Error::last_os_error())
}

/// Returns the same error, with the name of the call before its text.
///
/// For `mmap` the kernel reports the limit of locked memory as `EAGAIN`, the number of a call that would block. The
/// kind of this error is `OutOfMemory`.
pub(crate) fn named(call: &'static str, source: io::Error) -> io::Error {
    let kind = match (call, source.raw_os_error()) {
        ("mmap", Some(libc::EAGAIN)) => io::ErrorKind::OutOfMemory,
        _ => source.kind(),
    };
    io::Error::new(kind, FailedCall { call, source })
}

/// Returns the number of the system's error, also if the error names its call.
pub(crate) fn errno(error: &io::Error) -> Option<i32> {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<FailedCall>());
    inner.map_or_else(|| error.raw_os_error(), |failed| errno(&failed.source))
}

/// Takes ownership of the new descriptor that a call returned, and moves it if its number is that of a standard stream.
///
/// # Safety
///
/// A system call that makes a new descriptor has just returned `result`, and the descriptor has no other owner.
pub(crate) unsafe fn owned(call: &'static str, result: RawFd) -> io::Result<OwnedFd> {
    let fd = check(call, result)?;
    // SAFETY: not negative, so an open descriptor, and by this function's contract it has no other owner.
    beyond_standard_streams(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the descriptor another number if it has that of a standard stream.
///
/// # Errors
///
/// There is no other number; the descriptor is closed.
pub(crate) fn beyond_standard_streams(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    // SAFETY: takes numbers, and makes a new descriptor.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    let moved = check("fcntl(F_DUPFD_CLOEXEC)", moved)?;
    // SAFETY: the call has just made it, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_error_keeps_kind_and_number() {
        let error = named("connect", io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(errno(&error), Some(libc::ECONNREFUSED));
        assert!(error.to_string().starts_with("connect: "), "{error}");
    }

    #[test]
    fn an_error_without_a_call_keeps_its_number() {
        assert_eq!(errno(&io::Error::from_raw_os_error(libc::EMFILE)), Some(libc::EMFILE));
        assert_eq!(errno(&io::Error::other("text")), None);
    }
}
