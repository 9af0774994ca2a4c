//! The lock above the ring, as loom can see it. It waits for as long as it takes.

use loom::sync::{Condvar, Mutex, MutexGuard};
use narrows::internal::Monitor;
use narrows::internal::mem::Until;

/// What waits for a change of a locked value.
#[derive(Debug)]
pub struct Signal(Condvar);

impl Default for Signal {
    fn default() -> Self {
        Self(Condvar::new())
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
        self.0.lock().ok()
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.0.lock().unwrap()
    }

    fn wait<'a>(&'a self, guard: Self::Guard<'a>, signal: &Signal, _until: Until) -> (Self::Guard<'a>, bool) {
        (signal.0.wait(guard).unwrap(), true)
    }

    fn notify(signal: &Signal) {
        signal.0.notify_all();
    }
}
