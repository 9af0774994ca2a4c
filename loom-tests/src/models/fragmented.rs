//! Fragmented messages: through a small ring, and abandoned between two fragments.

use std::io::IoSlice;
use std::time::Instant;

use loom::thread;

use super::super::code::{SendCoreError, Wait};
use super::parking::carry;
use super::{Named, named, receiver, recv, send, sender};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] = named![
    a_delivered_long_message_counts_as_sent,
    a_long_message_goes_through_a_small_ring,
    an_abandoned_message_is_dropped_whole
];

fn a_long_message_goes_through_a_small_ring() {
    carry(1, 64, &[130]);
}

fn a_delivered_long_message_counts_as_sent() {
    let (a, b) = connection::<Cells>(2, 64);
    let thread = thread::spawn(move || send(&mut sender(&a), &[7; 105]));
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [7; 105]);
    inb.ring().close();
    assert_eq!(thread.join().unwrap(), Ok(105));
}

fn an_abandoned_message_is_dropped_whole() {
    let (a, b) = connection::<Cells>(1, 64);
    let clock = a.clock();
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        let soon = Wait::Deadline(Some(Instant::now()));
        // It has two fragments. The deadline may pass before the first, between the two, or not at all.
        let first = out.send(&[IoSlice::new(&[7; 105])], 0, soon);
        assert!(matches!(first, Ok(105) | Err(SendCoreError::Full)));
        send(&mut out, &[1]).unwrap();
        first.is_ok()
    });
    clock.expire();
    let mut inb = receiver(&b);
    let mut message = recv(&mut inb).unwrap();
    let whole = message == [7; 105];
    if whole {
        message = recv(&mut inb).unwrap();
    }
    assert_eq!(message, [1]);
    assert_eq!(thread.join().unwrap(), whole);
}
