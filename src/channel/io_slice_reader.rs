//! Reads several slices as one message.

use std::io::IoSlice;

/// Reads bytes from several slices as if they were one.
#[derive(Debug)]
pub struct IoSliceReader<'a> {
    parts: &'a [IoSlice<'a>],
    at: usize,
}

impl<'a> IoSliceReader<'a> {
    /// Makes a reader at the start of the first slice.
    #[inline]
    pub fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { parts, at: 0 }
    }

    /// Returns the next bytes that are contiguous, at most `most`, or `None` at the end.
    #[inline(always)]
    pub(super) fn take(&mut self, most: usize) -> Option<&'a [u8]> {
        loop {
            let (first, rest) = self.parts.split_first()?;
            let left = first.get(self.at..).unwrap_or(&[]);
            if left.is_empty() {
                (self.parts, self.at) = (rest, 0);
                continue;
            }
            let taken = left.get(..most).unwrap_or(left);
            self.at += taken.len();
            return Some(taken);
        }
    }
}
