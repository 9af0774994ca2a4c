//! Frames of calls, as a peer that is written by hand sends and takes them.

use std::io::IoSlice;

use super::super::code::rpc::wire::{HEAD, Head};
use super::super::code::{NoWaitPolicy, ReceiverCore, RecvCoreError, SenderCore, Wait};
use super::ROOM;
use crate::machine::Model;

/// A frame that came: its id, head and body.
pub(super) type Frame = (u64, Head, Vec<u8>);

/// Sends a frame.
pub(super) fn say(out: &mut SenderCore<Model, NoWaitPolicy>, id: u64, head: Head, body: &[u8]) {
    out.send(&[IoSlice::new(&head.encode()), IoSlice::new(body)], id, Wait::FOREVER).unwrap();
}

/// Takes the next frame.
pub(super) fn hear(inb: &mut ReceiverCore<Model, NoWaitPolicy>) -> Result<Frame, RecvCoreError> {
    let mut bytes = Vec::with_capacity(ROOM);
    let message = inb.recv_into(&mut bytes, Wait::FOREVER)?;
    let head = bytes.first_chunk::<HEAD>().expect("a head");
    Ok((message.tag, Head::decode(*head).expect("honest"), bytes[HEAD..].to_vec()))
}
