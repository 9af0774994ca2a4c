//! The lock above the ring, as loom can see it. It waits for as long as it takes.

use loom::sync::{Mutex, MutexGuard};
use narrows::internal::Monitor;
use narrows::internal::mem::Until;

/// A lock around a value.
#[derive(Debug)]
pub struct Lock<T>(Mutex<T>);

impl<T> Monitor<T> for Lock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        self.0.try_lock().ok()
    }

    fn lock_until(&self, _until: Until) -> Option<Self::Guard<'_>> {
        self.0.lock().ok()
    }
}
