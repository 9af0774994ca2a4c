//! 10 000 connections, with failed handshakes among them, leave nothing behind: no descriptor, no mapping, no thread, no file.
//! The test is alone in its process, so that nothing disturbs the counts.

#![allow(unsafe_code)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::raw_peer::RawPeer;
use crate::support::{Fork, LONG, Watchdog, alone, descriptors, eventually, log, mappings, sys, threads};
use narrows::internal::layout::Geometry;
use narrows::{AcceptError, ConnectionError, Options, SharedMemoryListener, SharedMemoryStream};

#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts {
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

fn counts() -> Counts {
    Counts { descriptors: descriptors(), mappings: mappings("memfd:"), threads: threads() }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("lists");
    entries.map(|it| it.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Returns both ends of a connection that was made by the path, within this process.
fn through(listener: &SharedMemoryListener, options: &Options) -> (SharedMemoryStream, SharedMemoryStream) {
    std::thread::scope(|s| {
        let client = s.spawn(|| options.connect_timeout(listener.local_path(), LONG).expect("connects"));
        let server = listener.accept_timeout(LONG).expect("accepts");
        (server, client.join().expect("joins"))
    })
}

fn exchange(a: &mut SharedMemoryStream, b: &mut SharedMemoryStream, at: usize) {
    a.send(&vec![1; at % 700]).expect("sends");
    assert_eq!(b.recv_into_timeout(&mut Vec::new(), LONG).expect("receives").len, at % 700);
}

/// Runs a client that fails, each time in another way.
fn failure(listener: &SharedMemoryListener, at: usize) {
    let path = listener.local_path();
    match at % 5 {
        0 => drop(UnixStream::connect(path).expect("connects")),
        1 => drop(UnixStream::connect(path).expect("connects").write_all(&[7; 64])),
        2 => drop(UnixStream::connect(path).expect("connects").write_all(b"narrows?")),
        3 => drop(SharedMemoryStream::connect_timeout(path, Duration::ZERO)),
        _ => {
            let mute = path.with_file_name("mute");
            let server = std::os::unix::net::UnixListener::bind(&mute).expect("binds");
            assert!(SharedMemoryStream::connect_timeout(&mute, Duration::from_micros(50)).is_err());
            drop(server);
            std::fs::remove_file(mute).expect("removes");
        }
    }
    while listener.try_accept().is_ok() {}
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
}

fn bad_memory(folder: &Path) {
    let path = folder.join("hostile");
    let server = std::os::unix::net::UnixListener::bind(&path).expect("binds");
    std::thread::scope(|s| {
        s.spawn(|| {
            let (socket, _) = server.accept().expect("accepts");
            let geometry = Geometry::new(8, 4096, 8).expect("legal");
            let agreed = narrows::internal::handshake::Negotiated {
                version: narrows::internal::handshake::VERSION_MAX,
                features: 0,
                geometry,
                max_message: 1000,
                first_ticket: 0,
            };
            let accept = narrows::internal::handshake::Answer::Accept(agreed).encode();
            let memory = sys::sealed_memory(geometry.region_len() + 4096);
            use std::os::fd::AsFd;
            sys::send_with_fd(socket.as_fd(), &accept, memory.as_fd()).expect("sends");
            std::thread::sleep(Duration::from_millis(5));
        });
        let error = SharedMemoryStream::connect_timeout(&path, LONG).expect_err("the size is wrong");
        assert!(matches!(error, narrows::ConnectError::BadMemfd(_)), "{error}");
    });
    drop(server);
    std::fs::remove_file(path).expect("removes");
}

#[test]
fn nothing_is_left() {
    if !alone("nothing_is_left") {
        return;
    }
    let _watchdog = Watchdog::within("nothing_is_left", Duration::from_secs(240));
    let began = Instant::now();
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let small = Options::new().slots(4).arena(4096);
    let listener = small.clone().handshake_timeout(Duration::from_secs(1)).bind(&path).expect("binds");
    assert_eq!(files(folder.path()), ["socket"]);
    // The peer monitor and its descriptors stay. The monitor releases the connection a little later.
    drop(through(&listener, &small));
    assert!(eventually(|| counts().mappings == 0), "{:?}", counts());
    let _settles = listener.accept_timeout(Duration::from_millis(30));
    let first = counts();
    for at in 0..10_000_usize {
        let (mut a, mut b) = match at % 4 {
            0 => through(&listener, &small),
            _ => small.pair().expect("pair"),
        };
        exchange(&mut a, &mut b, at);
        if at % 3 == 0 {
            a.closer().close();
            let (sender, receiver) = b.split();
            drop((receiver, a, sender));
        }
        if at % 7 == 0 {
            failure(&listener, at / 7);
        }
        if at % 500 == 0 {
            bad_memory(folder.path());
        }
    }
    for _ in 0..50 {
        killed_peer(&listener);
    }
    assert!(listener.failed_handshakes() > 400);
    assert_eq!(files(folder.path()), ["socket"]);
    let same = || {
        let _none = listener.accept_timeout(Duration::from_millis(30)); // Late clients are rejected.
        let now = counts();
        let more = now.descriptors > first.descriptors || now.threads > first.threads;
        !more && now.mappings == 0
    };
    assert!(eventually(same), "{first:?} at first, {:?} now", counts());
    drop(listener);
    assert!(files(folder.path()).is_empty());
    log(&format!("10000 connections in {:.1?}: {first:?} before and after", began.elapsed()));
}

/// Peers that die: before the handshake, in it, after it, and with a connection in use.
fn killed_peer(listener: &SharedMemoryListener) {
    let path = listener.local_path();
    let half = Fork::run(|| {
        let mut socket = UnixStream::connect(path).expect("connects");
        socket.write_all(b"narrows?").expect("writes");
        sys::kill(i32::try_from(std::process::id()).expect("a pid"), libc::SIGKILL);
        0
    });
    let _none = listener.accept_timeout(Duration::from_millis(1));
    half.wait();
    let whole = Fork::run(|| {
        let geometry = Geometry::new(4, 4096, 8).expect("legal");
        let _hand = RawPeer::connect(path, geometry, 1000).expect("connects");
        std::thread::sleep(LONG);
        0
    });
    let mut stream = listener.accept_timeout(LONG).expect("accepts");
    whole.kill();
    assert_eq!(
        stream.recv_timeout(&mut [0; 8], LONG),
        Err(narrows::RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
    );
}
