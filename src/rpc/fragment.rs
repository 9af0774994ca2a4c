//! Items in pieces: how they are cut, and how they become whole again.
//!
//! # Invariants
//!
//! 1. Memory grows with the bytes that came, never with a length that was announced.
//! 2. At most one item of an id and direction is under way; nothing of it is seen before it is whole.
//! 3. An item for which there is no memory is counted to its end as any other, and marked as lost.
//!
//! # Proof
//!
//! The tests below; fuzz `calls`.

use std::ops::Range;

use super::wire::{FrameHeader, FrameKind, MORE};
use crate::error::ProtocolViolation;
use crate::memory::try_resize;

/// What capacity a buffer keeps that is used again: one huge item must not cost its memory for ever. An item of
/// 256 KiB, with a deadline before it, is not huge.
pub(super) const MAX_KEPT: usize = (256 << 10) + 64;

/// An item on its way out: what has been sent of it.
#[derive(Clone, Copy, Debug)]
pub struct Fragmenter {
    first: FrameHeader,
    len: usize,
    at: usize,
}

impl Fragmenter {
    /// An item of `len` bytes, whose first frame has this head.
    pub fn new(first: FrameHeader, len: usize) -> Self {
        Self { first, len, at: 0 }
    }

    /// Whether nothing of it was sent.
    pub fn is_unsent(&self) -> bool {
        self.at == 0
    }

    /// The next frame: its head, and which bytes it carries, at most `piece` of them.
    #[inline]
    pub fn next_frame(&self, fragment: usize, seq: u16) -> (FrameHeader, Range<usize>) {
        let end = self.at.saturating_add(fragment.max(1)).min(self.len);
        let more = if end < self.len { MORE } else { 0 };
        let head = if self.at == 0 { self.first } else { FrameHeader::new(FrameKind::Continuation, 0) };
        let seq = if head.kind.is_sequenced() { seq } else { 0 };
        (FrameHeader { seq, ..head.with_flags(more) }, self.at..end)
    }

    /// The frame was sent. True if it was the last.
    #[inline]
    pub fn advance(&mut self, sent: &Range<usize>) -> bool {
        self.at = sent.end;
        self.at >= self.len
    }
}

/// Items on their way in, of one id and direction.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// The item so far, and the whole one until it is taken.
    pub bytes: Vec<u8>,
    pub(super) first: Option<FrameHeader>,
    /// There is no memory for the item: how many bytes have come of it, none of which was kept.
    pub(super) lost: Option<usize>,
    seq: u16,
}

impl Reassembler {
    /// Begins anew; keeps memory for use again.
    pub fn reset(&mut self) {
        (self.first, self.seq) = (None, 0);
        self.clear();
    }

    /// Drops the bytes; keeps the count.
    pub fn clear(&mut self) {
        (self.first, self.lost) = (None, None);
        clear(&mut self.bytes);
    }

    /// Takes the body of a counted frame, which `read` copies. The first head of the item if it is whole now.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if it is not the next frame, does not fit what began, or exceeds `max` bytes.
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
            (None, FrameKind::Continuation) => return Err(ProtocolViolation("the rest of nothing")),
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
            return Err(ProtocolViolation("an empty piece of a longer item"));
        }
        let most = if to <= MAX_KEPT { MAX_KEPT } else { max }; // More than the former would not be kept.
        if self.lost.is_none() && try_resize(&mut self.bytes, to, most).is_ok() {
            read(self.bytes.get_mut(from..).unwrap_or(&mut []));
        } else {
            (self.bytes, self.lost) = (Vec::new(), Some(to));
        }
        self.seq = self.seq.wrapping_add(1);
        self.first = head.has_flag(MORE).then_some(first);
        Ok((!head.has_flag(MORE)).then_some(first))
    }
}

/// Empties a buffer that is used again, and gives back memory that is out of the ordinary.
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
    fn what_is_cut_becomes_whole_again() {
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
    fn what_does_not_fit_is_refused() {
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
    fn a_giant_gives_its_memory_back() {
        let mut buffer = Vec::with_capacity(MAX_KEPT + 1);
        clear(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        let mut buffer = Vec::with_capacity(MAX_KEPT);
        clear(&mut buffer);
        assert_eq!(buffer.capacity(), MAX_KEPT);
    }
}
