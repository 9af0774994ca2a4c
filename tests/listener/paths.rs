//! Paths, their locks and modes, the error texts about them, and listening sockets that are handed over.

#![allow(unsafe_code)]

use std::env;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Fork, Kept, LONG, Watchdog, alone, argument, log, me, role, sys, verdict, whole};
use narrows::{
    AcceptError, BindError, ConnectError, Options, Reconnect, ServerHandle, SharedMemoryClient,
    SharedMemoryListener, SharedMemoryServer, SharedMemoryStream,
};

fn lock(directory: &Path, kind: libc::c_int) -> File {
    let file = File::open(directory).expect("opens");
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), kind) }, 0);
    file
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("lists").map(|entry| entry.expect("readable").path()).collect()
}

/// Programs lock their directories so that systemd-tmpfiles spares them, and systemd-tmpfiles does while it cleans.
#[test]
fn a_lock_on_the_directory_delays_neither_bind_nor_drop() {
    let _watchdog = Watchdog::new("a_lock_on_the_directory_delays_neither_bind_nor_drop");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for kind in [libc::LOCK_SH, libc::LOCK_EX] {
        let _held = lock(folder.path(), kind);
        let began = Instant::now();
        let listener = SharedMemoryListener::bind(&path).expect("binds");
        assert_eq!(entries(folder.path()), std::slice::from_ref(&path), "no lock file is left");
        drop(listener);
        assert!(entries(folder.path()).is_empty(), "nothing is left");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

/// Returns whether the kernel lists the path as bound. systemd-tmpfiles looks for absolute paths in that list.
fn is_listed(path: &Path) -> bool {
    let list = fs::read_to_string("/proc/net/unix").expect("readable");
    list.lines().any(|line| line.split_whitespace().nth(7) == path.to_str())
}

#[test]
fn a_socket_bound_by_a_relative_or_linked_path_is_listed_by_its_absolute_one() {
    const NAME: &str = "a_socket_bound_by_a_relative_or_linked_path_is_listed_by_its_absolute_one";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        let folder = tempfile::tempdir().expect("directory");
        let status = Kept::start(&mut me(NAME, "binds", folder.path().to_str().expect("plain"))).wait();
        return assert!(status.success(), "{status}");
    }
    let folder = fs::canonicalize(argument()).expect("there");
    env::set_current_dir(&folder).expect("enters"); // This process has one test.
    fs::create_dir(folder.join("real")).expect("makes");
    std::os::unix::fs::symlink(folder.join("real"), folder.join("linked")).expect("links");
    for (given, listed) in [("one", "one"), ("real/../two", "two"), ("linked/three", "real/three")] {
        let listener = SharedMemoryListener::bind(given).expect("binds");
        assert_eq!(listener.local_path(), Path::new(given));
        assert!(is_listed(&folder.join(listed)), "{given}");
        let client = thread::spawn(move || SharedMemoryStream::connect(given).map(drop));
        listener.accept_timeout(LONG).expect("accepts");
        client.join().expect("ends").expect("connects");
        assert!(listener.owns_path());
        fs::remove_file(given).expect("removes");
        assert!(!listener.owns_path(), "it detects that its path is gone");
    }
}

#[test]
fn a_client_that_reconnects_keeps_its_server_when_the_directory_changes() {
    const NAME: &str = "a_client_that_reconnects_keeps_its_server_when_the_directory_changes";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        let folder = tempfile::tempdir().expect("directory");
        let status = Kept::start(&mut me(NAME, "calls", folder.path().to_str().expect("plain"))).wait();
        return assert!(status.success(), "{status}");
    }
    let serve = |name: &'static str| -> ServerHandle {
        let server = SharedMemoryServer::bind("socket").expect("binds");
        let server = server.inline(1, move |_, reply| {
            reply.extend(name.bytes());
            Ok(())
        });
        server.spawn().expect("serves")
    };
    let enter = |name: &str| {
        let folder = Path::new(&argument()).join(name);
        fs::create_dir_all(&folder).expect("makes");
        env::set_current_dir(folder).expect("enters"); // This process has one test.
    };
    enter("a");
    let ours = serve("ours");
    let client =
        SharedMemoryClient::builder("socket").reconnect(Reconnect::new()).connect().expect("connects");
    enter("b");
    let _theirs = serve("another's");
    drop(ours);
    enter("a");
    let _again = serve("ours");
    enter("b");
    assert_eq!(client.call(1, b"").expect("answers").to_vec(), b"ours");
}

#[test]
fn silent_connections_of_one_process_keep_no_other_out() {
    const NAME: &str = "silent_connections_of_one_process_keep_no_other_out";
    if role().is_some() {
        let mut stream = SharedMemoryStream::connect(argument()).expect("connects");
        stream.send(b"x").expect("sends");
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    // The timeout is longer than the test may take: only their eviction makes room.
    let options = Options::new().handshake_timeout(LONG * 4).max_handshakes(16).backlog(256);
    let listener = options.bind(&path).expect("binds");
    let _silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).expect("connects")).collect();
    let _client = Kept::start(&mut me(NAME, "client", path.to_str().expect("plain")));
    let mut stream = listener.accept_timeout(LONG).expect("the other process gets in");
    assert_eq!(verdict(&mut stream), Ok(1));
    assert!(listener.failed_handshakes() > 0);
}

/// The kernel wakes the clients that wait in `connect` in their order. A client that only polls finds room by chance.
#[test]
fn a_client_queues_for_a_full_backlog() {
    let _watchdog = Watchdog::new("a_client_queues_for_a_full_backlog");
    for round in 0..8 {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("binds");
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
        let _first = [(); 2].map(|()| UnixStream::connect(&path).expect("there is room"));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _unanswered = Options::new().handshake_timeout(Duration::MAX).connect(&path);
            });
            thread::sleep(Duration::from_millis(100)); // The client comes first.
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(UnixStream::connect(&path));
                    }
                });
            }
            let said_hello = (1..=24).any(|number| {
                thread::sleep(Duration::from_millis(10)); // The free place in the backlog is taken at once.
                let (mut stream, _) = listener.accept().expect("accepts");
                // The first two are kept, and silent.
                number > 2 && io::Read::read(&mut stream, &mut [0; 8]).is_ok_and(|len| len > 0)
            });
            over.store(true, Ordering::Relaxed);
            drop(listener);
            assert!(said_hello, "round {round}: later clients were accepted first");
        });
    }
}

#[test]
fn clients_get_through_a_flood_of_half_open_connections() {
    const NAME: &str = "clients_get_through_a_flood_of_half_open_connections";
    if role().is_some() {
        let flooders: Vec<_> = (0..256)
            .map(|_| {
                thread::spawn(|| {
                    while let Ok(mut silent) = UnixStream::connect(argument()) {
                        let _until_it_is_sent_away = io::Read::read(&mut silent, &mut [0]);
                    }
                })
            })
            .collect();
        return flooders.into_iter().for_each(|flooder| flooder.join().expect("ends"));
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = SharedMemoryServer::bind(&path).expect("binds").inline(1, |_, _| Ok(()));
    let _server = server.spawn().expect("serves");
    let _flood = Kept::start(&mut me(NAME, "flood", path.to_str().expect("plain")));
    thread::sleep(Duration::from_millis(500)); // All slots and the backlog are taken.
    for _ in 0..5 {
        let options = Options::new().handshake_timeout(LONG);
        let client = SharedMemoryClient::builder(&path).options(options).connect().expect("gets in");
        client.call(1, b"").expect("answers");
    }
}

#[test]
fn mode_and_group_are_set_whatever_the_umask_is() {
    const NAME: &str = "mode_and_group_are_set_whatever_the_umask_is";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        let folder = tempfile::tempdir().expect("directory");
        let status = Kept::start(&mut me(NAME, "binds", folder.path().to_str().expect("plain"))).wait();
        return assert!(status.success(), "{status}");
    }
    // SAFETY: takes a number; this process has one test.
    unsafe { libc::umask(0o077) };
    let path = Path::new(&argument()).join("socket");
    let group =
        if sys::effective_user() == 0 { 23_416 } else { fs::metadata(argument()).expect("there").gid() };
    for mode in [0o660, 0o666, 0o600] {
        let listener = Options::new().socket_mode(mode).socket_group(group).bind(&path).expect("binds");
        let socket = fs::metadata(&path).expect("there");
        assert_eq!((socket.mode() & 0o777, socket.gid()), (mode, group));
        drop(listener);
    }
    let wrong = Options::new().socket_mode(0o4777).bind(&path).map(drop);
    assert!(matches!(wrong, Err(BindError::BadOptions(_))), "{wrong:?}");
}

#[test]
fn a_listening_socket_is_handed_over_and_nothing_else_is_taken_for_one() {
    let _watchdog = Watchdog::new("a_listening_socket_is_handed_over_and_nothing_else_is_taken_for_one");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let first = SharedMemoryListener::bind(&path).expect("binds");
    let second = Options::new().listen_on(first.try_clone_socket().expect("a copy")).expect("listens");
    assert_eq!(second.local_path(), fs::canonicalize(&path).expect("there"));
    let client = thread::spawn({
        let path = path.clone();
        move || SharedMemoryStream::connect(path).map(drop)
    });
    second.accept_timeout(LONG).expect("accepts");
    client.join().expect("ends").expect("connects");
    drop(second);
    assert!(path.exists(), "the path is the first one's");
    let served = SharedMemoryServer::listen_on(first.try_clone_socket().expect("a copy"), &Options::new());
    let _server = served.expect("listens").inline(1, |_, _| Ok(())).spawn().expect("serves");
    let client = SharedMemoryClient::connect(&path).expect("connects");
    client.call(1, b"").expect("answers");
    let (one, _two) = UnixStream::pair().expect("pair");
    for other in [File::open("/dev/null").expect("opens").into(), one.into()] {
        let refused = Options::new().listen_on(other).map(drop).expect_err("it does not listen");
        assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::InvalidInput);
    }
}

/// The kernel names the process that called `listen` last. Clients must be notified of the death of their server, not of the
/// process that bound the path.
#[test]
fn the_process_that_takes_over_a_listening_socket_is_the_server() {
    const NAME: &str = "the_process_that_takes_over_a_listening_socket_is_the_server";
    if role().is_some() {
        let fd = argument().parse().expect("a number");
        // SAFETY: the parent left this descriptor open for this process alone.
        let listener = Options::new().listen_on(unsafe { OwnedFd::from_raw_fd(fd) }).expect("listens");
        let mut client = listener.accept_timeout(LONG).expect("accepts");
        let _end = client.recv_timeout(&mut [0; 8], LONG);
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let socket = listener.try_clone_socket().expect("a copy");
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    let successor = Kept::start(&mut me(NAME, "successor", &socket.as_raw_fd().to_string()));
    drop(socket);
    let named = || {
        let stream = UnixStream::connect(&path).expect("connects");
        let (mut cred, mut len) = (libc::ucred { pid: 0, uid: 0, gid: 0 }, 12);
        // SAFETY: fills a local of this length.
        let asked = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut cred).cast(),
                &mut len,
            )
        };
        assert_eq!(asked, 0);
        cred.pid
    };
    let begun = Instant::now();
    while u32::try_from(named()) != Ok(successor.pid()) {
        assert!(begun.elapsed() < LONG, "the successor is never named");
        thread::sleep(Duration::from_millis(5));
    }
    let stream = SharedMemoryStream::connect(&path).expect("connects");
    assert_eq!(stream.peer_cred().pid(), successor.pid());
}

#[test]
fn connect_waits_for_a_server_to_appear_until_its_deadline() {
    let _watchdog = Watchdog::new("connect_waits_for_a_server_to_appear_until_its_deadline");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("later").join("socket");
    let options = Options::new().wait_for_server(true);
    let missing = options.connect_timeout(&path, Duration::from_millis(50)).map(drop);
    assert!(whole(&missing.expect_err("no server")).contains("start the server"));
    let missing = Options::new().connect_timeout(&path, LONG).map(drop).expect_err("at once");
    assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    thread::scope(|scope| {
        let client = scope.spawn(|| options.connect_timeout(&path, LONG).map(drop));
        thread::sleep(Duration::from_millis(50));
        fs::create_dir(path.parent().expect("one")).expect("makes");
        let listener = SharedMemoryListener::bind(&path).expect("binds");
        listener.accept_timeout(LONG).expect("accepts");
        client.join().expect("ends").expect("connects");
    });
}

/// A fork that keeps the socket of a killed server: no process answers, and a new server cannot bind.
#[test]
fn a_fork_that_keeps_the_socket_of_a_killed_server_is_named() {
    if !alone("a_fork_that_keeps_the_socket_of_a_killed_server_is_named") {
        return;
    }
    let _watchdog = Watchdog::new("a_fork_that_keeps_the_socket_of_a_killed_server_is_named");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (keeper_says, mut notify) = UnixStream::pair().expect("pair");
    let server = Fork::run(|| {
        let _listener = SharedMemoryListener::bind(&path).expect("binds");
        let keeper = Fork::run(|| {
            thread::sleep(LONG * 2);
            0
        });
        io::Write::write_all(&mut notify, &keeper.pid().to_ne_bytes()).expect("says");
        thread::sleep(LONG * 2);
        0
    });
    let mut keeper = [0; 4];
    io::Read::read_exact(&mut &keeper_says, &mut keeper).expect("said");
    server.kill();
    server.wait();
    let (bound, connected) = (
        SharedMemoryListener::bind(&path).map(drop),
        Options::new().handshake_timeout(Duration::MAX).connect(&path).map(drop),
    );
    sys::kill(i32::from_ne_bytes(keeper), libc::SIGKILL);
    let kernel_tells = !matches!(bound, Err(BindError::InUse));
    if !kernel_tells {
        log("the kernel does not report that the server has ended (before Linux 6.5)");
        return;
    }
    let pid = u32::try_from(server.pid()).expect("positive");
    assert!(matches!(bound, Err(BindError::HeldByFork { pid: named }) if named == pid), "{bound:?}");
    assert!(
        matches!(connected, Err(ConnectError::ServerEnded { pid: named }) if named == pid),
        "{connected:?}"
    );
}

#[test]
fn the_obstacle_to_a_path_is_named() {
    if !alone("the_obstacle_to_a_path_is_named") {
        return;
    }
    let _watchdog = Watchdog::new("the_obstacle_to_a_path_is_named");
    if sys::effective_user() != 0 {
        return log("skipped: only root can change users");
    }
    let folder = tempfile::tempdir().expect("directory");
    let open_to_all =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("changes");
    open_to_all(folder.path(), 0o755);
    let (closed, sticky) = (folder.path().join("closed"), folder.path().join("sticky"));
    fs::create_dir(&closed).expect("makes");
    open_to_all(&closed, 0o700);
    fs::create_dir(&sticky).expect("makes");
    open_to_all(&sticky, 0o1777);
    let private = folder.path().join("private");
    let _listener = SharedMemoryListener::bind(&private).expect("binds");
    drop(UnixListener::bind(sticky.join("stale")).expect("binds"));
    open_to_all(&sticky.join("stale"), 0o666);
    let other = Fork::run(|| {
        // SAFETY: the calls take numbers, and change this fork alone.
        unsafe {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!((libc::setgid(23_416), libc::setuid(23_416)), (0, 0));
        }
        let connecting =
            |path: &Path| whole(&SharedMemoryStream::connect(path).map(drop).expect_err("closed"));
        let binding = |path: &Path| whole(&SharedMemoryListener::bind(path).map(drop).expect_err("closed"));
        let says = |text: String, words: &[&str]| {
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        says(connecting(&private), &["user 0", "mode 0600", "Options::socket_mode"]);
        says(connecting(&closed.join("socket")), &["closed", "may not be entered"]);
        says(binding(&closed.join("socket")), &["closed", "may not be entered"]);
        says(binding(&folder.path().join("new")), &["may not be written"]);
        says(binding(&sticky.join("stale")), &["belongs to user 0", "may remove it"]);
        0
    });
    assert_eq!(other.wait(), 0);
}

/// Runs the test again in a process of its own; returns whether this is that process. It can fork: no other thread holds a lock
/// there.
fn is_alone(name: &str) -> bool {
    if role().is_some() {
        return true;
    }
    let _watchdog = Watchdog::new(name);
    let folder = tempfile::tempdir().expect("directory");
    let status = Kept::start(&mut me(name, "alone", folder.path().to_str().expect("plain"))).wait();
    assert!(status.success(), "{status}");
    false
}

/// Drops root privileges, if the process has them.
fn become_another_user() {
    if sys::effective_user() == 0 {
        // SAFETY: the calls take numbers, and change this process alone.
        unsafe {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!((libc::setgid(23_416), libc::setuid(23_416)), (0, 0));
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("changes");
}

fn bind_error(path: &Path) -> BindError {
    SharedMemoryListener::bind(path).map(drop).expect_err("it cannot be bound")
}

fn assert_contains(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

/// Processes whose parent has ended; they are killed at the end of the test.
struct Orphans(Vec<i32>);

impl Orphans {
    /// Takes the process number that the process itself writes to the socket.
    fn adopt(&mut self, mut from: &UnixStream) {
        let mut pid = [0; 4];
        io::Read::read_exact(&mut from, &mut pid).expect("said");
        self.0.push(i32::from_ne_bytes(pid));
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| sys::kill(*pid, libc::SIGKILL));
    }
}

fn report_own_pid(mut to: &UnixStream) {
    io::Write::write_all(&mut to, &std::process::id().to_ne_bytes()).expect("says");
}

fn wait_for_byte(mut from: &UnixStream) {
    io::Read::read_exact(&mut from, &mut [0]).expect("said");
}

/// A daemon that forks after it has bound. Its parent ends, which must not be mistaken for the end of the server.
#[test]
fn a_fork_that_takes_a_listener_over_is_the_server() {
    if !is_alone("a_fork_that_takes_a_listener_over_is_the_server") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let first = Fork::run(|| {
        let mut listener = Some(SharedMemoryListener::bind(&path).expect("binds"));
        std::mem::forget(Fork::run(|| {
            let listener = listener.take().expect("one").after_fork().expect("takes it over");
            report_own_pid(&theirs);
            wait_for_byte(&theirs);
            let mut client = listener.accept_timeout(LONG).expect("accepts");
            let _end = verdict(&mut client);
            0
        }));
        std::mem::forget(listener);
        0
    });
    assert_eq!(first.wait(), 0);
    let mut daemon = Orphans(Vec::new());
    daemon.adopt(&ours);
    let bound = bind_error(&path);
    assert!(matches!(bound, BindError::InUse), "{bound:?}");
    io::Write::write_all(&mut &ours, b"!").expect("says");
    // The daemon accepts the attempt to bind first: a client that is gone.
    let stream = Options::new().handshake_timeout(LONG).connect(&path).expect("connects");
    assert_eq!(i32::try_from(stream.peer_cred().pid()), Ok(daemon.0[0]));
}

/// The worker that called `listen` last has ended. The kernel names it to clients although another one serves.
#[test]
fn a_worker_that_accepts_late_is_waited_for_until_the_deadline() {
    if !is_alone("a_worker_that_accepts_late_is_waited_for_until_the_deadline") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let (worker_starts, starts_worker) = UnixStream::pair().expect("pair");
    let first = Fork::run(|| {
        let mut listener = Some(SharedMemoryListener::bind(&path).expect("binds"));
        std::mem::forget(Fork::run(|| {
            let listener = listener.take().expect("one").after_fork().expect("takes it over");
            report_own_pid(&theirs);
            wait_for_byte(&worker_starts);
            let mut client = listener.accept_timeout(LONG).expect("accepts");
            let _end = verdict(&mut client);
            0
        }));
        wait_for_byte(&theirs); // The first worker has called `listen`.
        let last = Fork::run(|| {
            std::mem::forget(listener.take().expect("one").after_fork().expect("takes it over"));
            0
        });
        assert_eq!(last.wait(), 0);
        report_own_pid(&theirs);
        std::mem::forget(listener);
        0
    });
    let mut worker = Orphans(Vec::new());
    worker.adopt(&ours);
    io::Write::write_all(&mut &ours, b"!").expect("says");
    assert_eq!(first.wait(), 0);
    io::Read::read_exact(&mut &ours, &mut [0; 4]).expect("said");
    thread::scope(|scope| {
        let client = scope.spawn(|| Options::new().handshake_timeout(LONG).connect(&path).map(drop));
        // Longer than the 5 s after which a client without a deadline gives up.
        thread::sleep(Duration::from_millis(6500));
        io::Write::write_all(&mut &starts_worker, b"!").expect("says");
        client.join().expect("ends").expect("connects");
    });
}

#[test]
fn a_full_backlog_is_not_called_a_live_server() {
    if !is_alone("a_full_backlog_is_not_called_a_live_server") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let server = Fork::run(|| {
        std::mem::forget(Options::new().backlog(2).bind(&path).expect("binds"));
        std::mem::forget(Fork::run(|| {
            report_own_pid(&theirs);
            thread::sleep(LONG * 2);
            0
        }));
        0
    });
    assert_eq!(server.wait(), 0);
    let mut keeper = Orphans(Vec::new());
    keeper.adopt(&ours);
    let bound: Vec<_> = (0..6).map(|_| bind_error(&path)).collect();
    if matches!(bound[0], BindError::InUse) {
        return log("the kernel does not report that the server has ended (before Linux 6.5)");
    }
    // Each attempt takes a place in the backlog.
    let (first, last) = bound.split_at(2);
    assert!(first.iter().all(|error| matches!(error, BindError::HeldByFork { .. })), "{bound:?}");
    assert!(matches!(last, [.., BindError::BacklogFull]), "{bound:?}");
    assert!(bound.iter().all(|error| !matches!(error, BindError::InUse)), "{bound:?}");
    let connected = SharedMemoryStream::connect_timeout(&path, Duration::from_millis(50)).map(drop);
    let connected = connected.expect_err("no process accepts");
    assert!(matches!(connected, ConnectError::BacklogFull), "{connected:?}");
    assert!(connected.is_timeout());
    assert_contains(&whole(&connected), &["does not accept", "ss -xlp"]);
}

/// The kernel takes paths of at most 107 bytes.
#[test]
fn a_socket_in_a_deep_directory_is_bound_and_reached() {
    if !is_alone("a_socket_in_a_deep_directory_is_bound_and_reached") {
        return;
    }
    let deep = Path::new(&argument()).join("a".repeat(60)).join("b".repeat(60));
    let elsewhere = Path::new(&argument()).join("elsewhere");
    fs::create_dir_all(&deep).expect("makes");
    fs::create_dir(&elsewhere).expect("makes");
    env::set_current_dir(&deep).expect("enters"); // This process has one test.
    let serve = |path: &Path| -> ServerHandle {
        let server = SharedMemoryServer::bind(path).expect("binds");
        server.inline(1, |_, _| Ok(())).spawn().expect("serves")
    };
    for given in [PathBuf::from("socket"), deep.join("socket")] {
        let server = serve(&given);
        SharedMemoryClient::connect("socket").expect("connects").call(1, b"").expect("answers");
        SharedMemoryClient::connect(deep.join("socket")).expect("connects").call(1, b"").expect("answers");
        assert!(matches!(bind_error(&given), BindError::InUse));
        drop(server);
        assert!(entries(&deep).is_empty(), "nothing is left");
    }
    let server = serve(Path::new("socket"));
    let client =
        SharedMemoryClient::builder("socket").reconnect(Reconnect::new()).connect().expect("connects");
    env::set_current_dir(&elsewhere).expect("enters");
    drop(server);
    let _again = serve(&deep.join("socket"));
    let answer = std::iter::repeat_with(|| client.call(1, b"").map(drop)).take(2).last().expect("two");
    assert!(answer.is_ok(), "{answer:?}");
    let missing = SharedMemoryStream::connect(deep.join("missing")).map(drop).expect_err("nothing there");
    assert_contains(&whole(&missing), &["missing", "start the server"]);
    let long = bind_error(&deep.join("n".repeat(100)));
    assert_contains(&whole(&long), &["100 bytes"]);
}

/// A program that closes descriptors that are not its own (`close_range`, as daemons do) while another thread accepts.
#[test]
fn accept_and_serve_end_when_their_descriptors_are_closed() {
    if !is_alone("accept_and_serve_end_when_their_descriptors_are_closed") {
        return;
    }
    let (report, reports) = std::sync::mpsc::channel();
    let listener = SharedMemoryListener::bind(Path::new(&argument()).join("one")).expect("binds");
    let server = SharedMemoryServer::bind(Path::new(&argument()).join("two")).expect("binds");
    let server = server.inline(1, |_, _| Ok(()));
    let serving = report.clone();
    thread::spawn(move || {
        let accepted = listener.accept().map(drop);
        assert!(matches!(accepted, Err(AcceptError::DescriptorsClosed)), "{accepted:?}");
        assert!(matches!(listener.try_accept(), Err(AcceptError::DescriptorsClosed)));
        assert!(listener.incoming().next().is_none());
        drop(listener);
        report.send(whole(&accepted.expect_err("ends"))).expect("received");
    });
    thread::spawn(move || {
        let served = server.serve().expect_err("ends");
        serving.send(whole(&served)).expect("received");
    });
    thread::sleep(Duration::from_millis(200)); // Mostly both wait by now. If not, they return the same.
    sys::close_all_but_standard();
    // The program's own event loops have the numbers by then.
    // SAFETY: the calls make descriptors of this process.
    let made: Vec<i32> = (0..24).map(|_| unsafe { libc::epoll_create1(0) }).collect();
    for _ in 0..2 {
        let text = reports.recv_timeout(LONG).expect("it ends");
        assert_contains(&text, &["closed", "descriptors"]);
    }
    for number in made {
        // SAFETY: asks only.
        assert!(unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0, "an event loop's descriptor was closed");
    }
}

#[test]
fn a_lock_file_that_cannot_be_taken_is_named_at_once() {
    if !is_alone("a_lock_file_that_cannot_be_taken_is_named_at_once") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    set_mode(folder.path(), 0o1777);
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at(".one.narrows-lock")).expect("makes");
    std::os::unix::fs::symlink("/nonexistent", at(".two.narrows-lock")).expect("links");
    fs::write(at(".three.narrows-lock"), "precious").expect("writes");
    drop(UnixListener::bind(at(".four.narrows-lock")).expect("binds"));
    // SAFETY: the path is a C string.
    unsafe {
        let path = std::ffi::CString::new(at(".five.narrows-lock").to_str().expect("plain")).expect("plain");
        assert_eq!(libc::mkfifo(path.as_ptr(), 0o600), 0);
    }
    for (name, reason) in [
        ("one", "directory"),
        ("two", "symbolic link"),
        ("three", "contents"),
        ("four", "special file"),
        ("five", "special file"),
    ] {
        drop(UnixListener::bind(at(name)).expect("binds"));
        let lock = format!(".{name}.narrows-lock");
        assert_contains(&whole(&bind_error(&at(name))), &[&lock, reason]);
        assert!(fs::symlink_metadata(at(&lock)).is_ok(), "{lock} was removed");
        assert!(at(name).exists(), "the stale socket was removed without the lock");
    }
    assert_eq!(fs::read_to_string(at(".three.narrows-lock")).expect("there"), "precious");
    // A file of the program under another hidden name is no lock file.
    fs::write(at(".six.lock"), "precious").expect("writes");
    drop(SharedMemoryListener::bind(at("six")).expect("binds"));
    assert_eq!(fs::read_to_string(at(".six.lock")).expect("there"), "precious");
    if sys::effective_user() != 0 {
        return log("skipped in part: only root can change users");
    }
    fs::write(at(".seven.narrows-lock"), "").expect("writes");
    set_mode(&at(".seven.narrows-lock"), 0o600);
    let other = Fork::run(|| {
        become_another_user();
        let text = whole(&bind_error(&at("seven")));
        assert_contains(&text, &[".seven.narrows-lock", "Permission denied", "user 0"]);
        0
    });
    assert_eq!(other.wait(), 0);
}

#[test]
fn a_listener_that_cannot_lock_its_path_removes_it_all_the_same() {
    if !is_alone("a_listener_that_cannot_lock_its_path_removes_it_all_the_same") {
        return;
    }
    let folder = PathBuf::from(argument());
    let listener = SharedMemoryListener::bind(folder.join("socket")).expect("binds");
    fs::create_dir(folder.join(".socket.narrows-lock")).expect("makes");
    drop(listener);
    assert!(!folder.join("socket").exists());
    let listener = SharedMemoryListener::bind(folder.join("other")).expect("binds");
    sys::limit_descriptors(64);
    let all: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    drop(listener);
    drop(all);
    assert!(!folder.join("other").exists());
}

#[test]
fn a_full_file_system_keeps_no_path_of_a_dropped_listener() {
    if !is_alone("a_full_file_system_keeps_no_path_of_a_dropped_listener") {
        return;
    }
    let folder = PathBuf::from(argument());
    let root = std::ffi::CString::new(argument()).expect("plain");
    // SAFETY: the calls take C strings, and change the mounts of this process alone.
    let mounted = unsafe {
        let (none, no_data) = (c"none".as_ptr(), std::ptr::null::<libc::c_void>());
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, no_data)
                == 0
            && libc::mount(none, root.as_ptr(), c"tmpfs".as_ptr(), 0, c"nr_inodes=8".as_ptr().cast()) == 0
    };
    if !mounted {
        return log("skipped: this process may not mount a file system");
    }
    let listener = SharedMemoryListener::bind(folder.join("socket")).expect("binds");
    drop(UnixListener::bind(folder.join("stale")).expect("binds"));
    let files = (0..).take_while(|index| File::create(folder.join(format!("file{index}"))).is_ok()).count();
    assert!(files < 8);
    drop(listener);
    assert!(!folder.join("socket").exists());
    File::create(folder.join("last")).expect("one place is free again");
    let text = whole(&bind_error(&folder.join("stale")));
    assert_contains(&text, &[".stale.narrows-lock", "No space left", "file system is full"]);
    assert!(folder.join("stale").exists(), "it was not removed without the lock");
}

#[test]
fn a_directory_that_may_not_be_listed_is_bound_in() {
    if !is_alone("a_directory_that_may_not_be_listed_is_bound_in") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    let (closed, shared) = (folder.path().join("closed"), folder.path().join("shared"));
    for (directory, mode) in [(&closed, 0o333), (&shared, 0o777)] {
        fs::create_dir(directory).expect("makes");
        set_mode(directory, mode);
    }
    set_mode(folder.path(), 0o755);
    let other = Fork::run(|| {
        become_another_user();
        let listener = SharedMemoryListener::bind(closed.join("socket")).expect("binds");
        assert!(listener.owns_path());
        drop(listener);
        assert!(!closed.join("socket").exists());
        // No user's group.
        let foreign = Options::new().socket_group(23_417).bind(shared.join("socket")).map(drop);
        assert_contains(&whole(&foreign.expect_err("no member")), &["be a member of the group"]);
        assert!(entries(&shared).is_empty());
        0
    });
    assert_eq!(other.wait(), 0);
    set_mode(&closed, 0o700);
}

/// Such clients all have process number 0 for the server, so that their bounds are shared.
#[test]
fn clients_outside_of_the_pid_namespace_get_an_error_that_names_their_shared_limit() {
    if !is_alone("clients_outside_of_the_pid_namespace_get_an_error_that_names_their_shared_limit") {
        return;
    }
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let server = Fork::run(|| {
        // SAFETY: takes a number; the next child is the first process of the namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return 2;
        }
        let server = Fork::run(|| {
            let server = SharedMemoryServer::bind(&path).expect("binds").max_connections_per_process(1);
            let _server = server.inline(1, |_, _| Ok(())).spawn().expect("serves");
            report_own_pid(&theirs);
            wait_for_byte(&theirs);
            0
        });
        server.wait()
    });
    drop(theirs);
    if io::Read::read_exact(&mut &ours, &mut [0; 4]).is_err() {
        assert_eq!(server.wait(), 2);
        return log("skipped: this process may not make a pid namespace");
    }
    let client = SharedMemoryClient::connect(&path).expect("connects");
    client.call(1, b"").expect("answers");
    let refused = SharedMemoryClient::connect(&path).map(drop).expect_err("the limit is one");
    assert_contains(&whole(&refused), &["pid namespace"]);
    drop(client);
    io::Write::write_all(&mut &ours, b"!").expect("says");
    assert_eq!(server.wait(), 0);
}
