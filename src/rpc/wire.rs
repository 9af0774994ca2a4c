//! The wire format of calls: the header of a frame, and the settings of the preface.
//!
//! ```text
//!  message   0 kind   1 flags   2 sequence (16 bits)   4 word (32 bits)   8 body
//!  its tag   the id of the call, or 0
//!
//!  kind          from     word     body                           id
//!  Hello         client   0        settings                       0
//!  Accept        server   0        settings                       0
//!  Refuse        server   code     text                           0
//!  Call          client   method   [time left, 8 bytes] request   of a free slot
//!  Chunk         both     0        a chunk of a stream            its call
//!  End           both     0        none                           its call
//!  Credit        both     amount   none                           its call; 0: pushes
//!  Reply         server   0        the whole reply                its call
//!  Error         server   status   code of 4 bytes, text          its call
//!  Push          server   0        a push                         0
//!  Continuation  both     0        the next fragment of an item   that of the item
//!  Goodbye       server   0        none                           0
//! ```
//!
//! A Call, Chunk, Reply or Push that is longer than a fragment is continued in Continuation frames; each of its
//! frames but the last has the flag [`MORE`]. The sequence counts the Call, Chunk, End, Reply, Push and Continuation
//! frames of one id in one direction, from 0, and wraps. All other frames have 0 there. The server begins no call
//! behind a Goodbye: a call that it has not answered by then was never begun. `docs/protocol-calls.md` has all that
//! another implementation needs.
//!
//! # Invariants
//!
//! 1. Decoding never panics and allocates nothing. Bytes that no peer of this version writes are an error.
//! 2. A header that decodes encodes to the same bytes.
//!
//! # Proof
//!
//! The tests below try every kind and flag, and every byte of the settings; fuzz `calls`.

use crate::channel::{IncomingMessage, ReceiverCore, SendCoreError, SenderCore, Wait, WaitPolicy};
use crate::error::{MethodKind, ProtocolViolation};
use crate::memory::Memory;
use crate::rpc::flow_control::MIN_WINDOW;

/// The length of a header, in bytes.
pub const HEADER_LEN: usize = 8;

/// The length of the settings, in bytes.
pub const SETTINGS_LEN: usize = 32;

/// The length of the longest error, in bytes: its code and its text.
pub const ERROR_LEN: usize = 4 + 1024;

/// Further fragments of this item follow.
pub const MORE: u8 = 1;
/// The reply is a stream.
pub const STREAM: u8 = 2;
/// The request is followed by a stream.
pub const UPLOAD: u8 = 4;
/// The caller does not wait for the outcome.
pub const NOTIFY: u8 = 8;
/// The time that the caller has left stands before the request, in nanoseconds.
pub const DEADLINE: u8 = 16;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The table at the top of this file has them.
pub enum FrameKind {
    Hello = 1,
    Accept = 2,
    Refuse = 3,
    Call = 4,
    Chunk = 5,
    End = 6,
    Credit = 7,
    Reply = 8,
    Error = 9,
    Push = 10,
    Continuation = 11,
    Goodbye = 12,
}

impl FrameKind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [FrameKind; 12] = [
            FrameKind::Hello,
            FrameKind::Accept,
            FrameKind::Refuse,
            FrameKind::Call,
            FrameKind::Chunk,
            FrameKind::End,
            FrameKind::Credit,
            FrameKind::Reply,
            FrameKind::Error,
            FrameKind::Push,
            FrameKind::Continuation,
            FrameKind::Goodbye,
        ];
        ALL.get(usize::from(byte).wrapping_sub(1)).copied()
    }

    /// Returns the flags that frames of this kind may have.
    fn flags(self) -> u8 {
        match self {
            Self::Call => MORE | STREAM | UPLOAD | NOTIFY | DEADLINE,
            Self::Chunk | Self::Reply | Self::Push | Self::Continuation => MORE,
            _ => 0,
        }
    }

    /// Returns whether frames of this kind are counted by the sequence.
    pub fn is_sequenced(self) -> bool {
        matches!(self, Self::Call | Self::Chunk | Self::End | Self::Reply | Self::Push | Self::Continuation)
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The kind.
    pub kind: FrameKind,
    /// The flags: [`MORE`] and the others.
    pub flags: u8,
    /// The sequence number of the frame.
    pub seq: u16,
    /// Depends on the kind: a method, a status, an amount, or 0.
    pub word: u32,
}

impl FrameHeader {
    /// Returns a header without flags, whose sequence number is set when it is sent.
    pub fn new(kind: FrameKind, word: u32) -> Self {
        Self { kind, flags: 0, seq: 0, word }
    }

    /// Returns the header with these flags added.
    pub fn with_flags(self, flags: u8) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// Returns whether the header has one of these flags.
    pub fn has_flag(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Encodes the header.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        // Build one number and store it once: a load of eight bytes that were stored one by one must wait for all of
        // the stores.
        let low = u64::from(self.kind as u8) | u64::from(self.flags) << 8 | u64::from(self.seq) << 16;
        (low | u64::from(self.word) << 32).to_le_bytes()
    }

    /// Decodes a header, and validates it.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no peer of this version writes these bytes.
    #[inline]
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, ProtocolViolation> {
        let all = u64::from_le_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the parts of a word")]
        let (kind, flags, seq, word) = (all as u8, (all >> 8) as u8, (all >> 16) as u16, (all >> 32) as u32);
        let kind = FrameKind::of(kind).ok_or(ProtocolViolation("a frame of an unknown kind"))?;
        let head = Self { kind, flags, seq, word };
        if flags & !kind.flags() != 0 || (head.has_flag(NOTIFY) && head.has_flag(STREAM | UPLOAD)) {
            return Err(ProtocolViolation("a frame with flags that it cannot have"));
        }
        let word_is_valid = match kind {
            FrameKind::Call => true,
            FrameKind::Error => Status::of(word).is_some(),
            FrameKind::Refuse => (1..=u32::from(u16::MAX)).contains(&word),
            FrameKind::Credit => word != 0,
            _ => word == 0,
        };
        if !word_is_valid || (seq != 0 && !kind.is_sequenced()) {
            return Err(ProtocolViolation("a frame with a word that it cannot have"));
        }
        Ok(head)
    }
}

/// Why the server did not answer with a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The variants of `CallError` document them.
pub enum Status {
    UnknownMethod = 1,
    WrongKind = 2,
    Failed = 3,
    Panicked = 4,
    ReplyTooLarge = 5,
    Busy = 6,
    ShuttingDown = 7,
    Cancelled = 8,
    OutOfMemory = 9,
}

impl Status {
    /// Returns the status with this number.
    pub fn of(word: u32) -> Option<Self> {
        const ALL: [Status; 9] = [
            Status::UnknownMethod,
            Status::WrongKind,
            Status::Failed,
            Status::Panicked,
            Status::ReplyTooLarge,
            Status::Busy,
            Status::ShuttingDown,
            Status::Cancelled,
            Status::OutOfMemory,
        ];
        ALL.get(usize::try_from(word).ok()?.wrapping_sub(1)).copied()
    }
}

/// The code of an Error with the status Busy: there is no memory for the request.
pub const BUSY_MEMORY: u32 = 4;

/// Returns the kind of method that is called with these flags, of which others than `STREAM` and `UPLOAD` do not count.
pub(super) fn kind_from(flags: u32) -> MethodKind {
    match (flags & u32::from(UPLOAD) != 0, flags & u32::from(STREAM) != 0) {
        (false, false) => MethodKind::Unary,
        (false, true) => MethodKind::Streaming,
        (true, false) => MethodKind::Upload,
        (true, true) => MethodKind::Duplex,
    }
}

/// What each side sends first: its version, and how much it lets the peer send without credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The newest version that the sender speaks.
    pub version: u16,
    /// The window of each stream towards the sender: bytes, and [`CHUNK_COST`](super::flow_control::CHUNK_COST) for each chunk.
    pub stream_window: u32,
    /// The window of all pushes together, likewise.
    pub push_window: u32,
}

/// The version that this library speaks.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"narrows#";

impl Settings {
    /// Encodes the settings.
    pub fn encode(&self) -> [u8; SETTINGS_LEN] {
        let mut bytes = [0; SETTINGS_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stream_window.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.push_window.to_le_bytes());
        bytes
    }

    /// Decodes settings, and validates them. Of another version only the magic and the version are validated.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if no peer of this version writes these bytes.
    pub fn decode(bytes: &[u8; SETTINGS_LEN]) -> Result<Self, ProtocolViolation> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if bytes[..8] != MAGIC || version == 0 {
            return Err(ProtocolViolation("a first frame that is not a preface"));
        }
        let settings = Self { version, stream_window: word(12), push_window: word(16) };
        let zero = bytes[10..12].iter().chain(&bytes[20..]).all(|&byte| byte == 0);
        let least = settings.stream_window.min(settings.push_window);
        // A later version keeps the windows where they are; what else it adds is not known here.
        if least < MIN_WINDOW || (version == VERSION && !zero) {
            return Err(ProtocolViolation("a preface with settings out of range"));
        }
        Ok(settings)
    }
}

/// Sends one frame, whose body is the concatenation of two parts.
#[inline]
pub fn send_frame<M: Memory, P: WaitPolicy>(
    out: &mut SenderCore<M, P>,
    head: FrameHeader,
    body: [&[u8]; 2],
    id: u64,
    wait: Wait,
) -> Result<(), SendCoreError> {
    out.send_framed(head.encode(), body, id, wait).map(drop)
}

/// A received frame, whose body is still where the message arrived.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The header.
    pub head: FrameHeader,
    /// The id of the call, or 0.
    pub id: u64,
    message: IncomingMessage,
}

impl Frame {
    /// Reads the header of a message.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] if the message is not a frame.
    #[inline]
    pub fn open<M: Memory, P: WaitPolicy>(
        inbound: &ReceiverCore<M, P>,
        message: &IncomingMessage,
    ) -> Result<Self, ProtocolViolation> {
        let mut head = [0; HEADER_LEN];
        match inbound.read_at(message, 0, &mut head) {
            Ok(()) => Ok(Self { head: FrameHeader::decode(head)?, id: message.tag(), message: *message }),
            Err(_) => Err(ProtocolViolation("a message without a header")),
        }
    }

    /// Returns the length of the body, in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.message.len() - HEADER_LEN
    }

    /// Returns whether the frame has no body.
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "for tests"))]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the message that carries the frame.
    #[inline]
    pub fn message(&self) -> &IncomingMessage {
        &self.message
    }

    /// Copies the body from offset `at` on into all of `into`; returns `None` if the body has fewer bytes.
    #[inline]
    pub fn read<M: Memory, P: WaitPolicy>(
        &self,
        inbound: &ReceiverCore<M, P>,
        at: usize,
        into: &mut [u8],
    ) -> Option<()> {
        inbound.read_at(&self.message, HEADER_LEN.checked_add(at)?, into).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_header_encodes_to_the_same_bytes() {
        let mut legal = 0;
        for kind in 0..=u8::MAX {
            for flags in 0..=u8::MAX {
                for word in [0, 1, 10, 11, 64, u32::MAX] {
                    for seq in [0_u16, 1, u16::MAX] {
                        let mut bytes = [kind, flags, 0, 0, 0, 0, 0, 0];
                        bytes[2..4].copy_from_slice(&seq.to_le_bytes());
                        bytes[4..].copy_from_slice(&word.to_le_bytes());
                        if let Ok(head) = FrameHeader::decode(bytes) {
                            assert_eq!(head.encode(), bytes);
                            legal += 1;
                        }
                    }
                }
            }
        }
        // Hello, Accept and Goodbye, Error (1 is a status), Refuse, Credit: sequence 0; calls: 20 sets of flags.
        let words = 3 + 1 + 4 + 5;
        let counted = 20 * 6 * 3 + (4 * 2 + 1) * 3;
        assert_eq!(legal, words + counted);
    }

    #[test]
    fn every_value_of_every_byte_of_the_settings() {
        let good = Settings { version: VERSION, stream_window: 1 << 20, push_window: MIN_WINDOW };
        assert_eq!(Settings::decode(&good.encode()), Ok(good));
        for at in 0..SETTINGS_LEN {
            for byte in 0..=u8::MAX {
                let mut bytes = good.encode();
                bytes[at] = byte;
                match Settings::decode(&bytes) {
                    Ok(it) if it.version == VERSION => assert_eq!(it.encode(), bytes),
                    Ok(it) => assert!(at == 8 || at == 9, "{it:?}"),
                    Err(_) => (),
                }
            }
        }
        assert!(Settings::decode(&[0; SETTINGS_LEN]).is_err());
    }
}
