//! Counts real sleeps, and detects lost wake-ups. Only with the feature `testing`.
//!
//! ```text
//!   publishing thread                         sleeping thread
//!     publishes ticket n                        sets its flag, fences, checks the ring: nothing
//!     fences, loads the flag, wakes             sleeps ......... until the slice is over
//!     notes: "checked up to n + 1, at time t"   reads the note: it waits for n, and t is before
//!                                               the end of the slice  ──▶  a wake-up was lost
//! ```
//!
//! If a wake was made before the end of the slice and the sleeper slept to the end, the wake did not reach the sleeper:
//! the kernel prefers a wake to the timeout. The notes are in spare words of the shared page, which belong to no
//! version of the layout.
//!
//! # What it does not show
//!
//! A lost wake-up that a later publication compensates before the slice is over: a test for it must pause between
//! messages, or wait for each answer. Nor a lost wake-up for space, if the sleeper waits for either message or space:
//! on its flag only messages are noted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Starts to write and read notes, and to count real sleeps. Both processes must call it, or the sleeper finds no
/// notes.
pub fn watch() {
    ON.store(true, Ordering::Relaxed);
}

/// Stops what [`watch`] has started.
#[cfg(test)]
pub(super) fn unwatch() {
    ON.store(false, Ordering::Relaxed);
}

/// The counts of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How often the kernel really put a thread to sleep.
    pub sleeps: u64,
    /// Sleeps that lasted a whole slice.
    pub slices: u64,
    /// Wake-ups that were lost.
    pub lost: u64,
}

/// Returns the counts of this process since [`watch`].
pub fn seen() -> Seen {
    let [sleeps, slices, lost] = [&SLEEPS, &SLICES, &LOST].map(|count| count.load(Ordering::Relaxed));
    Seen { sleeps, slices, lost }
}

/// Returns whether notes are written and read.
#[inline]
pub(super) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Counts that the kernel put a thread to sleep.
pub(super) fn slept() {
    if is_on() {
        SLEEPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts a sleep that lasted a whole slice; `lost` says whether a wake-up was lost.
pub(super) fn slept_a_slice(lost: bool) {
    SLICES.fetch_add(1, Ordering::Relaxed);
    LOST.fetch_add(u64::from(lost), Ordering::Relaxed);
}

static ON: AtomicBool = AtomicBool::new(false);
static SLEEPS: AtomicU64 = AtomicU64::new(0);
static SLICES: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);
