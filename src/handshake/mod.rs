//! The handshake without I/O: state machines that take bytes and return a value or an error.
//!
//! ```text
//!  ClientHandshake                                    ServerHandshake
//!     hello()   ─────────── Hello, 64 bytes ──────────▶  feed()
//!                                                          │ HandshakeLimits::agree
//!     feed()    ◀── Accept  (128 bytes) + a memfd ─────  answer: Negotiated
//!               ◀── Reject  (128 bytes) ───────────────  or Reject
//!    ACKNOWLEDGE ── 1 byte, once the memfd is sealed ─▶  the last byte of the handshake
//! ```
//!
//! `docs/protocol.md` is the specification. This is version 2 of the protocol; version 1 was never published
//! and is refused.
//!
//! # Features
//!
//! A Hello has two words of feature bits. The server refuses *needed* bits that it does not know, and ignores *offered*
//! bits that it does not know. The Accept names the features that the connection uses: the offered bits that the server
//! knows. So a later release can add a feature without a new version. No feature exists yet, so both sides offer none.
//! The bits of the next two are reserved below.
//!
//! # Invariants
//!
//! 1. No function here uses a socket, a clock or a descriptor, and every function is total.
//! 2. A value that [`Hello::decode`] or [`Answer::decode`] returns was validated as a whole, and encodes into the same
//!    bytes (of a refusal, the version and the features may differ).
//! 3. A side never asks for a byte after the end of its message.
//! 4. The negotiated sizes exceed neither those that the client requests nor those that the server allows.
//!
//! # Proof
//!
//! Round trips, every value of every byte of the messages, and both state machines fed with every split.

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
/// The byte with which a client confirms that it has mapped and sealed the memory. It is the last byte of the
/// handshake.
pub const ACKNOWLEDGE: u8 = 0x06;
/// Bytes of a Hello.
pub const HELLO_LEN: usize = 64;
/// Bytes of an answer, an Accept or a Reject.
pub const ANSWER_LEN: usize = 128;
/// The most bytes of a refusal's text.
pub const TEXT_LEN: usize = 64;
/// The maximum length of a message that a connection can be configured for, in bytes.
pub const MAX_MESSAGE: u64 = u32::MAX as u64;

/// The result of the handshake, which both sides use from then on.
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
