//! A peer that writes anything anywhere: at random, plausibly, almost well-formed, and by making holes.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use narrows::internal::layout::{Control, SLOT, SlotKind, words};

use super::subject::{MAX_MESSAGE, Plays, options, run, work, work_as_client};
use crate::support::LONG;
use crate::support::raw_peer::{RawPeer, WORDS};

/// The offsets of the word pages of both directions.
fn pages(hand: &RawPeer) -> [usize; 2] {
    [hand.geometry.direction(0).words, hand.geometry.direction(1).words]
}

fn value(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..5) {
        0 => random.u64(0..20),
        1 => u64::MAX - random.u64(0..4),
        2 => 1 << random.u8(0..64),
        3 => (1 << 63) - random.u64(0..4),
        _ => random.u64(..),
    }
}

fn anything_anywhere(hand: &RawPeer, random: &mut fastrand::Rng) {
    let at = random.usize(0..hand.pages.len() / 8) * 8;
    hand.pages.word(at).store(value(random), Ordering::Relaxed);
}

#[test]
fn random_words_everywhere() {
    run("scribbles::random_words_everywhere", Plays::Client, anything_anywhere, work);
}

#[test]
fn random_words_everywhere_from_a_server() {
    run("scribbles::random_words_everywhere_from_a_server", Plays::Server, anything_anywhere, work_as_client);
}

#[test]
fn random_values_of_the_fixed_words() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        let at = pages(hand)[random.usize(0..2)] + WORDS[random.usize(0..WORDS.len())];
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
        if random.u16(..) == 0 {
            let closed_flags = [words::PRODUCER_CLOSED, words::CONSUMER_CLOSED];
            hand.pages
                .word(pages(hand)[random.usize(0..2)] + closed_flags[random.usize(0..2)])
                .store(1, Ordering::Relaxed);
        }
    };
    run("scribbles::random_values_of_the_fixed_words", Plays::Client, attack, work);
}

#[test]
fn plausible_stamps_heads_and_lengths() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        let ticket = random.u64(0..64);
        let direction = hand.geometry.direction(usize::from(random.u8(0..8) == 0));
        let slot = direction.slots + usize::try_from(ticket % 8).expect("small") * SLOT;
        let kinds = [SlotKind::Inline, SlotKind::Whole, SlotKind::First, SlotKind::Middle, SlotKind::Last];
        let control = Control {
            kind: kinds[random.usize(0..5)],
            abort: random.u8(0..4) == 0,
            len: if random.bool() { random.u32(0..106) } else { random.u32(0..20_000) },
            unit: random.u32(0..260),
        };
        let total = [12, 1000, 99_999, 100_001, u64::MAX][random.usize(0..5)];
        hand.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        hand.pages.word(slot + 24).store(total, Ordering::Relaxed);
        hand.pages.word(slot).store(2 * ticket + random.u64(1..3), Ordering::Release);
        if random.bool() {
            hand.pages.word(pages(hand)[1]).store(random.u64(0..64), Ordering::Release);
        }
    };
    run("scribbles::plausible_stamps_heads_and_lengths", Plays::Client, attack, work);
}

/// An almost well-formed producer: everything is in order, so that the subject gets deep into messages.
#[test]
fn an_endless_message_of_tiny_fragments_and_aborts() {
    let next = std::cell::Cell::new(0_u64);
    let inside = std::cell::Cell::new(false);
    let attack = move |hand: &RawPeer, random: &mut fastrand::Rng| {
        let direction = hand.geometry.direction(0);
        let head = hand.pages.word(direction.words).load(Ordering::Acquire);
        if head == 0 && next.get() > 8 {
            // A new connection.
            next.set(0);
            inside.set(false);
        }
        let ticket = next.get();
        if ticket >= head + 8 {
            return;
        }
        let slot = direction.slots + usize::try_from(ticket % 8).expect("small") * SLOT;
        let first = !inside.get() || random.u8(0..50) == 0;
        let kind = if first { SlotKind::First } else { SlotKind::Middle };
        let control = Control { kind, abort: first && inside.get(), len: 1, unit: random.u32(0..250) };
        hand.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        hand.pages.word(slot + 24).store(MAX_MESSAGE as u64, Ordering::Relaxed);
        hand.pages.word(slot).store(2 * ticket + 2, Ordering::Release);
        inside.set(true);
        next.set(ticket + 1);
    };
    run("scribbles::an_endless_message_of_tiny_fragments_and_aborts", Plays::Client, attack, work);
}

#[test]
fn holes_in_the_memory() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        let page = random.usize(0..hand.pages.len() / 4096);
        hand.pages.zero(page * 4096, 4096 * random.usize(1..4));
        anything_anywhere(hand, random);
    };
    run("scribbles::holes_in_the_memory", Plays::Client, attack, work);
}

#[test]
fn only_holes_in_the_memory() {
    let attack = |hand: &RawPeer, _random: &mut fastrand::Rng| hand.pages.zero(0, hand.pages.len());
    run("scribbles::only_holes_in_the_memory", Plays::Client, attack, work);
}

/// Announces the longest message that any connection can carry, and sends a few bytes of it.
#[test]
fn a_giant_message_of_which_little_arrives() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        hand.payload(0, &[u64::from(u32::MAX)]);
        hand.commit(0, Control { kind: SlotKind::First, abort: false, len: 4000, unit: 0 });
        hand.commit(1, Control { kind: SlotKind::Middle, abort: false, len: 4000, unit: 64 });
    };
    let subject = |path: &Path| {
        let listener = options().max_message(u32::MAX as usize).bind(path).expect("binds");
        let before = address_space();
        for _ in 0..8 {
            let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
            assert_eq!(stream.max_message(), u32::MAX as usize);
            for _ in 0..2 {
                let end = stream.recv_into_timeout(&mut Vec::new(), Duration::from_millis(20));
                assert!(matches!(
                    end.expect_err("the remainder never arrives"),
                    narrows::RecvTimeoutError::Timeout
                ));
            }
        }
        let grown = address_space() - before;
        // Room for what threads and allocators reserve, a quarter of what one message announced.
        assert!(grown < 256 << 10, "{grown} KiB were reserved for 8000 bytes");
        format!("{grown} KiB of address space at most")
    };
    run("scribbles::a_giant_message_of_which_little_arrives", Plays::Client, attack, subject);
}

/// Returns the most that this process ever had mapped, in KiB.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reads");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("listed");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}
