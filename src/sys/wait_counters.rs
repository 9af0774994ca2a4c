//! Counters of one direction of a connection, for the statistics.
//!
//! A thread counts only when it waits, wakes, or reads the head again. A message that is sent or received at once
//! changes no counter here. The counters are in private memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The counters of one direction, in a cache line of their own: a thread of the other direction may run at the same
/// time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WaitCounters {
    sleeps: AtomicU64,
    wakes: AtomicU64,
    spins: AtomicU64,
    stalls: AtomicU64,
    peak: AtomicU32,
}

/// The values of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitCounts {
    pub(crate) sleeps: u64,
    pub(crate) wakes: u64,
    pub(crate) spins: u64,
    pub(crate) stalls: u64,
    /// The highest fill level that the sender has seen, in thousandths.
    pub(crate) peak: u32,
}

/// The fill level of a direction without room.
const FULL: u32 = 1000;

impl WaitCounters {
    /// Counts that a thread asked the kernel to sleep.
    pub(crate) fn count_sleep(&self) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that a thread asked the kernel to wake a sleeper.
    pub(crate) fn count_wake(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a wait that began with spinning. Only one thread at a time waits on a direction, so a load and a store
    /// are enough.
    pub(crate) fn count_spin(&self) {
        self.spins.store(self.spins.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts that a sender found no room, and waits for it.
    pub(crate) fn count_stall(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
        self.note_fill(FULL);
    }

    /// Records a fill level that the sender has seen, in thousandths.
    pub(crate) fn note_fill(&self, permille: u32) {
        if permille > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(permille.min(FULL), Ordering::Relaxed);
        }
    }

    /// Returns the values of the counters.
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
