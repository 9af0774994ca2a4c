//! The hand-over of a connection: a parent spawns a child and shares a connection with it, without a path.
//!
//! ```text
//!  parent (server)                                   child, or a descendant (client)
//!    socketpair ── one end inherited ─────────────▶   NARROWS_PARENT = "fd:inode:nonce"
//!    waits for Hello with the nonce   ◀── Hello ───   number and inode are right, not taken: marks it as taken
//!    watches the sender of the Hello  ── Accept ──▶
//! ```
//!
//! The child may be a shell or a launcher that starts the peer and passes the descriptor on. It may stay alive after
//! the peer has died, or end while the peer is alive: neither affects the connection. Until a Hello has come, the spawn
//! fails only at the deadline, or when no process has the other end any more.
//!
//! # Invariants
//!
//! 1. The child's end is open in the parent only until the child was started: see `sys::spawn`.
//! 2. A child uses the descriptor only if it is the socket (by inode) that the variable names, and only if it is not
//!    marked as taken. So a grandchild that inherits only the variable takes nothing.
//! 3. On any failure the child is killed and reaped before the error returns. If another process sent the Hello, that
//!    process is killed too. A process that has sent no Hello yet finds the parent's end closed.
//! 4. The environment of this process is never changed.
//! 5. The timeout begins after the child was started.
//!
//! # Proof
//!
//! `tests/listener/spawn.rs`, `tests/listener/trust.rs`.

use std::env;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{ConnectError, SpawnError};
use crate::handshake::HandshakeLimits;
use crate::options::Options;
use crate::sys::peer_monitor;
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, PeerCred};
use crate::sys::spawn::{self as handover, NotTaken};
use crate::sys::wait::wait_ready;

use super::acceptor::{AcceptFailure, Acceptor, SenderNaming};
use super::connector::{Connector, drive};
use super::{ConnectLimit, Established, Step, deadline, expired, wanted};

/// Starts the command with one end of a new connection, and completes the handshake with the process that takes it.
pub(crate) fn spawn(command: &mut Command, options: &Options) -> Result<(Child, Established), SpawnError> {
    let limits = options.limits().map_err(SpawnError::BadOptions)?;
    peer_monitor::start().map_err(SpawnError::io("watching for the child's end"))?;
    let (ours, theirs) = socket::pair().map_err(SpawnError::io("making a pair of sockets"))?;
    let _best_effort = socket::refuse_descriptors(ours.as_fd());
    let naming = request_sender_identity(ours.as_fd());
    let own = socket::peer_cred(ours.as_fd()).map_err(SpawnError::io("reading credentials"))?;
    let nonce = announce(command, &theirs).map_err(SpawnError::io("preparing the hand-over"))?;
    let started = handover::start(command, theirs);
    command.env_remove(VARIABLE); // Its value is for this child only, and the program may start the command again.
    let child = started.map_err(SpawnError::io("starting the child"))?;
    let deadline = deadline(options.connect_timeout_or_default());
    let mut acceptor = Acceptor::of_child(ours, own.with_pid(child.id()), naming, nonce);
    let served = serve(&mut acceptor, &limits, options.is_prefault(), deadline);
    let peer = acceptor.known_peer();
    match served.and_then(|()| acceptor.finish().map_err(in_child)) {
        Ok(established) => Ok((child, established)),
        Err(error) => Err(end(child, peer, error)),
    }
}

/// Takes the connection that this process's parent handed over.
pub(crate) fn from_parent(options: &Options) -> Result<Established, ConnectError> {
    let limits = wanted(options)?;
    let deadline = deadline(options.connect_timeout_or_default());
    let value = env::var(VARIABLE).map_err(|_| ConnectError::NoParent)?;
    let Some((fd, inode, nonce)) = parse(&value) else {
        return Err(ConnectError::BadParent(format!("{VARIABLE} is not \"fd:inode:nonce\"")));
    };
    if TAKEN.load(Ordering::Acquire) {
        return Err(ConnectError::ParentTaken);
    }
    let socket = handover::take_inherited(fd, inode).map_err(|why| match why {
        NotTaken::Taken => ConnectError::ParentTaken,
        NotTaken::Closed => ConnectError::BadParent(format!(
            "descriptor {fd}, which {VARIABLE} names, is not open: {WRAPPED}"
        )),
        NotTaken::Other => ConnectError::BadParent(format!(
            "descriptor {fd}, which {VARIABLE} names, is another file by now: {WRAPPED}"
        )),
        NotTaken::Io(source) => ConnectError::io("taking the parent's socket")(source),
    })?;
    TAKEN.store(true, Ordering::Release);
    let cred =
        socket::peer_cred(socket.as_fd()).map_err(ConnectError::io("reading the parent's credentials"))?;
    let _best_effort = socket::want_pidfd(socket.as_fd());
    drive(
        Connector::new(socket, cred, &limits, nonce),
        ConnectLimit::deadline(deadline),
        options.is_prefault(),
    )
}

/// The environment variable that names the child's end.
const VARIABLE: &str = "NARROWS_PARENT";

/// The advice for a child whose end is not open.
const WRAPPED: &str = "was it taken and closed before, or did a wrapper (sudo, docker run, Python's close_fds=True) close it? Then have it pass this descriptor on";

/// How long the parent waits for the exit of a child that closed its end.
const EXIT: Duration = Duration::from_millis(500);

/// Whether this copy of the library has taken the connection. Other copies detect that by the mark on the socket.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Asks the kernel to report the sender of received bytes. This runs before there is a sender.
fn request_sender_identity(ours: BorrowedFd<'_>) -> SenderNaming {
    let pidfd = socket::want_pidfd(ours);
    match socket::want_credentials(ours) {
        Ok(()) if pidfd => SenderNaming::Pidfd,
        Ok(()) => SenderNaming::Number,
        Err(_) => SenderNaming::Connection,
    }
}

/// Adds the variable that names the child's end to the environment of the command. Returns the nonce.
fn announce(command: &mut Command, theirs: &OwnedFd) -> std::io::Result<u64> {
    let (fd, inode, nonce) =
        (theirs.as_raw_fd(), handover::socket_inode(theirs.as_fd())?, handover::nonce()?);
    command.env(VARIABLE, format!("{fd}:{inode}:{nonce}"));
    Ok(nonce)
}

/// Parses the value of the variable: descriptor, inode, nonce.
fn parse(value: &str) -> Option<(RawFd, u64, u64)> {
    let mut parts = value.split(':');
    let fd = parts.next()?.parse().ok().filter(|&fd| fd >= 0)?;
    let (inode, nonce) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((fd, inode, nonce))
}

/// Advances the parent's side until the handshake is complete.
fn serve(
    acceptor: &mut Acceptor,
    limits: &HandshakeLimits,
    prefault: bool,
    deadline: Option<Instant>,
) -> Result<(), SpawnError> {
    loop {
        match acceptor.advance(limits, prefault).map_err(in_child)? {
            Step::Ready => return Ok(()),
            Step::Wants(_) if expired(deadline) => return Err(SpawnError::Timeout),
            Step::Wants(readiness) => {
                wait_ready(acceptor.as_fd(), readiness, deadline)
                    .map_err(SpawnError::io("waiting for the child"))?;
            }
        }
    }
}

fn in_child(failure: AcceptFailure) -> SpawnError {
    match failure {
        AcceptFailure::Handshake(error) => SpawnError::Handshake(error),
        AcceptFailure::Closed | AcceptFailure::Refused(_) => SpawnError::ChildClosed,
        AcceptFailure::Io(source) => SpawnError::Io { doing: "serving the child".into(), source },
    }
}

/// Kills the process that sent the Hello, and kills and reaps the child. If the child has exited by itself, its status
/// is the better error.
fn end(mut child: Child, peer: Option<(PeerCred, Arc<Pidfd>)>, error: SpawnError) -> SpawnError {
    if let Some((cred, pidfd)) = peer.filter(|(cred, _)| cred.pid() != child.id()) {
        handover::kill(&pidfd, cred.pid());
    }
    let grace = match error {
        SpawnError::ChildClosed => EXIT, // The child may be about to exit.
        SpawnError::Timeout => Duration::ZERO,
        _ => return killed(child, error),
    };
    let deadline = Instant::now() + grace;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return SpawnError::ChildExited(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            _ => return killed(child, error),
        }
    }
}

fn killed(mut child: Child, error: SpawnError) -> SpawnError {
    let _ = child.kill();
    let _ = child.wait();
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seccomp::filter_in_force;

    /// The path for kernels before Linux 6.5: the credentials name the sender, and its pidfd is opened by its pid.
    #[test]
    fn the_sender_of_the_hello_is_watched_by_its_number_where_no_pidfd_comes() {
        let limits = Options::new().limits().expect("legal");
        let (ours, theirs) = socket::pair().expect("pair");
        let own = socket::peer_cred(ours.as_fd()).expect("known");
        socket::want_credentials(ours.as_fd()).expect("set");
        let mut acceptor = Acceptor::of_child(ours, own.with_pid(1), SenderNaming::Number, 7);
        assert!(acceptor.known_peer().is_none(), "no Hello yet");
        let mut connector = Connector::new(theirs, own, &limits, 7);
        connector.advance().expect("a Hello");
        acceptor.advance(&limits, false).expect("an Accept");
        match acceptor.known_peer() {
            Some((cred, pidfd)) => {
                assert_eq!(cred, own);
                assert!(!pidfd.exited());
            }
            None => assert!(filter_in_force(), "only a filter prevents opening the pidfd"),
        }
    }

    #[test]
    fn the_sender_of_a_wrong_nonce_is_no_peer() {
        let limits = Options::new().limits().expect("legal");
        let (ours, theirs) = socket::pair().expect("pair");
        let naming = request_sender_identity(ours.as_fd());
        let own = socket::peer_cred(ours.as_fd()).expect("known");
        let mut acceptor = Acceptor::of_child(ours, own.with_pid(1), naming, 7);
        let mut connector = Connector::new(theirs, own, &limits, 8);
        connector.advance().expect("a Hello");
        assert!(acceptor.advance(&limits, false).is_err());
        assert!(acceptor.known_peer().is_none(), "nothing to kill");
    }

    #[test]
    fn only_three_numbers_are_a_hand_over() {
        assert_eq!(parse("3:40:5"), Some((3, 40, 5)));
        for bad in ["", "3", "3:4", "3:4:5:6", "-1:4:5", "x:4:5", "3::5", "3:4:99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
