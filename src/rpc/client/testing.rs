//! What the tests see of the client's table: whether its books balance. For them alone.

use super::place::{Place, State};
use super::table::Table;
use crate::rpc::pieces::Assembly;
use crate::rpc::place_of;
use crate::rpc::wire::{STREAM, cost};

impl Table {
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
        let count = self.places.len();
        let mut free = self.free.clone();
        free.sort_unstable();
        let by_state: Vec<_> = (0..count).filter(|&at| self.places[at].state == State::Free).collect();
        assert_eq!(free, by_state, "the list of free places");
        for (at, place) in self.places.iter().enumerate() {
            assert_eq!(place_of(place.id, count), at, "a call in another's place");
            self.audit_place(place);
        }
        for (id, place) in &self.ended {
            assert!(place.has_ended() && place.id == *id, "a call put aside that is not over");
            assert!(self.places[place_of(*id, count)].id > *id, "a call in its place, and aside");
            self.audit_place(place);
        }
        assert!(self.push.bytes.len() <= self.max, "a push longer than agreed");
        let held = u64::from(self.push_owed) + price(self.pushes.iter()) + begun(&self.push);
        assert_eq!(u64::from(self.push_left) + held, self.push_window.into(), "the window of pushes");
    }

    fn audit_place(&self, place: &Place) {
        assert!(place.item.bytes.len() <= self.max, "a reply longer than agreed");
        assert!(place.credit <= self.window, "more credit than the window");
        let live = place.state == State::Waited;
        assert!(live || (place.chunks.is_empty() && place.end.is_none()), "what nobody waits for is kept");
        if place.flags & STREAM != 0 && live {
            let begun = if place.end.is_none() { begun(&place.item) } else { 0 };
            let held = u64::from(place.owed) + price(place.chunks.iter()) + begun;
            let window = u64::from(place.window) + held;
            assert!(window <= self.window.into(), "more of a stream than its window");
            // Of a last piece that an end cut off nothing is kept.
            assert!(place.end.is_some() || window == self.window.into(), "the window of a stream");
        }
    }
}

fn price<'a>(items: impl Iterator<Item = &'a Vec<u8>>) -> u64 {
    items.map(|item| u64::from(cost(item.len()))).sum()
}

/// What the item under way has cost so far.
fn begun(item: &Assembly) -> u64 {
    item.first.map_or(0, |_| cost(item.bytes.len()).into())
}
