//! Windows, ends and shutdown, as a server's workers and its connection's thread see them.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::ring::{CloseReason, on_peer_gone};
use super::super::code::rpc::server::{Payload, RespondError, UploadItem};
use super::super::code::rpc::wire::{FrameHeader, FrameKind, STREAM, UPLOAD, window_cost};
use super::super::code::{ConnectionError, Wait};
use super::server::{
    Client, FIRST, Methods, SECOND, Shared, attend, kind, reply, runs, serve, server_connection,
};
use super::{Named, named};
use crate::memory::{Cells, connection};

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
fn full_stream(connection: &Shared) {
    runs(connection, FIRST, STREAM);
    assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()));
}

fn a_cancel_reaches_a_stream_that_waits_for_its_window() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        let written = worker.write_chunk(FIRST, &[2], None);
        assert!(worker.is_cancelled(FIRST));
        written
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.cancels(FIRST);
        assert_eq!(worker.join().unwrap(), Err(RespondError::Cancelled));
        assert_eq!(
            [client.hears(), client.hears()].map(|frame| kind(&frame)),
            [FrameKind::Chunk, FrameKind::Error]
        );
    });
}

fn credit_reaches_a_stream_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        assert_eq!(client.hears().2, [1]);
        client.says(FIRST, FrameHeader::new(FrameKind::Credit, window_cost(1)));
        let (_, head, body) = client.hears();
        assert_eq!((head.seq, &*body), (1, &[2][..]));
    });
    assert_eq!(worker.join().unwrap(), Ok(()));
}

fn credit_reaches_a_push_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    assert_eq!(connection.push(&[1], Wait::Never), Ok(()));
    let worker = connection.clone();
    let worker = thread::spawn(move || worker.push(&[2], Wait::NO_DEADLINE));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        assert_eq!(client.hears().2, [1]);
        client.says(0, FrameHeader::new(FrameKind::Credit, window_cost(1)));
        assert_eq!(client.hears().2, [2]);
    });
    assert_eq!(worker.join().unwrap(), Ok(()));
}

fn an_upload_reaches_who_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, UPLOAD);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        let chunks = [(); 2].map(|()| worker.next_chunk(FIRST, None).unwrap());
        assert_eq!(chunks, [UploadItem::Chunk(vec![]), UploadItem::End]);
        reply(&worker, FIRST);
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.says(FIRST, FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Chunk, 0) });
        assert_eq!(client.hears().1, FrameHeader::new(FrameKind::Credit, window_cost(0)));
        client.says(FIRST, FrameHeader { seq: 2, ..FrameHeader::new(FrameKind::End, 0) });
        assert_eq!(kind(&client.hears()), FrameKind::Reply);
    });
    worker.join().unwrap();
}

fn the_end_of_a_connection_reaches_all_who_wait() {
    let (_a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    let dead = b.clone();
    let monitor = thread::spawn(move || on_peer_gone(&dead.out, &dead.into, CloseReason::Died));
    assert_eq!(attend(&connection, &b, &mut Methods::default()), ConnectionError::PeerDied);
    assert_eq!(worker.join().unwrap(), Err(RespondError::Ended(ConnectionError::PeerDied)));
    monitor.join().unwrap();
    assert_eq!(connection.push(&[1], Wait::Never), Err(RespondError::Ended(ConnectionError::PeerDied)));
    connection.finish(FIRST, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]));
    assert!(connection.is_cancelled(SECOND));
}

fn one_that_is_asked_to_leave_looks_up() {
    let (_a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    let over = Arc::new(AtomicBool::new(false));
    let mut methods =
        Methods { over: Some(over.clone()), connection: Some(connection.clone()), ..Methods::default() };
    let asks = connection.clone();
    let asks = thread::spawn(move || {
        over.store(true, Ordering::Relaxed);
        asks.notify_driver();
    });
    assert_eq!(attend(&connection, &b, &mut methods), ConnectionError::Closed);
    asks.join().unwrap();
}

fn one_that_is_asked_to_leave_does_when_the_last_call_is_over() {
    let (_a, b) = connection::<Cells>(2, 64); // For the reply and the goodbye.
    let connection = server_connection(&b);
    runs(&connection, FIRST, 0);
    let over = Arc::new(AtomicBool::new(false));
    let mut methods =
        Methods { over: Some(over.clone()), connection: Some(connection.clone()), ..Methods::default() };
    let (worker, draining) = (connection.clone(), over.clone());
    let worker = thread::spawn(move || {
        reply(&worker, FIRST);
        if draining.load(Ordering::Relaxed) {
            worker.notify_driver();
        }
    });
    let asks = connection.clone();
    let asks = thread::spawn(move || {
        over.store(true, Ordering::Relaxed);
        asks.notify_driver();
    });
    assert_eq!(attend(&connection, &b, &mut methods), ConnectionError::Closed);
    asks.join().unwrap();
    worker.join().unwrap();
}

fn one_that_is_asked_to_leave_says_first_what_is_left() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, 0);
    reply(&connection, FIRST);
    assert_eq!(connection.push(&[1], Wait::Never), Ok(()));
    let over = Some(Arc::new(AtomicBool::new(true)));
    let mut methods = Methods { over, connection: Some(connection.clone()), ..Methods::default() };
    let client = thread::spawn(move || {
        let mut client = Client::new(&a);
        // There is room for the goodbye when the push was taken.
        let frames = [client.hears(), client.hears(), client.hears()].map(|frame| kind(&frame));
        assert_eq!(frames, [FrameKind::Reply, FrameKind::Push, FrameKind::Goodbye]);
    });
    assert_eq!(attend(&connection, &b, &mut methods), ConnectionError::Closed);
    client.join().unwrap();
}
