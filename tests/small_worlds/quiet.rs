//! Private memory that keeps quiet when a ring is printed, so that the print is the ring's own state.

use std::fmt;
use std::sync::Arc;

use narrows::internal::mem::{
    Fence, Field, Flag, Heap, Load, Memory, OutOfBounds, Span, Store, Tail, Until, Woke, Word,
};

#[derive(Clone)]
pub(crate) struct Quiet(pub(crate) Arc<Heap>);

impl fmt::Debug for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mem")
    }
}

impl Memory for Quiet {
    fn slots(&self) -> u64 {
        self.0.slots()
    }

    fn arena(&self) -> u64 {
        self.0.arena()
    }

    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        self.0.load_slot(ticket, field, order)
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        self.0.store_slot(ticket, field, value, order);
    }

    fn load(&self, word: Word, order: Load) -> u64 {
        self.0.load(word, order)
    }

    fn store(&self, word: Word, value: u64, order: Store) {
        self.0.store(word, value, order);
    }

    fn settle(&self, fate: u64) -> u64 {
        self.0.settle(fate)
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        self.0.load_flag(flag)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.0.store_flag(flag, value);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.0.take_flag(flag)
    }

    fn fence(&self, fence: Fence) {
        self.0.fence(fence);
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Tail) -> Result<(), OutOfBounds> {
        self.0.copy_in(to, at, bytes, tail)
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        self.0.copy_out(from, at, bytes)
    }

    fn wait(&self, flag: Flag, until: Until, patience: u32) -> Woke {
        self.0.wait(flag, until, patience)
    }

    fn doze(&self, until: Until) {
        self.0.doze(until);
    }

    fn wake(&self, flag: Flag) {
        self.0.wake(flag);
    }

    fn expired(&self, until: Until) -> bool {
        self.0.expired(until)
    }
}
