//! The client's places for calls under way, and what each frame of the server does to them. Pure.
//!
//! ```text
//!             open                final frame              taken
//!   Free ────────────▶ Waited ────────────────▶ Over ────────────────▶ Free
//!                        │ abandon                │ abandon               ▲
//!                        ▼                        └───────────────────────┤
//!                     Abandoned ── final frame: dropped, counted ─────────┘
//! ```
//!
//! The id of a call is `generation * places + place`: it says where the call stands, and a place's next call
//! has another. So no id is used twice, and a frame finds its call without a search. A call that is over gives its
//! place to another that needs it, and waits aside until its end is taken.
//!
//! # Invariants
//!
//! 1. A place is free only when the server has sent the final frame of its last call, or never heard of it.
//! 2. What the server may send unasked is bounded: one reply for each place, a window for each stream, a
//!    window for all pushes. More is a violation.
//! 3. Nothing of an item is handed out before it is whole.
//!
//! # Proof
//!
//! `tests/rpc/tables` against a reference; fuzz `calls`.

use std::collections::{HashMap, VecDeque};
use std::mem;

use crate::error::ProtocolViolation;
use crate::rpc::fragment::{self, Reassembler};
use crate::rpc::wire::{ERROR_LEN, FrameHeader, FrameKind, NOTIFY, STREAM, Status, UPLOAD, window_cost};
use crate::rpc::{CallOver, slot_index};

/// How a call ended, as the server's last frame of it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The reply is whole.
    Reply,
    /// The stream is at its end.
    End,
    /// There is none: why, the handler's own code, a text.
    Failed(Status, u32, String),
    /// This process had no memory for the reply or a chunk. If it was a chunk, the call is to be cancelled.
    OutOfMemory,
}

/// What a frame changed, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// Nothing that anybody waits for.
    None,
    /// The call in this place.
    Call(usize),
    /// A place is free.
    SlotFreed,
    /// A push has come.
    Push,
}

/// What is left of a call that was lost with its connection.
///
/// ```
/// use narrows::{LostCall, Reconnect};
/// fn told(call: &LostCall) -> String {
///     format!("call {} of method {}", call.id, call.method)
/// }
/// let policy = Reconnect::new().on_loss(|lost| lost.calls.iter().for_each(|call| eprintln!("{}", told(call))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostCall {
    /// Its number.
    pub id: u64,
    /// What was called.
    pub method: u32,
}

/// Who waits for the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SlotState {
    #[default]
    Free,
    Waited,
    Abandoned,
}

/// A place for a call.
#[derive(Debug, Default)]
pub(super) struct CallSlot {
    id: u64,
    state: SlotState,
    method: u32,
    flags: u8,
    item: Reassembler,
    chunks: VecDeque<Vec<u8>>,
    /// There was no memory for a chunk: no later one is kept.
    starved: bool,
    /// What the server may still send, and what was consumed and not yet told.
    window: u32,
    owed: u32,
    /// What the server lets us send of an upload.
    credit: u32,
    end: Option<CallOutcome>,
}

impl CallSlot {
    /// Whether the call is over, and its end is still to be taken.
    pub(super) fn has_ended(&self) -> bool {
        self.state == SlotState::Waited && self.end.is_some()
    }

    /// Takes a piece of a reply or chunk; the first head if the item is whole.
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

/// Reads an error's body: a code and a text.
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

/// All places of a connection.
#[derive(Debug)]
pub struct InFlightCalls {
    slots: Vec<CallSlot>,
    free: Vec<usize>,
    /// Calls that have ended, whose end nobody has taken yet, and whose places others needed.
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
    /// The server begins no call any more: what it has not answered it never began.
    pub goodbye: bool,
    /// Replies that came for calls that nobody waited for any more.
    pub dropped: u64,
    /// Calls that were opened.
    pub opened: u64,
}

impl InFlightCalls {
    /// For so many calls under way, of at most `max` bytes each way; with our windows and the server's.
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

    /// Whether a place is free, or can be.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.iter().any(CallSlot::has_ended)
    }

    /// The methods of the calls that have the places, if there is no other place, and none that comes free before its method
    /// has run: a call that is cancelled is answered without.
    pub fn methods_in_all_slots(&self) -> Option<Vec<u32>> {
        let served = |slot: &CallSlot| match slot.state {
            SlotState::Waited => slot.end.is_none().then_some(slot.method),
            SlotState::Abandoned => (slot.flags & NOTIFY != 0).then_some(slot.method),
            SlotState::Free => None,
        };
        self.slots.iter().map(served).collect()
    }

    /// Where the call with this id stands.
    #[inline]
    pub fn slot_of(&self, id: u64) -> usize {
        slot_index(id, self.slots.len())
    }

    /// Takes a free place for a call, and with it an id. That of a call which has ended is free for another.
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

    /// Lends a call the memory for its reply, which it has until it is finished or given up.
    pub fn lend_buffer(&mut self, id: u64, buffer: &mut Vec<u8>) {
        if let Some(slot) = self.slot(id) {
            mem::swap(&mut slot.item.bytes, buffer);
        }
    }

    /// The whole reply of a call went elsewhere: its place is free.
    #[inline]
    pub fn complete(&mut self, id: u64) {
        let at = self.slot_of(id);
        self.slots[at].state = SlotState::Free;
        self.free.push(at);
    }

    /// Takes how the call has ended, if it has, and the reply; its place is free then. One that was abandoned, by
    /// the other half of its streams, is cancelled.
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

    /// There was no memory for the whole reply of a call, which came in one frame.
    pub fn fail_reply(&mut self, id: u64) -> Wakeup {
        self.on_outcome(self.slot_of(id), CallOutcome::OutOfMemory)
    }

    /// Nobody waits for the call any more. True if the server has to be told.
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
            self.release_taken(id); // A liar may have ended it, and another have its place.
            self.opened -= 1;
        }
    }

    /// The next chunk of a reply stream; what of the window it gives back is owed to the server.
    pub fn next_chunk(&mut self, id: u64) -> Option<Vec<u8>> {
        let slot = self.slot(id)?;
        let chunk = slot.chunks.pop_front()?;
        slot.owed = slot.owed.saturating_add(window_cost(chunk.len()));
        Some(chunk)
    }

    /// The credit to give back, once it is a quarter of the window.
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

    /// Takes `cost` of what the server lets us upload, if there is enough; `Err` once the call is over.
    pub fn spend_credit(&mut self, id: u64, cost: u32) -> Result<bool, CallOver> {
        let open = |slot: &&mut CallSlot| slot.state == SlotState::Waited && slot.end.is_none();
        let slot = self.slot(id).filter(open).ok_or(CallOver)?;
        let left = slot.credit.checked_sub(cost);
        slot.credit = left.unwrap_or(slot.credit);
        Ok(left.is_some())
    }

    /// Gives back what was spent on a chunk of which nothing was sent.
    pub fn refund_credit(&mut self, id: u64, cost: u32) {
        if let Some(slot) = self.slot(id) {
            slot.credit = slot.credit.saturating_add(cost);
        }
    }

    /// Credit that could not be sent is owed again.
    pub fn restore_owed_credit(&mut self, id: u64, amount: u32) {
        if id == 0 {
            self.push_left = self.push_left.saturating_sub(amount);
            self.push_owed = self.push_owed.saturating_add(amount);
        } else if let Some(slot) = self.slot(id) {
            slot.window = slot.window.saturating_sub(amount);
            slot.owed = slot.owed.saturating_add(amount);
        }
    }

    /// Whether the final frame of a call has come.
    pub fn is_over(&self, id: u64) -> bool {
        let slot = &self.slots[self.slot_of(id)];
        slot.id != id || slot.state == SlotState::Free || slot.end.is_some()
    }

    /// Whether pushes were lost for want of memory since this was asked.
    pub fn take_push_lost(&mut self) -> bool {
        mem::take(&mut self.push_lost)
    }

    /// The oldest push.
    pub fn next_push(&mut self) -> Option<Vec<u8>> {
        let push = self.pushes.pop_front()?;
        self.push_owed = self.push_owed.saturating_add(window_cost(push.len()));
        Some(push)
    }

    /// The credit to give back for pushes, once it is a quarter of the window.
    pub fn take_owed_push_credit(&mut self) -> Option<u32> {
        if self.push_owed < credit_threshold(self.push_window) {
            return None;
        }
        let owed = mem::take(&mut self.push_owed);
        self.push_left = self.push_left.saturating_add(owed);
        Some(owed)
    }

    /// What has come is worth nothing: the server wrote over it while it was read.
    pub fn discard_received(&mut self) {
        for slot in self.slots.iter_mut().chain(self.ended.values_mut()) {
            slot.end = None;
            slot.chunks.clear();
        }
        self.pushes.clear();
    }

    /// The connection has ended: the calls that were under way.
    pub fn unanswered_calls(&self) -> Vec<LostCall> {
        let open = self.slots.iter().filter(|slot| slot.state == SlotState::Waited && slot.end.is_none());
        open.map(|slot| LostCall { id: slot.id, method: slot.method }).collect()
    }

    /// Pushes that nobody took yet.
    pub fn pushes(&self) -> usize {
        self.pushes.len()
    }

    /// Calls under way, those that nobody waits for included.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a frame of the server, whose body of `len` bytes `read` copies.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for what no honest server sends now.
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

    /// An item is whole.
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

    /// The end of a call was taken.
    #[inline]
    fn release_taken(&mut self, id: u64) {
        if self.ended.is_empty() || self.ended.remove(&id).is_none() {
            self.release(self.slot_of(id));
        }
    }

    /// Puts a call aside that has ended: its place is free for another.
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

fn credit_threshold(window: u32) -> u32 {
    (window / 4).max(1)
}

#[cfg(feature = "testing")]
impl InFlightCalls {
    /// What of the window for pushes was taken, and is not given back yet.
    pub fn owed_for_pushes(&self) -> u32 {
        self.push_owed
    }

    /// What the books hold must be what was paid for; no call may be in two places, or in none.
    ///
    /// # Panics
    ///
    /// If the books do not balance. They need not after a violation.
    pub fn audit(&self) {
        let count = self.slots.len();
        let mut free = self.free.clone();
        free.sort_unstable();
        let by_state: Vec<_> = (0..count).filter(|&at| self.slots[at].state == SlotState::Free).collect();
        assert_eq!(free, by_state, "the list of free places");
        for (at, slot) in self.slots.iter().enumerate() {
            assert_eq!(slot_index(slot.id, count), at, "a call in another's place");
            self.audit_place(slot);
        }
        for (id, slot) in &self.ended {
            assert!(slot.has_ended() && slot.id == *id, "a call put aside that is not over");
            assert!(self.slots[slot_index(*id, count)].id > *id, "a call in its place, and aside");
            self.audit_place(slot);
        }
        assert!(self.push.bytes.len() <= self.max, "a push longer than agreed");
        let held = u64::from(self.push_owed) + price(self.pushes.iter()) + begun(&self.push);
        assert_eq!(u64::from(self.push_left) + held, u64::from(self.push_window), "the window of pushes");
    }

    fn audit_place(&self, slot: &CallSlot) {
        assert!(slot.item.bytes.len() <= self.max, "a reply longer than agreed");
        assert!(slot.credit <= self.window, "more credit than the window");
        let live = slot.state == SlotState::Waited;
        assert!(live || (slot.chunks.is_empty() && slot.end.is_none()), "what nobody waits for is kept");
        if slot.flags & STREAM != 0 && live {
            let begun = if slot.end.is_none() { begun(&slot.item) } else { 0 };
            let held = u64::from(slot.owed) + price(slot.chunks.iter()) + begun;
            let window = u64::from(slot.window) + held;
            assert!(window <= u64::from(self.window), "more of a stream than its window");
            // Of a last piece that an end cut off nothing is kept.
            assert!(slot.end.is_some() || window == u64::from(self.window), "the window of a stream");
        }
    }
}

#[cfg(feature = "testing")]
fn price<'a>(items: impl Iterator<Item = &'a Vec<u8>>) -> u64 {
    items.map(|item| u64::from(window_cost(item.len()))).sum()
}

/// What the item under way has cost so far.
#[cfg(feature = "testing")]
fn begun(item: &Reassembler) -> u64 {
    item.first.map_or(0, |_| window_cost(item.bytes.len()).into())
}
