//! Frames of calls, sent and received by a peer that the model plays.

use std::io::IoSlice;

use super::super::code::rpc::wire::{FrameHeader, HEADER_LEN};
use super::super::code::{NoWaitPolicy, ReceiverCore, RecvCoreError, SenderCore, Wait};
use super::BUFFER_CAPACITY;
use crate::memory::Model;

/// A frame that was received: its id, header and body.
pub(super) type Frame = (u64, FrameHeader, Vec<u8>);

/// Sends a frame.
pub(super) fn send_frame(out: &mut SenderCore<Model, NoWaitPolicy>, id: u64, head: FrameHeader, body: &[u8]) {
    out.send(&[IoSlice::new(&head.encode()), IoSlice::new(body)], id, Wait::NO_DEADLINE).unwrap();
}

/// Receives the next frame.
pub(super) fn receive_frame(inb: &mut ReceiverCore<Model, NoWaitPolicy>) -> Result<Frame, RecvCoreError> {
    let mut bytes = Vec::with_capacity(BUFFER_CAPACITY);
    let message = inb.recv_into(&mut bytes, Wait::NO_DEADLINE)?;
    let head = bytes.first_chunk::<HEADER_LEN>().expect("a header");
    Ok((message.tag, FrameHeader::decode(*head).expect("well-formed"), bytes[HEADER_LEN..].to_vec()))
}
