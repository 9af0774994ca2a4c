//! A client's desk: who reads for all, how that is handed on, and who is told of the end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::thread;
use narrows::internal::WaitPolicy;
use narrows::internal::memory::{Deadline, Padding};

use super::super::code::layout::SlotKind as Carried;
use super::super::code::ring::{CloseReason, close_both, on_peer_gone};
use super::super::code::rpc::client::{CallOutcome, InFlightCalls, Multiplexer, MultiplexerParts, WaitError};
use super::super::code::rpc::frame::send;
use super::super::code::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN, MORE, NOTIFY};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait,
};
use super::client::{SLOTS, begin, end, mux, open, parts, reply, reply_to, soon, waits};
use super::frames::{receive_frame, send_frame};
use super::{MAX_MESSAGE, Named, client, named, receiver, sender};
use crate::memory::{Cells, LoomSync, Model, RacyModel, Side, StaleHead, Words, connection};

pub(super) const ALL: &[Named] = named![
    a_caller_enters_what_is_anothers_and_takes_its_own,
    a_caller_is_told_of_the_end,
    what_a_liar_has_said_before_is_worth_nothing,
    a_reader_that_always_finds_more_leaves_at_its_deadline,
    a_reader_that_unwinds_gives_the_reader_back,
    a_follower_that_was_too_late_passes_the_role_on,
    a_glance_finds_a_reply_that_is_there,
    a_close_is_told_to_the_reader_and_to_who_stands_by,
    death_is_told_to_the_reader_and_to_who_stands_by,
    a_short_reply_that_is_lapped_is_no_reply,
    a_reply_that_is_lapped_is_no_reply,
    two_callers_get_their_own_replies,
    who_waits_for_a_push_and_who_waits_for_a_reply_both_get_it,
    who_is_too_late_leaves_the_other_its_reply,
    two_threads_call_at_once,
];

fn a_reader_that_always_finds_more_leaves_at_its_deadline() {
    let (a, b) = connection::<Cells>(64, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    for seq in 0..40 {
        send_frame(&mut out, 0, FrameHeader { seq, ..FrameHeader::new(FrameKind::Push, 0) }, &[1]);
    }
    assert_eq!(end(&mux, id, soon()), Err(WaitError::Timeout));
    let mut read = 0;
    while mux.lock().calls.next_push().is_some() {
        read += 1;
    }
    assert_eq!(read, 32);
}

/// It panics where it would go to sleep.
#[derive(Debug)]
struct Panics;

impl WaitPolicy for Panics {
    fn active(&mut self) {}

    fn spin(&mut self, _until: Deadline, _look: impl Fn() -> bool) -> bool {
        resume_unwind(Box::new(()))
    }

    fn slept(&mut self) {}
}

fn a_reader_that_unwinds_gives_the_reader_back() {
    let (a, b) = connection::<Cells>(1, 64);
    let inbound = ReceiverCore::new(a.into.clone(), Panics, 0, MAX_MESSAGE);
    let outbound = SenderCore::new(a.out.clone(), Panics, 0, MAX_MESSAGE);
    let mux: Multiplexer<Model, Panics, LoomSync> = Multiplexer::new(parts(&a, inbound, outbound, SLOTS));
    let mut take = || mux.wait(mux.push_signal(), Wait::NO_DEADLINE, |calls| calls.next_push());
    assert!(catch_unwind(AssertUnwindSafe(&mut take)).is_err());
    send_frame(&mut sender(&b), 0, FrameHeader::new(FrameKind::Push, 0), &[1]);
    assert_eq!(take(), Ok(vec![1]));
}

fn a_follower_that_was_too_late_passes_the_role_on() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, 4);
    let [expired, first, last] = [0; 3].map(|_| open(&mux, 0, Wait::Never).unwrap());
    a.clock().strike();
    reply(&b, &[first, last]);
    let follower = mux.clone();
    let follower =
        thread::spawn(move || assert_eq!(end(&follower, expired, soon()), Err(WaitError::Timeout)));
    let other = waits(&mux, last);
    assert_eq!(end(&mux, first, Wait::NO_DEADLINE), Ok(reply_to(first)));
    follower.join().unwrap();
    other.join().unwrap();
}

fn who_waits_for_a_push_and_who_waits_for_a_reply_both_get_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let pushed = mux.clone();
    let pushed = thread::spawn(move || {
        let push = pushed.wait(pushed.push_signal(), Wait::NO_DEADLINE, |calls| calls.next_push());
        assert_eq!(push, Ok(vec![5]));
        begin(&pushed, NOTIFY);
    });
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        send_frame(&mut out, 0, FrameHeader::new(FrameKind::Push, 0), &[5]);
        receive_frame(&mut receiver(&b)).unwrap();
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id)));
    pushed.join().unwrap();
    server.join().unwrap();
}

fn two_callers_get_their_own_replies() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let [one, two] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let server = thread::spawn(move || reply(&b, &[one, two]));
    let other = waits(&mux, two);
    assert_eq!(end(&mux, one, Wait::NO_DEADLINE), Ok(reply_to(one)));
    other.join().unwrap();
    server.join().unwrap();
}

fn who_is_too_late_leaves_the_other_its_reply() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [expired, id] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let clock = a.clock();
    let server = thread::spawn(move || {
        clock.strike();
        reply(&b, &[id]);
    });
    let other = waits(&mux, id);
    assert_eq!(end(&mux, expired, soon()), Err(WaitError::Timeout));
    other.join().unwrap();
    server.join().unwrap();
}

fn both_are_told(ended: ConnectionError, end_it: impl FnOnce(Side<Cells>, Side<Cells>) + Send + 'static) {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [one, two] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let third = thread::spawn(move || end_it(a, b));
    let other = mux.clone();
    let other = thread::spawn(move || end(&other, two, Wait::NO_DEADLINE));
    let told = Err(WaitError::Ended(ended));
    assert_eq!([end(&mux, one, Wait::NO_DEADLINE), other.join().unwrap()], [told.clone(), told.clone()]);
    third.join().unwrap();
    assert_eq!((mux.closed(), mux.take_lost().map(|lost| lost.0.len())), (Some(ended), Some(2)));
    assert!(mux.take_lost().is_none());
    mux.close(ConnectionError::Closed);
    assert_eq!(mux.closed(), Some(ended));
    assert!(
        mux.call_as_leader(
            FrameHeader::new(FrameKind::Call, 7),
            [&[], &[]],
            &mut Vec::new(),
            Wait::NO_DEADLINE
        )
        .is_none()
    );
}

fn death_is_told_to_the_reader_and_to_who_stands_by() {
    both_are_told(ConnectionError::PeerDied, |a, _| on_peer_gone(&a.out, &a.into, CloseReason::Died));
}

fn a_close_is_told_to_the_reader_and_to_who_stands_by() {
    both_are_told(ConnectionError::Disconnected, |_, b| close_both(&b.out, &b.into, CloseReason::Closed));
}

/// It glances before it sleeps.
#[derive(Debug)]
struct Glances;

impl WaitPolicy for Glances {
    fn active(&mut self) {}

    fn brief_spins(&mut self) -> u32 {
        2
    }

    fn spin(&mut self, _until: Deadline, _look: impl Fn() -> bool) -> bool {
        false
    }

    fn slept(&mut self) {}
}

/// A call whose reply has come, and all that came before it.
fn at_once<P: WaitPolicy + Send>(
    mux: &Multiplexer<Model, P, LoomSync>,
    wait: Wait,
) -> Result<Vec<u8>, WaitError> {
    let mut buffer = Vec::new();
    let call = mux.call_as_leader(FrameHeader::new(FrameKind::Call, 7), [&[], &[]], &mut buffer, wait);
    assert_eq!(call.unwrap().1?, CallOutcome::Reply);
    Ok(buffer)
}

/// A desk whose callers look before they sleep.
fn glancing(a: &Side<Cells>, slots: usize) -> Multiplexer<Model, Glances, LoomSync> {
    let inbound = ReceiverCore::new(a.into.clone(), Glances, 0, MAX_MESSAGE);
    let outbound = SenderCore::new(a.out.clone(), Glances, 0, MAX_MESSAGE);
    Multiplexer::new(parts(a, inbound, outbound, slots))
}

fn a_glance_finds_a_reply_that_is_there() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = glancing(&a, 1);
    let server = thread::spawn(move || reply(&b, &[1]));
    assert_eq!(at_once(&mux, Wait::NO_DEADLINE), Ok(reply_to(1)));
    assert_eq!(mux.lock().calls.in_flight(), 0);
    server.join().unwrap();
}

fn a_caller_enters_what_is_anothers_and_takes_its_own() {
    let (a, b) = connection::<Cells>(4, 64);
    enters_and_takes(&a, &b, &mux(&a, SLOTS));
    let (a, b) = connection::<Cells>(4, 64);
    enters_and_takes(&a, &b, &glancing(&a, SLOTS));
}

fn enters_and_takes<P: WaitPolicy + Send>(
    a: &Side<Cells>,
    b: &Side<Cells>,
    mux: &Multiplexer<Model, P, LoomSync>,
) {
    let other = mux.lock().calls.open(7, 0).unwrap();
    let own = other + 1;
    let mut out = sender(b);
    send_frame(&mut out, other, FrameHeader::new(FrameKind::Reply, 0), &reply_to(other));
    send_frame(&mut out, own, FrameHeader::new(FrameKind::Reply, 0).with_flags(MORE), &[1]);
    send_frame(&mut out, own, FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Continuation, 0) }, &[2]);
    assert_eq!(at_once(mux, Wait::NO_DEADLINE), Ok(vec![1, 2]));
    let mut buffer = Vec::new();
    assert_eq!(mux.lock().calls.take_outcome(other, &mut buffer), Some(CallOutcome::Reply));
    assert_eq!(buffer, reply_to(other));
    send_frame(&mut out, other + 2, FrameHeader::new(FrameKind::Reply, 0).with_flags(MORE), &[3]);
    send_frame(
        &mut out,
        other + 2,
        FrameHeader { seq: 1, ..FrameHeader::new(FrameKind::Continuation, 0) },
        &[4],
    );
    assert_eq!(at_once(mux, Wait::NO_DEADLINE), Ok(vec![3, 4]));
    send_frame(&mut out, other + 4, FrameHeader::new(FrameKind::Reply, 0), &[5]);
    assert_eq!(at_once(mux, Wait::NO_DEADLINE), Ok(vec![5]));
    a.clock().strike();
    assert_eq!(at_once(mux, soon()), Err(WaitError::Timeout));
    assert_eq!(mux.lock().calls.in_flight(), 1);
}

fn a_caller_is_told_of_the_end() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    sender(&b).ring().close();
    assert_eq!(at_once(&mux, Wait::NO_DEADLINE), Err(WaitError::Ended(ConnectionError::Disconnected)));
    let unread = client::mux(&a, SLOTS);
    unread.close(ConnectionError::Closed);
    assert_eq!(unread.closed(), Some(ConnectionError::Closed));
}

fn what_a_liar_has_said_before_is_worth_nothing() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    let violated = Err(WaitError::Ended(ConnectionError::ProtocolViolated));
    assert_eq!(mux.wait(mux.push_signal(), Wait::NO_DEADLINE, |calls| calls.next_push()), violated);
    assert_eq!(
        end(&mux, id, Wait::Never).map(drop),
        Err(WaitError::Ended(ConnectionError::ProtocolViolated))
    );
}

fn a_short_reply_that_is_lapped_is_no_reply() {
    lapped(|out, byte| {
        send(out, FrameHeader::new(FrameKind::Reply, 0), [&[byte; 16], &[]], 1, Wait::Never).unwrap();
    });
}

/// It stands in the arena, as longer ones do.
fn a_reply_that_is_lapped_is_no_reply() {
    lapped(|out, byte| {
        let ring = out.ring_mut();
        let claim = ring.reserve_fragment(ring.next(), HEADER_LEN + 16).unwrap();
        ring.mark_writing(&claim);
        ring.write(&claim, 0, &FrameHeader::new(FrameKind::Reply, 0).encode(), Padding::Zero).unwrap();
        ring.write(&claim, HEADER_LEN, &[byte; 16], Padding::Zero).unwrap();
        ring.describe(&claim, Carried::Whole, claim.len(), 1);
        ring.publish(claim.after(), false);
    });
}

fn lapped(lap: fn(&mut SenderCore<StaleHead, NoWaitPolicy>, u8)) {
    let (a, b) = connection::<Words>(1, 64);
    let poster = OobSender::new(a.out.clone());
    let incoming = IncomingSignals::new(a.into.clone());
    let (inbound, outbound) = (receiver(&a), sender(&a));
    let calls = InFlightCalls::new(1, MAX_MESSAGE, 100, 100);
    let parts = MultiplexerParts {
        inbound,
        outbound,
        oob_sender: poster,
        incoming,
        calls,
        slots: 1,
        max_fragment: 64,
    };
    let mux: Multiplexer<RacyModel, NoWaitPolicy, LoomSync> = Multiplexer::new(parts);
    let mut out = SenderCore::new(StaleHead::new(b.out), NoWaitPolicy, 0, MAX_MESSAGE);
    lap(&mut out, 1);
    let hostile = thread::spawn(move || lap(&mut out, 2));
    let mut buffer = Vec::new();
    let (id, end) = mux
        .call_as_leader(FrameHeader::new(FrameKind::Call, 7), [&[], &[]], &mut buffer, Wait::NO_DEADLINE)
        .unwrap();
    match end {
        Ok(CallOutcome::Reply) => assert!(buffer == [1; 16] || buffer == [2; 16], "torn: {buffer:?}"),
        end => assert_eq!(end, Err(WaitError::Ended(ConnectionError::ProtocolViolated))),
    }
    assert_eq!(id, 1);
    hostile.join().unwrap();
}

/// One waits for an answer that is there, and is then the server of the other.
fn two_threads_call_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let (mux, mut inb, mut out) = (mux(&a, SLOTS), receiver(&b), sender(&b));
    let mut answer = || {
        let (id, _, body) = receive_frame(&mut inb).unwrap();
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &body);
    };
    let first = begin(&mux, 0);
    answer();
    let other = mux.clone();
    let other = thread::spawn(move || {
        let (mut buffer, head) = (Vec::new(), FrameHeader::new(FrameKind::Call, 7));
        match other.call_as_leader(head, [&[1], &[]], &mut buffer, Wait::NO_DEADLINE) {
            Some((_, end)) => assert_eq!((end, buffer), (Ok(CallOutcome::Reply), vec![1])),
            None => {
                let id = begin(&other, 0);
                assert_eq!(end(&other, id, Wait::NO_DEADLINE), Ok(vec![9]));
            }
        }
    });
    assert_eq!(end(&mux, first, Wait::NO_DEADLINE), Ok(vec![9]));
    answer();
    other.join().unwrap();
}
