//! What all threads of a server count, and whether it drains: the part of its state that outlives the rest as long as a
//! method runs.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::session::Session;
use crate::channel::Stats;

/// What a server does now, and has done.
#[derive(Debug, Default)]
pub(super) struct ServerActivity {
    pub(super) counts: Counts,
    /// Methods that run in the pool or on threads of their own.
    pub(super) running: AtomicUsize,
    draining: AtomicBool,
}

impl ServerActivity {
    /// From now on no call is begun.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether no call is begun any more.
    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Notifies a connection of which a call was answered off its thread: while the server drains, it may close now.
    pub(super) fn on_answered(&self, session: &Session) {
        if self.is_draining() {
            session.connection.notify_driver(); // It sleeps, and an answer that was sent at once does not wake it.
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

/// All counters.
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
    /// How the connections waited that have ended.
    pub(super) waits: Mutex<Stats>,
}
