//! A peer that disturbs the sleep of the subject: flags, wakes, moved sleepers, extra waiters, and words that flicker.
//!
//! Every deadline is kept. After the first 64 futile returns the caller backs off for half a millisecond at a time, until its
//! deadline. So a call costs a small part of a CPU whatever the peer does. `frugal` asserts a quarter of one, for the whole
//! process.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use narrows::internal::layout::{Control, SlotKind, words};
use narrows::{SharedMemoryStream, WaitStrategy};

use super::subject::{Plays, client_options, frugal, options, run};
use crate::support::raw_peer::RawPeer;
use crate::support::{LONG, reach, sys};

const SLEEP: Duration = Duration::from_millis(300);

/// The flags that the subject sleeps on: of the direction in which it receives, and of the other.
fn flags(hand: &RawPeer) -> [usize; 2] {
    [hand.outgoing().words + words::CONSUMER_FLAG, hand.incoming().words + words::PRODUCER_FLAG]
}

/// Sleeps in every way until the deadline, and until a close.
fn sleep(path: &Path) -> String {
    let mut tally = String::new();
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let listener = options().wait(strategy).bind(path).expect("binds");
        for call in [receive, send, either] {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
            while stream.try_send(&[1; 1000]).is_ok() {}
            tally += &sleep_once(&format!("{strategy:?}"), &mut stream, call);
        }
        for call in [receive, send, either] {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
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

/// Makes one call that sleeps until its deadline. A busy machine changes CPU time little and a count not at all: after 64
/// futile rounds there is half a millisecond between any two.
fn sleep_once(
    what: &str,
    stream: &mut SharedMemoryStream,
    call: fn(&mut SharedMemoryStream, Duration) -> bool,
) -> String {
    let (began, before) = (Instant::now(), stream.stats().sleeps);
    let ((), report) = frugal(what, || assert!(!call(stream, SLEEP)));
    let (took, rounds) = (began.elapsed(), stream.stats().sleeps - before);
    assert!(u128::from(rounds) <= 70 + took.as_micros() / 500, "{what}: {rounds} rounds in {took:?}");
    format!("{rounds} rounds: {report}")
}

/// Waits for a message that never comes. Returns whether the end of the connection ended the wait.
fn receive(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    !matches!(
        stream.recv_timeout(&mut [0; 64], time).expect_err("nothing comes"),
        narrows::RecvTimeoutError::Timeout
    )
}

fn send(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    !matches!(
        stream.send_timeout(&[1; 1000], time).expect_err("there is no room"),
        narrows::SendTimeoutError::Timeout
    )
}

fn either(stream: &mut SharedMemoryStream, time: Duration) -> bool {
    match stream.wait_either_timeout(1000, time) {
        // `wait_either` reports the end like a message that a receive would find.
        Ok(_) => !matches!(
            stream.try_recv(&mut [0; 64]).expect_err("nothing comes"),
            narrows::TryRecvError::WouldBlock
        ),
        Err(error) => !matches!(error, narrows::SendTimeoutError::Timeout),
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
fn flags_cleared_without_end() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        for at in flags(hand) {
            hand.pages.flag(at).store(random.u32(0..4) & !1, Ordering::Relaxed);
        }
    };
    run("sleepers::flags_cleared_without_end", Plays::Client, attack, sleep);
}

#[test]
fn flags_cleared_and_woken_without_end() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        for at in flags(hand) {
            hand.pages.flag(at).store(0, Ordering::Relaxed);
            sys::futex_wake(hand.pages.flag(at));
        }
    };
    run("sleepers::flags_cleared_and_woken_without_end", Plays::Server, attack, sleep_as_client);
}

/// The same on the other side of a connection, where the directions are exchanged.
fn sleep_as_client(path: &Path) -> String {
    let mut tally = String::new();
    for call in [receive, send, either] {
        let mut stream = reach(path, &client_options());
        while stream.try_send(&[1; 1000]).is_ok() {}
        tally += &sleep_once("client", &mut stream, call);
    }
    tally
}

#[test]
fn sleepers_moved_to_another_word() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        for at in flags(hand) {
            let (flag, unused) = (hand.pages.flag(at), hand.pages.flag(hand.outgoing().words + 0x700));
            sys::futex_requeue(flag, unused);
            sys::futex_compare_and_requeue(flag, 1, unused);
        }
    };
    run("sleepers::sleepers_moved_to_another_word", Plays::Client, attack, sleep);
}

/// No thread can wake a sleeper that was moved, so it must check again by itself.
#[test]
fn a_message_for_a_sleeper_that_was_moved_arrives() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let (flag, unused) =
            (hand.pages.flag(flags(hand)[0]), hand.pages.flag(hand.outgoing().words + 0x700));
        if sys::futex_requeue(flag, unused) > 0 {
            hand.commit(0, Control { kind: SlotKind::Inline, abort: false, len: 3, unit: 0 });
            flag.store(0, Ordering::Relaxed);
            sys::futex_wake(flag);
        }
    };
    let subject = |path: &Path| {
        let listener = options().wait(WaitStrategy::Park).bind(path).expect("binds");
        for _ in 0..4 {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
            let message = stream.recv_timeout(&mut [0; 8], LONG).expect("the message arrives");
            assert_eq!(message.len, 3);
        }
        "4 messages".into()
    };
    run("sleepers::a_message_for_a_sleeper_that_was_moved_arrives", Plays::Client, attack, subject);
}

/// Threads of the peer sleep on the words of the subject, before and after it.
#[test]
fn extra_waiters_of_the_peer_do_not_hide_our_waiter() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        std::thread::scope(|s| {
            for thread in 0..16 {
                let word = hand.pages.flag(flags(hand)[thread % 2]);
                s.spawn(move || (0..8).for_each(|round| sys::futex_wait(word, round % 2, 1)));
            }
        });
    };
    run("sleepers::extra_waiters_of_the_peer_do_not_hide_our_waiter", Plays::Client, attack, sleep);
}

/// Makes calls that a flicker may end at once, if the violation is seen, or keep until their deadline.
fn flickered(path: &Path, call: impl Fn(&mut SharedMemoryStream)) -> String {
    let mut tally = String::new();
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let listener = options().wait(strategy).bind(path).expect("binds");
        for _ in 0..4 {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
            while stream.try_send(&[1; 1000]).is_ok() {}
            tally += &frugal("ended after", || call(&mut stream)).1;
        }
    }
    tally
}

/// A message is visible while the subject sleeps. When it checks again, there is none, or a violation.
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

/// The head shows room while the subject sleeps. When it checks again, there is none, or a violation.
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
