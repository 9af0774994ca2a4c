//! A storm of signals changes nothing: no call ends early, none fails, nothing is lost.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::{Watchdog, alone, bytes};
use narrows::{Options, RecvTimeoutError, SendTimeoutError, WaitStrategy};

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_signal: i32) {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Interrupts this thread's system calls, without SA_RESTART, for as long as `body` runs.
fn in_a_storm(body: impl FnOnce()) {
    // SAFETY: the action is zero except for a handler that only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    // SAFETY: names this thread, which outlives the scope below.
    let me = unsafe { libc::pthread_self() };
    let over = AtomicBool::new(false);
    let before = CAUGHT.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // SAFETY: the thread waits for this one at the end of the scope.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
                sleep(Duration::from_micros(200));
            }
        });
        body();
        over.store(true, Ordering::Relaxed);
    });
    assert!(CAUGHT.load(Ordering::Relaxed) > before + 10, "there was no storm");
}

#[test]
fn a_storm_of_signals_changes_nothing() {
    if !alone("a_storm_of_signals_changes_nothing") {
        return;
    }
    let _watch = Watchdog::new("a storm");
    let (mut a, mut b) = Options::new().slots(4).arena(4096).wait(WaitStrategy::Park).pair().expect("pairs");
    let long = Duration::from_millis(100);
    in_a_storm(|| {
        let start = Instant::now();
        assert_eq!(b.recv_timeout(&mut [], long), Err(RecvTimeoutError::Timeout));
        assert!(start.elapsed() >= long);
        while a.try_send(b"filler").is_ok() {}
        let start = Instant::now();
        assert_eq!(a.send_timeout(b"x", long), Err(SendTimeoutError::Timeout));
        assert_eq!(a.wait_either_timeout(1, long), Err(SendTimeoutError::Timeout));
        assert!(start.elapsed() >= long * 2);
        assert_eq!(b.try_iter().count(), 4);
    });
    let message = bytes(1, 200_000);
    in_a_storm(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    sleep(Duration::from_millis(5));
                    a.send(&message).expect("sends");
                }
            });
            let mut buffer = Vec::new();
            for _ in 0..20 {
                b.recv_into(&mut buffer).expect("comes");
                assert!(buffer == message);
            }
        });
    });
}
