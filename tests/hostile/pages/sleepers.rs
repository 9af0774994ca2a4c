//! A peer that plays with our sleep: flags, wakes, sleepers moved and crowded, words that flicker.
//!
//! What is promised: every deadline is kept, and between the first 64 returns that came to nothing
//! and the deadline the caller naps for half a millisecond at a time. So a call costs a small part of
//! a CPU whatever the peer does; `frugal` asserts a quarter of one, for the whole process.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use narrows::internal::layout::{Control, SlotKind, words};
use narrows::{SharedMemoryStream, WaitStrategy};

use super::subject::{Plays, frugal, options, run, wishes};
use crate::support::raw_peer::RawPeer;
use crate::support::{LONG, reach, sys};

const SLEEP: Duration = Duration::from_millis(300);

/// The flags that the victim sleeps on: of the direction in which it receives, and of the other.
fn flags(hand: &RawPeer) -> [usize; 2] {
    [hand.outgoing().words + words::CONSUMER_FLAG, hand.incoming().words + words::PRODUCER_FLAG]
}

/// Sleeps in every way until the deadline, and until a close.
fn sleep(path: &Path) -> String {
    let mut tally = String::new();
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let listener = options().wait(strategy).bind(path).expect("binds");
        for call in [receive, send, either] {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker comes");
            while stream.try_send(&[1; 1000]).is_ok() {}
            tally += &sleep_once(&format!("{strategy:?}"), &mut stream, call);
        }
        for call in [receive, send, either] {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker comes");
            while stream.try_send(&[1; 1000]).is_ok() {}
            let closer = stream.closer();
            std::thread::scope(|s| {
                s.spawn(|| {
                    std::thread::sleep(SLEEP / 8);
                    closer.close();
                });
                assert!(call(&mut stream, LONG * 4), "a close ends the sleep");
            });
        }
    }
    tally
}

/// One call that sleeps to its deadline. A busy machine changes CPU time little and a count not at all:
/// behind 64 rounds that came to nothing there is half a millisecond between any two.
fn sleep_once(
    what: &str,
    stream: &mut SharedMemoryStream,
    call: fn(&mut SharedMemoryStream, Duration) -> bool,
) -> String {
    let (began, before) = (Instant::now(), stream.stats().sleeps);
    let ((), argument) = frugal(what, || assert!(!call(stream, SLEEP)));
    let (took, rounds) = (began.elapsed(), stream.stats().sleeps - before);
    assert!(u128::from(rounds) <= 70 + took.as_micros() / 500, "{what}: {rounds} rounds in {took:?}");
    format!("{rounds} rounds: {argument}")
}

/// Each waits for what never comes; whether the connection's end ended it.
fn receive(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    !stream.recv_timeout(&mut [0; 64], time).expect_err("nothing comes").is_timeout()
}

fn send(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    !stream.send_timeout(&[1; 1000], time).expect_err("there is no room").is_timeout()
}

fn either(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    match stream.wait_either_timeout(1000, time) {
        // It tells of the end as of a message that a receive would find.
        Ok(_) => !stream.try_recv(&mut [0; 64]).expect_err("nothing comes").is_empty(),
        Err(error) => !error.is_timeout(),
    }
}

#[test]
fn a_storm_of_wakes() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        flags(hand).iter().for_each(|at| sys::futex_wake(hand.pages.flag(*at)));
    };
    run("sleepers::a_storm_of_wakes", Plays::Client, attack, sleep);
}

#[test]
fn flags_cleared_for_ever() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        for at in flags(hand) {
            hand.pages.flag(at).store(random.u32(0..4) & !1, Ordering::Relaxed);
        }
    };
    run("sleepers::flags_cleared_for_ever", Plays::Client, attack, sleep);
}

#[test]
fn flags_cleared_and_woken_for_ever() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        for at in flags(hand) {
            hand.pages.flag(at).store(0, Ordering::Relaxed);
            sys::futex_wake(hand.pages.flag(at));
        }
    };
    run("sleepers::flags_cleared_and_woken_for_ever", Plays::Server, attack, sleep_as_client);
}

/// The same on the other side of a connection, where the directions are exchanged.
fn sleep_as_client(path: &Path) -> String {
    let mut tally = String::new();
    for call in [receive, send, either] {
        let mut stream = reach(path, &wishes());
        while stream.try_send(&[1; 1000]).is_ok() {}
        tally += &sleep_once("client", &mut stream, call);
    }
    tally
}

#[test]
fn sleepers_moved_to_another_word() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        for at in flags(hand) {
            let (flag, grave) = (hand.pages.flag(at), hand.pages.flag(hand.outgoing().words + 0x700));
            sys::futex_requeue(flag, grave);
            sys::futex_compare_and_requeue(flag, 1, grave);
        }
    };
    run("sleepers::sleepers_moved_to_another_word", Plays::Client, attack, sleep);
}

/// Nobody can wake one who was moved, so it must look again by itself.
#[test]
fn a_message_for_a_sleeper_that_was_moved_arrives() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let (flag, grave) = (hand.pages.flag(flags(hand)[0]), hand.pages.flag(hand.outgoing().words + 0x700));
        if sys::futex_requeue(flag, grave) > 0 {
            hand.commit(0, Control { kind: SlotKind::Inline, abort: false, len: 3, unit: 0 });
            flag.store(0, Ordering::Relaxed);
            sys::futex_wake(flag);
        }
    };
    let subject = |path: &Path| {
        let listener = options().wait(WaitStrategy::Park).bind(path).expect("binds");
        for _ in 0..4 {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker comes");
            let message = stream.recv_timeout(&mut [0; 8], LONG).expect("it comes");
            assert_eq!(message.len, 3);
        }
        "4 messages".into()
    };
    run("sleepers::a_message_for_a_sleeper_that_was_moved_arrives", Plays::Client, attack, subject);
}

/// Threads of the peer sleep on our words, before and behind us.
#[test]
fn a_crowd_in_our_bed() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        std::thread::scope(|s| {
            for thread in 0..16 {
                let word = hand.pages.flag(flags(hand)[thread % 2]);
                s.spawn(move || (0..8).for_each(|round| sys::futex_wait(word, round % 2, 1)));
            }
        });
    };
    run("sleepers::a_crowd_in_our_bed", Plays::Client, attack, sleep);
}

/// Calls that a flicker may end at once, when the lie is seen, or keep to their deadline.
fn flickered(path: &Path, call: impl Fn(&mut SharedMemoryStream)) -> String {
    let mut tally = String::new();
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let listener = options().wait(strategy).bind(path).expect("binds");
        for _ in 0..4 {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker comes");
            while stream.try_send(&[1; 1000]).is_ok() {}
            tally += &frugal("ended after", || call(&mut stream)).1;
        }
    }
    tally
}

/// A message shows while the victim sleeps, and none, or a lie, when it looks again.
#[test]
fn a_stamp_that_flickers() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let slot = hand.pages.word(hand.slot(0));
        slot.store(2, Ordering::Relaxed);
        for round in 0..64 {
            slot.store(round % 2, Ordering::Relaxed);
        }
        sys::futex_wake(hand.pages.flag(flags(hand)[0]));
    };
    let subject =
        |path: &Path| flickered(path, |stream| assert!(stream.recv_timeout(&mut [0; 64], SLEEP).is_err()));
    run("sleepers::a_stamp_that_flickers", Plays::Client, attack, subject);
}

/// The head shows room while the victim sleeps, and none, or a lie, when it looks again.
#[test]
fn a_head_that_flickers() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let head = hand.pages.word(hand.incoming().words + words::HEAD);
        head.store(1 << 40, Ordering::Relaxed);
        for _ in 0..64 {
            head.store(0, Ordering::Relaxed);
        }
        sys::futex_wake(hand.pages.flag(flags(hand)[1]));
    };
    let subject =
        |path: &Path| flickered(path, |stream| assert!(stream.send_timeout(&[1; 1000], SLEEP).is_err()));
    run("sleepers::a_head_that_flickers", Plays::Client, attack, subject);
}
