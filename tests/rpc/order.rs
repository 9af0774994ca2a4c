//! Order between calls: cancels, credit and short calls overtake long messages.
//!
//! ```text
//!   client ◀══ a reply of 64 MiB, a fragment at a time ══ server      ring: 1 MiB
//!              a short reply waits for one fragment, not for 64 MiB
//!   client ── cancel: an out-of-band word ──▶ the method, the remainder of the reply
//! ```
//!
//! The tests judge by order, never by time: by how much of the long message arrives before the short one, and by what the
//! server has counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use narrows::internal::rpc::wire::{FrameKind, STREAM as STREAMS};
use narrows::{CallError, SharedMemoryClient, SharedMemoryServer};

use crate::support::calls::raw::{Raw, head};
use crate::support::calls::*;
use crate::support::eventually;

const BULK: usize = 64 << 20;

/// What may be in flight when a short message joins: both rings, what the server sends in one turn, and a margin.
const AHEAD: usize = 8 << 20;

/// The request for a stream of 64 MiB.
fn bulk() -> [u8; 8] {
    let mut request = [0; 8];
    request[..4].copy_from_slice(&1024_u32.to_le_bytes());
    request[4..].copy_from_slice(&(64_u32 << 10).to_le_bytes());
    request
}

/// Returns how many bytes of a long message a raw client receives before the answer to a short call that was sent after the
/// long message began.
fn bytes_before_a_short_answer(raw: &mut Raw, short: u32) -> usize {
    let mut before = raw.receive().expect("comes").body.len();
    raw.send(65, head(FrameKind::Call, 0, 0, short), b"short").expect("sends");
    loop {
        let frame = raw.receive().expect("comes");
        if frame.id == 65 {
            assert_eq!((frame.head.kind, &frame.body[..]), (FrameKind::Reply, &b"short"[..]));
            return before;
        }
        assert!(
            matches!(frame.head.kind, FrameKind::Reply | FrameKind::Chunk | FrameKind::Continuation),
            "{:?}",
            frame.head
        );
        before += frame.body.len();
    }
}

/// Returns whether the short answer came first in one of several attempts. On a busy machine a worker may wait for a CPU until
/// the whole long message is through, but not each time.
fn passes(mut bytes_before: impl FnMut() -> usize) -> bool {
    (0..20).any(|_| bytes_before() < AHEAD)
}

#[test]
fn a_short_answer_passes_a_long_reply() {
    let host = host!(options());
    for short in [ECHO, POOLED] {
        assert!(passes(|| {
            let mut raw = Raw::connect(&host.path, &options());
            raw.send(64, head(FrameKind::Call, 0, 0, BIG), &BULK.to_le_bytes()).expect("sends");
            bytes_before_a_short_answer(&mut raw, short)
        }));
    }
    host.end();
}

#[test]
fn a_short_answer_passes_a_long_stream() {
    let host = host!(options());
    for short in [ECHO, POOLED] {
        assert!(passes(|| {
            // A window that lets the whole stream be in flight.
            let mut raw = Raw::connect_with(&host.path, &options(), 1 << 30);
            raw.send(64, head(FrameKind::Call, STREAMS, 0, STREAM), &bulk()).expect("sends");
            bytes_before_a_short_answer(&mut raw, short)
        }));
    }
    host.end();
}

#[test]
fn short_calls_pass_a_long_reply_that_ends_soon_after_its_cancel() {
    let host = host!(options());
    let client = host.client();
    for round in 1..=3 {
        let long = client.start_call(BIG, &BULK.to_le_bytes()).expect("sends");
        host.sees("big", round);
        for i in 0..10 {
            assert_eq!(*client.call([ECHO, POOLED][i % 2], b"short").expect("answers"), *b"short");
        }
        drop(long);
        assert!(eventually(|| {
            client.call(ECHO, &[]).expect("answers");
            client.stats().in_flight == 0
        }));
        assert_eq!(client.stats().dropped_replies, 0, "it never came to its end");
    }
    host.end();
}

#[test]
fn a_cancelled_stream_ends_within_its_window() {
    let host = host!(options());
    let client = host.client();
    for round in 1..=3 {
        let before = host.seen("chunks");
        let mut stream = client.call_streaming(STREAM, &bulk()).expect("sends");
        for _ in 0..4 {
            assert_eq!(stream.next_chunk().expect("comes").map(|chunk| chunk.len()), Some(64 << 10));
        }
        drop(stream);
        host.sees("stream Cancelled", round);
        let written = host.seen("chunks") - before;
        assert!((4..64).contains(&written), "{written} chunks of 1024, with a window of 16");
    }
    host.end();
}

#[test]
fn a_cancel_arrives_while_the_ring_of_replies_is_full_and_unread() {
    let host = host!(options());
    let client = host.client();
    let long = [0; 4].map(|_| client.start_call(BIG, &BULK.to_le_bytes()).expect("sends"));
    let gate = client.start_call(GATE, &[]).expect("sends");
    host.sees("big", 4);
    host.sees("gate in", 1);
    drop(gate);
    host.sees("gate cancelled", 1);
    drop(long);
    assert_eq!(*client.call(ECHO, b"on").expect("goes on"), *b"on");
    host.end();
}

/// Adds a method that counts the long requests it serves, and an inline method that returns the count.
fn counting(server: SharedMemoryServer) -> SharedMemoryServer {
    let served = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&served);
    let count = move |request: &narrows::Request<'_>, _: &mut Vec<u8>| {
        assert_eq!(request.len(), BULK);
        served.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    server.method(100, count).inline(101, move |_, reply| {
        reply.extend_from_slice(&seen.load(Ordering::Relaxed).to_le_bytes());
        Ok(())
    })
}

fn served(client: &SharedMemoryClient) -> u64 {
    u64::from_le_bytes(client.call(101, &[]).expect("answers")[..].try_into().expect("a number"))
}

/// Ten short calls are answered while a long request is in flight. On a busy machine the long one may be over before the first
/// of them begins. If the long one held them up, the second short call would find it served, each time.
#[test]
fn short_calls_pass_a_long_request() {
    let host = host!(options(), counting);
    let (client, long) = (host.client(), vec![1; BULK]);
    let passed = (0..50).any(|round| {
        assert_eq!(served(&client), round);
        thread::scope(|scope| {
            let caller = scope.spawn(|| client.call(100, &long).map(drop));
            while client.stats().in_flight == 0 && !caller.is_finished() {}
            let passed = (0..10).all(|_| served(&client) == round);
            caller.join().expect("ends").expect("answers");
            passed
        })
    });
    assert!(passed, "never");
    host.end();
}

#[test]
fn a_request_that_is_abandoned_half_way_is_never_served() {
    let host = host!(options(), counting);
    let (client, long) = (host.client(), vec![1; BULK]);
    let mut answered = 0;
    for micros in [0, 10, 100, 300, 1000, 3000, 10_000, 30_000] {
        match client.call_timeout(100, &long, Duration::from_micros(micros)) {
            Ok(_) => answered += 1,
            Err(error) => assert!(matches!(error, CallError::Timeout), "{error:?}"),
        }
        assert_eq!(*client.call(POOLED, b"on").expect("goes on"), *b"on");
    }
    assert!(eventually(|| {
        client.call(ECHO, &[]).expect("answers");
        client.stats().in_flight == 0
    }));
    // A request that had arrived whole may have been served although its caller was gone, but never a part of one.
    assert!((answered..=8).contains(&served(&client)));
    assert_eq!(host.stat("panicked"), 0);
    host.end();
}

#[test]
fn calls_of_one_thread_to_inline_methods_are_served_in_order() {
    let host = host!(options(), |server: SharedMemoryServer| {
        let all = Mutex::new(Vec::new());
        server.inline(100, move |request, reply| {
            let mut all = all.lock().expect("whole");
            all.extend_from_slice(request.bytes());
            if request.is_empty() {
                reply.append(&mut all);
            }
            Ok(())
        })
    });
    for client in rings().map(|options| host.client_with(&options)) {
        let words: Vec<Vec<u8>> = (0..200_u8).map(|i| vec![i; usize::from(i) * 3 + 1]).collect();
        for (i, word) in words.iter().enumerate() {
            match i % 2 {
                0 => client.notify(100, word).expect("sends"),
                _ => drop(client.call(100, word).expect("answers")),
            }
        }
        assert_eq!(*client.call(100, &[]).expect("answers"), words.concat());
    }
    host.end();
}

#[test]
fn streams_and_pushes_keep_their_order_however_many_there_are() {
    let host = host!(options());
    let [_, small, usual] = rings();
    for (options, streams) in [(small, 2), (usual, 8)] {
        let client = host.client_with(&options.stream_window(2000));
        thread::scope(|scope| {
            for _ in 0..streams {
                scope.spawn(|| {
                    let request = [300_u32.to_le_bytes(), 500_u32.to_le_bytes()].concat();
                    let mut next = 0_u32;
                    for chunk in client.call_streaming(STREAM, &request).expect("sends") {
                        assert_eq!(chunk.expect("comes")[..4], next.to_le_bytes());
                        next += 1;
                    }
                    assert_eq!(next, 300);
                });
            }
        });
        for i in 0..500_u32 {
            client.notify(PUSH, &i.to_le_bytes()).expect("sends");
        }
        for i in 0..500_u32 {
            assert_eq!(client.next_push().expect("comes"), i.to_le_bytes());
        }
    }
    host.end();
}
