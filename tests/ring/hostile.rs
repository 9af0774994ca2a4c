//! A hostile peer, in private memory: each protocol violation is a typed error that stays, and never a panic.

use std::mem::discriminant;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::rings::{In, MAX, at_once, over, put, ring, send, take, try_take};
use crate::support::spied::{Did, Spied};
use crate::support::{Watchdog, bytes};
use narrows::internal::layout::{Control, LAST_TICKET, SlotKind};
use narrows::internal::memory::{Field, Flag, Heap, Load, Memory, Padding, Span, Store, Word};
use narrows::internal::ring::{CloseReason, Producer, force_notify, notify};
use narrows::internal::{ConnectionError, RecvCoreError, SendCoreError, Wait};

const VIOLATED: Result<(Vec<u8>, u64), RecvCoreError> =
    Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation));

/// Checks that the receiver reports a protocol violation, each time again, and that the peer sees the end.
#[track_caller]
fn check_violated(inb: &mut In, heap: &Heap) {
    for _ in 0..3 {
        assert_eq!(try_take(inb), VIOLATED);
        let blocking = inb.recv(&mut [], Wait::NO_DEADLINE).map(|_| ());
        assert_eq!(blocking, Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation)));
    }
    assert_ne!(heap.load(Word::ConsumerClosed, Load::Relaxed), 0);
}

/// Writes one ticket as no well-formed producer would.
fn forge(heap: &Heap, ticket: u64, control: u64, total: u64) {
    heap.copy_in(Span::Slot(ticket), 0, &total.to_le_bytes(), Padding::Keep).expect("a slot");
    heap.store_slot(ticket, Field::Control, control, Store::Relaxed);
    heap.store_slot(ticket, Field::Tag, ticket, Store::Relaxed);
    heap.store_slot(ticket, Field::Stamp, ticket.wrapping_mul(2).wrapping_add(2), Store::Release);
}

#[test]
fn only_four_stamps_are_legal() {
    for slots in [1_u64, 2, 8] {
        for first in [0, 1, slots - 1, slots, 1 << 40, LAST_TICKET - 1, LAST_TICKET] {
            let before = first.checked_sub(slots).map(|ticket| 2 * ticket + 2);
            let near =
                (0..=4 * slots + 4).map(|off| (2 * first).wrapping_sub(2 * slots + 2).wrapping_add(off));
            for stamp in near.chain([1, 2, 1 << 63, u64::MAX, u64::MAX - 1, !first]) {
                let (_out, mut inb, heap) = ring(usize::try_from(slots).expect("few"), 64, first);
                heap.store_slot(first, Field::Stamp, stamp, Store::Release);
                let waiting = stamp == 0 || stamp == 2 * first + 1 || Some(stamp) == before;
                assert_eq!(inb.is_ready(), !waiting);
                if waiting {
                    assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty), "{stamp:#x} of {first:#x}");
                    assert_eq!(inb.recv(&mut [], at_once()).map(|_| ()), Err(RecvCoreError::Empty));
                } else {
                    // A ready stamp on a slot of zeros is as much a violation as any other stamp.
                    check_violated(&mut inb, &heap);
                }
            }
        }
    }
}

#[test]
fn every_control_word_is_validated() {
    let mut random = fastrand::Rng::with_seed(1);
    let (slots, arena) = (2, 256);
    for _ in 0..40_000 {
        let len = [0, 1, 64, 104, 105, 255, 256, 257, u32::MAX, random.u32(..)][random.usize(..10)];
        let unit = [0, 1, 3, 4, 5, random.u32(..1 << 26)][random.usize(..6)];
        let word = u64::from(len) << 32 | u64::from(unit) << 6 | random.u64(..64);
        let word = if random.u8(..8) == 0 { random.u64(..) } else { word };
        let (_out, mut inb, heap) = ring(slots, arena, 0);
        forge(&heap, 0, word, 300);
        match Control::decode(word, arena as u64) {
            Err(_)
            | Ok(Control { abort: true, .. } | Control { kind: SlotKind::Middle | SlotKind::Last, .. }) => {
                check_violated(&mut inb, &heap);
            }
            Ok(Control { kind: SlotKind::First, .. }) => {
                assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty))
            }
            Ok(control) => assert_eq!(take(&mut inb).0.len(), control.len as usize),
        }
    }
}

#[test]
fn a_first_fragment_announces_more_than_it_has_and_no_more_than_negotiated() {
    let control = Control { kind: SlotKind::First, abort: false, len: 64, unit: 0 }.encode();
    for (total, legal) in [
        (0, false),
        (63, false),
        (64, false),
        (65, true),
        (MAX as u64, true),
        (MAX as u64 + 1, false),
        (u64::MAX, false),
        (1 << 63, false),
    ] {
        let (_out, mut inb, heap) = ring(2, 64, 0);
        forge(&heap, 0, control, total);
        if legal {
            assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty), "{total}");
        } else {
            check_violated(&mut inb, &heap);
        }
    }
    for kind in [SlotKind::Inline, SlotKind::Whole] {
        let heap = Arc::new(Heap::new(2, 256, 1));
        let mut inb =
            narrows::internal::ReceiverCore::new(heap.clone(), narrows::internal::NoWaitPolicy, 0, 50);
        forge(&heap, 0, Control { kind, abort: false, len: 51, unit: 0 }.encode(), 0);
        check_violated(&mut inb, &heap);
    }
}

#[test]
fn a_head_that_runs_backwards_or_ahead_is_a_violation() {
    for first in [0, 10, LAST_TICKET - 9] {
        for head in [0, first.wrapping_sub(1), first + 4, first + 5, 1 << 63, u64::MAX] {
            if head == first {
                continue;
            }
            let (mut out, _inb, heap) = ring(2, 256, first);
            put(&mut out, &bytes(1, 200), 1);
            put(&mut out, &bytes(2, 2), 2);
            heap.store(Word::Head, head, Store::Release);
            let expected = Err(SendCoreError::Ended(ConnectionError::ProtocolViolation));
            for _ in 0..3 {
                assert_eq!(send(&mut out, b"", 0, Wait::NO_DEADLINE), expected, "{head} of {first}");
                assert_eq!(send(&mut out, &[0; 999], 0, Wait::Never), expected);
                assert_eq!(out.reserve(0, Wait::Never).map(|_| 0), expected);
                assert_eq!(out.ticket_to_await(3).map(|_| 0), expected);
            }
            assert_ne!(heap.load(Word::ProducerClosed, Load::Relaxed), 0);
        }
    }
}

/// A reference for the result of a sequence of fragments.
#[derive(Default)]
struct Expect {
    filling: Option<(u64, u64)>,
}

impl Expect {
    /// Returns a message's length, nothing yet, or an error for a violation.
    fn next(&mut self, kind: SlotKind, abort: bool, len: u64, total: u64) -> Result<Option<u64>, ()> {
        match (kind, self.filling) {
            (SlotKind::Inline | SlotKind::Whole | SlotKind::First, filling) if filling.is_some() != abort => {
                Err(())
            }
            (SlotKind::Inline | SlotKind::Whole, _) => {
                self.filling = None;
                Ok(Some(len))
            }
            (SlotKind::First, _) if total <= len || total > MAX as u64 => Err(()),
            (SlotKind::First, _) => {
                self.filling = Some((len, total));
                Ok(None)
            }
            (_, None) => Err(()),
            (_, Some(_)) if abort => Err(()),
            (SlotKind::Middle, Some((filled, total))) if filled + len < total => {
                self.filling = Some((filled + len, total));
                Ok(None)
            }
            (SlotKind::Last, Some((filled, total))) if filled + len == total => {
                self.filling = None;
                Ok(Some(total))
            }
            _ => Err(()),
        }
    }
}

#[test]
fn fragments_in_any_order_are_a_message_or_a_violation() {
    let mut random = fastrand::Rng::with_seed(2);
    let (mut violations, mut messages) = (0, 0);
    for _ in 0..20_000 {
        let (_out, mut inb, heap) = ring(1, 256, 0);
        let mut expect = Expect::default();
        for ticket in 0..8 {
            let kinds = [
                SlotKind::Inline,
                SlotKind::Whole,
                SlotKind::First,
                SlotKind::First,
                SlotKind::Middle,
                SlotKind::Last,
            ];
            let (kind, abort) = (kinds[random.usize(..6)], random.u8(..4) == 0);
            let (len, total) = (1 + random.u64(..3), 1 + random.u64(..9));
            let control = Control { kind, abort, len: u32::try_from(len).expect("few"), unit: 0 }.encode();
            forge(&heap, ticket, control, total);
            match expect.next(kind, abort, len, total) {
                Err(()) => {
                    check_violated(&mut inb, &heap);
                    violations += 1;
                    break;
                }
                Ok(None) => assert_eq!(try_take(&mut inb), Err(RecvCoreError::Empty)),
                Ok(Some(len)) => {
                    assert_eq!(take(&mut inb).0.len() as u64, len);
                    messages += 1;
                }
            }
        }
    }
    assert!(violations > 1000 && messages > 1000, "{violations} violations, {messages} messages");
}

#[test]
fn a_message_that_is_overwritten_while_it_is_copied_is_not_delivered() {
    for len in [20, 200] {
        let mem = Spied::new(Heap::new(4, 256, 1), |heap, did| {
            if matches!(did, Did::CopyOut(_)) {
                heap.store_slot(1, Field::Stamp, 99, Store::Relaxed);
            }
        });
        let (mut out, mut inb) = over(&mem, 1);
        put(&mut out, &bytes(1, len), 1);
        let mut buffer = b"of an earlier message".to_vec();
        let fault = inb.recv_into(&mut buffer, Wait::Never).map(|_| ());
        assert_eq!(fault, Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation)));
        assert_eq!(buffer, b"", "torn bytes are not delivered");
        assert_eq!(
            send(&mut out, b"", 0, Wait::Never),
            Err(SendCoreError::Ended(ConnectionError::ProtocolViolation))
        );
    }
}

#[test]
fn a_borrowed_message_that_is_overwritten_is_detected_on_release() {
    for finish in [false, true] {
        let (mut out, mut inb, heap) = ring(4, 256, 0);
        put(&mut out, &bytes(1, 200), 1);
        let borrowed = inb.borrow_next(Wait::Never).expect("there");
        heap.store_slot(0, Field::Stamp, 1, Store::Relaxed);
        if finish {
            assert_eq!(inb.release(&borrowed), Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation)));
        }
        check_violated(&mut inb, &heap);
    }
}

#[test]
fn a_peer_that_sends_endless_fragments_does_not_outlast_a_deadline() {
    let _watch = Watchdog::new("endless fragments");
    let (_out, mut inb, heap) = ring(1, 64, 0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut ticket = 0;
            while !over.load(Ordering::Relaxed) {
                let control = Control { kind: SlotKind::First, abort: ticket > 0, len: 1, unit: 0 };
                forge(&heap, ticket, control.encode(), 9);
                notify(&heap, Flag::Consumer);
                ticket += 1;
                while heap.load(Word::Head, Load::Acquire) < ticket && !over.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
        });
        let deadline = Instant::now() + Duration::from_millis(50);
        let fault = inb.recv(&mut [], Wait::Deadline(Some(deadline))).map(|_| ());
        over.store(true, Ordering::Relaxed);
        assert_eq!(fault, Err(RecvCoreError::Empty));
        assert!(Instant::now() >= deadline);
    });
}

#[test]
fn a_peer_that_sends_after_its_hang_up_does_not_keep_a_receive_from_ending() {
    let _watch = Watchdog::new("fragments after the end");
    for reason in [CloseReason::Disconnected, CloseReason::Died] {
        let fragment = |heap: &Heap, ticket, abort| {
            let control = Control { kind: SlotKind::First, abort, len: 1, unit: 0 };
            forge(heap, ticket, control.encode(), 9);
        };
        // While one fragment is read, the next is written.
        let mem = Spied::new(Heap::new(2, 128, 1), move |heap, did| {
            if let Did::CopyOut(Span::Slot(ticket)) = did {
                fragment(heap, ticket + 1, true);
            }
        });
        let (_out, mut inb) = over(&mem, 0);
        fragment(&mem.heap, 0, false);
        mem.set_close_reason(reason as u64);
        let ended = RecvCoreError::Ended(if reason == CloseReason::Died {
            ConnectionError::PeerDied
        } else {
            ConnectionError::Disconnected
        });
        assert_eq!(inb.recv(&mut [], Wait::NO_DEADLINE).map(|_| ()), Err(ended));
        assert!(inb.ring().ticket() <= 2, "only tickets committed before the end are taken");
    }
}

#[test]
fn overlapping_fragments_do_not_delay_a_nonblocking_call() {
    let (slots, arena) = (1 << 10, 1 << 16);
    let (_out, mut inb, heap) = ring(slots, arena, 0);
    for ticket in 0..slots as u64 {
        let len = u32::try_from(arena).expect("small");
        let control = Control { kind: SlotKind::First, abort: ticket > 0, len, unit: 0 };
        forge(&heap, ticket, control.encode(), arena as u64 + 1);
    }
    assert_eq!(inb.recv(&mut [], Wait::Never).map(|_| ()), Err(RecvCoreError::Empty));
    let taken = inb.ring().ticket();
    assert!((1..=2).contains(&taken), "{taken} whole arenas were copied");
    assert_eq!(inb.recv(&mut [], at_once()).map(|_| ()), Err(RecvCoreError::Empty));
    assert!(inb.ring().ticket() <= 3 * taken);
}

/// Moves the sleeper from one wait slot to the other between a waker's look at the flag and its wake.
fn check_moved_sleeper_is_woken(from: u32, to: u32, must_wake: Flag) {
    let (woken, seen) = channel();
    let mem = Spied::new(Heap::new(1, 64, 1), move |heap, did| match did {
        Did::LoadFlag(Flag::Producer) => heap.store_flag(Flag::Producer, to),
        Did::Wake(flag) => woken.send(flag).expect("there"),
        _ => {}
    });
    mem.heap.store_flag(Flag::Producer, from);
    notify(&mem, Flag::Producer);
    assert_eq!(mem.heap.load_flag(Flag::Producer), 0);
    let woken: Vec<Flag> = seen.try_iter().collect();
    let woke = |flag: &Flag| discriminant(flag) == discriminant(&must_wake);
    assert!(woken.iter().any(woke), "{woken:?} for a sleeper that moved from {from} to {to}");
}

#[test]
fn a_sleeper_that_moves_to_the_other_wait_slot_is_woken_there() {
    check_moved_sleeper_is_woken(1, 1, Flag::Producer);
    check_moved_sleeper_is_woken(2, 2, Flag::PeerConsumer);
    check_moved_sleeper_is_woken(2, 1, Flag::Producer);
    check_moved_sleeper_is_woken(1, 2, Flag::PeerConsumer);
}

#[test]
fn a_flag_of_any_value_is_notified() {
    for (flag, value) in
        [(Flag::Consumer, 1), (Flag::Consumer, 2), (Flag::Producer, 3), (Flag::Producer, u32::MAX)]
    {
        let (woken, seen) = channel();
        let mem = Spied::new(Heap::new(1, 64, 1), move |_, did| {
            if let Did::Wake(flag) = did {
                woken.send(flag).expect("there");
            }
        });
        mem.heap.store_flag(flag, value);
        notify(&mem, flag);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [flag], "{value}");
    }
}

#[test]
fn a_flag_that_another_waker_took_meanwhile_costs_no_wake() {
    let mem = Spied::new(Heap::new(1, 64, 1), |heap, did| match did {
        Did::LoadFlag(flag) => heap.store_flag(flag, 0),
        Did::Wake(flag) => panic!("{flag:?} was woken once more"),
        _ => {}
    });
    mem.heap.store_flag(Flag::Consumer, 1);
    notify(&mem, Flag::Consumer);
}

#[test]
fn a_peer_that_died_between_the_flag_and_the_wake_hides_no_end() {
    for (flag, value) in [(Flag::Consumer, 0), (Flag::Producer, 0), (Flag::Producer, 2)] {
        let (woken, seen) = channel();
        let mem = Spied::new(Heap::new(1, 64, 1), move |_, did| {
            if let Did::Wake(flag) = did {
                woken.send(flag).expect("there");
            }
        });
        mem.heap.store_flag(flag, value);
        force_notify(&mem, flag);
        assert!(seen.try_iter().any(|woken| woken == flag), "the flag was {value}");
        assert_eq!(mem.heap.load_flag(flag), 0);
    }
}

#[test]
fn closed_flags_and_close_reasons_of_any_value_are_an_end() {
    for flag in [1, 2, u64::MAX] {
        let (mut out, mut inb, heap) = ring(2, 64, 0);
        put(&mut out, b"before", 0);
        heap.store(Word::ProducerClosed, flag, Store::Release);
        heap.store(Word::ConsumerClosed, flag, Store::Release);
        assert_eq!(
            send(&mut out, b"", 0, Wait::NO_DEADLINE),
            Err(SendCoreError::Ended(ConnectionError::Disconnected))
        );
        assert_eq!(take(&mut inb).0, b"before");
        assert_eq!(try_take(&mut inb), Err(RecvCoreError::Ended(ConnectionError::Disconnected)));
        let mut late = Producer::new(heap.clone(), 1);
        let claim = late.reserve(late.next(), 0).expect("room");
        late.describe(&claim, SlotKind::Inline, 0, 5);
        late.publish(claim.after(), false);
        heap.store(Word::ProducerClosed, 0, Store::Release);
        assert_eq!(
            try_take(&mut inb),
            Err(RecvCoreError::Ended(ConnectionError::Disconnected)),
            "the end stays"
        );
    }
}
