//! Events that the feature `log` reports, with the process of the peer: each once, and none of messages.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::id;
use std::sync::{Mutex, MutexGuard, Once};
use std::thread;
use std::time::Duration;

use crate::support::{Kept, LONG, Watchdog, alone, argument, eventually, me, reach, role, round_trip, sys};
use log::{Level, LevelFilter, Log, Metadata, Record};
use narrows::{ConnectError, HandlerError, Options, SharedMemoryClient, SharedMemoryListener};
use narrows::{SharedMemoryServer, SharedMemoryStream};

/// The logged events, in order.
static LOGGED: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

fn sent_so_far() -> MutexGuard<'static, Vec<(Level, String)>> {
    LOGGED.lock().unwrap_or_else(|broken| broken.into_inner())
}

struct Memory;

impl Log for Memory {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "narrows"
    }

    fn log(&self, record: &Record<'_>) {
        assert_eq!(record.target(), "narrows");
        sent_so_far().push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

/// One test at a time, from an empty log on.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static ONCE: Once = Once::new();
    let turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    ONCE.call_once(|| {
        log::set_logger(&Memory).expect("the only one");
        log::set_max_level(LevelFilter::Trace);
    });
    // The threads of the previous test may still have something to log.
    let mut before = usize::MAX;
    while all() != before {
        before = all();
        thread::sleep(Duration::from_millis(50));
    }
    sent_so_far().clear();
    turn
}

fn count(level: Level, text: &str) -> usize {
    sent_so_far().iter().filter(|(is, it)| *is == level && it == text).count()
}

/// Checks that the event is logged, and only once.
fn once(level: Level, text: &str) {
    let came = eventually(|| count(level, text) == 1);
    assert!(came, "{level} {text:?} in {:?}", sent_so_far());
}

fn all() -> usize {
    sent_so_far().len()
}

fn user() -> u32 {
    std::fs::metadata("/proc/self").expect("a process").uid()
}

#[test]
fn both_ends_log_the_connection_and_which_of_them_closed_it() {
    if !alone("both_ends_log_the_connection_and_which_of_them_closed_it") {
        return;
    }
    let _watchdog = Watchdog::new("both_ends_log_the_connection_and_which_of_them_closed_it");
    let user = user();
    let _turn = turn();
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pairs");
    let me = id();
    once(Level::Debug, &format!("accepted process {me} of user {user}"));
    once(Level::Debug, &format!("connected to process {me} of user {user}"));
    for _ in 0..100 {
        a.send(b"quietly").expect("sends");
        b.recv(&mut [0; 7]).expect("comes");
    }
    assert!(b.recv_timeout(&mut [0; 7], Duration::from_millis(1)).is_err());
    assert_eq!(all(), 2, "messages are no events");
    drop(a);
    assert!(b.recv(&mut [0; 7]).is_err());
    drop(b);
    once(Level::Debug, &format!("closed the connection with process {me}"));
    once(Level::Debug, &format!("process {me} closed the connection"));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(all(), 4, "each end was logged once: {:?}", sent_so_far());
}

#[test]
fn a_close_from_another_thread_is_logged_once() {
    if !alone("a_close_from_another_thread_is_logged_once") {
        return;
    }
    let _turn = turn();
    let (a, _b) = SharedMemoryStream::pair().expect("pairs");
    let closer = a.closer();
    closer.close();
    closer.close();
    once(Level::Debug, &format!("closed the connection with process {}", id()));
    drop(a);
    once(Level::Debug, &format!("closed the connection with process {}", id()));
}

#[test]
fn the_death_of_a_peer_is_logged_while_its_stream_is_idle() {
    const NAME: &str = "the_death_of_a_peer_is_logged_while_its_stream_is_idle";
    if !alone(NAME) {
        return;
    }
    if role().is_some() {
        let mut stream = SharedMemoryStream::connect(argument()).expect("connects");
        round_trip(&mut stream, 1);
        thread::sleep(LONG);
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let user = user();
    let _turn = turn();
    let folder = tempfile::tempdir().expect("directory");
    let listener = SharedMemoryListener::bind(folder.path().join("socket")).expect("binds");
    let mut child = Kept::start(&mut me(NAME, "client", listener.local_path().to_str().expect("plain")));
    let mut stream = listener.accept_timeout(LONG).expect("comes");
    let pid = child.pid();
    once(Level::Debug, &format!("accepted process {pid} of user {user}"));
    let mut message = Vec::new();
    stream.recv_into(&mut message).expect("comes");
    stream.send(&message).expect("sends");
    child.0.kill().expect("kills");
    once(Level::Warn, &format!("process {pid} died, and with it the connection"));
    drop(stream);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(all(), 2, "{:?}", sent_so_far());
}

/// The loss of the descriptors is logged as an error, once.
#[test]
fn a_program_that_closes_all_descriptors_finds_it_in_its_log() {
    const NAME: &str = "a_program_that_closes_all_descriptors_finds_it_in_its_log";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return assert!(Kept::start(&mut me(NAME, "closes", "")).wait().success());
    }
    let _turn = turn();
    let (_a, mut b) = SharedMemoryStream::pair().expect("pairs");
    sys::close_all_but_standard();
    assert!(
        b.recv_timeout(&mut [0; 8], LONG)
            .is_err_and(|error| matches!(error, narrows::RecvTimeoutError::ConnectionLost(_)))
    );
    once(Level::Error, "the program has closed descriptors that belong to narrows: 2 connections end");
}

fn serving(listener: &SharedMemoryListener, act: impl FnOnce(&Path)) {
    let closer = listener.closer();
    thread::scope(|scope| {
        scope.spawn(|| listener.incoming().for_each(drop));
        act(listener.local_path());
        closer.close();
    });
}

#[test]
fn a_rejected_client_is_logged_with_the_reason() {
    if !alone("a_rejected_client_is_logged_with_the_reason") {
        return;
    }
    let _watchdog = Watchdog::new("a_rejected_client_is_logged_with_the_reason");
    let user = user();
    let _turn = turn();
    let (folder, me) = (tempfile::tempdir().expect("directory"), id());
    let options = Options::new().handshake_timeout(Duration::from_millis(50));
    let listener = options.bind(folder.path().join("socket")).expect("binds");
    serving(&listener, |path| {
        UnixStream::connect(path).expect("connects").write_all(&[7; 64]).expect("writes");
        let text = "the peer does not speak this protocol";
        once(Level::Warn, &format!("rejected process {me} of user {user}: {text}"));
        drop(UnixStream::connect(path).expect("connects"));
        once(Level::Debug, &format!("process {me} of user {user} left before its handshake was over"));
        let _silent = UnixStream::connect(path).expect("connects");
        once(Level::Warn, &format!("rejected process {me} of user {user}: its handshake took too long"));
    });
    let closed = Options::new().authorize(|_| false).bind(folder.path().join("closed")).expect("binds");
    serving(&closed, |path| {
        let refused = SharedMemoryStream::connect(path);
        assert!(matches!(refused, Err(ConnectError::Rejected { .. })), "{refused:?}");
        let text = "its user may not connect: Options::authorize refuses it";
        once(Level::Warn, &format!("rejected process {me} of user {user}: {text}"));
    });
    assert_eq!(all(), 4, "{:?}", sent_so_far());
}

#[test]
fn a_server_of_calls_logs_each_client_that_it_rejects() {
    if !alone("a_server_of_calls_logs_each_client_that_it_rejects") {
        return;
    }
    let _watchdog = Watchdog::new("a_server_of_calls_logs_each_client_that_it_rejects");
    let user = user();
    let _turn = turn();
    let (folder, me) = (tempfile::tempdir().expect("directory"), id());
    let server = SharedMemoryServer::bind(folder.path().join("one")).expect("binds");
    let server = server.max_connections(1).spawn().expect("serves");
    let path = server.local_path().expect("a path");
    let _first = SharedMemoryClient::connect(path).expect("connects");
    assert!(SharedMemoryClient::connect(path).is_err());
    let text = "the server has as many clients as it takes, or is about to end";
    once(Level::Warn, &format!("rejected process {me} of user {user}: {text}"));

    let server = SharedMemoryServer::bind(folder.path().join("picky")).expect("binds");
    let server = server.on_connect(|_| Err(HandlerError::new(1, "not today"))).spawn().expect("serves");
    let path = server.local_path().expect("a path");
    assert!(SharedMemoryClient::connect(path).is_err());
    once(Level::Warn, &format!("rejected process {me} of user {user}: by on_connect: not today"));
    let mut stream = reach(path, &Options::new());
    stream.send(b"no preface").expect("sends");
    let text = "it did not send the preface of an RPC client";
    once(Level::Warn, &format!("rejected process {me} of user {user}: {text}"));
    once(Level::Error, &format!("process {me} broke the protocol: the connection is closed"));
}
