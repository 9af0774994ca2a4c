//! The send queue of a connection: the calls, the items that are queued for them, and the sending half. One lock
//! guards it.
//!
//! # Invariants
//!
//! 1. Nothing here waits. What has no room in the ring is queued in the outboxes of the calls.
//! 2. Queued items are sent in round robin, one fragment of each; credit is sent first.

use super::in_flight::{QueuedItem, ServedCalls};
use crate::channel::{AwaitedRelease, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::ConnectionError;
use crate::memory::{Memory, OutOfMemory, try_reserve};
use crate::rpc::fragment::Fragmenter;
use crate::rpc::wire::{Frame, FrameHeader, FrameKind, HEADER_LEN, send_frame};

/// The number of fragments of one answer that the answering thread sends itself, enough for 256 KiB. The driver sends
/// the rest, so that other calls get their turn.
const MAX_DIRECT_FRAGMENTS: usize = 5;

/// What the lock of a server connection guards.
#[derive(Debug)]
pub(super) struct SendQueue<M, P> {
    /// The calls.
    calls: ServedCalls,
    out: SenderCore<M, P>,
    max_fragment: usize,
    /// The number of inline calls that were answered.
    inline_answered: u64,
    /// The client was accepted. Until then everything is queued.
    accepted: bool,
    /// How the connection has ended, if its driver has noticed it.
    closed: Option<ConnectionError>,
}

/// The bytes of a chunk, a push, or a reply.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Bytes that belong to the caller. What cannot be sent at once is copied.
    Borrowed(&'a [u8]),
    /// A buffer. If it cannot be sent at once, it is taken.
    Owned(&'a mut Vec<u8>),
}

impl<M: Memory, P: WaitPolicy> SendQueue<M, P> {
    /// Returns an empty queue, for a client that is not accepted yet.
    pub(super) fn new(calls: ServedCalls, out: SenderCore<M, P>, max_fragment: usize) -> Self {
        Self { calls, out, max_fragment, inline_answered: 0, accepted: false, closed: None }
    }

    /// Returns the calls.
    #[inline]
    pub(super) fn calls(&mut self) -> &mut ServedCalls {
        &mut self.calls
    }

    /// Returns whether no call is under way, and nothing is queued.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.in_flight() == 0 && !self.has_unsent()
    }

    /// From now on items are sent, and no longer only queued. Returns the sending half, for the preface.
    pub(super) fn accept(&mut self) -> &mut SenderCore<M, P> {
        self.accepted = true;
        &mut self.out
    }

    /// Returns how the connection has ended, if its driver has noticed it.
    #[inline]
    pub(super) fn closed(&self) -> Option<ConnectionError> {
        self.closed
    }

    /// Notes how the connection has ended. The first reason stays.
    pub(super) fn close(&mut self, ended: ConnectionError) {
        self.closed.get_or_insert(ended);
    }

    /// Counts an inline call.
    #[inline]
    pub(super) fn count_inline(&mut self) {
        self.inline_answered += 1;
    }

    /// Returns the number of inline calls that were answered.
    pub(super) fn inline_answered(&self) -> u64 {
        self.inline_answered
    }

    /// Returns how full the ring to the client was at most, in thousandths.
    pub(super) fn peak_fill(&self) -> u32 {
        self.out.ring().peak_fill()
    }

    /// Returns where the next message goes: it changes when something is sent.
    pub(super) fn position(&self) -> impl PartialEq + use<M, P> {
        self.out.ring().next()
    }

    /// Answers a call that arrived whole in one frame with a reply of one frame. Returns false, and sends nothing, if
    /// no well-formed client makes this call now, if other items are queued, or if there is no room.
    #[inline]
    pub(super) fn try_reply_inline(&mut self, frame: &Frame, reply: &[u8]) -> bool {
        let direct = self.accepted && self.calls.all_sent() && reply.len() <= self.max_fragment;
        if !direct || !self.calls.may_begin(frame.id, frame.head, frame.len()) {
            return false;
        }
        let sent = send_frame(
            &mut self.out,
            FrameHeader::new(FrameKind::Reply, 0),
            [reply, &[]],
            frame.id,
            Wait::Never,
        )
        .is_ok();
        if sent {
            self.calls.record_inline(frame.id);
        }
        sent
    }

    /// Sends an item as far as there is room and no other item is queued, and queues the rest.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if borrowed bytes cannot be kept, or there is no memory for an entry in the outbox; nothing
    /// was sent.
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
        let direct = self.accepted && self.calls.all_sent();
        let seq = *self.calls.next_seq(at);
        if direct && bytes.len() <= self.max_fragment {
            let counted = u16::from(head.kind.is_sequenced());
            let head = FrameHeader { seq: seq * counted, ..head };
            if send_frame(&mut self.out, head, [bytes, &[]], id, Wait::Never).is_ok() {
                *self.calls.next_seq(at) = seq.wrapping_add(counted);
                if last {
                    self.calls.on_final_sent(at);
                }
                return Ok(());
            }
        }
        // Before the first fragment is sent: an item that has begun cannot be taken back.
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

    /// Sends the first fragments of a long item, as far as there is room. Returns whether that was all of it.
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
            if send_frame(&mut self.out, head, [fragment, &[]], id, Wait::Never).is_err() {
                return false; // There is no room, or the connection has ended, which the driver will notice.
            }
            *self.calls.next_seq(at) = head.seq.wrapping_add(u16::from(head.kind.is_sequenced()));
            if fragmenter.advance(&range) {
                return true;
            }
        }
        false
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.calls.all_sent()
    }

    /// Sends the credit that is owed, as far as there is room. Returns false if there was no room for some of it.
    pub(super) fn flush_credit(&mut self) -> bool {
        while let Some((id, amount)) = self.calls.next_credit() {
            if send_frame(
                &mut self.out,
                FrameHeader::new(FrameKind::Credit, amount),
                [&[], &[]],
                id,
                Wait::Never,
            )
            .is_err()
            {
                self.calls.return_credit((id, amount));
                return false;
            }
            self.calls.on_credit_sent((id, amount));
        }
        true
    }

    /// Sends what is queued, one fragment of each item in turn, at most `max_fragments` of them.
    ///
    /// # Errors
    ///
    /// [`SendCoreError::Full`] if there is no room, or how the connection has ended.
    pub(super) fn flush(&mut self, max_fragments: u32) -> Result<(), SendCoreError> {
        if !self.flush_credit() {
            return Err(SendCoreError::Full);
        }
        for _ in 0..max_fragments {
            let Some((at, id, seq, mut item)) = self.calls.next_item() else { return Ok(()) };
            let (head, range) = item.next_frame(self.max_fragment, seq);
            let fragment = item.bytes(&range);
            let sent = send_frame(&mut self.out, head, [fragment, &[]], id, Wait::Never);
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

    /// Sends a goodbye: the server begins no call any more. Returns false if there is no room for it now.
    pub(super) fn send_goodbye(&mut self) -> bool {
        let sent =
            send_frame(&mut self.out, FrameHeader::new(FrameKind::Goodbye, 0), [&[], &[]], 0, Wait::Never);
        !matches!(sent, Err(SendCoreError::Full))
    }

    /// Returns what must be released before the next frame has room, or `None` if there is room.
    pub(super) fn awaited_release(&mut self) -> Option<AwaitedRelease> {
        let needs = self.out.ticket_to_await(HEADER_LEN + self.max_fragment).ok().flatten();
        needs.map(|needs| self.out.ring().awaited_release(needs))
    }
}
