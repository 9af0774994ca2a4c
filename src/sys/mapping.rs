//! The memory of one direction of one connection: words of a mapped memfd, and shared futexes.
//!
//! # Invariants
//!
//! 1. Every address is made from the private geometry, and masked or checked here. `ConnectionInner::establish` has
//!    checked that the region holds the whole geometry. So no argument leads out of the mapping.
//! 2. The only references made into the mapping are `&AtomicU64` and `&AtomicU32` of single words.
//! 3. The connection, and with it the mapping, outlives this object, which holds it by `Arc`.
//! 4. The caller has checked that this is still the process that mapped it.
//!
//! # Proof
//!
//! The fuzz body `memory` (`fuzz/bodies/src/memory.rs`) calls all methods with arguments out of range, and compares
//! every byte of the region. `mapping/tests.rs` sleeps and wakes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::connection::ConnectionInner;
use super::copy;
use super::futex;
use super::raw_span::RawSpan;
use super::wait_counters::WaitCounters;
use crate::layout::{SLOT, SLOT_PAYLOAD, words};
use crate::memory::{
    ARENA_ALIGN, Deadline, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span,
    Store, WaitResult, Word, forward_memory,
};

const FIRST_SLICE: Duration = Duration::from_millis(100);
const LONGEST_DOUBLING: u32 = 5;
const BACK_OFF: Duration = Duration::from_micros(500);

/// One direction of one connection.
pub(crate) struct Mapping {
    words: NonNull<u8>,
    slots: NonNull<u8>,
    arena: NonNull<u8>,
    peer_flag: NonNull<u8>,
    mask: u64,
    arena_len: usize,
    oob_mask: u32,
    outgoing: bool,
    connection: Arc<ConnectionInner>,
}

// SAFETY: the pointers lead into the mapping that `connection` keeps. The mapping is not bound to a thread, and all
// accesses are atomic or by the copy routines, whose ranges the ring gives to one side at a time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// One of the two sides of a ring, for the words that each side publishes about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingRole {
    Producer,
    Consumer,
}

impl Mapping {
    /// Creates the memory of one direction (0 or 1) of a connection.
    pub(crate) fn new(connection: Arc<ConnectionInner>, direction: usize) -> Self {
        let geometry = connection.geometry();
        let (this, other) = (geometry.direction(direction), geometry.direction(1 - direction.min(1)));
        let base = connection.region().base();
        // SAFETY: all four offsets are less than `region_len`, which `ConnectionInner::establish` has checked against
        // the region.
        let at = |offset| unsafe { base.add(offset) };
        Self {
            words: at(this.words),
            slots: at(this.slots),
            arena: at(this.arena),
            peer_flag: at(other.words + words::CONSUMER_FLAG),
            mask: u64::from(geometry.slots()) - 1,
            arena_len: usize::try_from(geometry.arena()).unwrap_or(0),
            oob_mask: geometry.oob() - 1,
            outgoing: direction == connection.side().outgoing(),
            connection,
        }
    }

    /// Returns the connection of this direction.
    pub(crate) fn connection(&self) -> &Arc<ConnectionInner> {
        &self.connection
    }

    /// Publishes the CPU of this side, as a hint for the peer.
    pub(crate) fn publish_cpu(&self, me: RingRole, cpu: u64) {
        failpoint!("store cpu");
        self.at(cpu_word(me)).store(cpu, Ordering::Relaxed);
    }

    /// Returns the CPU that the peer has published, plus one; 0 if it has published none.
    pub(crate) fn peer_cpu(&self, me: RingRole) -> u64 {
        let peer = match me {
            RingRole::Producer => RingRole::Consumer,
            RingRole::Consumer => RingRole::Producer,
        };
        self.at(cpu_word(peer)).load(Ordering::Relaxed)
    }

    /// Returns how long ago the peer woke this side, by the time that the peer has published; `None` if that time is in
    /// the future.
    pub(crate) fn woken_for(&self, me: RingRole) -> Option<Duration> {
        let at = Duration::from_nanos(self.at(woken_word(me)).load(Ordering::Relaxed));
        futex::monotonic_now().checked_sub(at)
    }

    /// Returns the counters of this direction.
    pub(crate) fn activity(&self) -> &WaitCounters {
        self.connection.wait_counters(self.outgoing)
    }

    /// Returns the bytes of a span in place, or `None` if they are not within this memory.
    pub(crate) fn raw(&self, span: Span, at: usize, len: usize) -> Option<RawSpan<'_>> {
        let base = self.view().validate(span, at, len).ok()?;
        // SAFETY: the range is validated, and the mapping lives as long as `self`. References to payload are made only
        // through the span that is made here.
        Some(unsafe { RawSpan::new(base.add(at), len) })
    }

    #[inline(always)]
    fn view(&self) -> MappingView<'_> {
        let Self { words, slots, arena, peer_flag, mask, arena_len, oob_mask, .. } = *self;
        MappingView {
            words,
            slots,
            arena,
            peer_flag,
            mask,
            arena_len,
            oob_mask,
            reason: self.connection.close_reason(),
            whole: self,
        }
    }

    fn at(&self, offset: usize) -> &AtomicU64 {
        self.view().at(offset)
    }

    fn flag(&self, flag: Flag) -> &AtomicU32 {
        self.view().flag(flag)
    }

    /// Returns whether this side sleeps on the flag, and not the peer.
    fn is_ours(&self, flag: Flag) -> bool {
        self.outgoing == matches!(flag, Flag::Producer | Flag::PeerConsumer)
    }
}

fn cpu_word(role: RingRole) -> usize {
    match role {
        RingRole::Producer => words::PRODUCER_CPU,
        RingRole::Consumer => words::CONSUMER_CPU,
    }
}

fn woken_word(role: RingRole) -> usize {
    match role {
        RingRole::Producer => words::PRODUCER_WOKEN,
        RingRole::Consumer => words::CONSUMER_WOKEN,
    }
}

impl Memory for Mapping {
    #[inline(always)]
    fn view(&self) -> impl Memory {
        self.view()
    }

    forward_memory! {
        self => self.view();
        slots, arena, load_slot, store_slot, load, store, load_flag, fence, copy_in, copy_out,
    }

    fn set_close_reason(&self, reason: u64) -> u64 {
        failpoint!("set the close reason");
        // pairs with the Acquire loads of CloseReason in `ring/`.
        match self.connection.close_reason().compare_exchange(0, reason, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => reason,
            Err(earlier) => earlier,
        }
    }

    #[inline(always)]
    fn store_flag(&self, flag: Flag, value: u32) {
        failpoint!("store flag");
        self.flag(flag).store(value, Ordering::Relaxed);
    }

    fn take_flag(&self, flag: Flag) -> u32 {
        failpoint!("take flag");
        self.flag(flag).swap(0, Ordering::Relaxed)
    }

    fn wait(&self, flag: Flag, deadline: Deadline, patience: u32) -> WaitResult {
        self.activity().count_sleep();
        let slice = FIRST_SLICE * (1 << patience.min(LONGEST_DOUBLING));
        failpoint!("wait");
        #[cfg(feature = "testing")]
        let began = futex::monotonic_now();
        let woke = futex::wait(self.flag(flag), deadline, slice);
        failpoint!("woken");
        match woke {
            WaitResult::Early => {}
            // A thread with short timeouts may never sleep for a whole slice.
            WaitResult::Deadline => self.connection.check_monitor_thread(),
            WaitResult::Slice => {
                self.connection.check_monitor();
                #[cfg(feature = "testing")]
                self.slept_through(flag, began, slice);
            }
        }
        woke
    }

    fn back_off(&self, deadline: Deadline) {
        let left = deadline.map_or(BACK_OFF, |t| t.saturating_duration_since(Instant::now()));
        std::thread::sleep(left.min(BACK_OFF));
    }

    fn wake(&self, flag: Flag) {
        failpoint!(steps::wake(flag));
        self.activity().count_wake();
        let now = u64::try_from(futex::monotonic_now().as_nanos()).unwrap_or(0);
        match flag {
            Flag::Consumer => self.at(words::CONSUMER_WOKEN).store(now, Ordering::Relaxed),
            Flag::Producer => self.at(words::PRODUCER_WOKEN).store(now, Ordering::Relaxed),
            Flag::PeerConsumer => {}
        }
        failpoint!("futex wake");
        // On a flag of the peer one sleeper is woken: it needs no more, and further sleepers there would cost us time
        // at each wake. On a flag of our own all are woken: the peer may have put sleepers in front of ours.
        futex::wake(self.flag(flag), if self.is_ours(flag) { i32::MAX } else { 1 });
    }

    #[cfg(feature = "testing")]
    fn checked(&self, flag: Flag, upto: u64) {
        self.note(flag, upto);
    }

    fn has_expired(&self, deadline: Deadline) -> bool {
        deadline.is_some_and(|t| Instant::now() >= t)
    }
}

/// The addresses of a [`Mapping`], copied to be held in registers for a few steps.
///
/// After each access to a shared word, the compiler must assume that memory behind a reference has changed, and loads
/// it again. It does not load a local copy again.
#[derive(Clone, Copy)]
struct MappingView<'a> {
    words: NonNull<u8>,
    slots: NonNull<u8>,
    arena: NonNull<u8>,
    peer_flag: NonNull<u8>,
    mask: u64,
    arena_len: usize,
    oob_mask: u32,
    reason: &'a AtomicU64,
    whole: &'a Mapping,
}

impl<'a> MappingView<'a> {
    /// Returns the word at an offset of the words' page. Every caller passes a constant of `layout::words`.
    #[inline(always)]
    fn at(&self, offset: usize) -> &'a AtomicU64 {
        debug_assert!(offset + 8 <= 4096);
        // SAFETY: `words` is the start of a whole mapped page and all offsets in use are 8-aligned
        // and less than a page.
        unsafe { AtomicU64::from_ptr(self.words.add(offset).cast().as_ptr()) }
    }

    #[inline(always)]
    fn slot(&self, ticket: u64) -> NonNull<u8> {
        let index = usize::try_from(ticket & self.mask).unwrap_or(0);
        // SAFETY: masked by the number of slots, each of `SLOT` bytes, all mapped.
        unsafe { self.slots.add(index * SLOT) }
    }

    #[inline(always)]
    fn field(&self, ticket: u64, field: Field) -> &'a AtomicU64 {
        let offset = match field {
            Field::Stamp => 0,
            Field::Control => 8,
            Field::Tag => 16,
        };
        // SAFETY: the first three words of a mapped slot, which is 128-aligned.
        unsafe { AtomicU64::from_ptr(self.slot(ticket).add(offset).cast().as_ptr()) }
    }

    #[inline(always)]
    fn word(&self, word: Word) -> &'a AtomicU64 {
        match word {
            Word::Head => self.at(words::HEAD),
            Word::AwaitedTicket => self.at(words::AWAITED_TICKET),
            Word::ProducerClosed => self.at(words::PRODUCER_CLOSED),
            Word::ConsumerClosed => self.at(words::CONSUMER_CLOSED),
            Word::Doorbell => self.at(words::DOORBELL),
            Word::Oob(index) => self.at(words::OOB + (index & self.oob_mask) as usize * 8),
            Word::CloseReason => self.reason,
        }
    }

    #[inline(always)]
    fn flag(&self, flag: Flag) -> &'a AtomicU32 {
        let at = match flag {
            // SAFETY: the offset is in the words' page, which is mapped whole.
            Flag::Consumer => unsafe { self.words.add(words::CONSUMER_FLAG) },
            // SAFETY: as above.
            Flag::Producer => unsafe { self.words.add(words::PRODUCER_FLAG) },
            Flag::PeerConsumer => self.peer_flag,
        };
        // SAFETY: mapped, 128-aligned by the layout, and only ever accessed as these 32 bits.
        unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) }
    }

    /// Returns where a span starts, if `at + len` bytes of it are within this memory.
    #[inline(always)]
    fn validate(&self, span: Span, at: usize, len: usize) -> Result<NonNull<u8>, OutOfBounds> {
        let end = at.checked_add(len).ok_or(OutOfBounds)?;
        match span {
            Span::Slot(ticket) if end <= INLINE_CAPACITY => {
                // SAFETY: the payload of a mapped slot.
                Ok(unsafe { self.slot(ticket).add(SLOT_PAYLOAD) })
            }
            Span::Arena(unit) => {
                let start = unit as usize * ARENA_ALIGN;
                if end > self.arena_len || start > self.arena_len - end {
                    return Err(OutOfBounds);
                }
                // SAFETY: `start + end` is at most the arena's length.
                Ok(unsafe { self.arena.add(start) })
            }
            Span::Slot(_) => Err(OutOfBounds),
        }
    }
}

impl Memory for MappingView<'_> {
    #[inline(always)]
    fn slots(&self) -> u64 {
        self.mask + 1
    }

    #[inline(always)]
    fn arena(&self) -> u64 {
        self.arena_len as u64
    }

    #[inline(always)]
    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64 {
        failpoint!(steps::load_slot(field));
        self.field(ticket, field).load(order.into())
    }

    #[inline(always)]
    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        failpoint!(steps::store_slot(field));
        self.field(ticket, field).store(value, order.into());
    }

    #[inline(always)]
    fn load(&self, word: Word, order: Load) -> u64 {
        failpoint!(steps::load(word));
        self.word(word).load(order.into())
    }

    #[inline(always)]
    fn store(&self, word: Word, value: u64, order: Store) {
        failpoint!(steps::store(word));
        self.word(word).store(value, order.into());
    }

    #[inline(always)]
    fn load_flag(&self, flag: Flag) -> u32 {
        failpoint!("load flag");
        self.flag(flag).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn fence(&self, kind: Fence) {
        failpoint!("fence");
        fence(kind.into());
    }

    #[inline(always)]
    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Padding) -> Result<(), OutOfBounds> {
        let base = self.validate(to, at, bytes.len())?;
        failpoint!("copy in");
        #[cfg(feature = "testing")]
        steps::begin_copy(base, at, bytes);
        // SAFETY: the range is validated; spans start at multiples of 8 and have a multiple of 8 bytes.
        unsafe { copy::copy_in(base, at, bytes, tail) };
        Ok(())
    }

    #[inline(always)]
    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let base = self.validate(from, at, bytes.len())?;
        failpoint!("copy out");
        // SAFETY: the range is validated; spans start at multiples of 8 and have a multiple of 8 bytes.
        unsafe { copy::copy_out(base, at, bytes) };
        Ok(())
    }

    forward_memory! { self => self.whole; set_close_reason, store_flag, take_flag, wait, back_off, wake, has_expired }

    #[cfg(feature = "testing")]
    fn checked(&self, flag: Flag, upto: u64) {
        self.whole.checked(flag, upto)
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("connection", &self.connection).finish_non_exhaustive()
    }
}

#[cfg(feature = "testing")]
mod steps;
#[cfg(feature = "testing")]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
