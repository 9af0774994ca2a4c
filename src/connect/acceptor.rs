//! The server's end: reads one Hello, allocates, sends the Welcome with the memory, and waits until it is sealed.
//!
//! ```text
//!  Hello ──valid──▶ memory made, formatted, its size sealed ──▶ Welcome ──▶ Answered ──one byte, all seals──▶ Ready
//!    └──anything else──▶ one Reject, best effort ──▶ Failure                  └──anything else──▶ Failure
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is allocated before the Hello was validated whole; then exactly what was agreed on.
//! 2. The size is sealed before the descriptor leaves, and the descriptor leaves once. It is kept until the client
//!    has confirmed the memory, to read the seals, and no longer.
//! 3. A refusal is written once without waiting: a peer that does not read costs nothing.
//! 4. The server never adds a seal to memory that a client has: the kernel would make it wait for a client that punches
//!    holes. It reads the seals, which never waits, and touches no page before all are there.
//! 5. The peer of a spawned connection is the process that sent the Hello with the nonce: the kernel has checked its
//!    credentials, which only a process with `CAP_SYS_ADMIN` over the process numbers can choose. It may be another one
//!    than the child: a shell or a launcher may stand between.
//! 6. A descriptor from a client is never taken. Such a client is refused, and its socket is closed by a
//!    thread that may block: see `sys::foreign`.
//!
//! # Proof
//!
//! `tests/listener/handshake.rs`: hostile and silent clients, thousands of failures without a leak.
//! `tests/listener/foreign_descriptors.rs`: descriptors whose close blocks, clients that confirm without sealing.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::Arc;

use crate::error::{HandshakeError, RejectCode};
use crate::events;
use crate::handshake::{
    ACKNOWLEDGE, ANSWER_LEN, Answer, HELLO_LEN, HandshakeLimits, Hello, Negotiated, Reject, ServerHandshake,
};
use crate::options::{Options, Untrusted};
use crate::sys::connection::{ConnectionInner, ConnectionParts, Side};
use crate::sys::foreign::PeerSocket;
use crate::sys::memfd;
use crate::sys::pidfd::Pidfd;
use crate::sys::region::Region;
use crate::sys::seccomp::filter_in_force;
use crate::sys::socket::{self, PeerCred};
use crate::sys::socket_io::{Beside, Transfer, receive_with_fds, send_with_fd, write};
use crate::sys::wait::Readiness;

use super::{Established, Step, connection};

/// Why a handshake with a client came to nothing.
#[derive(Debug)]
pub(crate) enum AcceptFailure {
    /// The client's bytes make no sense.
    Handshake(HandshakeError),
    /// The client closed the socket.
    Closed,
    /// The policy does not let it in.
    Refused(Untrusted),
    /// A system call failed.
    Io(io::Error),
}

impl fmt::Display for AcceptFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => error.fmt(f),
            Self::Closed => f.write_str("it closed the socket"),
            Self::Refused(why) => write!(f, "its user may not connect: {why}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for AcceptFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A client in mid-handshake, as its server sees it.
pub(crate) struct Acceptor {
    socket: PeerSocket,
    cred: PeerCred,
    names: SenderNaming,
    peer: Option<Arc<Pidfd>>,
    machine: ServerHandshake,
    progress: AcceptProgress,
}

/// What names the peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum SenderNaming {
    /// The process that connected.
    Connection,
    /// The sender of the Hello, by its credentials and a pidfd beside it.
    Pidfd,
    /// The sender of the Hello, by its credentials alone (before Linux 6.5).
    Number,
}

/// How far the handshake is.
enum AcceptProgress {
    /// The Hello is not whole.
    Hello,
    /// So many bytes of the Welcome are out.
    Accept { bytes: [u8; ANSWER_LEN], sent: usize, memory: HandshakeMemory },
    /// The client has everything, and is to confirm it.
    Answered(HandshakeMemory),
    /// The client has sealed the memory.
    Confirmed(Negotiated, Region),
}

/// The process that sent some bytes, as far as the socket asks for it and the kernel names it.
struct HelloSender(Option<PeerCred>, Option<Pidfd>);

/// What the client was, or is to be, sent.
struct HandshakeMemory {
    agreed: Negotiated,
    region: Region,
    memfd: OwnedFd,
}

impl Acceptor {
    /// A client whose connection was just accepted, if the policy lets it in.
    ///
    /// Its end must be noticed, so the peer monitor runs; it was started with the listener, and may have been lost since.
    pub(crate) fn admit(socket: OwnedFd, options: &Options) -> Result<Self, AcceptFailure> {
        let socket = PeerSocket::from(socket);
        let cred = socket::peer_cred(socket.as_fd())?;
        if let Err(why) = options.authorizes(&cred) {
            let code = match why {
                Untrusted::Unknown(_) => RejectCode::Unavailable,
                _ => RejectCode::NotAuthorized,
            };
            refuse(socket.as_fd(), Reject::new(code, &why.to_peer()));
            let failure = AcceptFailure::Refused(why);
            events::rejected(cred.pid(), cred.uid(), &failure);
            return Err(failure);
        }
        let ourselves = cred.pid() == process::id();
        let peer = if ourselves { None } else { socket::peer_pidfd(socket.as_fd()).map(Pidfd::shared) };
        Ok(Self { peer, ..Self::of_pair(socket, cred, 0) })
    }

    /// The other end of a socketpair within this process.
    pub(super) fn of_pair(socket: impl Into<PeerSocket>, cred: PeerCred, nonce: u64) -> Self {
        let (socket, machine) = (socket.into(), ServerHandshake::new(nonce));
        Self {
            socket,
            cred,
            names: SenderNaming::Connection,
            peer: None,
            machine,
            progress: AcceptProgress::Hello,
        }
    }

    /// The process that was handed the other end, and proves it by the nonce: the child, or a descendant of it. The
    /// sender of the Hello is the peer; `cred` stands for it before that.
    pub(super) fn of_child(socket: OwnedFd, cred: PeerCred, names: SenderNaming, nonce: u64) -> Self {
        Self { names, ..Self::of_pair(socket, cred, nonce) }
    }

    /// The peer, once its Hello was valid, if it can be watched.
    pub(super) fn known_peer(&self) -> Option<(PeerCred, Arc<Pidfd>)> {
        self.peer.clone().map(|pidfd| (self.cred, pidfd))
    }

    /// The process that connected; 0 for all that are outside this process's pid namespace.
    pub(crate) fn process(&self) -> u32 {
        self.cred.pid()
    }

    /// Does all that can be done without waiting.
    pub(crate) fn advance(
        &mut self,
        limits: &HandshakeLimits,
        prefault: bool,
    ) -> Result<Step, AcceptFailure> {
        let step = self.step(limits, prefault);
        step.inspect_err(|failure| match failure {
            AcceptFailure::Closed => events::left(self.cred.pid(), self.cred.uid()),
            failure => self.report_rejected(failure),
        })
    }

    /// Its time is over.
    pub(crate) fn give_up(self) {
        self.report_rejected(&"its handshake took too long");
    }

    fn report_rejected(&self, why: &dyn fmt::Display) {
        events::rejected(self.cred.pid(), self.cred.uid(), why);
    }

    fn step(&mut self, limits: &HandshakeLimits, prefault: bool) -> Result<Step, AcceptFailure> {
        loop {
            self.progress = match mem::replace(&mut self.progress, AcceptProgress::Hello) {
                AcceptProgress::Hello => match self.receive_hello()? {
                    None => return Ok(Step::Wants(Readiness::Readable)),
                    Some(None) => AcceptProgress::Hello,
                    Some(Some(hello)) => self.prepare(limits.agree(&hello), prefault)?,
                },
                AcceptProgress::Accept { bytes, mut sent, memory } => {
                    let whole = self.send(&bytes, &mut sent, &memory)?;
                    if !whole {
                        self.progress = AcceptProgress::Accept { bytes, sent, memory };
                        return Ok(Step::Wants(Readiness::Writable));
                    }
                    AcceptProgress::Answered(memory)
                }
                AcceptProgress::Answered(memory) => {
                    if !self.is_confirmed(&memory)? {
                        self.progress = AcceptProgress::Answered(memory);
                        return Ok(Step::Wants(Readiness::Readable));
                    }
                    AcceptProgress::Confirmed(memory.agreed, memory.region) // The memfd is closed here.
                }
                confirmed @ AcceptProgress::Confirmed(..) => {
                    self.progress = confirmed;
                    return Ok(Step::Ready);
                }
            };
        }
    }

    /// Makes the link of what was agreed on.
    pub(crate) fn finish(self) -> Result<Established, AcceptFailure> {
        let AcceptProgress::Confirmed(agreed, region) = self.progress else {
            return Err(AcceptFailure::Closed);
        };
        let parts = ConnectionParts {
            region,
            socket: self.socket,
            geometry: agreed.geometry,
            side: Side::Server,
            cred: self.cred,
            peer: self.peer,
            first_ticket: agreed.first_ticket,
            max_message: agreed.max_message,
        };
        let (pid, uid) = (self.cred.pid(), self.cred.uid());
        Ok(connection(parts).inspect_err(|error| events::rejected(pid, uid, error))?)
    }

    /// Reads once: `None` if nothing is there, else the Hello if it is whole.
    fn receive_hello(&mut self) -> Result<Option<Option<Hello>>, AcceptFailure> {
        let mut bytes = [0; HELLO_LEN];
        let (room, _) = bytes.split_at_mut(self.machine.missing().min(HELLO_LEN));
        let heard = match self.receive(room) {
            Ok(None) => return Ok(None),
            Ok(Some((count, sender))) => {
                let fed = self.machine.feed(room.get(..count).unwrap_or_default());
                if let Ok(Some(_)) = fed {
                    self.name(sender);
                }
                fed.map_err(AcceptFailure::Handshake)
            }
            Err(failure) => Err(failure),
        };
        if let Err(AcceptFailure::Handshake(error)) = heard {
            refuse(self.socket.as_fd(), error.into());
        }
        heard.map(Some)
    }

    /// Whether the client has confirmed that the memory is sealed, and it is. The one byte that says so is the last
    /// that is read here.
    fn is_confirmed(&self, memory: &HandshakeMemory) -> Result<bool, AcceptFailure> {
        let mut byte = [0];
        if self.receive(&mut byte)?.is_none() {
            return Ok(false);
        }
        match byte {
            [ACKNOWLEDGE] if memfd::has_all_seals(memory.memfd.as_fd())? => Ok(true),
            [ACKNOWLEDGE] => Err(AcceptFailure::Handshake(HandshakeError::NotSealed)),
            [other] => Err(AcceptFailure::Handshake(HandshakeError::BadAcknowledgement(other))),
        }
    }

    /// Notes the sender of the last byte of a valid Hello as the peer.
    fn name(&mut self, sender: HelloSender) {
        let HelloSender(cred, pidfd) = sender;
        let Some(cred) = cred.filter(|_| !matches!(self.names, SenderNaming::Connection)) else {
            return;
        };
        self.cred = cred;
        let by_number = || {
            // A filter may kill for this call. A number could in theory be another process's by now: the sender would
            // have had to end, and all numbers to be used up, since it sent the Hello.
            let may = matches!(self.names, SenderNaming::Number) && !filter_in_force();
            may.then(|| Pidfd::open(cred.pid()).ok()).flatten()
        };
        self.peer = pidfd.or_else(by_number).map(Pidfd::shared);
    }

    /// Reads what is there: how many bytes and from which process, or `None` for now. A client passes no descriptors.
    fn receive(&self, into: &mut [u8]) -> Result<Option<(usize, HelloSender)>, AcceptFailure> {
        let received = receive_with_fds(self.socket.as_fd(), into)?;
        match (received.beside, received.transfer) {
            (Beside::Nothing, Transfer::Bytes(count)) => {
                Ok(Some((count, HelloSender(received.cred, received.pidfd))))
            }
            (Beside::Nothing, Transfer::WouldBlock) => Ok(None),
            (Beside::Nothing, Transfer::Closed) => Err(AcceptFailure::Closed),
            (Beside::One(_) | Beside::Several | Beside::Missing, _) => {
                Err(AcceptFailure::Handshake(HandshakeError::UnexpectedDescriptor))
            }
        }
    }

    fn prepare(&self, agreed: Negotiated, prefault: bool) -> Result<AcceptProgress, AcceptFailure> {
        let memory = make_memory(&agreed, prefault).map_err(|error| {
            refuse(self.socket.as_fd(), Reject::new(RejectCode::Unavailable, &error.to_string()));
            AcceptFailure::Io(error)
        })?;
        Ok(AcceptProgress::Accept { bytes: Answer::Accept(agreed).encode(), sent: 0, memory })
    }

    /// Whether the whole Welcome is out. The descriptor goes with the first byte.
    fn send(&self, bytes: &[u8], sent: &mut usize, memory: &HandshakeMemory) -> Result<bool, AcceptFailure> {
        while let Some(rest @ [_, ..]) = bytes.get(*sent..) {
            let transfer = if *sent == 0 {
                send_with_fd(self.socket.as_fd(), rest, memory.memfd.as_fd())?
            } else {
                write(self.socket.as_fd(), rest)?
            };
            match transfer {
                Transfer::Bytes(count) => *sent += count,
                Transfer::WouldBlock => return Ok(false),
                Transfer::Closed => return Err(AcceptFailure::Closed),
            }
        }
        Ok(true)
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("cred", &self.cred).finish_non_exhaustive()
    }
}

/// Fresh memory with its first words, of a size that is sealed.
fn make_memory(agreed: &Negotiated, prefault: bool) -> io::Result<HandshakeMemory> {
    let len = agreed.geometry.region_len();
    let memfd = memfd::create(len)?;
    memfd::seal_size(memfd.as_fd())?;
    let region = Region::map(memfd.as_fd(), len)?;
    ConnectionInner::format(&region, &agreed.geometry, agreed.first_ticket);
    if prefault {
        region.prefault()?;
    }
    Ok(HandshakeMemory { agreed: *agreed, region, memfd })
}

/// Sends a client away whose end could not be noticed.
pub(crate) fn refuse_unwatched(socket: BorrowedFd<'_>, why: &io::Error) {
    refuse(socket, Reject::new(RejectCode::Unavailable, &why.to_string()));
}

/// Tells the client why, if it can be told at once. Its own failure to listen is its loss.
fn refuse(socket: BorrowedFd<'_>, reject: Reject) {
    let _ = write(socket, &Answer::Reject(reject).encode());
}
