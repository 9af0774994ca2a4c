//! Calls in flight: many from one thread, in any order; calls that are late, cancelled, or taken.

use std::thread;
use std::time::Duration;

use narrows::{CallError, SharedMemoryServer};

use crate::support::calls::{
    DUPLEX, ECHO, GATE, GATED_STREAM, GATED_UPLOAD, POOLED, STREAM, UPLOAD, host, options, rings,
};
use crate::support::{LONG, eventually};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn many_calls_of_one_thread_are_taken_in_any_order() {
    let host = host!(options());
    for (options, slots) in rings().iter().zip([1, 2, 64]) {
        let client = host.client_with(options);
        let start = |i: u8| (i, client.start_call(POOLED, &[i; 300]).expect("sends"));
        let mut calls: Vec<_> = (0..slots).map(start).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut calls);
        assert!(calls.iter().all(|(i, call)| call.id() > u64::from(*i)));
        for (i, call) in calls {
            assert_eq!(*call.wait().expect("answers"), [i; 300]);
        }
        // As many again, the last first.
        let mut calls: Vec<_> = (0..slots).map(start).collect();
        while let Some((i, mut call)) = calls.pop() {
            assert_eq!(*call.wait_timeout(LONG).expect("answers"), [i; 300]);
        }
        assert_eq!((client.stats().in_flight, client.stats().calls), (0, 2 * u64::from(slots)));
    }
    host.end();
}

#[test]
fn one_call_too_many_waits_for_another_to_end() {
    let mut host = host!(options(), |server: SharedMemoryServer| server.max_calls_in_flight(2));
    let client = host.client();
    let calls = [b"1", b"2"].map(|request| client.start_call(GATE, request).expect("sends"));
    let late = client.call_timeout(ECHO, &[], SHORT);
    assert!(matches!(late, Err(CallError::Timeout)), "{late:?}");
    assert_eq!(client.stats().calls, 2, "it was not sent");
    thread::scope(|scope| {
        let third = scope.spawn(|| client.call(ECHO, b"3"));
        host.send("open");
        assert_eq!(*third.join().expect("ends").expect("gets its turn"), *b"3");
    });
    // The first two have ended, although the client did not take their replies.
    assert_eq!(calls.map(|call| call.wait().expect("answers").into_vec()), [b"1", b"2"]);
    host.end();
}

#[test]
fn one_thread_starts_more_calls_than_there_are_slots_before_it_waits() {
    let host = host!(options());
    for options in rings() {
        let client = host.client_with(&options);
        let start = |i: u16| client.start_call(POOLED, &i.to_le_bytes()).expect("sends");
        let calls: Vec<_> = (0..300).map(start).collect();
        let mut stream = client.call_streaming(STREAM, &[3, 0, 0, 0, 4, 0, 0, 0]).expect("sends");
        let dropped = (300..310).map(start).collect::<Vec<_>>();
        let more: Vec<_> = (310..600).map(start).collect();
        drop(dropped);
        for (i, call) in (0..300).chain(310..600).zip(calls.into_iter().chain(more)) {
            assert_eq!(*call.wait().expect("answers"), u16::to_le_bytes(i));
        }
        let chunk = |i: u8| vec![i, 0, 0, 0];
        let chunks: Vec<_> = stream.by_ref().map(|chunk| chunk.expect("comes")).collect();
        assert_eq!(chunks, [chunk(0), chunk(1), chunk(2)]);
        assert_eq!((client.stats().in_flight, client.stats().dropped_replies), (0, 10));
    }
    host.end();
}

#[test]
fn after_a_timeout_a_call_is_still_under_way() {
    let mut host = host!(options());
    let client = host.client();
    let mut call = client.start_call(GATE, b"late").expect("sends");
    assert!(matches!(call.try_wait(), Err(CallError::WouldBlock)));
    assert!(matches!(call.wait_timeout(SHORT), Err(CallError::Timeout)));
    assert!(matches!(call.wait_timeout(Duration::ZERO), Err(CallError::Timeout)));
    assert!(matches!(call.try_wait(), Err(CallError::WouldBlock)));
    assert_eq!(host.seen("gate cancelled"), 0);
    let mut stream = client.call_streaming(GATED_STREAM, b"first").expect("sends");
    assert_eq!(stream.next_chunk_timeout(LONG).expect("comes"), Some(b"first".to_vec()));
    assert!(matches!(stream.next_chunk_timeout(SHORT), Err(CallError::Timeout)));
    assert!(matches!(stream.try_next_chunk(), Err(CallError::WouldBlock)));
    host.send("open");
    assert_eq!(stream.next_chunk().expect("ends"), None);
    let mut reply = Err(CallError::WouldBlock);
    assert!(eventually(|| {
        reply = call.try_wait();
        !matches!(reply, Err(CallError::WouldBlock))
    }));
    assert_eq!(*reply.expect("answers"), *b"late");
    host.end();
}

#[test]
fn a_reply_is_taken_once() {
    let host = host!(options());
    let client = host.client();
    let mut call = client.start_call(ECHO, b"once").expect("sends");
    assert_eq!(*call.wait_timeout(LONG).expect("answers"), *b"once");
    assert!(matches!(call.wait_timeout(LONG), Err(CallError::Taken)));
    assert!(matches!(call.try_wait(), Err(CallError::Taken)));
    assert!(matches!(call.wait(), Err(CallError::Taken)));
    let mut call = client.start_call(999, &[]).expect("sends");
    assert!(matches!(call.wait_timeout(LONG), Err(CallError::UnknownMethod)));
    assert!(matches!(call.wait_timeout(LONG), Err(CallError::Taken)), "an error comes once too");
    host.end();
}

#[test]
fn a_call_that_timed_out_is_cancelled_and_its_slot_is_free_again() {
    let host = host!(options(), |server: SharedMemoryServer| server.max_calls_in_flight(1));
    let client = host.client();
    for i in 1..=3 {
        let late = client.call_timeout(GATE, &[], SHORT);
        assert!(matches!(late, Err(CallError::Timeout)), "{late:?}");
        // There is one slot. The next call gets it once the server has reported the end of the last.
        assert_eq!(*client.call(ECHO, b"next").expect("answers"), *b"next");
        assert_eq!(client.stats().in_flight, 0, "{i}");
    }
    // Each of them was cancelled before its method ran, or its method has seen it.
    host.sees("gate cancelled", host.seen("gate in"));
    assert_eq!(host.seen("gate out"), 0);
    host.end();
}

#[test]
fn a_reply_to_an_abandoned_call_is_dropped_and_counted() {
    let host = host!(options(), |server: SharedMemoryServer| server.workers(1).max_calls_in_flight(2));
    let (client, other) = (host.client(), host.client());
    // The only worker has answered what came before, once it has answered this.
    let answered = || drop(other.call(POOLED, &[]).expect("answers"));
    let calls = [b"1", b"2"].map(|request| client.start_call(POOLED, request).expect("sends"));
    host.sees("pooled", 2);
    answered();
    let [first, second] = calls;
    drop(first);
    assert_eq!(client.stats().dropped_replies, 0, "it has not arrived yet");
    assert_eq!(*second.wait().expect("answers"), *b"2");
    assert_eq!(*client.call(ECHO, b"3").expect("answers"), *b"3");
    assert_eq!((client.stats().dropped_replies, client.stats().in_flight), (1, 0));
    // A reply that has already arrived when its call is dropped.
    let waste = client.start_call(POOLED, b"4").expect("sends");
    host.sees("pooled", 4);
    answered();
    client.call(ECHO, b"reads for both").expect("answers");
    drop(waste);
    assert_eq!((client.stats().dropped_replies, client.stats().in_flight), (2, 0));
    host.end();
}

#[test]
fn a_call_stream_or_upload_that_is_dropped_is_cancelled_at_the_server() {
    let host = host!(options());
    let client = host.client();
    drop(client.start_call(GATE, &[]).map(|call| (host.sees("gate in", 1), call)));
    host.sees("gate cancelled", 1);
    let mut stream = client.call_streaming(STREAM, &endless_stream()).expect("sends");
    stream.next_chunk().expect("comes");
    stream.cancel();
    host.sees("stream Cancelled", 1);
    let upload = client.start_upload(GATED_UPLOAD, &[]).expect("sends");
    host.sees("gated upload in", 1);
    upload.cancel();
    host.sees("gated upload cancelled", 1);
    let mut upload = client.start_upload(UPLOAD, &[]).expect("sends");
    upload.write_chunk(b"some").expect("sends");
    host.sees("upload in", 1);
    drop(upload);
    host.sees("upload Cancelled", 1);
    let (mut up, mut down) = client.start_duplex(DUPLEX, &[]).expect("sends");
    up.write_chunk(b"there").expect("sends");
    assert_eq!(down.next_chunk().expect("and back"), Some(b"there".to_vec()));
    drop((up, down));
    host.sees("duplex Cancelled", 1);
    assert!(eventually(|| {
        client.call(ECHO, &[]).expect("lives");
        client.stats().in_flight == 0
    }));
    host.end();
}

#[test]
fn a_duplex_whose_upload_is_dropped_ends_with_cancelled() {
    let host = host!(options());
    for client in rings().map(|options| host.client_with(&options)) {
        for waits in [false, true] {
            let (mut up, mut down) = client.start_duplex(DUPLEX, &[]).expect("sends");
            up.write_chunk(b"one").expect("sends");
            assert_eq!(down.next_chunk().expect("comes"), Some(b"one".to_vec()));
            let end = thread::scope(|scope| {
                if !waits {
                    drop(up);
                    return down.next_chunk();
                }
                let reader = scope.spawn(move || down.next_chunk());
                thread::sleep(SHORT); // The duplex waits by now, or soon will. It has to end in both cases.
                drop(up);
                reader.join().expect("ends")
            });
            assert!(matches!(end, Err(CallError::Cancelled)), "{end:?}");
        }
    }
    host.end();
}

#[test]
fn an_upload_that_waits_for_room_ends_when_its_call_is_cancelled_elsewhere() {
    let host = host!(options(), |server: SharedMemoryServer| {
        server.duplex(100, |request, chunks, _| {
            while !request.is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            crate::support::calls::note("deaf cancelled");
            chunks.next_chunk().map(drop).map_err(Into::into)
        })
    });
    let client = host.client();
    let (mut up, down) = client.start_duplex(100, &[]).expect("sends");
    thread::scope(|scope| {
        // A third thread is the leader and reads for all.
        scope.spawn(|| client.next_push().expect_err("no push comes"));
        let writer = scope.spawn(move || (0..1000).find_map(|_| up.write_chunk(&[1; 50_000]).err()));
        thread::sleep(SHORT); // The writer waits by now, or soon will. It has to end in both cases.
        drop(down);
        let end = writer.join().expect("ends");
        assert!(matches!(end, Some(CallError::Cancelled)), "{end:?}");
        host.sees("deaf cancelled", 1);
        client.close();
    });
    host.end();
}

#[test]
fn a_call_that_is_dropped_while_it_waits_for_a_worker_never_runs() {
    let host = host!(options(), |server: SharedMemoryServer| {
        server.workers(1).method(100, |_, _| {
            crate::support::calls::note("ran");
            Ok(())
        })
    });
    let client = host.client();
    let first = client.start_call(GATE, b"1").expect("sends");
    host.sees("gate in", 1);
    let waste: Vec<_> = (0..10).map(|_| client.start_call(100, &[]).expect("sends")).collect();
    drop(waste);
    host.client().call(crate::support::calls::OPEN, &[]).expect("answers");
    assert_eq!(*first.wait().expect("answers"), *b"1");
    assert_eq!(*client.call(POOLED, b"last in the queue").expect("answers"), *b"last in the queue");
    assert_eq!(host.seen("ran"), 0);
    host.end();
}

/// The request for a stream that does not end by itself.
fn endless_stream() -> [u8; 8] {
    let mut request = [0xFF; 8];
    request[4..].copy_from_slice(&1000_u32.to_le_bytes());
    request
}
