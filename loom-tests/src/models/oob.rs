//! Out-of-band words, which overtake all messages.

use loom::thread;
use narrows::internal::memory::{Memory, Padding, Span};

use super::super::code::ring::{OobSender, load_doorbell, load_oob};
use super::{Named, named, sleep_until};
use crate::memory::{Cells, connection};

pub(super) const ALL: &[Named] =
    named![an_oob_word_wakes_the_receiver_and_is_seen, writes_before_an_oob_word_are_seen_after_it];

fn an_oob_word_wakes_the_receiver_and_is_seen() {
    let (a, b) = connection::<Cells>(1, 64);
    let peer = thread::spawn(move || OobSender::new(a.out).send_oob(3, 7));
    assert!(sleep_until(&b.into, None, || load_doorbell(&b.into) != 0));
    assert_eq!(load_oob(&b.into, 3), 7);
    peer.join().unwrap();
}

fn writes_before_an_oob_word_are_seen_after_it() {
    let (a, b) = connection::<Cells>(1, 64);
    let peer = thread::spawn(move || {
        a.out.copy_in(Span::Slot(0), 0, &[5], Padding::Zero).unwrap();
        OobSender::new(a.out).send_oob(0, 1);
    });
    if load_oob(&b.into, 0) == 1 {
        let mut byte = [0];
        b.into.copy_out(Span::Slot(0), 0, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
    peer.join().unwrap();
}
