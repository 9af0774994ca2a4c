//! What a receive gives: a message that is there, or why there is none.

use crate::error::Ended;
use crate::ring::Arrival;

/// Why a receive failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvFault {
    /// No whole message is there, or the deadline passed.
    Empty,
    /// The message has so many bytes; it was kept.
    BufferTooSmall(usize),
    /// The connection has ended.
    Ended(Ended),
}

impl From<Ended> for RecvFault {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// A whole message that is there.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// It stands in the ring.
    Placed(Arrival),
    /// It was reassembled in private memory: length and tag.
    Assembled(usize, u64),
}

impl Incoming {
    /// Bytes of the message.
    pub fn len(&self) -> usize {
        match self {
            Self::Placed(arrival) => arrival.len,
            Self::Assembled(len, _) => *len,
        }
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its tag.
    pub fn tag(&self) -> u64 {
        match self {
            Self::Placed(arrival) => arrival.tag,
            Self::Assembled(_, tag) => *tag,
        }
    }
}
