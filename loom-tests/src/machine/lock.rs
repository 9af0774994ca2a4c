//! The locks, signals and latches above the ring, as loom can see them.
//!
//! Time: to wait for a signal until a deadline is to wait until that has passed. The lock is given up, others may
//! do whatever they like, and it is taken again, too late. Whoever is told in time waits as one that has no deadline;
//! so both are modelled, and no clock is needed here. A lock itself is waited for as long as it takes.

use std::sync::PoisonError;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use narrows::internal::mem::Until;
use narrows::internal::{Latch, Monitor, Threads};

/// The threads of a model.
#[derive(Debug)]
pub struct LoomThreads;

impl Threads for LoomThreads {
    type Monitor<T: Send> = Lock<T>;
    type Signal = Signal;
    type Latch = Bit;
}

/// What waits for a change of a locked value.
#[derive(Debug)]
pub struct Signal(Condvar);

impl Default for Signal {
    fn default() -> Self {
        Self(Condvar::new())
    }
}

/// One bit, without any order.
#[derive(Debug)]
pub struct Bit(AtomicBool);

impl Default for Bit {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Latch for Bit {
    fn set(&self, up: bool) {
        self.0.store(up, Ordering::Relaxed);
    }

    fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A lock around a value.
#[derive(Debug)]
pub struct Lock<T>(Mutex<T>);

impl<T> Monitor<T> for Lock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    type Signal = Signal;

    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        self.0.try_lock().ok()
    }

    fn lock_until(&self, _until: Until) -> Option<Self::Guard<'_>> {
        Some(self.lock())
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, guard: Self::Guard<'a>, signal: &Signal, until: Until) -> (Self::Guard<'a>, bool) {
        if until.is_some() {
            drop(guard);
            return (self.lock(), false);
        }
        (signal.0.wait(guard).unwrap_or_else(PoisonError::into_inner), true)
    }

    fn notify(signal: &Signal) {
        signal.0.notify_all();
    }

    fn notify_one(signal: &Signal) {
        signal.0.notify_one();
    }
}
