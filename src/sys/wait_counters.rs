//! What this process has done at one direction of a connection, for its statistics.
//!
//! Counted only where a thread waits, wakes, or looks at the head again: what sends or receives a message at once
//! touches nothing here. Private memory, like all that is counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The counters of one direction. A line of its own: the other direction's thread may be at work all the while.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WaitCounters {
    sleeps: AtomicU64,
    wakes: AtomicU64,
    spins: AtomicU64,
    stalls: AtomicU64,
    peak: AtomicU32,
}

/// What the counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitCounts {
    pub(crate) sleeps: u64,
    pub(crate) wakes: u64,
    pub(crate) spins: u64,
    pub(crate) stalls: u64,
    /// How full the sender has seen it, in thousandths.
    pub(crate) peak: u32,
}

/// Of a direction without room.
const FULL: u32 = 1000;

impl WaitCounters {
    /// A thread asked the kernel to sleep.
    pub(crate) fn count_sleep(&self) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread asked the kernel to wake a sleeper.
    pub(crate) fn count_wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// A wait began with spinning. One thread at a time waits at a direction, so that no step is locked.
    pub(crate) fn count_spin(&self) {
        self.spins.store(self.spins.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// A sender found no room, and waits for some.
    pub(crate) fn count_stall(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
        self.note_fill(FULL);
    }

    /// The sender has found so many thousandths taken.
    pub(crate) fn note_fill(&self, permille: u32) {
        if permille > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(permille.min(FULL), Ordering::Relaxed);
        }
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> WaitCounts {
        WaitCounts {
            sleeps: self.sleeps.load(Ordering::Relaxed),
            wakes: self.wakes.load(Ordering::Relaxed),
            spins: self.spins.load(Ordering::Relaxed),
            stalls: self.stalls.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
        }
    }
}
