//! Remote procedure calls: requests and responses between threads of two processes, over a stream.
//!
//! ```text
//!   SharedMemoryClient (client/)                     SharedMemoryServer (server/)
//!     callers share a Multiplexer: one reads for all   a ConnectionDriver per connection always reads
//!     InFlightCalls: slots, ids, windows               ServedCalls: slots, outboxes, windows
//!        │                                                 │
//!        └── wire.rs, fragment.rs, preface.rs ────┘
//!                 over channel::{SenderCore, ReceiverCore}, out-of-band (OOB) words for cancels
//! ```
//!
//! # Invariants
//!
//! 1. **No thread switch**: a caller reads its own reply off the ring, and an inline method answers from the thread
//!    that read the request.
//! 2. **No call gets the reply of another**: an id is never used twice. A frame for a call that is not under way is
//!    dropped where a well-formed peer may send it, and is a protocol violation elsewhere.
//! 3. **No deadlock**: the server always reads, so a client's send always ends. A worker never waits for room in the
//!    ring: what it cannot send at once is queued with the connection. The client's windows and slots bound that
//!    queue. A call that a method makes ends no later than the call that the method serves, and a wait that only the
//!    waiting thread could end is refused: `nesting.rs`.
//! 4. **Cancels and credit overtake bulk data**: cancels are sent as out-of-band words. The server sends credit
//!    before items, and sends the items of different calls one fragment each in turn.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs `client/multiplexer.rs` and `server/connection.rs` under loom; fuzz `calls`,
//! and `tests/rpc` between processes.

pub mod client;
pub mod flow_control;
pub mod fragment;
mod nesting;
mod preface;
pub mod server;
#[cfg(feature = "serde")]
mod typed;
pub mod wire;

/// Returns the slot of a call, where there are `slots` of them, a power of two.
#[inline]
fn slot_index(id: u64, slots: usize) -> usize {
    // There are at most 256 slots, so the masked id fits.
    usize::try_from(id & (slots as u64).wrapping_sub(1)).unwrap_or(0)
}

/// The call is over: no thread waits for its outcome any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOver;
