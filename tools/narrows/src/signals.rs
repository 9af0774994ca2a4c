//! Ctrl-C and SIGTERM: an action that ends the command, and a sleep that a signal interrupts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

static ASKED: AtomicBool = AtomicBool::new(false);
static LOCK: Mutex<()> = Mutex::new(());
static SIGNALLED: Condvar = Condvar::new();

/// Sets the action of the first signal. A second signal ends the process.
pub(crate) fn on_signal(act: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        act();
        let _held = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        SIGNALLED.notify_all();
    })
    .context("cannot take signals")
}

/// Returns whether a signal came.
pub(crate) fn is_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Sleeps until this time, or until a signal comes.
pub(crate) fn sleep_until(then: Instant) {
    let mut held = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    while !is_asked() {
        let left = then.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return;
        }
        held = SIGNALLED.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}
