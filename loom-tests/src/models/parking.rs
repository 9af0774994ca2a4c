//! Both sides sleep, and no thread sleeps on when there is a message or space for it. The smallest ring has one slot.

use loom::thread;
use narrows::internal::memory::{Flag, Memory};

use super::super::code::ring::notify;
use super::{Named, named, receiver, recv, send, sender, sleep_until};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_sleeping_receiver_is_woken,
    both_sides_sleep_in_a_ring_of_one_slot,
    a_sleeping_sender_is_woken_by_the_release_that_it_awaits,
    deferred_heads_leave_no_sender_asleep,
    a_release_is_published_before_the_receive_returns,
    stray_wakes_change_nothing,
    a_late_wake_is_harmless,
    a_receiver_that_was_woken_has_no_flag_left_to_take,
];

/// Sends messages of these lengths from a thread, and receives them here.
pub(super) fn carry(slots: usize, arena: usize, lens: &'static [usize]) {
    let (a, b) = connection::<Cells>(slots, arena);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        for (i, len) in (1..).zip(lens) {
            send(&mut out, &vec![i; *len]).unwrap();
        }
    });
    let mut inb = receiver(&b);
    for (i, len) in (1..).zip(lens) {
        assert_eq!(recv(&mut inb).unwrap(), vec![i; *len]);
    }
    thread.join().unwrap();
}

fn a_sleeping_receiver_is_woken() {
    carry(2, 64, &[8]);
}

fn both_sides_sleep_in_a_ring_of_one_slot() {
    carry(1, 64, &[8, 0]);
}

fn a_sleeping_sender_is_woken_by_the_release_that_it_awaits() {
    carry(2, 64, &[8, 1, 15, 8]);
}

fn deferred_heads_leave_no_sender_asleep() {
    let (a, b) = connection::<Cells>(4, 64);
    let mut out = sender(&a);
    for i in 0..4 {
        send(&mut out, &[i]).unwrap();
    }
    let thread = thread::spawn(move || {
        send(&mut out, &[4]).unwrap();
        send(&mut out, &[5]).unwrap();
    });
    let mut inb = receiver(&b);
    for i in 0..6 {
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
    thread.join().unwrap();
}

fn a_release_is_published_before_the_receive_returns() {
    let (a, b) = connection::<Cells>(1, 64);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        send(&mut out, &[0]).unwrap();
        send(&mut out, &[1]).unwrap();
    });
    // Receives only once, and never looks again.
    assert_eq!(recv(&mut receiver(&b)).unwrap(), [0]);
    thread.join().unwrap();
}

fn stray_wakes_change_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let stray = b.clone();
    let waker = thread::spawn(move || notify(&stray.into, Flag::Consumer));
    let thread = thread::spawn(move || send(&mut sender(&a), &[1]));
    assert_eq!(recv(&mut receiver(&b)).unwrap(), [1]);
    thread.join().unwrap().unwrap();
    waker.join().unwrap();
}

fn a_late_wake_is_harmless() {
    let (a, b) = connection::<Cells>(1, 64);
    let stale = b.clone();
    // It wakes without having seen that a thread sleeps.
    let waker = thread::spawn(move || stale.into.wake(Flag::Consumer));
    let thread = thread::spawn(move || send(&mut sender(&a), &[1]));
    let mut inb = receiver(&b);
    assert!(sleep_until(&b.into, None, || inb.is_ready()));
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    thread.join().unwrap().unwrap();
    waker.join().unwrap();
}

fn a_receiver_that_was_woken_has_no_flag_left_to_take() {
    let (a, b) = connection::<Cells>(2, 64);
    let mut out = sender(&a);
    let thread = thread::spawn(move || {
        let mut inb = receiver(&b);
        assert_eq!([recv(&mut inb).unwrap(), recv(&mut inb).unwrap()], [[1], [2]]);
        // This thread stays awake: a producer that publishes now has no thread to wake.
        assert_eq!(b.into.load_flag(Flag::Consumer), 0);
    });
    send(&mut out, &[1]).unwrap();
    send(&mut out, &[2]).unwrap();
    thread.join().unwrap();
}
