//! A producer that overwrites what the consumer reads: torn bytes are never delivered as a message.

use std::io::IoSlice;

use loom::thread;
use narrows::internal::memory::Padding;

use super::super::code::layout::SlotKind;
use super::super::code::ring::Cursor;
use super::super::code::{
    ConnectionError, IncomingMessage, NoWaitPolicy, ReceiverCore, RecvCoreError, SenderCore, Wait,
};
use super::{MAX_MESSAGE, Named, named, receiver, recv_within};
use crate::memory::{RacyModel, Side, StaleHead, Words, connection};

pub(super) const ALL: &[Named] = named![
    an_overwritten_message_is_never_delivered,
    an_overwritten_borrowed_message_is_detected_by_its_release,
    an_overwritten_borrowed_message_is_detected_by_its_guard,
    an_overwritten_fragment_is_never_delivered,
];

type HostilePeer = SenderCore<StaleHead, NoWaitPolicy>;

fn hostile(side: Side<Words>) -> HostilePeer {
    SenderCore::new(StaleHead::new(side.out), NoWaitPolicy, 0, MAX_MESSAGE)
}

fn send_over(out: &mut HostilePeer, message: &[u8]) {
    out.send(&[IoSlice::new(message)], 0, Wait::Never).unwrap();
}

/// Checks that the result is one of the messages that were sent, nothing, or a protocol violation.
fn check(found: Result<Vec<u8>, RecvCoreError>) {
    match found {
        Ok(message) => assert!(message == [1; 16] || message == [2; 16], "torn: {message:?}"),
        Err(fault) => assert!(matches!(
            fault,
            RecvCoreError::Empty | RecvCoreError::Ended(ConnectionError::ProtocolViolation)
        )),
    }
}

fn an_overwritten_message_is_never_delivered() {
    let (a, b) = connection::<Words>(1, 64);
    let mut out = hostile(a);
    send_over(&mut out, &[1; 16]);
    let peer = thread::spawn(move || send_over(&mut out, &[2; 16]));
    check(recv_within(&mut receiver(&b), Wait::Never));
    peer.join().unwrap();
}

fn an_overwritten_borrowed_message_is_detected_by_its_release() {
    borrow_an_overwritten_message(|inb, message| inb.release(message));
}

fn an_overwritten_borrowed_message_is_detected_by_its_guard() {
    borrow_an_overwritten_message(|inb, _| inb.release_borrowed());
}

type Racing = ReceiverCore<RacyModel, NoWaitPolicy>;

fn borrow_an_overwritten_message(
    release: impl Fn(&mut Racing, &IncomingMessage) -> Result<(), RecvCoreError>,
) {
    let (a, b) = connection::<Words>(1, 64);
    let mut out = hostile(a);
    send_over(&mut out, &[1; 16]);
    let peer = thread::spawn(move || send_over(&mut out, &[2; 16]));
    let mut inb: Racing = receiver(&b);
    if let Ok(message) = inb.borrow_next(Wait::Never) {
        let mut bytes = vec![0; message.len()];
        // The overwritten slot may also announce an illegal length.
        let _refused = inb.read_at(&message, 0, &mut bytes);
        check(release(&mut inb, &message).map(|()| bytes));
    }
    peer.join().unwrap();
}

fn an_overwritten_fragment_is_never_delivered() {
    let (a, b) = connection::<Words>(2, 128);
    let mut out = hostile(a);
    let start = out.ring().next();
    let first = write_fragment(&mut out, start, [1; 16], SlotKind::First);
    let last = write_fragment(&mut out, first, [1; 16], SlotKind::Last);
    out.publish(last, false);
    // The producer believes that everything was read, so it reuses the slot and the arena space of the first fragment.
    let peer = thread::spawn(move || {
        let end = write_fragment(&mut out, last, [2; 16], SlotKind::First);
        out.publish(end, true);
    });
    match recv_within(&mut receiver(&b), Wait::Never) {
        Ok(message) => assert_eq!(message, [1; 32]),
        fault => check(fault),
    }
    peer.join().unwrap();
}

/// Writes one fragment of a message of two, and returns the cursor after it.
fn write_fragment(out: &mut HostilePeer, from: Cursor, bytes: [u8; 16], kind: SlotKind) -> Cursor {
    let ring = out.ring_mut();
    let claim = ring.reserve_fragment(from, bytes.len()).unwrap();
    ring.mark_writing(&claim);
    ring.write(&claim, 0, &bytes, Padding::Zero).unwrap();
    if kind == SlotKind::First {
        ring.write_total(&claim, 32);
    }
    ring.describe(&claim, kind, bytes.len(), 0);
    claim.after()
}
