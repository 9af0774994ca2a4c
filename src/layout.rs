//! Where everything stands in the shared pages, and how a slot's control word is packed.
//!
//! ```text
//!  0         4 KiB     8 KiB                                     page        page
//!  +---------+---------+--------------------+--------------------+-----------+-----------+
//!  | words 0 | words 1 | slots 0 (N x 128)  | slots 1 (N x 128)  |  arena 0  |  arena 1  |
//!  +---------+---------+--------------------+--------------------+-----------+-----------+
//!  direction 0: from the client to the server; 1: from the server to the client
//!
//!  words:  0x000 head        0x100 producer flag  0x200 consumer mark  0x300 consumer cpu
//!          0x080 consumer    0x108   and wanted   0x280 producer cpu   0x380 woken at (consumer)
//!                flag        0x180 producer mark                       0x400 woken at (producer)
//!                                                                      0x480 bell   0x800 urgent
//!
//!  slot:   | stamp | control | tag | 13 words of payload |      128 bytes, two cache lines
//!
//!  control:  63            32 31              6 5        0
//!            |     length    |  place / 64     |  kind   |
//! ```
//!
//! # Invariants
//!
//! 1. Each word that one side writes often is alone on its 128 bytes (const asserts below).
//! 2. Everything is a function of the [`Geometry`], which comes from the handshake and is never
//!    read from shared memory.
//! 3. [`Control::decode`] accepts only what lies in the arena of the geometry that judges it.
//!
//! # Proof
//!
//! Const asserts for sizes and lines; unit tests for every kind and the bounds of control.

use std::fmt;

use crate::error::ProtocolViolation;
use crate::memory::{ARENA_ALIGN, INLINE_CAPACITY};

/// What a slot takes, in bytes: two cache lines, fetched as a pair.
pub const SLOT: usize = 128;
/// The last ticket of a direction: its ready stamp, 2n + 2, is the last even number but none.
pub const LAST_TICKET: u64 = (1 << 63) - 2;
/// The most slots in a ring.
pub const MAX_SLOTS: u32 = 1 << 16;
/// The largest arena, in bytes.
pub const MAX_ARENA: u64 = 1 << 30;
/// The most urgent words of a direction.
pub const MAX_OOB: u32 = 256;
/// Where a direction's payload words start in a slot.
pub const SLOT_PAYLOAD: usize = 3 * WORD;

const WORD: usize = 8;
const PAGE: usize = 4096;
const LINE: usize = 128;

/// Offsets in a direction's page of words.
pub mod words {
    /// See `mem::Word::Head`.
    pub const HEAD: usize = 0x000;
    /// See `mem::Flag::Consumer`.
    pub const CONSUMER_FLAG: usize = 0x080;
    /// See `mem::Flag::Producer`.
    pub const PRODUCER_FLAG: usize = 0x100;
    /// See `mem::Word::Wanted`.
    pub const AWAITED_TICKET: usize = 0x108;
    /// See `mem::Word::ProducerClosed`.
    pub const PRODUCER_CLOSED: usize = 0x180;
    /// See `mem::Word::ConsumerClosed`.
    pub const CONSUMER_CLOSED: usize = 0x200;
    /// The CPU on which the producer was last about to wait, plus one. A hint.
    pub const PRODUCER_CPU: usize = 0x280;
    /// The CPU on which the consumer was last about to wait, plus one. A hint.
    pub const CONSUMER_CPU: usize = 0x300;
    /// When the consumer was last woken, in ns of the monotonic clock. A hint.
    pub const CONSUMER_WOKEN: usize = 0x380;
    /// When the producer was last woken, in ns of the monotonic clock. A hint.
    pub const PRODUCER_WOKEN: usize = 0x400;
    /// See `mem::Word::Bell`.
    pub const DOORBELL: usize = 0x480;
    /// The first urgent word; see `mem::Word::Oob`.
    pub const OOB: usize = 0x800;
}

const _: () = {
    use words::*;
    let alone = [
        HEAD,
        CONSUMER_FLAG,
        PRODUCER_FLAG,
        PRODUCER_CLOSED,
        CONSUMER_CLOSED,
        PRODUCER_CPU,
        CONSUMER_CPU,
        CONSUMER_WOKEN,
        PRODUCER_WOKEN,
        DOORBELL,
        OOB,
    ];
    let mut i = 0;
    while i < alone.len() {
        assert!(alone[i] % LINE == 0);
        assert!(i == 0 || alone[i - 1] + LINE <= alone[i]);
        i += 1;
    }
    assert!(AWAITED_TICKET / LINE == PRODUCER_FLAG / LINE && AWAITED_TICKET >= PRODUCER_FLAG + 4);
    assert!(OOB + MAX_OOB as usize * WORD <= PAGE);
    assert!(SLOT_PAYLOAD % WORD == 0 && SLOT_PAYLOAD + INLINE_CAPACITY == SLOT);
    assert!(LAST_TICKET * 2 + 2 == u64::MAX - 1);
    assert!(MAX_ARENA / (ARENA_ALIGN as u64) <= 1 << 26);
};

/// The sizes that both sides of a connection agree on; the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    slots: u32,
    oob: u32,
    arena: u64,
}

/// A geometry that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadGeometry {
    what: &'static str,
    is: u64,
    least: u64,
    most: u64,
}

impl fmt::Display for BadGeometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, is, least, most } = self;
        write!(f, "{what} must be a power of two from {least} to {most}, not {is}")
    }
}

impl std::error::Error for BadGeometry {}

impl Geometry {
    /// Judges and makes a geometry; all three are powers of two.
    ///
    /// # Errors
    ///
    /// [`BadGeometry`], which names the number and its range.
    pub fn new(slots: u32, arena: u64, oob: u32) -> Result<Self, BadGeometry> {
        let check = |what, is: u64, least: u64, most: u64| {
            let fits = is.is_power_of_two() && is >= least && is <= most;
            if fits { Ok(()) } else { Err(BadGeometry { what, is, least, most }) }
        };
        check("slots", slots.into(), 1, MAX_SLOTS.into())?;
        check("arena", arena, ARENA_ALIGN as u64, MAX_ARENA)?;
        check("max_calls_in_flight", oob.into(), 1, MAX_OOB.into())?;
        Ok(Self { slots, oob, arena })
    }

    /// Slots of each ring.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Bytes of each arena.
    pub fn arena(&self) -> u64 {
        self.arena
    }

    /// Urgent words of each direction.
    pub fn oob(&self) -> u32 {
        self.oob
    }

    /// Bytes of the whole region: both directions, a multiple of the page.
    pub fn region_len(&self) -> usize {
        self.direction(1).arena + page_up(self.arena_len())
    }

    /// Where the parts of a direction stand; every number but 0 means direction 1.
    pub fn direction(&self, direction: usize) -> Direction {
        let second = usize::from(direction != 0);
        let slots_len = self.slots as usize * SLOT;
        let arenas = page_up(2 * PAGE + 2 * slots_len);
        Direction {
            words: second * PAGE,
            slots: 2 * PAGE + second * slots_len,
            arena: arenas + second * page_up(self.arena_len()),
        }
    }

    fn arena_len(&self) -> usize {
        usize::try_from(self.arena).unwrap_or(0) // At most MAX_ARENA, and a usize has 64 bits.
    }
}

/// Byte offsets of one direction's parts in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The page of words.
    pub words: usize,
    /// The first slot.
    pub slots: usize,
    /// The first byte of the arena.
    pub arena: usize,
}

fn page_up(len: usize) -> usize {
    len.next_multiple_of(PAGE)
}

/// What a slot carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// A whole message in the slot.
    Inline,
    /// A whole message in the arena.
    Whole,
    /// The first piece of a long message; the slot's first payload word is the total length.
    First,
    /// A piece in the middle.
    Middle,
    /// The last piece.
    Last,
}

impl SlotKind {
    /// Whether a message begins here: only then may the abort bit be set.
    pub fn begins(self) -> bool {
        matches!(self, Self::Inline | Self::Whole | Self::First)
    }

    #[inline]
    fn code(self) -> u64 {
        match self {
            Self::Inline => 1,
            Self::Whole => 2,
            Self::First => 3,
            Self::Middle => 4,
            Self::Last => 5,
        }
    }
}

/// A slot's control word, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// What the slot carries.
    pub kind: SlotKind,
    /// The unfinished message before this one is abandoned.
    pub abort: bool,
    /// Bytes of payload in this slot or place.
    pub len: u32,
    /// The place in the arena, in units of [`ARENA_ALIGN`]; 0 for [`SlotKind::Inline`].
    pub unit: u32,
}

const ABORT: u64 = 1 << 5;
const ARENA_UNITS: u64 = 1 << 26;

impl Control {
    /// Packs it.
    #[inline]
    pub fn encode(self) -> u64 {
        let abort = if self.abort { ABORT } else { 0 };
        u64::from(self.len) << 32 | (u64::from(self.unit) % ARENA_UNITS) << 6 | abort | self.kind.code()
    }

    /// The length, if it is that of a whole message in its slot of at most `longest` bytes, which abandons nothing.
    #[inline(always)]
    pub fn inline_len(word: u64, longest: usize) -> Option<usize> {
        let len = usize::try_from(word >> 32).unwrap_or(usize::MAX);
        (word & 0xFFFF_FFFF == SlotKind::Inline.code() && len <= longest).then_some(len)
    }

    /// Length and place, if they are those of a whole message in an arena of `arena` bytes, of at most `longest` bytes,
    /// which abandons nothing.
    #[inline(always)]
    pub fn arena_len_and_unit(word: u64, arena: u64, longest: usize) -> Option<(usize, u32)> {
        let (len, offset) = (word >> 32, word >> 6 & (ARENA_UNITS - 1));
        let whole = word & (ABORT | (ABORT - 1)) == SlotKind::Whole.code();
        let inside = in_arena(len, offset, arena);
        #[expect(clippy::cast_possible_truncation, reason = "of 32 and 26 bits")]
        let (len, offset) = (len as usize, offset as u32);
        (whole && inside && len <= longest).then_some((len, offset))
    }

    /// Whether it seems to be of a message in the arena; judges nothing.
    #[inline(always)]
    pub fn hint_in_arena(word: u64) -> bool {
        word & (ABORT - 1) == SlotKind::Whole.code()
    }

    /// Unpacks and judges it: what it describes lies in an arena of `arena` bytes.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for every word that an honest peer with this arena does not write.
    #[inline]
    pub fn decode(word: u64, arena: u64) -> Result<Self, ProtocolViolation> {
        let kind = match word & (ABORT - 1) {
            1 => SlotKind::Inline,
            2 => SlotKind::Whole,
            3 => SlotKind::First,
            4 => SlotKind::Middle,
            5 => SlotKind::Last,
            _ => return Err(ProtocolViolation("a slot of no known kind")),
        };
        let abort = word & ABORT != 0;
        let (len, offset) = (word >> 32, word >> 6 & (ARENA_UNITS - 1));
        if abort && !kind.begins() {
            return Err(ProtocolViolation("an abort in the middle of a message"));
        }
        let fits = match kind {
            SlotKind::Inline => len <= INLINE_CAPACITY as u64 && offset == 0,
            _ => in_arena(len, offset, arena),
        };
        if !fits {
            return Err(ProtocolViolation("a length or a place outside the arena"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "32 and 26 bits, by the shifts above")]
        Ok(Self { kind, abort, len: len as u32, unit: offset as u32 })
    }
}

/// Whether some bytes lie in an arena.
#[inline(always)]
fn in_arena(len: u64, offset: u64, arena: u64) -> bool {
    len > 0 && len <= arena && offset * ARENA_ALIGN as u64 <= arena - len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_the_short_way_is_what_is_decoded() {
        let lens = [0, 1, 15, 103, 104, 105, 4032, 4033, 4096, 4097, u32::MAX];
        for word in lens.map(|len| u64::from(len) << 32) {
            for low in (0..128).chain([
                1 << 6 | 1,
                62 << 6 | 2,
                63 << 6 | 2,
                64 << 6 | 2,
                (ARENA_UNITS - 1) << 6 | 2,
            ]) {
                let word = word | low;
                let whole = match Control::decode(word, 4096) {
                    Ok(Control { kind: SlotKind::Whole, abort: false, len, unit: offset }) => {
                        Some((len as usize, offset))
                    }
                    _ => None,
                };
                assert_eq!(Control::arena_len_and_unit(word, 4096, 4096), whole, "{word:x}");
                let short = |len: &(usize, u32)| len.0 <= 104;
                assert_eq!(Control::arena_len_and_unit(word, 4096, 104), whole.filter(short), "{word:x}");
                assert!(whole.is_none() || Control::hint_in_arena(word), "{word:x}");
                let inline = match Control::decode(word, 4096) {
                    Ok(Control { kind: SlotKind::Inline, abort: false, len, .. }) => Some(len as usize),
                    _ => None,
                };
                assert_eq!(Control::inline_len(word, 104), inline, "{word:x}");
            }
        }
    }

    #[test]
    fn control_survives_packing() {
        for kind in [SlotKind::Inline, SlotKind::Whole, SlotKind::First, SlotKind::Middle, SlotKind::Last] {
            for len in [0, 1, 15, 26, 40, 41, 63, 64, 65, 104, 105, 4096] {
                for offset in [0, 1, 63] {
                    for abort in [false, true] {
                        let c = Control { kind, abort, len, unit: offset };
                        let inline = kind == SlotKind::Inline;
                        let ok = if inline {
                            len <= 104 && offset == 0
                        } else {
                            len > 0 && offset * 64 + len <= 4096
                        };
                        let ok = ok && (!abort || kind.begins());
                        assert_eq!(Control::decode(c.encode(), 4096).ok(), ok.then_some(c));
                    }
                }
            }
        }
    }

    #[test]
    fn zeros_and_unknown_kinds_are_refused() {
        for word in [0, 6, 7, 31, 32, 33 << 6, u64::MAX] {
            assert!(Control::decode(word, 1 << 20).is_err(), "{word:#x}");
        }
    }

    #[test]
    fn geometry_is_judged_and_laid_out_without_overlap() {
        assert!(Geometry::new(0, 4096, 64).is_err());
        assert!(Geometry::new(3, 4096, 64).is_err());
        assert!(Geometry::new(MAX_SLOTS * 2, 4096, 64).is_err());
        assert!(Geometry::new(4, 32, 64).is_err());
        assert!(Geometry::new(4, MAX_ARENA * 2, 64).is_err());
        assert!(Geometry::new(4, 4096, 0).is_err());
        for slots in [1, 2, 256, MAX_SLOTS] {
            for arena in [64, 4096, 1 << 20, MAX_ARENA] {
                let g = Geometry::new(slots, arena, 64).expect("legal");
                let (a, b) = (g.direction(0), g.direction(1));
                assert_eq!(a.slots + slots as usize * SLOT, b.slots);
                assert!(b.slots + slots as usize * SLOT <= a.arena);
                assert!(a.arena as u64 + arena <= b.arena as u64);
                assert!(b.arena as u64 + arena <= g.region_len() as u64);
                assert_eq!((a.arena % PAGE, b.arena % PAGE, g.region_len() % PAGE), (0, 0, 0));
            }
        }
    }
}
