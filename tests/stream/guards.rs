//! Guards and reservations that are dropped, forgotten, half used, or open while the user's code panics.

use std::io::{Read, Write};
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, sleep};
use std::time::Duration;

use crate::support::{Watchdog, bytes, check};
use narrows::{
    ConnectionError, Options, RecvError, SendError, SendTimeoutError, SharedMemoryStream, TryRecvError,
    TrySendError,
};

const MOMENT: Duration = Duration::from_millis(30);
const LONG: usize = 300 << 10; // It is fragmented, and borrowed from private memory.

/// A call that receives the next message and returns its length.
type Call = fn(&mut SharedMemoryStream) -> usize;

fn pair(slots: u32) -> (SharedMemoryStream, SharedMemoryStream) {
    Options::new().slots(slots).pair().expect("pairs")
}

fn next(stream: &mut SharedMemoryStream) -> Vec<u8> {
    let mut buffer = Vec::new();
    stream.try_recv_into(&mut buffer).expect("a message is there");
    buffer
}

fn panics(body: impl FnOnce()) {
    let hook = catch_unwind(AssertUnwindSafe(body)).expect_err("panics");
    assert_eq!(hook.downcast_ref(), Some(&"user code"));
}

#[test]
fn a_forgotten_guard_is_released_by_the_next_call_and_its_message_never_comes_twice() {
    for len in [0, 50, 5000, LONG] {
        let (mut a, mut b) = pair(8);
        let calls: [(&str, Call); 5] = [
            ("recv", |b| b.recv(&mut [0; 9]).expect("next").len),
            ("recv_into", |b| b.recv_into(&mut Vec::new()).expect("next").len),
            ("recv_ref", |b| b.recv_ref().expect("next").len()),
            ("iter", |b| b.iter().next().expect("next").expect("well-formed").len()),
            ("try_iter", |b| b.try_iter().next().expect("next").len()),
        ];
        for (name, call) in calls {
            a.try_send(&bytes(1, len)).expect("room");
            a.try_send(b"next").expect("room");
            let guard = b.recv_ref().expect("there");
            check(1, len, &guard.to_vec().expect("ours"));
            forget(guard);
            assert_eq!(call(&mut b), 4, "{name} after {len} bytes");
            assert_eq!(b.try_recv(&mut []), Err(TryRecvError::WouldBlock));
        }
        // A wait does not mistake the forgotten message for a new one.
        a.try_send(&bytes(1, len)).expect("room");
        forget(b.recv_ref().expect("there"));
        while b.try_send(b"filler").is_ok() {}
        assert_eq!(b.wait_either_timeout(1, MOMENT / 30), Err(SendTimeoutError::Timeout));
    }
}

#[test]
fn a_guard_reads_what_it_has_and_nothing_else() {
    for len in [0, 50, 5000, LONG] {
        let (mut a, mut b) = pair(8);
        a.send_tagged(&bytes(3, len), 33).expect("room");
        let mut guard = b.recv_ref().expect("there");
        assert_eq!((guard.len(), guard.is_empty(), guard.tag()), (len, len == 0, 33));
        for (at, count) in [(len, 1), (len + 1, 0), (usize::MAX, 1), (0, len + 1)] {
            assert!(guard.read_at(at, &mut vec![0; count]).is_err(), "{count} at {at} of {len}");
        }
        guard.read_at(len, &mut []).expect("nothing, at the end");
        let mut all = Vec::new();
        guard.read_to_end(&mut all).expect("reads");
        check(3, len, &all);
        assert_eq!(guard.read(&mut [0; 3]).expect("at its end"), 0);
        assert_eq!(guard.raw().expect("ours").len(), len);
        guard.finish().expect("the message was not modified");
    }
}

#[test]
fn a_reservation_that_is_not_committed_is_nothing() {
    for slots in [1, 2, 8] {
        let (mut a, mut b) = pair(slots);
        for len in [0, 50, 104, 105, 70_000, a.max_in_place()] {
            // It has no destructor, so that a forgotten one is a dropped one.
            let mut room = a.reserve(len).expect("room");
            room.write_all(&bytes(4, len)).expect("fits");
            drop(room);
            assert_eq!(b.try_recv(&mut []), Err(TryRecvError::WouldBlock));
            let mut room = a.try_reserve(len).expect("the room is still there");
            room.write_all(&bytes(5, len)).expect("fits");
            room.commit().expect("alive");
            check(5, len, &next(&mut b));
            a.try_send(&bytes(6, len.min(256 << 10))).expect("and after it");
            check(6, len.min(256 << 10), &next(&mut b));
        }
    }
}

#[test]
fn less_than_was_reserved_can_be_committed_and_more_cannot() {
    let (mut a, mut b) = pair(4);
    for len in [0_usize, 1, 7, 40, 104, 105, 1000, 70_000] {
        for part in [0, 1, len / 2, len.saturating_sub(1), len] {
            let mut room = a.reserve(len).expect("room");
            room.set_tag(6);
            room.write_at(0, &bytes(6, len)).expect("fits");
            assert!(room.write_at(1, &bytes(6, len)).is_err());
            assert!(room.write_at(usize::MAX, b"x").is_err());
            room.commit_len(part.min(len)).expect("alive");
            let guard = b.try_recv_ref().expect("there");
            assert_eq!(guard.tag(), 6);
            assert_eq!(guard.to_vec().expect("ours"), bytes(6, len)[..part.min(len)]);
        }
        let room = a.reserve(len).expect("room");
        assert_eq!(room.commit_len(len + 1), Err(SendError::TooLarge { len: len + 1, max: len }));
        assert_eq!(b.try_recv(&mut []), Err(TryRecvError::WouldBlock));
    }
    let most = a.max_in_place();
    let refused = a.try_reserve(most + 1).map(|_| ());
    assert_eq!(refused, Err(TrySendError::TooLarge { len: most + 1, max: most }));
    let mut room = a.reserve(5).expect("room");
    assert_eq!(room.write(b"1234567").expect("a part"), 5);
    assert_eq!((room.written(), room.len(), room.write(b"x").expect("none")), (5, 5, 0));
    room.commit_written().expect("alive");
    assert_eq!(next(&mut b), b"12345");
}

#[test]
fn a_forgotten_batch_publishes_nothing_of_what_it_had_not_flushed() {
    let (mut a, mut b) = pair(16);
    for round in 0..3 {
        let mut batch = a.batch();
        batch.push(b"flushed").expect("room");
        batch.flush().expect("alive");
        assert_eq!(next(&mut b), b"flushed");
        for seed in 0..10 {
            batch.push(&bytes(seed, 60_000)).expect("room");
        }
        assert_eq!(batch.pending(), 10);
        forget(batch);
        assert_eq!(b.try_recv(&mut []), Err(TryRecvError::WouldBlock));
        a.try_send(&bytes(round, 300)).expect("room");
        check(round, 300, &next(&mut b));
        let mut batch = a.batch();
        batch.push_tagged(&bytes(7, 200), 7).expect("room");
        drop(batch);
        check(7, 200, &next(&mut b));
    }
    assert_eq!((a.stats().messages_sent, b.stats().messages_received), (9, 9));
}

#[test]
fn a_batch_larger_than_the_ring_is_flushed_in_parts() {
    let _watch = Watchdog::new("a large batch");
    for (slots, arena) in [(1, 64), (2, 4096), (8, 4096), (256, 1 << 20)] {
        let (mut a, mut b) = Options::new().slots(slots).arena(arena).pair().expect("pairs");
        let sizes = || (0..1500).map(|seed: u64| (seed, fastrand::Rng::with_seed(seed).usize(..300)));
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut batch = a.batch();
                for (seed, len) in sizes() {
                    batch.push_tagged(&bytes(seed, len), seed).expect("sends");
                }
            });
            let mut buffer = Vec::new();
            for (seed, len) in sizes() {
                assert_eq!(b.recv_into(&mut buffer).expect("comes").tag, seed);
                check(seed, len, &buffer);
            }
            assert_eq!(b.recv(&mut []), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
        });
    }
}

#[test]
fn a_full_ring_leaves_a_batch_what_it_was() {
    let (mut a, mut b) = pair(4);
    let mut batch = a.batch();
    for index in 0..4 {
        batch.try_push(&[index; 3]).expect("room");
    }
    assert_eq!(batch.try_push(b"fifth"), Err(TrySendError::WouldBlock));
    let late = batch.push_timeout(b"fifth", MOMENT / 10);
    assert_eq!(late, Err(SendTimeoutError::Timeout));
    assert_eq!(batch.pending(), 0, "what was staged went out to make room");
    drop(batch);
    assert_eq!(b.try_iter().collect::<Vec<_>>(), [[0; 3], [1; 3], [2; 3], [3; 3]]);
}

#[test]
fn a_panic_with_an_open_guard_leaves_no_thread_asleep() {
    let _watch = Watchdog::new("panics");
    let (mut a, mut b) = pair(4);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let guard = b.recv_ref().expect("comes");
            assert_eq!(guard.to_vec().expect("ours"), b"pushed");
            panics(|| {
                let _open = &guard;
                panic!("user code");
            });
        });
        sleep(MOMENT);
        panics(|| {
            let mut batch = a.batch();
            batch.push(b"pushed").expect("room");
            panic!("user code");
        });
        receiver.join().expect("ends");
    });
    panics(|| {
        let mut room = a.reserve(100).expect("room");
        room.write_all(b"half").expect("fits");
        panic!("user code");
    });
    assert_eq!(b.try_recv(&mut []), Err(TryRecvError::WouldBlock));
    while a.try_send(b"full").is_ok() {}
    thread::scope(|scope| {
        let sender = scope.spawn(|| a.send(b"last"));
        sleep(MOMENT);
        for _ in 0..4 {
            panics(|| {
                let _guard = b.recv_ref().expect("there");
                panic!("user code");
            });
        }
        sender.join().expect("ends").expect("the panics made room");
    });
    assert_eq!(next(&mut b), b"last");
}

#[test]
fn a_short_buffer_keeps_the_message_and_the_length() {
    let (mut a, mut b) = pair(8);
    for len in [1, 50, 5000, LONG] {
        a.send(&bytes(8, len)).expect("room");
        for short in [0, len - 1] {
            let fault = b.recv(&mut vec![0; short]);
            assert_eq!(fault, Err(RecvError::BufferTooSmall { needed: len }));
        }
        let mut buffer = vec![0; len + 3];
        assert_eq!(b.recv(&mut buffer).expect("kept").len, len);
        check(8, len, &buffer[..len]);
        assert_eq!(buffer[len..], [0; 3]);
    }
}
