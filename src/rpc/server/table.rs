//! The server's places for the calls of one client, and what each frame does to them. Pure.
//!
//! ```text
//!           Call            whole             final queued          final sent
//!   Idle ─────────▶ Receiving ──▶ Running ──────────────▶ Closing ──────────────▶ Idle
//!                      │             │                       ▲
//!                      └─ refused ───┴── cancelled ──────────┘
//! ```
//!
//! What is to be sent stands in the place's outbox, an item behind the other; places with something to send take
//! turns, a piece each. Credit goes before everything.
//!
//! # Invariants
//!
//! 1. Each admitted call gets exactly one final frame, and nothing after it.
//! 2. A place takes a new call only when the final frame of its last was sent.
//! 3. What a client can make us keep is bounded: a request for each place, a window for each upload; and of what
//!    we owe it, a reply or a window for each place and a window of pushes.
//! 4. Frames for a call that is over are dropped: the client may have sent them before it knew.
//!
//! # Proof
//!
//! `tests/rpc/tables` against a reference; fuzz `calls`.

use std::collections::VecDeque;
use std::mem;

pub use super::place::{Event, Failure, Upload};
use super::place::{Item, Limits, Phase, Place, TIME, add_credit, error, price, spend};
use crate::error::ProtocolViolation;
use crate::mem::Deadline;
use crate::rpc::pieces::{self, Cut};
use crate::rpc::wire::{DEADLINE, ERROR_LEN, Head, Kind, STREAM, Status, cost};
use crate::rpc::{Over, place_of};

/// All places of a connection, and its pushes.
#[derive(Debug)]
pub struct Table {
    /// The last one is for pushes.
    pub(super) places: Vec<Place>,
    pub(super) turns: VecDeque<usize>,
    pub(super) control: VecDeque<(u64, u32)>,
    pub(super) limits: Limits,
    longest_error: usize,
}

impl Table {
    /// With nothing under way.
    pub fn new(limits: Limits) -> Self {
        let place = |at| Place { id: at as u64, ..Place::default() };
        let mut places: Vec<_> = (0..limits.places).map(place).collect();
        places.push(Place { credit: limits.push_window, ..Place::default() });
        let longest_error = limits.piece.min(ERROR_LEN);
        Self { places, turns: VecDeque::new(), control: VecDeque::new(), limits, longest_error }
    }

    /// How many calls may be under way.
    pub fn places(&self) -> usize {
        self.places.len() - 1
    }

    /// Where the call with this id stands.
    #[inline]
    pub fn at(&self, id: u64) -> usize {
        place_of(id, self.places())
    }

    /// As [`take`](Self::take), of a frame that arrived at a time which is of interest if it begins a call with a deadline.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn take_at(
        &mut self,
        arrived: Deadline,
        id: u64,
        head: Head,
        len: usize,
        read: impl FnOnce(&mut [u8]),
        admit: impl FnOnce(u32, u8) -> Result<(), Failure>,
    ) -> Result<Event, ProtocolViolation> {
        let event = self.take(id, head, len, read, admit)?;
        if arrived.is_some() {
            let at = self.at(id);
            self.places[at].arrived = arrived;
        }
        Ok(event)
    }

    /// Takes a frame of the client, whose body of `len` bytes `read` copies. `admit` judges a call by its
    /// method and flags before anything of it is kept.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for what no honest client sends.
    #[inline]
    pub fn take(
        &mut self,
        id: u64,
        head: Head,
        len: usize,
        read: impl FnOnce(&mut [u8]),
        admit: impl FnOnce(u32, u8) -> Result<(), Failure>,
    ) -> Result<Event, ProtocolViolation> {
        if id == 0 {
            return self.take_push_credit(head, len);
        }
        let at = self.at(id);
        if head.kind == Kind::Call {
            self.begin(id, head)?;
            if let Err(failure) = admit(head.word, head.flags) {
                self.fail(at, failure);
                return Ok(Event::None);
            }
        }
        let max = self.limits.max;
        let place = &mut self.places[at];
        if id > place.id {
            return Err(ProtocolViolation("a frame of a call that was not begun"));
        }
        if id < place.id || !matches!(place.phase, Phase::Receiving | Phase::Running) {
            return Ok(Event::None);
        }
        match head.kind {
            Kind::Call | Kind::Rest if place.phase == Phase::Receiving => {
                let spare = if place.flags & DEADLINE != 0 { TIME } else { 0 };
                let whole = place.item.take(head, len, max.saturating_add(spare), read)?.is_some();
                if place.item.lost.is_some() {
                    self.fail(at, (Status::Busy, 0, "there is no memory for the request".into()));
                    return Ok(Event::Failed(at));
                }
                if whole { self.whole(at) } else { Ok(Event::None) }
            }
            Kind::Chunk | Kind::Rest => self.take_chunk(at, head, len, read),
            Kind::End if len == 0 && place.uploads() => {
                place.item.take(head, 0, 0, |_| ())?;
                place.ended = true;
                Ok(Event::Call(at))
            }
            Kind::Credit if len == 0 && place.flags & STREAM != 0 => {
                add_credit(place, head.word, self.limits.window)?;
                Ok(Event::Call(at))
            }
            _ => Err(ProtocolViolation("a frame that no client sends for this call")),
        }
    }

    /// Begins a call that is whole in one frame, without keeping its bytes. It runs from now on.
    ///
    /// # Errors
    ///
    /// As for [`take`](Self::take).
    pub fn begin_whole(&mut self, id: u64, head: Head, len: usize) -> Result<usize, ProtocolViolation> {
        if !self.may_begin(id, head, len) {
            return Err(ProtocolViolation("a call that cannot begin here"));
        }
        self.begin(id, head)?;
        let at = self.at(id);
        self.places[at].phase = Phase::Running;
        Ok(at)
    }

    /// Whether a call that is whole in one frame is one that an honest client may make now.
    #[inline]
    pub fn may_begin(&self, id: u64, head: Head, len: usize) -> bool {
        let spare = if head.has(DEADLINE) { TIME } else { 0 };
        let place = &self.places[self.at(id)];
        let free = id > place.id && place.phase == Phase::Idle && head.seq == 0;
        free && len >= spare && len - spare <= self.limits.max
    }

    /// A call has begun and ended.
    #[inline]
    pub(super) fn pass(&mut self, id: u64) {
        let at = self.at(id);
        self.places[at].id = id;
    }

    /// The id, method and flags of a place.
    pub fn call(&self, at: usize) -> (u64, u32, u8) {
        let place = &self.places[at];
        (place.id, place.method, place.flags)
    }

    /// When the first frame of the call in this place arrived, if it has a deadline.
    pub(super) fn arrival(&mut self, at: usize) -> Deadline {
        let place = &mut self.places[at];
        place.arrived.filter(|_| place.flags & DEADLINE != 0)
    }

    /// Takes the request of a call that is to be run.
    pub fn request(&mut self, at: usize) -> Vec<u8> {
        mem::take(&mut self.places[at].item.bytes)
    }

    /// Gives the memory of a request back for the next one in this place.
    pub fn recycle(&mut self, id: u64, mut buffer: Vec<u8>) {
        let at = self.at(id);
        let place = &mut self.places[at];
        if place.item.bytes.capacity() == 0 && place.phase != Phase::Receiving {
            pieces::clear(&mut buffer);
            place.item.bytes = buffer;
        }
    }

    /// Whether the call runs and somebody waits for what it answers.
    #[inline]
    pub fn runs(&self, id: u64) -> bool {
        let place = &self.places[self.at(id)];
        place.id == id && place.phase == Phase::Running
    }

    /// Takes `cost` of what the client lets us stream, if there is enough; `Err` if nobody waits any more.
    pub fn spend(&mut self, id: u64, cost: u32) -> Result<bool, Over> {
        if !self.runs(id) {
            return Err(Over);
        }
        let at = self.at(id);
        Ok(spend(&mut self.places[at].credit, cost))
    }

    /// As [`spend`](Self::spend), of what the client lets us push.
    pub fn spend_push(&mut self, cost: u32) -> bool {
        self.places.last_mut().is_some_and(|place| spend(&mut place.credit, cost))
    }

    /// Gives back what was spent on a chunk, or on a push with the id 0, of which nothing was sent.
    pub(super) fn refund(&mut self, id: u64, cost: u32) {
        let at = if id == 0 { self.places() } else { self.at(id) };
        let place = &mut self.places[at];
        if place.id == id {
            place.credit = place.credit.saturating_add(cost);
        }
    }

    /// The next chunk of an upload, if it has come; `Err` if nobody waits any more. Credit for it is queued.
    pub fn upload(&mut self, id: u64) -> Result<Option<Upload>, Over> {
        if !self.runs(id) {
            return Err(Over);
        }
        let (at, window) = (self.at(id), self.limits.window);
        let place = &mut self.places[at];
        let Some(chunk) = place.chunks.pop_front() else {
            return Ok((place.ended || !place.uploads()).then_some(Upload::End));
        };
        place.owed = place.owed.saturating_add(cost(chunk.len()));
        if place.owed >= (window / 4).max(1) && !place.ended {
            let owed = mem::take(&mut place.owed);
            // A client that takes none of it must not make it grow: one for each call.
            match self.control.iter_mut().find(|(it, _)| *it == id) {
                Some((_, sum)) => *sum = sum.saturating_add(owed),
                None => self.control.push_back((id, owed)),
            }
        }
        Ok(Some(Upload::Chunk(chunk)))
    }

    /// Where an item of a call that runs is to be put; `None` if nobody waits any more. A last one ends the call.
    pub(super) fn answering(&mut self, id: u64, last: bool) -> Option<usize> {
        if !self.runs(id) {
            return None;
        }
        let at = self.at(id);
        if last {
            self.close(at);
        }
        Some(at)
    }

    /// Nobody waits for the call any more. True if it was still to be answered: it is, with `Cancelled`.
    pub fn cancel(&mut self, id: u64) -> Option<usize> {
        let at = self.at(id);
        let place = &self.places[at];
        if place.id != id || place.phase == Phase::Idle {
            return None;
        }
        let short = |item: &Item| item.last && item.bytes.len() <= self.longest_error;
        if place.outbox.front().is_some_and(short) {
            return None; // It is over, and nothing long holds up its end.
        }
        self.fail(at, (Status::Cancelled, 0, String::new()));
        Some(at)
    }

    /// Ends a call with an error, whatever was still to be sent for it.
    pub fn fail(&mut self, at: usize, failure: Failure) {
        let place = &mut self.places[at];
        if !place.outbox.is_empty() {
            place.drop_all();
            self.turns.retain(|it| *it != at);
        }
        self.conclude(at, &failure);
    }

    /// Ends a call with an error, behind what is still to be sent for it.
    pub(super) fn conclude(&mut self, at: usize, failure: &Failure) {
        self.close(at);
        let (head, bytes) = error(failure, self.longest_error);
        self.put(at, Item { cut: Cut::new(head, bytes.len()), bytes, last: true });
    }

    /// Calls that are not over.
    pub fn in_flight(&self) -> usize {
        self.places[..self.places()].iter().filter(|place| place.phase != Phase::Idle).count()
    }

    fn begin(&mut self, id: u64, head: Head) -> Result<(), ProtocolViolation> {
        let at = self.at(id);
        let (upload, stream) = (self.limits.window, self.limits.window);
        let place = &mut self.places[at];
        if id <= place.id || place.phase != Phase::Idle {
            return Err(ProtocolViolation("a call in a place that is not free"));
        }
        (place.id, place.phase, place.method, place.flags) = (id, Phase::Receiving, head.word, head.flags);
        (place.window, place.owed, place.credit, place.seq) = (upload, 0, stream, 0);
        place.ended = false;
        place.item.reset();
        Ok(())
    }

    fn whole(&mut self, at: usize) -> Result<Event, ProtocolViolation> {
        let place = &mut self.places[at];
        if place.flags & DEADLINE != 0 && place.item.bytes.len() < TIME {
            return Err(ProtocolViolation("a deadline that is not there"));
        }
        place.phase = Phase::Running;
        Ok(Event::Run(at))
    }

    fn take_chunk(
        &mut self,
        at: usize,
        head: Head,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Event, ProtocolViolation> {
        let max = self.limits.max;
        let place = &mut self.places[at];
        if !place.uploads() || place.phase != Phase::Running {
            return Err(ProtocolViolation("a chunk that nobody takes"));
        }
        let price = price(head, len);
        place.window =
            place.window.checked_sub(price).ok_or(ProtocolViolation("more of an upload than its window"))?;
        let whole = place.item.take(head, len, max, read)?.is_some();
        if place.item.lost.is_some() || (whole && place.chunks.try_reserve(1).is_err()) {
            self.fail(at, (Status::OutOfMemory, 0, String::new()));
            return Ok(Event::Failed(at));
        }
        if !whole {
            return Ok(Event::None);
        }
        place.chunks.push_back(mem::take(&mut place.item.bytes));
        Ok(Event::Call(at))
    }

    fn take_push_credit(&mut self, head: Head, len: usize) -> Result<Event, ProtocolViolation> {
        let place = self.places.last_mut().filter(|_| head.kind == Kind::Credit && len == 0);
        let place = place.ok_or(ProtocolViolation("a frame of no call"))?;
        add_credit(place, head.word, self.limits.push_window)?;
        Ok(Event::Push)
    }

    /// The last item of a call is about to be put: nothing more is taken for it.
    #[inline]
    pub(super) fn close(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.phase = Phase::Closing;
        place.chunks.clear();
        place.item.clear();
    }
}
