//! Ctrl-C, and SIGTERM: what is to be ended then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

static ASKED: AtomicBool = AtomicBool::new(false);
static LOCK: Mutex<()> = Mutex::new(());
static BELL: Condvar = Condvar::new();

/// From now on a signal does this, once, instead of ending the process; a second one ends it.
pub(crate) fn on_signal(act: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        act();
        let _held = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        BELL.notify_all();
    })
    .context("cannot take signals")
}

/// Whether a signal came.
pub(crate) fn is_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Sleeps until then, or until a signal comes.
pub(crate) fn sleep_until(then: Instant) {
    let mut held = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    while !is_asked() {
        let left = then.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return;
        }
        held = BELL.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}
