//! Payloads: in a slot, in the arena and its reuse, in batches, empty, borrowed.

use loom::thread;
use narrows::internal::memory::{Field, Load, Memory, Padding};

use super::super::code::{RecvCoreError, Wait};
use super::parking::carry;
use super::{Named, named, receiver, recv, recv_within, send, sender, stage, try_send};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_ring_of_two_slots_wraps,
    arena_payloads_are_carried_and_their_space_is_reused,
    arena_space_is_reused_only_after_it_is_read,
    a_head_is_never_deferred_once_the_ring_is_empty,
    a_release_that_a_sender_awaits_is_never_deferred,
    unused_arena_space_of_a_reservation_is_given_back,
    a_head_that_is_published_without_a_check_is_published_after_the_read,
    a_batch_larger_than_the_space_is_carried,
    no_message_of_a_batch_is_seen_before_an_earlier_one,
    a_sender_that_never_blocks_overwrites_nothing,
    a_borrowed_message_is_not_overwritten,
];

fn a_ring_of_two_slots_wraps() {
    carry(2, 64, &[8, 1, 8]);
}

fn arena_payloads_are_carried_and_their_space_is_reused() {
    carry(2, 128, &[105, 128]);
}

fn arena_space_is_reused_only_after_it_is_read() {
    carry(4, 256, &[128, 105, 128]);
}

fn a_head_is_never_deferred_once_the_ring_is_empty() {
    // The second message needs the whole arena. The first is so small that its release may stay unpublished.
    carry(4, 512, &[105, 512]);
}

fn a_release_that_a_sender_awaits_is_never_deferred() {
    let (a, b) = connection::<Cells>(8, 256);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        // The last message needs the whole arena. The second is in a slot, and its release may never be published.
        for message in [&[0; 105][..], &[1], &[2; 256]] {
            send(&mut out, message).unwrap();
        }
    });
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [0; 105]);
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    thread.join().unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [2; 256]);
}

fn a_head_that_is_published_without_a_check_is_published_after_the_read() {
    let (a, b) = connection::<Cells>(4, 64);
    let (mut out, mut inb) = (sender(&a), receiver(&b));
    for i in 0..2 {
        send(&mut out, &[i]).unwrap();
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
    send(&mut out, &[2]).unwrap();
    let thread = thread::spawn(move || {
        let mut to = out.ring().next();
        for i in 3..6 {
            to = stage(&mut out, to, &[i]);
        }
        out.publish(to, false);
        // It would reuse the slot of the third message, which is being read or was read.
        let _full_or_not = try_send(&mut out, &[6]);
    });
    assert_eq!(recv(&mut inb).unwrap(), [2]);
    thread.join().unwrap();
}

fn unused_arena_space_of_a_reservation_is_given_back() {
    let (a, b) = connection::<Cells>(8, 512);
    let (mut out, mut inb) = (sender(&a), receiver(&b));
    for message in [&[0; 256][..], &[1; 105]] {
        send(&mut out, message).unwrap();
    }
    assert_eq!(recv(&mut inb).unwrap(), [0; 256]);
    // The rest of this cycle of the arena is too short, so this payload is in the next one.
    let claim = out.reserve(200, Wait::Never).unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [1; 105]);
    out.ring().mark_writing(&claim);
    out.commit(&claim, 0, 0);
    let thread = thread::spawn(move || {
        send(&mut out, &[2; 512]).unwrap();
        out
    });
    assert_eq!(recv(&mut inb).unwrap(), []);
    let mut out = thread.join().unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [2; 512]);
    let claim = out.reserve(256, Wait::Never).unwrap();
    out.ring().write(&claim, 0, &[3; 105], Padding::Zero).unwrap();
    out.ring().mark_writing(&claim); // A reservation does this when it is committed.
    out.commit(&claim, 105, 0);
    send(&mut out, &[4; 105]).unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [3; 105]);
    assert_eq!(recv(&mut inb).unwrap(), [4; 105]);
}

fn a_batch_larger_than_the_space_is_carried() {
    let (a, b) = connection::<Cells>(2, 64);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        let start = out.ring().next();
        let first = stage(&mut out, start, &[0]);
        let second = stage(&mut out, first, &[1]);
        assert!(out.stage(second, 1).is_err(), "the ring is full");
        out.publish(second, false);
        send(&mut out, &[2]).unwrap();
    });
    let mut inb = receiver(&b);
    for i in 0..3 {
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
    thread.join().unwrap();
}

fn no_message_of_a_batch_is_seen_before_an_earlier_one() {
    let (a, b) = connection::<Cells>(2, 64);
    let mut out = sender(&a);
    let start = out.ring().next();
    let first = stage(&mut out, start, &[0]);
    let second = stage(&mut out, first, &[1]);
    let thread = thread::spawn(move || out.publish(second, false));
    let mut inb = receiver(&b);
    // A consumer that sees the second message also sees the first: messages are committed in order.
    let second_seen = b.into.load_slot(1, Field::Stamp, Load::Acquire) == 4;
    let first = recv_within(&mut inb, Wait::Never);
    assert!(first == Ok(vec![0]) || (!second_seen && first == Err(RecvCoreError::Empty)), "{first:?}");
    for i in u8::from(first.is_ok())..2 {
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
    thread.join().unwrap();
}

fn a_sender_that_never_blocks_overwrites_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        let sent = (0..3).filter(|i| try_send(&mut out, &[*i; 9]).is_ok()).count();
        out.ring().close();
        sent
    });
    let mut inb = receiver(&b);
    let mut got = 0;
    while let Ok(message) = recv(&mut inb) {
        assert!(message.len() == 9 && message.iter().all(|byte| *byte == message[0]));
        got += 1;
    }
    assert_eq!(thread.join().unwrap(), got);
}

fn a_borrowed_message_is_not_overwritten() {
    let (a, b) = connection::<Cells>(1, 64);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        send(&mut out, &[1; 8]).unwrap();
        send(&mut out, &[2; 8]).unwrap();
    });
    let mut inb = receiver(&b);
    for i in 1..=2 {
        let message = inb.borrow_next(Wait::NO_DEADLINE).unwrap();
        let mut bytes = [0; 8];
        inb.read_at(&message, 0, &mut bytes[..4]).unwrap();
        inb.read_at(&message, 4, &mut bytes[4..]).unwrap();
        assert_eq!(bytes, [i; 8]);
        if i == 2 {
            inb.release(&message).unwrap(); // The next call releases the first.
        }
    }
    thread.join().unwrap();
}
