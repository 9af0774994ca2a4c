//! The client's side: sends a Hello, reads one answer.
//!
//! # Invariants
//!
//! 1. A negotiated result is returned at most once, and grants no more than the client requested.
//!
//! # Proof
//!
//! The tests below feed every split of both answers, and answers that grant too much.

use crate::error::HandshakeError;
use crate::layout::Geometry;

use super::codec::{ANSWER_MAGIC, begins};
use super::{ANSWER_LEN, Answer, FEATURES, HELLO_LEN, Hello, Negotiated, Reject, VERSION_MAX, VERSION_MIN};

/// The state of the client's handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// The answer is not complete yet: at most this many bytes may be read.
    NeedMore(usize),
    /// The server accepted.
    Agreed(Negotiated),
    /// The server refused.
    Rejected(Reject),
}

/// The state machine of a client's handshake.
#[derive(Clone, Debug)]
pub struct ClientHandshake {
    hello: Hello,
    answer: [u8; ANSWER_LEN],
    filled: usize,
}

impl ClientHandshake {
    /// Creates a handshake that requests these sizes. The nonce is 0, except in a child that its parent has spawned.
    pub fn new(wanted: Geometry, max_message: u64, nonce: u64) -> Self {
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: 0,
            offered: FEATURES,
            wanted,
            max_message,
            nonce,
        };
        Self { hello, answer: [0; ANSWER_LEN], filled: 0 }
    }

    /// Returns the Hello, which the client sends first.
    pub fn hello(&self) -> [u8; HELLO_LEN] {
        self.hello.encode()
    }

    /// Returns how many bytes of the answer are still to be read.
    pub fn missing(&self) -> usize {
        ANSWER_LEN - self.filled
    }

    /// Takes the next bytes of the answer.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`] if the answer is malformed, grants more than the client requested, or has bytes after its
    /// end.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<ClientStep, HandshakeError> {
        let missing = self.missing();
        if missing == 0 || bytes.len() > missing {
            return Err(HandshakeError::Surplus);
        }
        for (to, byte) in self.answer.iter_mut().skip(self.filled).zip(bytes) {
            *to = *byte;
        }
        self.filled += bytes.len();
        match self.missing() {
            0 => self.validate(),
            // The first byte that differs identifies another protocol, also if too few bytes for an answer came.
            _ if !begins(&self.answer, self.filled, ANSWER_MAGIC) => Err(HandshakeError::BadMagic),
            missing => Ok(ClientStep::NeedMore(missing)),
        }
    }

    fn validate(&self) -> Result<ClientStep, HandshakeError> {
        match Answer::decode(&self.answer)? {
            Answer::Reject(reject) => Ok(ClientStep::Rejected(reject)),
            Answer::Accept(agreed) if self.wanted(&agreed) => Ok(ClientStep::Agreed(agreed)),
            Answer::Accept(_) => Err(HandshakeError::MoreThanWanted),
        }
    }

    /// Returns whether the server granted no more than the client requested.
    fn wanted(&self, agreed: &Negotiated) -> bool {
        let (is, most) = (&agreed.geometry, &self.hello.wanted);
        is.slots() <= most.slots()
            && is.arena() <= most.arena()
            && is.oob() <= most.oob()
            && agreed.max_message <= self.hello.max_message
            && agreed.features & !self.hello.offered == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RejectCode;

    fn geometry(slots: u32) -> Geometry {
        Geometry::new(slots, 4096, 64).expect("legal")
    }

    fn accept(slots: u32, max_message: u64) -> [u8; ANSWER_LEN] {
        let geometry = geometry(slots);
        Answer::Accept(Negotiated {
            version: VERSION_MAX,
            features: 0,
            geometry,
            max_message,
            first_ticket: 7,
        })
        .encode()
    }

    #[test]
    fn another_protocol_is_recognized_by_its_first_bytes() {
        let wanted = Geometry::new(8, 4096, 64).expect("legal");
        for bytes in [&b"HTTP/1.1"[..], b"n", b"\0"] {
            let mut client = ClientHandshake::new(wanted, 9, 0);
            let known = bytes == &ANSWER_MAGIC[..bytes.len()];
            assert_eq!(client.feed(bytes) == Err(HandshakeError::BadMagic), !known, "{bytes:?}");
        }
    }

    #[test]
    fn every_split_of_an_accept_agrees() {
        let bytes = accept(8, 100);
        for split in 0..ANSWER_LEN {
            let mut client = ClientHandshake::new(geometry(8), 100, 0);
            let (first, second) = bytes.split_at(split);
            assert_eq!(client.feed(first), Ok(ClientStep::NeedMore(ANSWER_LEN - split)));
            assert!(matches!(client.feed(second), Ok(ClientStep::Agreed(it)) if it.first_ticket == 7));
            assert_eq!(client.feed(&[]), Err(HandshakeError::Surplus));
        }
    }

    #[test]
    fn a_refusal_arrives_byte_by_byte() {
        let reject = Reject::new(RejectCode::Geometry, "too odd");
        let mut client = ClientHandshake::new(geometry(8), 100, 0);
        let mut last = None;
        for byte in Answer::Reject(reject.clone()).encode() {
            last = Some(client.feed(&[byte]));
        }
        assert_eq!(last, Some(Ok(ClientStep::Rejected(reject))));
    }

    #[test]
    fn more_than_wanted_and_surplus_are_refused() {
        for bytes in [accept(16, 100), accept(8, 101)] {
            let mut client = ClientHandshake::new(geometry(8), 100, 0);
            assert_eq!(client.feed(&bytes), Err(HandshakeError::MoreThanWanted));
        }
        let mut client = ClientHandshake::new(geometry(8), 100, 0);
        assert_eq!(client.feed(&[0; ANSWER_LEN + 1]), Err(HandshakeError::Surplus));
    }
}
