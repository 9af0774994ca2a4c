//! The shared memory in a form that loom checks. It implements the trait that the shipped ring is written against.
//!
//! ```text
//!   Side ── out, into: View<S> ──┬── words       loom atomics
//!                                ├── wait slots  a loom mutex and condition variable for each flag
//!                                └── spans: S ───┬── Cells   loom cells: any race fails the model
//!                                                ├── Words   relaxed words: a hostile peer may race
//!                                                └── Plain   for a single thread
//! ```
//!
//! # Invariants
//!
//! 1. Compare and sleep are one step with respect to a wake, as the kernel promises for a futex: both hold the mutex of the
//!    wait slot.
//! 2. Nothing lives longer than one execution, and only loom's own primitives are shared.

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use narrows::internal::memory::{
    ARENA_ALIGN, Deadline, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span,
    Store, WaitResult, Word,
};
use narrows::internal::ring::Producer;

mod lock;
mod spans;
mod stale_head;

pub use lock::{LoomCondvar, LoomFlag, LoomLock, LoomSync};
pub use spans::{Cells, Plain, Spans, Words};
pub use stale_head::StaleHead;

use crate::mutation;

/// The memory of well-formed peers: spans are cells, so that a missing Release or Acquire shows as a race.
///
/// It omits a hostile peer (whose writes would be races), time (a [`Clock`] stands in for it), the kernel, real shared mappings,
/// load buffering, and more than a few threads.
pub type Model = View<Cells>;

/// The memory of a hostile peer: spans are relaxed words, so that a producer may overwrite what is being read.
///
/// It omits what [`Model`] omits. It shows no missing Release or Acquire of a well-formed peer, since relaxed accesses never
/// race.
pub type RacyModel = View<Words>;

/// One ring, as both sides share it.
#[derive(Debug)]
struct Ring<S> {
    slots: Vec<Slot<S>>,
    arena: S,
    words: [AtomicU64; 7],
    consumer: Arc<WaitSlot>,
    producer: WaitSlot,
    /// The counts are not part of the model, so loom does not see them.
    wakes: [std::sync::atomic::AtomicU32; 3],
}

#[derive(Debug)]
struct Slot<S> {
    words: [AtomicU64; 3],
    payload: S,
}

#[derive(Debug)]
struct WaitSlot {
    flag: AtomicU32,
    lock: Mutex<()>,
    woken: Condvar,
}

/// One side's view of a ring.
#[derive(Debug)]
pub struct View<S> {
    ring: Arc<Ring<S>>,
    peer_flag: Arc<WaitSlot>,
    reason: Arc<AtomicU64>,
    expired: Arc<AtomicU32>,
    arena: u64,
}

/// One side of a connection: where it sends, and where it receives.
#[derive(Debug)]
pub struct Side<S> {
    /// The ring that this side sends into.
    pub out: View<S>,
    /// The ring that this side receives from.
    pub into: View<S>,
}

/// Makes one side's deadlines pass. Time does not pass otherwise.
#[derive(Debug)]
pub struct Clock<S>(Side<S>);

/// Returns both sides of a new connection.
pub fn connection<S: Spans>(slots: usize, arena: usize) -> (Side<S>, Side<S>) {
    let (there, back) = (Arc::new(Ring::new(slots, arena)), Arc::new(Ring::new(slots, arena)));
    let side = |out: &Arc<Ring<S>>, into: &Arc<Ring<S>>| {
        let (reason, expired) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU32::new(0)));
        let view = |ring: &Arc<Ring<S>>, other: &Arc<Ring<S>>| View {
            ring: ring.clone(),
            peer_flag: other.consumer.clone(),
            reason: reason.clone(),
            expired: expired.clone(),
            arena: arena as u64,
        };
        Side { out: view(out, into), into: view(into, out) }
    };
    let (a, b) = (side(&there, &back), side(&back, &there));
    Producer::format(&a.out, 0);
    Producer::format(&b.out, 0);
    (a, b)
}

impl<S> Clone for View<S> {
    fn clone(&self) -> Self {
        Self {
            ring: self.ring.clone(),
            peer_flag: self.peer_flag.clone(),
            reason: self.reason.clone(),
            expired: self.expired.clone(),
            arena: self.arena,
        }
    }
}

impl<S> Clone for Side<S> {
    fn clone(&self) -> Self {
        Self { out: self.out.clone(), into: self.into.clone() }
    }
}

impl<S: Spans> Side<S> {
    /// Returns the clock that makes this side's deadlines pass.
    pub fn clock(&self) -> Clock<S> {
        Clock(self.clone())
    }
}

impl<S: Spans> Clock<S> {
    /// Makes all deadlines of the side pass.
    pub fn expire(self) {
        self.0.out.expired.store(1, Ordering::Relaxed);
        for wait_slot in [self.0.into.wait_slot(Flag::Consumer), self.0.out.wait_slot(Flag::Producer)] {
            // The lock excludes a thread between its check of the clock and its sleep.
            let _guard = wait_slot.lock.lock().unwrap();
            wait_slot.woken.notify_all();
        }
    }
}

impl<S: Spans> Ring<S> {
    fn new(slots: usize, arena: usize) -> Self {
        let zero = || AtomicU64::new(0);
        let slot = || Slot { words: [zero(), zero(), zero()], payload: S::new(INLINE_CAPACITY) };
        Self {
            slots: (0..slots).map(|_| slot()).collect(),
            arena: S::new(arena),
            words: [zero(), zero(), zero(), zero(), zero(), zero(), zero()],
            consumer: Arc::new(WaitSlot::new()),
            producer: WaitSlot::new(),
            wakes: Default::default(),
        }
    }
}

impl WaitSlot {
    fn new() -> Self {
        Self { flag: AtomicU32::new(0), lock: Mutex::new(()), woken: Condvar::new() }
    }
}

impl<S: Spans> View<S> {
    /// Returns how often a flag's sleeper was woken, by either side.
    pub fn wakes(&self, flag: Flag) -> u32 {
        self.ring.wakes[flag as usize].load(Ordering::Relaxed)
    }

    fn slot(&self, ticket: u64) -> &Slot<S> {
        let mask = self.ring.slots.len() as u64 - 1;
        &self.ring.slots[usize::try_from(ticket & mask).unwrap()]
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        match word {
            Word::Head => &self.ring.words[0],
            Word::AwaitedTicket => &self.ring.words[1],
            Word::ProducerClosed => &self.ring.words[2],
            Word::ConsumerClosed => &self.ring.words[3],
            Word::Doorbell => &self.ring.words[4],
            Word::Oob(index) => &self.ring.words[5 + index as usize % 2],
            Word::CloseReason => &self.reason,
        }
    }

    fn wait_slot(&self, flag: Flag) -> &WaitSlot {
        match flag {
            Flag::Consumer => &self.ring.consumer,
            Flag::Producer => &self.ring.producer,
            Flag::PeerConsumer => &self.peer_flag,
        }
    }

    /// Returns the bytes that a range of a span is in, and its offset there.
    fn range(&self, span: Span, at: usize, len: usize) -> Result<(&S, usize), OutOfBounds> {
        let (bytes, start, size) = match span {
            Span::Slot(ticket) => (&self.slot(ticket).payload, 0, INLINE_CAPACITY as u64),
            Span::Arena(unit) => (&self.ring.arena, unit as usize * ARENA_ALIGN, self.arena),
        };
        let from = start + at;
        if (from + len) as u64 > size { Err(OutOfBounds) } else { Ok((bytes, from)) }
    }
}

impl<S: Spans> Memory for View<S> {
    fn slots(&self) -> u64 {
        self.ring.slots.len() as u64
    }

    fn arena(&self) -> u64 {
        self.arena
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

    fn set_close_reason(&self, reason: u64) -> u64 {
        match self.reason.compare_exchange(0, reason, mutation::close_reason_order(), Ordering::Acquire) {
            Ok(_) => reason,
            Err(earlier) => earlier,
        }
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        self.wait_slot(flag).flag.load(Ordering::Relaxed)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        // A swap keeps the stores of a flag in one order, as on every machine. Loom keeps only a partial order of plain stores,
        // in which a swap may miss an earlier store.
        self.wait_slot(flag).flag.swap(value, Ordering::Relaxed);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.wait_slot(flag).flag.swap(0, Ordering::Relaxed)
    }

    fn fence(&self, kind: Fence) {
        fence(kind.into());
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], _tail: Padding) -> Result<(), OutOfBounds> {
        let (span, start) = self.range(to, at, bytes.len())?;
        span.write(start, bytes);
        Ok(())
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let (span, start) = self.range(from, at, bytes.len())?;
        span.read(start, bytes);
        Ok(())
    }

    fn wait(&self, flag: Flag, deadline: Deadline, _patience: u32) -> WaitResult {
        let wait_slot = self.wait_slot(flag);
        let guard = wait_slot.lock.lock().unwrap();
        if self.has_expired(deadline) {
            return WaitResult::Deadline;
        }
        if wait_slot.flag.load(Ordering::Relaxed) == 1 {
            drop(wait_slot.woken.wait(guard).unwrap());
        }
        if self.has_expired(deadline) { WaitResult::Deadline } else { WaitResult::Early }
    }

    fn back_off(&self, _deadline: Deadline) {
        loom::thread::yield_now();
    }

    fn wake(&self, flag: Flag) {
        self.ring.wakes[flag as usize].fetch_add(1, Ordering::Relaxed);
        let wait_slot = self.wait_slot(flag);
        let _guard = wait_slot.lock.lock().unwrap();
        wait_slot.woken.notify_all();
    }

    fn has_expired(&self, deadline: Deadline) -> bool {
        deadline.is_some() && self.expired.load(Ordering::Relaxed) != 0
    }
}
