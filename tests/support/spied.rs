//! Private memory with a callback: it observes each operation of the ring, and can act between two of them.

use std::sync::Arc;

use narrows::internal::memory::{
    Deadline, Field, Flag, Heap, Memory, OutOfBounds, Span, Store, forward_memory,
};

/// The operation that the ring has just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    StoreSlot(u64, Field, u64),
    LoadFlag(Flag),
    StoreFlag(Flag, u32),
    CopyOut(Span),
    Backoff,
    Wake(Flag),
}

pub struct Spied {
    pub heap: Heap,
    spy: Box<Spy>,
}

type Spy = dyn Fn(&Heap, Did) + Send + Sync;

impl Spied {
    pub fn new(heap: Heap, spy: impl Fn(&Heap, Did) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { heap, spy: Box::new(spy) })
    }

    fn call_spy<T>(&self, did: Did, result: T) -> T {
        (self.spy)(&self.heap, did);
        result
    }
}

impl Memory for Spied {
    forward_memory! {
        self => self.heap;
        slots, arena, load_slot, load, store, set_close_reason, take_flag, fence, copy_in, wait, has_expired,
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        self.heap.store_slot(ticket, field, value, order);
        self.call_spy(Did::StoreSlot(ticket, field, value), ());
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        let value = self.heap.load_flag(flag);
        self.call_spy(Did::LoadFlag(flag), value)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.heap.store_flag(flag, value);
        self.call_spy(Did::StoreFlag(flag, value), ());
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let copied = self.heap.copy_out(from, at, bytes);
        self.call_spy(Did::CopyOut(from), copied)
    }

    fn back_off(&self, deadline: Deadline) {
        self.heap.back_off(deadline);
        self.call_spy(Did::Backoff, ());
    }

    fn wake(&self, flag: Flag) {
        self.heap.wake(flag);
        self.call_spy(Did::Wake(flag), ());
    }
}
