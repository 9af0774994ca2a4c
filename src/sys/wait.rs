//! Waits for one descriptor, until an absolute deadline.
//!
//! # Invariants
//!
//! 1. The deadline is absolute: interruptions by signals do not move it.
//! 2. Any deadline is possible, also one far in the future: one sleep is at most [`SLICE`] long.
//!
//! # Proof
//!
//! Unit tests below, with many signals.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

use super::syscall_error;

/// The event to wait for. The end of the other side also ends the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// There are bytes to read.
    Readable,
    /// There is room to write.
    Writable,
}

/// Blocks until the descriptor is ready or has failed (returns true), or until the deadline (returns false). `None`
/// means no deadline.
///
/// # Errors
///
/// The error of `ppoll`.
pub(crate) fn wait_ready(
    fd: BorrowedFd<'_>,
    readiness: Readiness,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let events = match readiness {
        Readiness::Readable => libc::POLLIN,
        Readiness::Writable => libc::POLLOUT,
    };
    loop {
        let left = remaining(deadline);
        if poll_once(fd, events, left)? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Returns whether the descriptor is readable now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    poll_once(fd, libc::POLLIN, Duration::ZERO)
}

/// Returns the time for one sleep: zero once the deadline has passed, and never more than [`SLICE`].
pub(crate) fn remaining(deadline: Option<Instant>) -> Duration {
    deadline.map_or(SLICE, |end| end.saturating_duration_since(Instant::now()).min(SLICE))
}

/// The longest single sleep. Its seconds and milliseconds fit into all C types that are used for them.
const SLICE: Duration = Duration::from_secs(3600);

/// Polls once, for at most `longest`. Returns false also if a signal interrupted it.
fn poll_once(fd: BorrowedFd<'_>, events: i16, longest: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let seconds = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX);
    let limit = libc::timespec { tv_sec: seconds.into(), tv_nsec: longest.subsec_nanos().into() };
    // SAFETY: one entry, a local timeout, and no signal mask.
    let ready = unsafe { libc::ppoll(&mut entry, 1, &limit, ptr::null()) };
    match syscall_error::check("ppoll", ready) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::pair;
    use crate::sys::socket_io::write;
    use crate::sys::testing::in_child;
    use std::os::fd::AsFd;

    #[test]
    fn a_deadline_ends_the_wait_and_data_does_so_earlier() {
        let (a, b) = pair().expect("pair");
        let start = Instant::now();
        let end = Some(start + Duration::from_millis(30));
        assert!(!wait_ready(a.as_fd(), Readiness::Readable, end).expect("polls"));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(!wait_ready(a.as_fd(), Readiness::Readable, Some(start)).expect("polls"));
        assert!(wait_ready(a.as_fd(), Readiness::Writable, None).expect("polls"));
        write(b.as_fd(), b"x").expect("writes");
        assert!(is_readable(a.as_fd()).expect("polls"));
        assert!(wait_ready(a.as_fd(), Readiness::Readable, None).expect("polls"));
    }

    #[test]
    fn the_end_of_the_other_side_ends_a_wait_without_a_deadline() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            let late = Instant::now().checked_add(Duration::from_secs(1 << 40));
            drop(b);
            assert!(wait_ready(a.as_fd(), Readiness::Readable, late).expect("polls"));
            assert!(wait_ready(a.as_fd(), Readiness::Readable, None).expect("polls"));
        });
    }

    #[test]
    fn signals_do_not_move_the_deadline() {
        extern "C" fn nothing(_: i32) {}
        // SAFETY: installs a handler that does nothing for a signal that nothing else here uses.
        unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as libc::sighandler_t) };
        // SAFETY: returns this thread, which runs until the end of the test.
        let this_thread = unsafe { libc::pthread_self() };
        let (a, _b) = pair().expect("pair");
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while start.elapsed() < Duration::from_millis(60) {
                    // SAFETY: the thread runs, since the scope has not ended.
                    unsafe { libc::pthread_kill(this_thread, libc::SIGUSR2) };
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            let end = Some(start + Duration::from_millis(50));
            assert!(!wait_ready(a.as_fd(), Readiness::Readable, end).expect("polls"));
            assert!(start.elapsed() >= Duration::from_millis(50));
        });
    }
}
