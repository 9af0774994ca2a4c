//! The client's side of a handshake: connects, sends its Hello, receives the Accept, validates the memory that came
//! with it, and seals and confirms the memory.
//!
//! ```text
//!  Connector ──advance──▶ Hello sent ──▶ Accept complete, one descriptor
//!    └──confirm──▶ verify, map, seal (never past the deadline), nothing more queued, one byte ──▶ Confirmed
//! ```
//!
//! # Invariants
//!
//! 1. The client asks the kernel for the sender's pidfd before it sends the Hello, so the pidfd comes with the Accept.
//! 2. The client takes exactly one descriptor, with whichever byte it comes. It verifies the seals and the size before
//!    it maps the memory, and closes the descriptor once the memory is sealed.
//! 3. The process that sent the Accept is the peer, also if it has ended since: the connection then ends as `PeerDied`.
//! 4. Sealing needs a lock of the file, which a server that punches holes meanwhile can hold. The client still returns
//!    at its deadline, since a separate thread waits for that lock.
//!
//! # Proof
//!
//! `tests/listener/handshake.rs`: hostile servers with no, two, unsealed, short, regular-file descriptors.
//! `tests/listener/foreign_descriptors.rs`: descriptors whose close blocks, and a server that punches holes.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{ConnectError, HandshakeError};
use crate::handshake::{
    ACKNOWLEDGE, ANSWER_LEN, ClientHandshake, ClientStep, HELLO_LEN, HandshakeLimits, Negotiated,
};
use crate::options::{Options, Untrusted};
use crate::sys::connection::{ConnectionParts, Side};
use crate::sys::foreign::{Foreign, PeerSocket};
use crate::sys::memfd;
use crate::sys::offload;
use crate::sys::pidfd::Pidfd;
use crate::sys::region::Region;
use crate::sys::socket::{self, Connecting, PeerCred};
#[cfg(feature = "testing")]
use crate::sys::socket_io::send_with_fds;
use crate::sys::socket_io::{Beside, Transfer, receive_with_fds, write};
use crate::sys::wait::{Readiness, wait_ready};

use super::{ConnectLimit, Established, Step, connection, wanted, why_not_connected};

/// Connects to the server at the path, within the limit.
pub(crate) fn connect(
    path: &Path,
    options: &Options,
    limit: ConnectLimit<'_>,
) -> Result<Established, ConnectError> {
    let limits = wanted(options)?;
    let socket = connect_socket(path, options, limit)?;
    let cred =
        socket::peer_cred(socket.as_fd()).map_err(ConnectError::io("reading the server's credentials"))?;
    options.authorizes(&cred).map_err(|why| match why {
        Untrusted::Unknown(source) => ConnectError::io("asking for the user of this process")(source),
        why => ConnectError::NotAuthorized { uid: cred.uid(), text: why.to_string() },
    })?;
    let _best_effort = socket::want_pidfd(socket.as_fd());
    drive(Connector::new(socket, cred, &limits, 0), limit, options.is_prefault())
}

/// Runs a client's handshake on an answer that comes in these parts, each with its descriptors. For tests.
#[cfg(feature = "testing")]
pub fn answered(limits: &HandshakeLimits, parts: Vec<(&[u8], Vec<OwnedFd>)>) -> Result<(), ConnectError> {
    let (ours, theirs) = socket::pair().map_err(ConnectError::io("making a pair of sockets"))?;
    let cred = socket::peer_cred(ours.as_fd()).map_err(ConnectError::io("reading credentials"))?;
    let mut connector = Connector::new(ours, cred, limits, 0);
    connector.advance()?;
    for (bytes, fds) in parts {
        let beside: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = send_with_fds(theirs.as_fd(), bytes, &beside);
        sent.map_err(ConnectError::io("sending the answer"))?;
        if matches!(connector.advance()?, Step::Ready) {
            break;
        }
    }
    connector.confirm(Sealing::Here)?.finish(false).map(drop)
}

/// A client in mid-handshake.
pub(super) struct Connector {
    socket: PeerSocket,
    cred: PeerCred,
    machine: ClientHandshake,
    sent: usize,
    memory: Option<Foreign>,
    pidfd: Option<Pidfd>,
    agreed: Option<Negotiated>,
}

impl Connector {
    pub(super) fn new(
        socket: impl Into<PeerSocket>,
        cred: PeerCred,
        limits: &HandshakeLimits,
        nonce: u64,
    ) -> Self {
        Self {
            socket: socket.into(),
            cred,
            machine: ClientHandshake::new(limits.geometry, limits.max_message, nonce),
            sent: 0,
            memory: None,
            pidfd: None,
            agreed: None,
        }
    }

    /// Returns the process that listened at the path.
    pub(super) fn server(&self) -> u32 {
        self.cred.pid()
    }

    /// Advances the handshake as far as possible without waiting. Returns `Ready` once the Accept was received.
    pub(super) fn advance(&mut self) -> Result<Step, ConnectError> {
        if !self.send_hello()? {
            return Ok(Step::Wants(Readiness::Writable));
        }
        while self.agreed.is_none() {
            if !self.receive_answer()? {
                return Ok(Step::Wants(Readiness::Readable));
            }
        }
        Ok(Step::Ready)
    }

    /// Maps and seals the received memory, and confirms that to the server.
    pub(super) fn confirm(self, sealing: Sealing<'_>) -> Result<Confirmed, ConnectError> {
        let Some(agreed) = self.agreed else {
            return Err(ConnectError::Timeout);
        };
        // From now on the kernel rejects further descriptors from the server, if it supports that.
        let _best_effort = socket::refuse_descriptors(self.socket.as_fd());
        let region = adopt(self.memory, agreed.geometry.region_len(), sealing)?;
        // If a seccomp filter refuses this system call, the check is left out: queued bytes are never read anyway.
        if socket::queued(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0) {
            return Err(ConnectError::BadAnswer(HandshakeError::Surplus));
        }
        match write(self.socket.as_fd(), &[ACKNOWLEDGE]).map_err(ConnectError::io("confirming the memory"))? {
            Transfer::Bytes(_) => {}
            // This does not happen: the socket has room for one more byte after a Hello.
            Transfer::WouldBlock => return Err(ConnectError::Timeout),
            Transfer::Closed => return Err(ConnectError::PeerClosed),
        }
        Ok(Confirmed(ConnectionParts {
            region,
            socket: self.socket,
            geometry: agreed.geometry,
            side: Side::Client,
            cred: self.cred,
            peer: self.pidfd.map(Pidfd::shared),
            first_ticket: agreed.first_ticket,
            max_message: agreed.max_message,
        }))
    }

    /// Sends the rest of the Hello, and returns whether it is complete. A server that refuses at once may have closed
    /// the socket already; its answer can still be read.
    fn send_hello(&mut self) -> Result<bool, ConnectError> {
        let hello = self.machine.hello();
        while let Some(rest @ [_, ..]) = hello.get(self.sent..) {
            match write(self.socket.as_fd(), rest).map_err(ConnectError::io("sending the hello"))? {
                Transfer::Bytes(count) => self.sent += count,
                Transfer::WouldBlock => return Ok(false),
                Transfer::Closed => self.sent = HELLO_LEN,
            }
        }
        Ok(true)
    }

    /// Reads once, and returns whether bytes came.
    fn receive_answer(&mut self) -> Result<bool, ConnectError> {
        let mut bytes = [0; ANSWER_LEN];
        let (room, _) = bytes.split_at_mut(self.machine.missing().min(ANSWER_LEN));
        let received =
            receive_with_fds(self.socket.as_fd(), room).map_err(ConnectError::io("receiving the answer"))?;
        match (received.beside, &self.memory) {
            (Beside::Nothing, _) => {}
            (Beside::One(fd), None) => self.memory = Some(fd),
            (Beside::One(_), Some(_)) | (Beside::Several, _) => return Err(ConnectError::SurplusDescriptors),
            (Beside::Missing, _) => return Err(self.missing()),
        }
        self.pidfd = self.pidfd.take().or(received.pidfd);
        match received.transfer {
            Transfer::Bytes(count) => self.validate(room.get(..count).unwrap_or_default()).map(|()| true),
            Transfer::WouldBlock => Ok(false),
            Transfer::Closed => Err(ConnectError::PeerClosed),
        }
    }

    /// Returns why a descriptor did not arrive. If this process has no room for descriptors, duplicating one fails with
    /// the same error; otherwise the kernel does not report the reason.
    fn missing(&self) -> ConnectError {
        match self.socket.as_fd().try_clone_to_owned() {
            Err(full) => ConnectError::io("receiving the memory")(full),
            Ok(_) => ConnectError::Truncated,
        }
    }

    fn validate(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        match self.machine.feed(bytes).map_err(ConnectError::BadAnswer)? {
            ClientStep::NeedMore(_) => Ok(()),
            ClientStep::Agreed(agreed) => {
                self.agreed = Some(agreed);
                Ok(())
            }
            ClientStep::Rejected(reject) => {
                Err(ConnectError::Rejected { code: reject.code(), text: reject.text().into() })
            }
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// Which thread seals the memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sealing<'a> {
    /// The calling thread: the server is this process, or a test.
    Here,
    /// Another thread, so that the calling thread can return at the limit.
    Within(ConnectLimit<'a>),
}

/// A client that has confirmed to its server that the memory is sealed.
pub(super) struct Confirmed(ConnectionParts);

impl Confirmed {
    /// Makes the connection.
    pub(super) fn finish(self, prefault: bool) -> Result<Established, ConnectError> {
        let Self(parts) = self;
        if prefault {
            parts.region.prefault().map_err(ConnectError::io("touching the memory"))?;
        }
        connection(parts).map_err(ConnectError::io("setting up the connection"))
    }
}

/// How long to wait before the next attempt to connect to a server that is not ready: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// How long to wait for room in a full backlog before checking whether another server has bound the path.
///
/// The kernel wakes the waiting threads in their order, and each new wait begins at the end of the queue. A shorter
/// wait would let other threads overtake this one.
const BACKLOG_WAIT: Duration = Duration::from_secs(1);

/// Returns a connected socket. While the backlog is full, it waits in the kernel's queue until the limit. While the
/// path is missing or refuses, it tries again until the limit, if the options say so.
fn connect_socket(
    path: &Path,
    options: &Options,
    limit: ConnectLimit<'_>,
) -> Result<PeerSocket, ConnectError> {
    let mut pause = PAUSE.0;
    let mut connecting = socket::connect(path);
    loop {
        let missing = match connecting {
            Ok(Connecting::Connected(socket)) => return Ok(socket.into()),
            Ok(Connecting::BacklogFull) => None,
            Err(source) if options.waits_for_server() && is_missing(&source) => Some(source),
            Err(source) => return Err(failed(path, source)),
        };
        if limit.is_over() {
            return Err(missing.map_or(ConnectError::BacklogFull, |source| failed(path, source)));
        }
        connecting = if missing.is_none() {
            socket::connect_waiting(path, limit.slice(BACKLOG_WAIT))
        } else {
            thread::sleep(limit.slice(pause));
            pause = (pause * 2).min(PAUSE.1);
            socket::connect(path)
        };
    }
}

/// Returns whether a server may still appear at the path: the directory or the path is missing, or no socket listens.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Converts an error of `connect`. The kernel returns the same error for a path that is not a socket and for a socket
/// at which no process listens, so this looks at the path.
fn failed(path: &Path, source: io::Error) -> ConnectError {
    let not_a_socket = fs::metadata(path).is_ok_and(|it| !it.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::ConnectionRefused if not_a_socket => ConnectError::NotASocket,
        _ => ConnectError::Io {
            doing: format!("connecting to {}", path.display()),
            source: why_not_connected(source, path),
        },
    }
}

/// Verifies, maps and seals the one descriptor.
fn adopt(memory: Option<Foreign>, len: usize, sealing: Sealing<'_>) -> Result<Region, ConnectError> {
    let memory = memory.ok_or(ConnectError::NoDescriptor)?;
    let verified = memory.as_fd().map(|fd| memfd::verify(fd, len)).transpose();
    verified.map_err(|bad| ConnectError::BadMemfd(bad.to_string()))?;
    // It is memory, whose close does not block.
    let memfd = Arc::new(memory.verified().ok_or(ConnectError::NoDescriptor)?);
    let region = Region::map(memfd.as_fd(), len).map_err(ConnectError::io("mapping the memory"))?;
    seal(&memfd, sealing)?.map_err(ConnectError::io("sealing the memory"))?;
    Ok(region)
}

fn seal(memfd: &Arc<OwnedFd>, sealing: Sealing<'_>) -> Result<io::Result<()>, ConnectError> {
    if let Sealing::Within(limit) = sealing {
        let memfd = Arc::clone(memfd);
        let work = move || memfd::seal_mappings(memfd.as_fd());
        match offload::within(limit.deadline, || limit.is_cancelled(), work) {
            Ok(Some(sealed)) => return Ok(sealed),
            Ok(None) => return Err(ConnectError::Timeout),
            // There is no thread. The deadline then holds only with a well-formed server, which is better than no
            // connection.
            Err(_) => {}
        }
    }
    Ok(memfd::seal_mappings(memfd.as_fd()))
}

/// Advances a client until the handshake is complete.
///
/// A server that has ended looks like one that does not answer if a fork of it holds its socket. Only its process shows
/// the difference. So if that process has ended, the wait is bounded also without a deadline. An explicit deadline
/// stays unchanged: the process that called `listen` last may have ended while others serve the same socket.
pub(super) fn drive(
    mut connector: Connector,
    given: ConnectLimit<'_>,
    prefault: bool,
) -> Result<Established, ConnectError> {
    let (mut limit, mut ended) = (given, false);
    loop {
        let readiness = match connector.advance()? {
            Step::Ready => return connector.confirm(Sealing::Within(given))?.finish(prefault),
            Step::Wants(readiness) => readiness,
        };
        let slice = Instant::now() + limit.slice(RECHECK_INTERVAL);
        let ready = wait_ready(connector.as_fd(), readiness, Some(slice));
        if ready.map_err(ConnectError::io("waiting for the server"))? {
            continue;
        }
        if !ended && socket::peer_has_ended(connector.as_fd()) {
            ended = true;
            limit.deadline = limit.deadline.or_else(|| Some(Instant::now() + AFTER_END));
        }
        if limit.is_over() {
            return Err(match ended {
                true => ConnectError::ServerEnded { pid: connector.server() },
                false => ConnectError::Timeout,
            });
        }
    }
}

/// How often a waiting client checks whether the process that listened has ended.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a fork of a server that has ended may take to answer a client without a deadline.
const AFTER_END: Duration = Duration::from_secs(5);
