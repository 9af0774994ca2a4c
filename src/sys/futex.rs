//! Futexes on words that two processes share: wait with an absolute deadline, and wake.
//!
//! The operations are of the shared kind; the private kind would not find sleepers of another process. Waiting is
//! `FUTEX_WAIT_BITSET` with the monotonic clock, so that neither retries nor signals move the deadline.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use crate::memory::{Deadline, WaitResult};

/// Sleeps if `word` is 1: until woken, for at most `slice`, and at most until the deadline.
pub(super) fn wait(word: &AtomicU32, deadline: Deadline, slice: Duration) -> WaitResult {
    let now = Instant::now();
    let left = deadline.map(|t| t.saturating_duration_since(now));
    if left.is_some_and(|left| left.is_zero()) {
        return WaitResult::Deadline;
    }
    let (sleep, ending) = match left {
        Some(left) if left <= slice => (left, WaitResult::Deadline),
        _ => (slice, WaitResult::Slice),
    };
    let at = monotonic_now() + sleep;
    let woken = wait_until(word, at);
    #[cfg(feature = "testing")]
    if matches!(woken, Ok(()) | Err(libc::ETIMEDOUT)) {
        super::lost_wakeup_check::slept();
    }
    match woken {
        Err(libc::ETIMEDOUT) => ending,
        // Woken, EAGAIN (the word is not 1 any more) or EINTR. The caller checks the ring to see which.
        _ => WaitResult::Early,
    }
}

/// Wakes at most `most` sleepers on `word`, in the order in which they began to sleep.
pub(super) fn wake(word: &AtomicU32, most: i32) {
    // SAFETY: the kernel only uses the address, which is a live, aligned word, as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, most) };
}

/// Returns the time of the monotonic clock, which all processes of the machine share.
pub(super) fn monotonic_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), nanos)
}

fn wait_until(word: &AtomicU32, at: Duration) -> Result<(), i32> {
    let deadline = libc::timespec {
        tv_sec: libc::time_t::try_from(at.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: at.subsec_nanos().into(),
    };
    // SAFETY: `word` is a live, aligned 32-bit word and `deadline` a valid timespec for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            1_u32,
            &deadline,
            ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
