//! A real client on a socket, and a server that answers in parts, with any descriptors beside them.
//!
//! Exactly one descriptor is taken, and only if it is sealed memory of the size agreed on; every other
//! number and kind has its own error.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::bytes::Bytes;
use super::handshake::{garble, limits, within};
use narrows::ConnectError;
use narrows::internal::handshake::{ANSWER_LEN, Agreement, Answer, Limits, VERSION_MAX};
use narrows::internal::layout::Geometry;
use narrows::internal::{answered, shared_memory};

/// Answers a real client as the bytes say.
pub fn descriptors(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let mut limits = limits(bytes);
    limits.geometry = Geometry::new(1 << bytes.below(4), 64 << bytes.below(7), 1).expect("legal");
    let Limits { geometry, max_message, first_ticket } = limits;
    let agreed = Agreement { version: VERSION_MAX, features: 0, geometry, max_message, first_ticket };
    let honest = Answer::Welcome(agreed).encode();
    let answer = garble(honest, bytes);
    let (mut rest, mut parts, mut kinds) = (&answer[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let len = if bytes.is_empty() { rest.len() } else { 1 + bytes.below(rest.len()) };
        let (part, after) = rest.split_at(len);
        let beside: Vec<Beside> = (0..bytes.pick(&[0, 0, 1, 1, 2, 5])).map(|_| bytes.pick(&KINDS)).collect();
        kinds.extend(&beside);
        parts.push((part, beside.iter().map(|kind| kind.make(geometry.region_len())).collect()));
        rest = after;
    }
    let said = answered(&limits, parts);
    match (kinds.as_slice(), &said) {
        _ if answer != honest => assert!(said.is_err() || within_answer(&answer, &limits), "{said:?}"),
        ([Beside::Memory], Ok(())) => {}
        ([], Err(ConnectError::NoDescriptor)) => {}
        ([Beside::Long | Beside::Open | Beside::Device], Err(ConnectError::BadMemfd(_))) => {}
        ([_, _, ..], Err(ConnectError::SurplusDescriptors)) => {}
        _ => panic!("{said:?} of {kinds:?}"),
    }
}

fn within_answer(answer: &[u8; ANSWER_LEN], most: &Limits) -> bool {
    matches!(Answer::decode(answer), Ok(Answer::Welcome(agreed)) if within(&agreed, most))
}

/// A descriptor beside an answer.
#[derive(Clone, Copy, Debug)]
enum Beside {
    /// What should come.
    Memory,
    /// Sealed, and a page too long.
    Long,
    /// Not sealed.
    Open,
    /// No memory at all.
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
