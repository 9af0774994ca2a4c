//! One frame on its way: a head and a body in one message.

use super::wire::{FrameHeader, HEADER_LEN};
use crate::channel::{IncomingMessage, ReceiverCore, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::ProtocolViolation;
use crate::memory::Memory;

/// Sends one frame, whose body is two parts, one behind the other.
#[inline]
pub fn send<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    head: FrameHeader,
    body: [&[u8]; 2],
    id: u64,
    wait: Wait,
) -> Result<(), SendCoreError> {
    out.send_framed(head.encode(), body, id, wait).map(drop)
}

/// A frame that has come, whose body stands where it came.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What it is.
    pub head: FrameHeader,
    /// Its call.
    pub id: u64,
    message: IncomingMessage,
}

impl Frame {
    /// Reads the head of a message.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if it is no frame.
    #[inline]
    pub fn open<M: Memory, P: WaitPolicy>(
        inbound: &ReceiverCore<M, P>,
        message: &IncomingMessage,
    ) -> Result<Self, ProtocolViolation> {
        let mut head = [0; HEADER_LEN];
        match inbound.read_at(message, 0, &mut head) {
            Ok(()) => Ok(Self { head: FrameHeader::decode(head)?, id: message.tag(), message: *message }),
            Err(_) => Err(ProtocolViolation("a message without a head")),
        }
    }

    /// Bytes of the body.
    #[inline]
    pub fn len(&self) -> usize {
        self.message.len() - HEADER_LEN
    }

    /// Whether it has no body.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message that it came in.
    #[inline]
    pub fn message(&self) -> &IncomingMessage {
        &self.message
    }

    /// Copies the body from `at` on; nothing if that is not in it.
    #[inline]
    pub fn read<M: Memory, P: WaitPolicy>(
        &self,
        inbound: &ReceiverCore<M, P>,
        at: usize,
        into: &mut [u8],
    ) -> Option<()> {
        inbound.read_at(&self.message, HEADER_LEN.checked_add(at)?, into).ok()
    }
}
