//! The locks, signals and latches above the ring, as loom can see them.
//!
//! Time: to wait for a signal until a deadline is to wait until that has passed. The lock is given up, others may
//! do whatever they like, and it is taken again, too late. Whoever is told in time waits as one that has no deadline;
//! so both are modelled, and no clock is needed here. A lock itself is waited for as long as it takes.
//!
//! A signal for one thread is taken by one whose deadline passes meanwhile, if there is such a thread: condition variables
//! may do so, and the models must hold all the same.

use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use narrows::internal::memory::Deadline;
use narrows::internal::{Lock, SharedFlag, SyncBackend};

/// The threads of a model.
#[derive(Debug)]
pub struct LoomSync;

impl SyncBackend for LoomSync {
    type Lock<T: Send> = LoomLock<T>;
    type Condvar = LoomCondvar;
    type Flag = LoomFlag;
}

/// What waits for a change of a locked value.
#[derive(Debug)]
pub struct LoomCondvar {
    condition: Condvar,
    /// Threads whose deadlines pass, and that have no signal yet. It is used under the lock alone, so that loom need not
    /// see it.
    expired: AtomicU32,
}

impl Default for LoomCondvar {
    fn default() -> Self {
        Self { condition: Condvar::new(), expired: AtomicU32::new(0) }
    }
}

/// One bit, without any order.
#[derive(Debug)]
pub struct LoomFlag(AtomicBool);

impl Default for LoomFlag {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl SharedFlag for LoomFlag {
    fn set(&self, up: bool) {
        self.0.store(up, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A lock around a value.
#[derive(Debug)]
pub struct LoomLock<T>(Mutex<T>);

impl<T> Lock<T> for LoomLock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    type Condvar = LoomCondvar;

    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        self.0.try_lock().ok()
    }

    fn lock_until(&self, _until: Deadline) -> Option<Self::Guard<'_>> {
        Some(self.lock())
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &'a self,
        guard: Self::Guard<'a>,
        signal: &LoomCondvar,
        deadline: Deadline,
    ) -> (Self::Guard<'a>, bool) {
        if deadline.is_some() {
            signal.expired.fetch_add(1, Ordering::Relaxed);
            drop(guard);
            let guard = self.lock();
            signal.expired.store(signal.expired.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
            return (guard, false);
        }
        (signal.condition.wait(guard).unwrap_or_else(PoisonError::into_inner), true)
    }

    fn notify(signal: &LoomCondvar) {
        signal.condition.notify_all();
    }

    fn notify_one(signal: &LoomCondvar) {
        let expired = signal.expired.load(Ordering::Relaxed);
        if expired > 0 {
            signal.expired.store(expired - 1, Ordering::Relaxed);
        } else {
            signal.condition.notify_one();
        }
    }
}
