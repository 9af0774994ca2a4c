//! What is to be sent of a connection's calls: outboxes in turn, and credit before everything.

use super::place::{Item, Phase};
use super::table::Table;
use crate::mem::OutOfMemory;

impl Table {
    /// Where pushes are put.
    pub(super) fn pushing(&self) -> usize {
        self.places()
    }

    /// Whether nothing waits to be sent.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.turns.is_empty() && self.control.is_empty()
    }

    /// Makes room for one more item of a place.
    pub(super) fn reserve(&mut self, at: usize) -> Result<(), OutOfMemory> {
        self.places[at].outbox.try_reserve(1).map_err(|_| OutOfMemory)
    }

    /// Leaves an item to be sent when there is room.
    pub(super) fn put(&mut self, at: usize, item: Item) {
        let place = &mut self.places[at];
        if place.outbox.is_empty() {
            self.turns.push_back(at);
        }
        place.put(item);
    }

    /// The count of the next frame of a place.
    #[inline]
    pub(super) fn seq(&mut self, at: usize) -> &mut u16 {
        &mut self.places[at].seq
    }

    /// The last frame of a call was sent.
    #[inline]
    pub(super) fn closed(&mut self, at: usize) {
        self.places[at].phase = Phase::Idle;
    }

    /// The last frame of an item that had waited was sent.
    pub(super) fn done(&mut self, at: usize, item: &Item) {
        if item.last { self.closed(at) } else { self.places[at].sent(item) }
    }

    /// Credit that is to be sent first.
    pub(super) fn next_control(&mut self) -> Option<(u64, u32)> {
        self.control.pop_front()
    }

    /// The credit could not be sent now.
    pub(super) fn put_control_back(&mut self, credit: (u64, u32)) {
        self.control.push_front(credit);
    }

    /// The credit was sent: only now may the client upload more, or what a liar leaves untaken would grow.
    pub(super) fn credited(&mut self, (id, amount): (u64, u32)) {
        let at = self.at(id);
        let place = &mut self.places[at];
        if place.id == id {
            place.window = place.window.saturating_add(amount);
        }
    }

    /// The next item in turn, with its place's id and count.
    pub(super) fn next_item(&mut self) -> Option<(usize, u64, u16, Item)> {
        let at = *self.turns.front()?;
        let place = self.places.get_mut(at)?;
        let item = place.outbox.pop_front()?;
        Some((at, place.id, place.seq, item)) // The place of pushes has the id 0.
    }

    /// A frame of the item was sent, or none if there was no room: what is left of it stays first in its place.
    pub(super) fn turn(&mut self, at: usize, rest: Option<Item>, sent: bool) {
        let place = &mut self.places[at];
        if let Some(item) = rest {
            place.outbox.push_front(item);
        }
        if sent {
            self.turns.pop_front();
            if !self.places[at].outbox.is_empty() {
                self.turns.push_back(at);
            }
        }
    }
}
