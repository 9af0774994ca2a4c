//! A client's desk: who reads for all, how that is handed on, and who is told of the end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::thread;
use narrows::internal::WaitPolicy;
use narrows::internal::mem::{Deadline, Padding};

use super::super::code::layout::SlotKind as Carried;
use super::super::code::ring::{CloseReason, close_both, on_peer_gone};
use super::super::code::rpc::client::{Desk, Final, Parts, Stop, Table};
use super::super::code::rpc::frame::send;
use super::super::code::rpc::wire::{HEAD, Head, Kind, MORE, NOTIFY};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait,
};
use super::client::{PLACES, begin, desk, end, open, parts, reply, reply_to, soon, waits};
use super::frames::{hear, say};
use super::{MAX_MESSAGE, Named, client, named, receiver, sender};
use crate::machine::{Blind, Cells, LoomThreads, Model, RacyModel, Side, Words, connection};

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
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    for seq in 0..40 {
        say(&mut out, 0, Head { seq, ..Head::new(Kind::Push, 0) }, &[1]);
    }
    assert_eq!(end(&desk, id, soon()), Err(Stop::Timeout));
    let mut read = 0;
    while desk.books().table.next_push().is_some() {
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
    let desk: Desk<Model, Panics, LoomThreads> = Desk::new(parts(&a, inbound, outbound, PLACES));
    let mut take = || desk.wait(desk.pushed(), Wait::FOREVER, |table| table.next_push());
    assert!(catch_unwind(AssertUnwindSafe(&mut take)).is_err());
    say(&mut sender(&b), 0, Head::new(Kind::Push, 0), &[1]);
    assert_eq!(take(), Ok(vec![1]));
}

fn a_follower_that_was_too_late_passes_the_role_on() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, 4);
    let [late, first, last] = [0; 3].map(|_| open(&desk, 0, Wait::Never).unwrap());
    a.clock().strike();
    reply(&b, &[first, last]);
    let follower = desk.clone();
    let follower = thread::spawn(move || assert_eq!(end(&follower, late, soon()), Err(Stop::Timeout)));
    let other = waits(&desk, last);
    assert_eq!(end(&desk, first, Wait::FOREVER), Ok(reply_to(first)));
    follower.join().unwrap();
    other.join().unwrap();
}

fn who_waits_for_a_push_and_who_waits_for_a_reply_both_get_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let pushed = desk.clone();
    let pushed = thread::spawn(move || {
        let push = pushed.wait(pushed.pushed(), Wait::FOREVER, |table| table.next_push());
        assert_eq!(push, Ok(vec![5]));
        begin(&pushed, NOTIFY);
    });
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        say(&mut out, 0, Head::new(Kind::Push, 0), &[5]);
        hear(&mut receiver(&b)).unwrap();
        say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id)));
    pushed.join().unwrap();
    server.join().unwrap();
}

fn two_callers_get_their_own_replies() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let [one, two] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let server = thread::spawn(move || reply(&b, &[one, two]));
    let other = waits(&desk, two);
    assert_eq!(end(&desk, one, Wait::FOREVER), Ok(reply_to(one)));
    other.join().unwrap();
    server.join().unwrap();
}

fn who_is_too_late_leaves_the_other_its_reply() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [late, id] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let clock = a.clock();
    let server = thread::spawn(move || {
        clock.strike();
        reply(&b, &[id]);
    });
    let other = waits(&desk, id);
    assert_eq!(end(&desk, late, soon()), Err(Stop::Timeout));
    other.join().unwrap();
    server.join().unwrap();
}

fn both_are_told(ended: ConnectionError, end_it: impl FnOnce(Side<Cells>, Side<Cells>) + Send + 'static) {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [one, two] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let third = thread::spawn(move || end_it(a, b));
    let other = desk.clone();
    let other = thread::spawn(move || end(&other, two, Wait::FOREVER));
    let told = Err(Stop::Ended(ended));
    assert_eq!([end(&desk, one, Wait::FOREVER), other.join().unwrap()], [told.clone(), told.clone()]);
    third.join().unwrap();
    assert_eq!((desk.over(), desk.lost().map(|lost| lost.0.len())), (Some(ended), Some(2)));
    assert!(desk.lost().is_none());
    desk.end(ConnectionError::Closed);
    assert_eq!(desk.over(), Some(ended));
    assert!(
        desk.call_at_once(Head::new(Kind::Call, 7), [&[], &[]], &mut Vec::new(), Wait::FOREVER).is_none()
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
fn at_once<P: WaitPolicy + Send>(desk: &Desk<Model, P, LoomThreads>, wait: Wait) -> Result<Vec<u8>, Stop> {
    let mut buffer = Vec::new();
    let call = desk.call_at_once(Head::new(Kind::Call, 7), [&[], &[]], &mut buffer, wait);
    assert_eq!(call.unwrap().1?, Final::Reply);
    Ok(buffer)
}

/// A desk whose callers look before they sleep.
fn glancing(a: &Side<Cells>, places: usize) -> Desk<Model, Glances, LoomThreads> {
    let inbound = ReceiverCore::new(a.into.clone(), Glances, 0, MAX_MESSAGE);
    let outbound = SenderCore::new(a.out.clone(), Glances, 0, MAX_MESSAGE);
    Desk::new(parts(a, inbound, outbound, places))
}

fn a_glance_finds_a_reply_that_is_there() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = glancing(&a, 1);
    let server = thread::spawn(move || reply(&b, &[1]));
    assert_eq!(at_once(&desk, Wait::FOREVER), Ok(reply_to(1)));
    assert_eq!(desk.books().table.in_flight(), 0);
    server.join().unwrap();
}

fn a_caller_enters_what_is_anothers_and_takes_its_own() {
    let (a, b) = connection::<Cells>(4, 64);
    enters_and_takes(&a, &b, &desk(&a, PLACES));
    let (a, b) = connection::<Cells>(4, 64);
    enters_and_takes(&a, &b, &glancing(&a, PLACES));
}

fn enters_and_takes<P: WaitPolicy + Send>(
    a: &Side<Cells>,
    b: &Side<Cells>,
    desk: &Desk<Model, P, LoomThreads>,
) {
    let other = desk.books().table.open(7, 0).unwrap();
    let own = other + 1;
    let mut out = sender(b);
    say(&mut out, other, Head::new(Kind::Reply, 0), &reply_to(other));
    say(&mut out, own, Head::new(Kind::Reply, 0).with(MORE), &[1]);
    say(&mut out, own, Head { seq: 1, ..Head::new(Kind::Rest, 0) }, &[2]);
    assert_eq!(at_once(desk, Wait::FOREVER), Ok(vec![1, 2]));
    let mut buffer = Vec::new();
    assert_eq!(desk.books().table.finish(other, &mut buffer), Some(Final::Reply));
    assert_eq!(buffer, reply_to(other));
    say(&mut out, other + 2, Head::new(Kind::Reply, 0).with(MORE), &[3]);
    say(&mut out, other + 2, Head { seq: 1, ..Head::new(Kind::Rest, 0) }, &[4]);
    assert_eq!(at_once(desk, Wait::FOREVER), Ok(vec![3, 4]));
    say(&mut out, other + 4, Head::new(Kind::Reply, 0), &[5]);
    assert_eq!(at_once(desk, Wait::FOREVER), Ok(vec![5]));
    a.clock().strike();
    assert_eq!(at_once(desk, soon()), Err(Stop::Timeout));
    assert_eq!(desk.books().table.in_flight(), 1);
}

fn a_caller_is_told_of_the_end() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    sender(&b).ring().close();
    assert_eq!(at_once(&desk, Wait::FOREVER), Err(Stop::Ended(ConnectionError::Disconnected)));
    let unread = client::desk(&a, PLACES);
    unread.end(ConnectionError::Closed);
    assert_eq!(unread.over(), Some(ConnectionError::Closed));
}

fn what_a_liar_has_said_before_is_worth_nothing() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    let violated = Err(Stop::Ended(ConnectionError::ProtocolViolated));
    assert_eq!(desk.wait(desk.pushed(), Wait::FOREVER, |table| table.next_push()), violated);
    assert_eq!(end(&desk, id, Wait::Never).map(drop), Err(Stop::Ended(ConnectionError::ProtocolViolated)));
}

fn a_short_reply_that_is_lapped_is_no_reply() {
    lapped(|out, byte| {
        send(out, Head::new(Kind::Reply, 0), [&[byte; 16], &[]], 1, Wait::Never).unwrap();
    });
}

/// It stands in the arena, as longer ones do.
fn a_reply_that_is_lapped_is_no_reply() {
    lapped(|out, byte| {
        let ring = out.ring_mut();
        let claim = ring.reserve_fragment(ring.next(), HEAD + 16).unwrap();
        ring.mark_writing(&claim);
        ring.write(&claim, 0, &Head::new(Kind::Reply, 0).encode(), Padding::Zero).unwrap();
        ring.write(&claim, HEAD, &[byte; 16], Padding::Zero).unwrap();
        ring.describe(&claim, Carried::Whole, claim.len(), 1);
        ring.publish(claim.after(), false);
    });
}

fn lapped(lap: fn(&mut SenderCore<Blind, NoWaitPolicy>, u8)) {
    let (a, b) = connection::<Words>(1, 64);
    let poster = OobSender::new(a.out.clone());
    let ear = IncomingSignals::new(a.into.clone());
    let (inbound, outbound) = (receiver(&a), sender(&a));
    let table = Table::new(1, MAX_MESSAGE, 100, 100);
    let parts = Parts { inbound, outbound, poster, ear, table, places: 1, piece: 64 };
    let desk: Desk<RacyModel, NoWaitPolicy, LoomThreads> = Desk::new(parts);
    let mut out = SenderCore::new(Blind::new(b.out), NoWaitPolicy, 0, MAX_MESSAGE);
    lap(&mut out, 1);
    let liar = thread::spawn(move || lap(&mut out, 2));
    let mut buffer = Vec::new();
    let (id, end) =
        desk.call_at_once(Head::new(Kind::Call, 7), [&[], &[]], &mut buffer, Wait::FOREVER).unwrap();
    match end {
        Ok(Final::Reply) => assert!(buffer == [1; 16] || buffer == [2; 16], "torn: {buffer:?}"),
        end => assert_eq!(end, Err(Stop::Ended(ConnectionError::ProtocolViolated))),
    }
    assert_eq!(id, 1);
    liar.join().unwrap();
}

/// One waits for an answer that is there, and is then the server of the other.
fn two_threads_call_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let (desk, mut inb, mut out) = (desk(&a, PLACES), receiver(&b), sender(&b));
    let mut answer = || {
        let (id, _, body) = hear(&mut inb).unwrap();
        say(&mut out, id, Head::new(Kind::Reply, 0), &body);
    };
    let first = begin(&desk, 0);
    answer();
    let other = desk.clone();
    let other = thread::spawn(move || {
        let (mut buffer, head) = (Vec::new(), Head::new(Kind::Call, 7));
        match other.call_at_once(head, [&[1], &[]], &mut buffer, Wait::FOREVER) {
            Some((_, end)) => assert_eq!((end, buffer), (Ok(Final::Reply), vec![1])),
            None => {
                let id = begin(&other, 0);
                assert_eq!(end(&other, id, Wait::FOREVER), Ok(vec![9]));
            }
        }
    });
    assert_eq!(end(&desk, first, Wait::FOREVER), Ok(vec![9]));
    answer();
    other.join().unwrap();
}
