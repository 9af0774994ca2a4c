//! Private memory with a spy in it: sees what the ring does, and can do something in between.

use std::sync::Arc;

use narrows::internal::mem::{
    Fence, Field, Flag, Heap, Load, Memory, OutOfBounds, Span, Store, Tail, Until, Woke, Word,
};

/// What the ring has just done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    StoreSlot(u64, Field, u64),
    LoadFlag(Flag),
    StoreFlag(Flag, u32),
    CopyOut(Span),
    Doze,
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

    fn tell<T>(&self, did: Did, result: T) -> T {
        (self.spy)(&self.heap, did);
        result
    }
}

impl Memory for Spied {
    fn slots(&self) -> u64 {
        self.heap.slots()
    }

    fn arena(&self) -> u64 {
        self.heap.arena()
    }

    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        self.heap.load_slot(ticket, field, order)
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        self.heap.store_slot(ticket, field, value, order);
        self.tell(Did::StoreSlot(ticket, field, value), ());
    }

    fn load(&self, word: Word, order: Load) -> u64 {
        self.heap.load(word, order)
    }

    fn store(&self, word: Word, value: u64, order: Store) {
        self.heap.store(word, value, order);
    }

    fn settle(&self, fate: u64) -> u64 {
        self.heap.settle(fate)
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        let value = self.heap.load_flag(flag);
        self.tell(Did::LoadFlag(flag), value)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.heap.store_flag(flag, value);
        self.tell(Did::StoreFlag(flag, value), ());
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.heap.take_flag(flag)
    }

    fn fence(&self, fence: Fence) {
        self.heap.fence(fence);
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Tail) -> Result<(), OutOfBounds> {
        self.heap.copy_in(to, at, bytes, tail)
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let copied = self.heap.copy_out(from, at, bytes);
        self.tell(Did::CopyOut(from), copied)
    }

    fn wait(&self, flag: Flag, until: Until, patience: u32) -> Woke {
        self.heap.wait(flag, until, patience)
    }

    fn doze(&self, until: Until) {
        self.heap.doze(until);
        self.tell(Did::Doze, ());
    }

    fn wake(&self, flag: Flag) {
        self.heap.wake(flag);
        self.tell(Did::Wake(flag), ());
    }

    fn expired(&self, until: Until) -> bool {
        self.heap.expired(until)
    }
}
