//! The memory of a ring, as the ring's code uses it: words, payload spans, fences, and futex-like waits.
//!
//! `ring/` is written against [`Memory`] alone. So the same code runs on a mapped memfd (`sys::Mapping`), in private
//! memory ([`Heap`]), under a model checker, and against a hostile peer.
//!
//! ```text
//!   ring/ ── Memory ──┬── sys::Mapping   a memfd shared with another process, futex
//!                     ├── Heap           private memory, mutex and condition variable
//!                     └── loom-tests     model-checked words, cells and waits
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is addressed by a byte offset. A slot is addressed by its ticket (masked by the memory's *own* mask), a
//!    fixed word by its name, a payload by a [`Span`]. So no call, however wrong its arguments, reaches outside the
//!    memory.
//! 2. A [`Span`] is plain data and may come from another memory. The memory that copies validates it, once per copy.
//! 3. A word has 64 bits and is always accessed whole. The flags have 32 bits, since a futex has 32 bits, and share
//!    their word with nothing.
//! 4. No value of any word makes a method panic.
//!
//! # Proof
//!
//! The fuzz body `memory` (`fuzz/bodies/src/memory.rs`) calls every method with absurd arguments on both
//! implementations, and `fuzz/bodies/tests/replay.rs` runs it. `tests/ring/memory.rs` tests their waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

mod growth;
#[cfg(any(test, feature = "testing"))]
mod heap;
pub use growth::{OutOfMemory, try_reserve, try_resize};
#[cfg(any(test, feature = "testing"))]
pub use heap::Heap;

/// The most bytes of payload that a slot itself holds.
pub const INLINE_CAPACITY: usize = 104;

/// The alignment of a payload in the arena, in bytes.
pub const ARENA_ALIGN: usize = 64;

/// A word of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The slot's seqlock stamp: which ticket is being written or is ready (`ring/` lists the values).
    Stamp,
    /// Length, arena offset and kind of the message, packed.
    Control,
    /// 64 bits that the sender chooses and the receiver gets with the message.
    Tag,
}

/// A fixed word of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The next ticket that the consumer has not released. Written by the consumer.
    Head,
    /// The ticket whose release a sleeping producer waits for. A hint, written by the producer.
    AwaitedTicket,
    /// Not zero once the producer's end is closed. Written by the producer.
    ProducerClosed,
    /// Not zero once the consumer's end is closed. Written by the consumer.
    ConsumerClosed,
    /// Counts the stores to out-of-band (OOB) words. Written by the producer.
    Doorbell,
    /// An OOB word; the index is masked. Written by the producer.
    Oob(u32),
    /// Why the connection has ended, in *private* memory: 0 while it is open, else a `ring::CloseReason`.
    CloseReason,
}

/// A word that a thread of one side sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// The consumer waits for a message.
    Consumer,
    /// The producer waits for space.
    Producer,
    /// The consumer flag of the ring in the other direction. The producer's side sleeps on it while it waits for either
    /// direction. A ring without a partner has a spare flag here.
    PeerConsumer,
}

/// Where a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// In the slot of this ticket, at most [`INLINE_CAPACITY`] bytes.
    Slot(u64),
    /// In the arena, starting at this multiple of [`ARENA_ALIGN`] bytes.
    Arena(u32),
}

/// What a copy does to the remaining bytes of the last word that it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// They are zeroed: the payload ends here, or its next bytes are written later and in order.
    Zero,
    /// They keep their values: bytes behind were already written.
    Keep,
}

/// The ordering of a load. There are no SeqCst accesses: where the protocol needs a total order, it uses a full fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// No ordering.
    Relaxed,
    /// Sees what happened before the Release store that it reads.
    Acquire,
}

/// The ordering of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// No ordering.
    Relaxed,
    /// Publishes what happened before it to the Acquire load that reads it.
    Release,
}

/// A fence between one thread's accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// No later access moves before an earlier load.
    Acquire,
    /// No earlier access moves behind a later store.
    Release,
    /// No access moves across it in either direction.
    Full,
}

impl From<Load> for Ordering {
    #[inline]
    fn from(order: Load) -> Self {
        match order {
            Load::Relaxed => Self::Relaxed,
            Load::Acquire => Self::Acquire,
        }
    }
}

impl From<Store> for Ordering {
    #[inline]
    fn from(order: Store) -> Self {
        match order {
            Store::Relaxed => Self::Relaxed,
            Store::Release => Self::Release,
        }
    }
}

impl From<Fence> for Ordering {
    #[inline]
    fn from(fence: Fence) -> Self {
        match fence {
            Fence::Acquire => Self::Acquire,
            Fence::Release => Self::Release,
            Fence::Full => Self::SeqCst,
        }
    }
}

/// The error for a span, or a range in a span, that is not in this memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds;

/// When a wait ends at the latest; `None` means no deadline.
pub type Deadline = Option<Instant>;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitResult {
    /// The thread was woken or interrupted, or the flag was not 1. The caller checks its condition again.
    Early,
    /// A whole slice of time passed without a wake. The caller checks its condition again and then waits longer.
    Slice,
    /// The deadline passed.
    Deadline,
}

/// One ring's memory, as one side sees it.
///
/// Every method may be called at any time with any argument. If the peer is hostile, a load may return any value. A
/// store only ever changes the word that it names.
pub trait Memory {
    /// Returns a view of the same memory for a few steps in a row. The view's addresses can stay in registers.
    #[inline(always)]
    fn view(&self) -> impl Memory
    where
        Self: Sized,
    {
        self
    }

    /// Returns the number of slots in the index, a power of two from 1 up. It is a private copy and never changes.
    fn slots(&self) -> u64;

    /// Returns the bytes in the arena, a power of two and a multiple of [`ARENA_ALIGN`]. It is a private copy and never
    /// changes.
    fn arena(&self) -> u64;

    /// Loads a word of the slot that `ticket` falls into.
    fn load_slot(&self, ticket: u64, field: Field, order: Load) -> u64;

    /// Stores a word of the slot that `ticket` falls into.
    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store);

    /// Loads a fixed word.
    fn load(&self, word: Word, order: Load) -> u64;

    /// Stores a fixed word.
    fn store(&self, word: Word, value: u64, order: Store);

    /// Sets [`Word::CloseReason`] if it is still zero, and returns the value that it has then. The first reason stays.
    ///
    /// Release on success; Acquire in both cases.
    fn set_close_reason(&self, reason: u64) -> u64;

    /// Loads a flag (Relaxed: the callers' fences order it).
    fn load_flag(&self, flag: Flag) -> u32;

    /// Stores a flag (Relaxed: the callers' fences order it).
    fn store_flag(&self, flag: Flag, value: u32);

    /// Clears a flag and returns its earlier value, in one atomic step (Relaxed: the callers' fences order it).
    fn take_flag(&self, flag: Flag) -> u32;

    /// Makes a fence between this thread's accesses to the words.
    fn fence(&self, fence: Fence);

    /// Copies `bytes` into the span, from `at` bytes behind its start on.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if the range is not in this memory; nothing is copied then.
    fn copy_in(&self, to: Span, at: usize, bytes: &[u8], tail: Padding) -> Result<(), OutOfBounds>;

    /// Copies out of the span into `bytes`, from `at` bytes behind its start.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`] if the range is not in this memory; nothing is copied then.
    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Blocks while the flag is 1: until a [`wake`], or for a slice of time that grows with `patience`, or until the
    /// deadline. The comparison and the start of the sleep are one atomic step with respect to [`wake`].
    ///
    /// [`wake`]: Memory::wake
    fn wait(&self, flag: Flag, deadline: Deadline, patience: u32) -> WaitResult;

    /// Blocks for at most a millisecond. No store or wake of the peer can shorten it, so a loop that calls it costs
    /// bounded CPU.
    fn back_off(&self, deadline: Deadline);

    /// Wakes the thread that sleeps on the flag.
    fn wake(&self, flag: Flag);

    /// Returns whether the deadline has passed.
    fn has_expired(&self, deadline: Deadline) -> bool;

    /// Notes that everything before ticket `upto` is published, and that the flag of its sleeper was checked. For tests
    /// that detect lost wake-ups.
    #[cfg(feature = "testing")]
    fn checked(&self, _flag: Flag, _upto: u64) {}
}

/// Implements methods of [`Memory`] by forwarding to another memory:
/// `forward_memory!(self => self.heap; slots, arena)`.
#[doc(hidden)]
#[cfg_attr(feature = "testing", macro_export)]
macro_rules! forward_memory {
    ($this:ident => $to:expr; $($method:ident),+ $(,)?) => {
        $($crate::internal::memory::forward_memory! { @$method ($this $to) })+
    };
    (@fn ($this:ident $to:expr) $method:ident($($name:ident: $of:ty),*) $(-> $result:ty)?) => {
        #[inline(always)]
        fn $method(&$this $(, $name: $of)*) $(-> $result)? {
            $to.$method($($name),*)
        }
    };
    (@slots $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at slots() -> u64 }
    };
    (@arena $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at arena() -> u64 }
    };
    (@load_slot $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at load_slot(ticket: u64, field: $crate::internal::memory::Field, order: $crate::internal::memory::Load) -> u64
        }
    };
    (@store_slot $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at store_slot(ticket: u64, field: $crate::internal::memory::Field, value: u64, order: $crate::internal::memory::Store)
        }
    };
    (@load $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at load(word: $crate::internal::memory::Word, order: $crate::internal::memory::Load) -> u64 }
    };
    (@store $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at store(word: $crate::internal::memory::Word, value: u64, order: $crate::internal::memory::Store)
        }
    };
    (@set_close_reason $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at set_close_reason(reason: u64) -> u64 }
    };
    (@load_flag $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at load_flag(flag: $crate::internal::memory::Flag) -> u32 }
    };
    (@store_flag $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at store_flag(flag: $crate::internal::memory::Flag, value: u32) }
    };
    (@take_flag $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at take_flag(flag: $crate::internal::memory::Flag) -> u32 }
    };
    (@fence $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at fence(fence: $crate::internal::memory::Fence) }
    };
    (@copy_in $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at copy_in(
                to: $crate::internal::memory::Span, at: usize, bytes: &[u8], tail: $crate::internal::memory::Padding
            ) -> Result<(), $crate::internal::memory::OutOfBounds>
        }
    };
    (@copy_out $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at copy_out(
                from: $crate::internal::memory::Span, at: usize, bytes: &mut [u8]
            ) -> Result<(), $crate::internal::memory::OutOfBounds>
        }
    };
    (@wait $at:tt) => {
        $crate::internal::memory::forward_memory! {
            @fn $at wait(
                flag: $crate::internal::memory::Flag, deadline: $crate::internal::memory::Deadline, patience: u32
            ) -> $crate::internal::memory::WaitResult
        }
    };
    (@back_off $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at back_off(deadline: $crate::internal::memory::Deadline) }
    };
    (@wake $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at wake(flag: $crate::internal::memory::Flag) }
    };
    (@has_expired $at:tt) => {
        $crate::internal::memory::forward_memory! { @fn $at has_expired(deadline: $crate::internal::memory::Deadline) -> bool }
    };
}
#[cfg(feature = "testing")]
pub use forward_memory;
#[cfg(not(feature = "testing"))]
pub(crate) use forward_memory;

/// Implements [`Memory`] for pointers to a memory.
macro_rules! forward_refs {
    ($($pointer:ty),+) => {$(
        impl<M: Memory> Memory for $pointer {
            forward_memory! {
                self => (**self);
                slots, arena, load_slot, store_slot, load, store, set_close_reason, load_flag, store_flag, take_flag, fence,
                copy_in, copy_out, wait, back_off, wake, has_expired,
            }

            #[cfg(feature = "testing")]
            fn checked(&self, flag: Flag, upto: u64) {
                (**self).checked(flag, upto)
            }
        }
    )+};
}

forward_refs!(&M, Arc<M>);
