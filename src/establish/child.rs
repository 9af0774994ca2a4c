//! Hand-over: a parent spawns a child and shares a connection with it, without any path.
//!
//! ```text
//!  parent (server)                                   child (client)
//!    socketpair ── one end inherited ─────────────▶   NARROWS_PARENT = "fd:inode:nonce"
//!    waits for Hello with the nonce   ◀── Hello ───   checks all three, once per process
//!    watches the sender of the Hello  ── Welcome ──▶
//! ```
//!
//! # Invariants
//!
//! 1. The child's end exists in the parent only until the child was started.
//! 2. A descriptor is believed only if it is the very socket (by inode) that the variable names, so
//!    a grandchild that inherits the variable alone takes nothing.
//! 3. On any failure the child is killed and reaped before the error returns, and so is a process that the child has started
//!    if it has sent its Hello. One that has not finds its end closed.
//! 5. The peer is the process that sent the Hello, which the kernel names beside it: the child, or one that a shell or
//!    wrapper in between has started. The child may end before, as long as somebody still holds its end.
//! 4. The environment of this process is never altered.
//!
//! # Proof
//!
//! `tests/handover.rs`.

use std::env;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::error::{ConnectError, SpawnError};
use crate::handshake::Limits;
use crate::options::Options;
use crate::sys::lifeline;
use crate::sys::socket;
use crate::sys::spawn::{self as hand, Inherited};
use crate::sys::wait::wait_ready;

use super::client::Caller;
use super::server::{Failure, Guest};
use super::{Established, Step, deadline, drive, expired, wanted};

/// Starts the command with one end of a new connection, and completes the handshake with it.
pub(crate) fn spawn(command: &mut Command, options: &Options) -> Result<(Child, Established), SpawnError> {
    let limits = options.limits().map_err(SpawnError::BadOptions)?;
    lifeline::start().map_err(SpawnError::io("watching for the child's end"))?;
    let (ours, theirs) = socket::pair().map_err(SpawnError::io("making a pair of sockets"))?;
    let _a_help = socket::refuse_descriptors(ours.as_fd());
    socket::want_sender(ours.as_fd()).map_err(SpawnError::io("asking for the sender of the hello"))?;
    let cred = socket::peer_cred(ours.as_fd()).map_err(SpawnError::io("reading credentials"))?;
    let nonce = announce(command, &theirs).map_err(SpawnError::io("preparing the hand-over"))?;
    let mut child =
        hand::spawn_with(command, theirs.as_fd()).map_err(SpawnError::io("starting the child"))?;
    drop(theirs);
    let deadline = deadline(options.connect_timeout_or_default());
    let mut guest = Guest::of_child(ours, cred, nonce);
    let served = serve(&mut child, &mut guest, &limits, options.is_prefault(), deadline);
    if served.is_err() {
        guest.kill_peer(child.id());
    }
    match served.and_then(|()| guest.finish().map_err(in_child)) {
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
    let inherited =
        hand::take_inherited(fd, inode).map_err(ConnectError::io("taking the parent's connection"))?;
    let socket = match inherited {
        Inherited::Taken(socket) => socket,
        Inherited::TakenBefore => return Err(ConnectError::ParentTaken),
        Inherited::Missing => {
            return Err(ConnectError::BadParent(format!(
                "descriptor {fd} is not the socket that the parent passed: a wrapper in between may have closed it, as sudo, \
                 docker and Python's subprocess do by default"
            )));
        }
    };
    let cred =
        socket::peer_cred(socket.as_fd()).map_err(ConnectError::io("reading the parent's credentials"))?;
    socket::want_pidfd(socket.as_fd());
    drive(Caller::new(socket, cred, &limits, nonce), until, options.is_prefault())
}

/// The variable by which a child knows its end.
const VARIABLE: &str = "NARROWS_PARENT";

/// How long a process that an ended child has started may take to send its Hello, if there is no other deadline.
const AFTER_EXIT: Duration = Duration::from_secs(5);

/// How long the parent waits for the socket before it looks after the child again.
const SLICE: Duration = Duration::from_millis(50);

/// Tells the child of its end by a variable; returns the nonce.
fn announce(command: &mut Command, theirs: &OwnedFd) -> std::io::Result<u64> {
    let (fd, inode, nonce) = (theirs.as_raw_fd(), hand::socket_inode(theirs.as_fd())?, hand::nonce()?);
    command.env(VARIABLE, format!("{fd}:{inode}:{nonce}"));
    Ok(nonce)
}

fn parse(value: &str) -> Option<(RawFd, u64, u64)> {
    let mut parts = value.split(':');
    let fd = parts.next()?.parse().ok().filter(|&fd| fd >= 0)?;
    let (inode, nonce) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((fd, inode, nonce))
}

/// Moves the handshake on until it is done, the deadline has passed or no process holds the child's end any more.
fn serve(
    child: &mut Child,
    guest: &mut Guest,
    limits: &Limits,
    prefault: bool,
    mut deadline: Option<Instant>,
) -> Result<(), SpawnError> {
    let mut ended = None;
    loop {
        match guest.advance(limits, prefault).map_err(in_child) {
            Ok(Step::Ready) => return Ok(()),
            Ok(Step::Wants(_)) if expired(deadline) => {
                return Err(ended.map_or(SpawnError::Timeout, SpawnError::ChildExited));
            }
            Ok(Step::Wants(readiness)) => {
                let slice = Instant::now().checked_add(SLICE);
                let slice = deadline.map_or(slice, |deadline| slice.map(|slice| slice.min(deadline)));
                wait_ready(guest.as_fd(), readiness, slice)
                    .map_err(SpawnError::io("waiting for the child"))?;
            }
            Err(SpawnError::ChildClosed) if ended.is_some() => {
                return Err(ended.map_or(SpawnError::ChildClosed, SpawnError::ChildExited));
            }
            Err(error) => return Err(error),
        }
        if ended.is_none() {
            // What the child has started may still hold its end, and take it.
            ended = child.try_wait().map_err(SpawnError::io("looking after the child"))?;
            if ended.is_some() {
                deadline = deadline.or_else(|| Instant::now().checked_add(AFTER_EXIT));
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
