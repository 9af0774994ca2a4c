//! The death of a peer is reported for every kind of peer, and a live peer is never reported dead.

#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    Fork, Kept, LONG, Watchdog, alone, argument, echo, eventually, log, me, reach, role, round_trip, sys,
    verdict,
};
use narrows::{
    ConnectionError, Options, RecvTimeoutError, SendTimeoutError, SharedMemoryListener, SharedMemoryStream,
};

#[test]
fn a_spawned_child_that_is_killed_has_died() {
    const NAME: &str = "a_spawned_child_that_is_killed_has_died";
    if role().is_some() {
        return echo(SharedMemoryStream::from_parent().expect("handed over"));
    }
    let _watchdog = Watchdog::new(NAME);
    let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let mut child = Kept(child);
    round_trip(&mut stream, 1);
    child.0.kill().expect("kills");
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    assert_eq!(
        stream.send_timeout(b"x", LONG),
        Err(SendTimeoutError::ConnectionLost(ConnectionError::PeerDied))
    );
    assert!(stream.is_disconnected());
}

/// The kernel closes the socket long before it reports that the process has ended, if it still has much to close afterwards.
#[test]
fn a_peer_with_many_open_files_that_is_killed_has_died() {
    const NAME: &str = "a_peer_with_many_open_files_that_is_killed_has_died";
    if let Some(order) = role() {
        sys::raise_descriptor_limit();
        let connect = || SharedMemoryStream::connect(argument()).expect("connects");
        let early = (order == "before").then(connect);
        // Unix sockets are among the slowest to close. Ten descriptors are left for the rest of the test. Of
        // 10 000 files the kernel closes all within the grace period, also on a busy machine.
        let pairs = std::iter::from_fn(|| UnixStream::pair().ok());
        let mut files: Vec<_> = pairs.take(5010).collect();
        files.truncate(files.len() - 10);
        let mut stream = early.unwrap_or_else(connect);
        stream.send(b"loaded").expect("sends");
        std::thread::sleep(LONG);
        drop(files);
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    for order in ["before", "after", "before", "after"] {
        let mut child = Kept::start(&mut me(NAME, order, path.to_str().expect("plain")));
        let mut stream = listener.accept_timeout(LONG).expect("accepts");
        assert_eq!(verdict(&mut stream), Ok(6));
        let began = Instant::now();
        child.0.kill().expect("kills");
        let end = verdict(&mut stream);
        let reported = began.elapsed();
        child.wait();
        let ended = began.elapsed();
        log(&format!("{order} the files: {end:?} after {reported:.1?}, the process ended after {ended:.1?}"));
        assert_eq!(end, Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    }
}

/// A fork of the peer keeps its socket open, so that only the pidfd reports the death.
#[test]
fn a_dead_peer_whose_fork_keeps_the_socket_has_died() {
    if !alone("a_dead_peer_whose_fork_keeps_the_socket_has_died") {
        return;
    }
    let _watchdog = Watchdog::new("a_dead_peer_whose_fork_keeps_the_socket_has_died");
    let folder = tempfile::tempdir().expect("directory");
    for serves in [false, true] {
        let path = folder.path().join(serves.to_string());
        let ours = (!serves).then(|| SharedMemoryListener::bind(&path).expect("binds"));
        let (mut notify, mut pid_of_fork) = UnixStream::pair().expect("pair");
        let peer = Fork::run(|| {
            let mut stream = if serves {
                let listener = SharedMemoryListener::bind(&path).expect("binds");
                listener.accept_timeout(LONG).expect("accepts")
            } else {
                SharedMemoryStream::connect(&path).expect("connects")
            };
            let keeper = Fork::run(|| {
                std::thread::sleep(LONG);
                0
            });
            notify.write_all(&keeper.pid().to_ne_bytes()).expect("the test reads");
            stream.send(b"forked").expect("sends");
            std::thread::sleep(LONG);
            0
        });
        let mut stream = match &ours {
            Some(listener) => listener.accept_timeout(LONG).expect("accepts"),
            None => reach(&path, &Options::new()),
        };
        assert_eq!(verdict(&mut stream), Ok(6));
        let mut pid = [0; 4];
        pid_of_fork.read_exact(&mut pid).expect("the fork starts");
        peer.kill();
        assert_eq!(
            verdict(&mut stream),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)),
            "serves: {serves}"
        );
        sys::kill(i32::from_ne_bytes(pid), libc::SIGKILL);
    }
}

#[test]
fn a_peer_that_execs_has_hung_up() {
    const NAME: &str = "a_peer_that_execs_has_hung_up";
    if role().is_some() {
        let mut stream = SharedMemoryStream::from_parent().expect("handed over");
        stream.send(b"before").expect("sends");
        panic!("{}", Command::new("sleep").arg("60").exec());
    }
    let _watchdog = Watchdog::new(NAME);
    let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let mut child = Kept(child);
    assert_eq!(verdict(&mut stream), Ok(6));
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)));
    assert!(child.0.try_wait().expect("waits").is_none(), "it lives on as another program");
}

/// Whether every thread of the process is in state T.
fn all_stopped(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("lists");
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

#[test]
fn a_stopped_peer_is_alive() {
    const NAME: &str = "a_stopped_peer_is_alive";
    if role().is_some() {
        return echo(SharedMemoryStream::from_parent().expect("handed over"));
    }
    let _watchdog = Watchdog::new(NAME);
    let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let child = Kept(child);
    let pid = i32::try_from(child.pid()).expect("a pid");
    round_trip(&mut stream, 1);
    sys::kill(pid, libc::SIGSTOP);
    assert!(eventually(|| all_stopped(pid)));
    stream.send(b"while it is stopped").expect("sends");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let waited = stream.recv_timeout(&mut [0; 64], Duration::from_millis(250));
        assert_eq!(waited, Err(RecvTimeoutError::Timeout));
        assert!(!stream.is_disconnected());
    }
    sys::kill(pid, libc::SIGCONT);
    assert_eq!(verdict(&mut stream), Ok(19));
    round_trip(&mut stream, 2);
    // A peer that is killed while it is stopped has died.
    sys::kill(pid, libc::SIGSTOP);
    sys::kill(pid, libc::SIGKILL);
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
}

#[test]
fn a_live_peer_is_never_reported_dead() {
    const NAME: &str = "a_live_peer_is_never_reported_dead";
    if !alone(NAME) {
        return;
    }
    if role().is_some() {
        return churn_client(Path::new(&argument()));
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = Options::new().slots(8).arena(4096).bind(&path).expect("binds");
    let mut peers: Vec<_> = (0..6)
        .map(|_| {
            let child = Kept::start(&mut me(NAME, "client", path.to_str().expect("plain")));
            (child, listener.accept_timeout(LONG).expect("the lasting one"))
        })
        .collect();
    let over = AtomicBool::new(false);
    let (clean, killed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| serve_churn(&listener, &over, &clean));
        s.spawn(|| kill_some(&path, &over, &killed));
        // Until enough clean ends and kills have happened. A busy machine needs longer for that.
        let (least, most) = (Duration::from_secs(3), LONG * 2);
        let is_enough = || clean.load(Ordering::Relaxed) > 50 && killed.load(Ordering::Relaxed) > 10;
        let (began, mut index) = (Instant::now(), 0);
        while began.elapsed() < least || (began.elapsed() < most && !is_enough()) {
            for (_, stream) in &mut peers {
                assert!(!stream.is_disconnected(), "a live peer was reported dead");
                round_trip(stream, index);
                index += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        over.store(true, Ordering::Relaxed);
    });
    for (_, stream) in &mut peers {
        round_trip(stream, 7);
    }
    for (child, mut stream) in peers {
        drop(child);
        assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    }
    let (clean, killed) = (clean.load(Ordering::Relaxed), killed.load(Ordering::Relaxed));
    log(&format!("6 peers lived through {clean} clean ends and {killed} kills of others"));
    assert!(clean > 50 && killed > 10);
}

/// One lasting connection, and beside it many short ones from the same process.
fn churn_client(path: &Path) {
    let mut lasting = SharedMemoryStream::connect(path).expect("connects");
    // The others come only once all the lasting ones are there.
    let mut first = Vec::new();
    lasting.recv_into(&mut first).expect("receives");
    lasting.send(&first).expect("sends");
    let lasting = std::thread::spawn(move || echo(lasting));
    while !lasting.is_finished() {
        if let Ok(mut short) = SharedMemoryStream::connect_timeout(path, LONG) {
            let _sent = short.send(b"short");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn serve_churn(listener: &SharedMemoryListener, over: &AtomicBool, clean: &AtomicU64) {
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = listener.accept_timeout(Duration::from_millis(50)) else { continue };
        match verdict(&mut stream) {
            Ok(5) => {
                // "short", from a client that lives on.
                assert_eq!(
                    verdict(&mut stream),
                    Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
                );
                clean.fetch_add(1, Ordering::Relaxed);
            }
            // "killed".
            Ok(6) => assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
            ),
            other => panic!("{other:?}"),
        }
    }
}

/// Peers that are killed, one after the other.
fn kill_some(path: &Path, over: &AtomicBool, killed: &AtomicU64) {
    while !over.load(Ordering::Relaxed) {
        let subject = Fork::run(|| {
            // At the very end the listener no longer accepts.
            let stream = SharedMemoryStream::connect_timeout(path, Duration::from_secs(2));
            let _sent = stream.map(|mut stream| stream.send(b"killed").map(|()| std::mem::forget(stream)));
            sys::kill(i32::try_from(std::process::id()).expect("a pid"), libc::SIGKILL);
            0
        });
        assert_eq!(subject.wait(), -libc::SIGKILL);
        killed.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
}
