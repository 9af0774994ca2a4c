//! The barest ring of slots that wakes sleepers and withstands a hostile peer: its steps on shared memory alone.
//!
//! ```text
//!   one direction:   | head | flag | 256 slots of 128 bytes: stamp, length, offset, up to 104 bytes | longer payloads |
//! ```
//!
//! A sender marks the slot, writes, stamps it, and after a full fence reads the flag of a sleeper. A receiver sees the
//! stamp, copies, and reads the stamp again; its head follows each quarter of the ring. It validates nothing, checks for
//! no close, and never sleeps. The cost of this ring above the bare hand-over is that of every ring of its kind; the cost
//! of narrows above this ring is its own.
#![expect(clippy::cast_possible_truncation, reason = "of numbers that are small, or modulo such")]

use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};

use super::hand_over::Mailboxes;
use crate::source::Check;
use crate::sys;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

pub(crate) struct BareRing;

const SLOTS: u64 = 256;
const SLOT: usize = 128;
const INLINE: usize = 104;
/// Of the slot: behind stamp, length and offset.
const PAYLOAD: usize = 24;
const FLAG: usize = 128;
const RING: usize = 4096;
const ARENA: usize = RING + SLOTS as usize * SLOT;
const ARENA_BYTES: usize = 1 << 16;

impl System for BareRing {
    const NAME: &'static str = "bare-ring";
    const VERSION: &'static str = "";
    type Sender = BareRingSender;
    type Receiver = BareRingReceiver;

    fn supports(work: &Work) -> bool {
        work.is_stream() && work.wait == Wait::Spin && work.size <= 4096 && work.gap.is_zero()
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(BareRingSender, BareRingReceiver)> {
        let mailboxes = Mailboxes::open(side, folder, ARENA + ARENA_BYTES)?;
        let (ours, theirs) = (mailboxes.at(side), mailboxes.at(side.other()));
        let copy = if work.access == Access::Copy { vec![1; work.size] } else { Vec::new() };
        let sender =
            BareRingSender { ring: Direction::new(mailboxes.clone(), ours, work), tail: 0, limit: 0 };
        let receiver =
            BareRingReceiver { ring: Direction::new(mailboxes, theirs, work), head: 0, due: 0, copy };
        Ok((sender, receiver))
    }
}

/// One direction.
struct Direction {
    mailboxes: Mailboxes,
    at: usize,
    /// From one payload of the arena to the next; none for those in slots.
    stride: usize,
    /// So many messages may be on their way.
    room: u64,
}

impl Direction {
    fn new(mailboxes: Mailboxes, at: usize, work: &Work) -> Self {
        let stride = if work.size > INLINE { work.size.next_multiple_of(64) } else { 0 };
        let room = match (stride, work.kind) {
            (0, _) => SLOTS,
            (_, WorkKind::RoundTrip) => 4, // Memory that is written again at once is still in the caches.
            _ => SLOTS.min((ARENA_BYTES / stride) as u64),
        };
        Self { mailboxes, at, stride, room }
    }

    #[inline]
    fn slot(&self, ticket: u64) -> usize {
        self.at + RING + (ticket % SLOTS) as usize * SLOT
    }

    #[inline]
    fn offset(&self, ticket: u64) -> usize {
        match self.stride {
            0 => self.slot(ticket) + PAYLOAD,
            stride => self.at + ARENA + (ticket % self.room) as usize * stride,
        }
    }

    /// Reads the flag of a sleeper, which is never set here.
    #[inline]
    fn check_no_sleeper(&self, flag: usize) -> Result<()> {
        fence(Ordering::SeqCst);
        ensure!(
            self.mailboxes.bytes.word(self.at + flag).load(Ordering::Relaxed) == 0,
            "the flag of a sleeper is set"
        );
        Ok(())
    }
}

/// Writes and stamps.
pub(crate) struct BareRingSender {
    ring: Direction,
    tail: u64,
    limit: u64,
}

impl SendHalf for BareRingSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let (ring, tail) = (&self.ring, self.tail);
        let bytes = &ring.mailboxes.bytes;
        while tail >= self.limit {
            self.limit = bytes.word(ring.at).load(Ordering::Acquire) + ring.room;
        }
        let (slot, offset) = (ring.slot(tail), ring.offset(tail));
        bytes.word(slot).store(2 * tail + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        bytes.write(offset, message);
        bytes.word(slot + 8).store(message.len() as u64, Ordering::Relaxed);
        bytes.word(slot + 16).store(offset as u64, Ordering::Relaxed);
        bytes.word(slot).store(2 * tail + 2, Ordering::Release);
        self.tail += 1;
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<()> {
        self.ring.check_no_sleeper(FLAG)
    }
}

/// Copies, and looks again.
pub(crate) struct BareRingReceiver {
    ring: Direction,
    head: u64,
    due: u64,
    copy: Vec<u8>,
}

impl ReceiveHalf for BareRingReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        let ring = &self.ring;
        let (bytes, slot, stamp) = (&ring.mailboxes.bytes, ring.slot(self.head), 2 * self.head + 2);
        sys::spin_while_not(bytes.word(slot), stamp);
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
            ring.check_no_sleeper(FLAG + 8)?;
        }
        if !self.copy.is_empty() {
            check.validate(&self.copy);
        }
        Ok(())
    }
}
