//! The handshake over real sockets: well-formed and hostile clients against our server, and our client against hostile servers.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;
use narrows::internal::handshake::{
    ACKNOWLEDGE, ANSWER_LEN, Answer, ClientHandshake, HELLO_LEN, Negotiated, Reject, VERSION_MAX,
};
use narrows::internal::layout::Geometry;
use narrows::{ConnectError, HandshakeError, RejectCode};
use narrows::{Options, SharedMemoryStream};

fn code(answer: Answer) -> Option<RejectCode> {
    match answer {
        Answer::Reject(reject) => Some(reject.code()),
        Answer::Accept(_) => None,
    }
}

#[test]
fn each_mistake_of_a_client_is_answered_and_hurts_no_other_client() {
    let server = Server::start(&Options::new());
    let with = |at: usize, field: &[u8]| {
        let mut bytes = hello();
        bytes[at..at + field.len()].copy_from_slice(field);
        code(ask(&server.raw(), &bytes))
    };
    assert_eq!(with(0, b"GET / HT"), Some(RejectCode::BadHello));
    assert_eq!(with(8, &[9, 0, 10, 0]), Some(RejectCode::Version));
    assert_eq!(with(8, &[1, 0, 0, 0]), Some(RejectCode::Version));
    assert_eq!(with(8, &[1, 0, 1, 0]), Some(RejectCode::Version), "version 1 was never published");
    assert_eq!(with(12, &[1]), Some(RejectCode::Features));
    assert_eq!(with(16, &[0, 0, 2, 0]), Some(RejectCode::Geometry));
    assert_eq!(with(16, &[3, 0, 0, 0]), Some(RejectCode::Geometry));
    assert_eq!(with(24, &[255; 8]), Some(RejectCode::Geometry));
    assert_eq!(with(32, &[0; 8]), Some(RejectCode::MaxMessage));
    assert_eq!(with(40, &[1]), Some(RejectCode::WrongNonce));
    assert_eq!(with(52, &[1]), Some(RejectCode::BadHello));
    server.failures_reach(11);
    server.well_formed_client_gets_in();
}

#[test]
fn a_hello_in_parts_is_accepted_and_more_is_never_read() {
    let server = Server::start(&Options::new());
    let dripping = server.raw();
    for byte in hello() {
        (&dripping).write_all(&[byte]).expect("sends");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(code(confirm(&dripping).0), None);
    let talkative = server.raw();
    (&talkative).write_all(&hello()).expect("sends");
    let (accept, memory) = answer_with_memory(&talkative);
    assert_eq!(code(accept), None);
    seal(memory.as_fd(), LAST_SEALS).expect("seals");
    (&talkative).write_all(&[&[ACKNOWLEDGE][..], &[7; 1000]].concat()).expect("sends");
    assert!(eventually(|| server.accepted.load(Ordering::SeqCst) == 2));
    server.well_formed_client_gets_in();
    assert_eq!(server.listener.failed_handshakes(), 0);
}

#[test]
fn truncated_dripping_and_silent_clients_fail_in_time() {
    let server = Server::start(&Options::new().handshake_timeout(Duration::from_millis(200)));
    (&server.raw()).write_all(&hello()[..10]).expect("sends");
    drop(server.raw());
    server.failures_reach(2);
    let (silent, dripping, begun) = (server.raw(), server.raw(), Instant::now());
    for byte in hello() {
        let _ = (&dripping).write_all(&[byte]);
        thread::sleep(Duration::from_millis(10));
    }
    server.failures_reach(4);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!((&silent).read(&mut [0]).expect("it hung up"), 0);
    assert!(!matches!((&dripping).read(&mut [0]), Ok(1)), "no Accept after the deadline");
    server.well_formed_client_gets_in();
}

#[test]
fn sizes_are_the_smaller_of_both_sides() {
    let options = Options::new().slots(16).arena(4096).max_message(1000).first_ticket(77);
    let server = Server::start(&options);
    let Answer::Accept(agreed) = ask(&server.raw(), &hello()) else {
        panic!("refused");
    };
    assert_eq!(agreed.geometry, Geometry::new(16, 4096, 64).expect("legal"));
    assert_eq!((agreed.max_message, agreed.first_ticket), (1000, 77));
    let modest = ClientHandshake::new(Geometry::new(4, 64, 1).expect("legal"), 5, 0).hello();
    let Answer::Accept(agreed) = ask(&server.raw(), &modest) else {
        panic!("refused");
    };
    assert_eq!((agreed.geometry.slots(), agreed.geometry.arena(), agreed.max_message), (4, 64, 5));
    server.well_formed_client_gets_in();
}

#[test]
fn descriptors_for_the_server_are_refused_or_closed() {
    if !alone("descriptors_for_the_server_are_refused_or_closed") {
        return;
    }
    let server = Server::start(&Options::new());
    server.well_formed_client_gets_in();
    let (file, before) = (File::open("/dev/null").expect("opens"), descriptors());
    for _ in 0..100 {
        let client = server.raw();
        let _ = send_with(&client, &hello()[..1], &[file.as_fd(); 5]); // EPERM from Linux 6.16 on.
    }
    assert!(eventually(|| descriptors() <= before));
}

#[test]
fn a_policy_on_either_side_is_obeyed() {
    let server = Server::start(&Options::new().authorize(|peer| peer.pid() != std::process::id()));
    let refused = SharedMemoryStream::connect(&server.path).expect_err("not authorised");
    assert!(matches!(refused, ConnectError::Rejected { code: RejectCode::NotAuthorized, .. }), "{refused:?}");
    let wary = Options::new().authorize(|_| false).connect(&server.path).expect_err("not trusted");
    assert!(matches!(wary, ConnectError::NotAuthorized { .. }));
}

#[test]
fn another_user_is_refused() {
    const NAME: &str = "another_user_is_refused";
    if let Some(path) = role() {
        let refused = SharedMemoryStream::connect(Path::new(&path)).expect_err("another user");
        assert!(
            matches!(refused, ConnectError::Rejected { code: RejectCode::NotAuthorized, .. }),
            "{refused:?}"
        );
        return;
    }
    if !is_root() {
        return; // Only root can become another user.
    }
    let server = Server::start(&Options::new());
    assert_eq!(server.path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    let open =
        |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set");
    open(server.path.parent().expect("dir"), 0o755);
    open(&server.path, 0o666);
    // The test binary may stand where another user cannot read it.
    let copy = server.path.with_file_name("copy");
    std::fs::copy(std::env::current_exe().expect("our path"), &copy).expect("copies");
    open(&copy, 0o755);
    let template = rerun(NAME, server.path.to_str().expect("plain"));
    let mut child = std::process::Command::new(&copy);
    child.args(template.get_args()).envs(template.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let status = child.uid(65534).gid(65534).current_dir("/").status().expect("runs");
    assert!(status.success());
    server.failures_reach(1);
    server.well_formed_client_gets_in();
}

#[test]
fn failed_handshakes_leak_no_descriptor() {
    if !alone("failed_handshakes_leak_no_descriptor") {
        return;
    }
    let server = Server::start(&Options::new());
    server.well_formed_client_gets_in();
    let before = descriptors();
    for round in 0..3000_usize {
        let (client, mut bytes) = (server.raw(), hello());
        bytes[round % 40] ^= 0xff;
        let _ = (&client).write_all(&bytes[..round % (HELLO_LEN + 1)]);
    }
    server.failures_reach(3000);
    assert!(eventually(|| descriptors() <= before));
}

/// Plays a server that is about to accept one client, and runs our client against it.
fn against(
    play: impl FnOnce(UnixStream) + Send + 'static,
    options: &Options,
) -> Result<SharedMemoryStream, ConnectError> {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("binds");
    let server = thread::spawn(move || play(listener.accept().expect("accepts").0));
    let result = options.connect_timeout(&path, Duration::from_millis(500));
    server.join().expect("the play ends well");
    result
}

/// A server that reads the Hello and sends these bytes with these descriptors.
fn answering(
    bytes: [u8; ANSWER_LEN],
    fds: Vec<std::os::fd::OwnedFd>,
) -> Result<SharedMemoryStream, ConnectError> {
    let play = move |mut client: UnixStream| {
        client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        send_with(&client, &bytes, &fds).expect("sends");
        let _ = client.read(&mut [0]); // Until the client hangs up.
    };
    match against(play, &Options::new()) {
        Ok(stream) => {
            drop(stream);
            unreachable!("the play above would not have ended")
        }
        Err(error) => Err(error),
    }
}

fn accept() -> [u8; ANSWER_LEN] {
    let agreed = Negotiated {
        version: VERSION_MAX,
        features: 0,
        geometry: geometry(),
        max_message: 1,
        first_ticket: 0,
    };
    Answer::Accept(agreed).encode()
}

#[test]
fn each_kind_of_wrong_memory_is_refused() {
    let len = geometry().region_len();
    let refused = |fds| answering(accept(), fds).expect_err("wrong memory");
    assert!(matches!(refused(vec![]), ConnectError::NoDescriptor));
    assert!(matches!(refused(vec![memfd(len, SEALS), memfd(len, SEALS)]), ConnectError::SurplusDescriptors));
    let bad = |fd: std::os::fd::OwnedFd| {
        let error = refused(vec![fd]);
        assert!(matches!(error, ConnectError::BadMemfd(_)), "{error:?}");
    };
    bad(memfd(len, 0));
    bad(memfd(len, SEALS & !libc::F_SEAL_SHRINK));
    bad(memfd(len, SEALS & !libc::F_SEAL_GROW));
    bad(memfd(len, SEALS | libc::F_SEAL_FUTURE_WRITE));
    bad(memfd(len, SEALS | libc::F_SEAL_WRITE));
    bad(memfd(len, SEALS | libc::F_SEAL_SEAL));
    bad(memfd(len - 4096, SEALS));
    bad(memfd(len + 4096, SEALS));
    bad(memfd(0, SEALS));
    bad(tempfile::tempfile().expect("a file").into());
    bad(File::open("/dev/zero").expect("opens").into());
    bad(UnixStream::pair().expect("pair").0.into());
}

#[test]
fn a_flood_of_descriptors_is_closed() {
    if !alone("a_flood_of_descriptors_is_closed") {
        return;
    }
    narrows::start_peer_monitor().expect("starts"); // Its descriptors stay.
    let before = descriptors();
    for count in [2, 5, 253] {
        let fds = (0..count).map(|_| File::open("/dev/null").expect("opens").into()).collect();
        let error = answering(accept(), fds).expect_err("a flood");
        assert!(matches!(error, ConnectError::SurplusDescriptors | ConnectError::Truncated), "{error:?}");
        assert!(eventually(|| descriptors() <= before)); // Another thread closes them.
    }
}

#[test]
fn without_room_for_the_memory_the_error_names_the_limit() {
    if !alone("without_room_for_the_memory_the_error_names_the_limit") {
        return;
    }
    let (memory, folder) = (memfd(geometry().region_len(), SEALS), tempfile::tempdir().expect("dir"));
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("binds");
    narrows::start_peer_monitor().expect("starts"); // Otherwise there is no room for its descriptors.
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: reads the local struct.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let mut hoard: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hoard.truncate(hoard.len() - 2); // Room for both ends of the connection.
    let server = thread::spawn(move || {
        let mut client = listener.accept().expect("accepts").0;
        client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
        send_with(&client, &accept(), &[memory.as_fd()]).expect("sends");
        let _ = client.read(&mut [0]); // Until the client hangs up.
    });
    // The default policy of a user other than root needs a descriptor of its own.
    let error = Options::new().authorize(|_| true).connect(&path).expect_err("no room");
    assert!(whole(&error).contains("RLIMIT_NOFILE"), "{error}");
    server.join().expect("the play ends well");
}

#[test]
fn each_malformed_answer_is_refused() {
    let with = |at: usize, field: &[u8]| {
        let mut bytes = accept();
        bytes[at..at + field.len()].copy_from_slice(field);
        match answering(bytes, vec![memfd(geometry().region_len(), SEALS)]) {
            Err(ConnectError::BadAnswer(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(0, b"HTTP/1.1"), HandshakeError::BadMagic);
    assert_eq!(with(8, &[3]), HandshakeError::UnknownKind(3));
    assert_eq!(with(10, &[1]), HandshakeError::NoCommonVersion { min: 1, max: 1 });
    assert_eq!(with(12, &[1]), HandshakeError::UnknownFeatures(1));
    assert!(matches!(with(16, &[3, 0]), HandshakeError::BadGeometry { .. }));
    assert!(matches!(with(48, &[1]), HandshakeError::BadRegionLen { .. }));
    assert_eq!(with(40, &[255; 8]), HandshakeError::BadTicket(u64::MAX));
    assert_eq!(with(127, &[1]), HandshakeError::ReservedNotZero);
    let geometry = Geometry::new(512, 1 << 20, 64).expect("legal");
    let agreed = Negotiated { version: VERSION_MAX, features: 0, geometry, max_message: 1, first_ticket: 0 };
    let greedy = answering(Answer::Accept(agreed).encode(), vec![memfd(geometry.region_len(), SEALS)]);
    assert!(matches!(greedy, Err(ConnectError::BadAnswer(HandshakeError::MoreThanWanted))));
    let reject = Answer::Reject(Reject::new(RejectCode::Other(999), "come back tomorrow")).encode();
    match answering(reject, vec![]) {
        Err(ConnectError::Rejected { code: RejectCode::Other(999), text }) => {
            assert_eq!(text, "come back tomorrow")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn servers_that_close_are_silent_or_drip_end_in_time() {
    let closing = against(drop, &Options::new()).expect_err("closed");
    assert!(matches!(closing, ConnectError::PeerClosed), "{closing:?}");
    let truncated = against(|mut client| client.write_all(&accept()[..100]).expect("sends"), &Options::new());
    assert!(matches!(truncated, Err(ConnectError::PeerClosed)));
    let begun = Instant::now();
    let silent = against(|_client| thread::sleep(Duration::from_millis(800)), &Options::new());
    assert!(matches!(silent, Err(ConnectError::Timeout)));
    let dripping = |mut client: UnixStream| {
        for byte in accept() {
            let _ = client.write_all(&[byte]);
            thread::sleep(Duration::from_millis(10));
        }
    };
    let dripping = against(dripping, &Options::new());
    assert!(matches!(dripping, Err(ConnectError::Timeout)), "{dripping:?}");
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn an_accept_in_parts_is_taken() {
    let play = |mut client: UnixStream| {
        client.read_exact(&mut [0; HELLO_LEN]).expect("a hello");
        let memory = memfd(geometry().region_len(), SEALS);
        send_with(&client, &accept()[..1], &[]).expect("sends");
        send_with(&client, &accept()[1..9], &[memory.as_fd()]).expect("sends");
        for byte in &accept()[9..] {
            client.write_all(&[*byte]).expect("sends");
        }
        let mut last = [0];
        client.read_exact(&mut last).expect("the acknowledgement");
        assert_eq!((last, seal(memory.as_fd(), 0).is_err()), ([ACKNOWLEDGE], true), "sealed against seals");
    };
    against(play, &Options::new()).expect("connects");
}

#[test]
fn a_missing_server_and_a_full_backlog_are_distinguished() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let missing: std::io::Error = SharedMemoryStream::connect(&path).expect_err("nothing").into();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    let listener = Options::new().backlog(1).bind(&path).expect("binds");
    let waiting: Vec<_> = (0..2).map(|_| UnixStream::connect(&path).expect("waits")).collect();
    let begun = Instant::now();
    let full = Options::new().connect_timeout(&path, Duration::from_millis(100)).expect_err("full");
    assert!(full.is_timeout() && begun.elapsed() >= Duration::from_millis(100), "{full:?}");
    drop((waiting, listener));
    drop(UnixListener::bind(&path).expect("binds"));
    let stale: std::io::Error = SharedMemoryStream::connect(&path).expect_err("stale").into();
    assert_eq!(stale.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn illegal_options_are_errors_of_the_terminal_call() {
    let options = Options::new().slots(3);
    assert!(matches!(options.connect("/nowhere"), Err(ConnectError::BadOptions(_))));
    assert!(matches!(options.pair(), Err(ConnectError::BadOptions(_))));
    assert!(matches!(options.bind("/nowhere"), Err(narrows::BindError::BadOptions(_))));
}

#[test]
fn a_pair_needs_no_path_and_leaks_nothing() {
    if !alone("a_pair_needs_no_path_and_leaks_nothing") {
        return;
    }
    drop(SharedMemoryStream::pair().expect("a pair"));
    let before = descriptors();
    for _ in 0..100 {
        let both = Options::new().prefault(true).pair().expect("a pair");
        assert_eq!(descriptors(), before + 2);
        drop(both);
    }
    assert!(eventually(|| descriptors() <= before));
}
