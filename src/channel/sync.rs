//! How the threads of this process wait for each other: locks, signals, latches.
//!
//! Behind traits, so that a model checker can stand in for them: it runs the layers that block
//! threads as users link them.

use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Wait;
use crate::memory::Deadline;

/// A lock around a value, as the layers that block this process's own threads need it.
pub trait Lock<T> {
    /// The right to use the value.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;

    /// What a thread waits for that gave up the lock.
    type Condvar: Default;

    /// Makes the lock.
    fn new(value: T) -> Self;

    /// Takes the lock if nobody has it.
    fn try_lock(&self) -> Option<Self::Guard<'_>>;

    /// Takes the lock, waiting until the deadline at most.
    fn lock_until(&self, deadline: Deadline) -> Option<Self::Guard<'_>>;

    /// Takes a lock that nobody holds for long.
    fn lock(&self) -> Self::Guard<'_>;

    /// Gives up the lock, waits for the signal, and takes the lock again. False if the deadline passed.
    /// It may return early.
    fn wait<'a>(
        &'a self,
        guard: Self::Guard<'a>,
        signal: &Self::Condvar,
        deadline: Deadline,
    ) -> (Self::Guard<'a>, bool);

    /// Wakes all threads that wait for the signal.
    fn notify(signal: &Self::Condvar);

    /// Wakes one thread that waits for the signal, if there is one.
    fn notify_one(signal: &Self::Condvar);
}

/// One bit that threads of this process share, without any order: the locks around it order what it
/// tells of.
pub trait SharedFlag: Default {
    /// Raises or lowers it.
    fn set(&self, up: bool);

    /// Whether it is up.
    fn is_set(&self) -> bool;
}

/// The locks, signals and latches of one kind.
pub trait SyncBackend {
    /// A lock around a value.
    type Lock<T: Send>: Lock<T, Condvar = Self::Condvar>;
    /// What waits for a change of it.
    type Condvar: Default;
    /// One bit.
    type Flag: SharedFlag;
}

/// The threads of a real process.
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

/// Does something with the value in this thread's turn, or nothing if the time is over first.
pub fn with_lock<T, R, L: Lock<T>>(lock: &L, wait: Wait, act: impl FnOnce(&mut T) -> R) -> Option<R> {
    let mut guard = match wait {
        Wait::Never => lock.try_lock(),
        Wait::Deadline(deadline) => lock.lock_until(deadline),
    }?;
    Some(act(&mut guard))
}
