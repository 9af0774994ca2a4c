//! A client's desk, which its threads share: who reads for all, and how that is handed on.
//!
//! The server is a thread written by hand, or has said all that it will say before the threads start.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use loom::thread;
use narrows::internal::Pace;
use narrows::internal::mem::Until;

use super::super::code::ring::{Fate, bury, shut};
use super::super::code::rpc::client::{Desk, Final, Parts, Stop, Table};
use super::super::code::rpc::pieces::Cut;
use super::super::code::rpc::wire::{Head, Kind, NOTIFY, UPLOAD, cost};
use super::super::code::{Ear, Ended, Inbound, NoPace, Outbound, Poster, Wait};
use super::frames::{hear, say};
use super::{MAX_MESSAGE, Named, named, receiver, sender, sleep_until};
use crate::machine::{Cells, LoomThreads, Model, Side, connection};

pub(super) const ALL: &[Named] = named![
    a_call_that_finds_no_room_sends_nothing,
    a_reader_that_always_finds_more_leaves_at_its_deadline,
    a_reader_that_unwinds_gives_the_reader_back,
    a_late_reply_is_dropped_and_its_place_is_free,
    a_follower_that_was_too_late_passes_the_role_on,
    who_waits_for_a_push_and_who_waits_for_a_reply_both_get_it,
    who_reads_while_it_waits_for_a_place_is_told_of_one,
    who_reads_while_it_waits_for_a_place_gets_one_that_was_given_up,
    who_stands_by_for_a_place_gets_one_that_a_reply_frees,
    two_callers_get_their_own_replies,
    who_is_too_late_leaves_the_other_its_reply,
    death_is_told_to_the_reader_and_to_who_stands_by,
    a_close_is_told_to_the_reader_and_to_who_stands_by,
    a_late_reply_gives_its_place_to_who_stands_by,
    credit_that_another_reads_lets_a_writer_go_on,
    two_threads_call_at_once,
];

const PLACES: usize = 2;

type Shared = Arc<Desk<Model, NoPace, LoomThreads>>;

/// A client's connection with so many places, and windows of one chunk of a byte.
fn desk(side: &Side<Cells>, places: usize) -> Shared {
    Arc::new(Desk::new(parts(side, receiver(side), sender(side), places)))
}

fn parts<P>(
    side: &Side<Cells>,
    inbound: Inbound<Model, P>,
    outbound: Outbound<Model, P>,
    places: usize,
) -> Parts<Model, P> {
    let (poster, ear, window) = (Poster::new(side.out.clone()), Ear::new(side.into.clone()), cost(1));
    let table = Table::new(places, MAX_MESSAGE, window, 64 * window);
    Parts { inbound, outbound, poster, ear, table, places, piece: 64 }
}

fn soon() -> Wait {
    Wait::Until(Some(Instant::now()))
}

/// Takes a place for a call.
fn open(desk: &Shared, flags: u8, wait: Wait) -> Result<u64, Stop> {
    desk.wait(desk.freed(), wait, |table| table.open(7, flags))
}

/// Opens a call and sends it.
fn begin(desk: &Shared, flags: u8) -> u64 {
    let id = open(desk, flags, Wait::FOREVER).unwrap();
    let mut cut = Cut::new(Head::new(Kind::Call, 7).with(flags), 1);
    desk.send_item(&mut cut, [&[9], &[]], &mut 0, id, Wait::FOREVER).unwrap();
    id
}

/// Waits for the reply of a call.
fn end(desk: &Shared, id: u64, wait: Wait) -> Result<Vec<u8>, Stop> {
    let mut buffer = Vec::new();
    let end = desk.wait(desk.signal_of(id), wait, |table| table.finish(id, &mut buffer))?;
    assert_eq!(end, Final::Reply);
    Ok(buffer)
}

/// The reply to a call, which says whose it is.
fn reply_to(id: u64) -> Vec<u8> {
    vec![u8::try_from(id).unwrap(); 2]
}

fn reply(server: &Side<Cells>, ids: &[u64]) {
    let mut out = sender(server);
    ids.iter().for_each(|&id| say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id)));
}

/// A thread that waits for the reply of a call, which comes.
fn waits(desk: &Shared, id: u64) -> thread::JoinHandle<()> {
    let desk = desk.clone();
    thread::spawn(move || assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id))))
}

fn a_call_that_finds_no_room_sends_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let first = begin(&desk, 0);
    let mut buffer = vec![3; 5];
    let head = Head::new(Kind::Call, 7);
    assert!(desk.call_at_once(head, [&[1], &[]], &mut buffer, Wait::FOREVER).is_none());
    assert_eq!((buffer.len(), desk.books().table.in_flight()), (5, 1));
    let mut inb = receiver(&b);
    assert_eq!(hear(&mut inb).unwrap().0, first);
    // It gave the reader back, and its place.
    reply(&b, &[first]);
    assert_eq!(end(&desk, first, Wait::FOREVER), Ok(reply_to(first)));
    let (second, third) = (begin(&desk, 0), open(&desk, 0, Wait::Never).unwrap());
    assert_eq!(hear(&mut inb).unwrap().0, second);
    assert!(desk.call_at_once(head, [&[1], &[]], &mut buffer, Wait::FOREVER).is_none(), "no place is free");
    desk.unsend(third);
    assert_eq!(desk.books().table.in_flight(), 1);
}

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

impl Pace for Panics {
    fn active(&mut self) {}

    fn pass(&mut self, _until: Until, _look: impl Fn() -> bool) -> bool {
        resume_unwind(Box::new(()))
    }

    fn slept(&mut self) {}
}

fn a_reader_that_unwinds_gives_the_reader_back() {
    let (a, b) = connection::<Cells>(1, 64);
    let inbound = Inbound::new(a.into.clone(), Panics, 0, MAX_MESSAGE);
    let outbound = Outbound::new(a.out.clone(), Panics, 0, MAX_MESSAGE);
    let desk: Desk<Model, Panics, LoomThreads> = Desk::new(parts(&a, inbound, outbound, PLACES));
    let mut take = || desk.wait(desk.pushed(), Wait::FOREVER, |table| table.next_push());
    assert!(catch_unwind(AssertUnwindSafe(&mut take)).is_err());
    say(&mut sender(&b), 0, Head::new(Kind::Push, 0), &[1]);
    assert_eq!(take(), Ok(vec![1]));
}

fn a_late_reply_is_dropped_and_its_place_is_free() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let late = begin(&desk, 0);
    assert_eq!(end(&desk, late, Wait::Never), Err(Stop::Timeout));
    desk.abandon(late);
    let server = thread::spawn(move || {
        let ear = Ear::new(b.into.clone());
        assert!(sleep_until(&b.into, None, || ear.bell() != 0));
        assert_eq!(ear.urgent(0), late);
        let (mut inb, mut out) = (receiver(&b), sender(&b));
        for _ in 0..2 {
            let (id, ..) = hear(&mut inb).unwrap();
            say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
        }
    });
    let next = begin(&desk, 0);
    assert_ne!(next, late);
    assert_eq!(end(&desk, next, Wait::FOREVER), Ok(reply_to(next)));
    assert_eq!(desk.books().table.dropped, 1);
    server.join().unwrap();
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

fn who_reads_while_it_waits_for_a_place_is_told_of_one() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let id = open(&desk, 0, Wait::Never).unwrap();
    reply(&b, &[id]);
    let other = waits(&desk, id);
    assert_ne!(open(&desk, 0, Wait::FOREVER), Ok(id));
    other.join().unwrap();
}

fn who_reads_while_it_waits_for_a_place_gets_one_that_was_given_up() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let id = open(&desk, 0, Wait::Never).unwrap();
    reply(&b, &[id]);
    let other = desk.clone();
    let other = thread::spawn(move || other.abandon(id));
    assert_ne!(open(&desk, 0, Wait::FOREVER), Ok(id));
    other.join().unwrap();
}

fn who_stands_by_for_a_place_gets_one_that_a_reply_frees() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [slow, quick] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let mut out = sender(&b);
    say(&mut out, quick, Head::new(Kind::Reply, 0), &reply_to(quick));
    let other = desk.clone();
    let other = thread::spawn(move || {
        assert_eq!(end(&other, quick, Wait::FOREVER), Ok(reply_to(quick)));
        hear(&mut receiver(&b)).unwrap();
        say(&mut out, slow, Head::new(Kind::Reply, 0), &reply_to(slow));
    });
    let third = desk.clone();
    let third = thread::spawn(move || begin(&third, 0));
    assert_eq!(end(&desk, slow, Wait::FOREVER), Ok(reply_to(slow)));
    other.join().unwrap();
    assert_ne!(third.join().unwrap(), quick);
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

/// Two wait, and the third thread ends the connection in this way.
fn both_are_told(ended: Ended, end_it: impl FnOnce(Side<Cells>, Side<Cells>) + Send + 'static) {
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
    desk.end(Ended::Closed);
    assert_eq!(desk.over(), Some(ended));
    assert!(
        desk.call_at_once(Head::new(Kind::Call, 7), [&[], &[]], &mut Vec::new(), Wait::FOREVER).is_none()
    );
}

fn death_is_told_to_the_reader_and_to_who_stands_by() {
    both_are_told(Ended::PeerDied, |a, _| bury(&a.out, &a.into, Fate::Died));
}

fn a_close_is_told_to_the_reader_and_to_who_stands_by() {
    both_are_told(Ended::Disconnected, |_, b| shut(&b.out, &b.into, Fate::Closed));
}

fn a_late_reply_gives_its_place_to_who_stands_by() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [slow, late] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    desk.abandon(late);
    let third = desk.clone();
    let third = thread::spawn(move || begin(&third, 0));
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        say(&mut out, late, Head::new(Kind::Reply, 0), &reply_to(late));
        hear(&mut receiver(&b)).unwrap();
        say(&mut out, slow, Head::new(Kind::Reply, 0), &reply_to(slow));
    });
    assert_eq!(end(&desk, slow, Wait::FOREVER), Ok(reply_to(slow)));
    assert_ne!(third.join().unwrap(), late);
    server.join().unwrap();
}

fn credit_that_another_reads_lets_a_writer_go_on() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let upload = open(&desk, UPLOAD, Wait::Never).unwrap();
    assert_eq!(desk.books().table.spend(upload, cost(1)), Ok(true));
    let writer = desk.clone();
    let writer = thread::spawn(move || {
        let spend = |table: &mut Table| table.spend(upload, cost(1)).unwrap().then_some(());
        writer.wait(writer.signal_of(upload), Wait::FOREVER, spend).unwrap();
        let mut cut = Cut::new(Head::new(Kind::Chunk, 0), 1);
        writer.send_item(&mut cut, [&[1], &[]], &mut 1, upload, Wait::FOREVER).unwrap();
    });
    let server = thread::spawn(move || {
        let mut out = sender(&b);
        say(&mut out, upload, Head::new(Kind::Credit, cost(1)), &[]);
        assert_eq!(hear(&mut receiver(&b)).unwrap().1.kind, Kind::Chunk);
        say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id)));
    writer.join().unwrap();
    server.join().unwrap();
}

fn two_threads_call_at_once() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let server = thread::spawn(move || {
        let (mut inb, mut out) = (receiver(&b), sender(&b));
        for _ in 0..2 {
            let (id, _, body) = hear(&mut inb).unwrap();
            say(&mut out, id, Head::new(Kind::Reply, 0), &body);
        }
    });
    let call = |desk: &Shared, mine: u8| {
        let mut buffer = Vec::new();
        let head = Head::new(Kind::Call, 7);
        match desk.call_at_once(head, [&[mine], &[]], &mut buffer, Wait::FOREVER) {
            Some((_, end)) => assert_eq!((end, buffer), (Ok(Final::Reply), vec![mine])),
            None => {
                let id = open(desk, 0, Wait::FOREVER).unwrap();
                let mut cut = Cut::new(head, 1);
                desk.send_item(&mut cut, [&[mine], &[]], &mut 0, id, Wait::FOREVER).unwrap();
                assert_eq!(end(desk, id, Wait::FOREVER), Ok(vec![mine]));
            }
        }
    };
    let other = desk.clone();
    let other = thread::spawn(move || call(&other, 1));
    call(&desk, 2);
    other.join().unwrap();
    server.join().unwrap();
}
