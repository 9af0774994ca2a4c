//! Every order of messages, halves, garbage and silence, for both state machines of the handshake.
//!
//! The reference knows only bytes: those received so far, the length of a message, and the meaning of each whole message.

use narrows::internal::handshake::{
    ANSWER_LEN, Answer, ClientHandshake, ClientStep, HELLO_LEN, Hello, Negotiated, Reject, ServerHandshake,
    VERSION_MAX,
};
use narrows::internal::layout::Geometry;
use narrows::{HandshakeError, RejectCode};

use crate::support::log;

const DEPTH: usize = 5;

fn client() -> ClientHandshake {
    ClientHandshake::new(Geometry::new(8, 4096, 64).expect("legal"), 1000, 5)
}

fn accept() -> Vec<u8> {
    let geometry = Geometry::new(4, 4096, 64).expect("legal");
    let agreed = Negotiated { version: VERSION_MAX, features: 0, geometry, max_message: 9, first_ticket: 3 };
    Answer::Accept(agreed).encode().to_vec()
}

fn reject() -> Vec<u8> {
    let text = "this text is so long that it stands in both halves of the message";
    Answer::Reject(Reject::new(RejectCode::Geometry, text)).encode().to_vec()
}

/// Returns a Hello with these bytes at an offset.
fn hello_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut hello = client().hello().to_vec();
    hello[at..at + bytes.len()].copy_from_slice(bytes);
    hello
}

/// The bytes received so far, as a reference keeps them: none after the end of the message.
#[derive(Clone, Default)]
struct Received(Vec<u8>);

impl Received {
    /// Takes the next bytes. Returns the number of missing bytes, or the error for too many bytes or for another magic.
    fn next(&mut self, bytes: &[u8], len: usize, magic: &[u8; 8]) -> Result<Option<usize>, HandshakeError> {
        if self.0.len() == len || self.0.len() + bytes.len() > len {
            return Err(HandshakeError::Surplus);
        }
        self.0.extend(bytes);
        let known = self.0.len().min(8);
        if self.0[..known] != magic[..known] {
            return Err(HandshakeError::BadMagic);
        }
        Ok(Some(len - self.0.len()).filter(|missing| *missing > 0))
    }
}

#[test]
fn every_order_for_the_client() {
    let (accept, reject, hello) = (accept(), reject(), client().hello());
    let tokens: [&[u8]; 11] = [
        &hello,
        &accept,
        &reject,
        b"GET / HT",
        &accept[..64],
        &accept[64..],
        &reject[..64],
        &reject[64..],
        &[],
        b"n",
        &[0; ANSWER_LEN + 1],
    ];
    let mut ends = [0_u64; 3];
    orders_for_client(&tokens, &client(), &Received::default(), DEPTH, &mut ends);
    log(&format!("client: {} agreements, {} refusals, {} others", ends[0], ends[1], ends[2]));
    assert!(ends.iter().all(|count| *count > 100));
}

fn orders_for_client(
    tokens: &[&[u8]],
    machine: &ClientHandshake,
    received: &Received,
    depth: usize,
    ends: &mut [u64; 3],
) {
    for token in tokens {
        let (mut machine, mut received) = (machine.clone(), received.clone());
        let right = received.next(token, ANSWER_LEN, b"narrows!");
        let is = machine.feed(token);
        let end = match (&is, right) {
            (is, Err(error)) => (is == &Err(error)).then_some(2),
            (is, Ok(Some(missing))) => (is == &Ok(ClientStep::NeedMore(missing))).then_some(2),
            (Ok(ClientStep::Agreed(it)), Ok(None)) => {
                (received.0 == accept() && it.max_message == 9).then_some(0)
            }
            (Ok(ClientStep::Rejected(it)), Ok(None)) => {
                (received.0 == reject() && it.code() == RejectCode::Geometry).then_some(1)
            }
            (Err(error), Ok(None)) => (mixed_error(&received.0) == Some(*error)).then_some(2),
            _ => None,
        };
        let Some(end) = end else { panic!("{is:?} for {:?}", received.0) };
        ends[end] += 1;
        assert_eq!(machine.missing(), ANSWER_LEN - received.0.len());
        if depth > 1 {
            orders_for_client(tokens, &machine, &received, depth - 1, ends);
        }
    }
}

/// Returns the error for a whole answer that consists of halves of two messages.
fn mixed_error(answer: &[u8]) -> Option<HandshakeError> {
    if answer == accept() || answer == reject() {
        return None;
    }
    let surplus = answer[if answer[8] == 1 { 64 } else { 88 }..].iter().any(|byte| *byte != 0);
    Some(if surplus { HandshakeError::ReservedNotZero } else { HandshakeError::BadText })
}

#[test]
fn every_order_for_the_server() {
    let (right, other) = (hello_with(0, b""), hello_with(40, &[6]));
    let (odd, late) = (hello_with(16, &[3]), hello_with(8, &[3, 0, 3, 0]));
    let (accept, reject) = (accept(), reject());
    let tokens: [&[u8]; 11] = [
        &right,
        &other,
        &odd,
        &late,
        &right[..32],
        &right[32..],
        &other[32..],
        b"GET / HT",
        &[],
        &accept,
        &reject[..1],
    ];
    let mut hellos = 0;
    orders_for_server(&tokens, &ServerHandshake::new(5), &Received::default(), DEPTH, &mut hellos);
    log(&format!("server: {hellos} hellos"));
    assert!(hellos > 100);
}

fn orders_for_server(
    tokens: &[&[u8]],
    machine: &ServerHandshake,
    received: &Received,
    depth: usize,
    hellos: &mut u64,
) {
    for token in tokens {
        let (mut machine, mut received) = (machine.clone(), received.clone());
        let is = machine.feed(token).map(|hello| hello.map(|it| it.nonce));
        let right = match received.next(token, HELLO_LEN, b"narrows?") {
            Err(error) => Err(error),
            Ok(Some(_missing)) => Ok(None),
            Ok(None) => whole(&received.0),
        };
        assert_eq!(is, right, "{:?}", received.0);
        *hellos += u64::from(right == Ok(Some(5)));
        assert_eq!(machine.missing(), HELLO_LEN - received.0.len());
        if depth > 1 {
            orders_for_server(tokens, &machine, &received, depth - 1, hellos);
        }
    }
}

/// Returns what a whole Hello means to a server that expects the nonce 5.
fn whole(hello: &[u8]) -> Result<Option<u64>, HandshakeError> {
    let field = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().expect("eight bytes"));
    if hello[8..12] != [2, 0, 2, 0] {
        return Err(HandshakeError::NoCommonVersion { min: 3, max: 3 });
    }
    if hello[16] != 8 {
        return Err(HandshakeError::BadGeometry { slots: 3, arena: 4096, oob: 64 });
    }
    // Features that a client offers and the server does not know are ignored: the first four of the eight bytes at 48.
    match (field(32), field(40), field(48) >> 32 | field(56)) {
        (1000, 5, 0) => Ok(Some(5)),
        (1000, 6, 0) => Err(HandshakeError::WrongNonce),
        (1000, _, _) => Err(HandshakeError::ReservedNotZero),
        (max, _, _) => Err(HandshakeError::BadMaxMessage(max)),
    }
}

#[test]
fn every_value_of_the_first_twelve_bytes_of_a_hello() {
    for at in 0..12 {
        for value in 0..=u8::MAX {
            let bytes = hello_with(at, &[value]);
            let same = bytes == client().hello();
            let (min, max) =
                (u16::from_le_bytes([bytes[8], bytes[9]]), u16::from_le_bytes([bytes[10], bytes[11]]));
            let right = match at {
                0..8 if same => Ok(true),
                0..8 => Err(HandshakeError::BadMagic),
                _ if min > max => Err(HandshakeError::BadVersions { min, max }),
                _ if min > 2 || max < 2 => Err(HandshakeError::NoCommonVersion { min, max }),
                _ => Ok(true),
            };
            let mut machine = ServerHandshake::new(5);
            let argument = bytes.iter().map(|byte| machine.feed(&[*byte]).map(|hello| hello.is_some()));
            let (argument, byte) =
                argument.zip(0..).find(|(argument, _)| *argument != Ok(false)).expect("an end");
            assert_eq!(argument, right, "{value} at {at}");
            let soon = if at < 8 && !same { at } else { HELLO_LEN - 1 };
            assert_eq!(byte, soon, "the first byte that differs shows that it is another protocol");
            let whole: [u8; HELLO_LEN] = bytes.try_into().expect("a hello");
            assert_eq!(Hello::decode(&whole).map(|_| true), right);
        }
    }
}

#[test]
fn every_value_of_the_first_twelve_bytes_of_an_answer() {
    for at in 0..12 {
        for value in 0..=u8::MAX {
            let mut bytes = accept();
            bytes[at] = value;
            let (kind, version) =
                (u16::from_le_bytes([bytes[8], bytes[9]]), u16::from_le_bytes([bytes[10], bytes[11]]));
            let right = match at {
                _ if bytes == accept() => Ok(true),
                0..8 => Err(HandshakeError::BadMagic),
                _ if kind == 2 => Err(HandshakeError::ReservedNotZero),
                _ if kind != 1 => Err(HandshakeError::UnknownKind(kind)),
                _ => Err(HandshakeError::NoCommonVersion { min: version, max: version }),
            };
            let mut machine = client();
            let argument =
                bytes.iter().map(|byte| machine.feed(&[*byte]).map(|it| matches!(it, ClientStep::Agreed(_))));
            let (argument, byte) =
                argument.zip(0..).find(|(argument, _)| *argument != Ok(false)).expect("an end");
            assert_eq!(argument, right, "{value} at {at}");
            assert_eq!(byte, if at < 8 && right.is_err() { at } else { ANSWER_LEN - 1 });
        }
    }
}

#[test]
fn every_truncation_asks_for_the_rest() {
    for (count, byte) in client().hello().into_iter().enumerate() {
        let mut machine = ServerHandshake::new(5);
        assert_eq!(machine.feed(&client().hello()[..count]), Ok(None));
        assert_eq!(machine.missing(), HELLO_LEN - count);
        let more = machine.feed(&[byte]);
        assert_eq!(more.map(|it| it.is_some()), Ok(count + 1 == HELLO_LEN));
    }
    for answer in [accept(), reject()] {
        for count in 0..ANSWER_LEN {
            let mut machine = client();
            assert_eq!(machine.feed(&answer[..count]), Ok(ClientStep::NeedMore(ANSWER_LEN - count)));
        }
    }
}
