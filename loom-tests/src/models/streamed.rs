//! Windows, ends and shutdown, as a server's workers and its driver see them.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::ring::{CloseReason, on_peer_gone};
use super::super::code::rpc::flow_control::window_cost;
use super::super::code::rpc::server::{Payload, RespondError, UploadItem};
use super::super::code::rpc::wire::{FrameHeader, FrameKind, STREAM, UPLOAD};
use super::super::code::{ConnectionError, Wait};
use super::server::{
    Client, FIRST, Methods, SECOND, Shared, drive, kind, reply, serve, server_connection, start_call,
};
use super::{Named, named};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_driver_that_is_asked_to_stop_wakes_up,
    a_driver_that_is_asked_to_stop_first_sends_what_is_queued,
    the_end_of_a_connection_reaches_all_waiting_workers,
    a_driver_that_is_asked_to_stop_does_when_the_last_call_is_over,
    credit_reaches_a_stream_that_waits_for_it,
    credit_reaches_a_push_that_waits_for_it,
    a_cancel_reaches_a_stream_that_waits_for_its_window,
    an_upload_reaches_a_worker_that_waits_for_it,
];

/// Starts a stream and fills its window.
fn start_full_stream(connection: &Shared) {
    start_call(connection, FIRST, STREAM);
    assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()));
}

fn a_cancel_reaches_a_stream_that_waits_for_its_window() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        let written = worker.write_chunk(FIRST, &[2], None);
        assert!(worker.is_cancelled(FIRST));
        written
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.cancel(FIRST);
        assert_eq!(worker.join().unwrap(), Err(RespondError::Cancelled));
        assert_eq!(
            [client.receive(), client.receive()].map(|frame| kind(&frame)),
            [FrameKind::Chunk, FrameKind::Error]
        );
    });
}

fn credit_reaches_a_stream_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        assert_eq!(client.receive().2, [1]);
        client.send(FIRST, FrameHeader::new(FrameKind::Credit, window_cost(1)));
        let (_, head, body) = client.receive();
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
        assert_eq!(client.receive().2, [1]);
        client.send(0, FrameHeader::new(FrameKind::Credit, window_cost(1)));
        assert_eq!(client.receive().2, [2]);
    });
    assert_eq!(worker.join().unwrap(), Ok(()));
}

fn an_upload_reaches_a_worker_that_waits_for_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, UPLOAD);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        let chunks = [(); 2].map(|()| worker.next_chunk(FIRST, None).unwrap());
        assert_eq!(chunks, [UploadItem::Chunk(vec![]), UploadItem::End]);
        reply(&worker, FIRST);
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.send(FIRST, FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Chunk, 0) });
        assert_eq!(client.receive().1, FrameHeader::new(FrameKind::Credit, window_cost(0)));
        client.send(FIRST, FrameHeader { seq: 2, ..FrameHeader::new(FrameKind::End, 0) });
        assert_eq!(kind(&client.receive()), FrameKind::Reply);
    });
    worker.join().unwrap();
}

fn the_end_of_a_connection_reaches_all_waiting_workers() {
    let (_a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_full_stream(&connection);
    let worker = connection.clone();
    let worker = thread::spawn(move || worker.write_chunk(FIRST, &[2], None));
    let dead = b.clone();
    let monitor = thread::spawn(move || on_peer_gone(&dead.out, &dead.into, CloseReason::Died));
    assert_eq!(drive(&connection, &b, &mut Methods::default()), ConnectionError::PeerDied);
    assert_eq!(worker.join().unwrap(), Err(RespondError::Ended(ConnectionError::PeerDied)));
    monitor.join().unwrap();
    assert_eq!(connection.push(&[1], Wait::Never), Err(RespondError::Ended(ConnectionError::PeerDied)));
    connection.finish(FIRST, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]));
    assert!(connection.is_cancelled(SECOND));
}

fn a_driver_that_is_asked_to_stop_wakes_up() {
    let (_a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    let stopping = Arc::new(AtomicBool::new(false));
    let mut methods = Methods {
        stopping: Some(stopping.clone()),
        connection: Some(connection.clone()),
        ..Methods::default()
    };
    let server = connection.clone();
    let server = thread::spawn(move || {
        stopping.store(true, Ordering::Relaxed);
        server.notify_driver();
    });
    assert_eq!(drive(&connection, &b, &mut methods), ConnectionError::Closed);
    server.join().unwrap();
}

fn a_driver_that_is_asked_to_stop_does_when_the_last_call_is_over() {
    let (_a, b) = connection::<Cells>(2, 64); // One slot for the reply, and one for the Goodbye frame.
    let connection = server_connection(&b);
    start_call(&connection, FIRST, 0);
    let stopping = Arc::new(AtomicBool::new(false));
    let mut methods = Methods {
        stopping: Some(stopping.clone()),
        connection: Some(connection.clone()),
        ..Methods::default()
    };
    let (worker, draining) = (connection.clone(), stopping.clone());
    let worker = thread::spawn(move || {
        reply(&worker, FIRST);
        if draining.load(Ordering::Relaxed) {
            worker.notify_driver();
        }
    });
    let server = connection.clone();
    let server = thread::spawn(move || {
        stopping.store(true, Ordering::Relaxed);
        server.notify_driver();
    });
    assert_eq!(drive(&connection, &b, &mut methods), ConnectionError::Closed);
    server.join().unwrap();
    worker.join().unwrap();
}

fn a_driver_that_is_asked_to_stop_first_sends_what_is_queued() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, 0);
    reply(&connection, FIRST);
    assert_eq!(connection.push(&[1], Wait::Never), Ok(()));
    let stopping = Some(Arc::new(AtomicBool::new(true)));
    let mut methods = Methods { stopping, connection: Some(connection.clone()), ..Methods::default() };
    let client = thread::spawn(move || {
        let mut client = Client::new(&a);
        // The Goodbye frame has room only after the push was received.
        let frames = [client.receive(), client.receive(), client.receive()].map(|frame| kind(&frame));
        assert_eq!(frames, [FrameKind::Reply, FrameKind::Push, FrameKind::Goodbye]);
    });
    assert_eq!(drive(&connection, &b, &mut methods), ConnectionError::Closed);
    client.join().unwrap();
}
