//! The handshake without its socket: bytes in, a value or an error out.
//!
//! ```text
//!  ClientHandshake                                    ServerHandshake
//!     hello()   ─────────── Hello, 64 bytes ──────────▶  feed()
//!                                                          │ Limits::agree
//!     feed()    ◀── Welcome (128 bytes) + a memfd ─────  answer: Agreement
//!               ◀── Reject  (128 bytes) ───────────────  or Reject
//!    ACKNOWLEDGE ── 1 byte, once the memfd is sealed ─▶  the last byte of the handshake
//! ```
//!
//! `docs/protocol.md` is the specification. This is version 2 of the protocol; version 1 was never published
//! and is refused.
//!
//! # Features
//!
//! A Hello has two words of feature bits. *Needed* bits that the server does not know are refused. *Offered* bits
//! that the server does not know are ignored: the Welcome names those that the connection uses, which are offered
//! bits that the server knows. A later release thus adds a feature without a new version. No feature
//! exists yet, so both sides offer none; the bits of the next two are reserved below.
//!
//! # Invariants
//!
//! 1. Nothing here sees a socket, a clock or a descriptor; every function is total.
//! 2. A value that [`Hello::decode`] or [`Answer::decode`] returns was judged whole, and encodes
//!    into the very bytes that it came from.
//! 3. A side never asks for a byte behind the end of its message.
//! 4. What is agreed exceeds neither what the client wants nor what the server allows.
//!
//! # Proof
//!
//! Round trips, and every value of every byte of both messages; both machines fed in every split.

mod client;
mod codec;
mod server;
mod wire;

pub use client::{ClientHandshake, ClientStep};
pub use codec::{Answer, Hello, Reject};
pub use server::{HandshakeLimits, ServerHandshake};

use crate::layout::Geometry;

/// The oldest version of the protocol that this library speaks.
pub const VERSION_MIN: u16 = 2;
/// The newest version of the protocol that this library speaks.
pub const VERSION_MAX: u16 = 2;
static_assertions::const_assert_eq!(VERSION_MAX, crate::error::SPOKEN);

/// Every feature that this library implements, as bits.
pub const FEATURES: u32 = 0;
/// Reserved: a side may sleep on the socket instead of a futex (flag value 3 asks for one byte on the socket).
#[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "reserved"))]
pub const FEATURE_DOORBELL: u32 = 1 << 0;
/// Reserved: one slot may carry many small messages (slot kind 6).
#[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "reserved"))]
pub const FEATURE_PACKS: u32 = 1 << 1;
/// The byte by which a client confirms that it has mapped and sealed the memory; the last of the handshake.
pub const ACKNOWLEDGE: u8 = 0x06;
/// Bytes of a Hello.
pub const HELLO_LEN: usize = 64;
/// Bytes of an answer, be it Welcome or Reject.
pub const ANSWER_LEN: usize = 128;
/// The most bytes of a refusal's text.
pub const TEXT_LEN: usize = 64;
/// The longest message that any connection can carry, in bytes.
pub const MAX_MESSAGE: u64 = u32::MAX as u64;

/// What both sides go by from the handshake on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version of the protocol.
    pub version: u16,
    /// The features in use, as bits: offered by the client and known to the server.
    pub features: u32,
    /// The sizes of the region.
    pub geometry: Geometry,
    /// The longest message, in bytes.
    pub max_message: u64,
    /// The ticket with which both directions begin.
    pub first_ticket: u64,
}
