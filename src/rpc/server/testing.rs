//! What the tests see of the server's side: one step of its thread, and whether its books balance. For them alone.

use super::attendant::{Attendant, Given, Service};
use super::place::{Phase, Place, TIME};
use super::table::Table;
use crate::channel::{SyncBackend, WaitPolicy};
use crate::error::ConnectionError;
use crate::mem::Memory;
use crate::rpc::pieces::Assembly;
use crate::rpc::place_of;
use crate::rpc::wire::{ERROR_LEN, STREAM, UPLOAD, cost};

impl<M: Memory + Send, P: WaitPolicy + Send, T: SyncBackend> Attendant<M, P, T> {
    /// Does what can be done without waiting. Whether there was anything.
    ///
    /// # Errors
    ///
    /// How the connection ended; everybody was told.
    pub fn step(&mut self, service: &mut impl Service<M, P>) -> Result<bool, ConnectionError> {
        self.round(service).inspect_err(|&ended| self.hall.end(ended))
    }
}

impl<M: Memory, P: WaitPolicy> Given<'_, M, P> {
    /// The request.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.frame.len()];
        self.frame.read(self.inbound, 0, &mut bytes).expect("in the message");
        bytes
    }
}

impl Table {
    /// What may be pushed now.
    pub fn push_credit(&self) -> u32 {
        self.places.last().map_or(0, |place| place.credit)
    }

    /// Calls whose request is not whole yet.
    pub fn receiving(&self) -> usize {
        self.places.iter().filter(|place| place.phase == Phase::Receiving).count()
    }

    /// What the books hold must be what was paid for.
    ///
    /// # Panics
    ///
    /// If the books do not balance. They need not after a violation.
    pub fn audit(&self) {
        let count = self.places();
        let mut turns: Vec<_> = self.turns.iter().copied().collect();
        turns.sort_unstable();
        let full: Vec<_> = (0..=count).filter(|&at| !self.places[at].outbox.is_empty()).collect();
        assert_eq!(turns, full, "the turns");
        assert!(self.control.len() <= count, "{} credits are kept for {count} calls", self.control.len());
        for (at, place) in self.places[..count].iter().enumerate() {
            assert_eq!(place_of(place.id, count), at, "a call in another's place");
            self.audit_place(place);
        }
        let pushes = &self.places[count];
        assert!(bill(pushes) <= self.limits.push_window.into(), "more pushes than their window");
    }

    fn audit_place(&self, place: &Place) {
        let lasts = place.outbox.iter().filter(|item| item.last).count();
        let closing = place.phase == Phase::Closing;
        assert_eq!(lasts, usize::from(closing), "the last words of a call in {:?}", place.phase);
        assert!(lasts == 0 || place.outbox.back().is_some_and(|item| item.last), "words behind the last");
        let idle = place.phase == Phase::Idle;
        assert!(!idle || place.outbox.is_empty(), "a place with words is free");
        assert!(bill(place) <= self.limits.window.into(), "more of a stream than its window");
        let short = |len: usize| len <= self.limits.max || len <= ERROR_LEN;
        assert!(place.outbox.iter().all(|item| short(item.bytes.len())), "words longer than agreed");
        let live = matches!(place.phase, Phase::Receiving | Phase::Running);
        assert!(
            live || (place.chunks.is_empty() && place.item.bytes.is_empty()),
            "what nobody takes is kept"
        );
        assert!(place.item.bytes.len() <= self.limits.max + TIME, "a request longer than agreed");
        if place.flags & UPLOAD != 0 && place.phase == Phase::Running {
            let chunks: u64 = place.chunks.iter().map(|chunk| u64::from(cost(chunk.len()))).sum();
            let unsent =
                self.control.iter().filter(|(id, _)| *id == place.id).map(|(_, owed)| u64::from(*owed));
            let held = u64::from(place.owed) + chunks + begun(&place.item) + unsent.sum::<u64>();
            let window = u64::from(place.window) + held;
            assert_eq!(window, self.limits.window.into(), "the window of an upload");
        }
        assert!(
            place.flags & STREAM != 0 || idle || bill(place) <= u64::from(place.credit),
            "chunks of no stream"
        );
    }
}

/// What may be sent of a stream, and what waits to be sent.
fn bill(place: &Place) -> u64 {
    let waits = place.outbox.iter().filter(|item| !item.last).map(|item| u64::from(cost(item.bytes.len())));
    u64::from(place.credit) + waits.sum::<u64>()
}

/// What the item under way has cost so far.
fn begun(item: &Assembly) -> u64 {
    item.first.map_or(0, |_| cost(item.bytes.len()).into())
}
