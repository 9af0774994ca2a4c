//! Replies: workers send them, and the driver sends those that had no room and processes cancels.
//!
//! The client is a thread of the model. The calls that run when the threads start were entered before.

use std::sync::Arc;
use std::time::Instant;

use loom::sync::Notify;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::super::code::rpc::server::{CallInfo, Payload, RespondError, UploadItem};
use super::super::code::rpc::wire::{FrameHeader, FrameKind, STREAM, Status, UPLOAD};
use super::super::code::{ConnectionError, Wait};
use super::frames::send_frame;
use super::server::{
    Client, FIRST, INLINE, Methods, POOLED, SECOND, Shared, drive, kind, reply, serve, server_connection,
    start_call, unaccepted_connection,
};
use super::{Named, named};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_long_reply_is_sent_in_fragments_and_lets_others_pass,
    a_chunk_after_its_deadline_is_not_sent,
    two_workers_reply_at_once,
    a_push_before_the_accept_frame_is_sent_after_it,
    a_failed_call_is_reported,
    a_call_that_is_not_admitted_is_reported,
    a_workers_reply_without_room_is_sent_later,
    a_chunk_without_room_is_sent_later,
    a_push_without_room_is_sent_later,
    credit_without_room_is_sent_later,
    an_inline_reply_without_room_is_sent_later,
    a_cancel_ends_a_call_whether_or_not_it_overtook_the_call,
    a_cancelled_call_ends_once,
    a_driver_that_waits_for_room_receives_a_call,
    a_cancel_and_a_reply_end_a_call_once,
    a_queued_chunk_is_not_overtaken_by_the_end_of_its_stream,
];

fn both(act: impl Fn(u64)) {
    [FIRST, SECOND].into_iter().for_each(act);
}

fn a_long_reply_is_sent_in_fragments_and_lets_others_pass() {
    let (a, b) = connection::<Cells>(64, 64);
    let connection = server_connection(&b);
    both(|id| start_call(&connection, id, 0));
    connection.finish(FIRST, FrameHeader::new(FrameKind::Reply, 0), Payload::Borrowed(&[5; 64 * 40]));
    reply(&connection, SECOND);
    let stopping = Some(Arc::new(AtomicBool::new(true)));
    let mut methods = Methods { stopping, connection: Some(connection.clone()), ..Methods::default() };
    assert_eq!(drive(&connection, &b, &mut methods), ConnectionError::Closed);
    let mut client = Client::new(&a);
    let frames: Vec<_> = (0..41).map(|_| client.receive()).collect();
    assert!(frames[..40].iter().any(|(id, ..)| *id == SECOND));
    let long = frames.iter().filter(|(id, ..)| *id == FIRST);
    assert!(long.enumerate().all(|(at, (_, head, body))| usize::from(head.seq) == at && body.len() == 64));
}

fn a_chunk_after_its_deadline_is_not_sent() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, STREAM);
    assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()));
    assert_eq!(connection.write_chunk(FIRST, &[2], Some(Instant::now())), Err(RespondError::Timeout));
    assert_eq!(connection.next_chunk(FIRST, Some(Instant::now())), Ok(UploadItem::End));
    assert_eq!(connection.write_chunk(SECOND, &[2], None), Err(RespondError::Cancelled));
    assert_eq!(connection.push(&[3], Wait::Never), Ok(()));
    assert_eq!(connection.push(&[4], Wait::Never), Err(RespondError::Timeout));
    let mut client = Client::new(&a);
    assert_eq!([client.receive(), client.receive()].map(|frame| frame.2), [[1], [3]]);
}

fn a_push_before_the_accept_frame_is_sent_after_it() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = unaccepted_connection(&b);
    assert_eq!(connection.push(&[3], Wait::Never), Ok(()));
    connection.accept(|out| send_frame(out, 0, FrameHeader::new(FrameKind::Accept, 0), &[]));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        assert_eq!(
            [client.receive(), client.receive()].map(|frame| kind(&frame)),
            [FrameKind::Accept, FrameKind::Push]
        );
    });
}

fn two_workers_reply_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = server_connection(&b);
    both(|id| start_call(&connection, id, 0));
    let other = connection.clone();
    let other = thread::spawn(move || reply(&other, SECOND));
    reply(&connection, FIRST);
    other.join().unwrap();
    let mut client = Client::new(&a);
    let mut ids = [client.receive(), client.receive()].map(|(id, _, body)| (id, body));
    ids.sort_unstable();
    assert_eq!(ids, [(FIRST, vec![2]), (SECOND, vec![3])]);
    assert!(connection.is_idle());
}

fn a_call_that_is_not_admitted_is_reported() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.call(FIRST, 9);
        assert_eq!(client.receive().1, FrameHeader::new(FrameKind::Error, Status::UnknownMethod as u32));
    });
}

fn a_failed_call_is_reported() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, 0);
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        worker.fail(FIRST, &(Status::Failed, 1, String::new()));
        assert_eq!(client.receive().1, FrameHeader::new(FrameKind::Error, Status::Failed as u32));
    });
}

fn a_workers_reply_without_room_is_sent_later() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    both(|id| start_call(&connection, id, 0));
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        both(|id| reply(&worker, id));
        assert_eq!([client.receive(), client.receive()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
}

/// A worker sends one frame while the ring is full, and does nothing more. The driver has to send the frame.
fn check_sent_later(expected: FrameKind, flags: u8, act: impl FnOnce(&Shared) + Send + 'static) {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, flags);
    start_call(&connection, SECOND, 0);
    reply(&connection, SECOND);
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        act(&worker);
        let kinds = [client.receive(), client.receive()].map(|frame| kind(&frame));
        assert_eq!(kinds, [FrameKind::Reply, expected]);
    });
}

fn a_chunk_without_room_is_sent_later() {
    check_sent_later(FrameKind::Chunk, STREAM, |connection| {
        assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()))
    });
}

fn a_push_without_room_is_sent_later() {
    check_sent_later(FrameKind::Push, 0, |connection| assert_eq!(connection.push(&[1], Wait::Never), Ok(())));
}

fn credit_without_room_is_sent_later() {
    check_sent_later(FrameKind::Credit, UPLOAD, |connection| {
        let chunk = FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Chunk, 0) };
        connection.with_calls(|calls| calls.on_frame(FIRST, chunk, 0, |_| (), |_, _| Ok(()))).unwrap();
        assert_eq!(connection.next_chunk(FIRST, None), Ok(UploadItem::Chunk(vec![])));
    });
}

fn an_inline_reply_without_room_is_sent_later() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, 0);
    reply(&connection, FIRST);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.call(SECOND, INLINE);
        assert_eq!([client.receive(), client.receive()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
}

fn a_queued_chunk_is_not_overtaken_by_the_end_of_its_stream() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, STREAM);
    start_call(&connection, SECOND, 0);
    reply(&connection, SECOND);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        assert_eq!(worker.write_chunk(FIRST, &[1], None), Ok(()));
        worker.finish(FIRST, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]));
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        let kinds = [client.receive(), client.receive(), client.receive()].map(|frame| kind(&frame));
        assert_eq!(kinds, [FrameKind::Reply, FrameKind::Chunk, FrameKind::End]);
    });
    worker.join().unwrap();
}

fn a_driver_that_waits_for_room_receives_a_call() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    both(|id| start_call(&connection, id, 0));
    both(|id| reply(&connection, id));
    let begun = Arc::new(Notify::new());
    let mut methods = Methods { begun: Some(begun.clone()), ..Methods::default() };
    serve(&connection, (a, b), &mut methods, move |client| {
        client.call(FIRST + 2, POOLED);
        begun.wait(); // The client reads nothing before the call begins.
        assert_eq!([client.receive(), client.receive()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
    assert_eq!(methods.started, [CallInfo { id: FIRST + 2, method: POOLED, flags: 0 }]);
}

const CANCELLED: FrameHeader =
    FrameHeader { kind: FrameKind::Error, flags: 0, seq: 0, word: Status::Cancelled as u32 };

fn a_cancel_ends_a_call_whether_or_not_it_overtook_the_call() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.call(FIRST, POOLED); // No worker ever replies.
        client.cancel(FIRST);
        assert_eq!(client.receive().1, CANCELLED);
    });
}

fn a_cancelled_call_ends_once() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.call(FIRST, INLINE);
        client.cancel(FIRST);
        let end = client.receive().1;
        assert!(end == FrameHeader::new(FrameKind::Reply, 0) || end == CANCELLED);
        client.call(FIRST + 2, INLINE);
        assert_eq!(client.receive(), (FIRST + 2, FrameHeader::new(FrameKind::Reply, 0), vec![7]));
    });
    assert_eq!(connection.inline_answered(), 2);
}

fn a_cancel_and_a_reply_end_a_call_once() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    start_call(&connection, FIRST, 0);
    let worker = connection.clone();
    let worker = thread::spawn(move || reply(&worker, FIRST));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.cancel(FIRST);
        let end = client.receive().1;
        assert!(end == FrameHeader::new(FrameKind::Reply, 0) || end == CANCELLED);
    });
    worker.join().unwrap();
    assert!(connection.is_cancelled(FIRST));
}
