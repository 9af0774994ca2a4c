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
//! | stamp | meaning | written by |
//! |---|---|---|
//! | 0 | never written | the fresh region |
//! | 2(n-N)+2 | the ticket before it in this slot | the producer |
//! | 2n+1 | n is being written, or its producer failed while writing it | the producer |
//! | 2n+2 | n is ready | the producer, by the one Release store that commits |
//!
//! For a reservation, and on the fast path into the arena, 2n+1 is stored immediately before the commit. Any other
//! stamp is a protocol violation, and so is a head that goes backwards or past the tail.
//!
//! # Invariants
//!
//! 1. The producer writes the slot and the arena bytes of ticket n only after it has read (Acquire) a head of at least
//!    n-N+1, and a head behind every ticket whose payload stood in those bytes.
//! 2. The consumer reads them only after it has read (Acquire) the stamp 2n+2. It publishes (Release) a head past n
//!    only when it has finished reading them.
//! 3. Neither side reads its own position back from shared memory.
//! 4. After it has published a message or its closed flag, a thread makes a full fence and checks the other side's flag
//!    before the call returns. The publication and the check stand in one straight line, with nothing between that can
//!    panic.
//! 5. The head may stay unpublished only while an unread message is in the ring. The consumer makes the fence and the
//!    check at least once in a quarter of the slots and in a quarter of the arena, and also when the ring is empty and
//!    bytes of the arena were released since the last check. So no producer sleeps on: a producer that waits for a slot
//!    has filled the ring, and the ring is not empty before the next check; a producer that waits for the arena names a
//!    ticket with a payload there.
//! 6. Each shared word is loaded once and validated, and only the local copy is used.
//!
//! # Orderings
//!
//! | store | matching load | what it publishes |
//! |---|---|---|
//! | stamp 2n+2, Release (`producer: commit`) | stamp, Acquire (`consumer: stamp`) | payload, control, tag |
//! | head, Release (`consumer: publish`) | head, Acquire (`producer: refresh`) | the end of the reads |
//! | closed flags, Release (`close: close`) | closed flags, Acquire (`close: closed`) | everything committed before |
//! | close reason, Release (`set_close_reason`) | close reason, Acquire (`close: closed`) | peer's last stores (*) |
//! | OOB word, doorbell, Release (`oob: send_oob`) | Acquire (`load_oob`, `load_doorbell`) | word before doorbell |
//! | stamp 2n+1, fence Release (`mark_writing`) | fence Acquire, stamp (`is_unchanged`) | overwrites (*) |
//! | publish, fence Full, flag (`fence_and_check`) | flag, fence Full, second look (`park`) | no lost wake-up |
//!
//! (*) The kernel orders the peer's last stores before the event from which the peer monitor learns that it is gone.
//! Overwrites are those by a hostile producer: a well-formed one never writes to a slot that is not released.
//!
//! # Proof
//!
//! `loom-tests/` runs this very code under loom. `tests/ring/geometries.rs` runs it in private memory at every wrap,
//! geometry and first ticket.

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

/// Returns the stamp of a ready ticket.
#[inline]
fn ready(ticket: u64) -> u64 {
    ticket.wrapping_mul(2).wrapping_add(2)
}

/// Returns whether a stamp says that a ticket is ready. The stamp behind [`LAST_TICKET`](crate::layout::LAST_TICKET)
/// would be 0, which is the stamp of a slot that was never written.
#[inline(always)]
fn is_ready(stamp: u64, ticket: u64) -> bool {
    stamp == ready(ticket) && stamp != 0
}

/// Returns the stamp of a ticket that is being written.
#[inline]
fn writing(ticket: u64) -> u64 {
    ticket.wrapping_mul(2).wrapping_add(1)
}
