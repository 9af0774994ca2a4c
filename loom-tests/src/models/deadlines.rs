//! Deadlines. A third thread plays the clock.

use std::io::IoSlice;
use std::time::Instant;

use loom::thread;
use narrows::internal::memory::{Flag, Memory};

use super::super::code::ring::{WaitSlot, park};
use super::super::code::{RecvCoreError, SendCoreError, Wait};
use super::{Named, named, receiver, recv, recv_within, send, sender};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_receive_that_times_out_loses_nothing,
    a_send_that_times_out_sends_nothing,
    a_receiver_that_times_out_clears_its_flag,
    a_thread_that_waits_for_either_and_times_out_clears_both_flags,
];

fn soon() -> Wait {
    Wait::Deadline(Some(Instant::now()))
}

fn a_receive_that_times_out_loses_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let clock = b.clock();
    let timer = thread::spawn(move || clock.expire());
    let peer = thread::spawn(move || send(&mut sender(&a), &[1]));
    let mut inb = receiver(&b);
    let first = recv_within(&mut inb, soon());
    if first != Ok(vec![1]) {
        assert_eq!(first, Err(RecvCoreError::Empty));
        assert_eq!(recv(&mut inb), Ok(vec![1]));
    }
    peer.join().unwrap().unwrap();
    timer.join().unwrap();
}

fn a_send_that_times_out_sends_nothing() {
    let (a, b) = connection::<Cells>(1, 64);
    let clock = a.clock();
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let timer = thread::spawn(move || clock.expire());
    let peer = thread::spawn(move || {
        let mut inb = receiver(&b);
        assert_eq!(recv(&mut inb), Ok(vec![0]));
        recv(&mut inb).unwrap()
    });
    let sent = out.send(&[IoSlice::new(&[1])], 0, soon());
    if sent == Err(SendCoreError::Full) {
        send(&mut out, &[2]).unwrap();
    }
    assert_eq!(peer.join().unwrap(), [if sent.is_ok() { 1 } else { 2 }]);
    timer.join().unwrap();
}

fn a_receiver_that_times_out_clears_its_flag() {
    let (a, b) = connection::<Cells>(1, 64);
    let clock = b.clock();
    let timer = thread::spawn(move || clock.expire());
    let mut inb = receiver(&b);
    assert_eq!(recv_within(&mut inb, soon()), Err(RecvCoreError::Empty));
    // No thread sleeps, so the peer has no thread to wake.
    assert_eq!(a.out.load_flag(Flag::Consumer), 0);
    timer.join().unwrap();
}

fn a_thread_that_waits_for_either_and_times_out_clears_both_flags() {
    let (a, _b) = connection::<Cells>(1, 64);
    let clock = a.clock();
    let timer = thread::spawn(move || clock.expire());
    assert_eq!(park(&WaitSlot::either(&a.into, &a.out), Some(Instant::now()), 0, || None::<()>), None);
    assert_eq!([a.into.load_flag(Flag::Consumer), a.out.load_flag(Flag::Producer)], [0, 0]);
    timer.join().unwrap();
}
