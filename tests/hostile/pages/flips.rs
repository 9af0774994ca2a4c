//! A peer that changes what is being read, as fast as it can: a value that is read twice differs.
//!
//! The subject must use *one* of the values consistently. So each length has its own bytes: a length of one value with the
//! offset of another is detected.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use narrows::internal::layout::{Control, SlotKind, words};
use narrows::{ConnectionError, RecvTimeoutError, SharedMemoryStream};

use super::subject::{Plays, TIME, run, serve};
use crate::support::LONG;
use crate::support::raw_peer::RawPeer;

/// The bytes in the slots and in the arena: a byte, and the one that it flips to. Where the attacker has not yet written, the
/// arena is zero.
const SLOT_BYTES: [u8; 2] = [0xAA, 0xAB];
const ARENA_BYTES: [u8; 2] = [0xBA, 0xBB];

fn control(kind: SlotKind, len: u32, unit: u32) -> u64 {
    Control { kind, abort: false, len, unit }.encode()
}

/// The next free ticket, according to the head that the subject published and to the stamps.
fn next(hand: &RawPeer) -> Option<u64> {
    let head = hand.pages.word(hand.outgoing().words + words::HEAD).load(Ordering::Acquire);
    let free = |ticket: &u64| hand.pages.word(hand.slot(*ticket)).load(Ordering::Relaxed) < 2 * ticket + 2;
    (head..head + u64::from(hand.geometry.slots())).find(free)
}

/// Commits what is free with the first of these control words, then flips every slot through them all.
fn flip(hand: &RawPeer, random: &mut fastrand::Rng, values: &[u64]) {
    let slots = u64::from(hand.geometry.slots());
    while let Some(ticket) = next(hand) {
        hand.payload(ticket, &[u64::from_ne_bytes([SLOT_BYTES[0]; 8]); 13]);
        hand.pages.word(hand.slot(ticket) + 8).store(values[0], Ordering::Relaxed);
        hand.pages.word(hand.slot(ticket)).store(2 * ticket + 2, Ordering::Release);
    }
    // The control word has another value each time while the payload is written.
    let turn = random.usize(..values.len());
    let (early, late) = values.split_at(turn);
    for ticket in (0..slots).cycle().take(512) {
        let at = hand.slot(ticket) + 8;
        late.iter().chain(early).for_each(|value| hand.pages.word(at).store(*value, Ordering::Relaxed));
    }
    let which = random.usize(..2);
    (0..slots).for_each(|ticket| hand.payload(ticket, &[u64::from_ne_bytes([SLOT_BYTES[which]; 8]); 13]));
    // A part of the arena: it is much longer than all slots.
    for at in (hand.outgoing().arena + random.usize(..32) * 512..).step_by(8).take(64) {
        hand.pages.word(at).store(u64::from_ne_bytes([ARENA_BYTES[which]; 8]), Ordering::Relaxed);
    }
}

/// Receives in one of the ways. Returns the bytes of the message, or the end.
fn receive(stream: &mut SharedMemoryStream, way: u64) -> Result<Vec<u8>, RecvTimeoutError> {
    let mut buffer = vec![0; 20_000];
    match way % 3 {
        0 => {
            let len = stream.recv_timeout(&mut buffer, LONG)?.len;
            buffer.truncate(len);
        }
        1 => assert_eq!(stream.recv_into_timeout(&mut buffer, LONG)?.len, buffer.len()),
        _ => {
            let guard = stream.recv_ref_timeout(LONG)?;
            let len = guard.len();
            buffer = guard.to_vec().expect("inside");
            assert!(buffer.len() == len && guard.len() == len);
            assert!(guard.read_at(1, &mut vec![0; len]).is_err(), "a byte after the end");
            guard.finish().expect("the stamp is unchanged");
        }
    }
    Ok(buffer)
}

/// Receives until the time is over; each message must be one of these lengths, of their bytes.
fn receive_all(path: &Path, lens: &[(usize, &[u8])], violations: bool) -> String {
    let (listener, deadline) = (serve(path), Instant::now() + TIME);
    let (mut seen, mut violated) = (vec![0; lens.len()], 0);
    // Goes on if the machine is so busy that the attacker has hardly run by then.
    let enough = |seen: &[u64], violated: u64| seen.iter().all(|n| *n > 0) && (violated > 0 || !violations);
    while Instant::now() < deadline || !enough(&seen, violated) {
        let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
        for way in 0..2000 {
            match receive(&mut stream, way) {
                Ok(message) => {
                    let at = lens.iter().position(|(len, _)| *len == message.len());
                    let at = at.unwrap_or_else(|| panic!("{} bytes", message.len()));
                    assert!(message.iter().all(|byte| lens[at].1.contains(byte)), "bytes of another offset");
                    seen[at] += 1;
                }
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::ProtocolViolation)) if violations => {
                    violated += 1;
                    break;
                }
                Err(end) => panic!("{end:?}"),
            }
        }
    }
    format!("messages of each length: {seen:?}, {violated} violations")
}

const IN_SLOT: &[u8] = &SLOT_BYTES;
const IN_ARENA: &[u8] = &[0, ARENA_BYTES[0], ARENA_BYTES[1]];
const LENS: [(usize, &[u8]); 4] = [(8, IN_SLOT), (104, IN_SLOT), (200, IN_ARENA), (16 << 10, IN_ARENA)];

fn legal() -> [u64; 4] {
    let whole = SlotKind::Whole;
    [
        control(SlotKind::Inline, 8, 0),
        control(SlotKind::Inline, 104, 0),
        control(whole, 200, 3),
        control(whole, 16 << 10, 0),
    ]
}

#[test]
fn a_control_word_that_flips_between_legal_values() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| flip(hand, random, &legal());
    let subject = |path: &Path| receive_all(path, &LENS, false);
    run("flips::a_control_word_that_flips_between_legal_values", Plays::Client, attack, subject);
}

#[test]
fn a_control_word_that_flips_to_a_violation_and_back() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| {
        let violations = [
            control(SlotKind::Inline, 105, 0),
            control(SlotKind::Inline, u32::MAX, 0),
            control(SlotKind::Whole, (16 << 10) + 1, 0),
            control(SlotKind::Whole, 200, 254),
            control(SlotKind::Whole, u32::MAX, (1 << 26) - 1),
            control(SlotKind::Middle, 1, 0),
            0,
        ];
        let [a, b, c, d] = legal();
        // Mostly legal, so that the subject often enough begins to receive a message.
        let violation = violations[random.usize(..violations.len())];
        flip(hand, random, &[a, b, c, d, a, b, violation, c, d]);
    };
    let subject = |path: &Path| receive_all(path, &LENS, true);
    run("flips::a_control_word_that_flips_to_a_violation_and_back", Plays::Client, attack, subject);
}

/// Two fragments, a first and a last: the announced total flips, and so does the length of the last.
#[test]
fn a_total_that_flips_between_two_values() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let first = control(SlotKind::First, 1000, 0);
        let lasts = [control(SlotKind::Last, 500, 0), control(SlotKind::Last, 9000, 0)];
        let slots = u64::from(hand.geometry.slots());
        while let Some(ticket) = next(hand) {
            let word = if ticket % 2 == 0 { first } else { lasts[0] };
            hand.payload(ticket, &[1500]);
            hand.pages.word(hand.slot(ticket) + 8).store(word, Ordering::Relaxed);
            hand.pages.word(hand.slot(ticket)).store(2 * ticket + 2, Ordering::Release);
        }
        for (total, last) in [(1500, lasts[0]), (10_000, lasts[1])].into_iter().cycle().take(2000) {
            for ticket in (0..slots).step_by(2) {
                hand.payload(ticket, &[total]);
                hand.pages.word(hand.slot(ticket + 1) + 8).store(last, Ordering::Relaxed);
            }
            std::hint::spin_loop();
        }
        for at in (hand.outgoing().arena..).step_by(8).take(1 << 11) {
            hand.pages.word(at).store(u64::from_ne_bytes([ARENA_BYTES[0]; 8]), Ordering::Relaxed);
        }
    };
    let subject = |path: &Path| receive_all(path, &[(1500, IN_ARENA), (10_000, IN_ARENA)], true);
    run("flips::a_total_that_flips_between_two_values", Plays::Client, attack, subject);
}

/// A borrowed payload flips while it is read: each reading is one of the values, and within the message.
#[test]
fn a_borrowed_payload_that_flips() {
    let attack = |hand: &RawPeer, random: &mut fastrand::Rng| flip(hand, random, &[legal()[3]]);
    let subject = |path: &Path| {
        let (listener, deadline) = (serve(path), Instant::now() + TIME);
        let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
        let (mut readings, mut differ, mut last) = (0_u64, 0_u64, 0);
        while Instant::now() < deadline || differ == 0 {
            let guard = stream.recv_ref_timeout(LONG).expect("well-formed except for the bytes");
            for at in 0..200 {
                let mut byte = [0];
                guard.read_at(at * 80, &mut byte).expect("inside");
                assert!(IN_ARENA.contains(&byte[0]));
                differ += u64::from(byte[0] != last);
                (readings, last) = (readings + 1, byte[0]);
            }
            guard.finish().expect("the stamp is unchanged");
            std::thread::sleep(Duration::from_micros(50));
        }
        format!("{readings} readings, {differ} unlike the one before")
    };
    run("flips::a_borrowed_payload_that_flips", Plays::Client, attack, subject);
}
