//! The frames of the call layer: eight bytes in front of a message, its tag, and the first exchange.
//!
//! ```text
//!  message   0 kind   1 flags   2 sequence (16 bits)   4 word (32 bits)   8 body
//!  its tag   the id of the call, or 0
//!
//!  kind      from     word      body                           id
//!  Hello     client   0         settings                       0
//!  Welcome   server   0         settings                       0
//!  Refuse    server   code      text                           0
//!  Call      client   method    [time left, 8 bytes] request   of a free place
//!  Chunk     both     0         a chunk of a stream            its call
//!  End       both     0         none                           its call
//!  Credit    both     how much  none                           its call; 0: pushes
//!  Reply     server   0         the whole reply                its call
//!  Error     server   status    code of 4 bytes, text          its call
//!  Push      server   0         what nobody asked for          0
//!  Rest      both     0         the next piece of what began   as it began
//!  Goodbye   server   0         none                           0
//! ```
//!
//! A Call, Chunk, Reply or Push that exceeds a piece goes on in Rest frames; each but the last has the flag
//! More. The sequence counts the Call, Chunk, End, Reply, Push and Rest frames of one id in one direction, from 0, and
//! wraps; the others have 0 there. Behind a Goodbye the server begins no call: what it has not answered by then, it never
//! began. `docs/protocol-calls.md` has all that another implementation needs.
//!
//! # Invariants
//!
//! 1. Decoding never panics and allocates nothing; what no peer of this version writes is an error.
//! 2. A head that decodes encodes to the same bytes.
//!
//! # Proof
//!
//! The tests below try every value of every field; fuzz `calls`.

use crate::error::ProtocolViolation;

/// Bytes of a head.
pub const HEADER_LEN: usize = 8;

/// Bytes of the settings.
pub const SETTINGS_LEN: usize = 32;

/// What a chunk or push costs of a window beside its bytes, so that empty ones are not free.
pub const CHUNK_COST: u32 = 64;

/// The smallest window, in bytes.
pub const MIN_WINDOW: u32 = 1024;

/// Bytes of the longest error: its code and its text.
pub const ERROR_LEN: usize = 4 + 1024;

/// Further pieces of this item follow.
pub const MORE: u8 = 1;
/// The reply is a stream.
pub const STREAM: u8 = 2;
/// The request is followed by a stream.
pub const UPLOAD: u8 = 4;
/// The caller does not wait; the reply is empty.
pub const NOTIFY: u8 = 8;
/// The caller's time left stands before the request, in nanoseconds.
pub const DEADLINE: u8 = 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The table above.
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

    /// The flags that it may have.
    fn flags(self) -> u8 {
        match self {
            Self::Call => MORE | STREAM | UPLOAD | NOTIFY | DEADLINE,
            Self::Chunk | Self::Reply | Self::Push | Self::Continuation => MORE,
            _ => 0,
        }
    }

    /// Whether frames of it are counted by the sequence.
    pub fn is_sequenced(self) -> bool {
        matches!(self, Self::Call | Self::Chunk | Self::End | Self::Reply | Self::Push | Self::Continuation)
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it is.
    pub kind: FrameKind,
    /// Bits: [`MORE`] and the others.
    pub flags: u8,
    /// The count of the frame.
    pub seq: u16,
    /// By kind: a method, a status, an amount, or 0.
    pub word: u32,
}

impl FrameHeader {
    /// A head with no flags, whose sequence is set when it is sent.
    pub fn new(kind: FrameKind, word: u32) -> Self {
        Self { kind, flags: 0, seq: 0, word }
    }

    /// With these flags too.
    pub fn with_flags(self, flags: u8) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// Whether it has one of these flags.
    pub fn has_flag(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Writes it down.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        // As one number: bytes that are stored one by one and loaded together wait for each other.
        let low = u64::from(self.kind as u8) | u64::from(self.flags) << 8 | u64::from(self.seq) << 16;
        (low | u64::from(self.word) << 32).to_le_bytes()
    }

    /// Reads and judges it.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for all that no peer of this version writes.
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
        let worded = match kind {
            FrameKind::Call => true,
            FrameKind::Error => Status::of(word).is_some(),
            FrameKind::Refuse => (1..=u32::from(u16::MAX)).contains(&word),
            FrameKind::Credit => word != 0,
            _ => word == 0,
        };
        if !worded || (seq != 0 && !kind.is_sequenced()) {
            return Err(ProtocolViolation("a frame with a word that it cannot have"));
        }
        Ok(head)
    }
}

/// Why the server did not answer with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The public errors say what they mean.
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
    /// The status of a word.
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

/// What each side tells the other first: how much it takes of what it did not ask for piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The newest version that it speaks.
    pub version: u16,
    /// What may be under way of each stream towards it: bytes, and [`CHUNK_COST`] for each chunk.
    pub stream_window: u32,
    /// The same of pushes, all together.
    pub push_window: u32,
}

/// The version that is spoken here.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"narrows#";

impl Settings {
    /// Writes them down.
    pub fn encode(&self) -> [u8; SETTINGS_LEN] {
        let mut bytes = [0; SETTINGS_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stream_window.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.push_window.to_le_bytes());
        bytes
    }

    /// Reads and judges them. Of another version only the version is judged.
    ///
    /// # Errors
    ///
    /// [`ProtocolViolation`] for all that no peer of this version writes.
    pub fn decode(bytes: &[u8; SETTINGS_LEN]) -> Result<Self, ProtocolViolation> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if bytes[..8] != MAGIC || version == 0 {
            return Err(ProtocolViolation("a first frame that is no greeting"));
        }
        let settings = Self { version, stream_window: word(12), push_window: word(16) };
        let zero = bytes[10..12].iter().chain(&bytes[20..]).all(|&byte| byte == 0);
        let least = settings.stream_window.min(settings.push_window);
        if version == VERSION && !(zero && least >= MIN_WINDOW) {
            return Err(ProtocolViolation("a greeting with settings that cannot be"));
        }
        Ok(settings)
    }
}

/// What a chunk or push of `len` bytes costs of its window.
#[inline]
pub fn window_cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(CHUNK_COST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decodes_encodes_to_the_same() {
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
        // Hello, Welcome and Goodbye, Error (1 is a status), Refuse, Credit: sequence 0; calls: 20 sets of flags.
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
