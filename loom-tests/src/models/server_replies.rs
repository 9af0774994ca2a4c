//! Answers: workers leave them, the connection's own thread sends what had no room, and obeys cancels.
//!
//! The client is a thread written by hand. The calls that run when the threads start were entered in the table.

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
    Client, FIRST, INLINE, Methods, POOLED, SECOND, Shared, attend, closed_connection, kind, reply, runs,
    serve, server_connection,
};
use super::{Named, named};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_long_answer_goes_out_in_pieces_and_lets_others_pass,
    a_chunk_that_is_too_late_is_not_sent,
    two_workers_answer_at_once,
    what_is_pushed_before_the_greeting_comes_behind_it,
    a_failure_is_told,
    a_call_that_is_not_admitted_is_told,
    what_a_worker_leaves_goes_out_when_there_is_room,
    a_chunk_without_room_is_sent_later,
    a_push_without_room_is_sent_later,
    credit_without_room_is_sent_later,
    an_inline_answer_without_room_is_sent_later,
    a_cancel_ends_a_call_that_it_overtook_or_not,
    a_call_that_is_cancelled_has_one_end,
    one_that_waits_for_room_hears_a_call,
    a_cancel_and_an_answer_are_one_end,
    what_is_left_of_a_stream_is_not_overtaken,
];

fn both(act: impl Fn(u64)) {
    [FIRST, SECOND].into_iter().for_each(act);
}

fn a_long_answer_goes_out_in_pieces_and_lets_others_pass() {
    let (a, b) = connection::<Cells>(64, 64);
    let connection = server_connection(&b);
    both(|id| runs(&connection, id, 0));
    connection.finish(FIRST, FrameHeader::new(FrameKind::Reply, 0), Payload::Borrowed(&[5; 64 * 40]));
    reply(&connection, SECOND);
    let over = Some(Arc::new(AtomicBool::new(true)));
    let mut methods = Methods { over, connection: Some(connection.clone()), ..Methods::default() };
    assert_eq!(attend(&connection, &b, &mut methods), ConnectionError::Closed);
    let mut client = Client::new(&a);
    let frames: Vec<_> = (0..41).map(|_| client.hears()).collect();
    assert!(frames[..40].iter().any(|(id, ..)| *id == SECOND));
    let long = frames.iter().filter(|(id, ..)| *id == FIRST);
    assert!(long.enumerate().all(|(at, (_, head, body))| usize::from(head.seq) == at && body.len() == 64));
}

fn a_chunk_that_is_too_late_is_not_sent() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, STREAM);
    assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()));
    assert_eq!(connection.write_chunk(FIRST, &[2], Some(Instant::now())), Err(RespondError::Timeout));
    assert_eq!(connection.next_chunk(FIRST, Some(Instant::now())), Ok(UploadItem::End));
    assert_eq!(connection.write_chunk(SECOND, &[2], None), Err(RespondError::Cancelled));
    assert_eq!(connection.push(&[3], Wait::Never), Ok(()));
    assert_eq!(connection.push(&[4], Wait::Never), Err(RespondError::Timeout));
    let mut client = Client::new(&a);
    assert_eq!([client.hears(), client.hears()].map(|frame| frame.2), [[1], [3]]);
}

fn what_is_pushed_before_the_greeting_comes_behind_it() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = closed_connection(&b);
    assert_eq!(connection.push(&[3], Wait::Never), Ok(()));
    connection.accept(|out| send_frame(out, 0, FrameHeader::new(FrameKind::Accept, 0), &[]));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        assert_eq!(
            [client.hears(), client.hears()].map(|frame| kind(&frame)),
            [FrameKind::Accept, FrameKind::Push]
        );
    });
}

fn two_workers_answer_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let connection = server_connection(&b);
    both(|id| runs(&connection, id, 0));
    let other = connection.clone();
    let other = thread::spawn(move || reply(&other, SECOND));
    reply(&connection, FIRST);
    other.join().unwrap();
    let mut client = Client::new(&a);
    let mut ids = [client.hears(), client.hears()].map(|(id, _, body)| (id, body));
    ids.sort_unstable();
    assert_eq!(ids, [(FIRST, vec![2]), (SECOND, vec![3])]);
    assert!(connection.is_idle());
}

fn a_call_that_is_not_admitted_is_told() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.calls(FIRST, 9);
        assert_eq!(client.hears().1, FrameHeader::new(FrameKind::Error, Status::UnknownMethod as u32));
    });
}

fn a_failure_is_told() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, 0);
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        worker.fail(FIRST, &(Status::Failed, 1, String::new()));
        assert_eq!(client.hears().1, FrameHeader::new(FrameKind::Error, Status::Failed as u32));
    });
}

fn what_a_worker_leaves_goes_out_when_there_is_room() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    both(|id| runs(&connection, id, 0));
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        both(|id| reply(&worker, id));
        assert_eq!([client.hears(), client.hears()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
}

/// The ring is full when the worker says what is left then, and nothing more.
fn left_alone(kind_of_it: FrameKind, flags: u8, says: impl FnOnce(&Shared) + Send + 'static) {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, flags);
    runs(&connection, SECOND, 0);
    reply(&connection, SECOND);
    let worker = connection.clone();
    serve(&connection, (a, b), &mut Methods::default(), move |client| {
        says(&worker);
        let kinds = [client.hears(), client.hears()].map(|frame| kind(&frame));
        assert_eq!(kinds, [FrameKind::Reply, kind_of_it]);
    });
}

fn a_chunk_without_room_is_sent_later() {
    left_alone(FrameKind::Chunk, STREAM, |connection| {
        assert_eq!(connection.write_chunk(FIRST, &[1], None), Ok(()))
    });
}

fn a_push_without_room_is_sent_later() {
    left_alone(FrameKind::Push, 0, |connection| assert_eq!(connection.push(&[1], Wait::Never), Ok(())));
}

fn credit_without_room_is_sent_later() {
    left_alone(FrameKind::Credit, UPLOAD, |connection| {
        let chunk = FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Chunk, 0) };
        connection.with_calls(|calls| calls.on_frame(FIRST, chunk, 0, |_| (), |_, _| Ok(()))).unwrap();
        assert_eq!(connection.next_chunk(FIRST, None), Ok(UploadItem::Chunk(vec![])));
    });
}

fn an_inline_answer_without_room_is_sent_later() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, 0);
    reply(&connection, FIRST);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.calls(SECOND, INLINE);
        assert_eq!([client.hears(), client.hears()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
}

fn what_is_left_of_a_stream_is_not_overtaken() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, STREAM);
    runs(&connection, SECOND, 0);
    reply(&connection, SECOND);
    let worker = connection.clone();
    let worker = thread::spawn(move || {
        assert_eq!(worker.write_chunk(FIRST, &[1], None), Ok(()));
        worker.finish(FIRST, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]));
    });
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        let kinds = [client.hears(), client.hears(), client.hears()].map(|frame| kind(&frame));
        assert_eq!(kinds, [FrameKind::Reply, FrameKind::Chunk, FrameKind::End]);
    });
    worker.join().unwrap();
}

fn one_that_waits_for_room_hears_a_call() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    both(|id| runs(&connection, id, 0));
    both(|id| reply(&connection, id));
    let begun = Arc::new(Notify::new());
    let mut methods = Methods { begun: Some(begun.clone()), ..Methods::default() };
    serve(&connection, (a, b), &mut methods, move |client| {
        client.calls(FIRST + 2, POOLED);
        begun.wait(); // Until then it reads nothing.
        assert_eq!([client.hears(), client.hears()].map(|(id, ..)| id), [FIRST, SECOND]);
    });
    assert_eq!(methods.started, [CallInfo { id: FIRST + 2, method: POOLED, flags: 0 }]);
}

const CANCELLED: FrameHeader =
    FrameHeader { kind: FrameKind::Error, flags: 0, seq: 0, word: Status::Cancelled as u32 };

fn a_cancel_ends_a_call_that_it_overtook_or_not() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.calls(FIRST, POOLED); // Nobody ever answers it.
        client.cancels(FIRST);
        assert_eq!(client.hears().1, CANCELLED);
    });
}

fn a_call_that_is_cancelled_has_one_end() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.calls(FIRST, INLINE);
        client.cancels(FIRST);
        let end = client.hears().1;
        assert!(end == FrameHeader::new(FrameKind::Reply, 0) || end == CANCELLED);
        client.calls(FIRST + 2, INLINE);
        assert_eq!(client.hears(), (FIRST + 2, FrameHeader::new(FrameKind::Reply, 0), vec![7]));
    });
    assert_eq!(connection.inline_answered(), 2);
}

fn a_cancel_and_an_answer_are_one_end() {
    let (a, b) = connection::<Cells>(1, 64);
    let connection = server_connection(&b);
    runs(&connection, FIRST, 0);
    let worker = connection.clone();
    let worker = thread::spawn(move || reply(&worker, FIRST));
    serve(&connection, (a, b), &mut Methods::default(), |client| {
        client.cancels(FIRST);
        let end = client.hears().1;
        assert!(end == FrameHeader::new(FrameKind::Reply, 0) || end == CANCELLED);
    });
    worker.join().unwrap();
    assert!(connection.is_cancelled(FIRST));
}
