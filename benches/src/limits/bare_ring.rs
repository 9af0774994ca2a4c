//! The barest ring of slots that wakes sleepers and survives a liar: its steps on shared memory, and nothing else.
//!
//! ```text
//!   one direction:   | head | flag | 256 slots of 128 bytes: stamp, length, place, up to 104 bytes | longer payloads |
//! ```
//!
//! A sender marks the slot, writes, stamps it, and after a full fence looks whether somebody sleeps; a receiver sees the
//! stamp, copies, and looks at the stamp again; its head follows each quarter of the ring. Nothing is judged, no end is
//! looked for, nobody sleeps. What such a ring needs above the bare hand-over, no ring of this kind can save; what
//! narrows needs above this is its own.
#![expect(clippy::cast_possible_truncation, reason = "of numbers that are small, or modulo such")]

use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use super::hand_over::Mailboxes;
use crate::source::Check;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};
use crate::{Result, ensure, sys};

/// See the module.
#[derive(Debug)]
pub struct BareRing;

const SLOTS: u64 = 256;
const SLOT: usize = 128;
const INLINE: usize = 104;
/// Of the slot: behind stamp, length and place.
const PAYLOAD: usize = 24;
const FLAG: usize = 128;
const RING: usize = 4096;
const ARENA: usize = RING + SLOTS as usize * SLOT;
const PLACES: usize = 1 << 16;

impl System for BareRing {
    const NAME: &'static str = "bare-ring";
    const VERSION: &'static str = "";
    type Sender = BareRingSender;
    type Receiver = BareRingReceiver;

    fn supports(work: &Work) -> bool {
        work.is_stream() && work.wait == Wait::Spin && work.size <= 4096 && work.gap.is_zero()
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(BareRingSender, BareRingReceiver)> {
        let boxes = Mailboxes::open(side, folder, ARENA + PLACES)?;
        let (ours, theirs) = (boxes.at(side), boxes.at(side.other()));
        let copy = if work.access == Access::Copy { vec![1; work.size] } else { Vec::new() };
        let pusher = BareRingSender { ring: Direction::new(boxes.clone(), ours, work), tail: 0, limit: 0 };
        let popper = BareRingReceiver { ring: Direction::new(boxes, theirs, work), head: 0, due: 0, copy };
        Ok((pusher, popper))
    }
}

/// One direction.
#[derive(Debug)]
struct Direction {
    boxes: Mailboxes,
    at: usize,
    /// From one payload of the arena to the next; none for those in slots.
    stride: usize,
    /// So many messages may be on their way.
    room: u64,
}

impl Direction {
    fn new(boxes: Mailboxes, at: usize, work: &Work) -> Self {
        let stride = if work.size > INLINE { work.size.next_multiple_of(64) } else { 0 };
        let room = match (stride, work.kind) {
            (0, _) => SLOTS,
            (_, WorkKind::RoundTrip) => 4, // What is written again at once is still in the caches.
            _ => SLOTS.min((PLACES / stride) as u64),
        };
        Self { boxes, at, stride, room }
    }

    #[inline]
    fn slot(&self, ticket: u64) -> usize {
        self.at + RING + (ticket % SLOTS) as usize * SLOT
    }

    #[inline]
    fn place(&self, ticket: u64) -> usize {
        match self.stride {
            0 => self.slot(ticket) + PAYLOAD,
            stride => self.at + ARENA + (ticket % self.room) as usize * stride,
        }
    }

    /// Whether nobody sleeps, which nobody ever does here.
    #[inline]
    fn nobody_sleeps(&self, flag: usize) -> Result<()> {
        fence(Ordering::SeqCst);
        ensure!(self.boxes.bytes.word(self.at + flag).load(Ordering::Relaxed) == 0, "a sleeper");
        Ok(())
    }
}

/// Writes and stamps.
#[derive(Debug)]
pub struct BareRingSender {
    ring: Direction,
    tail: u64,
    limit: u64,
}

impl SendHalf for BareRingSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let (ring, tail) = (&self.ring, self.tail);
        let bytes = &ring.boxes.bytes;
        while tail >= self.limit {
            self.limit = bytes.word(ring.at).load(Ordering::Acquire) + ring.room;
        }
        let (slot, place) = (ring.slot(tail), ring.place(tail));
        bytes.word(slot).store(2 * tail + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        bytes.write(place, message);
        bytes.word(slot + 8).store(message.len() as u64, Ordering::Relaxed);
        bytes.word(slot + 16).store(place as u64, Ordering::Relaxed);
        bytes.word(slot).store(2 * tail + 2, Ordering::Release);
        self.tail += 1;
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<()> {
        self.ring.nobody_sleeps(FLAG)
    }
}

/// Copies, and looks again.
#[derive(Debug)]
pub struct BareRingReceiver {
    ring: Direction,
    head: u64,
    due: u64,
    copy: Vec<u8>,
}

impl ReceiveHalf for BareRingReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let ring = &self.ring;
        let (bytes, slot, stamp) = (&ring.boxes.bytes, ring.slot(self.head), 2 * self.head + 2);
        sys::spin_until(bytes.word(slot), stamp);
        let len = bytes.word(slot + 8).load(Ordering::Relaxed) as usize;
        let message = bytes.lend(bytes.word(slot + 16).load(Ordering::Relaxed) as usize, len);
        if self.copy.is_empty() {
            check.validate(message);
        } else {
            self.copy.copy_from_slice(message);
        }
        ensure!(bytes.word(slot).load(Ordering::Relaxed) == stamp, "overtaken");
        self.head += 1;
        if self.head > self.due {
            self.due = self.head + ring.room / 4;
            bytes.word(ring.at).store(self.head, Ordering::Release);
            ring.nobody_sleeps(FLAG + 8)?;
        }
        if !self.copy.is_empty() {
            check.validate(&self.copy);
        }
        Ok(())
    }
}
