//! A timer that a poll loop can wait for.
//!
//! # Invariants
//!
//! 1. The timer is set by system call only when the moment changes.
//!
//! # Proof
//!
//! The test below.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use super::descriptor::Descriptor;
use super::syscall_error;

/// A descriptor that becomes readable at a moment, and stays so until the next is set.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: Descriptor,
    moment: Option<Instant>,
}

impl Timer {
    /// A timer that never rings.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: the call makes a new descriptor, which is ours alone.
        let fd = unsafe {
            syscall_error::owned("timerfd_create", libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))
        };
        Ok(Self { fd: Descriptor::with_witness(fd?), moment: None })
    }

    /// Rings at this moment, at once if it has passed, and not before; `None` is never.
    pub(crate) fn arm_at(&mut self, moment: Option<Instant>) -> io::Result<()> {
        if moment == self.moment {
            return Ok(());
        }
        let left = moment.map(|moment| moment.saturating_duration_since(Instant::now()));
        // All zero would disarm it.
        let left = left.map_or(Duration::ZERO, |left| left.max(Duration::from_nanos(1)));
        // SAFETY: an itimerspec is plain numbers, for which zero is a value.
        let mut spec: libc::itimerspec = unsafe { zeroed() };
        spec.it_value.tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        spec.it_value.tv_nsec = left.subsec_nanos().into();
        // SAFETY: the descriptor is open while self lives, the spec is a live local that the kernel
        // only reads, and a null pointer asks for no old value.
        let result = unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &spec, null_mut()) };
        syscall_error::check("timerfd_settime", result)?;
        self.moment = moment;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(timer: &Timer, ms: i32) -> bool {
        let mut poll = libc::pollfd { fd: timer.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd on this stack.
        unsafe { libc::poll(&mut poll, 1, ms) == 1 }
    }

    #[test]
    fn it_rings_at_its_moment_until_the_next() {
        let mut timer = Timer::new().expect("timer");
        assert!(!rings(&timer, 0));
        timer.arm_at(Some(Instant::now() + Duration::from_millis(20))).expect("set");
        assert!(!rings(&timer, 0));
        assert!(rings(&timer, 1000) && rings(&timer, 0));
        timer.arm_at(None).expect("set");
        assert!(!rings(&timer, 30));
        timer.arm_at(Some(Instant::now())).expect("set");
        assert!(rings(&timer, 1000));
    }
}
