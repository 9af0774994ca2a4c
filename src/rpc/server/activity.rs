//! The counters that all threads of a server share, and whether it drains. They outlive the rest of the server's
//! state as long as a method runs.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::session::Session;
use crate::channel::Stats;

/// What a server does now, and has done.
#[derive(Debug, Default)]
pub(super) struct ServerActivity {
    pub(super) counts: Counts,
    /// The methods that run in the pool or on threads of their own.
    pub(super) running: AtomicUsize,
    draining: AtomicBool,
}

impl ServerActivity {
    /// From now on no call is begun.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Returns whether the server begins no call any more.
    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Wakes the driver of a connection after another thread has answered one of its calls. While the server drains,
    /// the connection may close now.
    pub(super) fn on_answered(&self, session: &Session) {
        if self.is_draining() {
            session.connection.notify_driver(); // An answer that was sent at once does not wake the driver.
        }
    }
}

/// A counter that any thread adds to.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a server.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: Count,
    pub(super) refused: Count,
    pub(super) violated: Count,
    pub(super) died: Count,
    pub(super) calls: Count,
    pub(super) failed: Count,
    pub(super) panicked: Count,
    pub(super) busy: Count,
    /// The wait statistics of the connections that have ended.
    pub(super) waits: Mutex<Stats>,
}
