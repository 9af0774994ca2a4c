//! A peer that writes anything anywhere: at random, plausibly, almost honestly, and by making holes.

use std::sync::atomic::Ordering;

use narrows::layout::{Control, Kind, SLOT, words};

use super::faults::byhand::ByHand;
use super::victim::{MAX_MESSAGE, Plays, run, work};

/// The words of both directions.
fn pages(hand: &ByHand) -> [usize; 2] {
    [hand.geometry.direction(0).words, hand.geometry.direction(1).words]
}

pub(super) const WORDS: [usize; 10] = [
    words::HEAD,
    words::CONSUMER_FLAG,
    words::PRODUCER_FLAG,
    words::WANTED,
    words::PRODUCER_CPU,
    words::CONSUMER_CPU,
    words::CONSUMER_WOKEN,
    words::PRODUCER_WOKEN,
    words::BELL,
    words::URGENT,
];

fn value(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..5) {
        0 => random.u64(0..20),
        1 => u64::MAX - random.u64(0..4),
        2 => 1 << random.u8(0..64),
        3 => (1 << 63) - random.u64(0..4),
        _ => random.u64(..),
    }
}

#[test]
fn random_words_everywhere() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let at = random.usize(0..hand.pages.len() / 8) * 8;
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
    };
    run("scribbles::random_words_everywhere", Plays::Client, attack, work);
}

#[test]
fn random_values_of_the_fixed_words() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let at = pages(hand)[random.usize(0..2)] + WORDS[random.usize(0..WORDS.len())];
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
        if random.u16(..) == 0 {
            let marks = [words::PRODUCER_MARK, words::CONSUMER_MARK];
            hand.pages
                .word(pages(hand)[random.usize(0..2)] + marks[random.usize(0..2)])
                .store(1, Ordering::Relaxed);
        }
    };
    run("scribbles::random_values_of_the_fixed_words", Plays::Client, attack, work);
}

#[test]
fn plausible_stamps_heads_and_lengths() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let ticket = random.u64(0..64);
        let direction = hand.geometry.direction(usize::from(random.u8(0..8) == 0));
        let slot = direction.slots + usize::try_from(ticket % 8).expect("small") * SLOT;
        let kinds = [Kind::Inline, Kind::Whole, Kind::First, Kind::Middle, Kind::Last];
        let control = Control {
            kind: kinds[random.usize(0..5)],
            abort: random.u8(0..4) == 0,
            len: if random.bool() { random.u32(0..106) } else { random.u32(0..20_000) },
            place: random.u32(0..260),
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

/// An almost honest producer: everything in order, so the victim gets deep into messages.
#[test]
fn an_endless_message_of_tiny_pieces_and_aborts() {
    let next = std::cell::Cell::new(0_u64);
    let inside = std::cell::Cell::new(false);
    let attack = move |hand: &ByHand, random: &mut fastrand::Rng| {
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
        let kind = if first { Kind::First } else { Kind::Middle };
        let control = Control { kind, abort: first && inside.get(), len: 1, place: random.u32(0..250) };
        hand.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        hand.pages.word(slot + 24).store(MAX_MESSAGE as u64, Ordering::Relaxed);
        hand.pages.word(slot).store(2 * ticket + 2, Ordering::Release);
        inside.set(true);
        next.set(ticket + 1);
    };
    run("scribbles::an_endless_message_of_tiny_pieces_and_aborts", Plays::Client, attack, work);
}

#[test]
fn holes_in_the_memory() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let page = random.usize(0..hand.pages.len() / 4096);
        hand.pages.punch(page * 4096, 4096 * random.usize(1..4));
        let at = random.usize(0..hand.pages.len() / 8) * 8;
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
    };
    run("scribbles::holes_in_the_memory", Plays::Client, attack, work);
}

#[test]
fn only_holes_in_the_memory() {
    let attack = |hand: &ByHand, _random: &mut fastrand::Rng| hand.pages.punch(0, hand.pages.len());
    run("scribbles::only_holes_in_the_memory", Plays::Client, attack, work);
}
