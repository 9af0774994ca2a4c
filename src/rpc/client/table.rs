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

pub use super::place::{Change, Final, LostCall};
use super::place::{Place, State, failure};
use crate::error::ProtocolViolation;
use crate::rpc::pieces::{self, Assembly};
use crate::rpc::wire::{Head, Kind, NOTIFY, STREAM, Status, UPLOAD, cost};
use crate::rpc::{Over, place_of};

/// All places of a connection.
#[derive(Debug)]
pub struct Table {
    pub(super) places: Vec<Place>,
    pub(super) free: Vec<usize>,
    /// Calls that have ended, whose end nobody has taken yet, and whose places others needed.
    pub(super) ended: HashMap<u64, Place>,
    pub(super) max: usize,
    pub(super) window: u32,
    pub(super) push_window: u32,
    pub(super) push: Assembly,
    pub(super) pushes: VecDeque<Vec<u8>>,
    /// There was no memory for a push.
    pub(super) push_lost: bool,
    pub(super) push_left: u32,
    pub(super) push_owed: u32,
    /// The server begins no call any more: what it has not answered it never began.
    pub goodbye: bool,
    /// Replies that came for calls that nobody waited for any more.
    pub dropped: u64,
    /// Calls that were opened.
    pub opened: u64,
}

impl Table {
    /// For so many calls under way, of at most `max` bytes each way; with our windows and the server's.
    pub fn new(places: usize, max: usize, window: u32, push_window: u32) -> Self {
        let place = |at| Place { id: at as u64, ..Place::default() };
        Self {
            places: (0..places).map(place).collect(),
            free: (0..places).rev().collect(),
            ended: HashMap::new(),
            max,
            window,
            push_window,
            push: Assembly::default(),
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
        !self.free.is_empty() || self.places.iter().any(Place::has_ended)
    }

    /// The methods of the calls that have the places, if there is no other place, and none that comes free before its method
    /// has run: a call that is cancelled is answered without.
    pub fn methods_in_all_places(&self) -> Option<Vec<u32>> {
        let served = |place: &Place| match place.state {
            State::Waited => place.end.is_none().then_some(place.method),
            State::Abandoned => (place.flags & NOTIFY != 0).then_some(place.method),
            State::Free => None,
        };
        self.places.iter().map(served).collect()
    }

    /// Where the call with this id stands.
    #[inline]
    pub fn at(&self, id: u64) -> usize {
        place_of(id, self.places.len())
    }

    /// Takes a free place for a call, and with it an id. That of a call which has ended is free for another.
    #[inline]
    pub fn open(&mut self, method: u32, flags: u8) -> Option<u64> {
        let at = self.free.pop().or_else(|| self.vacate())?;
        self.opened += 1;
        let places = self.places.len() as u64;
        let (window, credit) = (self.window, self.window);
        let place = &mut self.places[at];
        place.id += places;
        (place.state, place.method, place.flags) = (State::Waited, method, flags);
        (place.window, place.owed, place.credit, place.starved) = (window, 0, credit, false);
        place.item.reset();
        if flags & NOTIFY != 0 {
            place.state = State::Abandoned;
        }
        Some(place.id)
    }

    /// Lends a call the memory for its reply, which it has until it is finished or given up.
    pub fn lend(&mut self, id: u64, buffer: &mut Vec<u8>) {
        if let Some(place) = self.place(id) {
            mem::swap(&mut place.item.bytes, buffer);
        }
    }

    /// The whole reply of a call went elsewhere: its place is free.
    #[inline]
    pub fn close(&mut self, id: u64) {
        let at = self.at(id);
        self.places[at].state = State::Free;
        self.free.push(at);
    }

    /// Takes how the call has ended, if it has, and the reply; its place is free then. One that was abandoned, by
    /// the other half of its streams, is cancelled.
    #[inline]
    pub fn finish(&mut self, id: u64, buffer: &mut Vec<u8>) -> Option<Final> {
        let Some(place) = self.place(id).filter(|place| place.state == State::Waited) else {
            return Some(Final::Failed(Status::Cancelled, 0, String::new()));
        };
        if !place.chunks.is_empty() {
            return None;
        }
        let end = match place.end.take() {
            None if place.starved => return Some(Final::OutOfMemory),
            end => end?,
        };
        let starved = place.starved;
        mem::swap(&mut place.item.bytes, buffer);
        self.leave(id);
        Some(if starved { Final::OutOfMemory } else { end })
    }

    /// There was no memory for the whole reply of a call, which came in one frame.
    pub fn lose_reply(&mut self, id: u64) -> Change {
        self.end(self.at(id), Final::OutOfMemory)
    }

    /// Nobody waits for the call any more. True if the server has to be told.
    pub fn abandon(&mut self, id: u64) -> bool {
        let Some(place) = self.place(id).filter(|place| place.state == State::Waited) else { return false };
        place.state = State::Abandoned;
        place.chunks.clear();
        pieces::clear(&mut place.item.bytes);
        let over = place.end.is_some();
        if over {
            self.dropped += 1;
            self.leave(id);
        }
        !over
    }

    /// Forgets a call of which nothing was sent.
    pub fn unsend(&mut self, id: u64) {
        if self.place(id).is_some() {
            self.leave(id); // A liar may have ended it, and another have its place.
            self.opened -= 1;
        }
    }

    /// The next chunk of a reply stream; what of the window it gives back is owed to the server.
    pub fn chunk(&mut self, id: u64) -> Option<Vec<u8>> {
        let place = self.place(id)?;
        let chunk = place.chunks.pop_front()?;
        place.owed = place.owed.saturating_add(cost(chunk.len()));
        Some(chunk)
    }

    /// The credit to give back, once it is a quarter of the window.
    pub fn owed(&mut self, id: u64) -> Option<u32> {
        let window = self.window;
        let place = self.place(id).filter(|place| place.end.is_none())?;
        if place.owed < quarter(window) {
            return None;
        }
        let owed = mem::take(&mut place.owed);
        place.window = place.window.saturating_add(owed);
        Some(owed)
    }

    /// Takes `cost` of what the server lets us upload, if there is enough; `Err` once the call is over.
    pub fn spend(&mut self, id: u64, cost: u32) -> Result<bool, Over> {
        let open = |place: &&mut Place| place.state == State::Waited && place.end.is_none();
        let place = self.place(id).filter(open).ok_or(Over)?;
        let left = place.credit.checked_sub(cost);
        place.credit = left.unwrap_or(place.credit);
        Ok(left.is_some())
    }

    /// Gives back what was spent on a chunk of which nothing was sent.
    pub fn refund(&mut self, id: u64, cost: u32) {
        if let Some(place) = self.place(id) {
            place.credit = place.credit.saturating_add(cost);
        }
    }

    /// Credit that could not be sent is owed again.
    pub fn take_back(&mut self, id: u64, amount: u32) {
        if id == 0 {
            self.push_left = self.push_left.saturating_sub(amount);
            self.push_owed = self.push_owed.saturating_add(amount);
        } else if let Some(place) = self.place(id) {
            place.window = place.window.saturating_sub(amount);
            place.owed = place.owed.saturating_add(amount);
        }
    }

    /// Whether the final frame of a call has come.
    pub fn is_over(&self, id: u64) -> bool {
        let place = &self.places[self.at(id)];
        place.id != id || place.state == State::Free || place.end.is_some()
    }

    /// Whether pushes were lost for want of memory since this was asked.
    pub fn take_push_lost(&mut self) -> bool {
        mem::take(&mut self.push_lost)
    }

    /// The oldest push.
    pub fn next_push(&mut self) -> Option<Vec<u8>> {
        let push = self.pushes.pop_front()?;
        self.push_owed = self.push_owed.saturating_add(cost(push.len()));
        Some(push)
    }

    /// The credit to give back for pushes, once it is a quarter of the window.
    pub fn push_owed(&mut self) -> Option<u32> {
        if self.push_owed < quarter(self.push_window) {
            return None;
        }
        let owed = mem::take(&mut self.push_owed);
        self.push_left = self.push_left.saturating_add(owed);
        Some(owed)
    }

    /// What has come is worth nothing: the server wrote over it while it was read.
    pub fn spoil(&mut self) {
        for place in self.places.iter_mut().chain(self.ended.values_mut()) {
            place.end = None;
            place.chunks.clear();
        }
        self.pushes.clear();
    }

    /// The connection has ended: the calls that were under way.
    pub fn lost(&self) -> Vec<LostCall> {
        let open = self.places.iter().filter(|place| place.state == State::Waited && place.end.is_none());
        open.map(|place| LostCall { id: place.id, method: place.method }).collect()
    }

    /// Pushes that nobody took yet.
    pub fn pushes(&self) -> usize {
        self.pushes.len()
    }

    /// Calls under way, those that nobody waits for included.
    pub fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes a frame of the server, whose body of `len` bytes `read` copies.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for what no honest server sends now.
    #[inline]
    pub fn take(
        &mut self,
        id: u64,
        head: Head,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Change, ProtocolViolation> {
        if id == 0 && head.kind == Kind::Goodbye && len == 0 {
            self.goodbye = true;
            return Ok(Change::None);
        }
        if id == 0 {
            return self.take_push(head, len, read);
        }
        let at = self.at(id);
        let max = self.max;
        let place = &mut self.places[at];
        if place.id != id || place.state == State::Free || place.end.is_some() {
            return Err(ProtocolViolation("a frame for a call that is not under way"));
        }
        match head.kind {
            Kind::Reply | Kind::Chunk | Kind::Rest => {
                if let Some(first) = place.take_item(head, len, max, read)? {
                    return Ok(self.whole(at, first));
                }
                Ok(Change::None)
            }
            Kind::End if place.flags & STREAM != 0 && len == 0 => {
                place.item.take(head, 0, 0, |_| ())?;
                Ok(self.end(at, Final::End))
            }
            Kind::Error => {
                let (status, code, text) = failure(head, len, read)?;
                Ok(self.end(at, Final::Failed(status, code, text)))
            }
            Kind::Credit if place.flags & UPLOAD != 0 && len == 0 => {
                let credit = place.credit.checked_add(head.word).filter(|sum| *sum <= self.window);
                place.credit = credit.ok_or(ProtocolViolation("more credit than the window"))?;
                Ok(Change::Call(at))
            }
            _ => Err(ProtocolViolation("a frame that no server sends for this call")),
        }
    }

    fn take_push(
        &mut self,
        head: Head,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Change, ProtocolViolation> {
        if !matches!(head.kind, Kind::Push | Kind::Rest) {
            return Err(ProtocolViolation("a frame of no call"));
        }
        let price = if head.kind == Kind::Push { cost(len) } else { u32::try_from(len).unwrap_or(u32::MAX) };
        self.push_left =
            self.push_left.checked_sub(price).ok_or(ProtocolViolation("more pushes than the window"))?;
        if self.push.take(head, len, self.max, read)?.is_none() {
            return Ok(Change::None);
        }
        let push = mem::take(&mut self.push.bytes);
        let lost = self.push.lost.take();
        if lost.is_some() || self.pushes.try_reserve(1).is_err() {
            self.push_lost = true;
            self.push_owed = self.push_owed.saturating_add(cost(lost.unwrap_or(push.len())));
        } else {
            self.pushes.push_back(push);
        }
        Ok(Change::Push)
    }

    /// An item is whole.
    fn whole(&mut self, at: usize, first: Head) -> Change {
        let place = &mut self.places[at];
        let lost = place.item.lost.take().is_some();
        if first.kind == Kind::Reply {
            return self.end(at, if lost { Final::OutOfMemory } else { Final::Reply });
        }
        if place.state == State::Abandoned || place.starved {
            pieces::clear(&mut place.item.bytes);
            return Change::None;
        }
        place.starved = lost || place.chunks.try_reserve(1).is_err();
        if place.starved {
            pieces::clear(&mut place.item.bytes);
        } else {
            place.chunks.push_back(mem::take(&mut place.item.bytes));
        }
        Change::Call(at)
    }

    fn end(&mut self, at: usize, end: Final) -> Change {
        let place = &mut self.places[at];
        if end != Final::Reply {
            pieces::clear(&mut place.item.bytes);
        }
        if place.state == State::Abandoned {
            if place.flags & NOTIFY == 0 {
                self.dropped += u64::from(!matches!(end, Final::Failed(Status::Cancelled, ..)));
            }
            self.release(at);
            return Change::Freed;
        }
        place.end = Some(end);
        Change::Call(at)
    }

    fn release(&mut self, at: usize) {
        let place = &mut self.places[at];
        (place.state, place.end) = (State::Free, None);
        if !place.chunks.is_empty() {
            place.chunks.clear();
        }
        pieces::clear(&mut place.item.bytes);
        self.free.push(at);
    }

    /// The end of a call was taken.
    #[inline]
    fn leave(&mut self, id: u64) {
        if self.ended.is_empty() || self.ended.remove(&id).is_none() {
            self.release(self.at(id));
        }
    }

    /// Puts a call aside that has ended: its place is free for another.
    #[cold]
    fn vacate(&mut self) -> Option<usize> {
        let at = self.places.iter().position(Place::has_ended)?;
        let id = self.places[at].id;
        let place = mem::replace(&mut self.places[at], Place { id, ..Place::default() });
        self.ended.insert(id, place);
        Some(at)
    }

    #[inline]
    fn place(&mut self, id: u64) -> Option<&mut Place> {
        let at = self.at(id);
        if self.places[at].id == id && self.places[at].state != State::Free {
            return self.places.get_mut(at);
        }
        self.ended.get_mut(&id)
    }
}

fn quarter(window: u32) -> u32 {
    (window / 4).max(1)
}
