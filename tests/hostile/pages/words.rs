//! Each word of the region that has a meaning, and one word in each other cache line, gets each value of a list, one at a time.
//! Each value gets a connection of its own, which worked before.
//!
//! ```text
//!  subject                                           attacker
//!    "at value" ───────── a pipe ─────────────────▶   connects, sends "hello" by hand,
//!    accepts                                          writes the value
//!    uses the connection  ◀──────── "done" ────────
//! ```
//!
//! A table gives the expected result for each word: a hint or a word of the subject itself changes nothing, a closed flag ends
//! its direction, and a word that is validated is a violation or not by the tables of `src/ring/`.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::Ordering;

use narrows::internal::layout::{Control, Direction, Geometry, SLOT, SlotKind, words};
use narrows::{ConnectionError, SharedMemoryListener, SharedMemoryStream, TryRecvError, TrySendError};

use super::subject::{options, run_subject};
use crate::support::raw_peer::RawPeer;
use crate::support::{Kept, LONG, argument, log, me, role, sys};

const NAME: &str = "words::each_value_of_each_word";
const SLOTS: u64 = 2;
const ARENA: usize = 64;
const HELLO: &[u8] = b"hello";
const VALUES: [u64; 17] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    9,
    64 << 32 | 2,
    104 << 32 | 1,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    1 << 63,
    u64::MAX / 3,
    u64::MAX - 1,
    u64::MAX,
];

fn geometry() -> Geometry {
    Geometry::new(2, 64, 1).expect("legal")
}

/// The meaning of a word to the subject, which receives in direction 0 and sends in direction 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// Nothing, a hint, or a word that only the attacker reads.
    Nothing,
    /// The closed flag of the attacker's end of a direction.
    ClosedFlag(usize),
    /// The head of the direction in which the subject sends.
    Head,
    /// The stamp of the ticket in direction 0.
    Stamp(u64),
    /// Control word and payload of the message that waits: it may become another message, or a violation.
    Control,
    Payload,
}

/// Every word that has a meaning, and one of each 64 bytes of the pages of words that has none.
fn region() -> Vec<(usize, Meaning)> {
    let mut all = Vec::new();
    for index in [0, 1] {
        let Direction { words: page, slots, arena } = geometry().direction(index);
        for at in (page..page + 4096).step_by(64).chain([page + words::AWAITED_TICKET, page + words::OOB + 8])
        {
            let meaning = match (index, at - page) {
                (0, words::PRODUCER_CLOSED) | (1, words::CONSUMER_CLOSED) => Meaning::ClosedFlag(index),
                (1, words::HEAD) => Meaning::Head,
                _ => Meaning::Nothing,
            };
            all.push((at, meaning));
        }
        for at in (slots..slots + 2 * SLOT).step_by(8) {
            let meaning = match (index, at - slots) {
                (0, 0) => Meaning::Stamp(0),
                (0, SLOT) => Meaning::Stamp(1),
                (0, 8) => Meaning::Control,
                (0, 24) => Meaning::Payload,
                _ => Meaning::Nothing,
            };
            all.push((at, meaning));
        }
        all.extend((arena..arena + ARENA).step_by(8).map(|at| (at, Meaning::Nothing)));
    }
    all
}

#[test]
fn each_value_of_each_word() {
    match role().as_deref() {
        Some("subject") => be_subject(Path::new(&argument())),
        Some(_) => be_attacker(Path::new(&argument())),
        None => run_subject(NAME),
    }
}

/// Stores the values that the lines on its standard input give.
fn be_attacker(path: &Path) {
    sys::alarm(150);
    let mut hand = None;
    for line in std::io::stdin().lines() {
        let line = line.expect("reads");
        let (at, value) = line.split_once(' ').expect("two numbers");
        let (at, value) = (at.parse().expect("an offset"), value.parse().expect("a value"));
        drop(hand.take());
        let new = RawPeer::connect(path, geometry(), 1000).expect("connects");
        new.payload(0, &[u64::from_le_bytes(*b"hello\0\0\0")]);
        new.commit(0, Control { kind: SlotKind::Inline, abort: false, len: 5, unit: 0 });
        new.pages.word(at).store(value, Ordering::SeqCst);
        println!("done");
        hand = Some(new);
    }
}

/// The attacker process, which follows the lines on its standard input.
struct Attacker {
    _child: Kept,
    orders: ChildStdin,
    done: Lines<BufReader<ChildStdout>>,
}

impl Attacker {
    fn start(path: &Path) -> Self {
        let mut command = me(NAME, "attacker", path.to_str().expect("plain"));
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let orders = child.0.stdin.take().expect("a pipe");
        let done = BufReader::new(child.0.stdout.take().expect("a pipe")).lines();
        Self { _child: child, orders, done }
    }

    /// Returns a connection with this value at this offset.
    fn corrupt(&mut self, listener: &SharedMemoryListener, at: usize, value: u64) -> SharedMemoryStream {
        writeln!(self.orders, "{at} {value}").expect("listens");
        let stream = listener.accept_timeout(LONG).expect("the attacker connects");
        let done = |line: std::io::Result<String>| line.expect("reads").ends_with("done");
        assert!(self.done.by_ref().any(done), "the attacker is there");
        stream
    }
}

fn be_subject(path: &Path) {
    sys::alarm(150);
    let listener = options().slots(2).arena(64).max_calls_in_flight(1).bind(path).expect("binds");
    let (mut well_formed, mut partner) = SharedMemoryStream::pair().expect("pair");
    let (mut attacker, mut cases, mut violations) = (Attacker::start(path), 0, 0);
    for (at, meaning) in region() {
        for value in VALUES {
            let mut stream = attacker.corrupt(&listener, at, value);
            violations +=
                u64::from(check(&mut stream, meaning, value, &format!("{value:#x} at {at:#x}: {meaning:?}")));
            well_formed.send_timeout(HELLO, LONG).expect("undisturbed");
            partner.recv_timeout(&mut [0; 8], LONG).expect("undisturbed");
            cases += 1;
        }
    }
    log(&format!("{NAME}: {cases} values, {violations} of them violations"));
    assert!(violations > 20);
}

/// Uses the connection in every way, and checks the result that the meaning requires. Returns whether it was a violation.
fn check(stream: &mut SharedMemoryStream, meaning: Meaning, value: u64, what: &str) -> bool {
    let (received, sent) = (receive(stream), send(stream));
    let violated = Err(TryRecvError::ConnectionLost(ConnectionError::ProtocolViolation));
    let is_violation = match meaning {
        // The waiting message was committed: its stamp says that, or that it was retracted.
        Meaning::Stamp(0) => value != 2 && value > 1,
        // After the message that was received.
        Meaning::Stamp(_) => ![0, 3, 4].contains(&value),
        Meaning::Head => value > SLOTS,
        Meaning::Control => !legal(value),
        _ => false,
    };
    let next = stream.try_recv(&mut [0; 200]).map(|it| it.len);
    match meaning {
        _ if is_violation && meaning == Meaning::Head => {
            assert_eq!(
                sent,
                (SLOTS, TrySendError::ConnectionLost(ConnectionError::ProtocolViolation)),
                "{what}"
            )
        }
        Meaning::Stamp(1) if is_violation => assert!(received == Ok(5) && next == violated, "{what}"),
        _ if is_violation => assert_eq!((received, next), (violated, violated), "{what}"),
        Meaning::ClosedFlag(0) if value != 0 => {
            assert_eq!(
                (received, next),
                (Ok(5), Err(TryRecvError::ConnectionLost(ConnectionError::Disconnected))),
                "{what}"
            );
        }
        Meaning::ClosedFlag(_) if value != 0 => {
            assert_eq!(sent, (0, TrySendError::ConnectionLost(ConnectionError::Disconnected)), "{what}")
        }
        Meaning::Stamp(0) if value < 2 => assert_eq!(received, Err(TryRecvError::WouldBlock), "{what}"),
        Meaning::Stamp(1) if value == 4 => assert!(received == Ok(5) && next == violated, "an empty slot"),
        Meaning::Control => assert_eq!(received, Ok(usize::try_from(value >> 32).expect("small")), "{what}"),
        Meaning::Head => assert_eq!(sent, (SLOTS + value, TrySendError::WouldBlock), "{what}"),
        _ => assert_eq!(
            (received, next, sent),
            (Ok(5), Err(TryRecvError::WouldBlock), (SLOTS, TrySendError::WouldBlock)),
            "{what}"
        ),
    }
    is_violation
}

/// Returns whether the word describes a whole message that the slot or the arena holds.
fn legal(control: u64) -> bool {
    let (len, offset) = (control >> 32, control >> 6 & ((1 << 26) - 1));
    match control & 63 {
        1 => len <= 104 && offset == 0,
        2 => (1..=ARENA as u64).contains(&len) && offset == 0,
        _ => false,
    }
}

fn receive(stream: &mut SharedMemoryStream) -> Result<usize, TryRecvError> {
    stream.try_recv(&mut [0; 200]).map(|it| it.len)
}

/// Sends until a send fails. Returns the number of messages, and the error.
fn send(stream: &mut SharedMemoryStream) -> (u64, TrySendError) {
    for count in 0..100 {
        if let Err(end) = stream.try_send(HELLO) {
            return (count, end);
        }
    }
    panic!("a hundred messages in a ring of {SLOTS}")
}
