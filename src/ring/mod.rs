//! One direction of one connection: an index of seqlocks over an arena, one producer, one consumer.
//!
//! ```text
//!  index: N slots of 128 bytes                                arena
//!  +-------+---------+-----+--------------------------+      +-------------------------------+
//!  | stamp | control | tag | 13 words: up to 104 bytes |----->| payload, 64-aligned, contiguous |
//!  +-------+---------+-----+--------------------------+      +-------------------------------+
//!
//!  head (next to read) ........ tail (next to write)          ticket n lives in slot n mod N
//! ```
//!
//! The life of the slot of ticket n, by its stamp:
//!
//! | stamp | meaning | who leaves it |
//! |---|---|---|
//! | 0 | never written | the fresh region |
//! | 2(n-N)+2 | the ticket before it in this slot | the producer |
//! | 2n+1 | n is being written, or was left by a writer that failed | the producer |
//! | 2n+2 | n is ready | the producer, by the one Release store that commits |
//!
//! A reservation, and what takes the short way into the arena, is marked 2n+1 as it is committed. Anything else is a lie, as
//! is a head that goes backwards or past the tail.
//!
//! # Invariants
//!
//! 1. The producer writes the slot and place of ticket n only after it has read (Acquire) a head of
//!    at least n-N+1, and a head behind every ticket that stood in that place.
//! 2. The consumer reads them only after it has read (Acquire) the stamp 2n+2, and publishes
//!    (Release) a head past n only when it has done with them.
//! 3. Nobody reads its own position back from shared memory.
//! 4. Whoever published a message or an end makes a full fence and looks at the other side's flag before the call
//!    returns: publish and look stand in one straight line, with nothing between that can panic.
//! 5. Head may stay unpublished only while an unread message is in the ring. The consumer makes the fence and the look at least
//!    once in a quarter of the slots and in a quarter of the arena, and when the ring is dry if anything of the arena was released
//!    since. So nobody sleeps on: who waits for a slot has filled the ring, and it is not dry before that look; who waits
//!    for the arena names a ticket with a payload there.
//! 6. Each word is loaded once, judged, and the local is used.
//!
//! # Orderings
//!
//! | store | load that pairs with it | carries |
//! |---|---|---|
//! | stamp 2n+2, Release (`producer: commit`) | stamp, Acquire (`consumer: stamp`) | payload, control, tag |
//! | head, Release (`consumer: publish`) | head, Acquire (`producer: refresh`) | the end of the reads |
//! | closed flags, Release (`close: close`) | closed flags, Acquire (`close: closed`) | everything committed before |
//! | close reason, Release (`Memory::set_close_reason`) | close reason, Acquire (`close: closed`) | the peer's last stores, by the kernel |
//! | OOB word and doorbell, Release (`oob: send_oob`) | Acquire (`oob: load_oob`, `load_doorbell`) | the word before the doorbell |
//! | stamp 2n+1, then fence Release (`producer: mark_writing`) | fence Acquire, then stamp (`consumer: is_unchanged`) | a lap by a hostile producer |
//! | publish, fence Full, flag (`parking: fence_and_check`) | flag, fence Full, look (`parking: park`) | no lost wake-up |
//!
//! # Proof
//!
//! `loom-tests/` runs this very code under loom; `tests/ring/geometries.rs` runs it in private memory at every
//! wrap, geometry and first ticket.

mod arena;
mod close;
mod consumer;
mod oob;
mod parking;
mod producer;

pub use close::{CloseReason, close, close_both, closed, on_peer_gone};
pub use consumer::{Consumer, SlotContents, TryTake};
pub use oob::{OobSender, load_doorbell, load_oob};
#[cfg_attr(not(feature = "testing"), allow(unused_imports, reason = "for tests"))]
pub use parking::force_notify;
pub use parking::{WaitSlot, notify, park};
pub use producer::{AwaitedRelease, Cursor, Producer, ReserveError, SlotReservation, TrySend};

/// The stamp of a ready ticket.
#[inline]
fn ready(ticket: u64) -> u64 {
    ticket.wrapping_mul(2).wrapping_add(2)
}

/// Whether a stamp says that a ticket is ready. Behind [`LAST_TICKET`](crate::layout::LAST_TICKET) it would be 0,
/// which is the stamp of a slot that was never written.
#[inline(always)]
fn is_ready(stamp: u64, ticket: u64) -> bool {
    stamp == ready(ticket) && stamp != 0
}

/// The stamp of a ticket that is being written.
#[inline]
fn writing(ticket: u64) -> u64 {
    ticket.wrapping_mul(2).wrapping_add(1)
}
