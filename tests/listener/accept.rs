//! The listener: its path, its waiting clients, and its ends.

#![allow(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;
use narrows::{AcceptError, BindError};
use narrows::{Options, SharedMemoryListener, SharedMemoryStream};

/// Makes a path at which no process listens any more.
fn make_stale(path: &Path) {
    drop(UnixListener::bind(path).expect("binds"));
}

#[test]
fn a_live_path_is_never_taken() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let first = Options::new().backlog(1).bind(&path).expect("binds");
    assert_eq!(first.local_path(), path);
    for _ in 0..4 {
        // The probes fill the backlog.
        let bound = SharedMemoryListener::bind(&path);
        assert!(matches!(bound, Err(BindError::InUse | BindError::BacklogFull)), "{bound:?}");
    }
    drop(first);
    assert!(!exists(&path));
    drop(SharedMemoryListener::bind(&path).expect("free again"));
}

#[test]
fn a_stale_path_is_taken_and_what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    make_stale(&path);
    let listener = SharedMemoryListener::bind(&path).expect("takes over");
    let client = thread::spawn(move || SharedMemoryStream::connect(path).map(drop));
    listener.accept().expect("accepts");
    client.join().expect("ends").expect("connects");
    let (file, symlink) = (dir.path().join("file"), dir.path().join("symlink"));
    fs::write(&file, "precious").expect("writes");
    std::os::unix::fs::symlink(&file, &symlink).expect("links");
    for path in [&file, &symlink, &dir.path().to_path_buf()] {
        assert!(matches!(SharedMemoryListener::bind(path), Err(BindError::NotASocket)));
    }
    assert_eq!(fs::read_to_string(&symlink).expect("still there"), "precious");
    let other = dir.path().join("other");
    let _alive = UnixDatagram::bind(&other).expect("binds");
    assert!(matches!(SharedMemoryListener::bind(&other), Err(BindError::InUse)));
    assert!(matches!(SharedMemoryListener::bind("/"), Err(BindError::Io { .. })));
    assert!(matches!(SharedMemoryListener::bind("/no/such/place"), Err(BindError::Io { .. })));
}

#[test]
fn the_path_is_removed_on_drop_only_if_it_is_still_ours() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    fs::remove_file(&path).expect("removes");
    let usurper = SharedMemoryListener::bind(&path).expect("binds");
    drop(listener);
    assert!(exists(&path));
    drop(usurper);
    assert!(!exists(&path));
}

#[test]
fn of_fifty_processes_exactly_one_takes_a_stale_path() {
    const NAME: &str = "of_fifty_processes_exactly_one_takes_a_stale_path";
    if let Some(path) = role() {
        return race(Path::new(&path));
    }
    let dir = tempfile::tempdir().expect("dir");
    for round in 0..3 {
        let path = dir.path().join(format!("socket{round}"));
        make_stale(&path);
        let racers: Vec<Child> = (0..50)
            .map(|_| {
                let mut racer = rerun(NAME, path.to_str().expect("plain"));
                racer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts")
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        fs::write(path.with_extension("go"), "").expect("writes");
        finish(racers);
        assert!(!exists(&path), "the winner removed its path");
    }
}

/// One racer: binds at the signal, reports the result, and keeps the listener until its standard input is closed.
fn race(path: &Path) {
    assert!(eventually(|| exists(&path.with_extension("go"))));
    let result = SharedMemoryListener::bind(path);
    match &result {
        Ok(_) => println!("RACE won"),
        Err(BindError::InUse) => println!("RACE lost"),
        Err(other) => println!("RACE broken: {other:?}"),
    }
    let _ = std::io::stdin().read(&mut [0]);
}

fn finish(mut racers: Vec<Child>) {
    let (mut lines, mut outputs) = (Vec::new(), Vec::new());
    for racer in &mut racers {
        let mut output = BufReader::new(racer.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let line = output.find_map(|line| Some(line.split_once("RACE ")?.1.to_owned()));
        lines.push(line.expect("each racer reports its result"));
        outputs.push(output); // Open until the end, so that the racer can go on writing.
    }
    for racer in racers {
        racer.wait_with_output().expect("ends"); // It closes the racer's stdin.
    }
    assert_eq!(lines.iter().filter(|line| *line == "won").count(), 1, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| *line == "lost").count(), 49, "{lines:?}");
}

#[test]
fn silent_clients_do_not_delay_the_next() {
    let server = Server::start(&Options::new());
    let silent: Vec<UnixStream> = (0..40).map(|_| server.raw()).collect();
    let begun = Instant::now();
    server.well_formed_client_gets_in();
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn a_listener_with_all_slots_taken_does_not_spin_and_accepts_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let options = Options::new().handshake_timeout(Duration::from_millis(400));
    let listener = options.bind(&path).expect("binds");
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&path).expect("connects")).collect();
    let well_formed = thread::spawn(move || SharedMemoryStream::connect(path).map(drop));
    let (begun, busy) = (Instant::now(), thread_cpu());
    let _stream = listener.accept().expect("in the end");
    // Each silent client keeps its slot for 100 ms and then makes room. Nothing waits for the 400 ms of the timeout.
    assert!(begun.elapsed() >= Duration::from_millis(90), "{:?}", begun.elapsed());
    assert!(thread_cpu() - busy < Duration::from_millis(100), "{:?}", thread_cpu() - busy);
    well_formed.join().expect("ends").expect("connects");
    assert!(listener.failed_handshakes() >= 100 + 1 - 64, "so many had to leave first");
    drop(silent);
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the local struct.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below 10^9"))
}

#[test]
fn deadlines_of_accept_are_kept() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let begun = Instant::now();
    let late = listener.accept_timeout(Duration::from_millis(50)).expect_err("no client");
    assert!(late.is_timeout() && begun.elapsed() >= Duration::from_millis(50));
    assert!(listener.accept_deadline(begun).expect_err("past").is_timeout());
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
    let client = thread::spawn(move || SharedMemoryStream::connect(path).map(drop));
    listener.accept_timeout(Duration::MAX).expect("accepts");
    client.join().expect("ends").expect("connects");
}

#[test]
fn the_descriptor_of_a_listener_wakes_a_poll_loop_for_every_event() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = Options::new().handshake_timeout(Duration::from_millis(100)).bind(&path).expect("binds");
    assert!(!readable(&listener, 0));
    let silent = UnixStream::connect(&path).expect("connects");
    assert!(readable(&listener, 1000));
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
    assert!(!readable(&listener, 0), "it only waits for the Hello");
    assert!(readable(&listener, 1000), "its time is over");
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
    assert_eq!((listener.failed_handshakes(), (&silent).read(&mut [0]).expect("it hung up")), (1, 0));
    assert!(!readable(&listener, 150));
    let clients: Vec<UnixStream> = (0..2).map(|_| UnixStream::connect(&path).expect("connects")).collect();
    for mut client in &clients {
        client.write_all(&hello()).expect("sends");
    }
    let confirming = thread::spawn(move || clients.iter().map(confirm).collect::<Vec<_>>());
    let mut accepted = Vec::new();
    while accepted.len() < 2 {
        assert!(readable(&listener, 10_000));
        match listener.try_accept() {
            Ok(stream) => accepted.push(stream),
            Err(error) => assert!(matches!(error, AcceptError::WouldBlock), "{error:?}"),
        }
    }
    confirming.join().expect("confirms");
    assert!(!readable(&listener, 0));
    listener.closer().close();
    assert!(readable(&listener, 1000));
}

fn readable(listener: &SharedMemoryListener, ms: i32) -> bool {
    let mut entry = libc::pollfd { fd: listener.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one local entry.
    unsafe { libc::poll(&mut entry, 1, ms) == 1 }
}

#[test]
fn closing_ends_every_accept_now_and_later() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = Arc::new(SharedMemoryListener::bind(&path).expect("binds"));
    let blocked: Vec<_> = (0..3)
        .map(|_| {
            let listener = Arc::clone(&listener);
            thread::spawn(move || listener.accept().map(drop))
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    listener.closer().close();
    for thread in blocked {
        assert!(matches!(thread.join().expect("ends"), Err(AcceptError::Closed)));
    }
    assert!(matches!(listener.try_accept(), Err(AcceptError::Closed)));
    assert!(listener.incoming().next().is_none());
    let closer = listener.closer();
    drop(listener);
    closer.close();
    assert!(!exists(&path));
}

#[test]
fn too_many_open_files_are_an_error_and_nothing_is_lost() {
    if !alone("too_many_open_files_are_an_error_and_nothing_is_lost") {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let waiting = UnixStream::connect(&path).expect("connects");
    (&waiting).write_all(&hello()).expect("sends");
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: reads the local struct.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let hoard: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    for _ in 0..3 {
        let error: std::io::Error = listener.accept().map(drop).expect_err("no descriptor left").into();
        assert!(whole(&error).contains("RLIMIT_NOFILE"), "{error}");
    }
    drop(hoard);
    let client = thread::spawn(move || confirm(&waiting));
    listener.accept().expect("the client still waits");
    client.join().expect("confirms");
    assert_eq!(listener.failed_handshakes(), 0);
}

#[test]
fn a_forked_child_changes_nothing() {
    if !alone("a_forked_child_changes_nothing") {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let silent = UnixStream::connect(&path).expect("connects");
    assert!(matches!(listener.try_accept(), Err(AcceptError::WouldBlock)));
    // SAFETY: the child only makes the calls below and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let forked = matches!(listener.accept(), Err(AcceptError::Forked));
        listener.closer().close();
        drop(listener);
        // SAFETY: ends the child without running code of the parent.
        unsafe { libc::_exit(if forked { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: fills the local number.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7);
    assert!(exists(&path));
    (&silent).write_all(&hello()).expect("sends");
    let client = thread::spawn(move || confirm(&silent));
    listener.accept().expect("the client in mid-handshake gets through");
    client.join().expect("confirms");
    drop(listener);
    assert!(!exists(&path));
}

#[test]
fn a_listener_and_a_stream_are_iterated_by_reference() {
    let folder = tempfile::tempdir().expect("folder");
    let listener = SharedMemoryListener::bind(folder.path().join("socket")).expect("binds");
    let path = listener.local_path().to_owned();
    let client = thread::spawn(move || {
        let mut stream = SharedMemoryStream::connect(path).expect("connects");
        stream.send(b"one").expect("sends");
        stream.send(b"two").expect("sends");
    });
    let mut messages = Vec::new();
    for accepted in &listener {
        let mut stream = accepted.expect("accepts");
        assert_eq!(stream.as_raw_fd(), stream.as_fd().as_raw_fd());
        for message in &mut stream {
            messages.push(message.expect("a clean end"));
        }
        let mut ended = (&mut stream).into_iter();
        assert!(ended.next().is_none() && ended.next().is_none());
        listener.closer().close();
    }
    client.join().expect("ends");
    assert_eq!(messages, [b"one", b"two"]);
}
