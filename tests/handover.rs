//! A parent hands one end of a connection to the child that it spawns.

#![allow(unsafe_code)]

mod support;

use std::env;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, exit};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use narrows::{ConnectError, HandshakeError, Options, RecvTimeoutError, SharedMemoryStream, SpawnError};
use support::*;

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
fn a_child_that_exits_is_told_with_its_status() {
    const NAME: &str = "a_child_that_exits_is_told_with_its_status";
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
fn only_the_nonce_opens_and_a_closed_end_is_told() {
    const NAME: &str = "only_the_nonce_opens_and_a_closed_end_is_told";
    match role().as_deref() {
        Some("liar") => {
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
            let error = Options::new().spawn(rerun(NAME, "liar")).map(drop).expect_err("a lie");
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
            let nothing = Command::new("/no/such/program");
            assert!(matches!(Options::new().spawn(nothing), Err(SpawnError::Io { .. })));
            assert!(Options::new().spawn(rerun(NAME, "child")).is_err());
        }
        eventually(|| descriptors() == before);
        no_child_is_left();
    }
}

/// Starts the role in a shell, which does what stands around it.
fn in_a_shell(test: &str, role: &str, around: &str) -> Command {
    let inner = rerun(test, role);
    let words = inner.get_args().map(|word| format!("'{}'", word.to_str().expect("plain")));
    let program = inner.get_program().to_str().expect("plain").to_owned();
    let line = [format!("'{program}'")].into_iter().chain(words).collect::<Vec<_>>().join(" ");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(around.replace("BACKEND", &line));
    shell.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// A backend that says which process it is, then waits until its parent closes.
fn backend() {
    let mut stream = SharedMemoryStream::from_parent().expect("handed over");
    stream.send(&std::process::id().to_ne_bytes()).expect("sends");
    let _closed = stream.recv_into(&mut Vec::new());
}

fn id_of(stream: &mut SharedMemoryStream) -> u32 {
    let mut id = [0; 4];
    stream.recv_timeout(&mut id, Duration::from_secs(30)).expect("says");
    u32::from_ne_bytes(id)
}

#[test]
fn the_death_of_a_backend_behind_a_shell_that_lives_is_reported() {
    const NAME: &str = "the_death_of_a_backend_behind_a_shell_that_lives_is_reported";
    if role().is_some() {
        return backend();
    }
    let _watchdog = Watchdog::new(NAME);
    let (mut shell, mut stream) =
        Options::new().spawn(in_a_shell(NAME, "backend", "BACKEND; sleep 600")).expect("spawns");
    let id = id_of(&mut stream);
    assert_ne!(id, shell.id());
    assert_eq!(stream.peer_cred().pid(), id, "the peer is the process that has sent the Hello");
    // SAFETY: takes numbers; the process lives, since its parent, the shell, has not reaped it.
    assert_eq!(unsafe { libc::kill(id.try_into().expect("small"), libc::SIGKILL) }, 0);
    let end = stream.recv_into_timeout(&mut Vec::new(), Duration::from_secs(30));
    assert_eq!(end.map(drop), Err(RecvTimeoutError::PeerDied));
    shell.kill().expect("kills");
    shell.wait().expect("ends");
}

#[test]
fn a_backend_whose_shell_has_ended_is_alive() {
    const NAME: &str = "a_backend_whose_shell_has_ended_is_alive";
    if role().is_some() {
        // The shell ends first, and with it the process that was spawned.
        std::thread::sleep(Duration::from_millis(300));
        return backend();
    }
    let _watchdog = Watchdog::new(NAME);
    let (mut shell, mut stream) =
        Options::new().spawn(in_a_shell(NAME, "backend", "BACKEND & exit 0")).expect("spawns");
    assert!(shell.wait().expect("ends").success());
    let id = id_of(&mut stream);
    assert_eq!(stream.peer_cred().pid(), id);
    let end = stream.recv_into_timeout(&mut Vec::new(), Duration::from_millis(800));
    assert_eq!(end.map(drop), Err(RecvTimeoutError::Timeout), "it lives");
}

#[test]
fn a_wrapper_that_closes_descriptors_is_named() {
    const NAME: &str = "a_wrapper_that_closes_descriptors_is_named";
    if role().is_some() {
        let error = SharedMemoryStream::from_parent().map(drop).expect_err("it was closed");
        assert!(error.to_string().contains("wrapper"), "{error}");
        exit(9);
    }
    let _watchdog = Watchdog::new(NAME);
    // The variable begins with the number of the descriptor.
    let closes = format!("fd=${{{VARIABLE}%%:*}}; eval \"exec $fd>&-\"; BACKEND");
    let error =
        Options::new().spawn(in_a_shell(NAME, "backend", &closes)).map(drop).expect_err("its end is closed");
    match error {
        SpawnError::ChildExited(status) => assert_eq!(status.code(), Some(9)),
        SpawnError::ChildClosed => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_parent_is_not_forked() {
    const NAME: &str = "the_parent_is_not_forked";
    if role().as_deref() == Some("child") {
        return backend();
    }
    if alone(NAME) {
        static FORKS: AtomicU32 = AtomicU32::new(0);
        extern "C" fn count() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler changes an atomic.
        assert_eq!(unsafe { libc::pthread_atfork(Some(count), None, None) }, 0);
        let (mut child, mut stream) = Options::new().spawn(rerun(NAME, "child")).expect("spawns");
        assert_eq!(id_of(&mut stream), child.id());
        drop(stream);
        assert!(child.wait().expect("ends").success());
        assert_eq!(FORKS.load(Ordering::Relaxed), 0, "page tables were copied");
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
