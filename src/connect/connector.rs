//! The client's end: connects, sends its Hello, validates what comes with the Welcome, seals and confirms it.
//!
//! ```text
//!  Caller ──advance──▶ Hello sent ──▶ Welcome whole, one descriptor
//!    └──confirm──▶ verify, map, seal (never past the deadline), nothing more queued, one byte ──▶ Confirmed
//! ```
//!
//! # Invariants
//!
//! 1. The kernel is asked for the sender's pidfd before Hello leaves, so the Welcome carries it.
//! 2. Exactly one descriptor is accepted, whichever byte it came with; its seals and its size are
//!    verified before it is mapped, and it is closed once it is sealed.
//! 3. The process that sent the Welcome is the peer, also if it has ended since: the connection then ends as a death.
//! 4. A server that punches holes meanwhile, and so holds the lock of the file that sealing needs, costs the client no
//!    more than its deadline: a thread of its own waits for that lock.
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
    let _a_help = socket::want_pidfd(socket.as_fd());
    drive(Connector::new(socket, cred, &limits, 0), limit, options.is_prefault())
}

/// What a client makes of an answer that comes in these parts, each with descriptors beside it.
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

    /// The process that listened at the path.
    pub(super) fn server(&self) -> u32 {
        self.cred.pid()
    }

    /// Does all that can be done without waiting; `Ready` once the Welcome is there.
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

    /// Maps and seals the memory that came, and tells the server.
    pub(super) fn confirm(self, sealing: Sealing<'_>) -> Result<Confirmed, ConnectError> {
        let Some(agreed) = self.agreed else {
            return Err(ConnectError::Timeout);
        };
        // From now on the server may pass no more descriptors, where the kernel can forbid it.
        let _a_help = socket::refuse_descriptors(self.socket.as_fd());
        let region = adopt(self.memory, agreed.geometry.region_len(), sealing)?;
        // Where a filter refuses the question it goes without: what is queued is never read.
        if socket::queued(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0) {
            return Err(ConnectError::BadAnswer(HandshakeError::Surplus));
        }
        match write(self.socket.as_fd(), &[ACKNOWLEDGE]).map_err(ConnectError::io("confirming the memory"))? {
            Transfer::Bytes(_) => {}
            Transfer::WouldBlock => return Err(ConnectError::Timeout), // There is room behind one Hello.
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

    /// Whether Hello is out. A server that refuses at once may have closed already, and its answer
    /// can still be read.
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

    /// Whether something came.
    fn receive_answer(&mut self) -> Result<bool, ConnectError> {
        let mut bytes = [0; ANSWER_LEN];
        let missing = self.machine.missing().min(bytes.len());
        let (room, _) = bytes.split_at_mut(missing);
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

    /// Why a descriptor did not arrive: for want of room, which the kernel says of another one too, or for a reason that
    /// it does not tell.
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
        f.debug_struct("Caller").field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// How the memory is sealed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sealing<'a> {
    /// By this thread: the server is this process, or a test.
    Here,
    /// By another thread, so that this one can leave at the limit.
    Within(ConnectLimit<'a>),
}

/// A client whose server was told that the memory is sealed.
pub(super) struct Confirmed(ConnectionParts);

impl Confirmed {
    /// Makes the link.
    pub(super) fn finish(self, prefault: bool) -> Result<Established, ConnectError> {
        let Self(parts) = self;
        if prefault {
            parts.region.prefault().map_err(ConnectError::io("touching the memory"))?;
        }
        connection(parts).map_err(ConnectError::io("setting up the connection"))
    }
}

/// How long to wait before the next attempt at a server that is not ready: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// How long to wait for room in a full backlog before it is looked whether another server is at the path.
///
/// The kernel wakes those that wait in their order, and each new wait begins at the end: a shorter one lets others by.
const IN_LINE: Duration = Duration::from_secs(1);

/// A connected socket. A full backlog may become free, so it is tried until the limit, in the kernel's queue; one that is not
/// there yet is, if the options say so.
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
            socket::connect_waiting(path, limit.slice(IN_LINE))
        } else {
            thread::sleep(limit.slice(pause));
            pause = (pause * 2).min(PAUSE.1);
            socket::connect(path)
        };
    }
}

/// Whether a server may appear there: its directory, its path, or its listening may be missing.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The kernel refuses a path that is no socket as it refuses one that nobody serves.
fn failed(path: &Path, source: io::Error) -> ConnectError {
    let no_socket = fs::metadata(path).is_ok_and(|it| !it.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::ConnectionRefused if no_socket => ConnectError::NotASocket,
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
    // Plain memory: its close does not block.
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
            // Without a thread the deadline holds for a well-formed server alone, which is better than no connection.
            Err(_) => {}
        }
    }
    Ok(memfd::seal_mappings(memfd.as_fd()))
}

/// Steps a client until it is ready.
///
/// The kernel keeps a server that does not answer apart from one that has ended only by its process: a fork may hold its
/// socket. So where that process has ended the wait is bounded without a deadline as well. An explicit deadline holds
/// unchanged: the process that called `listen` last may have ended while others serve the same socket.
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
        let slice = Instant::now() + limit.slice(LOOK);
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

/// How often a client that waits looks whether the process that listened has ended.
const LOOK: Duration = Duration::from_millis(500);
/// How long a fork of a server that has ended may take to answer a client without a deadline.
const AFTER_END: Duration = Duration::from_secs(5);
