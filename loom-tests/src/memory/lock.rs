//! The locks, condition variables and flags above the ring, in a form that loom checks.
//!
//! There is no clock. A wait with a deadline always lasts until the deadline: the thread releases the lock, other threads may
//! take it, and the thread takes it again after its deadline. A thread that is notified in time behaves like one without a
//! deadline, so both cases are modelled. A lock itself is always waited for without a deadline.
//!
//! A notification for one thread goes to a thread whose deadline passes at that moment, if there is one. Condition variables
//! may do so, and the models must hold nevertheless.

use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};
use narrows::internal::memory::Deadline;
use narrows::internal::{Lock, SharedFlag, SyncBackend};

/// The synchronization of a model's threads.
#[derive(Debug)]
pub struct LoomSync;

impl SyncBackend for LoomSync {
    type Lock<T: Send> = LoomLock<T>;
    type Condvar = LoomCondvar;
    type Flag = LoomFlag;
}

/// A condition variable for changes of a locked value.
#[derive(Debug)]
pub struct LoomCondvar {
    condition: Condvar,
    /// The number of threads whose deadlines pass and which have no notification yet. It is used only under the lock, so loom
    /// need not see it.
    expired: AtomicU32,
}

impl Default for LoomCondvar {
    fn default() -> Self {
        Self { condition: Condvar::new(), expired: AtomicU32::new(0) }
    }
}

/// One bit without any ordering.
#[derive(Debug)]
pub struct LoomFlag(AtomicBool);

impl Default for LoomFlag {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl SharedFlag for LoomFlag {
    fn set(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
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

    fn lock_until(&self, _deadline: Deadline) -> Option<Self::Guard<'_>> {
        Some(self.lock())
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &'a self,
        guard: Self::Guard<'a>,
        condvar: &LoomCondvar,
        deadline: Deadline,
    ) -> (Self::Guard<'a>, bool) {
        if deadline.is_some() {
            condvar.expired.fetch_add(1, Ordering::Relaxed);
            drop(guard);
            let guard = self.lock();
            condvar
                .expired
                .store(condvar.expired.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
            return (guard, false);
        }
        (condvar.condition.wait(guard).unwrap_or_else(PoisonError::into_inner), true)
    }

    fn notify(condvar: &LoomCondvar) {
        condvar.condition.notify_all();
    }

    fn notify_one(condvar: &LoomCondvar) {
        let expired = condvar.expired.load(Ordering::Relaxed);
        if expired > 0 {
            condvar.expired.store(expired - 1, Ordering::Relaxed);
        } else {
            condvar.condition.notify_one();
        }
    }
}
