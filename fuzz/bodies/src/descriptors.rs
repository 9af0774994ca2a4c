//! A client on a real socket, and a server that sends its answer in parts, with any descriptors attached to them.
//!
//! The client accepts exactly one descriptor, and only if it is sealed memory of the negotiated size. Each other number and kind
//! of descriptors has an error of its own.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::bytes::Bytes;
use super::handshake::{garble, limits, within};
use narrows::ConnectError;
use narrows::internal::handshake::{ANSWER_LEN, Answer, HandshakeLimits, Negotiated, VERSION_MAX};
use narrows::internal::layout::Geometry;
use narrows::internal::{answered, shared_memory};

/// Sends the answer that the bytes encode to a client.
pub fn descriptors(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let mut limits = limits(bytes);
    limits.geometry = Geometry::new(1 << bytes.below(4), 64 << bytes.below(7), 1).expect("legal");
    let HandshakeLimits { geometry, max_message, first_ticket } = limits;
    let agreed = Negotiated { version: VERSION_MAX, features: 0, geometry, max_message, first_ticket };
    let legal = Answer::Accept(agreed).encode();
    let answer = garble(legal, bytes);
    let (mut rest, mut parts, mut kinds) = (&answer[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let len = if bytes.is_empty() { rest.len() } else { 1 + bytes.below(rest.len()) };
        let (part, after) = rest.split_at(len);
        let beside: Vec<Beside> = (0..bytes.pick(&[0, 0, 1, 1, 2, 5])).map(|_| bytes.pick(&KINDS)).collect();
        kinds.extend(&beside);
        parts.push((part, beside.iter().map(|kind| kind.make(geometry.region_len())).collect()));
        rest = after;
    }
    let result = answered(&limits, parts);
    match (kinds.as_slice(), &result) {
        _ if answer != legal => assert!(result.is_err() || within_answer(&answer, &limits), "{result:?}"),
        ([Beside::Memory], Ok(())) => {}
        ([], Err(ConnectError::NoDescriptor)) => {}
        ([Beside::Long | Beside::Open | Beside::Device], Err(ConnectError::BadMemfd(_))) => {}
        ([_, _, ..], Err(ConnectError::SurplusDescriptors)) => {}
        _ => panic!("{result:?} of {kinds:?}"),
    }
}

fn within_answer(answer: &[u8; ANSWER_LEN], most: &HandshakeLimits) -> bool {
    matches!(Answer::decode(answer), Ok(Answer::Accept(agreed)) if within(&agreed, most))
}

/// A descriptor that is sent with an answer.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// Sealed memory of the negotiated size.
    Memory,
    /// Sealed memory that is a page too long.
    Long,
    /// Memory that is not sealed.
    Open,
    /// Not memory.
    Device,
}

const KINDS: [Beside; 6] =
    [Beside::Memory, Beside::Memory, Beside::Memory, Beside::Long, Beside::Open, Beside::Device];

impl Beside {
    fn make(self, len: usize) -> OwnedFd {
        let memory = |len, sealed| shared_memory(len, sealed).expect("memory");
        match self {
            Self::Memory => memory(len, true),
            Self::Long => memory(len + 4096, true),
            Self::Open => memory(len, false),
            Self::Device => File::open("/dev/null").expect("a device").into(),
        }
    }
}
