//! A client's multiplexer: one thread leads and reads for all, hands the leadership on, and the end reaches every thread.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::thread;
use narrows::internal::WaitPolicy;
use narrows::internal::memory::{Deadline, Padding};

use super::super::code::layout::SlotKind;
use super::super::code::ring::{CloseReason, close_both, on_peer_gone};
use super::super::code::rpc::client::{CallOutcome, InFlightCalls, Multiplexer, MultiplexerParts, WaitError};
use super::super::code::rpc::wire::{self, FrameHeader, FrameKind, HEADER_LEN, MORE, NOTIFY};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait,
};
use super::client::{SLOTS, begin, end, mux, open, parts, reply, reply_to, soon, spawn_waiter};
use super::frames::{receive_frame, send_frame};
use super::{MAX_MESSAGE, Named, client, named, receiver, sender};
use crate::memory::{Cells, LoomSync, Model, RacyModel, Side, StaleHead, Words, connection};

pub(super) const ALL: &[Named] = named![
    a_leader_stores_the_replies_of_others_and_takes_its_own,
    the_end_of_the_connection_is_reported_to_a_caller,
    earlier_replies_of_a_hostile_server_are_discarded,
    a_leader_that_always_finds_more_leaves_at_its_deadline,
    a_leader_that_unwinds_gives_the_receive_half_back,
    a_follower_that_times_out_passes_the_leadership_on,
    a_brief_spin_finds_a_reply_that_is_there,
    a_close_is_reported_to_the_leader_and_to_a_follower,
    a_death_is_reported_to_the_leader_and_to_a_follower,
    an_overwritten_inline_reply_is_never_delivered,
    an_overwritten_arena_reply_is_never_delivered,
    two_callers_get_their_own_replies,
    a_waiter_for_a_push_and_a_waiter_for_a_reply_both_get_theirs,
    a_caller_that_times_out_leaves_the_other_its_reply,
    two_threads_call_at_once,
];

fn a_leader_that_always_finds_more_leaves_at_its_deadline() {
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

/// A wait policy that panics where the thread would go to sleep.
#[derive(Debug)]
struct Panics;

impl WaitPolicy for Panics {
    fn active(&mut self) {}

    fn spin(&mut self, _deadline: Deadline, _look: impl Fn() -> bool) -> bool {
        resume_unwind(Box::new(()))
    }

    fn slept(&mut self) {}
}

fn a_leader_that_unwinds_gives_the_receive_half_back() {
    let (a, b) = connection::<Cells>(1, 64);
    let inbound = ReceiverCore::new(a.into.clone(), Panics, 0, MAX_MESSAGE);
    let outbound = SenderCore::new(a.out.clone(), Panics, 0, MAX_MESSAGE);
    let mux: Multiplexer<Model, Panics, LoomSync> = Multiplexer::new(parts(&a, inbound, outbound, SLOTS));
    let mut take = || mux.wait(mux.push_signal(), Wait::NO_DEADLINE, |calls| calls.next_push());
    assert!(catch_unwind(AssertUnwindSafe(&mut take)).is_err());
    send_frame(&mut sender(&b), 0, FrameHeader::new(FrameKind::Push, 0), &[1]);
    assert_eq!(take(), Ok(vec![1]));
}

fn a_follower_that_times_out_passes_the_leadership_on() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, 4);
    let [expired, first, last] = [0; 3].map(|_| open(&mux, 0, Wait::Never).unwrap());
    a.clock().expire();
    reply(&b, &[first, last]);
    let follower = mux.clone();
    let follower =
        thread::spawn(move || assert_eq!(end(&follower, expired, soon()), Err(WaitError::Timeout)));
    let other = spawn_waiter(&mux, last);
    assert_eq!(end(&mux, first, Wait::NO_DEADLINE), Ok(reply_to(first)));
    follower.join().unwrap();
    other.join().unwrap();
}

fn a_waiter_for_a_push_and_a_waiter_for_a_reply_both_get_theirs() {
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
    let other = spawn_waiter(&mux, two);
    assert_eq!(end(&mux, one, Wait::NO_DEADLINE), Ok(reply_to(one)));
    other.join().unwrap();
    server.join().unwrap();
}

fn a_caller_that_times_out_leaves_the_other_its_reply() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [expired, id] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let clock = a.clock();
    let server = thread::spawn(move || {
        clock.expire();
        reply(&b, &[id]);
    });
    let other = spawn_waiter(&mux, id);
    assert_eq!(end(&mux, expired, soon()), Err(WaitError::Timeout));
    other.join().unwrap();
    server.join().unwrap();
}

fn check_end_is_reported_to_both(
    ended: ConnectionError,
    end_it: impl FnOnce(Side<Cells>, Side<Cells>) + Send + 'static,
) {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    let [one, two] = [0; 2].map(|_| open(&mux, 0, Wait::Never).unwrap());
    let third = thread::spawn(move || end_it(a, b));
    let other = mux.clone();
    let other = thread::spawn(move || end(&other, two, Wait::NO_DEADLINE));
    let reported = Err(WaitError::Ended(ended));
    assert_eq!(
        [end(&mux, one, Wait::NO_DEADLINE), other.join().unwrap()],
        [reported.clone(), reported.clone()]
    );
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

fn a_death_is_reported_to_the_leader_and_to_a_follower() {
    check_end_is_reported_to_both(ConnectionError::PeerDied, |a, _| {
        on_peer_gone(&a.out, &a.into, CloseReason::Died)
    });
}

fn a_close_is_reported_to_the_leader_and_to_a_follower() {
    check_end_is_reported_to_both(ConnectionError::Disconnected, |_, b| {
        close_both(&b.out, &b.into, CloseReason::Closed)
    });
}

/// A wait policy that spins briefly before the thread sleeps.
#[derive(Debug)]
struct SpinsBriefly;

impl WaitPolicy for SpinsBriefly {
    fn active(&mut self) {}

    fn brief_spins(&mut self) -> u32 {
        2
    }

    fn spin(&mut self, _deadline: Deadline, _look: impl Fn() -> bool) -> bool {
        false
    }

    fn slept(&mut self) {}
}

/// Makes a call whose reply is in the ring already, and returns the reply.
fn call_now<P: WaitPolicy + Send>(
    mux: &Multiplexer<Model, P, LoomSync>,
    wait: Wait,
) -> Result<Vec<u8>, WaitError> {
    let mut buffer = Vec::new();
    let call = mux.call_as_leader(FrameHeader::new(FrameKind::Call, 7), [&[], &[]], &mut buffer, wait);
    assert_eq!(call.unwrap().1?, CallOutcome::Reply);
    Ok(buffer)
}

/// Returns a multiplexer whose callers spin briefly before they sleep.
fn spinning_mux(a: &Side<Cells>, slots: usize) -> Multiplexer<Model, SpinsBriefly, LoomSync> {
    let inbound = ReceiverCore::new(a.into.clone(), SpinsBriefly, 0, MAX_MESSAGE);
    let outbound = SenderCore::new(a.out.clone(), SpinsBriefly, 0, MAX_MESSAGE);
    Multiplexer::new(parts(a, inbound, outbound, slots))
}

fn a_brief_spin_finds_a_reply_that_is_there() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = spinning_mux(&a, 1);
    let server = thread::spawn(move || reply(&b, &[1]));
    assert_eq!(call_now(&mux, Wait::NO_DEADLINE), Ok(reply_to(1)));
    assert_eq!(mux.lock().calls.in_flight(), 0);
    server.join().unwrap();
}

fn a_leader_stores_the_replies_of_others_and_takes_its_own() {
    let (a, b) = connection::<Cells>(4, 64);
    check_stores_and_takes(&a, &b, &mux(&a, SLOTS));
    let (a, b) = connection::<Cells>(4, 64);
    check_stores_and_takes(&a, &b, &spinning_mux(&a, SLOTS));
}

fn check_stores_and_takes<P: WaitPolicy + Send>(
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
    assert_eq!(call_now(mux, Wait::NO_DEADLINE), Ok(vec![1, 2]));
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
    assert_eq!(call_now(mux, Wait::NO_DEADLINE), Ok(vec![3, 4]));
    send_frame(&mut out, other + 4, FrameHeader::new(FrameKind::Reply, 0), &[5]);
    assert_eq!(call_now(mux, Wait::NO_DEADLINE), Ok(vec![5]));
    a.clock().expire();
    assert_eq!(call_now(mux, soon()), Err(WaitError::Timeout));
    assert_eq!(mux.lock().calls.in_flight(), 1);
}

fn the_end_of_the_connection_is_reported_to_a_caller() {
    let (a, b) = connection::<Cells>(1, 64);
    let mux = mux(&a, SLOTS);
    sender(&b).ring().close();
    assert_eq!(call_now(&mux, Wait::NO_DEADLINE), Err(WaitError::Ended(ConnectionError::Disconnected)));
    let unread = client::mux(&a, SLOTS);
    unread.close(ConnectionError::Closed);
    assert_eq!(unread.closed(), Some(ConnectionError::Closed));
}

fn earlier_replies_of_a_hostile_server_are_discarded() {
    let (a, b) = connection::<Cells>(2, 64);
    let mux = mux(&a, SLOTS);
    let id = open(&mux, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id));
    let violated = Err(WaitError::Ended(ConnectionError::ProtocolViolation));
    assert_eq!(mux.wait(mux.push_signal(), Wait::NO_DEADLINE, |calls| calls.next_push()), violated);
    assert_eq!(
        end(&mux, id, Wait::Never).map(drop),
        Err(WaitError::Ended(ConnectionError::ProtocolViolation))
    );
}

fn an_overwritten_inline_reply_is_never_delivered() {
    race_with_overwrite(|out, byte| {
        wire::send_frame(out, FrameHeader::new(FrameKind::Reply, 0), [&[byte; 16], &[]], 1, Wait::Never)
            .unwrap();
    });
}

/// The reply is in the arena, as a longer one would be.
fn an_overwritten_arena_reply_is_never_delivered() {
    race_with_overwrite(|out, byte| {
        let ring = out.ring_mut();
        let claim = ring.reserve_fragment(ring.next(), HEADER_LEN + 16).unwrap();
        ring.mark_writing(&claim);
        ring.write(&claim, 0, &FrameHeader::new(FrameKind::Reply, 0).encode(), Padding::Zero).unwrap();
        ring.write(&claim, HEADER_LEN, &[byte; 16], Padding::Zero).unwrap();
        ring.describe(&claim, SlotKind::Whole, claim.len(), 1);
        ring.publish(claim.after(), false);
    });
}

fn race_with_overwrite(overwrite: fn(&mut SenderCore<StaleHead, NoWaitPolicy>, u8)) {
    let (a, b) = connection::<Words>(1, 64);
    let oob_sender = OobSender::new(a.out.clone());
    let incoming = IncomingSignals::new(a.into.clone());
    let (inbound, outbound) = (receiver(&a), sender(&a));
    let calls = InFlightCalls::new(1, MAX_MESSAGE, 100, 100);
    let parts =
        MultiplexerParts { inbound, outbound, oob_sender, incoming, calls, slots: 1, max_fragment: 64 };
    let mux: Multiplexer<RacyModel, NoWaitPolicy, LoomSync> = Multiplexer::new(parts);
    let mut out = SenderCore::new(StaleHead::new(b.out), NoWaitPolicy, 0, MAX_MESSAGE);
    overwrite(&mut out, 1);
    let hostile = thread::spawn(move || overwrite(&mut out, 2));
    let mut buffer = Vec::new();
    let (id, outcome) = mux
        .call_as_leader(FrameHeader::new(FrameKind::Call, 7), [&[], &[]], &mut buffer, Wait::NO_DEADLINE)
        .unwrap();
    match outcome {
        Ok(CallOutcome::Reply) => assert!(buffer == [1; 16] || buffer == [2; 16], "torn: {buffer:?}"),
        outcome => assert_eq!(outcome, Err(WaitError::Ended(ConnectionError::ProtocolViolation))),
    }
    assert_eq!(id, 1);
    hostile.join().unwrap();
}

/// This thread waits for a reply that is in the ring, and then plays the server for the other thread's call.
fn two_threads_call_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let (mux, mut inb, mut out) = (mux(&a, SLOTS), receiver(&b), sender(&b));
    let mut reply_to_next = || {
        let (id, _, body) = receive_frame(&mut inb).unwrap();
        send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &body);
    };
    let first = begin(&mux, 0);
    reply_to_next();
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
    reply_to_next();
    other.join().unwrap();
}
