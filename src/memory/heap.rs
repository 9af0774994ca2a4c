//! A ring in private memory, in safe code: for examples, tests and as a reference.
//!
//! Both ends hold an `Arc` of it. Each flag has a mutex and a condition variable. The mutex makes the comparison and
//! the start of the sleep one atomic step with respect to a wake, as the kernel's futex does.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{
    ARENA_ALIGN, Deadline, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span,
    Store, WaitResult, Word,
};

const SLOT_WORDS: usize = 16;
const SLICE: Duration = Duration::from_millis(100);

/// One ring in private memory.
#[derive(Debug)]
pub struct Heap {
    slots: Box<[[AtomicU64; SLOT_WORDS]]>,
    arena: Box<[AtomicU64]>,
    oob: Box<[AtomicU64]>,
    words: [AtomicU64; 6],
    flags: [FlagWaiters; 3],
}

#[derive(Debug, Default)]
struct FlagWaiters {
    flag: AtomicU32,
    lock: Mutex<()>,
    woken: Condvar,
}

impl Heap {
    /// Makes a zeroed ring; each size is rounded up to a power of two that a ring can have.
    pub fn new(slots: usize, arena: usize, oob: usize) -> Self {
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            slots: (0..slots.next_power_of_two())
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
            arena: words(arena.max(ARENA_ALIGN).next_power_of_two() / 8),
            oob: words(oob.next_power_of_two()),
            words: Default::default(),
            flags: Default::default(),
        }
    }

    fn slot(&self, ticket: u64) -> &[AtomicU64; SLOT_WORDS] {
        let mask = self.slots.len() as u64 - 1;
        #[expect(clippy::cast_possible_truncation, reason = "masked by the number of slots")]
        &self.slots[(ticket & mask) as usize]
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        match word {
            Word::Head => &self.words[0],
            Word::AwaitedTicket => &self.words[1],
            Word::ProducerClosed => &self.words[2],
            Word::ConsumerClosed => &self.words[3],
            Word::Doorbell => &self.words[4],
            Word::CloseReason => &self.words[5],
            Word::Oob(index) => &self.oob[index as usize & (self.oob.len() - 1)],
        }
    }

    fn waiters(&self, flag: Flag) -> &FlagWaiters {
        match flag {
            Flag::Consumer => &self.flags[0],
            Flag::Producer => &self.flags[1],
            Flag::PeerConsumer => &self.flags[2],
        }
    }

    /// Returns the words of a span, from its first word to the end of its slot or of the arena.
    fn span(&self, span: Span) -> Result<&[AtomicU64], OutOfBounds> {
        match span {
            Span::Slot(ticket) => Ok(&self.slot(ticket)[3..3 + INLINE_CAPACITY / 8]),
            Span::Arena(offset) => self.arena.get(offset as usize * (ARENA_ALIGN / 8)..).ok_or(OutOfBounds),
        }
    }

    /// Visits each word that a range touches. `each` gets the word, the range of bytes in the word, and the range of
    /// the copied bytes.
    fn visit(
        &self,
        span: Span,
        at: usize,
        len: usize,
        mut each: impl FnMut(&AtomicU64, std::ops::Range<usize>, std::ops::Range<usize>),
    ) -> Result<(), OutOfBounds> {
        let words = self.span(span)?;
        let end = at.checked_add(len).filter(|end| *end <= words.len() * 8).ok_or(OutOfBounds)?;
        let mut from = at;
        while from < end {
            let to = ((from / 8 + 1) * 8).min(end);
            let base = from / 8 * 8;
            each(&words[from / 8], from - base..to - base, from - at..to - at);
            from = to;
        }
        Ok(())
    }
}

impl Memory for Heap {
    fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    fn arena(&self) -> u64 {
        self.arena.len() as u64 * 8
    }

    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        self.slot(ticket)[field as usize].load(order.into())
    }

    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        self.slot(ticket)[field as usize].store(value, order.into());
    }

    fn load(&self, word: Word, order: Load) -> u64 {
        self.word(word).load(order.into())
    }

    fn store(&self, word: Word, value: u64, order: Store) {
        self.word(word).store(value, order.into());
    }

    fn set_close_reason(&self, reason: u64) -> u64 {
        // Pairs with the Acquire load of the close reason in `closed`.
        match self.word(Word::CloseReason).compare_exchange(0, reason, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => reason,
            Err(earlier) => earlier,
        }
    }

    fn load_flag(&self, flag: Flag) -> u32 {
        self.waiters(flag).flag.load(Ordering::Relaxed)
    }

    fn store_flag(&self, flag: Flag, value: u32) {
        self.waiters(flag).flag.store(value, Ordering::Relaxed);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        self.waiters(flag).flag.swap(0, Ordering::Relaxed)
    }

    fn fence(&self, kind: Fence) {
        fence(kind.into());
    }

    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Padding) -> Result<(), OutOfBounds> {
        let last = bytes.len();
        self.visit(to, at, bytes.len(), |word, inside, range| {
            let mut value = word.load(Ordering::Relaxed).to_le_bytes();
            if tail == Padding::Zero && range.end == last {
                value[inside.end..].fill(0);
            }
            value[inside].copy_from_slice(&bytes[range]);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        })
    }

    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        self.visit(from, at, bytes.len(), |word, inside, range| {
            bytes[range].copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes()[inside]);
        })
    }

    fn wait(&self, flag: Flag, deadline: Deadline, _patience: u32) -> WaitResult {
        let wait_slot = self.waiters(flag);
        let guard = wait_slot.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if wait_slot.flag.load(Ordering::Relaxed) != 1 {
            return WaitResult::Early;
        }
        let left = deadline.map(|t| t.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return WaitResult::Deadline;
        }
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        let (_guard, result) =
            wait_slot.woken.wait_timeout(guard, slice).unwrap_or_else(PoisonError::into_inner);
        match result.timed_out() {
            false => WaitResult::Early,
            true if self.has_expired(deadline) => WaitResult::Deadline,
            true => WaitResult::Slice,
        }
    }

    fn back_off(&self, _deadline: Deadline) {
        std::thread::sleep(Duration::from_micros(200));
    }

    fn wake(&self, flag: Flag) {
        let wait_slot = self.waiters(flag);
        // A sleeper that has compared the flag holds the lock until it waits on the condition variable.
        drop(wait_slot.lock.lock().unwrap_or_else(PoisonError::into_inner));
        wait_slot.woken.notify_all();
    }

    fn has_expired(&self, deadline: Deadline) -> bool {
        deadline.is_some_and(|t| Instant::now() >= t)
    }
}
