//! The steady state allocates nothing.
//!
//! A binary of its own, since it has a global allocator that counts: what the thread asks for, and what all threads do.

#![allow(unsafe_code)] // The allocator.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod steady_state;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what is asked for, by each thread and by all.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

static ASKED_BY_ALL: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    ASKED_BY_ALL.fetch_add(1, Ordering::Relaxed);
    let _ending = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

/// What this thread asks for meanwhile.
fn asked_by(act: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    act();
    ASKED.get() - before
}

/// What all threads have asked for until now.
fn asked_by_all() -> u64 {
    ASKED_BY_ALL.load(Ordering::Relaxed)
}
