//! The client's slots for calls under way, and how each frame of the server changes them. Pure: no I/O, no locks.
//!
//! ```text
//!             open                final frame              taken
//!   Free ────────────▶ Waited ────────────────▶ ended ───────────────▶ Free
//!                        │ abandon                │ abandon               ▲
//!                        ▼                        └───────────────────────┤
//!                     Abandoned ── final frame: dropped, counted ─────────┘
//! ```
//!
//! The id of a call is `generation * slots + slot`: it names the call's slot, and the next call of the slot has a
//! greater id. So no id is used twice, and a frame finds its call without a search. A call that has ended, and whose
//! outcome was not taken yet, can be moved out of its slot: another call gets the slot, and the outcome is kept in
//! `ended`.
//!
//! # Invariants
//!
//! 1. A slot is free only when the server has sent the final frame of its last call, or was sent nothing of that
//!    call.
//! 2. What the server may send without a request is bounded: one reply for each slot, a window for each stream, and
//!    one window for all pushes. More is a protocol violation.
//! 3. No part of an item is handed out before the item is complete.
//!
//! # Proof
//!
//! `tests/rpc/tables` compares it with a reference model; fuzz `calls`.

use std::collections::{HashMap, VecDeque};
use std::mem;

use crate::error::ProtocolViolation;
use crate::rpc::flow_control::{credit_threshold, window_cost};
use crate::rpc::fragment::{self, Reassembler};
use crate::rpc::wire::{ERROR_LEN, FrameHeader, FrameKind, NOTIFY, STREAM, Status, UPLOAD};
use crate::rpc::{CallOver, slot_index};

/// How a call ended, according to its final frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The reply is complete.
    Reply,
    /// The stream has ended.
    End,
    /// The call failed: the status, the method's own code, and a text.
    Failed(Status, u32, String),
    /// This process had no memory for the reply or a chunk. If it was a chunk, the caller must still cancel the call.
    OutOfMemory,
}

/// Which waiting threads a frame may let proceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// None.
    None,
    /// Those that wait for the call in this slot.
    Call(usize),
    /// One that waits for a free slot.
    SlotFreed,
    /// One that waits for a push.
    Push,
}

/// A call that was lost with its connection.
///
/// ```
/// use narrows::{LostCall, Reconnect};
/// fn describe(call: &LostCall) -> String {
///     format!("call {} of method {}", call.id, call.method)
/// }
/// let policy = Reconnect::new().on_loss(|lost| lost.calls.iter().for_each(|call| eprintln!("{}", describe(call))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostCall {
    /// The id of the call.
    pub id: u64,
    /// The method that was called.
    pub method: u32,
}

/// Whether a caller waits for the call of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SlotState {
    #[default]
    Free,
    Waited,
    Abandoned,
}

/// A slot for one call.
#[derive(Debug, Default)]
pub(super) struct CallSlot {
    id: u64,
    state: SlotState,
    method: u32,
    flags: u8,
    item: Reassembler,
    chunks: VecDeque<Vec<u8>>,
    /// There was no memory for a chunk. No later chunk is kept.
    starved: bool,
    /// What the server may still send of the stream. `owed` is the part of the window that was consumed and not yet
    /// given back as credit.
    window: u32,
    owed: u32,
    /// What this side may still send of an upload.
    credit: u32,
    end: Option<CallOutcome>,
}

impl CallSlot {
    /// Returns whether the call has ended and its outcome is still to be taken.
    pub(super) fn has_ended(&self) -> bool {
        self.state == SlotState::Waited && self.end.is_some()
    }

    /// Takes a fragment of a reply or chunk. Returns the first header if the item is complete now.
    pub(super) fn take_item(
        &mut self,
        head: FrameHeader,
        len: usize,
        max: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Option<FrameHeader>, ProtocolViolation> {
        let streams = self.flags & STREAM != 0;
        let fits = match head.kind {
            FrameKind::Reply => !streams,
            FrameKind::Chunk => streams,
            _ => true,
        };
        if !fits {
            return Err(ProtocolViolation("a reply of the wrong kind"));
        }
        if streams {
            let price = if head.kind == FrameKind::Chunk {
                window_cost(len)
            } else {
                u32::try_from(len).unwrap_or(u32::MAX)
            };
            self.window = self
                .window
                .checked_sub(price)
                .ok_or(ProtocolViolation("more of a stream than its window"))?;
        }
        self.item.take(head, len, max, read)
    }
}

/// Decodes the body of an error: a code and a text.
pub(super) fn decode_failure(
    head: FrameHeader,
    len: usize,
    read: impl FnOnce(&mut [u8]),
) -> Result<(Status, u32, String), ProtocolViolation> {
    let status = Status::of(head.word).ok_or(ProtocolViolation("an error of an unknown kind"))?;
    if !(4..=ERROR_LEN).contains(&len) {
        return Err(ProtocolViolation("an error without its code, or with too long a text"));
    }
    let mut body = vec![0; len];
    read(&mut body);
    let (code, text) = body.split_at(4);
    let code = u32::from_le_bytes([code[0], code[1], code[2], code[3]]);
    Ok((status, code, String::from_utf8_lossy(text).into_owned()))
}

/// All calls of a connection: the slots, the calls that ended, and the pushes.
#[derive(Debug)]
pub struct InFlightCalls {
    slots: Vec<CallSlot>,
    free: Vec<usize>,
    /// Calls that have ended, whose outcome was not taken yet and whose slots other calls needed.
    ended: HashMap<u64, CallSlot>,
    max: usize,
    window: u32,
    push_window: u32,
    push: Reassembler,
    pushes: VecDeque<Vec<u8>>,
    /// There was no memory for a push.
    push_lost: bool,
    push_left: u32,
    push_owed: u32,
    /// The server begins no call any more. A call that it has not answered was never begun.
    goodbye: bool,
    /// Replies that arrived for calls that were given up.
    dropped: u64,
    /// The number of calls that were opened.
    opened: u64,
}

impl InFlightCalls {
    /// Returns whether the server has said that it begins no call any more.
    pub fn is_server_leaving(&self) -> bool {
        self.goodbye
    }

    /// Returns how many replies arrived for calls that were given up.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns how many calls were opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Returns the calls of a fresh connection: the number of slots, the longest item in bytes, and the windows.
    pub fn new(slots: usize, max: usize, window: u32, push_window: u32) -> Self {
        let slot = |at| CallSlot { id: at as u64, ..CallSlot::default() };
        Self {
            slots: (0..slots).map(slot).collect(),
            free: (0..slots).rev().collect(),
            ended: HashMap::new(),
            max,
            window,
            push_window,
            push: Reassembler::default(),
            pushes: VecDeque::new(),
            push_lost: false,
            push_left: push_window,
            push_owed: 0,
            goodbye: false,
            dropped: 0,
            opened: 0,
        }
    }

    /// Returns whether a slot is free, or can be freed.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.iter().any(CallSlot::has_ended)
    }

    /// Returns the methods of the calls that have the slots. Returns `None` if a slot is free or becomes free before
    /// its method has run: the server answers a cancelled call without waiting for the method.
    pub fn methods_in_all_slots(&self) -> Option<Vec<u32>> {
        let served = |slot: &CallSlot| match slot.state {
            SlotState::Waited => slot.end.is_none().then_some(slot.method),
            SlotState::Abandoned => (slot.flags & NOTIFY != 0).then_some(slot.method),
            SlotState::Free => None,
        };
        self.slots.iter().map(served).collect()
    }

    /// Returns the slot of the call with this id.
    #[inline]
    pub fn slot_of(&self, id: u64) -> usize {
        slot_index(id, self.slots.len())
    }

    /// Takes a free slot for a call, or that of a call that has ended; returns the id of the call.
    #[inline]
    pub fn open(&mut self, method: u32, flags: u8) -> Option<u64> {
        let at = self.free.pop().or_else(|| self.evict_ended())?;
        self.opened += 1;
        let slots = self.slots.len() as u64;
        let (window, credit) = (self.window, self.window);
        let slot = &mut self.slots[at];
        slot.id += slots;
        (slot.state, slot.method, slot.flags) = (SlotState::Waited, method, flags);
        (slot.window, slot.owed, slot.credit, slot.starved) = (window, 0, credit, false);
        slot.item.reset();
        if flags & NOTIFY != 0 {
            slot.state = SlotState::Abandoned;
        }
        Some(slot.id)
    }

    /// Lends a call the buffer for its reply. The call has it until its outcome is taken or it is given up.
    pub fn lend_buffer(&mut self, id: u64, buffer: &mut Vec<u8>) {
        if let Some(slot) = self.slot(id) {
            mem::swap(&mut slot.item.bytes, buffer);
        }
    }

    /// Frees the slot of a call whose whole reply the leader copied into its own buffer.
    #[inline]
    pub fn complete(&mut self, id: u64) {
        let at = self.slot_of(id);
        self.slots[at].state = SlotState::Free;
        self.free.push(at);
    }

    /// Takes the outcome of a call, if it has ended, and its reply; its slot is free then. A call whose other stream
    /// half was dropped counts as cancelled.
    #[inline]
    pub fn take_outcome(&mut self, id: u64, buffer: &mut Vec<u8>) -> Option<CallOutcome> {
        let Some(slot) = self.slot(id).filter(|slot| slot.state == SlotState::Waited) else {
            return Some(CallOutcome::Failed(Status::Cancelled, 0, String::new()));
        };
        if !slot.chunks.is_empty() {
            return None;
        }
        let end = match slot.end.take() {
            None if slot.starved => return Some(CallOutcome::OutOfMemory),
            end => end?,
        };
        let starved = slot.starved;
        mem::swap(&mut slot.item.bytes, buffer);
        self.release_taken(id);
        Some(if starved { CallOutcome::OutOfMemory } else { end })
    }

    /// Ends a call whose reply, of one frame, found no memory.
    pub fn fail_reply(&mut self, id: u64) -> Wakeup {
        self.on_outcome(self.slot_of(id), CallOutcome::OutOfMemory)
    }

    /// Gives a call up. Returns whether the server is to be sent a cancel.
    pub fn abandon(&mut self, id: u64) -> bool {
        let Some(slot) = self.slot(id).filter(|slot| slot.state == SlotState::Waited) else { return false };
        slot.state = SlotState::Abandoned;
        slot.chunks.clear();
        fragment::clear(&mut slot.item.bytes);
        let over = slot.end.is_some();
        if over {
            self.dropped += 1;
            self.release_taken(id);
        }
        !over
    }

    /// Forgets a call of which nothing was sent.
    pub fn forget_unsent(&mut self, id: u64) {
        if self.slot(id).is_some() {
            self.release_taken(id); // A hostile server may have ended it, and another call may have its slot.
            self.opened -= 1;
        }
    }

    /// Takes the next chunk of a reply stream. Its part of the window is owed to the server as credit.
    pub fn next_chunk(&mut self, id: u64) -> Option<Vec<u8>> {
        let slot = self.slot(id)?;
        let chunk = slot.chunks.pop_front()?;
        slot.owed = slot.owed.saturating_add(window_cost(chunk.len()));
        Some(chunk)
    }

    /// Takes the credit that is owed to the server, once it is a quarter of the window.
    pub fn take_owed_credit(&mut self, id: u64) -> Option<u32> {
        let window = self.window;
        let slot = self.slot(id).filter(|slot| slot.end.is_none())?;
        if slot.owed < credit_threshold(window) {
            return None;
        }
        let owed = mem::take(&mut slot.owed);
        slot.window = slot.window.saturating_add(owed);
        Some(owed)
    }

    /// Spends `cost` of the credit for an upload. Returns false if there is not enough, and `Err` once the call is
    /// over.
    pub fn spend_credit(&mut self, id: u64, cost: u32) -> Result<bool, CallOver> {
        let open = |slot: &&mut CallSlot| slot.state == SlotState::Waited && slot.end.is_none();
        let slot = self.slot(id).filter(open).ok_or(CallOver)?;
        let left = slot.credit.checked_sub(cost);
        slot.credit = left.unwrap_or(slot.credit);
        Ok(left.is_some())
    }

    /// Gives back the credit that was spent on a chunk of which nothing was sent.
    pub fn refund_credit(&mut self, id: u64, cost: u32) {
        if let Some(slot) = self.slot(id) {
            slot.credit = slot.credit.saturating_add(cost);
        }
    }

    /// Notes that credit could not be sent: it is owed again.
    pub fn restore_owed_credit(&mut self, id: u64, amount: u32) {
        if id == 0 {
            self.push_left = self.push_left.saturating_sub(amount);
            self.push_owed = self.push_owed.saturating_add(amount);
        } else if let Some(slot) = self.slot(id) {
            slot.window = slot.window.saturating_sub(amount);
            slot.owed = slot.owed.saturating_add(amount);
        }
    }

    /// Returns whether the final frame of a call has arrived.
    pub fn is_over(&self, id: u64) -> bool {
        let slot = &self.slots[self.slot_of(id)];
        slot.id != id || slot.state == SlotState::Free || slot.end.is_some()
    }

    /// Returns whether pushes were lost for want of memory since the last call of this method.
    pub fn take_push_lost(&mut self) -> bool {
        mem::take(&mut self.push_lost)
    }

    /// Takes the oldest push.
    pub fn next_push(&mut self) -> Option<Vec<u8>> {
        let push = self.pushes.pop_front()?;
        self.push_owed = self.push_owed.saturating_add(window_cost(push.len()));
        Some(push)
    }

    /// Takes the credit that is owed for pushes, once it is a quarter of the window.
    pub fn take_owed_push_credit(&mut self) -> Option<u32> {
        if self.push_owed < credit_threshold(self.push_window) {
            return None;
        }
        let owed = mem::take(&mut self.push_owed);
        self.push_left = self.push_left.saturating_add(owed);
        Some(owed)
    }

    /// Drops all outcomes, chunks and pushes that were not taken: the server broke the protocol, and may have
    /// overwritten a message while it was read.
    pub fn discard_received(&mut self) {
        for slot in self.slots.iter_mut().chain(self.ended.values_mut()) {
            slot.end = None;
            slot.chunks.clear();
        }
        self.pushes.clear();
    }

    /// Returns the calls that have not ended and were not given up: those that are lost when the connection ends.
    pub fn unanswered_calls(&self) -> Vec<LostCall> {
        let open = self.slots.iter().filter(|slot| slot.state == SlotState::Waited && slot.end.is_none());
        open.map(|slot| LostCall { id: slot.id, method: slot.method }).collect()
    }

    /// Returns the number of pushes that were not taken yet.
    pub fn pushes(&self) -> usize {
        self.pushes.len()
    }

    /// Returns the number of calls under way, including those that were given up.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a frame of the server, whose body of `len` bytes `read` copies.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no well-formed server sends this frame now.
    #[inline]
    pub fn on_frame(
        &mut self,
        id: u64,
        head: FrameHeader,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Wakeup, ProtocolViolation> {
        if id == 0 && head.kind == FrameKind::Goodbye && len == 0 {
            self.goodbye = true;
            return Ok(Wakeup::None);
        }
        if id == 0 {
            return self.on_push_frame(head, len, read);
        }
        let at = self.slot_of(id);
        let max = self.max;
        let slot = &mut self.slots[at];
        if slot.id != id || slot.state == SlotState::Free || slot.end.is_some() {
            return Err(ProtocolViolation("a frame for a call that is not under way"));
        }
        match head.kind {
            FrameKind::Reply | FrameKind::Chunk | FrameKind::Continuation => {
                if let Some(first) = slot.take_item(head, len, max, read)? {
                    return Ok(self.on_item_complete(at, first));
                }
                Ok(Wakeup::None)
            }
            FrameKind::End if slot.flags & STREAM != 0 && len == 0 => {
                slot.item.take(head, 0, 0, |_| ())?;
                Ok(self.on_outcome(at, CallOutcome::End))
            }
            FrameKind::Error => {
                let (status, code, text) = decode_failure(head, len, read)?;
                Ok(self.on_outcome(at, CallOutcome::Failed(status, code, text)))
            }
            FrameKind::Credit if slot.flags & UPLOAD != 0 && len == 0 => {
                let credit = slot.credit.checked_add(head.word).filter(|sum| *sum <= self.window);
                slot.credit = credit.ok_or(ProtocolViolation("more credit than the window"))?;
                Ok(Wakeup::Call(at))
            }
            _ => Err(ProtocolViolation("a frame that no server sends for this call")),
        }
    }

    fn on_push_frame(
        &mut self,
        head: FrameHeader,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Wakeup, ProtocolViolation> {
        if !matches!(head.kind, FrameKind::Push | FrameKind::Continuation) {
            return Err(ProtocolViolation("a frame of no call"));
        }
        let price = if head.kind == FrameKind::Push {
            window_cost(len)
        } else {
            u32::try_from(len).unwrap_or(u32::MAX)
        };
        self.push_left =
            self.push_left.checked_sub(price).ok_or(ProtocolViolation("more pushes than the window"))?;
        if self.push.take(head, len, self.max, read)?.is_none() {
            return Ok(Wakeup::None);
        }
        let push = mem::take(&mut self.push.bytes);
        let lost = self.push.lost.take();
        if lost.is_some() || self.pushes.try_reserve(1).is_err() {
            self.push_lost = true;
            self.push_owed = self.push_owed.saturating_add(window_cost(lost.unwrap_or(push.len())));
        } else {
            self.pushes.push_back(push);
        }
        Ok(Wakeup::Push)
    }

    /// Handles a complete item.
    fn on_item_complete(&mut self, at: usize, first: FrameHeader) -> Wakeup {
        let slot = &mut self.slots[at];
        let lost = slot.item.lost.take().is_some();
        if first.kind == FrameKind::Reply {
            return self.on_outcome(at, if lost { CallOutcome::OutOfMemory } else { CallOutcome::Reply });
        }
        if slot.state == SlotState::Abandoned || slot.starved {
            fragment::clear(&mut slot.item.bytes);
            return Wakeup::None;
        }
        slot.starved = lost || slot.chunks.try_reserve(1).is_err();
        if slot.starved {
            fragment::clear(&mut slot.item.bytes);
        } else {
            slot.chunks.push_back(mem::take(&mut slot.item.bytes));
        }
        Wakeup::Call(at)
    }

    fn on_outcome(&mut self, at: usize, end: CallOutcome) -> Wakeup {
        let slot = &mut self.slots[at];
        if end != CallOutcome::Reply {
            fragment::clear(&mut slot.item.bytes);
        }
        if slot.state == SlotState::Abandoned {
            if slot.flags & NOTIFY == 0 {
                self.dropped += u64::from(!matches!(end, CallOutcome::Failed(Status::Cancelled, ..)));
            }
            self.release(at);
            return Wakeup::SlotFreed;
        }
        slot.end = Some(end);
        Wakeup::Call(at)
    }

    fn release(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        (slot.state, slot.end) = (SlotState::Free, None);
        if !slot.chunks.is_empty() {
            slot.chunks.clear();
        }
        fragment::clear(&mut slot.item.bytes);
        self.free.push(at);
    }

    /// Frees the slot of a call, or forgets the call if its slot was given to another call.
    #[inline]
    fn release_taken(&mut self, id: u64) {
        if self.ended.is_empty() || self.ended.remove(&id).is_none() {
            self.release(self.slot_of(id));
        }
    }

    /// Moves a call that has ended out of its slot, which is free for another call then.
    #[cold]
    fn evict_ended(&mut self) -> Option<usize> {
        let at = self.slots.iter().position(CallSlot::has_ended)?;
        let id = self.slots[at].id;
        let slot = mem::replace(&mut self.slots[at], CallSlot { id, ..CallSlot::default() });
        self.ended.insert(id, slot);
        Some(at)
    }

    #[inline]
    fn slot(&mut self, id: u64) -> Option<&mut CallSlot> {
        let at = self.slot_of(id);
        if self.slots[at].id == id && self.slots[at].state != SlotState::Free {
            return self.slots.get_mut(at);
        }
        self.ended.get_mut(&id)
    }
}

#[cfg(feature = "testing")]
impl InFlightCalls {
    /// Returns the part of the push window that was consumed and not given back yet.
    pub fn owed_for_pushes(&self) -> u32 {
        self.push_owed
    }

    /// Checks that each window is accounted for in full, and that each call is in exactly one place.
    ///
    /// # Panics
    ///
    /// If a check fails. The checks need not hold after a protocol violation.
    pub fn audit(&self) {
        let count = self.slots.len();
        let mut free = self.free.clone();
        free.sort_unstable();
        let by_state: Vec<_> = (0..count).filter(|&at| self.slots[at].state == SlotState::Free).collect();
        assert_eq!(free, by_state, "the list of free slots");
        for (at, slot) in self.slots.iter().enumerate() {
            assert_eq!(slot_index(slot.id, count), at, "a call in the slot of another");
            self.audit_slot(slot);
        }
        for (id, slot) in &self.ended {
            assert!(slot.has_ended() && slot.id == *id, "a call moved out of its slot that has not ended");
            assert!(
                self.slots[slot_index(*id, count)].id > *id,
                "a call both in its slot and moved out of it"
            );
            self.audit_slot(slot);
        }
        assert!(self.push.bytes.len() <= self.max, "a push longer than agreed");
        let held = u64::from(self.push_owed) + price(self.pushes.iter()) + partial_cost(&self.push);
        assert_eq!(u64::from(self.push_left) + held, u64::from(self.push_window), "the window of pushes");
    }

    fn audit_slot(&self, slot: &CallSlot) {
        assert!(slot.item.bytes.len() <= self.max, "a reply longer than agreed");
        assert!(slot.credit <= self.window, "more credit than the window");
        let live = slot.state == SlotState::Waited;
        assert!(
            live || (slot.chunks.is_empty() && slot.end.is_none()),
            "data of a call that was given up is kept"
        );
        if slot.flags & STREAM != 0 && live {
            let partial = if slot.end.is_none() { partial_cost(&slot.item) } else { 0 };
            let held = u64::from(slot.owed) + price(slot.chunks.iter()) + partial;
            let window = u64::from(slot.window) + held;
            assert!(window <= u64::from(self.window), "more of a stream than its window");
            // The last fragments of an item that the final frame cut off are not kept.
            assert!(slot.end.is_some() || window == u64::from(self.window), "the window of a stream");
        }
    }
}

#[cfg(feature = "testing")]
fn price<'a>(items: impl Iterator<Item = &'a Vec<u8>>) -> u64 {
    items.map(|item| u64::from(window_cost(item.len()))).sum()
}

/// Returns the cost of the item under way so far.
#[cfg(feature = "testing")]
fn partial_cost(item: &Reassembler) -> u64 {
    item.first.map_or(0, |_| window_cost(item.bytes.len()).into())
}
