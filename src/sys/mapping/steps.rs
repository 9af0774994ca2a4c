//! The names of a mapping's failpoints, at which a test can end the process.

use std::ptr::NonNull;

use crate::memory::{Field, Flag, Padding, Word};
use crate::sys::{copy, failpoint};

/// Writes the first half of the bytes that are about to be copied, so that a test can end the process with a payload
/// half written.
pub(super) fn begin_copy(base: NonNull<u8>, at: usize, bytes: &[u8]) {
    if failpoint::is_on() {
        let (half, _) = bytes.split_at(bytes.len() / 2);
        // SAFETY: the caller has validated the whole range, which it is about to write once more.
        unsafe { copy::copy_in(base, at, half, Padding::Keep) };
        failpoint!("copy in, half done");
    }
}

pub(super) fn load_slot(field: Field) -> &'static str {
    match field {
        Field::Stamp => "load stamp",
        Field::Control => "load control",
        Field::Tag => "load tag",
    }
}

pub(super) fn store_slot(field: Field) -> &'static str {
    match field {
        Field::Stamp => "store stamp",
        Field::Control => "store control",
        Field::Tag => "store tag",
    }
}

pub(super) fn load(word: Word) -> &'static str {
    match word {
        Word::Head => "load head",
        Word::AwaitedTicket => "load awaited ticket",
        Word::ProducerClosed => "load producer closed",
        Word::ConsumerClosed => "load consumer closed",
        Word::Doorbell => "load doorbell",
        Word::Oob(_) => "load oob",
        Word::CloseReason => "load close reason",
    }
}

pub(super) fn store(word: Word) -> &'static str {
    match word {
        Word::Head => "store head",
        Word::AwaitedTicket => "store awaited ticket",
        Word::ProducerClosed => "close producer",
        Word::ConsumerClosed => "close consumer",
        Word::Doorbell => "store doorbell",
        Word::Oob(_) => "store oob",
        Word::CloseReason => "store close reason",
    }
}

pub(super) fn wake(flag: Flag) -> &'static str {
    match flag {
        Flag::Consumer => "wake consumer",
        Flag::Producer => "wake producer",
        Flag::PeerConsumer => "wake peer consumer",
    }
}
