//! Calls: request and response over a stream, for threads.
//!
//! ```text
//!   SharedMemoryClient (client/)                     SharedMemoryServer (server/)
//!     callers share a Desk: one reads for all          an Attendant per connection always reads
//!     Table: places, ids, windows                      Table: places, outboxes, windows
//!        │                                                 │
//!        └── frame.rs, wire.rs, fragment.rs, preface.rs ────┘
//!                 over channel::{Outbound, Inbound}, urgent words for cancels
//! ```
//!
//! # Invariants
//!
//! 1. **No hop**: a caller reads its own reply off the ring, and an inline method answers from the thread that read
//!    the request.
//! 2. **Never mixed up**: an id is never used twice; a frame for what is not under way is dropped where an honest
//!    peer may send it, and a violation elsewhere.
//! 3. **Never deadlocked**: the server always reads, so a client's send always ends. What the server has to say is
//!    left with the connection, never waited for by a worker, and bounded by the client's windows and places.
//!    A method's own calls end with the call that it serves, and a wait for oneself is found: `nesting.rs`.
//! 4. **Cancel and control overtake bulk**: cancels go by urgent words; items are sent a piece each in turn.
//!
//! # Proof
//!
//! `loom-tests/src/models/calls.rs` runs `client/multiplexer.rs` and `server/connection.rs` under loom; fuzz `calls`, and
//! `tests/rpc` between processes.

pub mod client;
pub mod fragment;
pub mod frame;
mod nesting;
mod preface;
pub mod server;
#[cfg(feature = "serde")]
mod typed;
pub mod wire;

/// The place of a call among so many, a power of two.
#[inline]
fn slot_index(id: u64, slots: usize) -> usize {
    // At most 256 places: what the mask leaves fits.
    usize::try_from(id & (slots as u64).wrapping_sub(1)).unwrap_or(0)
}

/// Nobody waits for the call any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOver;
