//! Calls of a client's threads: places, credit, what is given up.
//!
//! The server is a thread written by hand, or has said all that it will say before the threads start.

use loom::thread;

use super::super::code::rpc::client::{Stop, Table};
use super::super::code::rpc::pieces::Cut;
use super::super::code::rpc::wire::{Head, Kind, Status, UPLOAD, cost};
use super::super::code::{IncomingSignals, Wait};
use super::client::{PLACES, Shared, begin, desk, end, open, reply, reply_to, soon, waits};
use super::frames::{hear, say};
use super::{Named, named, receiver, sender, sleep_until};
use crate::machine::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_call_that_finds_no_room_sends_nothing,
    an_old_cancel_hides_no_newer_one,
    who_waits_for_a_place_in_vain_leaves_at_its_deadline,
    what_is_over_is_not_sent_on,
    who_reads_while_it_waits_for_a_place_is_told_of_one,
    who_reads_while_it_waits_for_a_place_gets_one_that_was_given_up,
    long_items_are_sent_a_piece_each_in_turn,
    a_reply_that_nobody_takes_gives_its_place_to_who_stands_by,
    who_reads_while_it_waits_for_a_place_gets_one_that_was_not_used,
    who_waits_for_room_holds_up_no_reader,
    a_place_that_was_not_used_goes_to_who_stands_by,
    a_late_reply_is_dropped_and_its_place_is_free,
    who_stands_by_for_a_place_gets_one_that_a_reply_frees,
    a_late_reply_gives_its_place_to_who_stands_by,
    credit_that_another_reads_lets_a_writer_go_on,
    who_writes_an_upload_is_told_when_its_call_is_given_up,
    who_is_too_late_to_send_lets_the_next_one_send,
    a_waiter_that_was_chosen_at_its_deadline_leaves_the_place_to_another,
    a_waiter_for_pushes_that_was_chosen_at_its_deadline_loses_none,
];

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

fn an_old_cancel_hides_no_newer_one() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let [old, new] = [0; 2].map(|_| {
        let id = open(&desk, 0, Wait::Never).unwrap();
        desk.unsend(id); // Its place goes to the next.
        id
    });
    let other = desk.clone();
    let other = thread::spawn(move || other.cancel(old));
    desk.cancel(new);
    other.join().unwrap();
    assert_eq!(IncomingSignals::new(b.into).oob(0), new);
}

fn a_late_reply_is_dropped_and_its_place_is_free() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let late = begin(&desk, 0);
    assert_eq!(end(&desk, late, Wait::Never), Err(Stop::Timeout));
    desk.abandon(late);
    let server = thread::spawn(move || {
        let ear = IncomingSignals::new(b.into.clone());
        assert!(sleep_until(&b.into, None, || ear.doorbell() != 0));
        assert_eq!(ear.oob(0), late);
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

fn who_reads_while_it_waits_for_a_place_gets_one_that_was_not_used() {
    let (a, _b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let other = desk.clone();
    let other = thread::spawn(move || {
        other.unsend(id);
        // Maybe it is quicker, once.
        open(&other, 0, Wait::Never).into_iter().for_each(|id| other.unsend(id));
    });
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

fn a_reply_that_nobody_takes_gives_its_place_to_who_stands_by() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [slow, quick] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let mut out = sender(&b);
    say(&mut out, quick, Head::new(Kind::Reply, 0), &reply_to(quick));
    let third = desk.clone();
    let third = thread::spawn(move || {
        begin(&third, 0);
        say(&mut out, slow, Head::new(Kind::Reply, 0), &reply_to(slow));
    });
    assert_eq!(end(&desk, slow, Wait::FOREVER), Ok(reply_to(slow)));
    third.join().unwrap();
    assert_eq!(end(&desk, quick, Wait::Never), Ok(reply_to(quick)));
}

fn a_place_that_was_not_used_goes_to_who_stands_by() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [slow, unused] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let other = desk.clone();
    let other = thread::spawn(move || other.unsend(unused));
    let third = desk.clone();
    let third = thread::spawn(move || {
        begin(&third, 0);
        reply(&b, &[slow]);
    });
    assert_eq!(end(&desk, slow, Wait::FOREVER), Ok(reply_to(slow)));
    other.join().unwrap();
    third.join().unwrap();
}

fn who_waits_for_a_place_in_vain_leaves_at_its_deadline() {
    let (a, _b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 1);
    open(&desk, 0, Wait::Never).unwrap();
    a.clock().strike();
    assert_eq!(open(&desk, 0, soon()), Err(Stop::Timeout));
}

fn who_waits_for_room_holds_up_no_reader() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let id = begin(&desk, 0); // The ring is full.
    reply(&b, &[id]);
    let other = desk.clone();
    let other = thread::spawn(move || begin(&other, 0));
    assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id)));
    let mut inb = receiver(&b);
    let ids = [(); 2].map(|()| hear(&mut inb).unwrap().0);
    assert_eq!(ids, [id, other.join().unwrap()]);
}

fn who_writes_an_upload_is_told_when_its_call_is_given_up() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let upload = open(&desk, UPLOAD, Wait::Never).unwrap();
    assert_eq!(desk.books().table.spend(upload, cost(1)), Ok(true));
    let writer = desk.clone();
    let writer = thread::spawn(move || {
        let spend =
            |table: &mut Table| table.spend(upload, cost(1)).map_or(Some(false), |paid| paid.then_some(true));
        assert_eq!(writer.wait(writer.signal_of(upload), Wait::FOREVER, spend), Ok(false));
    });
    let server = desk.clone();
    let server = thread::spawn(move || {
        server.abandon(upload);
        // Whoever reads hears of it, and nobody else.
        let mut out = sender(&b);
        say(&mut out, upload, Head::new(Kind::Error, Status::Cancelled as u32), &[0; 4]);
        writer.join().unwrap();
        say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id)));
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

fn long_items_are_sent_a_piece_each_in_turn() {
    let (a, b) = connection::<Cells>(4, 64);
    let desk = desk(&a, PLACES);
    let sends = |desk: &Shared| {
        let id = open(desk, 0, Wait::Never).unwrap();
        let (mut cut, mut seq) = (Cut::new(Head::new(Kind::Call, 7), 65), 0);
        desk.send_item(&mut cut, [&[4; 32], &[4; 33]], &mut seq, id, Wait::FOREVER).unwrap();
        assert_eq!(seq, 2);
    };
    let other = desk.clone();
    let other = thread::spawn(move || sends(&other));
    sends(&desk);
    other.join().unwrap();
    let mut inb = receiver(&b);
    let mut frames = [(); 4].map(|()| hear(&mut inb).unwrap());
    frames.sort_by_key(|(id, ..)| *id); // It is stable.
    let pieces = frames.map(|(_, head, body)| (head.kind, head.seq, body.len()));
    let [one, two] = [(Kind::Call, 0, 64), (Kind::Rest, 1, 1)];
    assert_eq!(pieces, [one, two, one, two]);
}

fn who_is_too_late_to_send_lets_the_next_one_send() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, 4);
    begin(&desk, 0); // The ring is full.
    a.clock().strike();
    let [late, other] = [soon(), Wait::FOREVER].map(|wait| {
        let desk = desk.clone();
        thread::spawn(move || {
            let id = open(&desk, 0, Wait::Never).unwrap();
            let mut cut = Cut::new(Head::new(Kind::Call, 8), 0);
            desk.send_item(&mut cut, [&[], &[]], &mut 0, id, wait)
        })
    });
    let mut inb = receiver(&b);
    assert_eq!(hear(&mut inb).unwrap().1.word, 7);
    assert_eq!(hear(&mut inb).unwrap().1.word, 8);
    assert_eq!(other.join().unwrap(), Ok(()));
    if late.join().unwrap().is_ok() {
        hear(&mut inb).unwrap();
    }
}

fn what_is_over_is_not_sent_on() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, UPLOAD, Wait::Never).unwrap();
    let (mut cut, mut seq) = (Cut::new(Head::new(Kind::Chunk, 0), 200), 1);
    let sent = desk.send_item(&mut cut, [&[1; 200], &[]], &mut seq, id, Wait::Never);
    assert_eq!((sent, seq), (Err(Stop::Timeout), 3));
    reply(&b, &[id]);
    assert_eq!(desk.wait(desk.pushed(), Wait::Never, |_| None::<()>), Err(Stop::Timeout));
    assert_eq!(desk.send_item(&mut cut, [&[1; 200], &[]], &mut seq, id, Wait::Never), Err(Stop::Over));
    assert_eq!(end(&desk, id, Wait::Never), Ok(reply_to(id)));
}

/// Two threads wait for a place, and one is freed. The wake may go to the thread whose deadline passes at that moment.
fn a_waiter_that_was_chosen_at_its_deadline_leaves_the_place_to_another() {
    let (a, b) = connection::<Cells>(1, 64);
    let desk = desk(&a, PLACES);
    let [slow, unused] = [0; 2].map(|_| open(&desk, 0, Wait::Never).unwrap());
    let late = desk.clone();
    let late = thread::spawn(move || {
        open(&late, 0, soon()).into_iter().for_each(|id| late.unsend(id));
    });
    let other = desk.clone();
    let other = thread::spawn(move || {
        begin(&other, 0);
        reply(&b, &[slow]);
    });
    desk.unsend(unused);
    assert_eq!(end(&desk, slow, Wait::FOREVER), Ok(reply_to(slow)));
    late.join().unwrap();
    other.join().unwrap();
}

/// Two threads wait for pushes, one without a deadline: it gets what the other does not take.
fn a_waiter_for_pushes_that_was_chosen_at_its_deadline_loses_none() {
    let (a, b) = connection::<Cells>(2, 64);
    let desk = desk(&a, PLACES);
    let id = open(&desk, 0, Wait::Never).unwrap();
    let mut out = sender(&b);
    say(&mut out, 0, Head::new(Kind::Push, 0), &[1]);
    say(&mut out, 0, Head { seq: 1, ..Head::new(Kind::Push, 0) }, &[2]);
    let take = |desk: &Shared, wait| desk.wait(desk.pushed(), wait, |table| table.next_push());
    let late = desk.clone();
    let late = thread::spawn(move || drop(take(&late, soon())));
    let other = desk.clone();
    let other = thread::spawn(move || {
        take(&other, Wait::FOREVER).unwrap();
        say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id));
    });
    assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id)));
    other.join().unwrap();
    late.join().unwrap();
}
