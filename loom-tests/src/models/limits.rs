//! What a single thread can observe: limits, how long a head stays unpublished, and which operations wake the peer.

use narrows::internal::memory::{Field, Flag, Load, Memory, OutOfBounds, Padding, Span, Store, Word};

use super::super::code::layout::{LAST_TICKET, SlotKind};
use super::super::code::ring::{CloseReason, ReserveError, on_peer_gone};
use super::super::code::{
    ConnectionError, NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait,
};
use super::{Named, named, receiver, recv, recv_within, ring_from, send, sender, stage, try_send};
use crate::memory::{Cells, Model, Plain, connection};

pub(super) const ALL: &[Named] = named![
    no_ticket_follows_the_last,
    a_stamp_after_the_last_ticket_is_no_message,
    a_head_is_deferred_for_a_quarter_of_the_slots_at_most,
    a_head_is_deferred_for_a_quarter_of_the_arena_at_most,
    a_message_is_released_only_once,
    nothing_is_read_or_written_outside_of_a_message,
    no_thread_is_woken_that_does_not_sleep,
    a_sender_is_woken_by_the_release_that_it_awaits_and_not_before,
    an_illegal_head_ends_a_wait_for_space,
    every_close_reason_has_its_error,
    a_batch_is_refused_when_the_ring_is_full,
    light_traffic_stays_at_the_start_of_the_arena,
    a_payload_never_wraps,
    a_sender_waits_for_the_first_release_that_suffices,
    a_committed_message_may_be_empty_or_short,
    the_abort_of_an_abandoned_message_is_sent_once,
    the_messages_of_a_batch_do_not_overlap,
    no_unread_message_is_overwritten,
    a_short_message_above_the_negotiated_maximum_is_refused,
    inline_staging_is_refused_for_a_long_message_a_full_ring_and_a_closed_peer,
    a_message_above_the_negotiated_maximum_is_refused,
    an_end_is_reported_before_anything_is_sent,
    a_fragmented_message_is_tried_whole_or_not_at_all,
    fragments_of_an_earlier_call_are_kept,
];

fn no_ticket_follows_the_last() {
    for slots in [1, 2] {
        let (mut out, mut inb) = ring_from(LAST_TICKET - 1, slots, 64);
        for i in 0..2 {
            try_send(&mut out, &[i]).unwrap();
            assert_eq!(recv(&mut inb).unwrap(), [i]);
        }
        assert_eq!(out.ring().remaining_tickets(), 0);
        assert_eq!(try_send(&mut out, &[2]), Err(SendCoreError::Exhausted));
        assert_eq!(recv_within(&mut inb, Wait::Never), Err(RecvCoreError::Empty));
    }
    // A fragmented message needs a ticket for each fragment: without them its abort could never be sent.
    let (mut out, inb) = ring_from(LAST_TICKET, 2, 128);
    assert_eq!(send(&mut out, &[0; 129]), Err(SendCoreError::Exhausted));
    assert!(!inb.is_ready(), "nothing was sent");
}

fn a_stamp_after_the_last_ticket_is_no_message() {
    let (mut out, mut inb) = ring_from(LAST_TICKET, 1, 64);
    try_send(&mut out, &[0]).unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [0]);
    // The stamp of the next ticket would be 0 again.
    inb.ring().mem().store_slot(0, Field::Stamp, 0, Store::Relaxed);
    let found = recv_within(&mut inb, Wait::Never);
    assert_eq!(found, Err(RecvCoreError::Empty));
}

fn a_head_is_deferred_for_a_quarter_of_the_slots_at_most() {
    for head_after in [head_after_receive, head_after_borrow] {
        let (mut out, mut inb) = ring_from(0, 8, 64);
        for i in 0..8 {
            try_send(&mut out, &[i]).unwrap();
        }
        let heads: Vec<_> = (0..8).map(|_| head_after(&mut inb)).collect();
        // Two releases may stay unpublished, and none once the ring is empty.
        assert_eq!(heads, [0, 0, 3, 3, 3, 6, 6, 8]);
    }
    // No ticket follows the last one: the zero in the slot is not the stamp of a message.
    let (mut out, mut inb) = ring_from(LAST_TICKET, 8, 512);
    try_send(&mut out, &[0; 105]).unwrap();
    assert_eq!(head_after_receive(&mut inb), LAST_TICKET + 1);
}

fn a_head_is_deferred_for_a_quarter_of_the_arena_at_most() {
    for head_after in [head_after_receive, head_after_borrow] {
        let (mut out, mut inb) = ring_from(0, 32, 1024);
        for len in [128, 65, 8, 105, 105, 8] {
            try_send(&mut out, &vec![0; len]).unwrap();
        }
        let heads: Vec<_> = (0..6).map(|_| head_after(&mut inb)).collect();
        // The 65 bytes are in a slot and take no arena space. The payloads of 128, 105 and 105 bytes take 128 each, together
        // more than 256.
        assert_eq!(heads, [0, 0, 0, 0, 5, 6]);
    }
}

fn head_after_borrow(inb: &mut ReceiverCore<Model, NoWaitPolicy>) -> u64 {
    let message = inb.borrow_next(Wait::Never).unwrap();
    inb.release(&message).unwrap();
    inb.ring().mem().load(Word::Head, Load::Relaxed)
}

fn head_after_receive(inb: &mut ReceiverCore<Model, NoWaitPolicy>) -> u64 {
    recv_within(inb, Wait::Never).unwrap();
    inb.ring().mem().load(Word::Head, Load::Relaxed)
}

fn a_message_is_released_only_once() {
    let (mut out, mut inb) = ring_from(0, 2, 64);
    try_send(&mut out, &[0]).unwrap();
    let message = inb.next(Wait::Never).unwrap();
    inb.release(&message).unwrap();
    let _again = inb.release(&message);
    assert_eq!(inb.ring().ticket(), 1);
    try_send(&mut out, &[1]).unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [1]);
}

fn nothing_is_read_or_written_outside_of_a_message() {
    let (mut out, mut inb) = ring_from(0, 2, 128);
    let claim = out.reserve(9, Wait::Never).unwrap();
    out.ring().mark_writing(&claim);
    assert_eq!(out.ring().write(&claim, 1, &[0; 9], Padding::Zero), Err(OutOfBounds));
    assert_eq!(out.ring().write(&claim, 10, &[], Padding::Zero), Err(OutOfBounds));
    assert_eq!(out.ring().write(&claim, 0, &[1; 9], Padding::Zero), Ok(()));
    out.commit(&claim, 9, 0);
    let message = inb.borrow_next(Wait::Never).unwrap();
    assert_eq!(inb.read_at(&message, 1, &mut [0; 9]), Err(OutOfBounds));
    assert_eq!(inb.read_at(&message, 10, &mut []), Err(OutOfBounds));
    assert_eq!(inb.read_at(&message, 8, &mut [0; 1]), Ok(()));
}

fn no_thread_is_woken_that_does_not_sleep() {
    let (mut out, mut inb) = ring_from(0, 2, 64);
    for i in 0..4 {
        try_send(&mut out, &[i]).unwrap();
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
    assert_eq!(out.ring().mem().wakes(Flag::Consumer), 0);
    assert_eq!(out.ring().mem().wakes(Flag::Producer), 0);
}

fn a_sender_is_woken_by_the_release_that_it_awaits_and_not_before() {
    let (mut out, mut inb) = ring_from(0, 8, 64);
    for i in 0..8 {
        try_send(&mut out, &[i]).unwrap();
    }
    // A sender that waits for the release of ticket 4 does this.
    out.ring().announce_wait(4);
    out.ring().mem().store_flag(Flag::Producer, 1);
    let woken: Vec<_> = (0..8).map(|_| wakes_after_receive(&mut inb)).collect();
    // The head is published at 3, which is too early, at 6 and at the end.
    assert_eq!(woken, [0, 0, 0, 0, 0, 1, 1, 1]);
}

fn wakes_after_receive(inb: &mut ReceiverCore<Model, NoWaitPolicy>) -> u32 {
    head_after_receive(inb);
    inb.ring().mem().wakes(Flag::Producer)
}

fn an_illegal_head_ends_a_wait_for_space() {
    let (mut out, _inb) = ring_from(5, 1, 64);
    assert!(!out.ring().is_released(5));
    out.ring().mem().store(Word::Head, 4, Store::Relaxed);
    assert!(out.ring().is_released(5), "the next reservation finds the violation");
    try_send(&mut out, &[0]).unwrap();
    assert_eq!(try_send(&mut out, &[0]), Err(SendCoreError::Ended(ConnectionError::ProtocolViolation)));
}

fn every_close_reason_has_its_error() {
    for (reason, end) in [
        (CloseReason::Closed, ConnectionError::Closed),
        (CloseReason::Disconnected, ConnectionError::Disconnected),
        (CloseReason::Died, ConnectionError::PeerDied),
        (CloseReason::Violated, ConnectionError::ProtocolViolation),
    ] {
        let (a, _b) = connection::<Cells>(1, 64);
        assert_eq!(sender(&a).check(), Ok(()));
        on_peer_gone(&a.out, &a.into, reason);
        on_peer_gone(&a.out, &a.into, CloseReason::Closed); // The first close reason stays.
        assert_eq!(sender(&a).check(), Err(end));
        assert!(receiver(&a).is_ready());
        assert_eq!(recv_within(&mut receiver(&a), Wait::Never), Err(RecvCoreError::Ended(end)));
    }
    // A peer that closed before its process ended did not die.
    let (a, b) = connection::<Cells>(1, 64);
    sender(&b).ring().close();
    on_peer_gone(&a.out, &a.into, CloseReason::Died);
    assert_eq!(
        recv_within(&mut receiver(&a), Wait::Never),
        Err(RecvCoreError::Ended(ConnectionError::Disconnected))
    );
}

fn a_batch_is_refused_when_the_ring_is_full() {
    let (mut out, mut inb) = ring_from(0, 2, 128);
    let start = out.ring().next();
    let first = out.stage(start, 128).unwrap();
    // A slot is free, and no arena space.
    assert!(matches!(out.stage(first.after(), 105), Err(SendCoreError::Full)));
    let second = out.stage(first.after(), 8).unwrap();
    assert!(matches!(out.stage(second.after(), 8), Err(SendCoreError::Full)));
    assert!(matches!(out.ring_mut().reserve(start, 129), Err(ReserveError::TooLarge)));
    assert_eq!(recv_within(&mut inb, Wait::Never), Err(RecvCoreError::Empty));
}

fn light_traffic_stays_at_the_start_of_the_arena() {
    let (mut out, mut inb) = ring_from(0, 4, 1024);
    for _ in 0..20 {
        let claim = out.reserve(200, Wait::Never).unwrap();
        assert!(matches!(claim.span(), Span::Arena(0..=4)), "{claim:?}");
        out.ring().mark_writing(&claim);
        out.commit(&claim, 200, 0);
        recv_within(&mut inb, Wait::Never).unwrap();
    }
}

fn a_payload_never_wraps() {
    let (mut out, mut inb) = ring_from(0, 8, 512);
    for (i, len) in [(1, 128), (2, 128), (3, 105)] {
        try_send(&mut out, &vec![i; len]).unwrap();
    }
    for i in 1..=2 {
        assert_eq!(recv(&mut inb).unwrap(), vec![i; 128]);
    }
    // Of 512 bytes 384 were written, and 256 of them are free again. The 200 bytes go to the start of the arena.
    try_send(&mut out, &[4; 200]).unwrap();
    assert_eq!(try_send(&mut out, &[5; 105]), Err(SendCoreError::Full));
    assert_eq!(recv(&mut inb).unwrap(), [3; 105]);
    assert_eq!(recv(&mut inb).unwrap(), [4; 200]);
}

fn a_sender_waits_for_the_first_release_that_suffices() {
    let (mut out, _inb) = ring_from(0, 4, 512);
    for len in [128, 105, 256] {
        try_send(&mut out, &vec![0; len]).unwrap();
    }
    for (len, ticket) in [(105, 0), (128, 0), (129, 1), (256, 1), (257, 2), (512, 2)] {
        assert_eq!(out.ticket_to_await(len), Ok(Some(ticket)), "{len}");
    }
    try_send(&mut out, &[]).unwrap();
    assert_eq!(out.ticket_to_await(0), Ok(Some(0)));
}

fn a_committed_message_may_be_empty_or_short() {
    let (mut out, mut inb) = ring_from(0, 4, 512);
    for (room, len) in [(200, 0), (200, 1), (9, 0), (9, 8), (0, 0)] {
        let claim = out.reserve(room, Wait::Never).unwrap();
        out.ring().mark_writing(&claim);
        out.ring().write(&claim, 0, &[7; 8][..len], Padding::Zero).unwrap();
        out.commit(&claim, len, 99);
        let message = inb.next(Wait::Never).unwrap();
        assert_eq!((message.len(), message.tag()), (len, 99));
        assert_eq!(recv(&mut inb).unwrap(), vec![7; len]);
    }
}

fn the_abort_of_an_abandoned_message_is_sent_once() {
    let (mut out, mut inb) = ring_from(0, 4, 512);
    let ring = out.ring_mut();
    let first = ring.reserve_fragment(ring.next(), 8).unwrap();
    ring.mark_writing(&first);
    ring.write_total(&first, 16);
    ring.describe(&first, SlotKind::First, 8, 0);
    ring.publish(first.after(), true);
    ring.publish(ring.next(), false); // Nothing is staged, so it changes nothing.
    let mut to = out.ring().next();
    for i in 0..2 {
        to = stage(&mut out, to, &[i]);
    }
    out.publish(to, false);
    try_send(&mut out, &[2]).unwrap();
    for i in 0..3 {
        assert_eq!(recv(&mut inb).unwrap(), [i]);
    }
}

fn the_messages_of_a_batch_do_not_overlap() {
    let (mut out, mut inb) = ring_from(0, 4, 512);
    try_send(&mut out, &[0; 128]).unwrap();
    assert_eq!(recv(&mut inb).unwrap(), [0; 128]);
    let mut to = out.ring().next();
    for i in 1..=3 {
        to = stage(&mut out, to, &[i; 128]);
    }
    out.publish(to, false);
    for i in 1..=3 {
        assert_eq!(recv(&mut inb).unwrap(), [i; 128]);
    }
    // The arena is free, but the second message must not get the space of the first.
    let start = out.ring().next();
    let first = stage(&mut out, start, &[4]);
    let second = stage(&mut out, first, &[5; 256]);
    out.publish(second, false);
    assert_eq!(recv(&mut inb).unwrap(), [4]);
    assert_eq!(recv(&mut inb).unwrap(), [5; 256]);
}

fn no_unread_message_is_overwritten() {
    for len in [1, 105] {
        let (mut out, mut inb) = ring_from(0, 2, 512);
        for i in 0..2 {
            try_send(&mut out, &vec![i; len]).unwrap();
        }
        assert_eq!(try_send(&mut out, &vec![2; len]), Err(SendCoreError::Full));
        for i in 0..2 {
            assert_eq!(recv(&mut inb).unwrap(), vec![i; len]);
        }
    }
}

fn inline_staging_is_refused_for_a_long_message_a_full_ring_and_a_closed_peer() {
    let (a, b) = connection::<Cells>(2, 512);
    let mut limited: SenderCore<_, NoWaitPolicy> = SenderCore::new(a.out.clone(), NoWaitPolicy, 0, 17);
    let next = limited.ring().next();
    assert!(limited.try_stage_inline(next, &[3; 18], 0).is_none());
    let first = limited.try_stage_inline(next, &[3; 17], 0).unwrap();
    let second = limited.try_stage_inline(first, &[4], 0).unwrap();
    assert!(limited.try_stage_inline(second, &[5], 0).is_none(), "there are two slots");
    assert_eq!(receiver(&b).ring().next_slot(), Ok(None), "nothing is published");
    receiver(&b).ring().close();
    assert!(limited.try_stage_inline(next, &[3], 0).is_none());
}

fn a_message_above_the_negotiated_maximum_is_refused() {
    let (a, b) = connection::<Cells>(4, 512);
    let mut out: SenderCore<_, NoWaitPolicy> = SenderCore::new(a.out, NoWaitPolicy, 0, 600);
    assert_eq!(out.reserve(600, Wait::Never).unwrap_err(), SendCoreError::TooLarge(512));
    assert_eq!(send(&mut out, &[0; 601]), Err(SendCoreError::TooLarge(600)));
    let mut small: SenderCore<_, NoWaitPolicy> = SenderCore::new(b.out, NoWaitPolicy, 0, 300);
    assert_eq!(small.reserve(301, Wait::Never).unwrap_err(), SendCoreError::TooLarge(300));
    assert_eq!(send(&mut small, &[0; 301]), Err(SendCoreError::TooLarge(300)));
    assert_eq!(send(&mut small, &[0; 300]), Ok(300));
}

fn a_short_message_above_the_negotiated_maximum_is_refused() {
    for (most, longer) in [(17, false), (17, true), (105, false), (105, true)] {
        let (a, b) = connection::<Cells>(4, 512);
        let message = vec![3; most + usize::from(longer)];
        try_send(&mut sender(&a), &message).unwrap();
        let mut small: ReceiverCore<_, NoWaitPolicy> = ReceiverCore::new(b.into, NoWaitPolicy, 0, most);
        let mut out: SenderCore<_, NoWaitPolicy> = SenderCore::new(b.out, NoWaitPolicy, 0, most);
        let sent = if longer { Err(SendCoreError::TooLarge(most)) } else { Ok(most) };
        assert_eq!(try_send(&mut out, &message), sent);
        let (head, body) = message.split_first_chunk().unwrap();
        assert_eq!(out.send_framed(*head, [body, &[]], 0, Wait::Never), sent);
        let refused = Err(RecvCoreError::Ended(ConnectionError::ProtocolViolation));
        assert_eq!(recv(&mut small), if longer { refused } else { Ok(message) });
    }
}

fn an_end_is_reported_before_anything_is_sent() {
    let (a, b) = connection::<Cells>(4, 128);
    receiver(&b).ring().close();
    let mut out = sender(&a);
    let ended = SendCoreError::Ended(ConnectionError::Disconnected);
    for len in [0, 1, 105, 129] {
        assert_eq!(out.ticket_to_await(len), Err(ended), "{len}");
        assert_eq!(try_send(&mut out, &vec![0; len]), Err(ended), "{len}");
        assert_eq!(send(&mut out, &vec![0; len]), Err(ended), "{len}");
        assert_eq!(out.reserve(len.min(128), Wait::Never).unwrap_err(), ended);
    }
    assert!(!receiver(&b).is_ready(), "nothing was sent");
}

fn a_fragmented_message_is_tried_whole_or_not_at_all() {
    const K: usize = 1 << 10;
    let (a, b) = connection::<Plain>(8, 512 * K);
    let (mut out, mut inb) = (sender(&a), receiver(&b));
    let five_fragments = vec![3; 300 * K];
    for _ in 0..2 {
        try_send(&mut out, &five_fragments).unwrap();
        let next = out.ring().next();
        assert_eq!(try_send(&mut out, &five_fragments), Err(SendCoreError::Full));
        assert_eq!(out.ring().next(), next, "nothing was sent");
        assert_eq!(recv(&mut inb).unwrap(), five_fragments);
        assert_eq!(inb.ring().ticket() % 5, 0);
    }
    let (a, _b) = connection::<Plain>(16, 512 * K);
    let mut out = sender(&a);
    assert_eq!(try_send(&mut out, &vec![0; 512 * K + 1]), Err(SendCoreError::TooLargeToTry));
    try_send(&mut out, &[0; 105]).unwrap();
    assert_eq!(out.ticket_to_await(512 * K), Ok(Some(0)), "it can be reserved, and needs the whole arena");
    assert_eq!(out.ticket_to_await(512 * K + 1), Ok(None), "its first fragment fits");
    // Four slots never hold five fragments.
    let (a, _b) = connection::<Plain>(4, 512 * K);
    assert_eq!(try_send(&mut sender(&a), &five_fragments), Err(SendCoreError::TooLargeToTry));
    let (a, _b) = connection::<Plain>(4, 512 * K);
    assert_eq!(try_send(&mut sender(&a), &vec![0; 256 * K]), Ok(256 * K));
}

fn fragments_of_an_earlier_call_are_kept() {
    let (mut out, mut inb) = ring_from(0, 4, 512);
    for (kind, byte) in [(SlotKind::First, 1), (SlotKind::Middle, 2), (SlotKind::Last, 3)] {
        let ring = out.ring_mut();
        let claim = ring.reserve_fragment(ring.next(), 8).unwrap();
        ring.mark_writing(&claim);
        ring.write(&claim, 0, &[byte; 8], Padding::Zero).unwrap();
        ring.write_total(&claim, 24);
        ring.describe(&claim, kind, 8, 0);
        ring.publish(claim.after(), kind != SlotKind::Last);
        if kind != SlotKind::Last {
            let mut buffer = vec![9; 3];
            assert_eq!(inb.recv_into(&mut buffer, Wait::Never).unwrap_err(), RecvCoreError::Empty);
        }
    }
    assert_eq!(recv(&mut inb).unwrap(), [[1; 8], [2; 8], [3; 8]].concat());
}
