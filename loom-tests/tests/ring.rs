//! The shipped ring and channel under loom: no lost wake-up, no race, order kept, every end seen.

use std::io::IoSlice;

use loom::sync::Arc;
use loom::thread;
use loom_tests::{Lock, Side, View, connection, model};
use narrows::internal::mem::{Flag, Memory};
use narrows::internal::ring::{self, Bed, Fate, Poster, bell, rouse, sleep, urgent};
use narrows::internal::{Ended, Inbound, Monitor, NoPace, Outbound, RecvFault, SendFault, Wait, in_turn};

fn send(out: &mut Outbound<View, NoPace>, message: &[u8]) -> Result<usize, SendFault> {
    out.send(&[IoSlice::new(message)], 0, Wait::FOREVER)
}

fn recv(inb: &mut Inbound<View, NoPace>) -> Result<Vec<u8>, RecvFault> {
    let mut buffer = Vec::new();
    inb.recv_into(&mut buffer, Wait::FOREVER).map(|_| buffer)
}

/// Sends messages of these lengths from a thread, and receives them here.
fn carries(slots: usize, arena: usize, lens: &'static [usize]) {
    model(move || {
        let (a, b) = connection(slots, arena);
        let sender = thread::spawn(move || {
            let mut out = a.sender();
            for (i, len) in (1..).zip(lens) {
                send(&mut out, &vec![i; *len]).unwrap();
            }
        });
        let mut inb = b.receiver();
        for (i, len) in (1..).zip(lens) {
            assert_eq!(recv(&mut inb).unwrap(), vec![i; *len]);
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_sleeping_receiver_is_woken() {
    carries(2, 64, &[8]);
}

#[test]
fn both_sides_sleep_in_a_ring_of_one_slot() {
    carries(1, 64, &[8, 0]);
}

#[test]
fn a_ring_of_two_slots_wraps() {
    carries(2, 64, &[8, 1, 8]);
}

#[test]
fn arena_payload_and_its_reuse() {
    carries(2, 128, &[105, 128]);
}

#[test]
fn a_long_message_goes_through_a_small_ring() {
    carries(1, 64, &[130]);
}

#[test]
fn heads_are_published_lazily_and_no_sender_is_forgotten() {
    model(|| {
        let (a, b) = connection(4, 64);
        let mut out = a.sender();
        for i in 0..4 {
            send(&mut out, &[i]).unwrap();
        }
        let sender = thread::spawn(move || {
            send(&mut out, &[4]).unwrap();
            send(&mut out, &[5]).unwrap();
        });
        let mut inb = b.receiver();
        for i in 0..6 {
            assert_eq!(recv(&mut inb).unwrap(), [i]);
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_head_is_never_hidden_from_a_sender_once_the_ring_is_dry() {
    // The second message needs the whole arena, and the first is small enough to stay hidden.
    carries(4, 512, &[105, 512]);
}

#[test]
fn a_batch_is_published_at_once() {
    model(|| {
        let (a, b) = connection(2, 64);
        let sender = thread::spawn(move || {
            let mut out = a.sender();
            let mut to = out.ring().next();
            for i in 0..2 {
                let claim = out.stage(to, 1).unwrap();
                out.ring().open(&claim);
                out.ring().write(&claim, 0, &[i], narrows::internal::mem::Tail::Zero).unwrap();
                out.describe_whole(&claim, 1, 0);
                to = claim.after();
            }
            out.publish(to, false);
            send(&mut out, &[2]).unwrap();
        });
        let mut inb = b.receiver();
        for i in 0..3 {
            assert_eq!(recv(&mut inb).unwrap(), [i]);
        }
        sender.join().unwrap();
    });
}

#[test]
fn the_producers_close_ends_a_receiver_which_drains_first() {
    model(|| {
        let (a, b) = connection(2, 64);
        let sender = thread::spawn(move || {
            let mut out = a.sender();
            send(&mut out, &[1]).unwrap();
            out.ring().close();
        });
        let mut inb = b.receiver();
        assert_eq!(recv(&mut inb).unwrap(), [1]);
        assert_eq!(recv(&mut inb), Err(RecvFault::Ended(Ended::Disconnected)));
        sender.join().unwrap();
    });
}

#[test]
fn the_consumers_close_ends_a_sender_that_waits_for_space() {
    model(|| {
        let (a, b) = connection(1, 64);
        let receiver = thread::spawn(move || b.receiver().ring().close());
        let mut out = a.sender();
        let mut sent = 0;
        while send(&mut out, &[0]).is_ok() {
            sent += 1;
        }
        assert!(sent <= 1);
        receiver.join().unwrap();
    });
}

/// What the lifeline does to one side when the peer is gone, and a closer for its own.
fn end(side: &Side, fate: Fate) {
    side.out.settle(fate as u64);
    rouse(&side.into, Flag::Consumer);
    rouse(&side.out, Flag::Producer);
}

#[test]
fn death_seen_by_a_third_thread_ends_a_sleeping_receiver() {
    model(|| {
        let (a, b) = connection(2, 64);
        let mut out = a.sender();
        let other = b.clone();
        let sender = thread::spawn(move || send(&mut out, &[1]));
        let lifeline = thread::spawn(move || end(&other, Fate::Died));
        let mut inb = b.receiver();
        let mut got = 0;
        let ended = loop {
            match recv(&mut inb) {
                Ok(_) => got += 1,
                Err(ended) => break ended,
            }
        };
        assert_eq!(ended, RecvFault::Ended(Ended::PeerDied));
        assert!(got <= 1);
        lifeline.join().unwrap();
        sender.join().unwrap().unwrap();
    });
}

#[test]
fn local_close_ends_both_sleepers_of_a_side() {
    model(|| {
        let (a, _b) = connection(1, 64);
        let mut out = a.sender();
        send(&mut out, &[0]).unwrap();
        let (sending, receiving) = (a.clone(), a.clone());
        let sender = thread::spawn(move || {
            let _side = &sending;
            send(&mut out, &[1])
        });
        let receiver = thread::spawn(move || recv(&mut receiving.receiver()));
        end(&a, Fate::Closed);
        assert_eq!(sender.join().unwrap(), Err(SendFault::Ended(Ended::Closed)));
        assert_eq!(receiver.join().unwrap(), Err(RecvFault::Ended(Ended::Closed)));
    });
}

#[test]
fn what_was_committed_before_a_death_is_received_first() {
    model(|| {
        let (a, b) = connection(2, 64);
        let other = b.clone();
        let peer = thread::spawn(move || {
            send(&mut a.sender(), &[1]).unwrap();
            // The kernel reports a death after everything that the peer did.
            end(&other, Fate::Died);
        });
        let mut inb = b.receiver();
        assert_eq!(recv(&mut inb).unwrap(), [1]);
        assert_eq!(recv(&mut inb), Err(RecvFault::Ended(Ended::PeerDied)));
        peer.join().unwrap();
    });
}

#[test]
fn one_thread_waits_for_either() {
    model(|| {
        let (a, b) = connection(1, 64);
        let mut out = a.sender();
        send(&mut out, &[0]).unwrap();
        let peer = thread::spawn(move || {
            // Takes one, answers one: either of them must wake the other side.
            let taken = recv(&mut b.receiver()).unwrap();
            send(&mut b.sender(), &taken).unwrap();
        });
        let inb = a.receiver();
        let (mut message, mut space) = (false, false);
        while !(message && space) {
            let look = || {
                let now = (inb.ring().stirred(), out.ring().released(0));
                (now != (message, space)).then_some(now)
            };
            (message, space) = sleep(&Bed::either(&a.into, &a.out), None, look).unwrap();
        }
        peer.join().unwrap();
    });
}

#[test]
fn one_thread_that_waits_for_either_is_woken_by_space_alone() {
    model(|| {
        let (a, b) = connection(1, 64);
        let mut out = a.sender();
        send(&mut out, &[0]).unwrap();
        let peer = thread::spawn(move || recv(&mut b.receiver()).map(drop));
        let inb = a.receiver();
        let look = || (inb.ring().stirred() || out.ring().released(0)).then_some(());
        assert_eq!(sleep(&Bed::either(&a.into, &a.out), None, look), Some(()));
        peer.join().unwrap().unwrap();
    });
}

#[test]
fn one_thread_that_waits_for_either_is_woken_by_a_message_alone() {
    model(|| {
        let (a, b) = connection(1, 64);
        let mut out = a.sender();
        send(&mut out, &[0]).unwrap();
        let peer = thread::spawn(move || send(&mut b.sender(), &[1]).map(drop));
        let inb = a.receiver();
        let look = || (inb.ring().stirred() || out.ring().released(0)).then_some(());
        assert_eq!(sleep(&Bed::either(&a.into, &a.out), None, look), Some(()));
        peer.join().unwrap().unwrap();
    });
}

#[test]
fn a_sleeper_may_move_from_one_bed_to_the_other() {
    model(|| {
        let (a, b) = connection(1, 64);
        let mut out = a.sender();
        send(&mut out, &[0]).unwrap();
        let peer = thread::spawn(move || {
            let mut inb = b.receiver();
            (0..3).for_each(|i| assert_eq!(recv(&mut inb).unwrap(), [i]));
        });
        let inb = a.receiver();
        // First it waits for either, then for space alone, then for either again.
        let look = |out: &Outbound<View, NoPace>, ticket| {
            (inb.ring().stirred() || out.ring().released(ticket)).then_some(())
        };
        sleep(&Bed::either(&a.into, &a.out), None, || look(&out, 0)).unwrap();
        send(&mut out, &[1]).unwrap();
        send(&mut out, &[2]).unwrap();
        sleep(&Bed::either(&a.into, &a.out), None, || look(&out, 2)).unwrap();
        peer.join().unwrap();
    });
}

#[test]
fn an_urgent_word_wakes_and_is_seen() {
    model(|| {
        let (a, b) = connection(1, 64);
        let peer = thread::spawn(move || Poster::new(a.out).post(3, 7));
        let rung = sleep(&Bed::consumer(&b.into), None, || (bell(&b.into) != 0).then_some(()));
        assert_eq!((rung, urgent(&b.into, 3)), (Some(()), 7));
        peer.join().unwrap();
    });
}

#[test]
fn threads_share_a_sender_in_turn_and_a_close_ends_them_all() {
    model(|| {
        let (a, _b) = connection(1, 64);
        let lock = Arc::new(Lock::new(a.sender()));
        let sharers: Vec<_> = (0..2)
            .map(|_| {
                let lock = lock.clone();
                thread::spawn(move || in_turn(&*lock, Wait::FOREVER, |out| send(out, &[1])).unwrap())
            })
            .collect();
        end(&a, Fate::Closed);
        let sent = sharers.into_iter().filter_map(|s| s.join().unwrap().ok()).count();
        assert!(sent <= 1, "the ring has one slot");
    });
}

#[test]
fn stray_wakes_change_nothing() {
    model(|| {
        let (a, b) = connection(1, 64);
        let stray = b.clone();
        let waker = thread::spawn(move || rouse(&stray.into, Flag::Consumer));
        let sender = thread::spawn(move || send(&mut a.sender(), &[1]));
        assert_eq!(recv(&mut b.receiver()).unwrap(), [1]);
        sender.join().unwrap().unwrap();
        waker.join().unwrap();
    });
}

#[test]
fn a_mark_set_after_a_message_never_hides_it() {
    model(|| {
        let (a, b) = connection(1, 64);
        let peer = thread::spawn(move || {
            let mut out = a.sender();
            send(&mut out, &[1]).unwrap();
            ring::close(&a.out, narrows::internal::mem::Word::ProducerMark, Flag::Consumer);
        });
        let mut inb = b.receiver();
        let mut got = 0;
        let mut buffer = Vec::new();
        loop {
            match inb.recv_into(&mut buffer, Wait::Never) {
                Ok(_) => got += 1,
                Err(RecvFault::Empty) => thread::yield_now(),
                Err(_) => break,
            }
        }
        assert_eq!(got, 1);
        peer.join().unwrap();
    });
}
