//! Every number and kind of descriptors, every truncation and every short order of the handshake, over real sockets: an
//! exhaustive search of a small space, with the kernel as a part of it.
//!
//! The expected results are a table of kinds or of bytes, written here independently of the library's code. Timing is not
//! tested here: slow and silent peers are in `handshake.rs`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use narrows::internal::handshake::{
    ANSWER_LEN, Answer, ClientHandshake, HELLO_LEN, Negotiated, Reject, VERSION_MAX,
};
use narrows::internal::layout::Geometry;
use narrows::{ConnectError, HandshakeError, Options, RejectCode};

use crate::support::{
    SEALS, Server, Watchdog, alone, answer, confirm, descriptors, eventually, memfd, pipe, send_with,
};

fn small() -> Geometry {
    Geometry::new(2, 64, 1).expect("legal")
}

fn options() -> Options {
    Options::new()
        .slots(2)
        .arena(64)
        .max_calls_in_flight(1)
        .max_message(100)
        .handshake_timeout(Duration::from_secs(60))
}

fn hello() -> [u8; HELLO_LEN] {
    ClientHandshake::new(small(), 100, 0).hello()
}

fn accept() -> [u8; ANSWER_LEN] {
    let agreed =
        Negotiated { version: VERSION_MAX, features: 0, geometry: small(), max_message: 1, first_ticket: 0 };
    Answer::Accept(agreed).encode()
}

fn reject() -> [u8; ANSWER_LEN] {
    Answer::Reject(Reject::new(RejectCode::Unavailable, "full")).encode()
}

/// What a descriptor may be; only the first is right.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Right,
    Unsealed,
    Short,
    Pipe,
    RegularFile,
    Device,
}

const KINDS: [Kind; 6] =
    [Kind::Right, Kind::Unsealed, Kind::Short, Kind::Pipe, Kind::RegularFile, Kind::Device];

fn make(kind: Kind) -> OwnedFd {
    let len = small().region_len();
    match kind {
        Kind::Right => memfd(len, SEALS),
        Kind::Unsealed => memfd(len, 0),
        Kind::Short => memfd(len - 4096, SEALS),
        Kind::Pipe => pipe().0,
        Kind::RegularFile => {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(len as u64).expect("sized");
            file.into()
        }
        Kind::Device => File::open("/dev/zero").expect("opens").into(),
    }
}

/// All lists of up to `most` of these.
fn lists<T: Copy>(of: &[T], most: usize) -> Vec<Vec<T>> {
    let mut all = vec![vec![]];
    let mut from = 0;
    for _ in 0..most {
        let to = all.len();
        for at in from..to {
            for one in of {
                all.push(all[at].iter().chain([one]).copied().collect());
            }
        }
        from = to;
    }
    all
}

/// A part of an answer, and the descriptors that come beside it.
type Part = (Vec<u8>, Arc<Vec<OwnedFd>>);

/// A server that reads the hello of each client and sends the parts that the test has given to it.
struct HostilePeer {
    path: PathBuf,
    parts: Option<Sender<Vec<Part>>>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl HostilePeer {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("binds");
        let (parts, orders) = channel::<Vec<Part>>();
        let thread = thread::spawn(move || {
            for parts in orders {
                let mut client = listener.accept().expect("accepts").0;
                client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
                for (bytes, fds) in parts {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    // The client may have hung up at the previous part.
                    let _ = send_with(&client, &bytes, &fds);
                }
                // That was all. The server does not close its end before the client does.
                let _ = client.shutdown(Shutdown::Write);
                let _ = client.read_to_end(&mut Vec::new());
            }
        });
        Self { path, parts: Some(parts), thread: Some(thread), _folder: folder }
    }

    /// Returns the result of our client for these parts.
    fn answer(&self, parts: Vec<Part>) -> Result<(), ConnectError> {
        self.parts.as_ref().expect("running").send(parts).expect("listens");
        options().connect_timeout(&self.path, Duration::from_secs(60)).map(drop)
    }
}

impl Drop for HostilePeer {
    fn drop(&mut self) {
        drop(self.parts.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server server ends well");
        }
    }
}

/// Runs alone in a process: descriptors are counted.
fn counted(test: &str, body: impl FnOnce() -> u64) {
    if !alone(test) {
        return;
    }
    let _watchdog = Watchdog::new(test);
    let server = HostilePeer::start(); // The first connection starts the peer monitor, which stays.
    server.answer(vec![(accept().to_vec(), Arc::new(vec![make(Kind::Right)]))]).expect("well-formed");
    drop(server);
    let before = descriptors();
    let cases = body();
    assert!(eventually(|| descriptors() <= before));
    assert!(cases >= 192, "{test}: only {cases} cases");
}

#[test]
fn every_number_and_kind_of_descriptors_for_the_client() {
    counted("every_number_and_kind_of_descriptors_for_the_client", || {
        let (server, mut cases) = (HostilePeer::start(), 0);
        for kinds in lists(&KINDS, 3) {
            for (answer, split) in
                [(accept(), 0), (accept(), 1), (accept(), 127), (reject(), 0), (reject(), 64)]
            {
                let fds = Arc::new(kinds.iter().map(|kind| make(*kind)).collect());
                // They come with the first byte of the second part, if there are two.
                let none = Arc::new(vec![]);
                let parts = vec![(answer[..split].to_vec(), none), (answer[split..].to_vec(), fds)];
                let is = server.answer(parts.into_iter().filter(|part| !part.0.is_empty()).collect());
                let right = match (answer == accept(), &kinds[..], &is) {
                    (_, [_, _, ..], Err(ConnectError::SurplusDescriptors)) => true,
                    (true, [], Err(ConnectError::NoDescriptor)) => true,
                    (true, [Kind::Right], Ok(())) => true,
                    (true, [kind], Err(ConnectError::BadMemfd(_))) => *kind != Kind::Right,
                    (false, [] | [_], Err(ConnectError::Rejected { code, .. })) => {
                        *code == RejectCode::Unavailable
                    }
                    _ => false,
                };
                assert!(right, "{kinds:?} after {split} bytes: {is:?}");
                cases += 1;
                // Threads close the descriptors, and a busy machine may starve them. If more than 256 waited, the others would
                // be lost.
                assert!(eventually(|| descriptors() < 100), "{cases} cases");
            }
        }
        cases
    });
}

#[test]
fn every_number_and_kind_of_descriptors_for_the_server() {
    counted("every_number_and_kind_of_descriptors_for_the_server", || {
        let server = Server::start(&options());
        let (mut cases, mut failures) = (0, 0);
        for kinds in lists(&KINDS, 3) {
            for split in [0, 1, 63] {
                let (client, fds) = (server.raw(), kinds.iter().map(|kind| make(*kind)).collect::<Vec<_>>());
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                (&client).write_all(&hello()[..split]).expect("sends");
                cases += 1;
                let refused = send_with(&client, &hello()[split..], &fds).is_err();
                if refused {
                    // Refused by the kernel, from Linux 6.16 on: nothing of it was sent.
                    (&client).write_all(&hello()[split..]).expect("sends");
                }
                if refused || kinds.is_empty() {
                    assert!(matches!(confirm(&client).0, Answer::Accept(_)), "{kinds:?}");
                    continue;
                }
                let Answer::Reject(reject) = answer(&client) else { panic!("accepted with {kinds:?}") };
                assert_eq!(reject.code(), RejectCode::BadHello, "{kinds:?}");
                failures += 1;
            }
        }
        server.failures_reach(failures);
        cases
    });
}

#[test]
fn every_truncation_over_a_socket() {
    counted("every_truncation_over_a_socket", || {
        let server = Server::start(&options());
        for count in 0..HELLO_LEN {
            (&server.raw()).write_all(&hello()[..count]).expect("sends");
        }
        server.failures_reach(HELLO_LEN as u64);
        let server = HostilePeer::start();
        for count in 0..ANSWER_LEN {
            let fds = Arc::new(vec![make(Kind::Right)]);
            let parts = if count == 0 { vec![] } else { vec![(accept()[..count].to_vec(), fds)] };
            let is = server.answer(parts);
            assert!(matches!(is, Err(ConnectError::PeerClosed)), "{count} bytes: {is:?}");
        }
        (HELLO_LEN + ANSWER_LEN) as u64
    });
}

#[test]
fn every_short_order_for_the_server() {
    counted("every_short_order_for_the_server", || {
        let (server, hello) = (Server::start(&options()), hello());
        let tokens: [&[u8]; 6] = [&hello, &hello[..32], &hello[32..], b"GET / HT", &accept(), &[0; 8]];
        let mut cases = 0;
        for order in lists(&tokens, 3) {
            let (mut client, all) = (server.raw(), order.concat());
            for token in order {
                // The client may have been refused at the previous token.
                let _ = client.write_all(token);
            }
            client.shutdown(Shutdown::Write).expect("shuts");
            let is = received(&mut client);
            let right = said(&all, &hello);
            assert_eq!(is, right, "{all:?}");
            cases += 1;
        }
        server.failures_reach(cases); // None of them ends with an acknowledgement.
        cases
    });
}

/// The code of the answer, `Some(None)` for an Accept, or `None` if there was no answer.
fn received(client: &mut UnixStream) -> Option<Option<RejectCode>> {
    let mut bytes = [0; ANSWER_LEN];
    client.read_exact(&mut bytes).ok()?;
    match Answer::decode(&bytes).expect("makes sense") {
        Answer::Accept(_) => Some(None),
        Answer::Reject(reject) => Some(Some(reject.code())),
    }
}

/// The answer that a server must give to exactly these bytes.
fn said(bytes: &[u8], hello: &[u8]) -> Option<Option<RejectCode>> {
    let known = bytes.len().min(8);
    if bytes[..known] != hello[..known] {
        return Some(Some(RejectCode::BadHello));
    }
    let whole = bytes.get(..HELLO_LEN)?;
    // Only the second half can differ: the first half belongs to the longest message.
    Some(if whole == hello { None } else { Some(RejectCode::MaxMessage) })
}

#[test]
fn every_short_order_for_the_client() {
    counted("every_short_order_for_the_client", || {
        let (server, accept, reject) = (HostilePeer::start(), accept(), reject());
        let tokens: [(&[u8], usize); 6] = [
            (&accept, 1),
            (&accept[..64], 1),
            (&accept[64..], 0),
            (&reject, 0),
            (&reject[..64], 0),
            (b"GET / HT", 0),
        ];
        let mut cases = 0;
        for order in lists(&tokens, 3) {
            let part = |(bytes, fds): &(&[u8], usize)| {
                (bytes.to_vec(), Arc::new((0..*fds).map(|_| make(Kind::Right)).collect()))
            };
            let is = server.answer(order.iter().map(part).collect());
            let right = understood(&order, &accept, &reject);
            let is = End::of(&is);
            // Bytes after the Accept are a surplus if they arrive in time, and are never read if they are late. A
            // second descriptor may be noticed one part early.
            let late = right == End::Connected && is == End::Bad(HandshakeError::Surplus);
            let early = order.iter().map(|part| part.1).sum::<usize>() > 1 && is == End::Surplus;
            assert!(is == right || late || early, "{order:?}: {is:?}");
            cases += 1;
        }
        cases
    });
}

/// The result of a client for an order of parts.
#[derive(Debug, PartialEq)]
enum End {
    Connected,
    Surplus,
    NoDescriptor,
    Rejected,
    Bad(HandshakeError),
    Closed,
    Other(String),
}

impl End {
    fn of(result: &Result<(), ConnectError>) -> Self {
        match result {
            Ok(()) => Self::Connected,
            Err(ConnectError::SurplusDescriptors) => Self::Surplus,
            Err(ConnectError::NoDescriptor) => Self::NoDescriptor,
            Err(ConnectError::Rejected { .. }) => Self::Rejected,
            Err(ConnectError::BadAnswer(error)) => Self::Bad(*error),
            Err(ConnectError::PeerClosed) => Self::Closed,
            Err(error) => Self::Other(error.to_string()),
        }
    }
}

/// The result that a client must have for these parts.
fn understood(order: &[(&[u8], usize)], accept: &[u8], reject: &[u8]) -> End {
    let (mut bytes, mut fds) = (vec![], 0);
    for (token, more) in order {
        (bytes, fds) = ([&bytes[..], token].concat(), fds + more);
        let known = bytes.len().min(8);
        if fds > 1 {
            return End::Surplus;
        }
        if bytes[..known] != accept[..known] {
            return End::Bad(HandshakeError::BadMagic);
        }
        match bytes.get(..ANSWER_LEN) {
            None => {}
            Some(whole) if whole == accept && fds == 1 => return End::Connected,
            Some(whole) if whole == accept => return End::NoDescriptor,
            Some(whole) if whole == reject => return End::Rejected,
            Some(_) => return End::Bad(HandshakeError::ReservedNotZero),
        }
    }
    End::Closed
}
