//! A peer that misuses the socket and the descriptor of the memory: floods, resizes, half connections, stops.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use narrows::internal::handshake::{ClientHandshake, HELLO_LEN};
use narrows::internal::layout::{Control, SlotKind};
use narrows::{ConnectError, SharedMemoryListener, SharedMemoryStream};

use super::subject::{MAX_MESSAGE, Plays, TIME, client_options, frugal, geometry, options, run, serve};
use crate::support::raw_peer::RawPeer;
use crate::support::{
    Kept, LONG, Watchdog, alone, argument, descriptors, eventually, log, me, reach, role, sys,
};

/// Sends one inline message of `len` bytes, by hand.
fn send_by_hand(hand: &RawPeer, ticket: u64, len: u32) {
    hand.payload(ticket, &[0; 13]);
    hand.commit(ticket, Control { kind: SlotKind::Inline, abort: false, len, unit: 0 });
}

/// Sends as many bytes as the socket takes, and descriptors if the kernel lets them pass.
fn flood(hand: &RawPeer, _: &mut fastrand::Rng) {
    let null = std::fs::File::open("/dev/null").expect("opens");
    hand.socket.set_nonblocking(true).expect("sets");
    let _refused_from_linux_6_16 = sys::send_with_fd(hand.socket.as_fd(), &[7; 4096], null.as_fd());
    let _full = (&hand.socket).write(&[7; 4096]);
    send_by_hand(hand, 0, 5);
}

/// Checks that the connection works, nothing of the flood is read, nothing grows, and no thread spins.
fn flooded(mut stream: SharedMemoryStream) -> String {
    assert_eq!(stream.recv_timeout(&mut [0; 8], LONG).expect("the message of the attacker").len, 5);
    let before = descriptors();
    let (end, report) = frugal("slept", || stream.recv_timeout(&mut [0; 8], TIME / 2));
    assert!(matches!(end.expect_err("nothing more"), narrows::RecvTimeoutError::Timeout));
    assert_eq!(descriptors(), before);
    assert!(!stream.is_disconnected());
    report
}

#[test]
fn a_flood_behind_the_hello() {
    let subject = |path: &Path| {
        let listener = serve(path);
        flooded(listener.accept_timeout(LONG).expect("the attacker connects"))
    };
    run("sockets::a_flood_behind_the_hello", Plays::Client, flood, subject);
}

#[test]
fn a_flood_behind_the_accept() {
    let subject = |path: &Path| flooded(reach(path, &client_options()));
    run("sockets::a_flood_behind_the_accept", Plays::Server, flood, subject);
}

fn hello() -> [u8; HELLO_LEN] {
    ClientHandshake::new(geometry(), MAX_MESSAGE as u64, 0).hello()
}

/// Hundreds of connections that never send more than half of a hello.
#[test]
fn a_flood_of_half_open_connections() {
    let halves = Mutex::new(Vec::new());
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let address = hand.socket.peer_addr().expect("known");
        let half = UnixStream::connect(address.as_pathname().expect("a path"));
        let mut halves = halves.lock().expect("alone");
        if let Ok(mut half) = half {
            let _gone = half.write_all(&hello()[..32]);
            halves.push(half);
        }
        if halves.len() > 300 {
            halves.clear();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let subject = |path: &Path| {
        let listener = options().handshake_timeout(Duration::from_millis(100)).bind(path).expect("binds");
        let mut attacker = listener.accept_timeout(LONG).expect("the attacker connects");
        let (well_formed, report) =
            frugal("a well-formed client connected within", || beside(&listener, path));
        drop(well_formed);
        assert!(
            attacker.try_recv(&mut [0; 8]).is_err_and(|it| matches!(it, narrows::TryRecvError::WouldBlock)),
            "it is as it was"
        );
        format!("{report}{} halves failed", listener.failed_handshakes())
    };
    run("sockets::a_flood_of_half_open_connections", Plays::Client, attack, subject);
}

/// Accepts until a well-formed client has connected.
fn beside(listener: &SharedMemoryListener, path: &Path) -> (SharedMemoryStream, SharedMemoryStream) {
    std::thread::scope(|s| {
        let client = s.spawn(|| {
            std::thread::sleep(TIME / 2);
            let mut client = options().connect_timeout(path, LONG).expect("connects");
            client.send(b"normal").expect("sends");
            client
        });
        loop {
            let mut stream = listener.accept_timeout(LONG).expect("accepts");
            if stream.recv_timeout(&mut [0; 8], LONG).is_ok_and(|it| it.len == 6) {
                return (client.join().expect("connects"), stream);
            }
        }
    })
}

/// Tries every way to change the size of the memory, its pages or its seals. Returns how many were refused.
fn resize(hand: &RawPeer) -> u32 {
    let (file, len) = (hand.pages.file(), hand.pages.len() as u64);
    let own = std::fs::File::from(file.try_clone().expect("a copy"));
    let reopen = format!("/proc/self/fd/{}", file.as_raw_fd());
    let refused = [
        own.set_len(0),
        own.set_len(len / 2),
        own.set_len(len - 1),
        own.set_len(len + 1),
        own.set_len(1 << 40),
        own.write_all_at(&[1], len),
        OpenOptions::new().write(true).truncate(true).open(&reopen).map(drop),
        sys::add_seals(file.as_fd(), libc::F_SEAL_WRITE),
        sys::add_seals(file.as_fd(), libc::F_SEAL_FUTURE_WRITE),
        sys::grow(file.as_fd(), len),
        sys::collapse(file.as_fd()),
        sys::punch(file.as_fd()),
        sys::remove(&hand.pages),
        sys::map_again(file.as_fd()).map(drop),
        own.write_all_at(&[1], 0),
    ];
    let count = refused.iter().filter(|it| it.is_err()).count();
    u32::try_from(count).expect("few")
}

#[test]
fn the_memory_keeps_its_size_and_its_seals() {
    let attack = |hand: &RawPeer, _: &mut fastrand::Rng| {
        let len = resize(hand);
        send_by_hand(hand, 0, len);
    };
    let subject = |path: &Path| {
        let listener = serve(path);
        let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
        let refused = stream.recv_timeout(&mut [0; 104], LONG).expect("the attacker sends the number").len;
        assert_eq!(refused, 15, "each of them is refused");
        "15 ways refused".into()
    };
    run("sockets::the_memory_keeps_its_size_and_its_seals", Plays::Client, attack, subject);
}

const STOPS: &str = "sockets::a_peer_that_stops_in_mid_handshake";

#[test]
fn a_peer_that_stops_in_mid_handshake() {
    if !alone(STOPS) {
        return;
    }
    match role().as_deref() {
        Some("client") => return stop_as_client(Path::new(&argument())),
        Some(_) => return stop_as_server(Path::new(&argument())),
        None => {}
    }
    let _watchdog = Watchdog::new(STOPS);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("theirs");
    let mut server = Kept::start(&mut me(STOPS, "server", path.to_str().expect("plain")));
    let short = Duration::from_millis(300);
    // The backlog accepts the connection whether the peer has stopped or not. Before the peer listens, it is refused.
    let listens = || UnixStream::connect(&path).is_ok();
    assert!(eventually(listens));
    let (end, report) = frugal("a client gave up after", || options().connect_timeout(&path, short));
    assert!(matches!(end, Err(ConnectError::Timeout)), "{end:?}");
    server.0.kill().expect("kills");
    log(&report);

    let path = folder.path().join("ours");
    let listener = options().handshake_timeout(short).bind(&path).expect("binds");
    let _client = Kept::start(&mut me(STOPS, "client", path.to_str().expect("plain")));
    let (_well_formed, report) = frugal("a server went on beside it for", || beside(&listener, &path));
    let failed = || {
        let _none = listener.accept_timeout(Duration::from_millis(10));
        listener.failed_handshakes() == 1
    };
    assert!(eventually(failed), "its timeout has passed");
    log(&report);
}

fn stop_as_client(path: &Path) {
    let mut socket = UnixStream::connect(path).expect("connects");
    socket.write_all(&hello()[..HELLO_LEN / 2]).expect("sends");
    sys::stop_myself();
}

fn stop_as_server(path: &Path) {
    let listener = UnixListener::bind(path).expect("binds");
    // The first client only checks whether the server listens.
    let handshakes = |client: UnixStream| (&client).read_exact(&mut [0; HELLO_LEN]).is_ok().then_some(client);
    let client = listener.incoming().find_map(|client| handshakes(client.expect("accepts")));
    sys::stop_myself();
    drop(client);
}
