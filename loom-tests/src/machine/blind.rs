//! A producer's view that does not see the reader: the shipped producer over it laps whoever reads.

use std::cell::Cell;

use narrows::internal::mem::{
    Fence, Field, Flag, Load, Memory, OutOfBounds, Span, Store, Tail, Until, Woke, Word,
};

use super::{RacyModel, View, Words};

/// A view whose head says that everything was read; all else is true.
#[derive(Debug)]
pub struct Blind {
    view: View<Words>,
    head: Cell<u64>,
}

impl Blind {
    /// Blinds a view.
    pub fn new(view: RacyModel) -> Self {
        Self { view, head: Cell::new(0) }
    }
}

impl Memory for Blind {
    fn slots(&self) -> u64 {
        self.view.slots()
    }

    fn arena(&self) -> u64 {
        self.view.arena()
    }

    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        self.view.load_slot(ticket, field, order)
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        if field == Field::Stamp && value % 2 == 0 {
            self.head.set(ticket + 1);
        }
        self.view.store_slot(ticket, field, value, order);
    }

    fn load(&self, word: Word, order: Load) -> u64 {
        if word == Word::Head { self.head.get() } else { self.view.load(word, order) }
    }

    fn store(&self, word: Word, value: u64, order: Store) {
        self.view.store(word, value, order);
    }

    fn settle(&self, fate: u64) -> u64 {
        self.view.settle(fate)
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        self.view.load_flag(flag)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.view.store_flag(flag, value);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.view.take_flag(flag)
    }

    fn fence(&self, fence: Fence) {
        self.view.fence(fence);
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Tail) -> Result<(), OutOfBounds> {
        self.view.copy_in(to, at, bytes, tail)
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        self.view.copy_out(from, at, bytes)
    }

    fn wait(&self, flag: Flag, until: Until, patience: u32) -> Woke {
        self.view.wait(flag, until, patience)
    }

    fn doze(&self, until: Until) {
        self.view.doze(until);
    }

    fn wake(&self, flag: Flag) {
        self.view.wake(flag);
    }

    fn expired(&self, until: Until) -> bool {
        self.view.expired(until)
    }
}
