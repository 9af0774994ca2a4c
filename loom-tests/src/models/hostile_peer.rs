//! Words that no well-formed peer writes. Each is refused, and nothing is read or written because of it.

use narrows::internal::memory::{Field, Flag, Load, Memory, Padding, Span, Store, Word};

use super::super::code::layout::{Control, SlotKind};
use super::super::code::ring::notify;
use super::super::code::{ConnectionError, RecvCoreError, SendCoreError, Wait};
use super::{MAX_MESSAGE, Named, named, receiver, recv_within, sender, try_send};
use crate::memory::{Cells, Model, Side, connection};

pub(super) const ALL: &[Named] = named![
    an_illegal_head_is_refused,
    illegal_stamps_are_refused,
    illegal_control_words_are_refused,
    fragments_that_do_not_fit_are_refused,
    a_set_flag_of_any_value_is_cleared_and_wakes_its_sleeper,
];

const VIOLATED: ConnectionError = ConnectionError::ProtocolViolation;

fn an_illegal_head_is_refused() {
    for head in [2, 3, 1 << 40, u64::MAX] {
        let (a, b) = connection::<Cells>(1, 64);
        let mut out = sender(&a);
        try_send(&mut out, &[0]).unwrap();
        b.into.store(Word::Head, head, Store::Release);
        assert!(out.ring().is_released(0));
        assert_eq!(try_send(&mut out, &[1]), Err(SendCoreError::Ended(VIOLATED)), "{head}");
        // The error stays, whatever the head is now, and the peer sees the closed flag.
        b.into.store(Word::Head, 1, Store::Release);
        assert_eq!(try_send(&mut out, &[1]), Err(SendCoreError::Ended(VIOLATED)), "{head}");
        assert_ne!(b.into.load(Word::ProducerClosed, Load::Relaxed), 0);
    }
    let (a, b) = connection::<Cells>(1, 64);
    let mut out = sender(&a);
    for head in 1..=2 {
        try_send(&mut out, &[0]).unwrap();
        assert_eq!(try_send(&mut out, &[0]), Err(SendCoreError::Full));
        b.into.store(Word::Head, head, Store::Release);
    }
    try_send(&mut out, &[0]).unwrap();
    b.into.store(Word::Head, 1, Store::Release); // The head goes backwards.
    assert!(out.ring().is_released(2));
    assert_eq!(try_send(&mut out, &[0]), Err(SendCoreError::Ended(VIOLATED)));
}

/// Writes one ticket as no well-formed producer would, and receives it.
fn receive(side: &Side<Cells>, stamp: u64, control: u64, total: u64) -> Result<Vec<u8>, RecvCoreError> {
    side.into.copy_in(Span::Slot(0), 0, &total.to_le_bytes(), Padding::Zero).unwrap();
    side.into.store_slot(0, Field::Control, control, Store::Relaxed);
    side.into.store_slot(0, Field::Stamp, stamp, Store::Release);
    let mut inb = receiver(side);
    let found = recv_within(&mut inb, Wait::Never);
    if let Err(RecvCoreError::Ended(end)) = found {
        // The error stays, and the peer sees the closed flag.
        assert_eq!(recv_within(&mut inb, Wait::NO_DEADLINE), Err(RecvCoreError::Ended(end)));
        assert_ne!(side.into.load(Word::ConsumerClosed, Load::Relaxed), 0);
    }
    found
}

fn control(kind: SlotKind, abort: bool, len: u32, unit: u32) -> u64 {
    Control { kind, abort, len, unit }.encode()
}

fn illegal_stamps_are_refused() {
    for (stamp, legal) in [(0, true), (1, true), (2, true), (3, false), (4, false), (u64::MAX, false)] {
        let (_a, b) = connection::<Cells>(2, 64);
        let found = receive(&b, stamp, control(SlotKind::Inline, false, 8, 0), 0);
        match (stamp, legal) {
            (2, _) => assert_eq!(found, Ok(vec![0; 8])),
            (_, true) => assert_eq!(found, Err(RecvCoreError::Empty)),
            (_, false) => assert_eq!(found, Err(RecvCoreError::Ended(VIOLATED)), "{stamp}"),
        }
    }
    let (a, b) = connection::<Cells>(1, 64);
    let (mut out, mut inb) = (sender(&a), receiver(&b));
    for i in 0..3 {
        // The stamp of the previous ticket in the slot is legal until the next ticket is written.
        assert_eq!(recv_within(&mut inb, Wait::Never), Err(RecvCoreError::Empty));
        assert!(!inb.is_ready());
        try_send(&mut out, &[i]).unwrap();
        assert!(inb.is_ready());
        assert_eq!(recv_within(&mut inb, Wait::Never), Ok(vec![i]));
    }
}

fn illegal_control_words_are_refused() {
    let long = u32::try_from(MAX_MESSAGE + 1).unwrap();
    for (word, total) in [
        (0, 0),
        (control(SlotKind::Inline, false, 105, 0), 0),
        (control(SlotKind::Inline, false, 8, 1), 0),
        (control(SlotKind::Inline, true, 8, 0), 0),
        (control(SlotKind::Whole, false, 0, 0), 0),
        (control(SlotKind::Whole, false, 129, 0), 0),
        (control(SlotKind::Whole, false, 65, 1), 0),
        (control(SlotKind::Whole, false, 1, 2), 0),
        (control(SlotKind::Whole, false, u32::MAX, 0), 0),
        (control(SlotKind::First, false, 8, 0), 8),
        (control(SlotKind::First, false, 8, 0), 0),
        (control(SlotKind::First, false, 8, 0), u64::from(long)),
        (control(SlotKind::First, true, 8, 0), 16),
        (control(SlotKind::Middle, false, 8, 0), 0),
        (control(SlotKind::Last, false, 8, 0), 0),
        (control(SlotKind::Last, true, 8, 0), 0),
    ] {
        let (_a, b) = connection::<Cells>(2, 128);
        assert_eq!(receive(&b, 2, word, total), Err(RecvCoreError::Ended(VIOLATED)), "{word:#x} {total}");
        assert_eq!(b.into.load_flag(Flag::Consumer), 0);
    }
    for (word, total, len) in [
        (control(SlotKind::Inline, false, 104, 0), 0, Some(104)),
        (control(SlotKind::Whole, false, 128, 0), 0, Some(128)),
        (control(SlotKind::Whole, false, 64, 1), 0, Some(64)),
        (control(SlotKind::First, false, 8, 0), 9, None),
        (control(SlotKind::First, false, 8, 0), MAX_MESSAGE as u64, None),
    ] {
        let (_a, b) = connection::<Cells>(2, 128);
        let found = receive(&b, 2, word, total).map(|message| message.len());
        assert_eq!(found, len.ok_or(RecvCoreError::Empty), "{word:#x} {total}");
    }
}

fn fragments_that_do_not_fit_are_refused() {
    use SlotKind::{First, Inline, Last, Middle, Whole};
    let fine = Err(RecvCoreError::Empty);
    let violation = Err(RecvCoreError::Ended(VIOLATED));
    for (kind, abort, len, found) in [
        (Middle, false, 11, fine.clone()),
        (Middle, false, 12, violation.clone()),
        (Middle, false, 13, violation.clone()),
        (Last, false, 11, violation.clone()),
        (Last, false, 12, Ok(vec![0; 20])),
        (Last, false, 13, violation.clone()),
        (Inline, false, 3, violation.clone()),
        (Inline, true, 3, Ok(vec![0; 3])),
        (Whole, false, 3, violation.clone()),
        (Whole, true, 3, Ok(vec![0; 3])),
        (First, false, 3, violation.clone()),
        (First, true, 3, fine.clone()),
    ] {
        let (_a, b) = connection::<Cells>(2, 128);
        // The first fragment has 8 of 20 bytes. The second ticket is the one that is tested.
        b.into.store_slot(1, Field::Control, control(kind, abort, len, 0), Store::Relaxed);
        b.into.copy_in(Span::Slot(1), 0, &[if kind == First { 20 } else { 0 }], Padding::Zero).unwrap();
        b.into.store_slot(1, Field::Stamp, 4, Store::Release);
        assert_eq!(receive(&b, 2, control(First, false, 8, 0), 20), found, "{kind:?} {abort} {len}");
    }
}

fn a_set_flag_of_any_value_is_cleared_and_wakes_its_sleeper() {
    for value in [0, 1, 2, 3, u32::MAX] {
        let (a, b) = connection::<Cells>(1, 64);
        let wakes_after_notify = |flag, view: &Model| {
            view.store_flag(flag, value);
            notify(view, flag);
            assert_eq!(view.load_flag(flag), 0);
            [view.wakes(flag), view.wakes(Flag::PeerConsumer)]
        };
        let woken = u32::from(value != 0);
        assert_eq!(wakes_after_notify(Flag::Consumer, &a.out), [woken, 0]);
        // The value 2 says that the thread waits for either, and so sleeps on the other flag.
        assert_eq!(wakes_after_notify(Flag::Producer, &b.out), if value == 2 { [0, 1] } else { [woken, 0] });
    }
}
