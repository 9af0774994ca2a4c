//! The server's slots for the calls of one client, and how each frame changes them. Pure: no I/O, no locks.
//!
//! ```text
//!           Call          complete           final queued          final sent
//!   Idle ─────────▶ Receiving ──▶ Running ──────────────▶ Closing ──────────────▶ Idle
//!                      │             │                       ▲
//!                      └─ refused ───┴── cancelled ──────────┘
//! ```
//!
//! Items to be sent are queued in the slot's outbox, in order. Slots with queued items are served in round robin, one
//! fragment each. Credit is sent before everything else.
//!
//! # Invariants
//!
//! 1. Each admitted call gets exactly one final frame, and nothing after it.
//! 2. A slot takes a new call only when the final frame of its last call was sent.
//! 3. The memory that a client can make the server keep is bounded. Of what the client sends, that is a request for
//!    each slot and a window for each upload. Of what the server owes it, that is a reply or a window for each slot,
//!    and a window of pushes.
//! 4. Frames for a call that is over are dropped: the client may have sent them before it received the final frame.
//!
//! # Proof
//!
//! `tests/rpc/tables` compares it with a reference model; fuzz `calls`.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use crate::error::ProtocolViolation;
use crate::memory::{Deadline, OutOfMemory};
use crate::rpc::flow_control::{credit_threshold, window_cost};
use crate::rpc::fragment::{self, Fragmenter, Reassembler};
use crate::rpc::preface::truncate_text;
use crate::rpc::wire::{BUSY_MEMORY, DEADLINE, ERROR_LEN, FrameHeader, FrameKind, STREAM, Status, UPLOAD};
use crate::rpc::{CallOver, slot_index};

/// The length of the time left that stands in front of a request, in bytes.
pub(super) const DEADLINE_LEN: usize = 8;

/// What the connection has to do after a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// Nothing.
    None,
    /// Run the method: its request is complete.
    Run(usize),
    /// Wake the thread that waits for this call.
    Call(usize),
    /// Send the error of a call that failed for want of memory, and wake its method.
    Failed(usize),
    /// Wake the threads that wait for push credit.
    Push,
}

/// Why a call was not admitted, or failed: a status, the method's own code, and a text.
pub type CallFailure = (Status, u32, String);

/// What a method receives of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadItem {
    /// The next chunk.
    Chunk(Vec<u8>),
    /// The end: no chunk follows.
    End,
}

/// The limits on the calls of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// The number of slots: calls under way.
    pub slots: usize,
    /// The longest request or reply, in bytes.
    pub max_message: usize,
    /// The longest body of a frame, in bytes.
    pub max_fragment: usize,
    /// The window of each stream, in both directions.
    pub window: u32,
    /// The window of pushes.
    pub push_window: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CallPhase {
    #[default]
    Idle,
    Receiving,
    Running,
    Closing,
}

/// A queued item, of which some or all is still to be sent.
#[derive(Debug)]
pub(super) struct QueuedItem {
    fragmenter: Fragmenter,
    bytes: Vec<u8>,
    /// The item ends its call.
    last: bool,
}

impl QueuedItem {
    /// Returns an item of which as much is still to be sent as `fragmenter` says.
    pub(super) fn new(fragmenter: Fragmenter, bytes: Vec<u8>, last: bool) -> Self {
        Self { fragmenter, bytes, last }
    }

    /// Returns the next frame: its header, and the range of its body.
    #[inline]
    pub(super) fn next_frame(&self, max_fragment: usize, seq: u16) -> (FrameHeader, Range<usize>) {
        self.fragmenter.next_frame(max_fragment, seq)
    }

    /// Returns the bytes of such a range.
    #[inline]
    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// Notes that this range was sent, and returns whether it was the last.
    #[inline]
    pub(super) fn advance(&mut self, sent: &Range<usize>) -> bool {
        self.fragmenter.advance(sent)
    }
}

/// A slot for one call.
#[derive(Debug, Default)]
pub(super) struct ServedCall {
    id: u64,
    phase: CallPhase,
    method: u32,
    flags: u8,
    /// When the first frame of the call arrived, if the call has a deadline.
    arrived: Deadline,
    item: Reassembler,
    chunks: VecDeque<Vec<u8>>,
    /// The upload has ended: no chunk follows.
    ended: bool,
    /// What the client may still upload. `owed` is the part of the window that was consumed and not yet given back as
    /// credit.
    window: u32,
    owed: u32,
    /// What this side may still send of a stream.
    credit: u32,
    /// The cost of the stream's items that wait in the outbox.
    unsent: u32,
    seq: u16,
    outbox: VecDeque<QueuedItem>,
}

impl ServedCall {
    /// Returns whether chunks may still arrive.
    pub(super) fn is_uploading(&self) -> bool {
        self.flags & UPLOAD != 0 && !self.ended
    }

    /// Queues an item behind those that are queued already.
    pub(super) fn put(&mut self, item: QueuedItem) {
        if !item.last {
            self.unsent = self.unsent.saturating_add(window_cost(item.bytes.len()));
        }
        self.outbox.push_back(item);
    }

    /// Notes that a queued item was sent.
    pub(super) fn sent(&mut self, item: &QueuedItem) {
        self.unsent = self.unsent.saturating_sub(window_cost(item.bytes.len()));
    }

    /// Drops everything that is queued.
    pub(super) fn clear_outbox(&mut self) {
        self.outbox.clear();
        self.unsent = 0;
    }
}

/// Returns the header and the body of an error, in at most `max` bytes.
pub(super) fn encode_failure((status, code, text): &CallFailure, max: usize) -> (FrameHeader, Vec<u8>) {
    let mut bytes = code.to_le_bytes().to_vec();
    bytes.extend_from_slice(truncate_text(text, max.saturating_sub(4)).as_bytes());
    (FrameHeader::new(FrameKind::Error, *status as u32), bytes)
}

/// Adds credit. The credit and the cost of what is still queued never exceed the window: no credit is due for queued
/// items. A client that gave it all the same would make the queue grow without bound.
pub(super) fn add_credit(slot: &mut ServedCall, more: u32, window: u32) -> Result<(), ProtocolViolation> {
    let sum = slot
        .credit
        .checked_add(more)
        .filter(|sum| sum.checked_add(slot.unsent).is_some_and(|all| all <= window));
    slot.credit = sum.ok_or(ProtocolViolation("more credit than the window"))?;
    Ok(())
}

/// Returns what a frame of an upload costs of its window.
pub(super) fn frame_cost(head: FrameHeader, len: usize) -> u32 {
    if head.kind == FrameKind::Chunk { window_cost(len) } else { u32::try_from(len).unwrap_or(u32::MAX) }
}

/// Spends credit, if there is enough. Returns whether there was.
pub(super) fn spend_from(credit: &mut u32, cost: u32) -> bool {
    let left = credit.checked_sub(cost);
    *credit = left.unwrap_or(*credit);
    left.is_some()
}

/// All calls of a connection, and its pushes.
#[derive(Debug)]
pub struct ServedCalls {
    /// The slots of calls. The last one is for pushes.
    slots: Vec<ServedCall>,
    send_turns: VecDeque<usize>,
    credits: VecDeque<(u64, u32)>,
    limits: CallLimits,
    max_error: usize,
}

impl ServedCalls {
    /// Returns the calls of a fresh connection.
    pub fn new(limits: CallLimits) -> Self {
        let slot = |at| ServedCall { id: at as u64, ..ServedCall::default() };
        let mut slots: Vec<_> = (0..limits.slots).map(slot).collect();
        slots.push(ServedCall { credit: limits.push_window, ..ServedCall::default() });
        let longest_error = limits.max_fragment.min(ERROR_LEN);
        Self {
            slots,
            send_turns: VecDeque::new(),
            credits: VecDeque::new(),
            limits,
            max_error: longest_error,
        }
    }

    /// Returns how many calls may be under way.
    pub fn slots(&self) -> usize {
        self.slots.len() - 1
    }

    /// Returns the slot of the call with this id.
    #[inline]
    pub fn slot_of(&self, id: u64) -> usize {
        slot_index(id, self.slots())
    }

    /// Takes a frame that arrived at a known time, as [`on_frame`](Self::on_frame) does. The time is kept as the
    /// start of the deadline of the call.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no well-formed client sends this frame.
    pub(super) fn on_frame_at(
        &mut self,
        arrived: Deadline,
        id: u64,
        head: FrameHeader,
        len: usize,
        read: impl FnOnce(&mut [u8]),
        admit: impl FnOnce(u32, u8) -> Result<(), CallFailure>,
    ) -> Result<CallEvent, ProtocolViolation> {
        let event = self.on_frame(id, head, len, read, admit)?;
        if arrived.is_some() {
            let at = self.slot_of(id);
            self.slots[at].arrived = arrived;
        }
        Ok(event)
    }

    /// Takes a frame of the client, whose body of `len` bytes `read` copies. `admit` decides about a call by its
    /// method and flags, before any of its bytes are kept.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no well-formed client sends this frame.
    #[inline]
    pub fn on_frame(
        &mut self,
        id: u64,
        head: FrameHeader,
        len: usize,
        read: impl FnOnce(&mut [u8]),
        admit: impl FnOnce(u32, u8) -> Result<(), CallFailure>,
    ) -> Result<CallEvent, ProtocolViolation> {
        if id == 0 {
            return self.on_push_credit(head, len);
        }
        let at = self.slot_of(id);
        if head.kind == FrameKind::Call {
            self.begin(id, head)?;
            if let Err(failure) = admit(head.word, head.flags) {
                self.fail(at, failure);
                return Ok(CallEvent::None);
            }
        }
        let max = self.limits.max_message;
        let slot = &mut self.slots[at];
        if id > slot.id {
            return Err(ProtocolViolation("a frame of a call that was not begun"));
        }
        if id < slot.id || !matches!(slot.phase, CallPhase::Receiving | CallPhase::Running) {
            return Ok(CallEvent::None);
        }
        match head.kind {
            FrameKind::Call | FrameKind::Continuation if slot.phase == CallPhase::Receiving => {
                let spare = if slot.flags & DEADLINE != 0 { DEADLINE_LEN } else { 0 };
                let whole = slot.item.take(head, len, max.saturating_add(spare), read)?.is_some();
                if slot.item.lost.is_some() {
                    self.fail(at, (Status::Busy, BUSY_MEMORY, "there is no memory for the request".into()));
                    return Ok(CallEvent::Failed(at));
                }
                if whole { self.on_request_complete(at) } else { Ok(CallEvent::None) }
            }
            FrameKind::Chunk | FrameKind::Continuation => self.on_chunk(at, head, len, read),
            FrameKind::End if len == 0 && slot.is_uploading() => {
                slot.item.take(head, 0, 0, |_| ())?;
                slot.ended = true;
                Ok(CallEvent::Call(at))
            }
            FrameKind::Credit if len == 0 && slot.flags & STREAM != 0 => {
                add_credit(slot, head.word, self.limits.window)?;
                Ok(CallEvent::Call(at))
            }
            _ => Err(ProtocolViolation("a frame that no client sends for this call")),
        }
    }

    /// Begins a call that arrived whole in one frame, without keeping its bytes, and returns its slot. The call runs
    /// from now on.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no well-formed client makes this call now.
    pub fn begin_inline(
        &mut self,
        id: u64,
        head: FrameHeader,
        len: usize,
    ) -> Result<usize, ProtocolViolation> {
        if !self.may_begin(id, head, len) {
            return Err(ProtocolViolation("a call that cannot begin here"));
        }
        self.begin(id, head)?;
        let at = self.slot_of(id);
        self.slots[at].phase = CallPhase::Running;
        Ok(at)
    }

    /// Returns whether a well-formed client may make this call now, which arrived whole in one frame.
    #[inline]
    pub fn may_begin(&self, id: u64, head: FrameHeader, len: usize) -> bool {
        let prefix = if head.has_flag(DEADLINE) { DEADLINE_LEN } else { 0 };
        let slot = &self.slots[self.slot_of(id)];
        let free = id > slot.id && slot.phase == CallPhase::Idle && head.seq == 0;
        free && len >= prefix && len - prefix <= self.limits.max_message
    }

    /// Records a call that has begun and ended.
    #[inline]
    pub(super) fn record_inline(&mut self, id: u64) {
        let at = self.slot_of(id);
        self.slots[at].id = id;
    }

    /// Returns the id, method and flags of the call in a slot.
    pub fn call(&self, at: usize) -> (u64, u32, u8) {
        let slot = &self.slots[at];
        (slot.id, slot.method, slot.flags)
    }

    /// Returns when the first frame of the call in this slot arrived, if the call has a deadline.
    pub(super) fn arrival(&mut self, at: usize) -> Deadline {
        let slot = &mut self.slots[at];
        slot.arrived.filter(|_| slot.flags & DEADLINE != 0)
    }

    /// Takes the request of a call that is to be run.
    pub fn take_request(&mut self, at: usize) -> Vec<u8> {
        mem::take(&mut self.slots[at].item.bytes)
    }

    /// Returns the buffer of a request to its slot, for the next request there.
    pub fn recycle(&mut self, id: u64, mut buffer: Vec<u8>) {
        let at = self.slot_of(id);
        let slot = &mut self.slots[at];
        if slot.item.bytes.capacity() == 0 && slot.phase != CallPhase::Receiving {
            fragment::clear(&mut buffer);
            slot.item.bytes = buffer;
        }
    }

    /// Returns whether the call runs, and its caller still waits for it.
    #[inline]
    pub fn is_running(&self, id: u64) -> bool {
        let slot = &self.slots[self.slot_of(id)];
        slot.id == id && slot.phase == CallPhase::Running
    }

    /// Spends `cost` of the credit for a stream. Returns false if there is not enough, and `Err` if the call is over.
    pub fn spend_credit(&mut self, id: u64, cost: u32) -> Result<bool, CallOver> {
        if !self.is_running(id) {
            return Err(CallOver);
        }
        let at = self.slot_of(id);
        Ok(spend_from(&mut self.slots[at].credit, cost))
    }

    /// Spends `cost` of the credit for pushes. Returns whether there was enough.
    pub fn spend_push_credit(&mut self, cost: u32) -> bool {
        self.slots.last_mut().is_some_and(|slot| spend_from(&mut slot.credit, cost))
    }

    /// Gives back the credit that was spent on a chunk, or on a push with the id 0, of which nothing was sent.
    pub(super) fn refund_credit(&mut self, id: u64, cost: u32) {
        let at = if id == 0 { self.slots() } else { self.slot_of(id) };
        let slot = &mut self.slots[at];
        if slot.id == id {
            slot.credit = slot.credit.saturating_add(cost);
        }
    }

    /// Takes the next chunk of an upload, or its end, and queues the credit for it. Returns `None` if neither has
    /// arrived, and `Err` if the call is over.
    pub fn next_upload(&mut self, id: u64) -> Result<Option<UploadItem>, CallOver> {
        if !self.is_running(id) {
            return Err(CallOver);
        }
        let (at, window) = (self.slot_of(id), self.limits.window);
        let slot = &mut self.slots[at];
        let Some(chunk) = slot.chunks.pop_front() else {
            return Ok((slot.ended || !slot.is_uploading()).then_some(UploadItem::End));
        };
        slot.owed = slot.owed.saturating_add(window_cost(chunk.len()));
        if slot.owed >= credit_threshold(window) && !slot.ended {
            let owed = mem::take(&mut slot.owed);
            // A client that does not receive its credit must not make this list grow: there is one entry for each
            // call.
            match self.credits.iter_mut().find(|(it, _)| *it == id) {
                Some((_, sum)) => *sum = sum.saturating_add(owed),
                None => self.credits.push_back((id, owed)),
            }
        }
        Ok(Some(UploadItem::Chunk(chunk)))
    }

    /// Returns the slot in which to queue an item of a call that runs, or `None` if the call is over. A last item
    /// ends the call.
    pub(super) fn begin_answer(&mut self, id: u64, last: bool) -> Option<usize> {
        if !self.is_running(id) {
            return None;
        }
        let at = self.slot_of(id);
        if last {
            self.stop_receiving(at);
        }
        Some(at)
    }

    /// Cancels a call. Returns its slot if the call is answered with `Cancelled` now.
    pub fn cancel(&mut self, id: u64) -> Option<usize> {
        let at = self.slot_of(id);
        let slot = &self.slots[at];
        if slot.id != id || slot.phase == CallPhase::Idle {
            return None;
        }
        let short = |item: &QueuedItem| item.last && item.bytes.len() <= self.max_error;
        if slot.outbox.front().is_some_and(short) {
            return None; // The call is over, and its final item is short.
        }
        self.fail(at, (Status::Cancelled, 0, String::new()));
        Some(at)
    }

    /// Ends a call with an error, and drops what is queued for it.
    pub fn fail(&mut self, at: usize, failure: CallFailure) {
        let slot = &mut self.slots[at];
        if !slot.outbox.is_empty() {
            slot.clear_outbox();
            self.send_turns.retain(|it| *it != at);
        }
        self.queue_failure(at, &failure);
    }

    /// Ends a call with an error, behind what is queued for it.
    pub(super) fn queue_failure(&mut self, at: usize, failure: &CallFailure) {
        self.stop_receiving(at);
        let (head, bytes) = encode_failure(failure, self.max_error);
        self.queue_item(at, QueuedItem::new(Fragmenter::new(head, bytes.len()), bytes, true));
    }

    /// Returns the number of calls that are not over.
    pub fn in_flight(&self) -> usize {
        self.slots[..self.slots()].iter().filter(|slot| slot.phase != CallPhase::Idle).count()
    }

    fn begin(&mut self, id: u64, head: FrameHeader) -> Result<(), ProtocolViolation> {
        let at = self.slot_of(id);
        let (upload, stream) = (self.limits.window, self.limits.window);
        let slot = &mut self.slots[at];
        if id <= slot.id || slot.phase != CallPhase::Idle {
            return Err(ProtocolViolation("a call in a slot that is not free"));
        }
        (slot.id, slot.phase, slot.method, slot.flags) = (id, CallPhase::Receiving, head.word, head.flags);
        (slot.window, slot.owed, slot.credit, slot.seq) = (upload, 0, stream, 0);
        slot.ended = false;
        slot.item.reset();
        Ok(())
    }

    fn on_request_complete(&mut self, at: usize) -> Result<CallEvent, ProtocolViolation> {
        let slot = &mut self.slots[at];
        if slot.flags & DEADLINE != 0 && slot.item.bytes.len() < DEADLINE_LEN {
            return Err(ProtocolViolation("a deadline that is not there"));
        }
        slot.phase = CallPhase::Running;
        Ok(CallEvent::Run(at))
    }

    fn on_chunk(
        &mut self,
        at: usize,
        head: FrameHeader,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<CallEvent, ProtocolViolation> {
        let max = self.limits.max_message;
        let slot = &mut self.slots[at];
        if !slot.is_uploading() || slot.phase != CallPhase::Running {
            return Err(ProtocolViolation("a chunk for a call that takes none"));
        }
        let price = frame_cost(head, len);
        slot.window =
            slot.window.checked_sub(price).ok_or(ProtocolViolation("more of an upload than its window"))?;
        let whole = slot.item.take(head, len, max, read)?.is_some();
        if slot.item.lost.is_some() || (whole && slot.chunks.try_reserve(1).is_err()) {
            self.fail(at, (Status::OutOfMemory, 0, String::new()));
            return Ok(CallEvent::Failed(at));
        }
        if !whole {
            return Ok(CallEvent::None);
        }
        slot.chunks.push_back(mem::take(&mut slot.item.bytes));
        Ok(CallEvent::Call(at))
    }

    fn on_push_credit(&mut self, head: FrameHeader, len: usize) -> Result<CallEvent, ProtocolViolation> {
        let slot = self.slots.last_mut().filter(|_| head.kind == FrameKind::Credit && len == 0);
        let slot = slot.ok_or(ProtocolViolation("a frame of no call"))?;
        add_credit(slot, head.word, self.limits.push_window)?;
        Ok(CallEvent::Push)
    }

    /// Stops receiving for a call whose final item is about to be queued or sent.
    #[inline]
    pub(super) fn stop_receiving(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        slot.phase = CallPhase::Closing;
        slot.chunks.clear();
        slot.item.clear();
    }
}

impl ServedCalls {
    /// Returns the slot of pushes.
    pub(super) fn push_slot(&self) -> usize {
        self.slots()
    }

    /// Returns whether no items and no credit wait to be sent.
    #[inline]
    pub fn all_sent(&self) -> bool {
        self.send_turns.is_empty() && self.credits.is_empty()
    }

    /// Reserves memory for one more item in the outbox of a slot.
    pub(super) fn reserve_outbox(&mut self, at: usize) -> Result<(), OutOfMemory> {
        self.slots[at].outbox.try_reserve(1).map_err(|_| OutOfMemory)
    }

    /// Queues an item, to be sent when there is room.
    pub(super) fn queue_item(&mut self, at: usize, item: QueuedItem) {
        let slot = &mut self.slots[at];
        if slot.outbox.is_empty() {
            self.send_turns.push_back(at);
        }
        slot.put(item);
    }

    /// Returns the sequence number of the next frame of a slot.
    #[inline]
    pub(super) fn next_seq(&mut self, at: usize) -> &mut u16 {
        &mut self.slots[at].seq
    }

    /// Frees the slot of a call whose final frame was sent.
    #[inline]
    pub(super) fn on_final_sent(&mut self, at: usize) {
        self.slots[at].phase = CallPhase::Idle;
    }

    /// Notes that the last frame of a queued item was sent.
    pub(super) fn on_item_sent(&mut self, at: usize, item: &QueuedItem) {
        if item.last { self.on_final_sent(at) } else { self.slots[at].sent(item) }
    }

    /// Takes the credit that is to be sent next.
    pub(super) fn next_credit(&mut self) -> Option<(u64, u32)> {
        self.credits.pop_front()
    }

    /// Puts back credit that could not be sent now.
    pub(super) fn return_credit(&mut self, credit: (u64, u32)) {
        self.credits.push_front(credit);
    }

    /// Notes that credit was sent. Only now may the client upload more. Otherwise the credit that is queued for a
    /// hostile client that receives nothing would grow without bound.
    pub(super) fn on_credit_sent(&mut self, (id, amount): (u64, u32)) {
        let at = self.slot_of(id);
        let slot = &mut self.slots[at];
        if slot.id == id {
            slot.window = slot.window.saturating_add(amount);
        }
    }

    /// Takes the next item in turn. Returns it with its slot, and the slot's id and sequence number.
    pub(super) fn next_item(&mut self) -> Option<(usize, u64, u16, QueuedItem)> {
        let at = *self.send_turns.front()?;
        let slot = self.slots.get_mut(at)?;
        let item = slot.outbox.pop_front()?;
        Some((at, slot.id, slot.seq, item)) // The slot of pushes has the id 0.
    }

    /// Ends the turn of a slot, or keeps it if nothing was sent because there was no room. What is left of the item
    /// stays first in its outbox.
    pub(super) fn rotate(&mut self, at: usize, unsent: Option<QueuedItem>, sent: bool) {
        let slot = &mut self.slots[at];
        if let Some(item) = unsent {
            slot.outbox.push_front(item);
        }
        if sent {
            self.send_turns.pop_front();
            if !self.slots[at].outbox.is_empty() {
                self.send_turns.push_back(at);
            }
        }
    }
}

#[cfg(feature = "testing")]
impl ServedCalls {
    /// Returns the credit for pushes.
    pub fn push_credit(&self) -> u32 {
        self.slots.last().map_or(0, |slot| slot.credit)
    }

    /// Returns the number of calls whose request is not complete yet.
    pub fn receiving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.phase == CallPhase::Receiving).count()
    }

    /// Checks that each window is accounted for in full, and that each call has at most one final item.
    ///
    /// # Panics
    ///
    /// If a check fails. The checks need not hold after a protocol violation.
    pub fn audit(&self) {
        let count = self.slots();
        let mut turns: Vec<_> = self.send_turns.iter().copied().collect();
        turns.sort_unstable();
        let full: Vec<_> = (0..=count).filter(|&at| !self.slots[at].outbox.is_empty()).collect();
        assert_eq!(turns, full, "the turns");
        assert!(self.credits.len() <= count, "{} credits are kept for {count} calls", self.credits.len());
        for (at, slot) in self.slots[..count].iter().enumerate() {
            assert_eq!(slot_index(slot.id, count), at, "a call in the slot of another");
            self.audit_slot(slot);
        }
        let pushes = &self.slots[count];
        assert!(
            credit_and_queued(pushes) <= u64::from(self.limits.push_window),
            "more pushes than their window"
        );
    }

    fn audit_slot(&self, slot: &ServedCall) {
        let finals = slot.outbox.iter().filter(|item| item.last).count();
        let closing = slot.phase == CallPhase::Closing;
        assert_eq!(finals, usize::from(closing), "the final items of a call in {:?}", slot.phase);
        assert!(
            finals == 0 || slot.outbox.back().is_some_and(|item| item.last),
            "items behind the final one"
        );
        let idle = slot.phase == CallPhase::Idle;
        assert!(!idle || slot.outbox.is_empty(), "a slot with queued items is free");
        assert!(credit_and_queued(slot) <= u64::from(self.limits.window), "more of a stream than its window");
        let short = |len: usize| len <= self.limits.max_message || len <= ERROR_LEN;
        assert!(slot.outbox.iter().all(|item| short(item.bytes.len())), "items longer than agreed");
        let live = matches!(slot.phase, CallPhase::Receiving | CallPhase::Running);
        assert!(
            live || (slot.chunks.is_empty() && slot.item.bytes.is_empty()),
            "data of a call that is over is kept"
        );
        assert!(
            slot.item.bytes.len() <= self.limits.max_message + DEADLINE_LEN,
            "a request longer than agreed"
        );
        if slot.flags & UPLOAD != 0 && slot.phase == CallPhase::Running {
            let chunks: u64 = slot.chunks.iter().map(|chunk| u64::from(window_cost(chunk.len()))).sum();
            let unsent =
                self.credits.iter().filter(|(id, _)| *id == slot.id).map(|(_, owed)| u64::from(*owed));
            let held = u64::from(slot.owed) + chunks + partial_cost(&slot.item) + unsent.sum::<u64>();
            let window = u64::from(slot.window) + held;
            assert_eq!(window, u64::from(self.limits.window), "the window of an upload");
        }
        assert!(
            slot.flags & STREAM != 0 || idle || credit_and_queued(slot) <= u64::from(slot.credit),
            "chunks of no stream"
        );
    }
}

/// Returns what may be sent of a stream, and the cost of what is queued.
#[cfg(feature = "testing")]
fn credit_and_queued(slot: &ServedCall) -> u64 {
    let queued =
        slot.outbox.iter().filter(|item| !item.last).map(|item| u64::from(window_cost(item.bytes.len())));
    u64::from(slot.credit) + queued.sum::<u64>()
}

/// Returns the cost of the item under way so far.
#[cfg(feature = "testing")]
fn partial_cost(item: &Reassembler) -> u64 {
    item.first.map_or(0, |_| window_cost(item.bytes.len()).into())
}
