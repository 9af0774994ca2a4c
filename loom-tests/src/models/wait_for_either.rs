//! A thread that waits for a message or for space, whichever comes first.

use loom::thread;

use super::{Named, named, receiver, recv, send, sender, wait_for_either};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    one_thread_waits_for_either,
    one_thread_that_waits_for_either_is_woken_by_space_alone,
    one_thread_that_waits_for_either_is_woken_by_a_message_alone,
    a_sleeper_may_move_from_one_wait_slot_to_the_other,
];

fn one_thread_waits_for_either() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let peer = thread::spawn(move || {
        // Receives one message and sends one. Each of the two must wake the other side.
        let taken = recv(&mut receiver(&b)).unwrap();
        send(&mut sender(&b), &taken).unwrap();
    });
    let inb = receiver(&a);
    let seen = std::cell::Cell::new((false, false));
    while seen.get() != (true, true) {
        wait_for_either(&a, || {
            let now = (inb.ring().is_ready(), out.ring().is_released(0));
            seen.replace(now) != now
        });
    }
    peer.join().unwrap();
}

fn one_thread_that_waits_for_either_is_woken_by_space_alone() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let peer = thread::spawn(move || recv(&mut receiver(&b)).map(drop));
    let inb = receiver(&a);
    wait_for_either(&a, || inb.ring().is_ready() || out.ring().is_released(0));
    peer.join().unwrap().unwrap();
}

fn one_thread_that_waits_for_either_is_woken_by_a_message_alone() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let peer = thread::spawn(move || send(&mut sender(&b), &[1]).map(drop));
    let inb = receiver(&a);
    wait_for_either(&a, || inb.ring().is_ready() || out.ring().is_released(0));
    peer.join().unwrap().unwrap();
}

fn a_sleeper_may_move_from_one_wait_slot_to_the_other() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let peer = thread::spawn(move || {
        let mut inb = receiver(&b);
        (0..3).for_each(|i| assert_eq!(recv(&mut inb).unwrap(), [i]));
    });
    let inb = receiver(&a);
    // The thread waits for either, then for space alone, then for either again.
    wait_for_either(&a, || inb.ring().is_ready() || out.ring().is_released(0));
    send(&mut out, &[1]).unwrap();
    send(&mut out, &[2]).unwrap();
    wait_for_either(&a, || inb.ring().is_ready() || out.ring().is_released(2));
    peer.join().unwrap();
}
