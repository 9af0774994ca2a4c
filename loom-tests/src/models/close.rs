//! Each way in which a connection ends: the peer's close, the peer's death as a third thread reports it, and this side's close
//! from another thread. Each meets a thread that sleeps, one that is about to sleep, and one that works.

use loom::thread;
use narrows::internal::memory::{Flag, Load, Memory, Word};

use super::super::code::ring::{self, CloseReason, close_both, on_peer_gone};
use super::super::code::{ConnectionError, RecvCoreError, SendCoreError, Wait};
use super::{Named, named, receiver, recv, recv_within, send, sender, take_flag_and_die, wait_for_either};
use crate::memory::{Cells, Side, connection};

pub(super) const ALL: &[Named] = named![
    the_producers_close_ends_a_receiver_which_drains_first,
    a_sender_that_moved_to_another_thread_closes_behind_its_messages,
    the_consumers_close_ends_a_sender_that_waits_for_space,
    a_close_ends_a_thread_that_waits_for_either,
    a_closed_flag_set_after_a_message_never_hides_it,
    death_seen_by_a_third_thread_ends_a_sleeping_receiver,
    death_seen_by_a_third_thread_ends_a_sleeping_sender,
    a_death_between_the_flag_and_the_wake_is_reported_to_a_receiver,
    a_death_between_the_flag_and_the_wake_is_reported_to_a_sender,
    messages_committed_before_a_death_are_received_first,
    a_close_by_another_thread_comes_behind_the_messages,
    local_close_ends_both_sleepers_of_a_side,
    local_close_ends_the_peers_sleepers_which_drain_first,
];

const DISCONNECTED: RecvCoreError = RecvCoreError::Ended(ConnectionError::Disconnected);
const DIED: RecvCoreError = RecvCoreError::Ended(ConnectionError::PeerDied);

/// Does what the thread of the peer monitor does when the peer's process is gone.
fn report_peer_death(side: &Side<Cells>) {
    on_peer_gone(&side.out, &side.into, CloseReason::Died);
}

fn the_producers_close_ends_a_receiver_which_drains_first() {
    let (a, b) = connection::<Cells>(2, 64);
    let thread = thread::spawn(move || {
        let mut out = sender(&a);
        send(&mut out, &[1]).unwrap();
        out.ring().close();
    });
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    assert_eq!(recv(&mut inb), Err(DISCONNECTED));
    thread.join().unwrap();
}

fn a_sender_that_moved_to_another_thread_closes_behind_its_messages() {
    let (a, b) = connection::<Cells>(1, 64);
    let first = thread::spawn(move || {
        let mut out = sender(&a);
        send(&mut out, &[1]).unwrap();
        out
    });
    let second = thread::spawn(move || first.join().unwrap().ring().close());
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    assert_eq!(recv(&mut inb), Err(DISCONNECTED));
    second.join().unwrap();
}

fn the_consumers_close_ends_a_sender_that_waits_for_space() {
    let (a, b) = connection::<Cells>(1, 64);
    let thread = thread::spawn(move || receiver(&b).ring().close());
    let mut out = sender(&a);
    let mut sent = 0;
    while send(&mut out, &[0]).is_ok() {
        sent += 1;
    }
    assert!(sent <= 1);
    thread.join().unwrap();
}

fn a_close_ends_a_thread_that_waits_for_either() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let peer = thread::spawn(move || receiver(&b).ring().close());
    let inb = receiver(&a);
    wait_for_either(&a, || inb.ring().is_ready() || out.ring().is_released(0));
    assert_eq!(out.check(), Err(ConnectionError::Disconnected));
    peer.join().unwrap();
}

fn a_closed_flag_set_after_a_message_never_hides_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let peer = thread::spawn(move || {
        send(&mut sender(&a), &[1]).unwrap();
        ring::close(&a.out, Word::ProducerClosed, Flag::Consumer);
    });
    let mut inb = receiver(&b);
    let mut got = 0;
    loop {
        match recv_within(&mut inb, Wait::Never) {
            Ok(_) => got += 1,
            Err(RecvCoreError::Empty) => thread::yield_now(),
            Err(_) => break,
        }
    }
    assert_eq!(got, 1);
    peer.join().unwrap();
}

fn death_seen_by_a_third_thread_ends_a_sleeping_receiver() {
    let (a, b) = connection::<Cells>(2, 64);
    let mut out = sender(&a);
    let other = b.clone();
    let peer = thread::spawn(move || send(&mut out, &[1]));
    let monitor = thread::spawn(move || report_peer_death(&other));
    let mut inb = receiver(&b);
    let mut got = 0;
    let ended = loop {
        match recv(&mut inb) {
            Ok(_) => got += 1,
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended, DIED);
    assert!(got <= 1);
    monitor.join().unwrap();
    peer.join().unwrap().unwrap();
}

fn death_seen_by_a_third_thread_ends_a_sleeping_sender() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let other = a.clone();
    let peer = thread::spawn(move || recv(&mut receiver(&b)).map(drop));
    let monitor = thread::spawn(move || report_peer_death(&other));
    while send(&mut out, &[1]).is_ok() {}
    assert_eq!(out.check(), Err(ConnectionError::PeerDied));
    monitor.join().unwrap();
    peer.join().unwrap().unwrap();
}

fn a_death_between_the_flag_and_the_wake_is_reported_to_a_receiver() {
    let (_a, b) = connection::<Cells>(1, 64);
    let (peers, other) = (b.clone(), b.clone());
    let monitor = thread::spawn(move || {
        take_flag_and_die(&peers.into, Flag::Consumer);
        report_peer_death(&other);
    });
    assert_eq!(recv(&mut receiver(&b)), Err(DIED));
    monitor.join().unwrap();
}

fn a_death_between_the_flag_and_the_wake_is_reported_to_a_sender() {
    let (a, _b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let (peers, other) = (a.clone(), a.clone());
    let monitor = thread::spawn(move || {
        take_flag_and_die(&peers.out, Flag::Producer);
        report_peer_death(&other);
    });
    assert_eq!(send(&mut out, &[1]), Err(SendCoreError::Ended(ConnectionError::PeerDied)));
    monitor.join().unwrap();
}

fn messages_committed_before_a_death_are_received_first() {
    let (a, b) = connection::<Cells>(2, 64);
    let other = b.clone();
    let peer = thread::spawn(move || send(&mut sender(&a), &[1]));
    // The kernel reports a death after everything that the peer did.
    let monitor = thread::spawn(move || {
        peer.join().unwrap().unwrap();
        report_peer_death(&other);
    });
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    assert_eq!(recv(&mut inb), Err(DIED));
    monitor.join().unwrap();
}

fn a_close_by_another_thread_comes_behind_the_messages() {
    let (a, b) = connection::<Cells>(1, 64);
    let closing = a.clone();
    let first = thread::spawn(move || send(&mut sender(&a), &[1]));
    let second = thread::spawn(move || {
        first.join().unwrap().unwrap();
        close_both(&closing.out, &closing.into, CloseReason::Closed);
    });
    let mut inb = receiver(&b);
    assert_eq!(recv(&mut inb).unwrap(), [1]);
    assert_eq!(recv(&mut inb), Err(DISCONNECTED));
    second.join().unwrap();
}

fn local_close_ends_both_sleepers_of_a_side() {
    let (a, _b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    send(&mut out, &[0]).unwrap();
    let receiving = a.clone();
    let first = thread::spawn(move || send(&mut out, &[1]));
    let second = thread::spawn(move || {
        let end = recv(&mut receiver(&receiving));
        // A thread that gets this error may end the process at once, so the closed flags must be set before.
        assert_ne!(receiving.out.load(Word::ProducerClosed, Load::Relaxed), 0);
        assert_ne!(receiving.into.load(Word::ConsumerClosed, Load::Relaxed), 0);
        end
    });
    close_both(&a.out, &a.into, CloseReason::Closed);
    assert_eq!(first.join().unwrap(), Err(SendCoreError::Ended(ConnectionError::Closed)));
    assert_eq!(second.join().unwrap(), Err(RecvCoreError::Ended(ConnectionError::Closed)));
}

fn local_close_ends_the_peers_sleepers_which_drain_first() {
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&b);
    send(&mut out, &[0]).unwrap();
    send(&mut sender(&a), &[7]).unwrap();
    let receiving = b.clone();
    let first = thread::spawn(move || send(&mut out, &[1]));
    let second = thread::spawn(move || {
        let mut inb = receiver(&receiving);
        assert_eq!(recv(&mut inb), Ok(vec![7]));
        recv(&mut inb)
    });
    close_both(&a.out, &a.into, CloseReason::Closed);
    assert_eq!(first.join().unwrap(), Err(SendCoreError::Ended(ConnectionError::Disconnected)));
    assert_eq!(second.join().unwrap(), Err(DISCONNECTED));
}
