//! Fragmentation and reassembly of items. An item is a request, a reply, a chunk or a push.
//!
//! # Invariants
//!
//! 1. Memory grows with the bytes that have arrived, never with a length that was announced.
//! 2. At most one item of an id and direction is under way. No part of it is visible before it is complete.
//! 3. An item for which there is no memory is counted to its end like any other, and marked as lost.
//!
//! # Proof
//!
//! The tests below; fuzz `calls`.

use std::ops::Range;

use super::wire::{FrameHeader, FrameKind, MORE};
use crate::error::ProtocolViolation;
use crate::memory::try_resize;

/// The capacity that a reused buffer keeps: one huge item must not hold its memory indefinitely. An item of 256 KiB,
/// with a deadline before it, is not huge.
pub(super) const MAX_KEPT: usize = (256 << 10) + 64;

/// An outgoing item: its first header, its length, and how many of its bytes were sent.
#[derive(Clone, Copy, Debug)]
pub struct Fragmenter {
    first: FrameHeader,
    len: usize,
    at: usize,
}

impl Fragmenter {
    /// Returns the fragmenter of an item of `len` bytes, whose first frame has this header.
    pub fn new(first: FrameHeader, len: usize) -> Self {
        Self { first, len, at: 0 }
    }

    /// Returns whether no byte of the item was sent.
    pub fn is_unsent(&self) -> bool {
        self.at == 0
    }

    /// Returns the header of the next frame and the range of the item that it carries, at most `fragment` bytes.
    #[inline]
    pub fn next_frame(&self, fragment: usize, seq: u16) -> (FrameHeader, Range<usize>) {
        let end = self.at.saturating_add(fragment.max(1)).min(self.len);
        let more = if end < self.len { MORE } else { 0 };
        let head = if self.at == 0 { self.first } else { FrameHeader::new(FrameKind::Continuation, 0) };
        let seq = if head.kind.is_sequenced() { seq } else { 0 };
        (FrameHeader { seq, ..head.with_flags(more) }, self.at..end)
    }

    /// Notes that a frame with this range was sent, and returns whether it was the last.
    #[inline]
    pub fn advance(&mut self, sent: &Range<usize>) -> bool {
        self.at = sent.end;
        self.at >= self.len
    }
}

/// Reassembles the incoming items of one id and direction.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// The bytes of the item received so far, or of the complete item until it is taken.
    pub bytes: Vec<u8>,
    pub(super) first: Option<FrameHeader>,
    /// Set if there is no memory for the item: how many of its bytes have arrived, none of which was kept.
    pub(super) lost: Option<usize>,
    seq: u16,
}

impl Reassembler {
    /// Starts again for another call, and keeps the buffer.
    pub fn reset(&mut self) {
        (self.first, self.seq) = (None, 0);
        self.clear();
    }

    /// Drops the item, and keeps the sequence.
    pub fn clear(&mut self) {
        (self.first, self.lost) = (None, None);
        clear(&mut self.bytes);
    }

    /// Takes the body of a sequenced frame, which `read` copies. Returns the first header of the item if it is
    /// complete now.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if the frame is out of sequence, does not continue the item under way, or makes the item
    /// longer than `max` bytes.
    #[inline]
    pub fn take(
        &mut self,
        head: FrameHeader,
        len: usize,
        max: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Option<FrameHeader>, ProtocolViolation> {
        if head.seq != self.seq {
            return Err(ProtocolViolation("a gap in the sequence of a call"));
        }
        if self.first.is_none() && !head.has_flag(MORE) && head.kind != FrameKind::Continuation && len <= max
        {
            self.seq = self.seq.wrapping_add(1);
            self.bytes.clear();
            match try_resize(&mut self.bytes, len, len) {
                Ok(()) => read(&mut self.bytes),
                Err(_) => self.lost = Some(len),
            }
            return Ok(Some(head));
        }
        let first = match (self.first, head.kind) {
            (Some(first), FrameKind::Continuation) => first,
            (None, FrameKind::Continuation) => return Err(ProtocolViolation("a continuation of no item")),
            (Some(_), _) => return Err(ProtocolViolation("an item inside an item")),
            (None, _) => {
                self.bytes.clear();
                head
            }
        };
        let from = self.lost.unwrap_or(self.bytes.len());
        let to = from.checked_add(len).filter(|to| *to <= max);
        let to = to.ok_or(ProtocolViolation("an item longer than agreed"))?;
        if len == 0 && (head.has_flag(MORE) || head.kind == FrameKind::Continuation) {
            return Err(ProtocolViolation("an empty fragment of a longer item"));
        }
        let capacity = if to <= MAX_KEPT { MAX_KEPT } else { max }; // More than `MAX_KEPT` would not be kept.
        if self.lost.is_none() && try_resize(&mut self.bytes, to, capacity).is_ok() {
            read(self.bytes.get_mut(from..).unwrap_or(&mut []));
        } else {
            (self.bytes, self.lost) = (Vec::new(), Some(to));
        }
        self.seq = self.seq.wrapping_add(1);
        self.first = head.has_flag(MORE).then_some(first);
        Ok((!head.has_flag(MORE)).then_some(first))
    }
}

/// Empties a buffer for reuse, and frees its memory if it is larger than `MAX_KEPT`.
pub fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > MAX_KEPT {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragmenter(bytes: &[u8], fragment: usize) -> Vec<(FrameHeader, Vec<u8>)> {
        let (mut fragmenter, mut frames) =
            (Fragmenter::new(FrameHeader::new(FrameKind::Reply, 0), bytes.len()), Vec::new());
        loop {
            let (head, range) = fragmenter.next_frame(fragment, u16::try_from(frames.len()).expect("few"));
            frames.push((head, bytes[range.clone()].to_vec()));
            if fragmenter.advance(&range) {
                return frames;
            }
        }
    }

    fn put(
        into: &mut Reassembler,
        (head, body): &(FrameHeader, Vec<u8>),
        max: usize,
    ) -> Result<Option<FrameHeader>, ProtocolViolation> {
        into.take(*head, body.len(), max, |to| to.copy_from_slice(body))
    }

    #[test]
    fn what_was_fragmented_is_reassembled() {
        for len in [0_usize, 1, 15, 26, 40, 41, 63, 64, 65, 104, 105, 1000] {
            for fragment in [1, 2, 63, 64, 65, 999, 1000, 2000] {
                let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
                let frames = fragmenter(&bytes, fragment);
                assert_eq!(frames.len(), len.div_ceil(fragment).max(1));
                let mut assembly = Reassembler::default();
                let last = frames.len() - 1;
                for (i, frame) in frames.iter().enumerate() {
                    let whole = put(&mut assembly, frame, len).expect("well-formed");
                    assert_eq!(whole.map(|head| head.kind), (i == last).then_some(FrameKind::Reply));
                }
                assert_eq!(assembly.bytes, bytes);
            }
        }
    }

    #[test]
    fn a_frame_that_does_not_continue_its_item_is_refused() {
        let frames = fragmenter(&[7; 10], 4);
        let try_all = |order: &[usize], max| {
            let mut assembly = Reassembler::default();
            order.iter().try_for_each(|&i| put(&mut assembly, &frames[i], max).map(drop))
        };
        assert!(try_all(&[0, 1, 2], 10).is_ok());
        for bad in [&[1][..], &[0, 2], &[0, 0], &[0, 1, 1], &[0, 1, 2, 2]] {
            assert!(try_all(bad, 10).is_err(), "{bad:?}");
        }
        assert!(try_all(&[0, 1, 2], 9).is_err());
        let head = FrameHeader::new(FrameKind::Reply, 0);
        assert!(put(&mut Reassembler::default(), &(head.with_flags(MORE), vec![]), 9).is_err());
        let mut assembly = Reassembler::default();
        put(&mut assembly, &frames[0], 10).expect("well-formed");
        let again = FrameHeader { seq: 1, ..head };
        assert_eq!(
            put(&mut assembly, &(again, vec![1]), 10),
            Err(ProtocolViolation("an item inside an item"))
        );
    }

    #[test]
    fn a_huge_buffer_frees_its_memory() {
        let mut buffer = Vec::with_capacity(MAX_KEPT + 1);
        clear(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        let mut buffer = Vec::with_capacity(MAX_KEPT);
        clear(&mut buffer);
        assert_eq!(buffer.capacity(), MAX_KEPT);
    }
}
