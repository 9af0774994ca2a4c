//! Hand-over: a parent spawns a child and shares a connection with it, without any path.
//!
//! ```text
//!  parent (server)                                   child (client)
//!    socketpair ── one end inherited ─────────────▶   NARROWS_PARENT = "fd:inode:nonce"
//!    waits for Hello with the nonce   ◀── Hello ───   checks all three, once per process
//!    watches the child's pidfd        ── Welcome ──▶
//! ```
//!
//! # Invariants
//!
//! 1. The child's end exists in the parent only until the child was started.
//! 2. A descriptor is believed only if it is the very socket (by inode) that the variable names, so
//!    a grandchild that inherits the variable alone takes nothing.
//! 3. On any failure the child is killed and reaped before the error returns.
//! 4. The environment of this process is never altered.
//!
//! # Proof
//!
//! `tests/handover.rs`.

use std::env;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{ConnectError, SpawnError};
use crate::handshake::Limits;
use crate::options::Options;
use crate::sys::lifeline;
use crate::sys::pidfd::Pidfd;
use crate::sys::socket::{self, PeerCred};
use crate::sys::spawn as hand;
use crate::sys::wait::wait_ready;

use super::client::Caller;
use super::server::{Failure, Guest};
use super::{Established, Step, deadline, drive, expired, wanted};

/// Starts the command with one end of a new connection, and completes the handshake with it.
pub(crate) fn spawn(command: &mut Command, options: &Options) -> Result<(Child, Established), SpawnError> {
    let limits = options.limits().map_err(SpawnError::BadOptions)?;
    lifeline::start().map_err(SpawnError::io("watching for the child's end"))?;
    let until = deadline(options.connect_timeout_or_default());
    let (ours, theirs) = socket::pair().map_err(SpawnError::io("making a pair of sockets"))?;
    let _a_help = socket::refuse_descriptors(ours.as_fd());
    let nonce = announce(command, &theirs).map_err(SpawnError::io("preparing the hand-over"))?;
    let mut child = command.spawn().map_err(SpawnError::io("starting the child"))?;
    drop(theirs);
    match serve(&mut child, ours, nonce, &limits, options.is_prefault(), until) {
        Ok(established) => Ok((child, established)),
        Err(error) => Err(end(child, error)),
    }
}

/// Takes the connection that this process's parent handed over.
pub(crate) fn from_parent(options: &Options) -> Result<Established, ConnectError> {
    let limits = wanted(options)?;
    let until = deadline(options.connect_timeout_or_default());
    let value = env::var(VARIABLE).map_err(|_| ConnectError::NoParent)?;
    let Some((fd, inode, nonce)) = parse(&value) else {
        return Err(ConnectError::BadParent(format!("{VARIABLE} is not \"fd:inode:nonce\"")));
    };
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(ConnectError::ParentTaken);
    }
    let socket = hand::take_inherited(fd, inode)
        .map_err(|error| ConnectError::BadParent(format!("descriptor {fd}: {error}")))?;
    let cred =
        socket::peer_cred(socket.as_fd()).map_err(ConnectError::io("reading the parent's credentials"))?;
    socket::want_pidfd(socket.as_fd());
    drive(Caller::new(socket, cred, &limits, nonce), until, options.is_prefault())
}

/// The variable by which a child knows its end.
const VARIABLE: &str = "NARROWS_PARENT";

/// How long the parent waits for the socket before it looks after the child again.
const SLICE: Duration = Duration::from_millis(50);

/// Whether this process took its parent's connection.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Lets the child inherit its end and tells it so; returns the nonce.
fn announce(command: &mut Command, theirs: &OwnedFd) -> std::io::Result<u64> {
    let (fd, inode, nonce) = (theirs.as_raw_fd(), hand::socket_inode(theirs.as_fd())?, hand::nonce()?);
    hand::inherit(command, fd, inode);
    command.env(VARIABLE, format!("{fd}:{inode}:{nonce}"));
    Ok(nonce)
}

fn parse(value: &str) -> Option<(RawFd, u64, u64)> {
    let mut parts = value.split(':');
    let fd = parts.next()?.parse().ok().filter(|&fd| fd >= 0)?;
    let (inode, nonce) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((fd, inode, nonce))
}

fn serve(
    child: &mut Child,
    ours: OwnedFd,
    nonce: u64,
    limits: &Limits,
    prefault: bool,
    until: Option<Instant>,
) -> Result<Established, SpawnError> {
    // Without it (before Linux 5.3) the socket alone tells of the child's end.
    let pidfd = Pidfd::open(child.id()).ok();
    let mut guest = Guest::of_child(ours, PeerCred::of_child(child.id()), pidfd, nonce);
    loop {
        match guest.advance(limits, prefault).map_err(in_child)? {
            Step::Ready => return guest.finish().map_err(in_child),
            Step::Wants(_) if expired(until) => return Err(SpawnError::Timeout),
            Step::Wants(readiness) => {
                let slice = deadline(SLICE);
                let slice = until.map_or(slice, |until| slice.map(|slice| slice.min(until)));
                let ready = wait_ready(guest.as_fd(), readiness, slice);
                if !ready.map_err(SpawnError::io("waiting for the child"))? {
                    still_running(child)?;
                }
            }
        }
    }
}

fn still_running(child: &mut Child) -> Result<(), SpawnError> {
    match child.try_wait().map_err(SpawnError::io("looking after the child"))? {
        Some(status) => Err(SpawnError::ChildExited(status)),
        None => Ok(()),
    }
}

fn in_child(failure: Failure) -> SpawnError {
    match failure {
        Failure::Handshake(error) => SpawnError::Handshake(error),
        Failure::Closed | Failure::Refused => SpawnError::ChildClosed,
        Failure::Io(source) => SpawnError::Io { doing: "serving the child".into(), source },
    }
}

/// Kills and reaps the child. One that closed its end since it was about to exit gets a moment to do
/// so, since its status says more.
fn end(mut child: Child, error: SpawnError) -> SpawnError {
    if matches!(error, SpawnError::ChildClosed) {
        let until = Instant::now() + SLICE * 2;
        while Instant::now() < until {
            if let Err(exited @ SpawnError::ChildExited(_)) = still_running(&mut child) {
                return exited;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_numbers_are_a_hand_over() {
        assert_eq!(parse("3:40:5"), Some((3, 40, 5)));
        for bad in ["", "3", "3:4", "3:4:5:6", "-1:4:5", "x:4:5", "3::5", "3:4:99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
