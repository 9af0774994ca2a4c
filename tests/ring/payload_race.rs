//! Two real threads on a ring whose payload is plain memory, which only the ring's own orderings protect.
//!
//! Under ThreadSanitizer (`.ci/sanitize thread`) an unordered access to a payload is reported. The other tests cannot show that:
//! their payload is atomic words, or is mapped twice, at addresses that the sanitizer does not relate. Without the sanitizer
//! this test only checks that the received bytes are those that were sent.

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

// SAFETY: the vector never moves or grows. Its bytes are accessed only through `address`, in ranges that the ring chooses.
unsafe impl Sync for Plain {}

impl Plain {
    fn new(slots: usize, arena: usize) -> Arc<Self> {
        let payload = UnsafeCell::new(vec![0; slots * INLINE_CAPACITY + arena]);
        Arc::new(Self { heap: Heap::new(slots, arena, 1), payload })
    }

    /// Returns the address of a range, if it is within the memory.
    fn address(&self, span: Span, at: usize, len: usize) -> Result<*mut u8, OutOfBounds> {
        // The private memory checks the bounds.
        self.heap.copy_out(span, at, &mut vec![0; len])?;
        let start = match span {
            Span::Slot(ticket) => usize::try_from(ticket % self.slots()).expect("few") * INLINE_CAPACITY,
            Span::Arena(unit) => {
                usize::try_from(self.slots()).expect("few") * INLINE_CAPACITY + unit as usize * ARENA_ALIGN
            }
        };
        // SAFETY: the range was checked above, and the vector has room for all slots and the arena.
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
        let address = self.address(to, at, bytes.len())?;
        // SAFETY: the range has as many bytes. That no other thread accesses them is what the test shows.
        unsafe { bytes.as_ptr().copy_to_nonoverlapping(address, bytes.len()) };
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let address = self.address(from, at, bytes.len())?;
        // SAFETY: as above.
        unsafe { address.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Only yields: the lock of a real sleep would order accesses that the ring itself must order.
    fn wait(&self, _flag: Flag, _deadline: Deadline, _patience: u32) -> WaitResult {
        thread::yield_now();
        WaitResult::Early
    }

    fn back_off(&self, _deadline: Deadline) {
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
