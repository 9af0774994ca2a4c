//! What is behind the lock of a connection: the calls, what is to be sent of them, and the sending half.
//!
//! # Invariants
//!
//! 1. Nothing here waits: what has no room is left in the table's outboxes.
//! 2. What is left goes out in turn, a piece of each item; credit goes first.

use super::in_flight::QueuedItem;
use super::in_flight::ServedCalls;
use crate::channel::{AwaitedRelease, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::ConnectionError;
use crate::memory::{Memory, OutOfMemory, try_reserve};
use crate::rpc::fragment::Fragmenter;
use crate::rpc::frame::{Frame, send};
use crate::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN};

/// Pieces of one answer that its own thread sends, enough for 256 KiB; the rest is the attendant's, so that other
/// calls get their turn.
const MAX_DIRECT_FRAGMENTS: usize = 5;

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct SendQueue<M, P> {
    /// The calls.
    pub(super) calls: ServedCalls,
    pub(super) out: SenderCore<M, P>,
    max_fragment: usize,
    /// Inline calls that were answered.
    pub(super) inline_answered: u64,
    /// The client was welcomed; until then everything is left.
    pub(super) accepted: bool,
    /// How the connection has ended, if its thread has found out.
    pub(super) closed: Option<ConnectionError>,
}

/// What a method has to say: chunks, or the last word.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Bytes of another; what cannot be sent at once is copied.
    Borrowed(&'a [u8]),
    /// A buffer; what cannot be sent at once is taken.
    Owned(&'a mut Vec<u8>),
}

impl<M: Memory, P: WaitPolicy> SendQueue<M, P> {
    /// With nothing to be sent, of a client that is not welcomed yet.
    pub(super) fn new(calls: ServedCalls, out: SenderCore<M, P>, max_fragment: usize) -> Self {
        Self { calls, out, max_fragment, inline_answered: 0, accepted: false, closed: None }
    }

    /// Answers a call that was whole in one frame, and that an honest client may make now, with a reply of one
    /// frame, if nothing else is to be sent and there is room.
    #[inline]
    pub(super) fn try_reply_inline(&mut self, frame: &Frame, reply: &[u8]) -> bool {
        let able = self.accepted && self.calls.is_sent() && reply.len() <= self.max_fragment;
        if !able || !self.calls.may_begin(frame.id, frame.head, frame.len()) {
            return false;
        }
        let sent =
            send(&mut self.out, FrameHeader::new(FrameKind::Reply, 0), [reply, &[]], frame.id, Wait::Never)
                .is_ok();
        if sent {
            self.calls.record_inline(frame.id);
        }
        sent
    }

    /// Sends an item as far as there is room and nobody else's turn, and leaves the rest.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if lent bytes cannot be kept; nothing was sent.
    #[inline]
    pub(super) fn send_or_queue(
        &mut self,
        at: usize,
        id: u64,
        head: FrameHeader,
        body: Payload<'_>,
        last: bool,
    ) -> Result<(), OutOfMemory> {
        let bytes = match &body {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes.as_slice(),
        };
        let direct = self.accepted && self.calls.is_sent();
        let seq = *self.calls.next_seq(at);
        if direct && bytes.len() <= self.max_fragment {
            let counted = u16::from(head.kind.is_sequenced());
            let head = FrameHeader { seq: seq * counted, ..head };
            if send(&mut self.out, head, [bytes, &[]], id, Wait::Never).is_ok() {
                *self.calls.next_seq(at) = seq.wrapping_add(counted);
                if last {
                    self.calls.on_final_sent(at);
                }
                return Ok(());
            }
        }
        // Before the first fragment is sent: what began cannot be taken back.
        let mut copy = Vec::new();
        if let Payload::Borrowed(bytes) = &body {
            try_reserve(&mut copy, bytes.len())?;
        }
        if !last {
            self.calls.reserve_outbox(at)?;
        }
        let mut fragmenter = Fragmenter::new(head, bytes.len());
        if direct
            && bytes.len() > self.max_fragment
            && self.send_first_fragments(at, id, &mut fragmenter, bytes)
        {
            if last {
                self.calls.on_final_sent(at);
            }
            return Ok(());
        }
        let bytes = match body {
            Payload::Borrowed(bytes) => {
                copy.extend_from_slice(bytes);
                copy
            }
            Payload::Owned(bytes) => std::mem::take(bytes),
        };
        self.calls.queue_item(at, QueuedItem::new(fragmenter, bytes, last));
        Ok(())
    }

    /// Sends the first pieces of a long item, as far as there is room. Whether that was all.
    fn send_first_fragments(
        &mut self,
        at: usize,
        id: u64,
        fragmenter: &mut Fragmenter,
        bytes: &[u8],
    ) -> bool {
        for _ in 0..MAX_DIRECT_FRAGMENTS {
            let (head, range) = fragmenter.next_frame(self.max_fragment, *self.calls.next_seq(at));
            let fragment = bytes.get(range.clone()).unwrap_or_default();
            if send(&mut self.out, head, [fragment, &[]], id, Wait::Never).is_err() {
                return false; // There is no room, or an end that the attendant will find.
            }
            *self.calls.next_seq(at) = head.seq.wrapping_add(u16::from(head.kind.is_sequenced()));
            if fragmenter.advance(&range) {
                return true;
            }
        }
        false
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.calls.is_sent()
    }

    /// Sends the credit that is owed, as far as there is room. False if there is none.
    pub(super) fn flush_credit(&mut self) -> bool {
        while let Some((id, amount)) = self.calls.next_credit() {
            if send(&mut self.out, FrameHeader::new(FrameKind::Credit, amount), [&[], &[]], id, Wait::Never)
                .is_err()
            {
                self.calls.return_credit((id, amount));
                return false;
            }
            self.calls.on_credit_sent((id, amount));
        }
        true
    }

    /// Sends what is left, a piece of each item in turn, at most `most` pieces.
    ///
    /// # Errors
    ///
    /// [`SendCoreError::Full`] if there is no room, or how the connection has ended.
    pub(super) fn flush(&mut self, most: u32) -> Result<(), SendCoreError> {
        if !self.flush_credit() {
            return Err(SendCoreError::Full);
        }
        for _ in 0..most {
            let Some((at, id, seq, mut item)) = self.calls.next_item() else { return Ok(()) };
            let (head, range) = item.next_frame(self.max_fragment, seq);
            let fragment = item.bytes(&range);
            let sent = send(&mut self.out, head, [fragment, &[]], id, Wait::Never);
            if let Err(fault) = sent {
                self.calls.rotate(at, Some(item), false);
                return Err(fault);
            }
            *self.calls.next_seq(at) = seq.wrapping_add(u16::from(head.kind.is_sequenced()));
            let done = item.advance(&range);
            if done {
                self.calls.on_item_sent(at, &item);
            }
            self.calls.rotate(at, (!done).then_some(item), true);
        }
        Ok(())
    }

    /// Says that no call is begun any more. False if there is no room for that now.
    pub(super) fn send_goodbye(&mut self) -> bool {
        let said = send(&mut self.out, FrameHeader::new(FrameKind::Goodbye, 0), [&[], &[]], 0, Wait::Never);
        !matches!(said, Err(SendCoreError::Full))
    }

    /// What has to be released before the next frame has room; none if there is room.
    pub(super) fn awaited_release(&mut self) -> Option<AwaitedRelease> {
        let needs = self.out.ticket_to_await(HEADER_LEN + self.max_fragment).ok().flatten();
        needs.map(|needs| self.out.ring().awaited_release(needs))
    }
}
