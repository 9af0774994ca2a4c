//! The layout of the shared pages, and the packing of a slot's control word.
//!
//! ```text
//!  0         4 KiB     8 KiB                                     page        page
//!  +---------+---------+--------------------+--------------------+-----------+-----------+
//!  | words 0 | words 1 | slots 0 (N x 128)  | slots 1 (N x 128)  |  arena 0  |  arena 1  |
//!  +---------+---------+--------------------+--------------------+-----------+-----------+
//!  direction 0: from the client to the server; 1: from the server to the client
//!
//!  words:  0x000 head           0x180 producer closed   0x380 consumer woken at
//!          0x080 consumer flag  0x200 consumer closed   0x400 producer woken at
//!          0x100 producer flag  0x280 producer CPU      0x480 doorbell
//!          0x108 awaited ticket 0x300 consumer CPU      0x800 OOB words
//!
//!  slot:   | stamp | control | tag | 13 words of payload |      128 bytes, two cache lines
//!
//!  control:  63            32 31               6 5       0
//!            |     length    |  arena offset/64 |  kind  |
//! ```
//!
//! # Invariants
//!
//! 1. Each word that one side writes often is alone on its 128 bytes (const asserts below).
//! 2. Everything is a function of the [`Geometry`], which is agreed on in the handshake and never read from shared
//!    memory.
//! 3. [`Control::decode`] accepts only lengths and offsets inside the arena of its caller's geometry.
//!
//! # Proof
//!
//! Const asserts for sizes and cache lines; unit tests for every kind and for the bounds of a control word.

use std::fmt;

use crate::error::ProtocolViolation;
use crate::memory::{ARENA_ALIGN, INLINE_CAPACITY};

/// The size of a slot, in bytes: two cache lines, which the CPU prefetches as a pair.
pub const SLOT: usize = 128;
/// The last ticket of a direction. Its ready stamp, 2n + 2, is the last even number; the next one would wrap to 0.
pub const LAST_TICKET: u64 = (1 << 63) - 2;
/// The most slots in a ring.
pub const MAX_SLOTS: u32 = 1 << 16;
/// The largest arena, in bytes.
pub const MAX_ARENA: u64 = 1 << 30;
/// The most out-of-band (OOB) words of a direction.
pub const MAX_OOB: u32 = 256;
/// Where the payload words start in a slot, in bytes.
pub const SLOT_PAYLOAD: usize = 3 * WORD;

const WORD: usize = 8;
const PAGE: usize = 4096;
const LINE: usize = 128;

/// Offsets in a direction's page of words.
pub mod words {
    /// `memory::Word::Head`: the next ticket that the consumer has not released.
    pub const HEAD: usize = 0x000;
    /// `memory::Flag::Consumer`: the consumer waits for a message.
    pub const CONSUMER_FLAG: usize = 0x080;
    /// `memory::Flag::Producer`: the producer waits for space.
    pub const PRODUCER_FLAG: usize = 0x100;
    /// `memory::Word::AwaitedTicket`: the ticket whose release the producer waits for. A hint.
    pub const AWAITED_TICKET: usize = 0x108;
    /// `memory::Word::ProducerClosed`: not zero once the producer's end is closed.
    pub const PRODUCER_CLOSED: usize = 0x180;
    /// `memory::Word::ConsumerClosed`: not zero once the consumer's end is closed.
    pub const CONSUMER_CLOSED: usize = 0x200;
    /// The CPU on which the producer was last about to wait, plus one. A hint.
    pub const PRODUCER_CPU: usize = 0x280;
    /// The CPU on which the consumer was last about to wait, plus one. A hint.
    pub const CONSUMER_CPU: usize = 0x300;
    /// When the consumer was last woken, in ns of the monotonic clock. A hint.
    pub const CONSUMER_WOKEN: usize = 0x380;
    /// When the producer was last woken, in ns of the monotonic clock. A hint.
    pub const PRODUCER_WOKEN: usize = 0x400;
    /// `memory::Word::Doorbell`: counts the stores to OOB words.
    pub const DOORBELL: usize = 0x480;
    /// `memory::Word::Oob`: the first OOB word.
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

/// The error for a geometry that a connection cannot have.
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
    /// Validates and makes a geometry; all three numbers must be powers of two in their ranges.
    ///
    /// # Errors
    ///
    /// [`BadGeometry`], which names the first wrong number and its range.
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

    /// Returns the number of slots of each ring.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Returns the bytes of each arena.
    pub fn arena(&self) -> u64 {
        self.arena
    }

    /// Returns the number of OOB words of each direction.
    pub fn oob(&self) -> u32 {
        self.oob
    }

    /// Returns the bytes of the whole region: both directions, a multiple of the page size.
    pub fn region_len(&self) -> usize {
        self.direction(1).arena + page_up(self.arena_len())
    }

    /// Returns where the parts of a direction are; every number except 0 means direction 1.
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
    /// The first fragment of a long message. The slot's first payload word is the total length.
    First,
    /// A fragment in the middle of a message.
    Middle,
    /// The last fragment of a message.
    Last,
}

impl SlotKind {
    /// Returns whether a message begins with this slot. Only then may the abort bit be set.
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
    /// Bytes of payload in the slot or in the arena.
    pub len: u32,
    /// The arena offset, in units of [`ARENA_ALIGN`]; 0 for [`SlotKind::Inline`].
    pub unit: u32,
}

const ABORT: u64 = 1 << 5;
const ARENA_UNITS: u64 = 1 << 26;

impl Control {
    /// Returns the control word.
    #[inline]
    pub fn encode(self) -> u64 {
        let abort = if self.abort { ABORT } else { 0 };
        u64::from(self.len) << 32 | (u64::from(self.unit) % ARENA_UNITS) << 6 | abort | self.kind.code()
    }

    /// Returns the length if the word describes a whole message in its slot that has at most `longest` bytes and
    /// abandons no other message.
    #[inline(always)]
    pub fn inline_len(word: u64, longest: usize) -> Option<usize> {
        let len = usize::try_from(word >> 32).unwrap_or(usize::MAX);
        (word & 0xFFFF_FFFF == SlotKind::Inline.code() && len <= longest).then_some(len)
    }

    /// Returns the length and the arena unit if the word describes a whole message that is inside an arena of `arena`
    /// bytes, has at most `longest` bytes, and abandons no other message.
    #[inline(always)]
    pub fn arena_len_and_unit(word: u64, arena: u64, longest: usize) -> Option<(usize, u32)> {
        let (len, unit) = (word >> 32, word >> 6 & (ARENA_UNITS - 1));
        let whole = word & (ABORT | (ABORT - 1)) == SlotKind::Whole.code();
        let inside = in_arena(len, unit, arena);
        #[expect(clippy::cast_possible_truncation, reason = "of 32 and 26 bits")]
        let (len, unit) = (len as usize, unit as u32);
        (whole && inside && len <= longest).then_some((len, unit))
    }

    /// Returns whether the word seems to describe a whole message in the arena. A hint: it validates nothing.
    #[inline(always)]
    pub fn hint_in_arena(word: u64) -> bool {
        word & (ABORT - 1) == SlotKind::Whole.code()
    }

    /// Unpacks and validates a control word: the bytes that it describes are inside an arena of `arena` bytes.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for every word that a well-formed peer with this arena does not write.
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
        let (len, unit) = (word >> 32, word >> 6 & (ARENA_UNITS - 1));
        if abort && !kind.begins() {
            return Err(ProtocolViolation("an abort in the middle of a message"));
        }
        let fits = match kind {
            SlotKind::Inline => len <= INLINE_CAPACITY as u64 && unit == 0,
            _ => in_arena(len, unit, arena),
        };
        if !fits {
            return Err(ProtocolViolation("a length or a place outside the arena"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "32 and 26 bits, by the shifts above")]
        Ok(Self { kind, abort, len: len as u32, unit: unit as u32 })
    }
}

/// Returns whether `len` bytes at arena unit `unit` are inside the arena. No product or sum overflows: `unit` has 26
/// bits.
#[inline(always)]
fn in_arena(len: u64, unit: u64, arena: u64) -> bool {
    len > 0 && len <= arena && unit * ARENA_ALIGN as u64 <= arena - len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_reads_what_decode_reads() {
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
    fn geometry_is_validated_and_laid_out_without_overlap() {
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
