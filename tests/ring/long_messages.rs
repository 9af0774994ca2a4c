//! Messages longer than a fragment, in private memory: fragmented, reassembled, refused, abandoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::rings::{at_once, over, put, ring, send, take, try_take};
use crate::support::spied::{Did, Spied};
use crate::support::{Watchdog, bytes, check};
use narrows::internal::layout::LAST_TICKET;
use narrows::internal::memory::{Deadline, Field, Flag, Heap, Load, Memory, Store, Word};
use narrows::internal::ring::CloseReason;
use narrows::internal::{ConnectionError, ReceiverCore, RecvCoreError, SendCoreError, Wait, WaitPolicy};

#[test]
fn try_send_sends_every_message_that_can_fit_at_once() {
    for slots in [4, 8, 16] {
        let (mut out, mut inb, _heap) = ring(slots, 1 << 20, 0);
        for seed in 1..20 {
            // Fragments have 64 KiB, and a message of up to 256 KiB is not fragmented.
            let most = ((slots * 64) << 10).min(1 << 20);
            let len = most - usize::try_from(seed).expect("few") + 1;
            put(&mut out, &bytes(seed, len), seed);
            let (message, tag) = take(&mut inb);
            assert_eq!(tag, seed);
            check(seed, len, &message);
            put(&mut out, &bytes(seed, 200), seed);
            assert_eq!(take(&mut inb), (bytes(seed, 200), seed));
        }
    }
}

/// The offsets of the previous messages do not matter.
#[test]
fn try_send_fills_the_whole_arena_of_an_empty_ring() {
    for (count, len) in [(4, 230_000), (3, 40_000), (1, 105), (7, 100_000)] {
        let (mut out, mut inb, _heap) = ring(32, 1 << 20, 0);
        for seed in 0..count {
            put(&mut out, &bytes(seed, len), seed);
        }
        let long = bytes(9, 1 << 20);
        assert_eq!(send(&mut out, &long, 9, Wait::Never), Err(SendCoreError::Full));
        for seed in 0..count {
            assert_eq!(take(&mut inb), (bytes(seed, len), seed));
        }
        put(&mut out, &long, 9);
        assert_eq!(take(&mut inb), (long, 9));
    }
}

#[test]
fn try_send_of_a_message_that_never_fits_is_refused_and_sends_nothing() {
    let (mut out, mut inb, _heap) = ring(2, 256, 0);
    assert_eq!(send(&mut out, &[1; 257], 0, Wait::Never), Err(SendCoreError::TooLargeToTry));
    let (mut out2, _inb2, _heap2) = ring(4, 1 << 20, 0);
    assert_eq!(send(&mut out2, &[1; (256 << 10) + 1], 0, Wait::Never), Err(SendCoreError::TooLargeToTry));
    assert_eq!(send(&mut out2, &[1; (1 << 20) + 1], 0, Wait::Never), Err(SendCoreError::TooLargeToTry));
    let longest = crate::support::rings::MAX;
    assert_eq!(send(&mut out, &vec![1; longest + 1], 0, Wait::Never), Err(SendCoreError::TooLarge(longest)));
    assert_eq!(
        send(&mut out, &vec![1; longest + 1], 0, Wait::NO_DEADLINE),
        Err(SendCoreError::TooLarge(longest))
    );
    assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
    assert_eq!(out.reserve(257, Wait::NO_DEADLINE).map(|_| ()), Err(SendCoreError::TooLarge(256)));
}

#[test]
fn try_send_without_room_for_all_fragments_is_full_and_sends_nothing() {
    let (mut out, mut inb, heap) = ring(8, 1 << 20, 0);
    let long = bytes(1, 400 << 10); // 7 fragments.
    put(&mut out, &bytes(2, 10), 2);
    put(&mut out, &bytes(3, 10), 3);
    for _ in 0..3 {
        assert_eq!(send(&mut out, &long, 1, Wait::Never), Err(SendCoreError::Full));
        assert_eq!(heap.load_slot(2, Field::Stamp, Load::Relaxed), 0);
    }
    put(&mut out, &bytes(4, 300), 4);
    for seed in 2..5 {
        assert_eq!(take(&mut inb).1, seed);
    }
    put(&mut out, &long, 1);
    assert_eq!(take(&mut inb), (long, 1));
}

#[test]
fn a_message_with_a_fragment_in_every_slot_is_sent_at_the_first_try() {
    let (mut out, mut inb, _heap) = ring(8, 1 << 20, 0);
    let long = bytes(5, 512 << 10); // 8 fragments in 8 slots.
    for _ in 0..3 {
        put(&mut out, &long, 5);
        assert_eq!(try_take(&mut inb), Ok((long.clone(), 5)));
    }
}

/// Abandons a message at a deadline after the receiver took `fragments` of it, and then sends another.
fn abandon(slots: usize, arena: usize, fragments: u64, drained: bool, next: usize) {
    let (mut out, mut inb, heap) = ring(slots, arena, 3);
    for round in 0..3 {
        let abandoned = bytes(round, arena * 40);
        // The receiver takes fragments meanwhile, so that any number of them is published.
        let mut taken = 0;
        let fault = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_millis(2);
                send(&mut out, &abandoned, 9, Wait::Deadline(Some(deadline)))
            });
            while !sender.is_finished() {
                if taken < fragments {
                    assert_eq!(inb.recv(&mut [], Wait::Never).map(|_| ()), Err(RecvCoreError::Empty));
                    taken += 1;
                }
                thread::yield_now();
            }
            sender.join().expect("ends")
        });
        assert_eq!(fault, Err(SendCoreError::Full));
        if drained {
            assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty), "the abandoned message is not visible");
        }
        let message = bytes(77, next);
        thread::scope(|scope| {
            scope.spawn(|| send(&mut out, &message, 77, Wait::NO_DEADLINE).expect("sends"));
            let mut small = [0; 1];
            let short = inb.recv(&mut small, Wait::NO_DEADLINE).map(|_| ());
            assert_eq!(
                short,
                Err(RecvCoreError::BufferTooSmall(next)),
                "the message that carried the abort is kept"
            );
            let mut buffer = Vec::new();
            let came = inb.recv_into(&mut buffer, Wait::NO_DEADLINE).expect("comes");
            assert_eq!((came.tag, came.len), (77, next));
            assert_eq!(buffer, message);
        });
    }
    assert_eq!(heap.load(Word::CloseReason, Load::Relaxed), 0);
}

#[test]
fn an_abandoned_message_is_never_seen_and_the_next_one_comes() {
    let _watch = Watchdog::new("abandoning");
    for (slots, arena) in [(1, 64), (2, 128), (4, 256), (8, 1024)] {
        for fragments in 0..6 {
            for next in [2, 100, 105, arena, arena * 3] {
                abandon(slots, arena, fragments, true, next.max(2));
                abandon(slots, arena, fragments, false, next.max(2));
            }
        }
    }
}

#[test]
fn a_deadline_in_the_middle_loses_nothing_for_the_receiver() {
    let _watch = Watchdog::new("deadlines in the middle");
    for (slots, arena) in [(1, 64), (2, 64), (4, 256), (8, 4096)] {
        let (mut out, mut inb, _heap) = ring(slots, arena, 0);
        let message = bytes(4, arena * 40);
        thread::scope(|scope| {
            scope.spawn(|| send(&mut out, &message, 4, Wait::NO_DEADLINE).expect("sends"));
            let mut buffer = vec![0; message.len()];
            let mut turns = 0_u32;
            let came = loop {
                let wait = if turns % 2 == 0 { Wait::Never } else { at_once() };
                match inb.recv(&mut buffer, wait) {
                    Ok(came) => break came,
                    Err(fault) => assert_eq!(fault, RecvCoreError::Empty),
                }
                turns += 1;
            };
            assert_eq!((came.len, came.tag), (message.len(), 4));
            assert_eq!(buffer, message);
        });
    }
}

#[test]
fn a_reassembled_message_is_kept_until_the_buffer_is_long_enough() {
    let (mut out, mut inb, _heap) = ring(8, 1 << 20, 0);
    let long = bytes(6, 300 << 10);
    put(&mut out, &long, 6);
    put(&mut out, b"next", 7);
    for len in [0, 1, long.len() - 1] {
        let short = inb.recv(&mut vec![0; len], Wait::Never).map(|_| ());
        assert_eq!(short, Err(RecvCoreError::BufferTooSmall(long.len())));
    }
    let borrowed = inb.borrow_next(Wait::Never).expect("still there");
    let mut middle = [0; 9];
    inb.read_at(&borrowed, 1000, &mut middle).expect("inside");
    assert_eq!(middle, long[1000..1009]);
    assert!(inb.read_at(&borrowed, long.len() - 1, &mut [0; 2]).is_err());
    assert!(inb.read_at(&borrowed, usize::MAX, &mut [0; 2]).is_err());
    // The borrowed message is not released here: the next call does that.
    assert_eq!(take(&mut inb), (b"next".to_vec(), 7));
}

#[test]
fn the_end_in_the_middle_discards_the_fragments() {
    for reason in [CloseReason::Closed, CloseReason::Disconnected, CloseReason::Died, CloseReason::Violated] {
        let (mut out, mut inb, heap) = ring(2, 128, 0);
        assert_eq!(send(&mut out, &[3; 1000], 0, at_once()), Err(SendCoreError::Full));
        assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
        heap.set_close_reason(reason as u64);
        let expected = match reason {
            CloseReason::Closed => ConnectionError::Closed,
            CloseReason::Disconnected => ConnectionError::Disconnected,
            CloseReason::Died => ConnectionError::PeerDied,
            CloseReason::Violated => ConnectionError::ProtocolViolation,
        };
        for _ in 0..2 {
            assert_eq!(inb.recv(&mut [], Wait::NO_DEADLINE).map(|_| ()), Err(RecvCoreError::Ended(expected)));
            assert_eq!(send(&mut out, &[3; 1000], 0, Wait::NO_DEADLINE), Err(SendCoreError::Ended(expected)));
        }
    }
}

#[test]
fn a_delivered_message_counts_as_sent() {
    // The peer closes at the moment when the last fragment is committed. The sender must not report that as a failure.
    let long = vec![1; 300 << 10]; // 5 fragments.
    let mem = Spied::new(Heap::new(8, 1 << 20, 1), |heap, did| {
        if did == Did::StoreSlot(4, Field::Stamp, 2 * 4 + 2) {
            heap.store(Word::ConsumerClosed, 1, Store::Release);
        }
    });
    let (mut out, mut inb) = over(&mem, 0);
    assert_eq!(
        send(&mut out, &long, 0, Wait::NO_DEADLINE),
        Ok(long.len()),
        "the whole message was committed"
    );
    assert_eq!(take(&mut inb).0, long);
    assert_eq!(
        send(&mut out, &long, 0, Wait::NO_DEADLINE),
        Err(SendCoreError::Ended(ConnectionError::Disconnected))
    );
}

#[test]
fn a_long_message_through_the_smallest_ring_causes_no_backoff() {
    let backoffs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&backoffs);
    let mem = Spied::new(Heap::new(2, 64, 1), move |_, did| {
        count.fetch_add(u32::from(did == Did::Backoff), Ordering::Relaxed);
    });
    let (mut out, _) = over(&mem, 0);
    let mut inb = ReceiverCore::new(mem.clone(), Patient, 0, crate::support::rings::MAX);
    let message = bytes(1, 64 * 1000);
    thread::scope(|scope| {
        scope.spawn(|| send(&mut out, &message, 1, Wait::NO_DEADLINE).expect("sends"));
        let mut buffer = Vec::new();
        inb.recv_into(&mut buffer, Wait::NO_DEADLINE).expect("comes");
        assert_eq!(buffer, message);
    });
    assert_eq!(backoffs.load(Ordering::Relaxed), 0, "a well-formed peer was taken for a hostile one");
}

/// A wait policy that spins for longer than a well-formed peer takes.
struct Patient;

impl WaitPolicy for Patient {
    fn active(&mut self) {}

    fn spin(&mut self, _deadline: Deadline, look: impl Fn() -> bool) -> bool {
        (0..1_000_000).any(|_| {
            thread::yield_now();
            look()
        })
    }

    fn slept(&mut self) {}
}

#[test]
fn flags_are_cleared_when_a_call_ends() {
    let (mut out, mut inb, heap) = ring(1, 64, 0);
    assert_eq!(inb.recv(&mut [], at_once()).map(|_| ()), Err(RecvCoreError::Empty));
    put(&mut out, b"", 0);
    assert_eq!(send(&mut out, b"", 0, at_once()), Err(SendCoreError::Full));
    assert_eq!([Flag::Consumer, Flag::Producer].map(|flag| heap.load_flag(flag)), [0, 0]);
}

#[test]
fn a_message_that_needs_more_tickets_than_are_left_does_not_begin() {
    let (mut out, mut inb, _heap) = ring(8, 4096, LAST_TICKET - 1);
    let long = bytes(1, 9999);
    assert_eq!(send(&mut out, &long, 0, Wait::NO_DEADLINE), Err(SendCoreError::Exhausted));
    assert_eq!(send(&mut out, &long, 0, Wait::Never), Err(SendCoreError::Exhausted));
    for tag in [1, 2] {
        put(&mut out, b"short", tag);
        assert_eq!(take(&mut inb), (b"short".to_vec(), tag));
    }
    assert_eq!(send(&mut out, b"", 0, Wait::NO_DEADLINE), Err(SendCoreError::Exhausted));
}
