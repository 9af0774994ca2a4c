//! The client's end: connects, says Hello, and judges what comes with the Welcome.
//!
//! # Invariants
//!
//! 1. The kernel is asked for the sender's pidfd before Hello leaves, so the Welcome carries it.
//! 2. Exactly one descriptor is accepted, whichever byte it came with; its seals and its size are
//!    verified before it is mapped, and it is closed once it is.
//! 3. Who sent the Welcome is the peer, also if it has ended since: the connection then ends as a death.
//!
//! # Proof
//!
//! `tests/handshake.rs`: hostile servers with no, two, unsealed, short, regular-file descriptors.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::ConnectError;
use crate::handshake::{ANSWER_LEN, Agreement, ClientHandshake, ClientStep, HELLO_LEN, Limits};
use crate::options::Options;
use crate::sys::link::{LinkParts, Side};
use crate::sys::memfd;
use crate::sys::pidfd::Pidfd;
use crate::sys::region::Region;
use crate::sys::socket::{self, Connecting, PeerCred};
#[cfg(feature = "testing")]
use crate::sys::transfer::send_with_fds;
use crate::sys::transfer::{Transfer, receive_with_fds, write};
use crate::sys::wait::Readiness;

use super::{Established, Step, drive, expired, link, wanted};

/// Connects to the server at the path, until the deadline.
pub(crate) fn connect(
    path: &Path,
    options: &Options,
    until: Option<Instant>,
) -> Result<Established, ConnectError> {
    let limits = wanted(options)?;
    let socket = reach(path, until)?;
    let cred =
        socket::peer_cred(socket.as_fd()).map_err(ConnectError::io("reading the server's credentials"))?;
    if !options.allows(&cred) {
        return Err(ConnectError::NotAuthorized { uid: cred.uid() });
    }
    socket::want_pidfd(socket.as_fd());
    drive(Caller::new(socket, cred, &limits, 0), until, options.is_prefault())
}

/// What a client makes of an answer that comes in these parts, each with descriptors beside it.
#[cfg(feature = "testing")]
pub(crate) fn answered(limits: &Limits, parts: Vec<(&[u8], Vec<OwnedFd>)>) -> Result<(), ConnectError> {
    let (ours, theirs) = socket::pair().map_err(ConnectError::io("making a pair of sockets"))?;
    let mut caller = Caller::new(ours, PeerCred::own(), limits, 0);
    caller.advance()?;
    for (bytes, fds) in parts {
        let beside: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = send_with_fds(theirs.as_fd(), bytes, &beside);
        sent.map_err(ConnectError::io("sending the answer"))?;
        if matches!(caller.advance()?, Step::Ready) {
            break;
        }
    }
    caller.finish(false).map(drop)
}

/// A client in mid-handshake.
pub(super) struct Caller {
    socket: OwnedFd,
    cred: PeerCred,
    machine: ClientHandshake,
    sent: usize,
    descriptors: Vec<OwnedFd>,
    pidfd: Option<Pidfd>,
    agreed: Option<Agreement>,
}

impl Caller {
    pub(super) fn new(socket: OwnedFd, cred: PeerCred, limits: &Limits, nonce: u64) -> Self {
        Self {
            socket,
            cred,
            machine: ClientHandshake::new(limits.geometry, limits.max_message, nonce),
            sent: 0,
            descriptors: Vec::new(),
            pidfd: None,
            agreed: None,
        }
    }

    /// Does all that can be done without waiting.
    pub(super) fn advance(&mut self) -> Result<Step, ConnectError> {
        if !self.say_hello()? {
            return Ok(Step::Wants(Readiness::Writable));
        }
        while self.agreed.is_none() {
            if !self.listen()? {
                return Ok(Step::Wants(Readiness::Readable));
            }
        }
        Ok(Step::Ready)
    }

    /// Makes the link of what came.
    pub(super) fn finish(self, prefault: bool) -> Result<Established, ConnectError> {
        let Some(agreed) = self.agreed else {
            return Err(ConnectError::Timeout);
        };
        let region = adopt(self.descriptors, agreed.geometry.region_len())?;
        if prefault {
            region.prefault().map_err(ConnectError::io("touching the memory"))?;
        }
        let parts = LinkParts {
            region,
            socket: self.socket,
            geometry: agreed.geometry,
            side: Side::Client,
            cred: self.cred,
            peer: self.pidfd.map(Pidfd::shared),
            first_ticket: agreed.first_ticket,
            max_message: agreed.max_message,
        };
        link(parts).map_err(ConnectError::io("setting up the connection"))
    }

    /// Whether Hello is out. A server that refuses at once may have closed already, and its answer
    /// can still be read.
    fn say_hello(&mut self) -> Result<bool, ConnectError> {
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
    fn listen(&mut self) -> Result<bool, ConnectError> {
        let mut bytes = [0; ANSWER_LEN];
        let missing = self.machine.missing().min(bytes.len());
        let (room, _) = bytes.split_at_mut(missing);
        let received =
            receive_with_fds(self.socket.as_fd(), room).map_err(ConnectError::io("receiving the answer"))?;
        self.descriptors.extend(received.fds);
        self.pidfd = self.pidfd.take().or(received.pidfd);
        if received.truncated {
            return Err(ConnectError::Truncated);
        }
        if self.descriptors.len() > 1 {
            return Err(ConnectError::SurplusDescriptors);
        }
        match received.transfer {
            Transfer::Bytes(count) => self.judge(room.get(..count).unwrap_or_default()).map(|()| true),
            Transfer::WouldBlock => Ok(false),
            Transfer::Closed => Err(ConnectError::PeerClosed),
        }
    }

    fn judge(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
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

impl AsFd for Caller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// How long to wait before knocking again at a server whose backlog is full: at first, and at most.
const KNOCK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// A connected socket. A full backlog means a live server, so it is tried until the deadline.
fn reach(path: &Path, until: Option<Instant>) -> Result<OwnedFd, ConnectError> {
    let mut pause = KNOCK.0;
    loop {
        let connecting = socket::connect(path).map_err(|source| failed(path, source))?;
        match connecting {
            Connecting::Connected(socket) => return Ok(socket),
            Connecting::BacklogFull if expired(until) => return Err(ConnectError::Timeout),
            Connecting::BacklogFull => {
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                thread::sleep(left.map_or(pause, |left| pause.min(left)));
                pause = (pause * 2).min(KNOCK.1);
            }
        }
    }
}

/// The kernel refuses a path that is no socket as it refuses one that nobody serves.
fn failed(path: &Path, source: io::Error) -> ConnectError {
    let no_socket = fs::metadata(path).is_ok_and(|it| !it.file_type().is_socket());
    match source.kind() {
        io::ErrorKind::ConnectionRefused if no_socket => ConnectError::NotASocket,
        _ => ConnectError::Io { doing: format!("connecting to {}", path.display()), source },
    }
}

/// Verifies and maps the one descriptor.
fn adopt(descriptors: Vec<OwnedFd>, len: usize) -> Result<Region, ConnectError> {
    let mut descriptors = descriptors.into_iter();
    let memfd = match (descriptors.next(), descriptors.next()) {
        (Some(memfd), None) => memfd,
        (None, _) => return Err(ConnectError::NoDescriptor),
        (Some(_), Some(_)) => return Err(ConnectError::SurplusDescriptors),
    };
    memfd::verify(memfd.as_fd(), len).map_err(|bad| ConnectError::BadMemfd(bad.to_string()))?;
    Region::map(memfd.as_fd(), len).map_err(ConnectError::io("mapping the memory"))
}
