//! Two real threads on a ring whose payload is plain memory, which only the ring's own orderings protect.
//!
//! Under ThreadSanitizer (`.ci/sanitize thread`) a payload that is touched without order is a report. The other tests cannot
//! show that: there payload is made of atomic words, or is mapped twice, at addresses that have nothing in common for it.
//! Without it this is one more test that what comes out is what went in.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::thread;

use crate::support::rings::over;
use crate::support::{Watchdog, bytes, check};
use narrows::internal::Wait;
use narrows::internal::memory::{
    ARENA_ALIGN, Deadline, Flag, Heap, INLINE_CAPACITY, Memory, OutOfBounds, Padding, Span, WaitResult,
    forward_memory,
};

struct Plain {
    heap: Heap,
    payload: UnsafeCell<Vec<u8>>,
}

// SAFETY: the vector never moves or grows, and its bytes are touched by `place` alone, whose caller the ring gives the range.
unsafe impl Sync for Plain {}

impl Plain {
    fn new(slots: usize, arena: usize) -> Arc<Self> {
        let payload = UnsafeCell::new(vec![0; slots * INLINE_CAPACITY + arena]);
        Arc::new(Self { heap: Heap::new(slots, arena, 1), payload })
    }

    /// Where a range stands, if it is here.
    fn place(&self, span: Span, at: usize, len: usize) -> Result<*mut u8, OutOfBounds> {
        // The private memory judges.
        self.heap.copy_out(span, at, &mut vec![0; len])?;
        let start = match span {
            Span::Slot(ticket) => usize::try_from(ticket % self.slots()).expect("few") * INLINE_CAPACITY,
            Span::Arena(place) => {
                usize::try_from(self.slots()).expect("few") * INLINE_CAPACITY + place as usize * ARENA_ALIGN
            }
        };
        // SAFETY: judged above, and the vector has a place for all slots and the arena.
        Ok(unsafe { (*self.payload.get()).as_mut_ptr().add(start + at) })
    }
}

impl Memory for Plain {
    forward_memory! {
        self => self.heap;
        slots, arena, load_slot, store_slot, load, store, set_close_reason, load_flag, store_flag, take_flag, fence,
        has_expired,
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], _tail: Padding) -> Result<(), OutOfBounds> {
        let place = self.place(to, at, bytes.len())?;
        // SAFETY: as many bytes stand there; that nobody else touches them is what the test shows.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(place, bytes.len()) };
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let place = self.place(from, at, bytes.len())?;
        // SAFETY: as above.
        unsafe { place.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// A lock would order what the ring does not.
    fn wait(&self, _flag: Flag, _until: Deadline, _patience: u32) -> WaitResult {
        thread::yield_now();
        WaitResult::Early
    }

    fn back_off(&self, _until: Deadline) {
        thread::yield_now();
    }

    fn wake(&self, _flag: Flag) {}
}

#[test]
fn payload_is_ordered_by_the_ring_alone() {
    let _watch = Watchdog::new("plain payload");
    for (slots, arena) in [(1, 64), (4, 256), (16, 4096)] {
        let (mut out, mut inb) = over(&Plain::new(slots, arena), 0);
        let len = move |seed: u64| fastrand::Rng::with_seed(seed).usize(0..arena * 2);
        let sender = thread::spawn(move || {
            for seed in 0..3000 {
                out.send(&[std::io::IoSlice::new(&bytes(seed, len(seed)))], seed, Wait::NO_DEADLINE)
                    .expect("sent");
            }
        });
        let mut buffer = Vec::new();
        for seed in 0..3000 {
            assert_eq!(inb.recv_into(&mut buffer, Wait::NO_DEADLINE).expect("comes").tag, seed);
            check(seed, len(seed), &buffer);
        }
        sender.join().expect("ends");
    }
}
