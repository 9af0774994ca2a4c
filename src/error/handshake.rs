//! The faults that the bytes of a handshake can have.
//!
//! Each cause is a variant of its own, and carries the numbers that a person needs.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// A handshake message that no well-formed peer of this version sends.
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixListener;
/// use narrows::{ConnectError, HandshakeError, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("socket");
/// let other = UnixListener::bind(&path)?; // It speaks something else.
/// let other = std::thread::spawn(move || -> std::io::Result<_> {
///     let (mut client, _) = other.accept()?;
///     client.write_all(&[7; 4096])?;
///     client.read_to_end(&mut Vec::new())
/// });
/// match SharedMemoryStream::connect(&path) {
///     Err(ConnectError::BadAnswer(HandshakeError::BadMagic)) => println!("not a server of ours"),
///     other => panic!("{other:?}"),
/// }
/// # let _ended = other.join();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first eight bytes are not the magic number: the peer speaks another protocol.
    BadMagic,
    /// The lowest version is above the highest.
    BadVersions {
        /// The lowest version announced.
        min: u16,
        /// The highest version announced.
        max: u16,
    },
    /// The two sides have no version in common.
    NoCommonVersion {
        /// The lowest version that the peer speaks.
        min: u16,
        /// The highest version that the peer speaks.
        max: u16,
    },
    /// The peer needs, or uses, features that this side does not know; the value has their bits.
    UnknownFeatures(u32),
    /// The client needs features that it does not offer; the value has their bits.
    FeaturesNotOffered(u32),
    /// The geometry is outside the legal ranges, or a number in it is no power of two.
    BadGeometry {
        /// Slots of each ring.
        slots: u32,
        /// Bytes of each arena.
        arena: u64,
        /// Out-of-band words of each direction.
        oob: u32,
    },
    /// The longest message has no bytes, or more than 4 GiB - 1.
    BadMaxMessage(u64),
    /// The first ticket is greater than the last one that a direction can carry.
    BadTicket(u64),
    /// The size of the region is not what the geometry needs.
    BadRegionLen {
        /// Bytes announced.
        is: u64,
        /// Bytes that the geometry needs.
        needed: u64,
    },
    /// The answer is neither an Accept nor a Reject.
    UnknownKind(u16),
    /// A refusal's text is too long, not UTF-8, or holds control characters.
    BadText,
    /// Bytes that must be zero are not.
    ReservedNotZero,
    /// The Accept grants more than the client asked for.
    MoreThanWanted,
    /// The Hello is not from the process that the connection was handed to.
    WrongNonce,
    /// Bytes came after the end of the message.
    Surplus,
    /// A descriptor came with bytes that must carry none.
    UnexpectedDescriptor,
    /// The byte by which the client confirms the memory has another value.
    BadAcknowledgement(u8),
    /// The client confirmed the memory, but has not sealed it.
    NotSealed,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadMagic => f.write_str("the peer does not speak this protocol"),
            Self::BadVersions { min, max } => write!(f, "versions from {min} to {max} make no sense"),
            Self::NoCommonVersion { min, max } => {
                let range =
                    if min == max { format!("version {min}") } else { format!("versions {min} to {max}") };
                write!(
                    f,
                    "the peer speaks protocol {range}, this side {SPOKEN}: use the same release on both sides"
                )
            }
            Self::UnknownFeatures(bits) => write!(f, "the peer needs unknown features {bits:#x}"),
            Self::FeaturesNotOffered(bits) => {
                write!(f, "the peer needs features that it does not offer: {bits:#x}")
            }
            Self::BadGeometry { slots, arena, oob } => {
                write!(f, "{slots} slots, {arena} bytes, {oob} out-of-band words: no legal geometry")
            }
            Self::BadMaxMessage(max) => write!(f, "a longest message of {max} bytes is not legal"),
            Self::BadTicket(ticket) => write!(f, "a first ticket of {ticket} is not legal"),
            Self::BadRegionLen { is, needed } => {
                write!(f, "a region of {is} bytes does not fit a geometry of {needed} bytes")
            }
            Self::UnknownKind(kind) => write!(f, "an answer of unknown kind {kind}"),
            Self::BadText => f.write_str("the refusal's text cannot be shown"),
            Self::ReservedNotZero => f.write_str("reserved bytes are not zero"),
            Self::MoreThanWanted => f.write_str("the server grants more than was asked for"),
            Self::WrongNonce => f.write_str("the nonce is not the one that was handed over"),
            Self::Surplus => f.write_str("bytes came after the end of the message"),
            Self::UnexpectedDescriptor => f.write_str("a descriptor came where none belongs"),
            Self::BadAcknowledgement(byte) => {
                write!(f, "the memory was acknowledged by {byte:#04x}, which means nothing")
            }
            Self::NotSealed => f.write_str("the memory was acknowledged without being sealed"),
        }
    }
}

impl std::error::Error for HandshakeError {}

/// The version of the protocol that this library speaks. The module `handshake` asserts that it uses the same.
pub(crate) const SPOKEN: u16 = 2;

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Why a server refuses a client.
///
/// ```
/// use narrows::{ConnectError, HandshakeError, Options, RejectCode, SharedMemoryStream};
/// let folder = tempfile::tempdir()?;
/// let listener = Options::new().authorize(|_| false).bind(folder.path().join("socket"))?;
/// # let (path, closer) = (listener.local_path().to_owned(), listener.closer());
/// let server = std::thread::spawn(move || listener.accept());
/// match SharedMemoryStream::connect(path) {
///     Err(ConnectError::Rejected { code: RejectCode::NotAuthorized, text }) => println!("{text}"),
///     other => panic!("{other:?}"),
/// }
/// assert_eq!(RejectCode::from_number(RejectCode::Busy.number()), RejectCode::Busy);
/// assert_eq!(RejectCode::of(HandshakeError::BadMagic), RejectCode::BadHello);
/// # closer.close();
/// # let _ended = server.join();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectCode {
    /// The Hello was malformed.
    BadHello,
    /// The two sides have no version in common.
    Version,
    /// The client needs features that the server does not know.
    Features,
    /// The wanted geometry is not legal.
    Geometry,
    /// The wanted longest message is not legal.
    MaxMessage,
    /// The server's policy does not allow this user.
    NotAuthorized,
    /// The server could not provide memory or descriptors.
    Unavailable,
    /// The Hello is not from the process that the connection was handed to.
    WrongNonce,
    /// The server has as many clients as it takes, or shuts down.
    Busy,
    /// The server's program refused the client in its [`on_connect`](crate::SharedMemoryServer::on_connect) closure.
    Refused,
    /// A code of a newer version.
    Other(u16),
}

impl RejectCode {
    /// Returns the number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::BadHello => 1,
            Self::Version => 2,
            Self::Features => 3,
            Self::Geometry => 4,
            Self::MaxMessage => 5,
            Self::NotAuthorized => 6,
            Self::Unavailable => 7,
            Self::WrongNonce => 8,
            Self::Busy => 9,
            Self::Refused => 10,
            Self::Other(number) => number,
        }
    }

    /// Returns the code for a number on the wire.
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::BadHello,
            2 => Self::Version,
            3 => Self::Features,
            4 => Self::Geometry,
            5 => Self::MaxMessage,
            6 => Self::NotAuthorized,
            7 => Self::Unavailable,
            8 => Self::WrongNonce,
            9 => Self::Busy,
            10 => Self::Refused,
            other => Self::Other(other),
        }
    }

    /// Returns the code with which a server answers this error.
    pub fn of(error: HandshakeError) -> Self {
        match error {
            HandshakeError::BadVersions { .. } | HandshakeError::NoCommonVersion { .. } => Self::Version,
            HandshakeError::UnknownFeatures(_) => Self::Features,
            HandshakeError::BadGeometry { .. } => Self::Geometry,
            HandshakeError::BadMaxMessage(_) => Self::MaxMessage,
            HandshakeError::WrongNonce => Self::WrongNonce,
            _ => Self::BadHello,
        }
    }
}

impl fmt::Display for RejectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadHello => f.write_str("the hello made no sense"),
            Self::Version => f.write_str("no common version"),
            Self::Features => f.write_str("unknown features"),
            Self::Geometry => f.write_str("no legal geometry"),
            Self::MaxMessage => f.write_str("no legal longest message"),
            Self::NotAuthorized => f.write_str("this user is not let in"),
            Self::Unavailable => f.write_str("out of memory or descriptors"),
            Self::WrongNonce => f.write_str("wrong nonce"),
            Self::Busy => f.write_str("the server takes no more clients now"),
            Self::Refused => f.write_str("its program does not take this client"),
            Self::Other(number) => write!(f, "code {number}"),
        }
    }
}

/// Shortens a text to at most `most` bytes, between two words if possible, and appends an ellipsis.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let mut end = most.saturating_sub(ELLIPSIS.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (kept, rest) = text.split_at(end);
    let whole_word = rest.starts_with(char::is_whitespace);
    // A long word at the start is cut: leaving it out would leave too little of the text.
    let kept = match kept.rsplit_once(char::is_whitespace) {
        Some((words, _)) if !whole_word && words.len() >= end / 2 => words,
        _ => kept,
    };
    let kept = kept.trim_end();
    if most < ELLIPSIS.len_utf8() { kept.into() } else { format!("{kept}{ELLIPSIS}").into() }
}

const ELLIPSIS: char = '\u{2026}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shortened_between_words_and_never_too_long() {
        for (text, most, short) in [
            ("one two three", 13, "one two three"),
            ("one two three", 12, "one two…"),
            ("one two three", 10, "one two…"),
            ("one two three", 9, "one…"),
            ("a verylongword", 10, "a veryl…"),
            ("éééééé", 8, "éé…"),
            ("long", 3, "…"),
            ("long", 2, ""),
        ] {
            assert_eq!(shortened(text, most), short, "{most}");
        }
        let text = "é two  thrée\u{2003}four";
        assert!((0..text.len() + 2).all(|most| shortened(text, most).len() <= most));
    }
}
