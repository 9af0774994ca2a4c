//! The messages of the handshake: fixed length, little-endian, each field at the same offset in all versions from 2 on.
//!
//! ```text
//!  Hello     0 magic "narrows?"   8 version min   10 max   12 features needed
//!           16 slots  20 oob     24 arena  32 max message  40 nonce
//!           48 features offered  52 zero                                                64
//!  Accept    0 magic "narrows!"   8 kind 1        10 version  12 features in use
//!           16 slots  20 oob     24 arena  32 max message  40 first ticket
//!           48 region length     56 zero                                               128
//!  Reject    0 magic "narrows!"   8 kind 2        10 version  12 features known
//!           16 code   18 length  20 zero  24 text, 64 bytes  88 zero                   128
//! ```
//!
//! # Invariants
//!
//! 1. Magic and versions are validated before all other fields, since a later version may move those.
//! 2. Decoding never allocates beyond [`TEXT_LEN`] bytes and never panics.
//!
//! # Proof
//!
//! The tests below: identity both ways, and every value of every byte.

use crate::error::{HandshakeError, RejectCode, shortened};
use crate::layout::{Geometry, LAST_TICKET};

use super::wire::{Reader, Writer};
use super::{ANSWER_LEN, FEATURES, HELLO_LEN, Negotiated, TEXT_LEN, VERSION_MAX, VERSION_MIN};

/// The first message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version that the client speaks.
    pub version_min: u16,
    /// The newest version that the client speaks.
    pub version_max: u16,
    /// Features that the client needs, as bits. Each is offered, too.
    pub features: u32,
    /// Features that the client can use, as bits; the server may not know all of them.
    pub offered: u32,
    /// The largest sizes that the client requests.
    pub wanted: Geometry,
    /// The maximum length of a message that the client requests, in bytes, from 1 to
    /// [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub max_message: u64,
    /// Proves to a parent that this is its child; 0 everywhere else.
    pub nonce: u64,
}

/// The answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server accepts the client. The descriptor of the memory comes with this message.
    Accept(Negotiated),
    /// The server refuses the client.
    Reject(Reject),
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    code: RejectCode,
    text: String,
}

impl Hello {
    /// Encodes the message.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut to = Writer::new();
        to.put(HELLO_MAGIC);
        to.put(self.version_min.to_le_bytes());
        to.put(self.version_max.to_le_bytes());
        to.put(self.features.to_le_bytes());
        to.geometry(&self.wanted);
        to.put(self.max_message.to_le_bytes());
        to.put(self.nonce.to_le_bytes());
        to.put(self.offered.to_le_bytes());
        to.done()
    }

    /// Decodes and validates the message.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`] for every value that no client of a known version writes.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Result<Self, HandshakeError> {
        let mut from = Reader::new(bytes);
        from.magic(HELLO_MAGIC)?;
        let (version_min, version_max) = (from.u16(), from.u16());
        validate_versions(version_min, version_max)?;
        let features = from.features()?;
        let wanted = from.geometry()?;
        let max_message = from.max_message()?;
        let nonce = from.u64();
        let offered = from.u32();
        from.rest_is_zero()?;
        validate_offer(features, offered)?;
        Ok(Self { version_min, version_max, features, offered, wanted, max_message, nonce })
    }
}

impl Answer {
    /// Encodes the message.
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        match self {
            Self::Accept(agreement) => encode_accept(agreement),
            Self::Reject(reject) => encode_reject(reject),
        }
    }

    /// Decodes and validates the message.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`] for every value that no server of a known version writes.
    pub fn decode(bytes: &[u8; ANSWER_LEN]) -> Result<Self, HandshakeError> {
        let mut from = Reader::new(bytes);
        from.magic(ANSWER_MAGIC)?;
        match from.u16() {
            ACCEPT => decode_accept(from).map(Self::Accept),
            REJECT => decode_reject(from).map(Self::Reject),
            kind => Err(HandshakeError::UnknownKind(kind)),
        }
    }
}

impl Reject {
    /// Creates a refusal. Control characters are removed from the text, and it is shortened to [`TEXT_LEN`] bytes.
    pub fn new(code: RejectCode, text: &str) -> Self {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        Self { code, text: shortened(&text, TEXT_LEN).into_owned() }
    }

    /// Returns the reason, for programs.
    pub fn code(&self) -> RejectCode {
        self.code
    }

    /// Returns the reason, for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<HandshakeError> for Reject {
    fn from(error: HandshakeError) -> Self {
        let code = RejectCode::of(error);
        match code {
            // The client's user needs this side's version, in at most TEXT_LEN bytes.
            RejectCode::Version => Self::new(
                code,
                &format!("this server speaks version {VERSION_MAX}: use the same release on both sides"),
            ),
            _ => Self::new(code, &error.to_string()),
        }
    }
}

pub(super) const HELLO_MAGIC: [u8; 8] = *b"narrows?";
pub(super) const ANSWER_MAGIC: [u8; 8] = *b"narrows!";

/// Returns whether the first `filled` bytes can be the beginning of a message with this magic number.
pub(super) fn begins(bytes: &[u8], filled: usize, magic: [u8; 8]) -> bool {
    bytes.iter().zip(magic).take(filled).all(|(is, should)| *is == should)
}

const ACCEPT: u16 = 1;
const REJECT: u16 = 2;

fn validate_versions(min: u16, max: u16) -> Result<(), HandshakeError> {
    if min > max {
        return Err(HandshakeError::BadVersions { min, max });
    }
    if min > VERSION_MAX || max < VERSION_MIN {
        return Err(HandshakeError::NoCommonVersion { min, max });
    }
    Ok(())
}

/// Checks that the client offers every feature that it needs.
fn validate_offer(needed: u32, offered: u32) -> Result<(), HandshakeError> {
    match needed & !offered {
        0 => Ok(()),
        missing => Err(HandshakeError::FeaturesNotOffered(missing)),
    }
}

fn encode_accept(agreement: &Negotiated) -> [u8; ANSWER_LEN] {
    let mut to = Writer::new();
    to.put(ANSWER_MAGIC);
    to.put(ACCEPT.to_le_bytes());
    to.put(agreement.version.to_le_bytes());
    to.put(agreement.features.to_le_bytes());
    to.geometry(&agreement.geometry);
    to.put(agreement.max_message.to_le_bytes());
    to.put(agreement.first_ticket.to_le_bytes());
    to.put((agreement.geometry.region_len() as u64).to_le_bytes());
    to.done()
}

fn decode_accept(mut from: Reader<'_>) -> Result<Negotiated, HandshakeError> {
    let version = from.u16();
    validate_versions(version, version)?;
    let features = from.features()?;
    let geometry = from.geometry()?;
    let max_message = from.max_message()?;
    let first_ticket = from.u64();
    if first_ticket > LAST_TICKET {
        return Err(HandshakeError::BadTicket(first_ticket));
    }
    let (is, needed) = (from.u64(), geometry.region_len() as u64);
    if is != needed {
        return Err(HandshakeError::BadRegionLen { is, needed });
    }
    from.rest_is_zero()?;
    Ok(Negotiated { version, features, geometry, max_message, first_ticket })
}

fn encode_reject(reject: &Reject) -> [u8; ANSWER_LEN] {
    let mut text = [0; TEXT_LEN];
    let len = reject.text.bytes().zip(&mut text).map(|(byte, to)| *to = byte).count();
    let mut to = Writer::new();
    to.put(ANSWER_MAGIC);
    to.put(REJECT.to_le_bytes());
    to.put(VERSION_MAX.to_le_bytes());
    to.put(FEATURES.to_le_bytes());
    to.put(reject.code.number().to_le_bytes());
    to.put(u16::try_from(len).unwrap_or(0).to_le_bytes()); // At most TEXT_LEN.
    to.put([0; 4]);
    to.put(text);
    to.done()
}

/// Validates only the fields that every version keeps. A refusal of another version must be readable too, so its
/// version and its features are not checked.
fn decode_reject(mut from: Reader<'_>) -> Result<Reject, HandshakeError> {
    let (_version, _features) = (from.u16(), from.u32());
    let code = RejectCode::from_number(from.u16());
    let len = usize::from(from.u16());
    let reserved = from.u32();
    let text: [u8; TEXT_LEN] = from.take();
    from.rest_is_zero()?;
    let Some((text, rest)) = text.split_at_checked(len) else {
        return Err(HandshakeError::BadText);
    };
    if reserved != 0 || rest.iter().any(|&byte| byte != 0) {
        return Err(HandshakeError::ReservedNotZero);
    }
    match std::str::from_utf8(text) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(Reject { code, text: text.into() }),
        _ => Err(HandshakeError::BadText),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{FEATURE_DOORBELL, FEATURE_PACKS, MAX_MESSAGE};

    fn hello(seed: &mut fastrand::Rng) -> Hello {
        Hello {
            version_min: seed.u16(0..=VERSION_MAX),
            version_max: seed.u16(VERSION_MAX..),
            features: 0,
            offered: seed.u32(..),
            wanted: geometry(seed),
            max_message: seed.u64(1..=MAX_MESSAGE),
            nonce: seed.u64(..),
        }
    }

    fn geometry(seed: &mut fastrand::Rng) -> Geometry {
        Geometry::new(1 << seed.u32(0..=16), 1 << seed.u32(6..=30), 1 << seed.u32(0..=8)).expect("legal")
    }

    fn answer(seed: &mut fastrand::Rng) -> Answer {
        if seed.bool() {
            let text: String = (0..seed.usize(0..80)).map(|_| seed.char(..)).collect();
            return Answer::Reject(Reject::new(RejectCode::from_number(seed.u16(..)), &text));
        }
        Answer::Accept(Negotiated {
            version: VERSION_MAX,
            features: 0,
            geometry: geometry(seed),
            max_message: seed.u64(1..=MAX_MESSAGE),
            first_ticket: seed.u64(0..=LAST_TICKET),
        })
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut seed = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let hello = hello(&mut seed);
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            let answer = answer(&mut seed);
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn every_value_of_every_byte_is_refused_or_kept() {
        let mut seed = fastrand::Rng::with_seed(2);
        for _ in 0..20 {
            let (hello, answer) = (hello(&mut seed).encode(), answer(&mut seed).encode());
            for at in 0..HELLO_LEN {
                for byte in 0..=u8::MAX {
                    let mut bytes = hello;
                    bytes[at] = byte;
                    assert!(Hello::decode(&bytes).map_or(true, |it| it.encode() == bytes));
                }
            }
            for at in 0..ANSWER_LEN {
                for byte in 0..=u8::MAX {
                    let mut bytes = answer;
                    bytes[at] = byte;
                    let known = &mut bytes.clone();
                    known[10..16].copy_from_slice(&answer[10..16]); // Those of a refusal are not checked.
                    assert!(Answer::decode(&bytes).map_or(true, |it| it.encode() == *known));
                }
            }
        }
    }

    #[test]
    fn many_mutations_at_once_never_panic() {
        let mut seed = fastrand::Rng::with_seed(3);
        for _ in 0..200_000 {
            let (mut first, mut second) = (hello(&mut seed).encode(), answer(&mut seed).encode());
            for _ in 0..seed.usize(1..8) {
                first[seed.usize(0..HELLO_LEN)] = seed.u8(..);
                second[seed.usize(0..ANSWER_LEN)] = seed.u8(..);
            }
            assert!(Hello::decode(&first).map_or(true, |it| it.encode() == first));
            let _ = Answer::decode(&second);
        }
        assert_eq!(Hello::decode(&[0; HELLO_LEN]), Err(HandshakeError::BadMagic));
        assert_eq!(Answer::decode(&[0; ANSWER_LEN]), Err(HandshakeError::BadMagic));
    }

    #[test]
    fn each_mistake_has_its_error() {
        let good = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: 0,
            offered: 0,
            wanted: Geometry::new(256, 1 << 20, 64).expect("legal"),
            max_message: 1,
            nonce: 0,
        };
        let with = |at: usize, field: &[u8]| {
            let mut bytes = good.encode();
            bytes[at..at + field.len()].copy_from_slice(field);
            Hello::decode(&bytes)
        };
        assert_eq!(with(0, b"x"), Err(HandshakeError::BadMagic));
        assert_eq!(with(8, &[2, 0, 1, 0]), Err(HandshakeError::BadVersions { min: 2, max: 1 }));
        assert_eq!(with(8, &[3, 0, 9, 0]), Err(HandshakeError::NoCommonVersion { min: 3, max: 9 }));
        assert_eq!(with(8, &[0, 0, 0, 0]), Err(HandshakeError::NoCommonVersion { min: 0, max: 0 }));
        assert_eq!(with(8, &[1, 0, 1, 0]), Err(HandshakeError::NoCommonVersion { min: 1, max: 1 }));
        assert!(with(8, &[1, 0, 9, 0]).is_ok(), "a client that speaks this version among others");
        for needed in [FEATURE_DOORBELL, FEATURE_PACKS, 1 << 31] {
            assert_eq!(with(12, &needed.to_le_bytes()), Err(HandshakeError::UnknownFeatures(needed)));
        }
        assert!(
            matches!(with(48, &[255; 4]), Ok(hello) if hello.offered == u32::MAX),
            "ignored, not refused"
        );
        assert!(matches!(with(16, &[3, 0, 0, 0]), Err(HandshakeError::BadGeometry { slots: 3, .. })));
        assert_eq!(with(32, &[0; 8]), Err(HandshakeError::BadMaxMessage(0)));
        assert!(matches!(with(32, &[255; 8]), Err(HandshakeError::BadMaxMessage(_))));
        assert_eq!(with(63, &[1]), Err(HandshakeError::ReservedNotZero));
    }

    #[test]
    fn what_a_client_needs_it_offers() {
        assert_eq!(validate_offer(0, 0), Ok(()));
        assert_eq!(validate_offer(2, 3), Ok(()));
        assert_eq!(validate_offer(3, 2), Err(HandshakeError::FeaturesNotOffered(1)));
    }

    #[test]
    fn a_refusal_of_a_version_names_ours_in_whole() {
        let reject = Reject::from(HandshakeError::NoCommonVersion { min: 1, max: 1 });
        assert_eq!(reject.code(), RejectCode::Version);
        assert_eq!(reject.text(), "this server speaks version 2: use the same release on both sides");
    }

    #[test]
    fn each_mistake_in_an_answer_has_its_error() {
        let geometry = Geometry::new(256, 1 << 20, 64).expect("legal");
        let agreed =
            Negotiated { version: VERSION_MAX, features: 0, geometry, max_message: 1, first_ticket: 0 };
        let with = |answer: Answer, at: usize, field: &[u8]| {
            let mut bytes = answer.encode();
            bytes[at..at + field.len()].copy_from_slice(field);
            Answer::decode(&bytes)
        };
        let accept = || Answer::Accept(agreed);
        assert_eq!(with(accept(), 8, &[7]), Err(HandshakeError::UnknownKind(7)));
        assert!(matches!(with(accept(), 10, &[9]), Err(HandshakeError::NoCommonVersion { .. })));
        assert!(matches!(with(accept(), 10, &[1]), Err(HandshakeError::NoCommonVersion { min: 1, max: 1 })));
        assert_eq!(with(accept(), 12, &[1]), Err(HandshakeError::UnknownFeatures(FEATURE_DOORBELL)));
        assert_eq!(with(accept(), 40, &[255; 8]), Err(HandshakeError::BadTicket(u64::MAX)));
        assert!(with(accept(), 40, &LAST_TICKET.to_le_bytes()).is_ok());
        assert!(matches!(with(accept(), 48, &[1]), Err(HandshakeError::BadRegionLen { .. })));
        assert_eq!(with(accept(), 56, &[1]), Err(HandshakeError::ReservedNotZero));
        let reject = || Answer::Reject(Reject::new(RejectCode::Geometry, "no"));
        assert_eq!(with(reject(), 18, &[65]), Err(HandshakeError::BadText));
        assert_eq!(with(reject(), 18, &[1]), Err(HandshakeError::ReservedNotZero));
        assert_eq!(with(reject(), 24, &[255]), Err(HandshakeError::BadText));
        assert_eq!(with(reject(), 24, b"\x1b"), Err(HandshakeError::BadText));
        assert!(with(reject(), 10, &[9]).is_ok(), "a newer version can refuse us");
    }
}
