//! How the threads of this process wait for each other: locks, condition variables, shared flags.
//!
//! They are behind traits, so that a model checker can replace them. It then runs the layers that block threads as
//! users link them.

use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Wait;
use crate::memory::Deadline;

/// A lock around a value, for the layers that block threads of this process.
pub trait Lock<T> {
    /// The guard of the locked value.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// The condition variable that a thread waits on after it has released the lock.
    type Condvar: Default;

    /// Makes the lock.
    fn new(value: T) -> Self;

    /// Takes the lock if no thread has it.
    fn try_lock(&self) -> Option<Self::Guard<'_>>;

    /// Takes the lock, or returns `None` if the deadline passes first.
    fn lock_until(&self, deadline: Deadline) -> Option<Self::Guard<'_>>;

    /// Takes the lock, without a deadline. Only for a lock that no thread holds for long.
    fn lock(&self) -> Self::Guard<'_>;

    /// Releases the lock, waits on the condition variable, and takes the lock again. Returns `false` if the deadline
    /// passed. May return early.
    fn wait<'a>(
        &'a self,
        guard: Self::Guard<'a>,
        signal: &Self::Condvar,
        deadline: Deadline,
    ) -> (Self::Guard<'a>, bool);

    /// Wakes all threads that wait on the condition variable.
    fn notify(signal: &Self::Condvar);

    /// Wakes one thread that waits on the condition variable, if there is one.
    fn notify_one(signal: &Self::Condvar);
}

/// One bit that threads of this process share, without any ordering: the locks around it order the data that it stands
/// for.
pub trait SharedFlag: Default {
    /// Sets or clears the flag.
    fn set(&self, up: bool);

    /// Returns whether the flag is set.
    fn is_set(&self) -> bool;
}

/// The locks, condition variables and shared flags of one kind.
pub trait SyncBackend {
    /// A lock around a value.
    type Lock<T: Send>: Lock<T, Condvar = Self::Condvar>;
    /// A condition variable for the lock.
    type Condvar: Default;
    /// A shared flag.
    type Flag: SharedFlag;
}

/// The backend of a real process: `parking_lot` and atomics.
#[derive(Debug)]
pub struct RealSync;

impl SyncBackend for RealSync {
    type Lock<T: Send> = Mutex<T>;
    type Condvar = Condvar;
    type Flag = AtomicBool;
}

impl<T> Lock<T> for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    type Condvar = Condvar;

    fn new(value: T) -> Self {
        Self::new(value)
    }

    #[inline]
    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        self.try_lock()
    }

    #[inline]
    fn lock_until(&self, deadline: Deadline) -> Option<Self::Guard<'_>> {
        match deadline {
            None => Some(self.lock()),
            Some(deadline) => self.try_lock_until(deadline),
        }
    }

    #[inline]
    fn lock(&self) -> Self::Guard<'_> {
        self.lock()
    }

    fn wait<'a>(
        &'a self,
        mut guard: Self::Guard<'a>,
        signal: &Condvar,
        deadline: Deadline,
    ) -> (Self::Guard<'a>, bool) {
        let in_time = match deadline {
            None => {
                signal.wait(&mut guard);
                true
            }
            Some(deadline) => !signal.wait_until(&mut guard, deadline).timed_out(),
        };
        (guard, in_time)
    }

    #[inline]
    fn notify(signal: &Condvar) {
        signal.notify_all();
    }

    #[inline]
    fn notify_one(signal: &Condvar) {
        signal.notify_one();
    }
}

impl SharedFlag for AtomicBool {
    #[inline]
    fn set(&self, up: bool) {
        self.store(up, Ordering::Relaxed);
    }

    #[inline]
    fn is_set(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

/// Runs `act` with the locked value and returns its result, or `None` if the lock was not free in time.
pub fn with_lock<T, R, L: Lock<T>>(lock: &L, wait: Wait, act: impl FnOnce(&mut T) -> R) -> Option<R> {
    let mut guard = match wait {
        Wait::Never => lock.try_lock(),
        Wait::Deadline(deadline) => lock.lock_until(deadline),
    }?;
    Some(act(&mut guard))
}
