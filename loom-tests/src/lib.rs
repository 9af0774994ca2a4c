//! Models of the shipped ring, checked by loom: every interleaving up to a preemption bound, and
//! every value that a weak memory could return.
//!
//! # What a model is
//!
//! [`View`] implements the very trait that the ring is written against, so the code that is checked
//! is the code that ships. Words are loom atomics; spans, inline payload too, are loom cells, so a
//! missing Release or Acquire shows as a race. Sleep is one mutex and condition variable per flag, in
//! which compare and sleep are one step, as the kernel promises for a futex.
//!
//! # What it does not model
//!
//! - Time: deadlines never pass, slices never end, so a lost wake-up is a deadlock that loom reports.
//! - A lying peer: cells would call its writes a race.
//! - The kernel, real shared mappings, load buffering, more than a few threads.
#![allow(unsafe_code)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use narrows::internal::mem::{
    Fence, Field, Flag, GRAIN, INLINE, Load, Memory, OutOfBounds, Span, Store, Tail, Until, Woke, Word,
};
use narrows::internal::{Inbound, Monitor, NoPace, Outbound, ring::Producer};

/// Runs a model with the preemption bound of `LOOM_MAX_PREEMPTIONS`, or 2.
pub fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(body);
}

/// One ring, as both sides share it.
#[derive(Debug)]
struct Ring {
    slots: Vec<Slot>,
    arena: Vec<Bytes<GRAIN>>,
    words: [AtomicU64; 6],
    consumer: Arc<Bed>,
    producer: Bed,
}

#[derive(Debug)]
struct Slot {
    words: [AtomicU64; 3],
    payload: Bytes<INLINE>,
}

#[derive(Debug)]
struct Bytes<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: loom checks every access to the cell and fails the model if two of them race.
unsafe impl<const N: usize> Sync for Bytes<N> {}

#[derive(Debug)]
struct Bed {
    flag: AtomicU32,
    lock: Mutex<()>,
    woken: Condvar,
}

/// One side's view of a ring.
#[derive(Clone, Debug)]
pub struct View {
    ring: Arc<Ring>,
    twin: Arc<Bed>,
    fate: Arc<AtomicU64>,
}

/// One side of a connection: where it sends, and where it receives.
#[derive(Clone, Debug)]
pub struct Side {
    /// The ring that this side sends into.
    pub out: View,
    /// The ring that this side receives from.
    pub into: View,
}

impl Side {
    /// The sending half.
    pub fn sender(&self) -> Outbound<View, NoPace> {
        Outbound::new(self.out.clone(), NoPace, 0, 1 << 20)
    }

    /// The receiving half.
    pub fn receiver(&self) -> Inbound<View, NoPace> {
        Inbound::new(self.into.clone(), NoPace, 0, 1 << 20)
    }
}

/// The lock above the ring, as loom can see it. Time does not pass: it waits for as long as it takes.
#[derive(Debug)]
pub struct Lock<T>(Mutex<T>);

impl<T> Monitor<T> for Lock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn try_lock(&self) -> Option<Self::Guard<'_>> {
        self.0.try_lock().ok()
    }

    fn lock_until(&self, _until: Until) -> Option<Self::Guard<'_>> {
        self.0.lock().ok()
    }
}

/// Both sides of a fresh connection.
pub fn connection(slots: usize, arena: usize) -> (Side, Side) {
    let (there, back) = (Arc::new(Ring::new(slots, arena)), Arc::new(Ring::new(slots, arena)));
    let side = |out: &Arc<Ring>, into: &Arc<Ring>| {
        let fate = Arc::new(AtomicU64::new(0));
        let view = |ring: &Arc<Ring>, other: &Arc<Ring>| View {
            ring: ring.clone(),
            twin: other.consumer.clone(),
            fate: fate.clone(),
        };
        Side { out: view(out, into), into: view(into, out) }
    };
    let (a, b) = (side(&there, &back), side(&back, &there));
    Producer::format(&a.out, 0);
    Producer::format(&b.out, 0);
    (a, b)
}

impl Ring {
    fn new(slots: usize, arena: usize) -> Self {
        let zero = || AtomicU64::new(0);
        let slot = || Slot { words: [zero(), zero(), zero()], payload: Bytes::new() };
        Self {
            slots: (0..slots).map(|_| slot()).collect(),
            arena: (0..arena / GRAIN).map(|_| Bytes::new()).collect(),
            words: [zero(), zero(), zero(), zero(), zero(), zero()],
            consumer: Arc::new(Bed::new()),
            producer: Bed::new(),
        }
    }
}

impl<const N: usize> Bytes<N> {
    fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        // SAFETY: loom fails the model if this races with a write.
        self.0.with(|cell| into.copy_from_slice(unsafe { &(&*cell)[at..at + into.len()] }));
    }

    fn write(&self, at: usize, from: &[u8]) {
        // SAFETY: loom fails the model if this races with any other access.
        self.0.with_mut(|cell| unsafe { (&mut *cell)[at..at + from.len()].copy_from_slice(from) });
    }
}

impl Bed {
    fn new() -> Self {
        Self { flag: AtomicU32::new(0), lock: Mutex::new(()), woken: Condvar::new() }
    }
}

impl View {
    fn slot(&self, ticket: u64) -> &Slot {
        let mask = self.ring.slots.len() as u64 - 1;
        &self.ring.slots[usize::try_from(ticket & mask).unwrap()]
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        match word {
            Word::Head => &self.ring.words[0],
            Word::Wanted => &self.ring.words[1],
            Word::ProducerMark => &self.ring.words[2],
            Word::ConsumerMark => &self.ring.words[3],
            Word::Bell => &self.ring.words[4],
            Word::Urgent(_) => &self.ring.words[5],
            Word::Fate => &self.fate,
        }
    }

    fn bed(&self, flag: Flag) -> &Bed {
        match flag {
            Flag::Consumer => &self.ring.consumer,
            Flag::Producer => &self.ring.producer,
            Flag::Twin => &self.twin,
        }
    }

    /// Does something with each cell that a range touches: offset in it, and the range's part.
    fn each(
        &self,
        place: u32,
        at: usize,
        len: usize,
        mut act: impl FnMut(&Bytes<GRAIN>, usize, usize, usize),
    ) {
        let (mut from, start) = (at, place as usize * GRAIN);
        while from < at + len {
            let inside = (start + from) % GRAIN;
            let step = (GRAIN - inside).min(at + len - from);
            act(&self.ring.arena[(start + from) / GRAIN], inside, from - at, step);
            from += step;
        }
    }
}

impl Memory for View {
    fn slots(&self) -> u64 {
        self.ring.slots.len() as u64
    }

    fn arena(&self) -> u64 {
        (self.ring.arena.len() * GRAIN) as u64
    }

    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        self.slot(ticket).words[field as usize].load(order.into())
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        self.slot(ticket).words[field as usize].store(value, order.into());
    }

    fn load(&self, word: Word, order: Load) -> u64 {
        self.word(word).load(order.into())
    }

    fn store(&self, word: Word, value: u64, order: Store) {
        self.word(word).store(value, order.into());
    }

    fn settle(&self, fate: u64) -> u64 {
        match self.fate.compare_exchange(0, fate, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fate,
            Err(stands) => stands,
        }
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        self.bed(flag).flag.load(Ordering::Relaxed)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.bed(flag).flag.store(value, Ordering::Relaxed);
    }

    fn fence(&self, kind: Fence) {
        fence(kind.into());
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], _tail: Tail) -> Result<(), OutOfBounds> {
        match to {
            Span::Slot(ticket) => self.slot(ticket).payload.write(at, bytes),
            Span::Arena(place) => {
                self.each(place, at, bytes.len(), |cell, inside, from, len| {
                    cell.write(inside, &bytes[from..from + len]);
                });
            }
        }
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        match from {
            Span::Slot(ticket) => self.slot(ticket).payload.read(at, bytes),
            Span::Arena(place) => {
                self.each(place, at, bytes.len(), |cell, inside, from, len| {
                    cell.read(inside, &mut bytes[from..from + len]);
                });
            }
        }
        Ok(())
    }

    fn wait(&self, flag: Flag, _until: Until, _patience: u32) -> Woke {
        let bed = self.bed(flag);
        let guard = bed.lock.lock().unwrap();
        if bed.flag.load(Ordering::Relaxed) == 1 {
            drop(bed.woken.wait(guard).unwrap());
        }
        Woke::Early
    }

    fn doze(&self, _until: Until) {
        loom::thread::yield_now();
    }

    fn wake(&self, flag: Flag) {
        let bed = self.bed(flag);
        let _guard = bed.lock.lock().unwrap();
        bed.woken.notify_all();
    }

    fn expired(&self, _until: Until) -> bool {
        false
    }
}
