//! The server's side: reads one Hello, and accepts or refuses it.
//!
//! # Invariants
//!
//! 1. A Hello is returned at most once, and only after it was validated as a whole.
//! 2. The negotiated sizes exceed neither those of the Hello nor the [`HandshakeLimits`].
//!
//! # Proof
//!
//! The tests below feed every split of a Hello, and agree across the ranges.

use crate::error::HandshakeError;
use crate::layout::Geometry;

use super::codec::{HELLO_MAGIC, begins};
use super::{FEATURES, HELLO_LEN, Hello, Negotiated, VERSION_MAX};

/// The largest sizes that a server allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// The largest sizes of the region.
    pub geometry: Geometry,
    /// The longest message, in bytes.
    pub max_message: u64,
    /// The ticket with which both directions begin.
    pub first_ticket: u64,
}

impl HandshakeLimits {
    /// Returns for each field the smaller of the client's and the server's number, and the features that both know.
    pub fn agree(&self, hello: &Hello) -> Negotiated {
        let (wanted, most) = (&hello.wanted, &self.geometry);
        let geometry = Geometry::new(
            wanted.slots().min(most.slots()),
            wanted.arena().min(most.arena()),
            wanted.oob().min(most.oob()),
        );
        Negotiated {
            version: hello.version_max.min(VERSION_MAX),
            features: hello.offered & FEATURES,
            geometry: geometry.unwrap_or(*most), // Each number is one of two legal ones, so this is always `Ok`.
            max_message: hello.max_message.min(self.max_message),
            first_ticket: self.first_ticket,
        }
    }
}

/// The state machine of a server's handshake with one client.
#[derive(Clone, Debug)]
pub struct ServerHandshake {
    nonce: u64,
    hello: [u8; HELLO_LEN],
    filled: usize,
}

impl ServerHandshake {
    /// Creates a handshake that requires this nonce. It is 0, except for a child that this process has spawned.
    pub fn new(nonce: u64) -> Self {
        Self { nonce, hello: [0; HELLO_LEN], filled: 0 }
    }

    /// Returns how many bytes of the Hello are still to be read.
    pub fn missing(&self) -> usize {
        HELLO_LEN - self.filled
    }

    /// Takes the next bytes of the Hello. Returns it once it is complete.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`] if the Hello is malformed, has bytes after its end, or has another nonce.
    /// [`Reject::from`](super::Reject) converts it into the answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Hello>, HandshakeError> {
        let missing = self.missing();
        if missing == 0 || bytes.len() > missing {
            return Err(HandshakeError::Surplus);
        }
        for (to, byte) in self.hello.iter_mut().skip(self.filled).zip(bytes) {
            *to = *byte;
        }
        self.filled += bytes.len();
        if !begins(&self.hello, self.filled, HELLO_MAGIC) {
            return Err(HandshakeError::BadMagic);
        }
        if self.missing() > 0 {
            return Ok(None);
        }
        let hello = Hello::decode(&self.hello)?;
        if hello.nonce == self.nonce { Ok(Some(hello)) } else { Err(HandshakeError::WrongNonce) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RejectCode;
    use crate::handshake::{Answer, ClientHandshake, ClientStep, Reject};

    fn geometry(slots: u32, arena: u64, oob: u32) -> Geometry {
        Geometry::new(slots, arena, oob).expect("legal")
    }

    #[test]
    fn every_split_of_a_hello_is_read() {
        let bytes = ClientHandshake::new(geometry(8, 4096, 64), 9, 0).hello();
        for split in 0..HELLO_LEN {
            let mut server = ServerHandshake::new(0);
            let (first, second) = bytes.split_at(split);
            assert_eq!(server.feed(first), Ok(None));
            assert_eq!(server.missing(), HELLO_LEN - split);
            assert!(matches!(server.feed(second), Ok(Some(hello)) if hello.max_message == 9));
            assert_eq!(server.feed(&[]), Err(HandshakeError::Surplus));
        }
        let mut server = ServerHandshake::new(0);
        let last = bytes.map(|byte| server.feed(&[byte]).expect("well-formed"));
        assert_eq!(last.iter().flatten().count(), 1);
    }

    #[test]
    fn the_smaller_wins_and_the_client_agrees() {
        let sizes = [geometry(1, 64, 1), geometry(256, 64, 256), geometry(8, 1 << 30, 2)];
        for wanted in sizes {
            for most in sizes {
                let limits = HandshakeLimits { geometry: most, max_message: 50, first_ticket: 3 };
                let mut client = ClientHandshake::new(wanted, 100, 5);
                let hello =
                    ServerHandshake::new(5).feed(&client.hello()).expect("well-formed").expect("whole");
                let agreed = limits.agree(&hello);
                assert_eq!(agreed.geometry.slots(), wanted.slots().min(most.slots()));
                assert_eq!(agreed.geometry.arena(), wanted.arena().min(most.arena()));
                assert_eq!(agreed.geometry.oob(), wanted.oob().min(most.oob()));
                assert_eq!((agreed.max_message, agreed.first_ticket), (50, 3));
                let step = client.feed(&Answer::Accept(agreed).encode());
                assert_eq!(step, Ok(ClientStep::Agreed(agreed)));
            }
        }
    }

    #[test]
    fn features_that_only_the_client_knows_are_not_used() {
        let mut bytes = ClientHandshake::new(geometry(8, 4096, 64), 9, 0).hello();
        bytes[48..52].fill(0xff);
        let hello = ServerHandshake::new(0).feed(&bytes).expect("well formed").expect("whole");
        assert_eq!(hello.offered, u32::MAX);
        let limits = HandshakeLimits { geometry: geometry(8, 4096, 64), max_message: 50, first_ticket: 3 };
        assert_eq!(limits.agree(&hello).features, FEATURES);
    }

    #[test]
    fn mistakes_are_answered_with_their_code() {
        let mut bytes = ClientHandshake::new(geometry(8, 4096, 64), 9, 0).hello();
        let wrong = ServerHandshake::new(1).feed(&bytes).map_err(Reject::from).map_err(|it| it.code());
        assert_eq!(wrong, Err(RejectCode::WrongNonce));
        bytes[16] = 3;
        let odd = ServerHandshake::new(0).feed(&bytes).map_err(Reject::from).map_err(|it| it.code());
        assert_eq!(odd, Err(RejectCode::Geometry));
        let long = ServerHandshake::new(0).feed(&[0; HELLO_LEN + 1]);
        assert_eq!(long, Err(HandshakeError::Surplus));
    }
}
