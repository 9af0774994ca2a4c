//! Urgent words: what must overtake everything. No queue; a later store replaces an earlier one.
//!
//! The bell counts the stores, so that a sleeper can tell that one came.

use super::parking::notify;
use crate::memory::{Flag, Load, Memory, Store, Word};

/// The one who stores urgent words of a direction.
#[derive(Debug)]
pub struct OobSender<M> {
    mem: M,
    doorbell: u64,
}

impl<M: Memory> OobSender<M> {
    /// The poster of a fresh ring; there must be but one.
    pub fn new(mem: M) -> Self {
        Self { mem, doorbell: 0 }
    }

    /// Stores a word (the index is masked), rings, and wakes the consumer if it sleeps.
    pub fn send_oob(&mut self, index: u32, value: u64) {
        // pairs with the Acquire load in `urgent`.
        self.mem.store(Word::Oob(index), value, Store::Release);
        self.doorbell = self.doorbell.wrapping_add(1);
        // pairs with the Acquire load in `bell`.
        self.mem.store(Word::Doorbell, self.doorbell, Store::Release);
        notify(&self.mem, Flag::Consumer);
    }
}

/// Reads an urgent word; the index is masked.
pub fn load_oob<M: Memory>(mem: &M, index: u32) -> u64 {
    // pairs with the Release store in `OobSender::post`.
    mem.load(Word::Oob(index), Load::Acquire)
}

/// How often the poster has rung.
pub fn load_doorbell<M: Memory>(mem: &M) -> u64 {
    // pairs with the Release store in `OobSender::post`.
    mem.load(Word::Doorbell, Load::Acquire)
}
