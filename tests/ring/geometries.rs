//! One direction in private memory: every geometry, every first ticket, odd sizes, and the deferred head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use crate::support::rings::{at_once, head, over, put, ring, send, take, try_take};
use crate::support::spied::{Did, Spied};
use crate::support::{Watchdog, bytes, check};
use narrows::internal::layout::{LAST_TICKET, SlotKind};
use narrows::internal::memory::{
    ARENA_ALIGN, Field, Flag, Heap, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Store, Word,
};
use narrows::internal::ring::{
    CloseReason, Consumer, OobSender, Producer, ReserveError, WaitSlot, close, closed, load_doorbell,
    load_oob, park,
};
use narrows::internal::{ConnectionError, RecvCoreError, SendCoreError, Wait};

const SIZES: [usize; 22] =
    [0, 1, 7, 8, 9, 15, 26, 40, 41, 63, 64, 65, 103, 104, 105, 127, 128, 129, 300, 1000, 4096, 4097];

/// Sends a message of every size from one thread to another, and returns the number of messages sent.
fn transfer(slots: usize, arena: usize, first: u64) -> u64 {
    let (mut out, mut inb, _heap) = ring(slots, arena, first);
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut sent = 0;
            for (seed, size) in (0..).zip(SIZES) {
                match send(&mut out, &bytes(seed, size), seed, Wait::NO_DEADLINE) {
                    Ok(len) => assert_eq!(len, size),
                    Err(fault) => {
                        assert_eq!(fault, SendCoreError::Exhausted);
                        break;
                    }
                }
                sent += 1;
            }
            out.ring().close();
            sent
        });
        let mut received = 0;
        let mut buffer = Vec::new();
        loop {
            match inb.recv_into(&mut buffer, Wait::NO_DEADLINE) {
                Ok(message) => {
                    assert_eq!(message.tag, received);
                    check(received, SIZES[usize::try_from(received).expect("few")], &buffer);
                    received += 1;
                }
                Err(fault) => {
                    assert_eq!(fault, RecvCoreError::Ended(ConnectionError::Disconnected));
                    break;
                }
            }
        }
        let sent = sender.join().expect("sends");
        assert_eq!(sent, received, "slots {slots}, arena {arena}, first {first}");
        sent
    })
}

#[test]
fn every_geometry_carries_every_size_from_every_first_ticket() {
    let _watch = Watchdog::new("every geometry");
    for slots in [1, 2, 4, 8, 256] {
        let near = slots as u64;
        for arena in [64, 128, 4096, 1 << 20] {
            for first in [0, 1, near - 1, near, 1 << 32, 1 << 62] {
                assert_eq!(transfer(slots, arena, first), SIZES.len() as u64);
            }
            for left in [0, 1, 2, 3, 15, near] {
                assert!(transfer(slots, arena, LAST_TICKET - left) <= left + 1);
            }
        }
    }
}

#[test]
fn the_last_ticket_is_used_and_then_no_more() {
    for slots in [1, 2, 4] {
        for left in 0..6 {
            let (mut out, mut inb, _heap) = ring(slots, 128, LAST_TICKET - left);
            for seed in 0..=left {
                put(&mut out, &bytes(seed, 5), seed);
                assert_eq!(take(&mut inb), (bytes(seed, 5), seed));
            }
            for _ in 0..3 {
                assert_eq!(send(&mut out, b"", 0, Wait::Never), Err(SendCoreError::Exhausted));
                assert_eq!(send(&mut out, &[1; 500], 0, Wait::NO_DEADLINE), Err(SendCoreError::Exhausted));
                assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
            }
            assert!(!inb.is_ready());
            out.ring().close();
            assert_eq!(try_take(&mut inb), Err(RecvCoreError::Ended(ConnectionError::Disconnected)));
        }
    }
}

#[test]
fn a_long_message_that_meets_the_last_ticket_is_never_delivered() {
    let (mut out, mut inb, _heap) = ring(4, 256, LAST_TICKET - 1);
    assert_eq!(send(&mut out, &[7; 600], 0, Wait::NO_DEADLINE), Err(SendCoreError::Exhausted));
    assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
    out.ring().close();
    assert_eq!(try_take(&mut inb), Err(RecvCoreError::Ended(ConnectionError::Disconnected)));
}

#[test]
fn the_arena_wraps_at_every_offset() {
    let (arena, slots) = (1024_usize, 8);
    for step in (ARENA_ALIGN..=arena).step_by(ARENA_ALIGN) {
        for len in [105, 128, 129, 300, 511, 512, 513, 1000, 1024] {
            let (mut out, mut inb, _heap) = ring(slots, arena, 0);
            put(&mut out, &bytes(1, step.max(INLINE_CAPACITY + 1)), 1);
            put(&mut out, &bytes(2, 3), 2);
            // One message stays in the ring, so that the arena never restarts.
            take(&mut inb);
            for seed in 3..40 {
                match send(&mut out, &bytes(seed, len), seed, Wait::Never) {
                    Ok(_) => {}
                    Err(fault) => assert_eq!(fault, SendCoreError::Full),
                }
                let (message, tag) = take(&mut inb);
                check(tag, message.len(), &message);
                put(&mut out, &bytes(seed, 1), seed);
                while inb.ring().next_slot().expect("well-formed").is_some_and(|arrival| arrival.tag < seed) {
                    take(&mut inb);
                }
            }
        }
    }
}

#[test]
fn an_empty_ring_has_room_for_every_message_that_can_fit() {
    for slots in [1, 2, 4, 16] {
        for arena in [64_usize, 128, 1024, 4096] {
            let (mut out, mut inb, _heap) = ring(slots, arena, 0);
            for seed in 0..400 {
                let len = fastrand::Rng::with_seed(seed).usize(0..=arena.max(INLINE_CAPACITY));
                put(&mut out, &bytes(seed, len), seed);
                assert_eq!(take(&mut inb), (bytes(seed, len), seed));
            }
        }
    }
}

#[test]
fn a_payload_that_fits_into_a_slot_needs_no_arena() {
    let (mut out, mut inb, _heap) = ring(1, 64, 0);
    assert_eq!(out.in_place(), INLINE_CAPACITY);
    for len in 0..=INLINE_CAPACITY {
        put(&mut out, &bytes(9, len), 9);
        assert_eq!(take(&mut inb).0, bytes(9, len));
    }
}

#[test]
fn at_most_a_quarter_of_the_slots_stays_unpublished_and_none_when_the_ring_is_empty() {
    for slots in [1_u64, 2, 4, 8, 256] {
        let (mut out, mut inb, heap) = ring(usize::try_from(slots).expect("few"), 4096, 5);
        for round in 0..5 {
            let base = 5 + round * slots;
            (0..slots).for_each(|seed| put(&mut out, &bytes(seed, 8), seed));
            assert_eq!(send(&mut out, b"", 0, Wait::Never), Err(SendCoreError::Full));
            let mut most = 0;
            for done in 1..=slots {
                take(&mut inb);
                most = most.max(base + done - head(&heap));
                assert!(base + done - head(&heap) <= slots / 4, "too many releases are unpublished");
            }
            assert_eq!(most, slots / 4, "a head that is not deferred costs much of the rate");
            assert_eq!(head(&heap), base + slots, "all releases are published when the ring is empty");
        }
    }
}

#[test]
fn at_most_a_quarter_of_the_arena_stays_unpublished() {
    let (mut out, mut inb, heap) = ring(256, 4096, 0);
    for _ in 0..4 {
        (0..16).for_each(|seed| put(&mut out, &bytes(seed, 200), seed));
        let (base, mut most) = (head(&heap), 0);
        for done in 1..=16 {
            take(&mut inb);
            most = most.max(base + done - head(&heap));
        }
        assert_eq!(most * 256, 1024, "a quarter of the arena is unpublished, and no more");
        assert_eq!(head(&heap), base + 16);
    }
}

#[test]
fn a_producer_is_woken_by_the_release_that_it_needs_once_in_a_quarter_of_the_slots() {
    for wanted in 0..10 {
        let wakes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&wakes);
        let mem = Spied::new(Heap::new(8, 64, 1), move |_, did| {
            count.fetch_add(u32::from(did == Did::Wake(Flag::Producer)), Ordering::Relaxed);
        });
        let (mut out, mut inb) = over(&mem, 0);
        (0..8).for_each(|seed| put(&mut out, b"", seed));
        out.ring().announce_wait(wanted);
        for done in 1..=8 {
            mem.heap.store_flag(Flag::Producer, 1);
            take(&mut inb);
            let must = matches!(done, 3 | 6) && done > wanted;
            assert_eq!(wakes.swap(0, Ordering::Relaxed), u32::from(must), "{done} of 8, for {wanted}");
        }
    }
}

#[test]
fn a_reservation_is_private_until_it_is_published() {
    let (mut out, mut inb, heap) = ring(2, 256, 0);
    for len in [0, 50, 200] {
        let claim = out.reserve(len, Wait::Never).expect("room");
        assert_eq!(claim.is_empty(), len == 0);
        out.ring().mark_writing(&claim);
        assert_eq!(heap.load_slot(0, Field::Stamp, Load::Relaxed), 1, "being written");
        out.ring().write(&claim, 0, &bytes(1, len), Padding::Zero).expect("fits");
        out.describe_whole(&claim, len, 4);
        assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
        assert!(!inb.is_ready());
    }
    put(&mut out, &bytes(2, 130), 2);
    assert_eq!(take(&mut inb), (bytes(2, 130), 2));
    assert_eq!(heap.load_slot(1, Field::Stamp, Load::Relaxed), 0, "no second ticket was used");
}

#[test]
fn a_batch_is_published_together_and_a_dropped_one_not_at_all() {
    let (mut out, mut inb, _heap) = ring(8, 1 << 20, 0);
    for publish in [false, true, false, true] {
        let mut to = out.ring().next();
        for seed in 0..8 {
            let claim = out.stage(to, 40_000).expect("room");
            out.ring().mark_writing(&claim);
            out.ring().write(&claim, 0, &bytes(seed, 40_000), Padding::Zero).expect("fits");
            out.ring_mut().describe(&claim, SlotKind::Whole, 40_000, seed);
            to = claim.after();
        }
        assert_eq!(out.stage(to, 1).map(|_| ()), Err(SendCoreError::Full));
        assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
        if publish {
            out.publish(to, false);
            (0..8).for_each(|seed| assert_eq!(take(&mut inb), (bytes(seed, 40_000), seed)));
        } else {
            // The next message must not depend on how far the batch had looked ahead.
            put(&mut out, &bytes(3, 200), 3);
            assert_eq!(take(&mut inb), (bytes(3, 200), 3));
        }
    }
}

#[test]
fn writes_and_reads_outside_of_a_reservation_are_refused() {
    let (mut out, inb, _heap) = ring(2, 256, 0);
    for len in [0, 30, 200] {
        let claim = out.reserve(len, Wait::Never).expect("room");
        for at in [len + 1, usize::MAX] {
            assert_eq!(out.ring().write(&claim, at, b"", Padding::Keep), Err(OutOfBounds));
        }
        assert_eq!(out.ring().write(&claim, len, b"x", Padding::Keep), Err(OutOfBounds));
        assert_eq!(out.ring().write(&claim, 1, &vec![0; len], Padding::Keep), Err(OutOfBounds));
    }
    put(&mut out, b"four", 0);
    let arrival = inb.ring().next_slot().expect("well-formed").expect("there");
    for (at, len) in [(0, 5), (4, 1), (5, 0), (usize::MAX, 1), (usize::MAX, 0)] {
        assert_eq!(inb.ring().read(&arrival, at, &mut vec![0; len]), Err(OutOfBounds), "{len} at {at}");
    }
}

#[test]
fn a_slot_of_zeros_is_no_message() {
    for first in [0, 3, 1 << 40, LAST_TICKET - 1] {
        let (mut out, mut inb, heap) = ring(2, 1024, first);
        for seed in 0..2 {
            put(&mut out, &bytes(seed, 150), seed);
        }
        // A hole punched into the file leaves these zeros.
        for field in [Field::Stamp, Field::Control, Field::Tag] {
            heap.store_slot(first, field, 0, Store::Relaxed);
        }
        assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty));
        assert_eq!(inb.recv(&mut [0; 9], at_once()).map(|_| ()), Err(RecvCoreError::Empty));
    }
}

#[test]
fn oob_words_are_independent_and_the_doorbell_counts_them() {
    let (mut out, mut inb, heap) = ring(1, 64, 0);
    let mut oob_sender = OobSender::new(heap.clone());
    put(&mut out, b"the ring is full", 0);
    for (count, index) in (1..).zip([0, 3, 3, 4, u32::MAX]) {
        oob_sender.send_oob(index, u64::from(index) + 100);
        assert_eq!((load_oob(&heap, index), load_doorbell(&heap)), (u64::from(index) + 100, count));
    }
    assert_eq!(load_oob(&heap, 0), 104, "four words: the index is masked");
    assert_eq!(load_oob(&heap, 3), u64::from(u32::MAX) + 100);
    assert_eq!(take(&mut inb).0, b"the ring is full");
}

#[test]
fn a_fresh_ring_has_its_first_head() {
    let (_out, _inb, heap) = ring(1, 64, 77);
    assert_eq!(head(&heap), 77);
    Producer::format(&heap, 78);
    assert_eq!(head(&heap), 78);
}

#[test]
fn a_closed_flag_precedes_a_hang_up_and_a_death_but_not_our_own_close_reasons() {
    use ConnectionError::{Closed, Disconnected, PeerDied, ProtocolViolation};
    for (reason, alone, with_flag) in [
        (0, None, Disconnected),
        (CloseReason::Closed as u64, Some(Closed), Closed),
        (CloseReason::Disconnected as u64, Some(Disconnected), Disconnected),
        (CloseReason::Died as u64, Some(PeerDied), Disconnected),
        (CloseReason::Violated as u64, Some(ProtocolViolation), ProtocolViolation),
        (u64::MAX, Some(ProtocolViolation), ProtocolViolation),
    ] {
        let heap = Heap::new(1, 64, 1);
        assert_eq!(heap.set_close_reason(reason), reason);
        assert_eq!(closed(&heap, Word::ProducerClosed), alone, "{reason}");
        close(&heap, Word::ConsumerClosed, Flag::Producer);
        assert_eq!(closed(&heap, Word::ProducerClosed), alone, "{reason}: the closed flag of the other side");
        close(&heap, Word::ProducerClosed, Flag::Consumer);
        assert_eq!(closed(&heap, Word::ProducerClosed), Some(with_flag), "{reason}, with the closed flag");
    }
}

#[test]
fn a_wait_slot_is_armed_while_its_thread_looks_and_disarmed_when_it_returns() {
    let (one, two) = (Heap::new(1, 64, 1), Heap::new(1, 64, 1));
    let flags = || {
        let of = |heap: &Heap| [heap.load_flag(Flag::Consumer), heap.load_flag(Flag::Producer)];
        [of(&one), of(&two)]
    };
    for (wait_slot, armed) in [
        (WaitSlot::consumer(&one), [[1, 0], [0, 0]]),
        (WaitSlot::producer(&one), [[0, 1], [0, 0]]),
        (WaitSlot::either(&one, &two), [[1, 0], [0, 2]]),
    ] {
        assert_eq!(park(&wait_slot, None, 0, || Some(flags())), Some(armed));
        assert_eq!(flags(), [[0; 2]; 2], "disarmed: the look found something");
        assert_eq!(park(&wait_slot, Some(Instant::now()), 0, || None::<()>), None);
        assert_eq!(flags(), [[0; 2]; 2], "disarmed: the deadline passed");
    }
}

#[test]
fn a_thread_whose_flag_is_cleared_for_nothing_backs_off_from_the_65th_time_on() {
    let backoffs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&backoffs);
    let mem = Spied::new(Heap::new(1, 64, 1), move |_, did| {
        count.fetch_add(u32::from(did == Did::Backoff), Ordering::Relaxed);
    });
    let looks = AtomicU32::new(0);
    let looked = park(&WaitSlot::consumer(&mem), None, 0, || {
        mem.heap.store_flag(Flag::Consumer, 0);
        (looks.fetch_add(1, Ordering::Relaxed) == 100).then_some(())
    });
    assert_eq!((looked, backoffs.load(Ordering::Relaxed)), (Some(()), 100 - 64));
}

#[test]
fn a_wait_for_space_ends_when_there_is_space_or_never_will_be() {
    let (mut out, _inb, heap) = ring(2, 64, 5);
    let mut consumer = Consumer::new(heap.clone(), 5);
    (0..2).for_each(|seed| put(&mut out, b"", seed));
    assert!(!out.ring().is_released(5));
    let first = consumer.next_slot().expect("well-formed").expect("there");
    (0..2).for_each(|_| consumer.release(&first));
    assert_eq!((consumer.ticket(), head(&heap)), (6, 6), "nothing is released twice");
    assert!(out.ring().is_released(5) && !out.ring().is_released(6));
    heap.store(Word::Head, 4, Store::Relaxed);
    assert!(out.ring().is_released(6), "a violation, which the next reservation finds");
    heap.store(Word::Head, 6, Store::Relaxed);
    consumer.close();
    assert!(out.ring().is_released(6));
}

#[test]
fn a_message_that_never_fits_is_refused_and_the_remaining_tickets_are_counted() {
    let (_out, _inb, heap) = ring(4, 128, LAST_TICKET - 1);
    let mut producer = Producer::new(heap, LAST_TICKET - 1);
    for left in [2, 1] {
        assert_eq!(producer.remaining_tickets(), left);
        assert_eq!(producer.reserve(producer.next(), 129).map(|_| ()), Err(ReserveError::TooLarge));
        let claim = producer.reserve_fragment(producer.next(), 64).expect("room");
        producer.describe(&claim, SlotKind::Whole, 64, 0);
        producer.publish(claim.after(), false);
    }
    assert_eq!(producer.remaining_tickets(), 0);
    assert_eq!(producer.reserve(producer.next(), 0).map(|_| ()), Err(ReserveError::Exhausted));
}

/// Arena space that is written again and again stays in the caches of both CPUs. For long payloads that is slower.
#[test]
fn short_payloads_restart_the_arena_and_long_ones_cycle_through_it() {
    let offsets = |len: usize| {
        let (mut out, mut inb, _heap) = ring(16, 256 << 10, 0);
        let mut offset = |seed| {
            let claim = out.reserve(len, Wait::Never).expect("room");
            let narrows::internal::memory::Span::Arena(unit) = claim.span() else { panic!("in a slot") };
            put(&mut out, &bytes(seed, len), seed);
            assert_eq!(take(&mut inb), (bytes(seed, len), seed));
            unit as usize * ARENA_ALIGN
        };
        [offset(0), offset(1), offset(2)]
    };
    assert_eq!(offsets(32 << 10), [0, 0, 0]);
    assert_eq!(offsets((32 << 10) + 1), [0, (32 << 10) + 64, (64 << 10) + 128]);
    assert_eq!(offsets(128 << 10), [0, 128 << 10, 0]);
    assert_eq!(offsets(200 << 10), [0, 0, 0], "no other offset has room");
}
