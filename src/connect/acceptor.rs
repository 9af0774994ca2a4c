//! The server's side of a handshake: reads one Hello, allocates the memory, sends the Accept with it, and waits until
//! the client has sealed it.
//!
//! ```text
//!  Hello ──valid──▶ memory made, formatted, its size sealed ──▶ Accept ──▶ Answered ──one byte, all seals──▶ Ready
//!    └──anything else──▶ one Reject, best effort ──▶ Failure                  └──anything else──▶ Failure
//! ```
//!
//! # Invariants
//!
//! 1. No memory is allocated before the whole Hello was validated. Then exactly the agreed sizes are allocated.
//! 2. The size is sealed before the descriptor leaves, and the descriptor leaves once. It is kept until the client
//!    has confirmed the memory, to read the seals, and no longer.
//! 3. A refusal is written once without waiting, so a client that does not read cannot delay the server.
//! 4. The server never adds a seal to memory that a client has: the kernel would make it wait for a client that punches
//!    holes. It reads the seals, which never waits, and touches no page before all seals are set.
//! 5. The peer of a spawned connection is the process that sent the Hello with the nonce. The kernel has checked its
//!    credentials; only a process with `CAP_SYS_ADMIN` over the pid namespace can choose them. The peer may be another
//!    process than the child, as the child may be a shell or a launcher that starts the peer.
//! 6. The server never keeps a descriptor that a client sends. It refuses such a client, and a thread that may block
//!    closes the client's socket: see `sys::foreign`.
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

/// Why a handshake with a client failed.
#[derive(Debug)]
pub(crate) enum AcceptFailure {
    /// The client's bytes are malformed.
    Handshake(HandshakeError),
    /// The client closed the socket.
    Closed,
    /// The policy does not allow the client.
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
    naming: SenderNaming,
    peer: Option<Arc<Pidfd>>,
    machine: ServerHandshake,
    progress: AcceptProgress,
}

/// By what the kernel identifies the peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum SenderNaming {
    /// The process that connected.
    Connection,
    /// The sender of the Hello, by its credentials and a pidfd that come with it.
    Pidfd,
    /// The sender of the Hello, by its credentials alone (before Linux 6.5).
    Number,
}

/// The state of the handshake.
enum AcceptProgress {
    /// The Hello is not complete.
    Hello,
    /// The first `sent` bytes of the Accept were sent.
    Accept { bytes: [u8; ANSWER_LEN], sent: usize, memory: HandshakeMemory },
    /// The whole Accept was sent. The client has to confirm the memory.
    Answered(HandshakeMemory),
    /// The client has sealed the memory.
    Confirmed(Negotiated, Region),
}

/// The process that sent the received bytes: its credentials and its pidfd, if the socket requests them and the kernel
/// supplies them.
struct HelloSender(Option<PeerCred>, Option<Pidfd>);

/// The memory of the connection, and the agreed sizes, which the server sends to the client.
struct HandshakeMemory {
    agreed: Negotiated,
    region: Region,
    memfd: OwnedFd,
}

impl Acceptor {
    /// Starts the handshake with a client whose connection was just accepted, if the policy allows the client.
    ///
    /// The peer monitor must run, so that the end of the client is detected. It was started with the listener, and its
    /// thread may have been killed since.
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
        let is_own_process = cred.pid() == process::id();
        let peer = if is_own_process { None } else { socket::peer_pidfd(socket.as_fd()).map(Pidfd::shared) };
        Ok(Self { peer, ..Self::of_pair(socket, cred, 0) })
    }

    /// Starts the handshake with the other end of a socketpair within this process.
    pub(super) fn of_pair(socket: impl Into<PeerSocket>, cred: PeerCred, nonce: u64) -> Self {
        let (socket, machine) = (socket.into(), ServerHandshake::new(nonce));
        Self {
            socket,
            cred,
            naming: SenderNaming::Connection,
            peer: None,
            machine,
            progress: AcceptProgress::Hello,
        }
    }

    /// Starts the handshake with the process that inherited the other end and proves it by the nonce: the child, or a
    /// descendant of it. The sender of the Hello becomes the peer; `cred` is used until then.
    pub(super) fn of_child(socket: OwnedFd, cred: PeerCred, naming: SenderNaming, nonce: u64) -> Self {
        Self { naming, ..Self::of_pair(socket, cred, nonce) }
    }

    /// Returns the peer, once its Hello was valid, if it has a pidfd.
    pub(super) fn known_peer(&self) -> Option<(PeerCred, Arc<Pidfd>)> {
        self.peer.clone().map(|pidfd| (self.cred, pidfd))
    }

    /// Returns the process that connected; 0 for every process outside this process's pid namespace.
    pub(crate) fn process(&self) -> u32 {
        self.cred.pid()
    }

    /// Advances the handshake as far as possible without waiting.
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

    /// Drops a client whose deadline has passed, and logs it.
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
                    let complete = self.send(&bytes, &mut sent, &memory)?;
                    if !complete {
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

    /// Makes the connection, with the agreed sizes.
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

    /// Reads once. Returns `None` if there were no bytes, `Some(None)` if the Hello is not complete, else the Hello.
    fn receive_hello(&mut self) -> Result<Option<Option<Hello>>, AcceptFailure> {
        let mut bytes = [0; HELLO_LEN];
        let (room, _) = bytes.split_at_mut(self.machine.missing().min(HELLO_LEN));
        let received = match self.receive(room) {
            Ok(None) => return Ok(None),
            Ok(Some((count, sender))) => {
                let fed = self.machine.feed(room.get(..count).unwrap_or_default());
                if let Ok(Some(_)) = fed {
                    self.set_peer(sender);
                }
                fed.map_err(AcceptFailure::Handshake)
            }
            Err(failure) => Err(failure),
        };
        if let Err(AcceptFailure::Handshake(error)) = received {
            refuse(self.socket.as_fd(), error.into());
        }
        received.map(Some)
    }

    /// Returns whether the client has confirmed that the memory is sealed, and checks the seals. The byte of the
    /// confirmation is the last that the server reads from the socket.
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

    /// Records the sender of the last byte of a valid Hello as the peer.
    fn set_peer(&mut self, sender: HelloSender) {
        let HelloSender(cred, pidfd) = sender;
        let Some(cred) = cred.filter(|_| !matches!(self.naming, SenderNaming::Connection)) else {
            return;
        };
        self.cred = cred;
        let by_number = || {
            // A seccomp filter may kill the thread for this call. In theory the pid could belong to another process by
            // now: the sender would have had to end, and the kernel to go through all pids, since the Hello was sent.
            let may = matches!(self.naming, SenderNaming::Number) && !filter_in_force();
            may.then(|| Pidfd::open(cred.pid()).ok()).flatten()
        };
        self.peer = pidfd.or_else(by_number).map(Pidfd::shared);
    }

    /// Reads the available bytes. Returns their number and their sender, or `None` if there are none now. It is an
    /// error if the client sends descriptors.
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

    /// Sends the rest of the Accept, and returns whether it is complete. The descriptor goes with the first byte.
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
        f.debug_struct("Acceptor").field("cred", &self.cred).finish_non_exhaustive()
    }
}

/// Makes the memory, seals its size, and writes its first words.
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

/// Refuses a client since the peer monitor, which would detect the client's end, cannot run.
pub(crate) fn refuse_unwatched(socket: BorrowedFd<'_>, why: &io::Error) {
    refuse(socket, Reject::new(RejectCode::Unavailable, &why.to_string()));
}

/// Sends the refusal to the client, if that is possible at once. A client that has no room for it does not get it.
fn refuse(socket: BorrowedFd<'_>, reject: Reject) {
    let _ = write(socket, &Answer::Reject(reject).encode());
}
