//! A place for one call of a client: where it is in its life, its request, its uploads, its outbox.

use std::collections::VecDeque;

use crate::error::ProtocolViolation;
use crate::mem::Deadline;
use crate::rpc::greeting::clipped;
use crate::rpc::pieces::{Assembly, Cut};
use crate::rpc::wire::{Head, Kind, Status, UPLOAD, cost};

/// Bytes of the time left, in front of a request.
pub(super) const TIME: usize = 8;

/// What a frame asks of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    None,
    /// A request is whole: its method is to be run.
    Run(usize),
    /// Somebody who waits for this call may look again.
    Call(usize),
    /// The call was answered for want of memory: its error is to be sent, and its method to be notified.
    Failed(usize),
    /// There is credit for pushes.
    Push,
}

/// Why a call is not admitted, or failed: a status, the method's own code, a text.
pub type Failure = (Status, u32, String);

/// An upload, as its method sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upload {
    /// The next chunk.
    Chunk(Vec<u8>),
    /// There are no more.
    End,
}

/// What bounds the calls of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls under way.
    pub places: usize,
    /// Bytes of a request or reply.
    pub max: usize,
    /// The longest body of a frame, in bytes.
    pub piece: usize,
    /// The window of each stream, in both directions.
    pub window: u32,
    /// The window of pushes.
    pub push_window: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    Receiving,
    Running,
    Closing,
}

/// What is to be sent of one item.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) cut: Cut,
    pub(super) bytes: Vec<u8>,
    /// The last of its call.
    pub(super) last: bool,
}

/// A place for one call.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) phase: Phase,
    pub(super) method: u32,
    pub(super) flags: u8,
    /// When its first frame arrived, if it has a deadline.
    pub(super) arrived: Deadline,
    pub(super) item: Assembly,
    pub(super) chunks: VecDeque<Vec<u8>>,
    /// No chunk follows.
    pub(super) ended: bool,
    /// What the client may still upload, and what was consumed and not yet told.
    pub(super) window: u32,
    pub(super) owed: u32,
    /// What the client lets us send of a stream.
    pub(super) credit: u32,
    /// What of the stream waits in the outbox, at its price.
    pub(super) unsent: u32,
    pub(super) seq: u16,
    pub(super) outbox: VecDeque<Item>,
}

impl Place {
    /// Whether chunks may still come.
    pub(super) fn uploads(&self) -> bool {
        self.flags & UPLOAD != 0 && !self.ended
    }

    /// Leaves an item behind what is to be sent already.
    pub(super) fn put(&mut self, item: Item) {
        if !item.last {
            self.unsent = self.unsent.saturating_add(cost(item.bytes.len()));
        }
        self.outbox.push_back(item);
    }

    /// An item of a stream that was left has gone out.
    pub(super) fn sent(&mut self, item: &Item) {
        self.unsent = self.unsent.saturating_sub(cost(item.bytes.len()));
    }

    /// Sends nothing of what was left.
    pub(super) fn drop_all(&mut self) {
        self.outbox.clear();
        self.unsent = 0;
    }
}

/// The first frame and the body of an error, in at most so many bytes.
pub(super) fn error((status, code, text): &Failure, most: usize) -> (Head, Vec<u8>) {
    let mut bytes = code.to_le_bytes().to_vec();
    bytes.extend_from_slice(clipped(text, most.saturating_sub(4)).as_bytes());
    (Head::new(Kind::Error, *status as u32), bytes)
}

/// Adds credit, which never exceeds its window, with what is still to be sent: none is due for that, and who gave it
/// all the same would have us keep more and more.
pub(super) fn add_credit(place: &mut Place, more: u32, window: u32) -> Result<(), ProtocolViolation> {
    let sum = place
        .credit
        .checked_add(more)
        .filter(|sum| sum.checked_add(place.unsent).is_some_and(|all| all <= window));
    place.credit = sum.ok_or(ProtocolViolation("more credit than the window"))?;
    Ok(())
}

/// What a frame of an upload takes of its window.
pub(super) fn price(head: Head, len: usize) -> u32 {
    if head.kind == Kind::Chunk { cost(len) } else { u32::try_from(len).unwrap_or(u32::MAX) }
}

/// Takes so much credit, if there is enough.
pub(super) fn spend(credit: &mut u32, cost: u32) -> bool {
    let left = credit.checked_sub(cost);
    *credit = left.unwrap_or(*credit);
    left.is_some()
}
