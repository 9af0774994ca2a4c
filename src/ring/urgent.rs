//! Urgent words: what must overtake everything. No queue; a later store replaces an earlier one.
//!
//! The bell counts the stores, so that a sleeper can tell that one came.

use super::park::rouse;
use crate::mem::{Flag, Load, Memory, Store, Word};

/// The one who stores urgent words of a direction.
#[derive(Debug)]
pub struct Poster<M> {
    mem: M,
    bell: u64,
}

impl<M: Memory> Poster<M> {
    /// The poster of a fresh ring; there must be but one.
    pub fn new(mem: M) -> Self {
        Self { mem, bell: 0 }
    }

    /// Stores a word (the index is masked), rings, and wakes the consumer if it sleeps.
    pub fn post(&mut self, index: u32, value: u64) {
        // pairs with the Acquire load in `urgent`.
        self.mem.store(Word::Urgent(index), value, Store::Release);
        self.bell = self.bell.wrapping_add(1);
        // pairs with the Acquire load in `bell`.
        self.mem.store(Word::Bell, self.bell, Store::Release);
        rouse(&self.mem, Flag::Consumer);
    }
}

/// Reads an urgent word; the index is masked.
pub fn urgent<M: Memory>(mem: &M, index: u32) -> u64 {
    // pairs with the Release store in `Poster::post`.
    mem.load(Word::Urgent(index), Load::Acquire)
}

/// How often the poster has rung.
pub fn bell<M: Memory>(mem: &M) -> u64 {
    // pairs with the Release store in `Poster::post`.
    mem.load(Word::Bell, Load::Acquire)
}
