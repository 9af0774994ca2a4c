//! A producer that laps its reader: what is torn is never taken for a message.

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
    a_message_that_is_lapped_is_no_message,
    a_lent_message_that_is_lapped_is_found_out,
    a_borrowed_message_that_is_overwritten_is_found_out_by_its_guard,
    a_piece_that_is_lapped_is_no_piece,
];

type HostilePeer = SenderCore<StaleHead, NoWaitPolicy>;

fn hostile(side: Side<Words>) -> HostilePeer {
    SenderCore::new(StaleHead::new(side.out), NoWaitPolicy, 0, MAX_MESSAGE)
}

fn lap(out: &mut HostilePeer, message: &[u8]) {
    out.send(&[IoSlice::new(message)], 0, Wait::Never).unwrap();
}

/// One of the messages that were sent, or the lie is found out.
fn check(found: Result<Vec<u8>, RecvCoreError>) {
    match found {
        Ok(message) => assert!(message == [1; 16] || message == [2; 16], "torn: {message:?}"),
        Err(fault) => assert!(matches!(
            fault,
            RecvCoreError::Empty | RecvCoreError::Ended(ConnectionError::ProtocolViolated)
        )),
    }
}

fn a_message_that_is_lapped_is_no_message() {
    let (a, b) = connection::<Words>(1, 64);
    let mut out = hostile(a);
    lap(&mut out, &[1; 16]);
    let peer = thread::spawn(move || lap(&mut out, &[2; 16]));
    check(recv_within(&mut receiver(&b), Wait::Never));
    peer.join().unwrap();
}

fn a_lent_message_that_is_lapped_is_found_out() {
    borrow_an_overwritten_message(|inb, message| inb.release(message));
}

fn a_borrowed_message_that_is_overwritten_is_found_out_by_its_guard() {
    borrow_an_overwritten_message(|inb, _| inb.release_borrowed());
}

type Racing = ReceiverCore<RacyModel, NoWaitPolicy>;

fn borrow_an_overwritten_message(
    release: impl Fn(&mut Racing, &IncomingMessage) -> Result<(), RecvCoreError>,
) {
    let (a, b) = connection::<Words>(1, 64);
    let mut out = hostile(a);
    lap(&mut out, &[1; 16]);
    let peer = thread::spawn(move || lap(&mut out, &[2; 16]));
    let mut inb: Racing = receiver(&b);
    if let Ok(message) = inb.borrow_next(Wait::Never) {
        let mut bytes = vec![0; message.len()];
        // What is torn may be a lie about the length as well.
        let _refused = inb.read_at(&message, 0, &mut bytes);
        check(release(&mut inb, &message).map(|()| bytes));
    }
    peer.join().unwrap();
}

fn a_piece_that_is_lapped_is_no_piece() {
    let (a, b) = connection::<Words>(2, 128);
    let mut out = hostile(a);
    let start = out.ring().next();
    let first = write(&mut out, start, [1; 16], SlotKind::First);
    let last = write(&mut out, first, [1; 16], SlotKind::Last);
    out.publish(last, false);
    // It takes the slot of the first piece and, since it believes that all was read, its place.
    let peer = thread::spawn(move || {
        let lap = write(&mut out, last, [2; 16], SlotKind::First);
        out.publish(lap, true);
    });
    match recv_within(&mut receiver(&b), Wait::Never) {
        Ok(message) => assert_eq!(message, [1; 32]),
        fault => check(fault),
    }
    peer.join().unwrap();
}

/// Writes one piece of a message of two; returns the cursor behind it.
fn write(out: &mut HostilePeer, from: Cursor, bytes: [u8; 16], kind: SlotKind) -> Cursor {
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
