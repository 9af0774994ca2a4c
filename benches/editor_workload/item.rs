//! The messages: each chunk, request, reply and question has a head with its stream, number and time of sending, and a
//! checksum of everything but that time.
//!
//! ```text
//!   0 stream u32 │ 4 seq u32 │ 8 sent u64, nanoseconds │ 16 crc32 of 0..8 and 20.. │ 20 numbers, then text
//! ```

use std::collections::BTreeSet;

use crc32fast::Hasher;
use fastrand::Rng;
use harness::monotonic;
use serde::{Deserialize, Serialize};

/// Bytes of the head.
pub(crate) const HEAD: usize = 20;

/// The kind of a stream, with which its number begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StreamKind {
    Chat = 1,
    Tool,
    Terminal,
    Lsp,
    History,
    Flood,
    Question,
    Approval,
    Ping,
    Status,
    Control,
}

/// Returns the number of a stream: its kind, and its index.
pub(crate) fn stream(kind: StreamKind, which: u32) -> u32 {
    (kind as u32) << 28 | (which & 0x0fff_ffff)
}

/// The text of all payloads; each is a part of it.
#[derive(Debug)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    /// A prime number of printable bytes, so that no two payloads need be alike.
    const LEN: usize = 1_048_583;

    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        Self(
            (0..Self::LEN)
                .map(|_| b' ' + rng.u8(..95))
                .map(|byte| if byte == b'"' { b'.' } else { byte })
                .collect(),
        )
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Makes an item of `len` bytes, or of as few as its head and numbers need, and stamps it.
    pub(crate) fn write(&self, item: &mut Vec<u8>, stream: u32, seq: u32, numbers: &[u32], len: usize) {
        item.clear();
        item.extend(stream.to_le_bytes());
        item.extend(seq.to_le_bytes());
        item.extend([0; HEAD - 8]);
        numbers.iter().for_each(|number| item.extend(number.to_le_bytes()));
        let mut from = Self::offset(stream, seq);
        while item.len() < len {
            let part = (len - item.len()).min(Self::LEN - from);
            item.extend_from_slice(&self.0[from..from + part]);
            from = 0;
        }
        let crc = checksum(item);
        item[16..HEAD].copy_from_slice(&crc.to_le_bytes());
        item[8..16].copy_from_slice(&monotonic().to_le_bytes());
    }

    /// Returns the offset at which the text of an item begins.
    pub(crate) fn offset(stream: u32, seq: u32) -> usize {
        let mixed = u64::from(stream).wrapping_mul(7919).wrapping_add(u64::from(seq).wrapping_mul(104_729));
        usize::try_from(mixed % Self::LEN as u64).unwrap_or(0)
    }
}

fn checksum(item: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&item[..8]);
    hasher.update(&item[HEAD..]);
    hasher.finalize()
}

/// An item that arrived unchanged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) stream: u32,
    pub(crate) seq: u32,
    pub(crate) sent: u64,
    body: &'a [u8],
}

impl<'a> Item<'a> {
    /// Returns nothing if a byte has changed.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEAD {
            return None;
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let sent = u64::from(word(8)) | u64::from(word(12)) << 32;
        (word(16) == checksum(bytes)).then(|| Item {
            stream: word(0),
            seq: word(4),
            sent,
            body: &bytes[HEAD..],
        })
    }

    /// Returns one of the numbers in front of the text, or 0 if there is none.
    pub(crate) fn number(&self, at: usize) -> u32 {
        let bytes = self.body.get(4 * at..4 * at + 4).and_then(|it| it.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    }
}

/// The number of items received, and of those with each kind of fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Another checksum, length or stream than it should have.
    pub(crate) corrupt: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.items += other.items;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
    }

    /// Counts a reply, which must be an unchanged item of this stream, and of this length if one is given.
    pub(crate) fn count_reply(&mut self, reply: &[u8], stream: u32, len: Option<usize>) {
        self.items += 1;
        self.bytes += reply.len() as u64;
        let right = Item::read(reply).is_some_and(|it| it.stream == stream);
        if !right || len.is_some_and(|len| len != reply.len()) {
            self.corrupt += 1;
        }
    }

    pub(crate) fn wrong(&self) -> u64 {
        self.lost + self.duplicated + self.reordered + self.corrupt
    }
}

/// Follows one stream: each item must be the next.
#[derive(Debug)]
pub(crate) struct SequenceCheck {
    stream: u32,
    next: u32,
    missing: BTreeSet<u32>,
}

impl SequenceCheck {
    pub(crate) fn new(stream: u32) -> Self {
        Self { stream, next: 0, missing: BTreeSet::new() }
    }

    /// Validates an item; `len` returns the length that it must have, if that is known.
    pub(crate) fn take<'a>(
        &mut self,
        bytes: &'a [u8],
        len: impl FnOnce(usize) -> Option<usize>,
        tally: &mut Tally,
    ) -> Option<Item<'a>> {
        tally.items += 1;
        tally.bytes += bytes.len() as u64;
        let item = Item::read(bytes).filter(|it| it.stream == self.stream);
        let Some(item) = item.filter(|it| len(it.seq as usize).is_none_or(|len| len == bytes.len())) else {
            tally.corrupt += 1;
            return None;
        };
        if item.seq >= self.next {
            self.missing.extend(self.next..item.seq);
            self.next = item.seq + 1;
        } else if self.missing.remove(&item.seq) {
            tally.reordered += 1;
        } else {
            tally.duplicated += 1;
        }
        Some(item)
    }

    /// Ends the stream, which had so many items.
    pub(crate) fn end(mut self, items: u32, tally: &mut Tally) {
        self.missing.extend(self.next..items);
        tally.duplicated += u64::from(self.next.saturating_sub(items)); // More than there are.
        tally.lost += self.missing.len() as u64;
    }

    pub(crate) fn next(&self) -> u32 {
        self.next
    }
}
