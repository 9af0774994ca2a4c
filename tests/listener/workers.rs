//! Servers whose listener belongs to another process: daemons, workers, and sockets that were handed over.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::support::{Fork, LONG, Watchdog, alone, echo, reach, round_trip, sys, verdict};
use narrows::internal::handshake::{Answer, HELLO_LEN, HandshakeLimits, ServerHandshake};
use narrows::internal::layout::Geometry;
use narrows::{
    AcceptError, ConnectionError, Options, RecvTimeoutError, SharedMemoryListener, SharedMemoryStream,
};

fn pid_of(stream: &SharedMemoryStream) -> i32 {
    i32::try_from(stream.peer_cred().pid()).expect("a pid")
}

/// Sends its own process number, since `peer_cred` does not report a process that accepts for another one, and then echoes.
fn introduce_and_echo(mut stream: SharedMemoryStream) {
    stream.send(&std::process::id().to_ne_bytes()).expect("sends");
    echo(stream);
}

fn introduced(stream: &mut SharedMemoryStream) -> i32 {
    let mut pid = [0; 4];
    stream.recv_timeout(&mut pid, LONG).expect("introduces itself");
    i32::from_ne_bytes(pid)
}

/// The double fork of a daemon, which binds before it forks, or at its end.
#[test]
fn a_daemon_that_is_killed_has_died() {
    if !alone("a_daemon_that_is_killed_has_died") {
        return;
    }
    let _watchdog = Watchdog::new("a_daemon_that_is_killed_has_died");
    for bound_by_the_starter in [false, true] {
        daemon(bound_by_the_starter);
    }
}

fn daemon(bound_by_the_starter: bool) {
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let starter = Fork::run(|| {
        let bind = || SharedMemoryListener::bind(&path).expect("binds");
        // The starter ends without dropping it, which would remove the path.
        let mut early = ManuallyDrop::new(bound_by_the_starter.then(bind));
        std::mem::forget(Fork::run(|| {
            // SAFETY: in this process it is taken once, and not used otherwise.
            let listener = match unsafe { ManuallyDrop::take(&mut early) } {
                None => bind(),
                Some(early) => {
                    assert!(matches!(early.try_accept(), Err(AcceptError::Forked)));
                    early.after_fork().expect("inherited")
                }
            };
            introduce_and_echo(listener.accept_timeout(LONG).expect("accepts"));
            0
        }));
        0
    });
    assert_eq!(starter.wait(), 0);
    let mut stream = reach(&path, &Options::new());
    let daemon = introduced(&mut stream);
    round_trip(&mut stream, 1);
    assert_ne!(daemon, starter.pid());
    sys::kill(daemon, libc::SIGKILL);
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
}

/// Workers that accept from one inherited listener: each client knows its own worker.
#[test]
fn a_worker_that_is_killed_has_died_and_the_others_serve_on() {
    if !alone("a_worker_that_is_killed_has_died_and_the_others_serve_on") {
        return;
    }
    let _watchdog = Watchdog::new("a_worker_that_is_killed_has_died_and_the_others_serve_on");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let mut listener = ManuallyDrop::new(SharedMemoryListener::bind(&path).expect("binds"));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            Fork::run(|| {
                // SAFETY: in this process it is taken once, and not used otherwise.
                let listener = unsafe { ManuallyDrop::take(&mut listener) }.after_fork().expect("inherited");
                introduce_and_echo(listener.accept_timeout(LONG).expect("accepts"));
                0
            })
        })
        .collect();
    let mut streams: Vec<_> = workers.iter().map(|_| reach(&path, &Options::new())).collect();
    let pids: Vec<_> = streams.iter_mut().map(introduced).collect();
    (1..).zip(&mut streams).for_each(|(i, stream)| round_trip(stream, i));
    let killed = pids[0];
    assert!(workers.iter().any(|worker| worker.pid() == killed));
    sys::kill(killed, libc::SIGKILL);
    assert_eq!(verdict(&mut streams[0]), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    streams[1..].iter_mut().for_each(|stream| round_trip(stream, 9));
    workers.iter().for_each(Fork::kill);
    assert_eq!(verdict(&mut streams[1]), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    drop(ManuallyDrop::into_inner(listener));
    assert!(!path.exists(), "the process that bound it removes it");
}

/// Serves one client by hand, on a socket that another process made and listened on. The connection is a normal one, and this
/// process keeps it.
fn serve_by_hand(listener: &UnixListener) {
    let (mut socket, _) = listener.accept().expect("accepts");
    let mut hello = [0; HELLO_LEN];
    socket.read_exact(&mut hello).expect("reads");
    let geometry = Geometry::new(8, 4096, 8).expect("legal");
    let limits = HandshakeLimits { geometry, max_message: 1000, first_ticket: 0 };
    let hello = ServerHandshake::new(0).feed(&hello).expect("legal").expect("whole");
    let agreed = limits.agree(&hello);
    let memory = sys::sealed_memory(agreed.geometry.region_len());
    let accept = Answer::Accept(agreed).encode();
    assert_eq!(sys::send_with_fd(socket.as_fd(), &accept, memory.as_fd()).expect("sends"), accept.len());
    std::thread::sleep(LONG);
}

/// The process that called `listen` is not the one that serves: a daemon, a pre-forked worker, or socket activation. The peer is
/// the process that sent the Accept.
#[test]
fn a_worker_that_serves_anothers_socket_has_died_when_it_was_killed() {
    if !alone("a_worker_that_serves_anothers_socket_has_died_when_it_was_killed") {
        return;
    }
    let _watchdog = Watchdog::new("a_worker_that_serves_anothers_socket");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    // First with the listening process alive, then with that process dead before any client connects.
    for listener_lives in [true, false] {
        let (mut notify, mut pid_of_worker) = UnixStream::pair().expect("pair");
        let starter = Fork::run(|| {
            let listener = UnixListener::bind(&path).expect("binds");
            let worker = Fork::run(|| {
                serve_by_hand(&listener);
                0
            });
            notify.write_all(&worker.pid().to_ne_bytes()).expect("the test reads");
            std::mem::forget(worker);
            if listener_lives {
                std::thread::sleep(LONG);
            }
            0
        });
        let mut pid = [0; 4];
        pid_of_worker.read_exact(&mut pid).expect("the worker starts");
        let worker = i32::from_ne_bytes(pid);
        if !listener_lives {
            assert_eq!(starter.wait(), 0);
        }
        let mut stream = SharedMemoryStream::connect(&path).expect("connects");
        assert_eq!(pid_of(&stream), starter.pid(), "the process that listened");
        // The death of the listening process, now or earlier, is not that of the peer.
        starter.kill();
        starter.wait();
        let alive = stream.recv_timeout(&mut [0; 8], Duration::from_millis(200)).map(|it| it.len);
        assert_eq!(alive, Err(RecvTimeoutError::Timeout), "listener lives: {listener_lives}");
        sys::kill(worker, libc::SIGKILL);
        assert_eq!(
            verdict(&mut stream),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)),
            "listener lives: {listener_lives}"
        );
        std::fs::remove_file(&path).expect("removes");
    }
}
