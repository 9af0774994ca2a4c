//! The steady state allocates nothing.
//!
//! A binary of its own, since it has a global allocator that counts the allocations of each thread and of all threads.

#![allow(unsafe_code)] // The allocator.

extern crate narrows_tests as narrows; // The library, built with what tests need of its inside.

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod steady_state;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the allocations of each thread and of all threads.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

static ASKED_BY_ALL: AtomicU64 = AtomicU64::new(0);

// SAFETY: passes every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    ASKED_BY_ALL.fetch_add(1, Ordering::Relaxed);
    let _ending = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

/// Returns the number of allocations that this thread makes in `act`.
fn allocations_in(act: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    act();
    ASKED.get() - before
}

/// Returns the number of allocations of all threads so far.
fn allocations_of_all_threads() -> u64 {
    ASKED_BY_ALL.load(Ordering::Relaxed)
}
