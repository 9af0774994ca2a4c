//! Counts real sleeps, and finds wake-ups that were lost. Behind the feature `testing` alone.
//!
//! ```text
//!   who publishes                             who sleeps
//!     publishes ticket n                        raises its flag, fences, looks: nothing
//!     fences, looks at the flag, wakes          sleeps ......... until the slice is over
//!     notes: "checked up to n + 1, at time t"   finds the note: n is what it waits for, and t lies
//!                                               before the end of the slice  ──▶  a wake-up was lost
//! ```
//!
//! A wake that was made before the end of the slice, and whose sleeper slept on to the end, did not
//! reach it; the kernel gives a wake precedence over the clock. The notes stand in spare words of the
//! shared page, which belong to no version of the layout.
//!
//! # What it does not show
//!
//! A lost wake-up that the next publication makes up for before the slice is over: a test for it must
//! leave pauses, or wait for each answer. Nor a lost wake-up for space of one that waits for either: on
//! its bed only messages are noted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// From now on notes are written and read, and real sleeps count. In both processes, or the sleeper
/// finds no notes.
pub fn watch() {
    ON.store(true, Ordering::Relaxed);
}

/// No more of it.
#[cfg(test)]
pub(super) fn unwatch() {
    ON.store(false, Ordering::Relaxed);
}

/// What was seen in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Times that a thread was really put to sleep by the kernel.
    pub sleeps: u64,
    /// Sleeps that lasted a whole slice.
    pub slices: u64,
    /// Wake-ups that were lost.
    pub lost: u64,
}

/// What was seen in this process since [`watch`].
pub fn seen() -> Seen {
    let [sleeps, slices, lost] = [&SLEEPS, &SLICES, &LOST].map(|count| count.load(Ordering::Relaxed));
    Seen { sleeps, slices, lost }
}

/// Whether notes are kept.
#[inline]
pub(super) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The kernel put a thread to sleep.
pub(super) fn slept() {
    if is_on() {
        SLEEPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// A whole slice was slept through; `lost` if it should not have been.
pub(super) fn slept_a_slice(lost: bool) {
    SLICES.fetch_add(1, Ordering::Relaxed);
    LOST.fetch_add(u64::from(lost), Ordering::Relaxed);
}

static ON: AtomicBool = AtomicBool::new(false);
static SLEEPS: AtomicU64 = AtomicU64::new(0);
static SLICES: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);
