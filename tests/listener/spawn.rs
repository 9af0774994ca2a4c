//! A parent hands one end of a connection to the child that it spawns.

#![allow(unsafe_code)]

use std::env;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::{Duration, Instant};

use crate::support::*;
use narrows::{ConnectError, HandshakeError, SpawnError};
use narrows::{Options, SharedMemoryStream};

const VARIABLE: &str = "NARROWS_PARENT";

#[test]
fn a_child_takes_its_connection_once() {
    const NAME: &str = "a_child_takes_its_connection_once";
    match role().as_deref() {
        Some("child") => {
            let value = env::var(VARIABLE).expect("set");
            let before = descriptors();
            let mut stream = SharedMemoryStream::from_parent().expect("taken");
            assert!(matches!(SharedMemoryStream::from_parent(), Err(ConnectError::ParentTaken)));
            assert_eq!(env::var(VARIABLE).as_ref(), Ok(&value), "the environment is as it was");
            assert!(descriptors() >= before);
            assert_eq!(stream.peer_cred().pid(), std::os::unix::process::parent_id());
            let mut question = Vec::new();
            stream.recv_into(&mut question).expect("a question");
            stream.send(&question).expect("an echo");
            let grandchild = rerun(NAME, "grandchild").status().expect("runs");
            drop(stream);
            exit(if grandchild.success() { 7 } else { 8 });
        }
        Some("grandchild") => {
            let error = SharedMemoryStream::from_parent().expect_err("only the variable came here");
            assert!(matches!(error, ConnectError::BadParent(_)), "{error:?}");
        }
        _ => {
            let (mut child, mut stream) = Options::new().spawn(rerun(NAME, "child")).expect("spawns");
            assert_eq!(stream.peer_cred().pid(), child.id());
            let (question, mut reply) = (vec![7; 100_000], Vec::new());
            stream.send(&question).expect("sends");
            stream.recv_into(&mut reply).expect("an echo");
            assert_eq!(reply, question);
            assert!(stream.recv_into(&mut reply).is_err(), "the child has closed its end");
            assert_eq!(child.wait().expect("ends").code(), Some(7));
        }
    }
}

#[test]
fn without_a_parent_there_is_no_connection() {
    assert!(matches!(SharedMemoryStream::from_parent(), Err(ConnectError::NoParent)));
}

#[test]
fn a_child_that_exits_is_reported_with_its_status() {
    const NAME: &str = "a_child_that_exits_is_reported_with_its_status";
    if role().as_deref() == Some("child") {
        exit(5);
    }
    if alone(NAME) {
        let begun = Instant::now();
        let error = Options::new().spawn(rerun(NAME, "child")).map(drop).expect_err("it exits");
        match error {
            SpawnError::ChildExited(status) => assert_eq!(status.code(), Some(5)),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
        no_child_is_left();
    }
}

#[test]
fn a_child_that_does_not_take_it_is_killed_in_time() {
    const NAME: &str = "a_child_that_does_not_take_it_is_killed_in_time";
    if role().as_deref() == Some("child") {
        std::thread::sleep(Duration::from_secs(60));
    }
    if alone(NAME) {
        let begun = Instant::now();
        let options = Options::new().handshake_timeout(Duration::from_millis(300));
        let error = options.spawn(rerun(NAME, "child")).map(drop).expect_err("too slow");
        assert!(matches!(error, SpawnError::Timeout), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
        no_child_is_left();
    }
}

#[test]
fn only_the_nonce_opens_and_a_closed_end_is_reported() {
    const NAME: &str = "only_the_nonce_opens_and_a_closed_end_is_reported";
    match role().as_deref() {
        Some("wrong nonce") => {
            let mut stream = inherited();
            stream.write_all(&hello()).expect("sends"); // Its nonce is 0.
            let _ = stream.read(&mut [0; 200]);
            std::thread::sleep(Duration::from_secs(60));
        }
        Some("closer") => {
            drop(inherited());
            std::thread::sleep(Duration::from_secs(60));
        }
        _ if alone(NAME) => {
            let error = Options::new().spawn(rerun(NAME, "wrong nonce")).map(drop).expect_err("refused");
            assert!(matches!(error, SpawnError::Handshake(HandshakeError::WrongNonce)), "{error:?}");
            let error = Options::new().spawn(rerun(NAME, "closer")).map(drop).expect_err("closed");
            assert!(matches!(error, SpawnError::ChildClosed), "{error:?}");
            no_child_is_left();
        }
        _ => (),
    }
}

#[test]
fn a_command_that_cannot_start_and_failures_leak_nothing() {
    const NAME: &str = "a_command_that_cannot_start_and_failures_leak_nothing";
    if role().as_deref() == Some("child") {
        exit(0);
    }
    if alone(NAME) {
        narrows::start_peer_monitor().expect("starts"); // Its descriptors stay.
        let before = descriptors();
        for _ in 0..20 {
            let nothing = std::process::Command::new("/no/such/program");
            assert!(matches!(Options::new().spawn(nothing), Err(SpawnError::Io { .. })));
            assert!(Options::new().spawn(rerun(NAME, "child")).is_err());
        }
        assert!(eventually(|| descriptors() <= before));
        no_child_is_left();
    }
}

/// The socket that the variable names, taken by a child that does not play by the rules.
fn inherited() -> UnixStream {
    let value = env::var(VARIABLE).expect("set");
    let fd = value.split(':').next().and_then(|fd| fd.parse().ok()).expect("a number");
    // SAFETY: the parent left this descriptor for this process, and nothing else here uses it.
    let stream = unsafe { UnixStream::from_raw_fd(fd) };
    stream.set_nonblocking(false).expect("set");
    stream
}

fn no_child_is_left() {
    // SAFETY: no status is asked for.
    let left = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    assert_eq!(left, -1, "a child is left");
}
