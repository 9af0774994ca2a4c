//! Windows, ends and shutdown, as a server's workers and its connection's thread see them.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::ring::{CloseReason, on_peer_gone};
use super::super::code::rpc::server::{Body, Gone, Upload};
use super::super::code::rpc::wire::{Head, Kind, STREAM, UPLOAD, cost};
use super::super::code::{ConnectionError, Wait};
use super::server::{Client, FIRST, Methods, SECOND, Shared, attend, hall, kind, reply, runs, serve};
use super::{Named, named};
use crate::machine::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    one_that_is_asked_to_leave_looks_up,
    one_that_is_asked_to_leave_says_first_what_is_left,
    the_end_of_a_connection_reaches_all_who_wait,
    one_that_is_asked_to_leave_does_when_the_last_call_is_over,
    credit_reaches_a_stream_that_waits_for_it,
    credit_reaches_a_push_that_waits_for_it,
    a_cancel_reaches_a_stream_that_waits_for_its_window,
    an_upload_reaches_who_waits_for_it,
];

/// A stream whose window is full.
fn full_stream(hall: &Shared) {
    runs(hall, FIRST, STREAM);
    assert_eq!(hall.write_chunk(FIRST, &[1], None), Ok(()));
}

fn a_cancel_reaches_a_stream_that_waits_for_its_window() {
    let (a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    full_stream(&hall);
    let worker = hall.clone();
    let worker = thread::spawn(move || {
        let written = worker.write_chunk(FIRST, &[2], None);
        assert!(worker.is_cancelled(FIRST));
        written
    });
    serve(&hall, (a, b), &mut Methods::default(), |client| {
        client.cancels(FIRST);
        assert_eq!(worker.join().unwrap(), Err(Gone::Cancelled));
        assert_eq!([client.hears(), client.hears()].map(|frame| kind(&frame)), [Kind::Chunk, Kind::Error]);
    });
}

fn credit_reaches_a_stream_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    full_stream(&hall);
    let worker = hall.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    serve(&hall, (a, b), &mut Methods::default(), |client| {
        assert_eq!(client.hears().2, [1]);
        client.says(FIRST, Head::new(Kind::Credit, cost(1)));
        let (_, head, body) = client.hears();
        assert_eq!((head.seq, &*body), (1, &[2][..]));
    });
    assert_eq!(worker.join().unwrap(), Ok(()));
}

fn credit_reaches_a_push_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    assert_eq!(hall.push(&[1], Wait::Never), Ok(()));
    let worker = hall.clone();
    let worker = thread::spawn(move || worker.push(&[2], Wait::FOREVER));
    serve(&hall, (a, b), &mut Methods::default(), |client| {
        assert_eq!(client.hears().2, [1]);
        client.says(0, Head::new(Kind::Credit, cost(1)));
        assert_eq!(client.hears().2, [2]);
    });
    assert_eq!(worker.join().unwrap(), Ok(()));
}

fn an_upload_reaches_who_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    runs(&hall, FIRST, UPLOAD);
    let worker = hall.clone();
    let worker = thread::spawn(move || {
        let chunks = [(); 2].map(|()| worker.next_chunk(FIRST, None).unwrap());
        assert_eq!(chunks, [Upload::Chunk(vec![]), Upload::End]);
        reply(&worker, FIRST);
    });
    serve(&hall, (a, b), &mut Methods::default(), |client| {
        client.says(FIRST, Head { seq: 1, ..Head::new(Kind::Chunk, 0) });
        assert_eq!(client.hears().1, Head::new(Kind::Credit, cost(0)));
        client.says(FIRST, Head { seq: 2, ..Head::new(Kind::End, 0) });
        assert_eq!(kind(&client.hears()), Kind::Reply);
    });
    worker.join().unwrap();
}

fn the_end_of_a_connection_reaches_all_who_wait() {
    let (_a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    full_stream(&hall);
    let worker = hall.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    let dead = b.clone();
    let lifeline = thread::spawn(move || on_peer_gone(&dead.out, &dead.into, CloseReason::Died));
    assert_eq!(attend(&hall, &b, &mut Methods::default()), ConnectionError::PeerDied);
    assert_eq!(worker.join().unwrap(), Err(Gone::Ended(ConnectionError::PeerDied)));
    lifeline.join().unwrap();
    assert_eq!(hall.push(&[1], Wait::Never), Err(Gone::Ended(ConnectionError::PeerDied)));
    hall.finish(FIRST, Head::new(Kind::End, 0), Body::Lent(&[]));
    assert!(hall.is_cancelled(SECOND));
}

fn one_that_is_asked_to_leave_looks_up() {
    let (_a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    let over = Arc::new(AtomicBool::new(false));
    let mut methods = Methods { over: Some(over.clone()), hall: Some(hall.clone()), ..Methods::default() };
    let asks = hall.clone();
    let asks = thread::spawn(move || {
        over.store(true, Ordering::Relaxed);
        asks.nudge();
    });
    assert_eq!(attend(&hall, &b, &mut methods), ConnectionError::Closed);
    asks.join().unwrap();
}

fn one_that_is_asked_to_leave_does_when_the_last_call_is_over() {
    let (_a, b) = connection::<Cells>(2, 64); // For the reply and the goodbye.
    let hall = hall(&b);
    runs(&hall, FIRST, 0);
    let over = Arc::new(AtomicBool::new(false));
    let mut methods = Methods { over: Some(over.clone()), hall: Some(hall.clone()), ..Methods::default() };
    let (worker, draining) = (hall.clone(), over.clone());
    let worker = thread::spawn(move || {
        reply(&worker, FIRST);
        if draining.load(Ordering::Relaxed) {
            worker.nudge();
        }
    });
    let asks = hall.clone();
    let asks = thread::spawn(move || {
        over.store(true, Ordering::Relaxed);
        asks.nudge();
    });
    assert_eq!(attend(&hall, &b, &mut methods), ConnectionError::Closed);
    asks.join().unwrap();
    worker.join().unwrap();
}

fn one_that_is_asked_to_leave_says_first_what_is_left() {
    let (a, b) = connection::<Cells>(1, 64);
    let hall = hall(&b);
    runs(&hall, FIRST, 0);
    reply(&hall, FIRST);
    assert_eq!(hall.push(&[1], Wait::Never), Ok(()));
    let over = Some(Arc::new(AtomicBool::new(true)));
    let mut methods = Methods { over, hall: Some(hall.clone()), ..Methods::default() };
    let client = thread::spawn(move || {
        let mut client = Client::new(&a);
        // There is room for the goodbye when the push was taken.
        let frames = [client.hears(), client.hears(), client.hears()].map(|frame| kind(&frame));
        assert_eq!(frames, [Kind::Reply, Kind::Push, Kind::Goodbye]);
    });
    assert_eq!(attend(&hall, &b, &mut methods), ConnectionError::Closed);
    client.join().unwrap();
}
