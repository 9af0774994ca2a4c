//! One direction's addresses, to be held in registers for a few steps on end.
//!
//! A load of a shared word may change anything, as far as the compiler knows, so what is reached through a reference is
//! loaded again after each. A copy of the addresses on the stack is not.
//!
//! # Invariants
//!
//! Those of [`Mapping`](super::Mapping), whose addresses these are and which it borrows.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::Mapping;
use crate::layout::{SLOT, SLOT_PAYLOAD, words};
use crate::memory::{
    ARENA_ALIGN, Fence, Field, Flag, INLINE_CAPACITY, Load, Memory, OutOfBounds, Padding, Span, Store, Word,
    forward_memory,
};
use crate::sys::copy;

/// The addresses of a [`Mapping`].
#[derive(Clone, Copy)]
pub(super) struct MappingView<'a> {
    pub(super) words: NonNull<u8>,
    pub(super) slots: NonNull<u8>,
    pub(super) arena: NonNull<u8>,
    pub(super) peer_flag: NonNull<u8>,
    pub(super) mask: u64,
    pub(super) arena_len: usize,
    pub(super) oob_mask: u32,
    pub(super) reason: &'a AtomicU64,
    pub(super) whole: &'a Mapping,
}

impl<'a> MappingView<'a> {
    /// The word at an offset of the words' page; every caller passes a constant of `layout::words`.
    #[inline(always)]
    pub(super) fn at(&self, offset: usize) -> &'a AtomicU64 {
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
    pub(super) fn word(&self, word: Word) -> &'a AtomicU64 {
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
    pub(super) fn flag(&self, flag: Flag) -> &'a AtomicU32 {
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

    /// Where a span starts, if `at + len` bytes of it are in this memory.
    #[inline(always)]
    pub(super) fn validate(&self, span: Span, at: usize, len: usize) -> Result<NonNull<u8>, OutOfBounds> {
        let end = at.checked_add(len).ok_or(OutOfBounds)?;
        match span {
            Span::Slot(ticket) if end <= INLINE_CAPACITY => {
                // SAFETY: the payload of a mapped slot.
                Ok(unsafe { self.slot(ticket).add(SLOT_PAYLOAD) })
            }
            Span::Arena(place) => {
                let start = place as usize * ARENA_ALIGN;
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
        failpoint!(super::testing::load_slot(field));
        self.field(ticket, field).load(order.into())
    }

    #[inline(always)]
    fn store_slot(&self, ticket: u64, field: Field, value: u64, order: Store) {
        failpoint!(super::testing::store_slot(field));
        self.field(ticket, field).store(value, order.into());
    }

    #[inline(always)]
    fn load(&self, word: Word, order: Load) -> u64 {
        failpoint!(super::testing::load(word));
        self.word(word).load(order.into())
    }

    #[inline(always)]
    fn store(&self, word: Word, value: u64, order: Store) {
        failpoint!(super::testing::store(word));
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
        self.whole.begin_copy(base, at, bytes);
        // SAFETY: judged; spans start at multiples of 8 and have a multiple of 8 bytes.
        unsafe { copy::copy_in(base, at, bytes, tail) };
        Ok(())
    }

    #[inline(always)]
    fn copy_out(&self, from: Span, at: usize, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        let base = self.validate(from, at, bytes.len())?;
        failpoint!("copy out");
        // SAFETY: judged; spans start at multiples of 8 and have a multiple of 8 bytes.
        unsafe { copy::copy_out(base, at, bytes) };
        Ok(())
    }

    forward_memory! { self => self.whole; set_close_reason, store_flag, take_flag, wait, back_off, wake, has_expired }

    #[cfg(feature = "testing")]
    fn checked(&self, flag: Flag, upto: u64) {
        self.whole.checked(flag, upto)
    }
}
