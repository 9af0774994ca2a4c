//! Calls of a client's threads: call slots, credit, and calls that are abandoned.
//!
//! The server is a thread of the model, or has sent all its frames before the threads start.

use loom::thread;

use super::super::code::rpc::client::{InFlightCalls, WaitError};
use super::super::code::rpc::flow_control::window_cost;
use super::super::code::rpc::fragment::Fragmenter;
use super::super::code::rpc::wire::{FrameHeader, FrameKind, Status, UPLOAD};
use super::super::code::{IncomingSignals, Wait};
use super::client::{SLOTS, Shared, begin, end, mux, open, reply, reply_to, soon, spawn_waiter};
use super::frames::{receive_frame, send_frame};
use super::{Named, named, receiver, sender, sleep_until};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_call_that_finds_no_room_sends_nothing,
    an_old_cancel_hides_no_newer_one,
    a_caller_that_gets_no_slot_leaves_at_its_deadline,
    a_call_that_is_over_sends_no_more_fragments,
    a_leader_that_waits_for_a_slot_is_notified_of_a_free_one,
    a_leader_that_waits_for_a_slot_gets_that_of_an_abandoned_call,
    long_items_of_two_calls_are_sent_one_fragment_each_in_turn,
    a_reply_that_is_not_taken_yet_frees_its_slot_for_a_waiting_caller,
    a_leader_that_waits_for_a_slot_gets_an_unused_one,
    a_sender_that_waits_for_room_does_not_delay_the_leader,
    an_unused_slot_goes_to_a_waiting_caller,
    a_late_reply_is_dropped_and_its_slot_is_free,
    a_follower_that_waits_for_a_slot_gets_one_that_a_reply_frees,
    a_late_reply_frees_its_slot_for_a_waiting_caller,
    credit_that_another_thread_reads_lets_a_writer_go_on,
    a_writer_of_an_upload_is_notified_when_its_call_is_abandoned,
    a_sender_that_times_out_lets_the_next_one_send,
    a_waiter_that_was_chosen_at_its_deadline_leaves_the_slot_to_another,
    a_waiter_for_pushes_that_was_chosen_at_its_deadline_loses_none,
];

fn a_call_that_finds_no_room_sends_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let first = begin(&mux, 0);
    let mut buffer = vec![3; 5];
    let head = FrameHeader::new(FrameKind::Call, 7);
    assert!(mux.call_as_leader(head, [&[1], &[]], &mut buffer, Wait::NO_DEADLINE).is_none());
    assert_eq!((buffer.len(), mux.lock().calls.in_flight()), (5, 1));
    let mut inb = receiver(&b);
    assert_eq!(receive_frame(&mut inb).unwrap().0, first);
    // The failed call gave back the receive half and its slot.
    reply(&b, &[first]);
    assert_eq!(end(&mux, first, Wait::NO_DEADLINE), Ok(reply_to(first)));
    let (second, third) = (begin(&mux, 0), open(&mux, 0, Wait::Never).unwrap());
    assert_eq!(receive_frame(&mut inb).unwrap().0, second);
    assert!(
        mux.call_as_leader(head, [&[1], &[]], &mut buffer, Wait::NO_DEADLINE).is_none(),
        "no slot is free"
    );
    mux.forget_unsent(third);
    assert_eq!(mux.lock().calls.in_flight(), 1);
}

fn an_old_cancel_hides_no_newer_one() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    let [old, new] = [0; 2].map(|_| {
        let id = open(&mux, 0, Wait::Never).unwrap();
        mux.forget_unsent(id); // The next call gets its slot.
        id
    });
    let other = mux.clone();
    let other = thread::spawn(move || other.cancel(old));
    mux.cancel(new);
    other.join().unwrap();
    assert_eq!(IncomingSignals::new(b.into).oob(0), new);
}

fn a_late_reply_is_dropped_and_its_slot_is_free() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    let expired = begin(&mux, 0);
    assert_eq!(end(&mux, expired, Wait::Never), Err(WaitError::Timeout));
    mux.abandon(expired);
    let server = thread::spawn(move || {
        let incoming = IncomingSignals::new(b.into.clone());
        assert!(sleep_until(&b.into, None, || incoming.doorbell() != 0));
        assert_eq!(incoming.oob(0), expired);
        let (mut inb, mut out) = (receiver(&b), sender(&b));
        for _ in 0..2 {
            let (id, ..) = receive_frame(&mut inb).unwrap();
            send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
        }
    });
    let next = begin(&mux, 0);
    assert_ne!(next, expired);
    assert_eq!(end(&mux, next, Wait::NO_DEADLINE), Ok(reply_to(next)));
    assert_eq!(mux.lock().calls.dropped(), 1);
    server.join().unwrap();
}

fn a_leader_that_waits_for_a_slot_is_notified_of_a_free_one() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    let id = open(&mux, 0, Wait::Never).unwrap();
    reply(&b, &[id]);
    let other = spawn_waiter(&mux, id);
    assert_ne!(open(&mux, 0, Wait::NO_DEADLINE), Ok(id));
    other.join().unwrap();
}

fn a_leader_that_waits_for_a_slot_gets_that_of_an_abandoned_call() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    let id = open(&mux, 0, Wait::Never).unwrap();
    reply(&b, &[id]);
    let other = mux.clone();
    let other = thread::spawn(move || other.abandon(id));
    assert_ne!(open(&mux, 0, Wait::NO_DEADLINE), Ok(id));
    other.join().unwrap();
}

fn a_leader_that_waits_for_a_slot_gets_an_unused_one() {
    let (a, _b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let other = mux.clone();
    let other = thread::spawn(move || {
        other.forget_unsent(id);
        // This thread may get the slot before the leader does, once.
        open(&other, 0, Wait::Never).into_iter().for_each(|id| other.forget_unsent(id));
    });
    assert_ne!(open(&mux, 0, Wait::NO_DEADLINE), Ok(id));
    other.join().unwrap();
}

fn a_follower_that_waits_for_a_slot_gets_one_that_a_reply_frees() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [slow, quick] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let mut out = sender(&b);
    send_frame(&mut out, quick, FrameHeader::new(FrameKind::Reply, 0), &reply_to(quick));
    let other = mux.clone();
    let other = thread::spawn(move || {
        assert_eq!(end(&other, quick, Wait::NO_DEADLINE), Ok(reply_to(quick)));
        receive_frame(&mut receiver(&b)).unwrap();
        send_frame(&mut out, slow, FrameHeader::new(FrameKind::Reply, 0), &reply_to(slow));
    });
    let third = mux.clone();
    let third = thread::spawn(move || begin(&third, 0));
    assert_eq!(end(&mux, slow, Wait::NO_DEADLINE), Ok(reply_to(slow)));
    other.join().unwrap();
    assert_ne!(third.join().unwrap(), quick);
}

fn a_late_reply_frees_its_slot_for_a_waiting_caller() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [slow, expired] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    mux.abandon(expired);
    let third = mux.clone();
    let third = thread::spawn(move || begin(&third, 0));
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        send_frame(&mut out, expired, FrameHeader::new(FrameKind::Reply, 0), &reply_to(expired));
        receive_frame(&mut receiver(&b)).unwrap();
        send_frame(&mut out, slow, FrameHeader::new(FrameKind::Reply, 0), &reply_to(slow));
    });
    assert_eq!(end(&mux, slow, Wait::NO_DEADLINE), Ok(reply_to(slow)));
    assert_ne!(third.join().unwrap(), expired);
    server.join().unwrap();
}

fn a_reply_that_is_not_taken_yet_frees_its_slot_for_a_waiting_caller() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [slow, quick] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let mut out = sender(&b);
    send_frame(&mut out, quick, FrameHeader::new(FrameKind::Reply, 0), &reply_to(quick));
    let third = mux.clone();
    let third = thread::spawn(move || {
        begin(&third, 0);
        send_frame(&mut out, slow, FrameHeader::new(FrameKind::Reply, 0), &reply_to(slow));
    });
    assert_eq!(end(&mux, slow, Wait::NO_DEADLINE), Ok(reply_to(slow)));
    third.join().unwrap();
    assert_eq!(end(&mux, quick, Wait::Never), Ok(reply_to(quick)));
}

fn an_unused_slot_goes_to_a_waiting_caller() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [slow, unused] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let other = mux.clone();
    let other = thread::spawn(move || other.forget_unsent(unused));
    let third = mux.clone();
    let third = thread::spawn(move || {
        begin(&third, 0);
        reply(&b, &[slow]);
    });
    assert_eq!(end(&mux, slow, Wait::NO_DEADLINE), Ok(reply_to(slow)));
    other.join().unwrap();
    third.join().unwrap();
}

fn a_caller_that_gets_no_slot_leaves_at_its_deadline() {
    let (a, _b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 1);
    open(&mux, 0, Wait::Never).unwrap();
    a.clock().expire();
    assert_eq!(open(&mux, 0, soon()), Err(WaitError::Timeout));
}

fn a_sender_that_waits_for_room_does_not_delay_the_leader() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let id = begin(&mux, 0); // The ring is full now.
    reply(&b, &[id]);
    let other = mux.clone();
    let other = thread::spawn(move || begin(&other, 0));
    assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id)));
    let mut inb = receiver(&b);
    let ids = [(); 2].map(|()| receive_frame(&mut inb).unwrap().0);
    assert_eq!(ids, [id, other.join().unwrap()]);
}

fn a_writer_of_an_upload_is_notified_when_its_call_is_abandoned() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let upload = open(&mux, UPLOAD, Wait::Never).unwrap();
    assert_eq!(mux.lock().calls.spend_credit(upload, window_cost(1)), Ok(true));
    let writer = mux.clone();
    let writer = thread::spawn(move || {
        let spend = |calls: &mut InFlightCalls| {
            calls.spend_credit(upload, window_cost(1)).map_or(Some(false), |paid| paid.then_some(true))
        };
        assert_eq!(writer.wait(writer.signal_of(upload), Wait::NO_DEADLINE, spend), Ok(false));
    });
    let server = mux.clone();
    let server = thread::spawn(move || {
        server.abandon(upload);
        // Only the leader receives the frame. It has to notify the writer.
        let mut out = sender(&b);
        send_frame(&mut out, upload, FrameHeader::new(FrameKind::Error, Status::Cancelled as u32), &[0; 4]);
        writer.join().unwrap();
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id)));
    server.join().unwrap();
}

fn credit_that_another_thread_reads_lets_a_writer_go_on() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let upload = open(&mux, UPLOAD, Wait::Never).unwrap();
    assert_eq!(mux.lock().calls.spend_credit(upload, window_cost(1)), Ok(true));
    let writer = mux.clone();
    let writer = thread::spawn(move || {
        let spend =
            |calls: &mut InFlightCalls| calls.spend_credit(upload, window_cost(1)).unwrap().then_some(());
        writer.wait(writer.signal_of(upload), Wait::NO_DEADLINE, spend).unwrap();
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Chunk, 0), 1);
        writer.send_item(&mut fragmenter, [&[1], &[]], &mut 1, upload, Wait::NO_DEADLINE).unwrap();
    });
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        send_frame(&mut out, upload, FrameHeader::new(FrameKind::Credit, window_cost(1)), &[]);
        assert_eq!(receive_frame(&mut receiver(&b)).unwrap().1.kind, FrameKind::Chunk);
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id)));
    writer.join().unwrap();
    server.join().unwrap();
}

fn long_items_of_two_calls_are_sent_one_fragment_each_in_turn() {
    let (a, b) = connection::<Cells>(4, 64);
    let mux = mux(&a, SLOTS);
    let sends = |mux: &Shared| {
        let id = open(mux, 0, Wait::Never).unwrap();
        let (mut fragmenter, mut seq) = (Fragmenter::new(FrameHeader::new(FrameKind::Call, 7), 65), 0);
        mux.send_item(&mut fragmenter, [&[4; 32], &[4; 33]], &mut seq, id, Wait::NO_DEADLINE).unwrap();
        assert_eq!(seq, 2);
    };
    let other = mux.clone();
    let other = thread::spawn(move || sends(&other));
    sends(&mux);
    other.join().unwrap();
    let mut inb = receiver(&b);
    let mut frames = [(); 4].map(|()| receive_frame(&mut inb).unwrap());
    frames.sort_by_key(|(id, ..)| *id); // The sort is stable.
    let fragments = frames.map(|(_, head, body)| (head.kind, head.seq, body.len()));
    let [one, two] = [(FrameKind::Call, 0, 64), (FrameKind::Continuation, 1, 1)];
    assert_eq!(fragments, [one, two, one, two]);
}

fn a_sender_that_times_out_lets_the_next_one_send() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, 4);
    begin(&mux, 0); // The ring is full now.
    a.clock().expire();
    let [expired, other] = [soon(), Wait::NO_DEADLINE].map(|wait| {
        let mux = mux.clone();
        thread::spawn(move || {
            let id = open(&mux, 0, Wait::Never).unwrap();
            let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Call, 8), 0);
            mux.send_item(&mut fragmenter, [&[], &[]], &mut 0, id, wait)
        })
    });
    let mut inb = receiver(&b);
    assert_eq!(receive_frame(&mut inb).unwrap().1.word, 7);
    assert_eq!(receive_frame(&mut inb).unwrap().1.word, 8);
    assert_eq!(other.join().unwrap(), Ok(()));
    if expired.join().unwrap().is_ok() {
        receive_frame(&mut inb).unwrap();
    }
}

fn a_call_that_is_over_sends_no_more_fragments() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, UPLOAD, Wait::Never).unwrap();
    let (mut fragmenter, mut seq) = (Fragmenter::new(FrameHeader::new(FrameKind::Chunk, 0), 200), 1);
    let sent = mux.send_item(&mut fragmenter, [&[1; 200], &[]], &mut seq, id, Wait::Never);
    assert_eq!((sent, seq), (Err(WaitError::Timeout), 3));
    reply(&b, &[id]);
    assert_eq!(mux.wait(mux.push_signal(), Wait::Never, |_| None::<()>), Err(WaitError::Timeout));
    assert_eq!(
        mux.send_item(&mut fragmenter, [&[1; 200], &[]], &mut seq, id, Wait::Never),
        Err(WaitError::CallOver)
    );
    assert_eq!(end(&mux, id, Wait::Never), Ok(reply_to(id)));
}

/// Two threads wait for a slot, and one slot becomes free. The wake may go to the thread whose deadline passes at that moment.
fn a_waiter_that_was_chosen_at_its_deadline_leaves_the_slot_to_another() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [slow, unused] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let expired = mux.clone();
    let expired = thread::spawn(move || {
        open(&expired, 0, soon()).into_iter().for_each(|id| expired.forget_unsent(id));
    });
    let other = mux.clone();
    let other = thread::spawn(move || {
        begin(&other, 0);
        reply(&b, &[slow]);
    });
    mux.forget_unsent(unused);
    assert_eq!(end(&mux, slow, Wait::NO_DEADLINE), Ok(reply_to(slow)));
    expired.join().unwrap();
    other.join().unwrap();
}

/// Two threads wait for pushes. The one without a deadline gets the push that the other does not take.
fn a_waiter_for_pushes_that_was_chosen_at_its_deadline_loses_none() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    send_frame(&mut out, 0, FrameHeader::new(FrameKind::Push, 0), &[1]);
    send_frame(&mut out, 0, FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Push, 0) }, &[2]);
    let take = |mux: &Shared, wait| mux.wait(mux.push_signal(), wait, |calls| calls.next_push());
    let expired = mux.clone();
    let expired = thread::spawn(move || drop(take(&expired, soon())));
    let other = mux.clone();
    let other = thread::spawn(move || {
        take(&other, Wait::NO_DEADLINE).unwrap();
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id)));
    other.join().unwrap();
    expired.join().unwrap();
}
