//! A timer descriptor that a poll loop can wait for.
//!
//! # Invariants
//!
//! 1. The timer is set by a system call only when its time changes.
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

/// A descriptor that becomes readable at a given time, and stays readable until the next time is set.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: Descriptor,
    moment: Option<Instant>,
}

impl Timer {
    /// Creates a timer that is not armed.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: the call makes a new descriptor, which is ours alone.
        let fd = unsafe {
            syscall_error::owned("timerfd_create", libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))
        };
        Ok(Self { fd: Descriptor::with_witness(fd?), moment: None })
    }

    /// Makes the descriptor readable at this time and not before; at once if the time has passed. `None` disarms the
    /// timer.
    pub(crate) fn arm_at(&mut self, moment: Option<Instant>) -> io::Result<()> {
        if moment == self.moment {
            return Ok(());
        }
        let left = moment.map(|moment| moment.saturating_duration_since(Instant::now()));
        // Zero would disarm the timer.
        let left = left.map_or(Duration::ZERO, |left| left.max(Duration::from_nanos(1)));
        // SAFETY: an itimerspec consists of numbers, for which zero is a valid value.
        let mut spec: libc::itimerspec = unsafe { zeroed() };
        spec.it_value.tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        spec.it_value.tv_nsec = left.subsec_nanos().into();
        // SAFETY: the descriptor is open while `self` exists, the spec is a live local that the kernel only reads, and
        // the null pointer means that the old value is not stored.
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

    fn fires(timer: &Timer, ms: i32) -> bool {
        let mut poll = libc::pollfd { fd: timer.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd on this stack.
        unsafe { libc::poll(&mut poll, 1, ms) == 1 }
    }

    #[test]
    fn it_fires_at_its_time_and_stays_readable_until_the_next() {
        let mut timer = Timer::new().expect("timer");
        assert!(!fires(&timer, 0));
        timer.arm_at(Some(Instant::now() + Duration::from_millis(20))).expect("set");
        assert!(!fires(&timer, 0));
        assert!(fires(&timer, 1000) && fires(&timer, 0));
        timer.arm_at(None).expect("set");
        assert!(!fires(&timer, 30));
        timer.arm_at(Some(Instant::now())).expect("set");
        assert!(fires(&timer, 1000));
    }
}
