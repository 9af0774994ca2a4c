//! A sender that several threads share.

use loom::sync::Arc;
use loom::thread;

use super::super::code::ring::{CloseReason, close_both};
use super::super::code::{Lock, Wait, with_lock};
use super::{Named, named, receiver, recv, send, sender};
use crate::memory::{Cells, LoomLock, connection};

pub(super) const ALL: &[Named] =
    named![threads_share_a_sender_in_turn, threads_that_share_a_sender_are_all_ended_by_a_close];

fn threads_share_a_sender_in_turn() {
    let (a, b) = connection::<Cells>(1, 64);
    let lock = Arc::new(LoomLock::new(sender(&a)));
    let sharers: Vec<_> = (0..2)
        .map(|i| {
            let lock = lock.clone();
            thread::spawn(move || with_lock(&*lock, Wait::NO_DEADLINE, |out| send(out, &[i; 8])).unwrap())
        })
        .collect();
    let mut inb = receiver(&b);
    let mut got = [recv(&mut inb).unwrap(), recv(&mut inb).unwrap()];
    got.sort();
    assert_eq!(got, [[0; 8], [1; 8]]);
    assert!(sharers.into_iter().all(|sharer| sharer.join().unwrap().is_ok()));
}

fn threads_that_share_a_sender_are_all_ended_by_a_close() {
    let (a, _b) = connection::<Cells>(1, 64);
    let lock = Arc::new(LoomLock::new(sender(&a)));
    let sharers: Vec<_> = (0..2)
        .map(|_| {
            let lock = lock.clone();
            thread::spawn(move || with_lock(&*lock, Wait::NO_DEADLINE, |out| send(out, &[1])).unwrap())
        })
        .collect();
    close_both(&a.out, &a.into, CloseReason::Closed);
    let sent = sharers.into_iter().filter_map(|sharer| sharer.join().unwrap().ok()).count();
    assert!(sent <= 1, "the ring has one slot");
}
