//! Decodes a fuzzer's bytes, from the front, as numbers, choices and ranges.
//!
//! # Invariants
//!
//! 1. Decoding never fails: after the end there are zeros, and each value of a byte is legal.
//! 2. A choice between up to 256 alternatives reads one byte, so that a change of one byte changes one decision.

use narrows::internal::layout::LAST_TICKET;

/// The bytes that are not read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns whether all bytes are read. From then on everything is decoded from zeros.
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

    /// Returns a choice between two alternatives.
    pub(super) fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// Returns true for one of `many` values of the next byte. It is false after the end.
    pub(super) fn rarely(&mut self, many: u8) -> bool {
        self.u8() % many == many - 1
    }

    /// Returns a number less than `bound`, or 0 if `bound` is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let is = if bound <= 256 { usize::from(self.u8()) } else { self.u32() as usize };
        is % bound.max(1)
    }

    /// Returns one of the elements. `from` must not be empty.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Returns any number. Small ones and those near the limits of the library are the most likely.
    pub(super) fn number(&mut self) -> u64 {
        const LIMITS: [u64; 8] = [0, 1 << 26, 1 << 31, 1 << 32, 1 << 62, LAST_TICKET, 1 << 63, u64::MAX];
        match self.u8() % 4 {
            0 => self.u8().into(),
            1 => self.u16().into(),
            2 => self.u64(),
            _ => {
                let limit = self.pick(&LIMITS);
                limit.wrapping_add_signed(i64::from(self.u8()) - 128)
            }
        }
    }

    /// Returns the next bytes unchanged, at most `most` of them.
    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Returns the next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}
