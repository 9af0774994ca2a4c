//! The server's end: reads one Hello, allocates, and sends the Welcome with the memory.
//!
//! ```text
//!  Reading ──valid Hello──▶ memory made, formatted, sealed ──▶ Answering ──all sent──▶ Ready
//!     └──anything else──▶ one Reject, best effort ──▶ Failure
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is allocated before the Hello was judged whole; then exactly what was agreed on.
//! 2. The memory is sealed before its descriptor leaves, and the descriptor leaves once.
//! 3. A refusal is written once without waiting: a peer that does not read costs nothing.
//!
//! # Proof
//!
//! `tests/handshake.rs`: hostile and silent clients, thousands of failures without a leak.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::Arc;

use crate::error::{HandshakeError, RejectCode};
use crate::events;
use crate::handshake::{ANSWER_LEN, Agreement, Answer, HELLO_LEN, Hello, Limits, Reject, ServerHandshake};
use crate::options::Options;
use crate::sys::link::{Link, LinkParts, Side};
use crate::sys::memfd;
use crate::sys::pidfd::Pidfd;
use crate::sys::region::Region;
use crate::sys::socket::{self, PeerCred};
use crate::sys::transfer::{Transfer, read, send_with_fd, write};
use crate::sys::wait::Readiness;

use super::{Established, Step, link};

/// Why a handshake with a client came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client's bytes make no sense.
    Handshake(HandshakeError),
    /// The client closed the socket.
    Closed,
    /// The policy does not let it in.
    Refused,
    /// A system call failed.
    Io(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => error.fmt(f),
            Self::Closed => f.write_str("it closed the socket"),
            Self::Refused => f.write_str("its user may not connect, see Options::authorize"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A client in mid-handshake, as its server sees it.
pub(crate) struct Guest {
    socket: OwnedFd,
    cred: PeerCred,
    peer: Option<Arc<Pidfd>>,
    machine: ServerHandshake,
    answer: Option<Outgoing>,
}

struct Outgoing {
    bytes: [u8; ANSWER_LEN],
    sent: usize,
    agreed: Agreement,
    region: Region,
    memfd: OwnedFd,
}

impl Guest {
    /// A client whose connection was just accepted, if the policy lets it in.
    ///
    /// Its end must be noticed, so the peer monitor runs; it was started with the listener, and may have been lost since.
    pub(crate) fn admit(socket: OwnedFd, options: &Options) -> Result<Self, Failure> {
        let cred = socket::peer_cred(socket.as_fd())?;
        if !options.allows(&cred) {
            refuse(
                socket.as_fd(),
                Reject::new(RejectCode::NotAuthorized, "see the server's Options::authorize"),
            );
            events::rejected(cred.pid(), cred.uid(), &Failure::Refused);
            return Err(Failure::Refused);
        }
        let ourselves = cred.pid() == process::id();
        let peer = if ourselves { None } else { socket::peer_pidfd(socket.as_fd()).map(Pidfd::shared) };
        Ok(Self { peer, ..Self::of_pair(socket, cred, 0) })
    }

    /// The other end of a socketpair within this process.
    pub(super) fn of_pair(socket: OwnedFd, cred: PeerCred, nonce: u64) -> Self {
        Self { socket, cred, peer: None, machine: ServerHandshake::new(nonce), answer: None }
    }

    /// A child process that was handed its end, and proves it by the nonce.
    pub(super) fn of_child(socket: OwnedFd, cred: PeerCred, peer: Option<Pidfd>, nonce: u64) -> Self {
        Self { peer: peer.map(Pidfd::shared), ..Self::of_pair(socket, cred, nonce) }
    }

    /// Does all that can be done without waiting.
    pub(crate) fn advance(&mut self, limits: &Limits, prefault: bool) -> Result<Step, Failure> {
        let step = self.step(limits, prefault);
        step.inspect_err(|failure| match failure {
            Failure::Closed => events::left(self.cred.pid(), self.cred.uid()),
            failure => self.tell_rejected(failure),
        })
    }

    /// Its time is over.
    pub(crate) fn give_up(self) {
        self.tell_rejected(&"its handshake took too long");
    }

    fn tell_rejected(&self, why: &dyn fmt::Display) {
        events::rejected(self.cred.pid(), self.cred.uid(), why);
    }

    fn step(&mut self, limits: &Limits, prefault: bool) -> Result<Step, Failure> {
        while self.answer.is_none() {
            let Some(hello) = self.listen()? else {
                return Ok(Step::Wants(Readiness::Readable));
            };
            if let Some(hello) = hello {
                self.answer = Some(self.prepare(limits.agree(&hello), prefault)?);
            }
        }
        if self.reply()? { Ok(Step::Ready) } else { Ok(Step::Wants(Readiness::Writable)) }
    }

    /// Makes the link of what was agreed on.
    pub(crate) fn finish(self) -> Result<Established, Failure> {
        let Some(Outgoing { agreed, region, .. }) = self.answer else {
            return Err(Failure::Closed);
        };
        let parts = LinkParts {
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
        Ok(link(parts).inspect_err(|error| events::rejected(pid, uid, error))?)
    }

    /// Reads once: `None` if nothing is there, else the Hello if it is whole.
    fn listen(&mut self) -> Result<Option<Option<Hello>>, Failure> {
        let mut bytes = [0; HELLO_LEN];
        let (room, _) = bytes.split_at_mut(self.machine.missing().min(HELLO_LEN));
        let count = match read(self.socket.as_fd(), room)? {
            Transfer::Bytes(count) => count,
            Transfer::WouldBlock => return Ok(None),
            Transfer::Closed => return Err(Failure::Closed),
        };
        match self.machine.feed(room.get(..count).unwrap_or_default()) {
            Ok(hello) => Ok(Some(hello)),
            Err(error) => {
                refuse(self.socket.as_fd(), error.into());
                Err(Failure::Handshake(error))
            }
        }
    }

    fn prepare(&self, agreed: Agreement, prefault: bool) -> Result<Outgoing, Failure> {
        make_memory(&agreed, prefault).map_err(|error| {
            refuse(self.socket.as_fd(), Reject::new(RejectCode::Unavailable, &error.to_string()));
            Failure::Io(error)
        })
    }

    /// Whether the whole answer is out. The descriptor goes with the first byte.
    fn reply(&mut self) -> Result<bool, Failure> {
        let Some(out) = &mut self.answer else {
            return Ok(false);
        };
        while let Some(rest @ [_, ..]) = out.bytes.get(out.sent..) {
            let transfer = if out.sent == 0 {
                send_with_fd(self.socket.as_fd(), rest, out.memfd.as_fd())?
            } else {
                write(self.socket.as_fd(), rest)?
            };
            match transfer {
                Transfer::Bytes(count) => out.sent += count,
                Transfer::WouldBlock => return Ok(false),
                Transfer::Closed => return Err(Failure::Closed),
            }
        }
        Ok(true)
    }
}

impl AsFd for Guest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("cred", &self.cred).finish_non_exhaustive()
    }
}

/// Fresh memory with its first words, sealed.
fn make_memory(agreed: &Agreement, prefault: bool) -> io::Result<Outgoing> {
    let len = agreed.geometry.region_len();
    let memfd = memfd::create(len)?;
    let region = Region::map(memfd.as_fd(), len)?;
    Link::format(&region, &agreed.geometry, agreed.first_ticket);
    if prefault {
        region.prefault()?;
    }
    memfd::seal(&memfd)?;
    let bytes = Answer::Welcome(*agreed).encode();
    Ok(Outgoing { bytes, sent: 0, agreed: *agreed, region, memfd })
}

/// Sends a client away whose end could not be noticed.
pub(crate) fn refuse_unwatched(socket: BorrowedFd<'_>, why: &io::Error) {
    refuse(socket, Reject::new(RejectCode::Unavailable, &why.to_string()));
}

/// Tells the client why, if it can be told at once. Its own failure to listen is its loss.
fn refuse(socket: BorrowedFd<'_>, reject: Reject) {
    let _ = write(socket, &Answer::Reject(reject).encode());
}
