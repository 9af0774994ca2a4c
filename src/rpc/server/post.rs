//! What is behind the lock of a connection: the calls, what is to be sent of them, and the sending half.
//!
//! # Invariants
//!
//! 1. Nothing here waits: what has no room is left in the table's outboxes.
//! 2. What is left goes out in turn, a piece of each item; credit goes first.

use super::place::Item;
use super::table::Table;
use crate::channel::{AwaitedRelease, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::ConnectionError;
use crate::mem::{Memory, OutOfMemory, try_reserve};
use crate::rpc::frame::{Frame, send};
use crate::rpc::pieces::Cut;
use crate::rpc::wire::{HEAD, Head, Kind};

/// Pieces of one answer that its own thread sends, enough for 256 KiB; the rest is the attendant's, so that other
/// calls get their turn.
const AT_ONCE: usize = 5;

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct Post<M, P> {
    /// The calls.
    pub(super) table: Table,
    pub(super) out: SenderCore<M, P>,
    piece: usize,
    /// Inline calls that were answered.
    pub(super) answered: u64,
    /// The client was welcomed; until then everything is left.
    pub(super) open: bool,
    /// How the connection has ended, if its thread has found out.
    pub(super) over: Option<ConnectionError>,
}

/// What a method has to say: chunks, or the last word.
#[derive(Debug)]
pub enum Body<'a> {
    /// Bytes of another; what cannot be sent at once is copied.
    Lent(&'a [u8]),
    /// A buffer; what cannot be sent at once is taken.
    Own(&'a mut Vec<u8>),
}

impl<M: Memory, P: WaitPolicy> Post<M, P> {
    /// With nothing to be sent, of a client that is not welcomed yet.
    pub(super) fn new(table: Table, out: SenderCore<M, P>, piece: usize) -> Self {
        Self { table, out, piece, answered: 0, open: false, over: None }
    }

    /// Answers a call that was whole in one frame, and that an honest client may make now, with a reply of one
    /// frame, if nothing else is to be sent and there is room.
    #[inline]
    pub(super) fn answer_now(&mut self, frame: &Frame, reply: &[u8]) -> bool {
        let able = self.open && self.table.is_idle() && reply.len() <= self.piece;
        if !able || !self.table.may_begin(frame.id, frame.head, frame.len()) {
            return false;
        }
        let sent =
            send(&mut self.out, Head::new(Kind::Reply, 0), [reply, &[]], frame.id, Wait::Never).is_ok();
        if sent {
            self.table.pass(frame.id);
        }
        sent
    }

    /// Sends an item as far as there is room and nobody else's turn, and leaves the rest.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if lent bytes cannot be kept; nothing was sent.
    #[inline]
    pub(super) fn say(
        &mut self,
        at: usize,
        id: u64,
        head: Head,
        body: Body<'_>,
        last: bool,
    ) -> Result<(), OutOfMemory> {
        let bytes = match &body {
            Body::Lent(bytes) => bytes,
            Body::Own(bytes) => bytes.as_slice(),
        };
        let direct = self.open && self.table.is_idle();
        let seq = *self.table.seq(at);
        if direct && bytes.len() <= self.piece {
            let counted = u16::from(head.kind.counted());
            let head = Head { seq: seq * counted, ..head };
            if send(&mut self.out, head, [bytes, &[]], id, Wait::Never).is_ok() {
                *self.table.seq(at) = seq.wrapping_add(counted);
                if last {
                    self.table.closed(at);
                }
                return Ok(());
            }
        }
        // Before the first fragment is sent: what began cannot be taken back.
        let mut copy = Vec::new();
        if let Body::Lent(bytes) = &body {
            try_reserve(&mut copy, bytes.len())?;
        }
        if !last {
            self.table.reserve(at)?;
        }
        let mut cut = Cut::new(head, bytes.len());
        if direct && bytes.len() > self.piece && self.begin(at, id, &mut cut, bytes) {
            if last {
                self.table.closed(at);
            }
            return Ok(());
        }
        let bytes = match body {
            Body::Lent(bytes) => {
                copy.extend_from_slice(bytes);
                copy
            }
            Body::Own(bytes) => std::mem::take(bytes),
        };
        self.table.put(at, Item { cut, bytes, last });
        Ok(())
    }

    /// Sends the first pieces of a long item, as far as there is room. Whether that was all.
    fn begin(&mut self, at: usize, id: u64, cut: &mut Cut, bytes: &[u8]) -> bool {
        for _ in 0..AT_ONCE {
            let (head, range) = cut.frame(self.piece, *self.table.seq(at));
            let piece = bytes.get(range.clone()).unwrap_or_default();
            if send(&mut self.out, head, [piece, &[]], id, Wait::Never).is_err() {
                return false; // There is no room, or an end that the attendant will find.
            }
            *self.table.seq(at) = head.seq.wrapping_add(u16::from(head.kind.counted()));
            if cut.advance(&range) {
                return true;
            }
        }
        false
    }

    pub(super) fn is_left(&self) -> bool {
        !self.table.is_idle()
    }

    /// Sends the credit that is owed, as far as there is room. False if there is none.
    pub(super) fn flush_credit(&mut self) -> bool {
        while let Some((id, amount)) = self.table.next_control() {
            if send(&mut self.out, Head::new(Kind::Credit, amount), [&[], &[]], id, Wait::Never).is_err() {
                self.table.put_control_back((id, amount));
                return false;
            }
            self.table.credited((id, amount));
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
            let Some((at, id, seq, mut item)) = self.table.next_item() else { return Ok(()) };
            let (head, range) = item.cut.frame(self.piece, seq);
            let piece = item.bytes.get(range.clone()).unwrap_or_default();
            let sent = send(&mut self.out, head, [piece, &[]], id, Wait::Never);
            if let Err(fault) = sent {
                self.table.turn(at, Some(item), false);
                return Err(fault);
            }
            *self.table.seq(at) = seq.wrapping_add(u16::from(head.kind.counted()));
            let done = item.cut.advance(&range);
            if done {
                self.table.done(at, &item);
            }
            self.table.turn(at, (!done).then_some(item), true);
        }
        Ok(())
    }

    /// Says that no call is begun any more. False if there is no room for that now.
    pub(super) fn say_goodbye(&mut self) -> bool {
        let said = send(&mut self.out, Head::new(Kind::Goodbye, 0), [&[], &[]], 0, Wait::Never);
        !matches!(said, Err(SendCoreError::Full))
    }

    /// What has to be released before the next frame has room; none if there is room.
    pub(super) fn wanted(&mut self) -> Option<AwaitedRelease> {
        let needs = self.out.ticket_to_await(HEAD + self.piece).ok().flatten();
        needs.map(|needs| self.out.ring().awaited_release(needs))
    }
}
