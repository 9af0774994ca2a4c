//! A view in which the producer does not see the consumer's head. The shipped producer over it overwrites unread messages.

use std::cell::Cell;

use narrows::internal::memory::{Field, Load, Memory, Store, Word, forward_memory};

use super::{RacyModel, View, Words};

/// A view whose head says that everything was read. Everything else is passed through.
#[derive(Debug)]
pub struct StaleHead {
    view: View<Words>,
    head: Cell<u64>,
}

impl StaleHead {
    /// Makes a view with a stale head.
    pub fn new(view: RacyModel) -> Self {
        Self { view, head: Cell::new(0) }
    }
}

impl Memory for StaleHead {
    forward_memory! {
        self => self.view;
        slots, arena, load_slot, store, set_close_reason, load_flag, store_flag, take_flag, fence, copy_in, copy_out,
        wait, back_off, wake, has_expired,
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
}
