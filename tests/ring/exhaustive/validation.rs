//! Every class of value of every word that is validated, in every cursor state of tiny rings.
//!
//! The expected results are derived a second time from the tables of `src/ring/mod.rs`, `src/ring/close.rs` and
//! `docs/protocol.md`. They are expressed unlike the library's: as ranges of bytes and lists of legal values. If the two differ,
//! one of them is wrong.

use std::sync::Arc;

use narrows::internal::layout::LAST_TICKET;
use narrows::internal::memory::{Field, Heap, Load, Memory, Padding, Span, Store, Word};
use narrows::internal::ring::Producer;
use narrows::internal::{
    ConnectionError, NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait,
};

use crate::support::log;
use crate::support::rings::{In, Out, send, try_take};

const FIRST: [u64; 7] = [0, 1, 5, (1 << 31) - 2, (1 << 32) - 2, (1 << 62) - 2, LAST_TICKET - 30];
const ARENA: usize = 64;
/// The longest message, in bytes. It is no multiple of another size.
const MAX: u64 = 100;
const VIOLATION: RecvCoreError = RecvCoreError::Ended(ConnectionError::ProtocolViolation);

fn ring(slots: u64, first: u64) -> (Out, In, Arc<Heap>) {
    let heap = Arc::new(Heap::new(count(slots), ARENA, 1));
    Producer::format(&heap, first);
    let max = count(MAX);
    (
        SenderCore::new(heap.clone(), NoWaitPolicy, first, max),
        ReceiverCore::new(heap.clone(), NoWaitPolicy, first, max),
        heap,
    )
}

/// Writes one ticket, legal or not.
fn forge(heap: &Heap, ticket: u64, stamp: u64, control: u64, total: u64) {
    heap.copy_in(Span::Slot(ticket), 0, &total.to_le_bytes(), Padding::Keep).expect("a slot");
    heap.store_slot(ticket, Field::Control, control, Store::Relaxed);
    heap.store_slot(ticket, Field::Stamp, stamp, Store::Release);
}

/// Returns whether the receiver has closed the connection for a protocol violation.
fn is_violation_recorded(heap: &Heap) -> bool {
    heap.load(Word::CloseReason, Load::Relaxed) == 4 && heap.load(Word::ConsumerClosed, Load::Relaxed) != 0
}

#[test]
fn every_stamp_in_every_cursor_state() {
    let (mut cases, mut violations) = (0, 0);
    for slots in [1, 2, 4, 8] {
        for first in FIRST {
            for taken in 0..=2 * slots {
                let ticket = first + taken;
                let near =
                    (0..=6 * slots + 6).map(|off| (2 * ticket).wrapping_sub(4 * slots).wrapping_add(off));
                let bits = (0..64).map(|bit| (2 * ticket + 2) ^ 1 << bit);
                for stamp in near.chain(bits).chain([0, 1, 2, u64::MAX, u64::MAX - 1, !ticket, ticket]) {
                    cases += 1;
                    violations += u64::from(check_stamp(slots, first, taken, stamp));
                }
            }
        }
    }
    log(&format!("{cases} stamps, {violations} of them violations"));
    assert!(violations > 1000 && cases - violations > 1000);
}

/// Checks a stamp for the ticket after `taken` well-formed ones. Returns whether it is a violation.
fn check_stamp(slots: u64, first: u64, taken: u64, stamp: u64) -> bool {
    let (mut out, mut inb, heap) = ring(slots, first);
    for number in 0..taken {
        send(&mut out, &number.to_le_bytes(), 0, Wait::Never).expect("room");
        try_take(&mut inb).expect("there");
    }
    let ticket = first + taken;
    let kept = if ticket >= slots { vec![0, 2 * (ticket - slots) + 2] } else { vec![0] };
    let (waiting, ready) = (kept.contains(&stamp) || stamp == 2 * ticket + 1, stamp == 2 * ticket + 2);
    forge(&heap, ticket, stamp, 3 << 32 | 1, 7);
    assert_eq!(inb.is_ready(), !waiting, "{stamp:#x} for {ticket:#x} of {slots}");
    match try_take(&mut inb) {
        Ok((message, _)) => assert!(ready && message == [7, 0, 0]),
        Err(RecvCoreError::Empty) => assert!(waiting, "{stamp:#x} for {ticket:#x} of {slots} is a violation"),
        Err(fault) => {
            assert!(
                fault == VIOLATION && !waiting && !ready && is_violation_recorded(&heap),
                "{stamp:#x}: {fault:?}"
            )
        }
    }
    !waiting && !ready
}

/// The incomplete message that a receiver holds: its bytes so far, and its announced length.
type Partial = Option<(Vec<u8>, u64)>;

/// The content of a slot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The low six bits: kind and abort.
    code: u64,
    len: u64,
    unit: u64,
    total: u64,
}

impl Slot {
    fn word(self) -> u64 {
        self.len << 32 | self.unit << 6 | self.code
    }

    /// Returns the bytes that it describes, or `None` if it is illegal.
    fn bytes(self) -> Option<Vec<u8>> {
        let slot: Vec<u8> = self.total.to_le_bytes().into_iter().chain([0; 96]).collect();
        let memory = if self.code & 31 == 1 { slot } else { arena() };
        let from = if self.code & 31 == 1 && self.unit > 0 { usize::MAX } else { count(self.unit) * 64 };
        let empty = self.len == 0 && self.code & 31 != 1;
        if empty { None } else { Some(memory.get(from..)?.get(..count(self.len))?.to_vec()) }
    }

    /// Returns a message, nothing yet, or an error for a violation.
    fn expected(self, partial: &mut Partial) -> Result<Option<Vec<u8>>, ()> {
        let (kind, abort, bytes) = (self.code & 31, self.code & 32 != 0, self.bytes().ok_or(())?);
        let begins = [1, 2, 3].contains(&kind);
        if ![1, 2, 3, 4, 5].contains(&kind) || abort != (begins && partial.is_some()) {
            return Err(());
        }
        let (mut sofar, total) = match partial.take() {
            _ if kind == 3 => (Vec::new(), self.total),
            _ if begins => (Vec::new(), self.len),
            Some(message) => message,
            None => return Err(()),
        };
        sofar.extend(bytes);
        let (is, whole) = (sofar.len() as u64, [1, 2, 5].contains(&kind));
        if total > MAX || (whole && is != total) || (!whole && is >= total) {
            return Err(());
        }
        if whole {
            return Ok(Some(sofar));
        }
        *partial = Some((sofar, total));
        Ok(None)
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).expect("a usize has 64 bits")
}

fn arena() -> Vec<u8> {
    (100..).take(ARENA).collect()
}

/// Returns well-formed slots that lead to every kind of state: nothing yet, a message before, fragments before.
fn states() -> Vec<Vec<Slot>> {
    let slot = |code, len, unit, total| Slot { code, len, unit, total };
    let first = |len, total| slot(3, len, 0, total);
    vec![
        vec![],
        vec![slot(1, 3, 0, 9)],
        vec![first(1, 2)],
        vec![first(1, MAX)],
        vec![first(64, 65)],
        vec![first(64, MAX)],
        vec![first(64, MAX), slot(4, 10, 0, 0)],
        vec![first(30, 60), slot(5, 30, 0, 0)],
        vec![first(30, 60), slot(32 | 1, 5, 0, 0)],
        vec![first(30, 60), slot(32 | 3, 64, 0, 70)],
    ]
}

/// Receives the next message: copied, or borrowed first. A borrowed message is validated, and nothing else checks it before the
/// caller reads it.
fn receive(inb: &mut In, borrows: bool) -> Result<Vec<u8>, RecvCoreError> {
    if !borrows {
        return try_take(inb).map(|(message, _)| message);
    }
    let message = inb.borrow_next(Wait::Never)?;
    let mut bytes = vec![0; message.len().min(1000)];
    inb.read_at(&message, 0, &mut bytes).expect("a borrowed message can be read");
    inb.release(&message).map(|()| bytes)
}

/// Checks one slot after well-formed ones. Returns whether it is a violation.
fn check_slot(slots: u64, before: &[Slot], last: Slot, borrows: bool) -> bool {
    let (_out, mut inb, heap) = ring(slots, 1);
    heap.copy_in(Span::Arena(0), 0, &arena(), Padding::Keep).expect("the arena");
    let mut partial = None;
    for (ticket, slot) in (1..).zip(before.iter().chain([&last])) {
        forge(&heap, ticket, 2 * ticket + 2, slot.word(), slot.total);
        let right = slot.expected(&mut partial);
        let is = receive(&mut inb, borrows);
        match &right {
            Ok(Some(message)) => assert_eq!(is.as_ref(), Ok(message), "{slot:?} after {before:?}"),
            Ok(None) => assert_eq!(is, Err(RecvCoreError::Empty), "{slot:?} after {before:?}"),
            Err(()) => {
                assert_eq!(is, Err(VIOLATION), "{slot:?} after {before:?}");
                assert!(is_violation_recorded(&heap) && try_take(&mut inb) == Err(VIOLATION));
                return true;
            }
        }
    }
    false
}

#[test]
fn every_control_word_in_every_state() {
    let lens: Vec<u64> = (0..=130).chain([256, 1 << 16, 1 << 31, u64::from(u32::MAX)]).collect();
    let units = [0, 1, 2, 1 << 25, (1 << 26) - 1];
    let (mut cases, mut violations) = (0, 0);
    let mut check = |slots, before: &[Slot], slot| {
        for borrows in [false, true] {
            cases += 1;
            violations += u64::from(check_slot(slots, before, slot, borrows));
        }
    };
    for before in states() {
        for code in 0..64 {
            for len in &lens {
                for unit in units {
                    // A first fragment must announce a longer message. Every total is tried below.
                    let total = if code & 31 == 3 { (len + 1).min(MAX) } else { u64::MAX };
                    check(1, &before, Slot { code, len: *len, unit, total });
                }
            }
        }
        for code in [3, 32 | 3] {
            for len in 0..=65 {
                for total in (0..=MAX + 1).chain([1 << 32, (1 << 32) + 64, 1 << 63, u64::MAX]) {
                    check(2, &before, Slot { code, len, unit: 0, total });
                }
            }
        }
    }
    log(&format!("{cases} control words and totals, {violations} of them violations"));
    assert!(violations > 10_000 && cases - violations > 10_000);
}

/// Returns a producer whose ring is full, the head that it knows, and its tail.
fn full(slots: u64, first: u64, released: u64) -> (Out, Arc<Heap>, u64, u64) {
    let (mut out, _inb, heap) = ring(slots, first);
    let put = |out: &mut Out| send(out, b"x", 0, Wait::Never);
    while put(&mut out).is_ok() {}
    heap.store(Word::Head, first + released, Store::Release);
    while put(&mut out).is_ok() {}
    (out, heap, first + released, first + released + slots)
}

#[test]
fn every_head_in_every_cursor_state() {
    let (mut cases, mut violations) = (0, 0);
    for slots in [1, 2, 4, 8] {
        for first in FIRST {
            for released in 0..=slots {
                let (known, tail) = (first + released, first + released + slots);
                let near = (0..=slots + 8).map(|off| known.wrapping_sub(4).wrapping_add(off));
                let bits = (0..64).map(|bit| known ^ 1 << bit);
                for head in near.chain(bits).chain([0, 1, u64::MAX, LAST_TICKET, LAST_TICKET + 1, !known]) {
                    let (mut out, heap, is_known, is_tail) = full(slots, first, released);
                    assert_eq!((is_known, is_tail), (known, tail));
                    heap.store(Word::Head, head, Store::Release);
                    let right = match head {
                        head if head < known || head > tail => {
                            violations += 1;
                            Err(SendCoreError::Ended(ConnectionError::ProtocolViolation))
                        }
                        head if head == known => Err(SendCoreError::Full),
                        _ => Ok(1),
                    };
                    cases += 1;
                    let violated = right == Err(SendCoreError::Ended(ConnectionError::ProtocolViolation));
                    let is = send(&mut out, b"y", 0, Wait::Never);
                    assert_eq!(is, right, "head {head:#x}, known {known:#x}, tail {tail:#x}");
                    let marked = heap.load(Word::ProducerClosed, Load::Relaxed) != 0;
                    assert_eq!(
                        (marked, heap.load(Word::CloseReason, Load::Relaxed) == 4),
                        (violated, violated)
                    );
                }
            }
        }
    }
    log(&format!("{cases} heads, {violations} of them violations"));
    assert!(violations > 1000 && cases - violations > 1000);
}

#[test]
fn every_close_reason_with_every_backlog() {
    let reasons = [0, 1, 2, 3, 4, 5, 1 << 32, u64::MAX];
    for reason in reasons {
        for flag in [0, 1, 2, 3, 1 << 32, u64::MAX] {
            for rest in 0..=2 {
                let (mut out, mut inb, heap) = ring(2, 7);
                (0..rest).for_each(|_| assert_eq!(send(&mut out, b"rest", 0, Wait::Never), Ok(4)));
                heap.set_close_reason(reason);
                heap.store(Word::ProducerClosed, flag, Store::Release);
                heap.store(Word::ConsumerClosed, flag, Store::Release);
                // The error that is returned at once, and the one that is returned when no message is left.
                let (now, then) = match (reason, flag) {
                    (1, _) => (Some(ConnectionError::Closed), None),
                    (4.., _) => (Some(ConnectionError::ProtocolViolation), None),
                    (_, 1..) | (2, _) => (None, Some(ConnectionError::Disconnected)),
                    (3, _) => (None, Some(ConnectionError::PeerDied)),
                    _ => (None, None),
                };
                let end = now.or(then);
                if now.is_none() {
                    (0..rest).for_each(|_| assert_eq!(try_take(&mut inb), Ok((b"rest".to_vec(), 0))));
                }
                let right = end.map_or(RecvCoreError::Empty, RecvCoreError::Ended);
                assert_eq!(
                    try_take(&mut inb),
                    Err(right),
                    "close reason {reason}, closed flag {flag}, {rest} left"
                );
                assert_eq!(inb.is_ready(), end.is_some());
                let right = end.map_or(Ok(1), |end| Err(SendCoreError::Ended(end)));
                assert_eq!(
                    send(&mut out, b"s", 0, Wait::Never),
                    right,
                    "close reason {reason}, closed flag {flag}, {rest} left"
                );
            }
        }
    }
}
