//! Every call that can block ends: on data, deadline, close from either side, the peer's death, its exec.

#![allow(unsafe_code)]

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Kept, LONG, Watchdog, argument, eventually, me, role, sys};
use narrows::{
    AcceptError, ConnectError, ConnectionError, Options, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, SharedMemoryListener, SharedMemoryStream, WaitStrategy,
};

const STRATEGIES: [WaitStrategy; 3] = [WaitStrategy::Park, WaitStrategy::Adaptive, WaitStrategy::Spin];
const SHORT: Duration = Duration::from_millis(30);

/// Gives a thread the time to go to sleep.
fn settle() {
    std::thread::sleep(SHORT);
}

fn tiny() -> Options {
    Options::new().slots(2).arena(256).max_message(1 << 20)
}

fn pair(strategy: WaitStrategy) -> (SharedMemoryStream, SharedMemoryStream) {
    tiny().wait(strategy).pair().expect("pair")
}

/// Sends until the ring is full.
fn stuff(stream: &mut SharedMemoryStream) {
    while stream.try_send(&[1; 100]).is_ok() {}
}

/// Runs the call in a thread, runs `disturb` once the call sleeps, and returns the result of the call.
fn disturbed<R: Send>(call: impl FnOnce() -> R + Send, disturb: impl FnOnce()) -> R {
    std::thread::scope(|s| {
        let blocked = s.spawn(call);
        settle();
        assert!(!blocked.is_finished(), "it was to block");
        disturb();
        blocked.join().expect("joins")
    })
}

#[test]
fn a_receiver_ends_on_data_and_every_close() {
    let _watchdog = Watchdog::new("a_receiver_ends_on_data_and_every_close");
    for strategy in STRATEGIES {
        let (mut a, mut b) = pair(strategy);
        let got = disturbed(|| b.recv(&mut [0; 8]).map(|it| it.len), || a.send(b"data").expect("sends"));
        assert_eq!(got, Ok(4), "{strategy:?}");
        let got = disturbed(|| b.recv_ref().map(|it| it.len()), || a.send(b"lent").expect("sends"));
        assert_eq!(got, Ok(4), "{strategy:?}");
        let closer = b.closer();
        let got = disturbed(|| b.recv(&mut [0; 8]), || closer.close());
        assert_eq!(got, Err(RecvError::ConnectionLost(ConnectionError::Closed)), "{strategy:?}");
        assert_eq!(a.send(b"late"), Err(SendError::ConnectionLost(ConnectionError::Disconnected)));

        let (a, mut b) = pair(strategy);
        assert_eq!(
            disturbed(|| b.recv(&mut [0; 8]), || drop(a)),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
        let (a, mut b) = pair(strategy);
        let (sender, _receiver) = a.split();
        assert_eq!(
            disturbed(|| b.recv(&mut [0; 8]), || drop(sender)),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
        let (a, mut b) = pair(strategy);
        let closer = a.closer();
        assert_eq!(
            disturbed(|| b.recv(&mut [0; 8]), || closer.close()),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
    }
}

#[test]
fn a_sender_that_waits_for_space_ends_on_space_and_every_close() {
    let _watchdog = Watchdog::new("a_sender_that_waits_for_space_ends_on_space_and_every_close");
    for strategy in STRATEGIES {
        for len in [1, 200, 5000] {
            let full = || {
                let (mut a, b) = pair(strategy);
                stuff(&mut a);
                (a, b, vec![2; len])
            };
            let (mut a, mut b, message) = full();
            let drain = || {
                let mut buffer = Vec::new();
                while buffer.len() != len {
                    b.recv_into_timeout(&mut buffer, LONG).expect("receives");
                }
            };
            assert_eq!(disturbed(|| a.send(&message), drain), Ok(()), "{strategy:?} {len}");

            let (mut a, _b, message) = full();
            let closer = a.closer();
            assert_eq!(
                disturbed(|| a.send(&message), || closer.close()),
                Err(SendError::ConnectionLost(ConnectionError::Closed))
            );
            let (mut a, b, message) = full();
            assert_eq!(
                disturbed(|| a.send(&message), || drop(b)),
                Err(SendError::ConnectionLost(ConnectionError::Disconnected))
            );
            let (mut a, b, message) = full();
            let (_sender, receiver) = b.split();
            assert_eq!(
                disturbed(|| a.send(&message), || drop(receiver)),
                Err(SendError::ConnectionLost(ConnectionError::Disconnected))
            );
            let (mut a, b, _message) = full();
            let reserved = disturbed(|| a.reserve(8).map(drop), || b.close());
            assert_eq!(reserved, Err(SendError::ConnectionLost(ConnectionError::Disconnected)));
        }
    }
}

#[test]
fn the_shared_sender_and_all_behind_it_end() {
    let _watchdog = Watchdog::new("the_shared_sender_and_all_behind_it_end");
    let (mut a, b) = pair(WaitStrategy::Park);
    stuff(&mut a);
    let closer = a.closer();
    let shared = a.split().0.into_shared();
    let results = disturbed(
        || {
            std::thread::scope(|s| {
                let all: Vec<_> = (0..4).map(|_| s.spawn(|| shared.send(&[3; 500]))).collect();
                all.into_iter().map(|it| it.join().expect("joins")).collect::<Vec<_>>()
            })
        },
        || {
            assert_eq!(shared.send_timeout(b"x", SHORT), Err(SendTimeoutError::Timeout));
            closer.close();
        },
    );
    assert_eq!(results, vec![Err(SendError::ConnectionLost(ConnectionError::Closed)); 4]);
    drop(b);
}

#[test]
fn a_wait_for_either_ends_on_each() {
    let _watchdog = Watchdog::new("a_wait_for_either_ends_on_each");
    for strategy in STRATEGIES {
        let (mut a, mut b) = pair(strategy);
        stuff(&mut a);
        let began = Instant::now();
        assert_eq!(a.wait_either_timeout(8, SHORT), Err(SendTimeoutError::Timeout));
        assert!(began.elapsed() >= SHORT);
        let ready = disturbed(|| a.wait_either(8), || b.send(b"reply").expect("sends")).expect("ready");
        assert!(ready.message && !ready.space);
        a.recv(&mut [0; 8]).expect("receives");
        let drain = || while b.try_recv(&mut [0; 200]).is_ok() {};
        let ready = disturbed(|| a.wait_either(8), drain).expect("ready");
        assert!(ready.space && !ready.message);
        stuff(&mut a);
        let closer = a.closer();
        disturbed(|| a.wait_either(8), || closer.close()).expect("ended is ready");
        assert_eq!(a.send(b"x"), Err(SendError::ConnectionLost(ConnectionError::Closed)));
        let (mut a, b) = pair(strategy);
        stuff(&mut a);
        disturbed(|| a.wait_either(8), || drop(b)).expect("ended is ready");
        assert_eq!(a.recv(&mut [0; 8]), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
    }
}

#[test]
fn every_deadline_is_kept() {
    let _watchdog = Watchdog::new("every_deadline_is_kept");
    for strategy in STRATEGIES {
        let (mut a, mut b) = pair(strategy);
        let timed = |act: &mut dyn FnMut(Duration) -> bool| {
            for timeout in [Duration::ZERO, Duration::from_nanos(1), SHORT] {
                let began = Instant::now();
                assert!(act(timeout), "{strategy:?} {timeout:?}");
                assert!(began.elapsed() >= timeout, "{strategy:?} {timeout:?}");
            }
        };
        let late = Err(RecvTimeoutError::Timeout);
        timed(&mut |it| b.recv_timeout(&mut [0; 8], it) == late);
        timed(&mut |it| b.recv_deadline(&mut [0; 8], Instant::now() + it) == late);
        timed(&mut |it| b.recv_into_timeout(&mut Vec::new(), it) == late);
        timed(&mut |it| matches!(b.recv_ref_timeout(it), Err(RecvTimeoutError::Timeout)));
        assert_eq!(b.recv_deadline(&mut [0; 8], Instant::now() - SHORT), late);
        stuff(&mut a);
        let late = Err(SendTimeoutError::Timeout);
        timed(&mut |it| a.send_timeout(b"x", it) == late);
        timed(&mut |it| a.send_deadline(b"x", Instant::now() + it) == late);
        timed(&mut |it| a.send_timeout(&[0; 5000], it) == late);
        timed(&mut |it| matches!(a.reserve_timeout(8, it), Err(SendTimeoutError::Timeout)));
        timed(&mut |it| a.batch().push_timeout(b"x", it) == late);
        timed(&mut |it| a.wait_either_timeout(8, it) == Err(SendTimeoutError::Timeout));
    }
}

#[test]
fn durations_that_overflow_mean_no_deadline() {
    let _watchdog = Watchdog::new("durations_that_overflow_mean_no_deadline");
    let folder = tempfile::tempdir().expect("directory");
    let centuries = [Duration::MAX, Duration::from_secs(1 << 62), Duration::from_secs(1 << 34)];
    for (at, absurd) in centuries.into_iter().enumerate() {
        let (mut a, mut b) = pair(WaitStrategy::Adaptive);
        let got = disturbed(|| b.recv_timeout(&mut [0; 8], absurd), || a.send(b"x").expect("sends"));
        assert_eq!(got.map(|it| it.len), Ok(1));
        stuff(&mut a);
        let drain = || while b.try_recv(&mut [0; 200]).is_ok() {};
        assert_eq!(disturbed(|| a.send_timeout(&[0; 100], absurd), drain), Ok(()));
        let path = folder.path().join(at.to_string());
        let listener = Options::new().handshake_timeout(absurd).bind(&path).expect("binds");
        let _silent = std::os::unix::net::UnixStream::connect(&path).expect("connects");
        let client = || drop(SharedMemoryStream::connect_timeout(&path, absurd));
        let got = disturbed(
            || listener.accept_timeout(absurd).map(drop),
            || std::thread::scope(|s| drop(s.spawn(client))),
        );
        assert!(got.is_ok(), "{got:?}");
        let shared = a.split().0.into_shared();
        let _taken = shared.send_timeout(b"x", absurd);
    }
}

#[test]
fn accept_ends_on_a_client_its_deadline_and_its_closer() {
    let _watchdog = Watchdog::new("accept_ends_on_a_client_its_deadline_and_its_closer");
    let folder = tempfile::tempdir().expect("directory");
    let listener = SharedMemoryListener::bind(folder.path().join("socket")).expect("binds");
    for timeout in [Duration::ZERO, SHORT] {
        let began = Instant::now();
        assert!(matches!(listener.accept_timeout(timeout), Err(AcceptError::Timeout)));
        assert!(began.elapsed() >= timeout);
    }
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
    let path = listener.local_path();
    disturbed(
        || listener.accept().expect("accepts"),
        || {
            std::thread::scope(|s| {
                s.spawn(|| SharedMemoryStream::connect(path).expect("connects"));
            });
        },
    );
    let closer = listener.closer();
    let results = disturbed(
        || {
            std::thread::scope(|s| {
                let all: Vec<_> = (0..3).map(|_| s.spawn(|| listener.accept().map(drop))).collect();
                all.into_iter().map(|it| it.join().expect("joins")).collect::<Vec<_>>()
            })
        },
        || closer.close(),
    );
    assert!(results.iter().all(|it| matches!(it, Err(AcceptError::Closed))), "{results:?}");
    assert!(matches!(listener.try_accept(), Err(AcceptError::Closed)));
    assert!(listener.incoming().next().is_none());
}

#[test]
fn connect_ends_when_no_server_answers() {
    let _watchdog = Watchdog::new("connect_ends_when_no_server_answers");
    let folder = tempfile::tempdir().expect("directory");
    let mute = folder.path().join("mute");
    let server = UnixListener::bind(&mute).expect("binds");
    for timeout in [Duration::ZERO, SHORT] {
        let began = Instant::now();
        let got = SharedMemoryStream::connect_timeout(&mute, timeout);
        assert!(matches!(got, Err(ConnectError::Timeout)), "{got:?}");
        assert!(began.elapsed() >= timeout);
    }
    let got = Options::new().handshake_timeout(SHORT).connect(&mute);
    assert!(matches!(got, Err(ConnectError::Timeout)), "{got:?}");
    // A server that accepts the socket connection and then exits.
    let got = disturbed(|| SharedMemoryStream::connect_timeout(&mute, LONG).map(drop), || drop(server));
    assert!(matches!(got, Err(ConnectError::PeerClosed)), "{got:?}");

    let crowded = folder.path().join("crowded");
    let listener = Options::new().backlog(1).bind(&crowded).expect("binds");
    let clients: Vec<_> =
        (0..2).map(|_| std::os::unix::net::UnixStream::connect(&crowded).expect("waits")).collect();
    let began = Instant::now();
    let got = SharedMemoryStream::connect_timeout(&crowded, SHORT);
    assert!(matches!(got, Err(ConnectError::BacklogFull)), "{got:?}");
    assert!(began.elapsed() >= SHORT);
    let got = disturbed(
        || SharedMemoryStream::connect_timeout(&crowded, LONG).map(drop),
        || {
            drop(clients);
            listener.accept_timeout(LONG).expect("room again");
        },
    );
    assert!(got.is_ok(), "{got:?}");
    let missing = SharedMemoryStream::connect(folder.path().join("missing"));
    assert!(matches!(missing, Err(ConnectError::Io { .. })));
}

/// A child that fills its ring towards us, takes nothing, and then ends in the way that `end` names.
fn stuck_child(test: &str, end: &str) -> (Kept, SharedMemoryStream) {
    let (child, stream) = tiny().spawn(me(test, end, "")).expect("spawns");
    (Kept(child), stream)
}

fn be_stuck(end: &str) {
    let mut stream = tiny().from_parent().expect("handed over");
    // The parent gives the start signal by a message. Its later messages are never taken.
    stream.recv(&mut [0; 8]).expect("the start signal");
    std::thread::sleep(SHORT * 2);
    match end {
        "exec" => {
            let error = Command::new("sleep").arg("60").exec();
            panic!("{error}");
        }
        "close" => drop(stream),
        _ => std::thread::sleep(LONG),
    }
}

#[test]
fn both_kinds_of_sleepers_end_with_the_peer() {
    const NAME: &str = "both_kinds_of_sleepers_end_with_the_peer";
    if let Some(end) = role() {
        return be_stuck(&end);
    }
    let _watchdog = Watchdog::new(NAME);
    for (end, reason) in [
        ("kill", RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)),
        ("exec", RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)),
        ("close", RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)),
    ] {
        let (child, stream) = stuck_child(NAME, end);
        let pid = i32::try_from(child.pid()).expect("a pid");
        let (mut sender, mut receiver) = stream.split();
        sender.send(b"begin").expect("sends");
        std::thread::scope(|s| {
            let sending = s.spawn(|| {
                loop {
                    if let Err(error) = sender.send_timeout(&[0; 100], LONG) {
                        return error;
                    }
                }
            });
            let receiving = s.spawn(|| receiver.recv_timeout(&mut [0; 8], LONG));
            settle();
            let began = Instant::now();
            if end == "kill" {
                sys::kill(pid, libc::SIGKILL);
            }
            let ends = (sending.join().expect("joins"), receiving.join().expect("joins"));
            let send_error = if end == "kill" {
                SendTimeoutError::ConnectionLost(ConnectionError::PeerDied)
            } else {
                SendTimeoutError::ConnectionLost(ConnectionError::Disconnected)
            };
            assert_eq!(ends, (send_error, Err(reason)), "{end}");
            crate::support::log(&format!("{end}: both sleepers ended {:.1?} later", began.elapsed()));
        });
    }
}

#[test]
fn a_wait_for_either_ends_with_the_peer() {
    const NAME: &str = "a_wait_for_either_ends_with_the_peer";
    if let Some(end) = role() {
        return be_stuck(&end);
    }
    let _watchdog = Watchdog::new(NAME);
    for end in ["kill", "exec", "close"] {
        let (child, mut stream) = stuck_child(NAME, end);
        let pid = i32::try_from(child.pid()).expect("a pid");
        stream.send(b"begin").expect("sends");
        assert!(eventually(|| stream.stats().messages_sent == 1));
        settle();
        stuff(&mut stream);
        let ready = std::thread::scope(|s| {
            let blocked = s.spawn(|| stream.wait_either_timeout(100, LONG));
            settle();
            if end == "kill" {
                sys::kill(pid, libc::SIGKILL);
            }
            blocked.join().expect("joins")
        });
        // A peer that drops its stream may be seen to end one direction before the other.
        let ended = ready
            .is_ok_and(|it| if end == "close" { it.message || it.space } else { it.message && it.space });
        assert!(ended, "{end}: {ready:?}");
        let reason = stream.recv_timeout(&mut [0; 8], LONG);
        let expected = if end == "kill" {
            RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)
        } else {
            RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)
        };
        assert_eq!(reason, Err(expected), "{end}");
    }
}

#[test]
fn a_client_ends_when_its_server_is_killed_in_mid_handshake() {
    const NAME: &str = "a_client_ends_when_its_server_is_killed_in_mid_handshake";
    if role().is_some() {
        let listener = UnixListener::bind(argument()).expect("binds");
        let _mute = listener.accept();
        std::thread::sleep(LONG);
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = Kept::start(&mut me(NAME, "server", path.to_str().expect("plain")));
    assert!(eventually(|| path.exists()));
    std::thread::sleep(SHORT * 3);
    let got = disturbed(|| SharedMemoryStream::connect_timeout(&path, LONG).map(drop), || drop(server));
    assert!(matches!(got, Err(ConnectError::PeerClosed)), "{got:?}");
}
