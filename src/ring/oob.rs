//! Out-of-band (OOB) words: values that overtake all messages. There is no queue: a later store replaces an earlier
//! one.
//!
//! The doorbell counts the stores, so that a thread that wakes up can see that a word was stored.

use super::parking::notify;
use crate::memory::{Flag, Load, Memory, Store, Word};

/// Stores the OOB words of a direction.
#[derive(Debug)]
pub struct OobSender<M> {
    mem: M,
    doorbell: u64,
}

impl<M: Memory> OobSender<M> {
    /// Makes the sender of a fresh ring. A ring must have only one, since the doorbell is counted in private memory.
    pub fn new(mem: M) -> Self {
        Self { mem, doorbell: 0 }
    }

    /// Stores a word (the index is masked), increments the doorbell, and wakes the consumer if it sleeps.
    pub fn send_oob(&mut self, index: u32, value: u64) {
        // Pairs with the Acquire load in `load_oob`.
        self.mem.store(Word::Oob(index), value, Store::Release);
        self.doorbell = self.doorbell.wrapping_add(1);
        // Pairs with the Acquire load in `load_doorbell`: a thread that sees the count sees the word.
        self.mem.store(Word::Doorbell, self.doorbell, Store::Release);
        notify(&self.mem, Flag::Consumer);
    }
}

/// Returns an OOB word; the index is masked.
pub fn load_oob<M: Memory>(mem: &M, index: u32) -> u64 {
    // Pairs with the Release store in `OobSender::send_oob`.
    mem.load(Word::Oob(index), Load::Acquire)
}

/// Returns how many OOB words the sender has stored.
pub fn load_doorbell<M: Memory>(mem: &M) -> u64 {
    // Pairs with the Release store in `OobSender::send_oob`.
    mem.load(Word::Doorbell, Load::Acquire)
}
