//! One frame on its way: a head and a body in one message.
//!
//! What fits a slot is put together in private memory, and then copied once.

use std::io::IoSlice;

use super::wire::{HEAD, Head};
use crate::channel::{Inbound, Incoming, Outbound, Pace, SendFault, Wait};
use crate::error::Violation;
use crate::mem::{INLINE, Memory};

/// Sends one frame, whose body is two parts, one behind the other.
#[inline]
pub fn send<M: Memory, P: Pace>(
    out: &mut Outbound<M, P>,
    head: Head,
    [first, second]: [&[u8]; 2],
    id: u64,
    wait: Wait,
) -> Result<(), SendFault> {
    let head = head.encode();
    let middle = HEAD + first.len();
    let end = middle.saturating_add(second.len());
    if end > INLINE {
        let parts = [IoSlice::new(&head), IoSlice::new(first), IoSlice::new(second)];
        return out.send(&parts, id, wait).map(drop);
    }
    let mut short = [0; INLINE];
    short[..HEAD].copy_from_slice(&head);
    if !first.is_empty() {
        short[HEAD..middle].copy_from_slice(first);
    }
    short[middle..end].copy_from_slice(second);
    out.send_one(&short[..end], id, wait).map(drop)
}

/// A frame that has come, whose body stands where it came.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What it is.
    pub head: Head,
    /// Its call.
    pub id: u64,
    message: Incoming,
}

impl Frame {
    /// Reads the head of a message.
    ///
    /// # Errors
    ///
    /// [`Violation`] if it is no frame.
    #[inline]
    pub fn open<M: Memory, P: Pace>(inbound: &Inbound<M, P>, message: &Incoming) -> Result<Self, Violation> {
        let mut head = [0; HEAD];
        match inbound.read_at(message, 0, &mut head) {
            Ok(()) => Ok(Self { head: Head::decode(head)?, id: message.tag(), message: *message }),
            Err(_) => Err(Violation("a message without a head")),
        }
    }

    /// Bytes of the body.
    #[inline]
    pub fn len(&self) -> usize {
        self.message.len() - HEAD
    }

    /// Whether it has no body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message that it came in.
    #[inline]
    pub fn message(&self) -> &Incoming {
        &self.message
    }

    /// Copies the body from `at` on; nothing if that is not in it.
    #[inline]
    pub fn read<M: Memory, P: Pace>(
        &self,
        inbound: &Inbound<M, P>,
        at: usize,
        into: &mut [u8],
    ) -> Option<()> {
        inbound.read_at(&self.message, HEAD.checked_add(at)?, into).ok()
    }
}
