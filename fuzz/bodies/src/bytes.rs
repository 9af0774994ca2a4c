//! What a fuzzer's bytes mean: numbers, choices and ranges, read from the front.
//!
//! # Invariants
//!
//! 1. Total: behind the end there are zeros, and every number is a legal answer.
//! 2. Small choices take one byte, so that changing one byte changes one decision.

use narrows::internal::layout::LAST_TICKET;

/// The bytes that were not read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all that comes now is zeros.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Whether a choice with two sides falls on the second.
    pub(super) fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// Whether a choice falls on the one of `many` that is not the first.
    pub(super) fn rarely(&mut self, many: u8) -> bool {
        self.u8() % many == many - 1
    }

    /// A number less than `bound`, or 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let is = if bound <= 256 { usize::from(self.u8()) } else { self.u32() as usize };
        is % bound.max(1)
    }

    /// One of these, of which there is at least one.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number from everywhere, most often a small one or one near a border.
    pub(super) fn number(&mut self) -> u64 {
        const BORDERS: [u64; 8] = [0, 1 << 26, 1 << 31, 1 << 32, 1 << 62, LAST_TICKET, 1 << 63, u64::MAX];
        match self.u8() % 4 {
            0 => self.u8().into(),
            1 => self.u16().into(),
            2 => self.u64(),
            _ => {
                let border = self.pick(&BORDERS);
                border.wrapping_add_signed(i64::from(self.u8()) - 128)
            }
        }
    }

    /// The next bytes as they are, at most so many.
    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}
