//! The handshake without a socket: both messages, both state machines, and control records, each with any bytes.
//!
//! A message that decodes encodes into the same bytes. The result of a state machine does not depend on how its input was split.
//! The negotiated sizes do not exceed what either side offered.

use super::bytes::Bytes;
use narrows::internal::control_records;
use narrows::internal::handshake::{
    ANSWER_LEN, Answer, ClientHandshake, ClientStep, HELLO_LEN, HandshakeLimits, Hello, MAX_MESSAGE,
    Negotiated, Reject, ServerHandshake, VERSION_MAX,
};
use narrows::internal::layout::{Geometry, LAST_TICKET};
use narrows::{HandshakeError, RejectCode};

/// Decodes a mode from the first byte, and runs it with the others.
pub fn handshake(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    match bytes.below(6) {
        0 => check_hello(&hello(&mut bytes)),
        1 => check_answer(&answer(&mut bytes)),
        2 => feed_server(&mut bytes),
        3 => feed_client(&mut bytes),
        4 => negotiate(&mut bytes),
        _ => control_data(bytes.take(usize::MAX)),
    }
}

fn geometry(bytes: &mut Bytes<'_>) -> Geometry {
    let (slots, arena, oob) = (bytes.below(17), bytes.below(25), bytes.below(9));
    Geometry::new(1 << slots, 64 << arena, 1 << oob).expect("legal")
}

pub(super) fn limits(bytes: &mut Bytes<'_>) -> HandshakeLimits {
    HandshakeLimits {
        geometry: geometry(bytes),
        max_message: bytes.number().clamp(1, MAX_MESSAGE),
        first_ticket: bytes.number().min(LAST_TICKET),
    }
}

/// Changes some bytes of a message, all of them, or none.
pub(super) fn garble<const N: usize>(message: [u8; N], bytes: &mut Bytes<'_>) -> [u8; N] {
    let mut message = message;
    match bytes.below(4) {
        0 => {}
        1 => message = bytes.array(),
        count => {
            for _ in 1..count {
                message[bytes.below(N)] = bytes.u8();
            }
        }
    }
    message
}

fn hello(bytes: &mut Bytes<'_>) -> [u8; HELLO_LEN] {
    let (limits, nonce) = (limits(bytes), bytes.number());
    garble(ClientHandshake::new(limits.geometry, limits.max_message, nonce).hello(), bytes)
}

fn answer(bytes: &mut Bytes<'_>) -> [u8; ANSWER_LEN] {
    let legal = if bytes.bool() {
        let text = String::from_utf8_lossy(bytes.take(80)).into_owned();
        Answer::Reject(Reject::new(RejectCode::from_number(bytes.u16()), &text))
    } else {
        let HandshakeLimits { geometry, max_message, first_ticket } = limits(bytes);
        Answer::Accept(Negotiated { version: VERSION_MAX, features: 0, geometry, max_message, first_ticket })
    };
    assert_eq!(Answer::decode(&legal.encode()), Ok(legal.clone()));
    garble(legal.encode(), bytes)
}

fn check_hello(bytes: &[u8; HELLO_LEN]) {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode(), *bytes);
    }
}

fn check_answer(bytes: &[u8; ANSWER_LEN]) {
    let Ok(answer) = Answer::decode(bytes) else { return };
    let mut again = answer.encode();
    if matches!(answer, Answer::Reject(_)) {
        again[10..16].copy_from_slice(&bytes[10..16]); // The version and features of a reject are not validated.
    }
    assert_eq!(again, *bytes);
}

/// A reference for the input of a state machine: the bytes of a message so far.
struct Fed<const N: usize> {
    message: [u8; N],
    filled: usize,
}

enum Part<const N: usize> {
    Surplus,
    Unfinished,
    Whole([u8; N]),
}

impl<const N: usize> Fed<N> {
    fn new() -> Self {
        Self { message: [0; N], filled: 0 }
    }

    fn add(&mut self, part: &[u8]) -> Part<N> {
        match self.message.get_mut(self.filled..self.filled + part.len()) {
            Some(to) if self.filled < N => to.copy_from_slice(part),
            _ => return Part::Surplus,
        }
        self.filled += part.len();
        if self.filled == N { Part::Whole(self.message) } else { Part::Unfinished }
    }

    /// Returns whether the bytes so far are the beginning of a message with this magic.
    fn begins(&self, magic: &[u8; 8]) -> bool {
        let seen = self.filled.min(8);
        self.message[..seen] == magic[..seen]
    }
}

/// Feeds a message in parts, whose sizes the bytes encode, and then bytes of no message, a bounded number of times.
fn in_parts(message: &[u8], bytes: &mut Bytes<'_>, mut feed: impl FnMut(&[u8])) {
    let mut rest = message;
    for _ in 0..2 * ANSWER_LEN {
        let most = bytes.below(message.len() + 2);
        if rest.is_empty() {
            feed(bytes.take(most));
            if bytes.is_empty() {
                return;
            }
            continue;
        }
        let (part, after) = rest.split_at(most.min(rest.len()));
        feed(part);
        // After the end of the fuzzer's bytes, the rest of the message is one part.
        rest = if bytes.is_empty() && part.is_empty() { feed_all(after, &mut feed) } else { after };
    }
}

fn feed_all<'a>(rest: &'a [u8], feed: &mut impl FnMut(&[u8])) -> &'a [u8] {
    feed(rest);
    &[]
}

fn feed_server(bytes: &mut Bytes<'_>) {
    let (message, nonce) = (hello(bytes), bytes.number());
    let nonce = if bytes.bool() { nonce } else { Hello::decode(&message).map_or(nonce, |it| it.nonce) };
    let (mut server, mut fed) = (ServerHandshake::new(nonce), Fed::<HELLO_LEN>::new());
    let mut hellos = 0;
    in_parts(&message, bytes, |part| {
        let expected = match fed.add(part) {
            Part::Surplus => Err(HandshakeError::Surplus),
            _ if !fed.begins(b"narrows?") => Err(HandshakeError::BadMagic),
            Part::Unfinished => Ok(None),
            Part::Whole(message) => Hello::decode(&message).and_then(|hello| {
                if hello.nonce == nonce { Ok(Some(hello)) } else { Err(HandshakeError::WrongNonce) }
            }),
        };
        let result = server.feed(part);
        assert_eq!(result, expected);
        assert_eq!(server.missing(), HELLO_LEN - fed.filled);
        hellos += u32::from(matches!(result, Ok(Some(_))));
        if let Err(error) = result {
            check_answer(&Answer::Reject(error.into()).encode());
        }
    });
    assert!(hellos <= 1, "more than one Hello");
}

fn feed_client(bytes: &mut Bytes<'_>) {
    let (wanted, message) = (limits(bytes), answer(bytes));
    let mut client = ClientHandshake::new(wanted.geometry, wanted.max_message, bytes.number());
    let (mut fed, mut agreed) = (Fed::<ANSWER_LEN>::new(), 0);
    in_parts(&message, bytes, |part| {
        let expected = match fed.add(part) {
            Part::Surplus => Err(HandshakeError::Surplus),
            Part::Unfinished if !fed.begins(b"narrows!") => Err(HandshakeError::BadMagic),
            Part::Unfinished => Ok(ClientStep::NeedMore(ANSWER_LEN - fed.filled)),
            Part::Whole(message) => match Answer::decode(&message) {
                Ok(Answer::Reject(reject)) => Ok(ClientStep::Rejected(reject)),
                Ok(Answer::Accept(it)) if within(&it, &wanted) => Ok(ClientStep::Agreed(it)),
                Ok(Answer::Accept(_)) => Err(HandshakeError::MoreThanWanted),
                Err(error) => Err(error),
            },
        };
        let result = client.feed(part);
        assert_eq!(result, expected);
        assert_eq!(client.missing(), ANSWER_LEN - fed.filled);
        agreed += u32::from(matches!(result, Ok(ClientStep::Agreed(_))));
    });
    assert!(agreed <= 1, "more than one agreement");
}

/// Returns whether an agreement exceeds none of the limits of one side.
pub(super) fn within(agreed: &Negotiated, most: &HandshakeLimits) -> bool {
    agreed.geometry.slots() <= most.geometry.slots()
        && agreed.geometry.arena() <= most.geometry.arena()
        && agreed.geometry.oob() <= most.geometry.oob()
        && agreed.geometry.region_len() <= most.geometry.region_len()
        && agreed.max_message <= most.max_message
}

/// Runs both state machines with each other. Bytes may be changed between them.
fn negotiate(bytes: &mut Bytes<'_>) {
    let (wanted, most, nonce) = (limits(bytes), limits(bytes), bytes.number());
    let mut client = ClientHandshake::new(wanted.geometry, wanted.max_message, nonce);
    let sent = client.hello();
    let received = garble(sent, bytes);
    let Ok(Some(hello)) = ServerHandshake::new(nonce).feed(&received) else {
        assert_ne!(sent, received, "a legal Hello is accepted");
        return;
    };
    let agreed = most.agree(&hello);
    let asked = HandshakeLimits { geometry: hello.wanted, max_message: hello.max_message, first_ticket: 0 };
    assert!(within(&agreed, &most) && within(&agreed, &asked), "{agreed:?} of {most:?} and {asked:?}");
    assert_eq!(agreed.first_ticket, most.first_ticket);
    let answer = Answer::Accept(agreed).encode();
    let answered = garble(answer, bytes);
    match client.feed(&answered) {
        Ok(ClientStep::Agreed(it)) => {
            assert!(within(&it, &wanted), "{it:?} is more than {wanted:?}");
            assert_eq!(Answer::Accept(it).encode(), answered);
        }
        Ok(ClientStep::NeedMore(_)) => panic!("the answer was complete"),
        _ => assert!(sent != received || answer != answered, "two well-formed sides agree"),
    }
}

/// Parses any bytes as control data: parsing ends, and returns no more than the bytes contain.
fn control_data(control: &[u8]) {
    let found = control_records(control);
    let numbers: usize = found.iter().map(|(_, numbers)| numbers.len()).sum();
    assert!(16 * found.len() + 4 * numbers <= control.len(), "{found:?} in {} bytes", control.len());
    assert!(found.iter().all(|(_, numbers)| numbers.iter().all(|number| *number >= 0)));
}
