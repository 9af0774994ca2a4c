//! Paths, their locks and modes, and the texts about them; listening sockets that are handed over.

#![allow(unsafe_code)]

use std::env;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Fork, Kept, LONG, Watchdog, alone, me, role, say, sys, told, verdict};
use narrows::{
    BindError, ConnectError, Options, Reconnect, ServerHandle, SharedMemoryClient, SharedMemoryListener,
    SharedMemoryServer, SharedMemoryStream,
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

/// What the kernel lists as bound: systemd-tmpfiles looks for absolute paths there.
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
    let folder = fs::canonicalize(told()).expect("there");
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
        assert!(!listener.owns_path(), "it can tell that its path is gone");
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
        let folder = Path::new(&told()).join(name);
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
        let mut stream = SharedMemoryStream::connect(told()).expect("connects");
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
    let path = Path::new(&told()).join("socket");
    let group = if sys::effective_user() == 0 { 23_416 } else { fs::metadata(told()).expect("there").gid() };
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

/// The kernel names the process that called `listen` last: clients must be told of the death of their server, not of the
/// process that bound the path.
#[test]
fn who_takes_over_a_listening_socket_is_the_server() {
    const NAME: &str = "who_takes_over_a_listening_socket_is_the_server";
    if role().is_some() {
        let fd = told().parse().expect("a number");
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
fn connect_waits_for_a_server_to_appear_but_not_for_ever() {
    let _watchdog = Watchdog::new("connect_waits_for_a_server_to_appear_but_not_for_ever");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("later").join("socket");
    let options = Options::new().wait_for_server(true);
    let missing = options.connect_timeout(&path, Duration::from_millis(50)).map(drop);
    assert!(missing.expect_err("no server").to_string().contains("start the server"));
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

/// A fork that keeps a killed server's socket: nobody answers, and a new server cannot bind.
#[test]
fn a_fork_that_keeps_the_socket_of_a_killed_server_is_named() {
    if !alone("a_fork_that_keeps_the_socket_of_a_killed_server_is_named") {
        return;
    }
    let _watchdog = Watchdog::new("a_fork_that_keeps_the_socket_of_a_killed_server_is_named");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (keeper_says, mut tell) = UnixStream::pair().expect("pair");
    let server = Fork::run(|| {
        let _listener = SharedMemoryListener::bind(&path).expect("binds");
        let keeper = Fork::run(|| {
            thread::sleep(LONG * 2);
            0
        });
        io::Write::write_all(&mut tell, &keeper.pid().to_ne_bytes()).expect("says");
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
        say("the kernel does not tell that the server has ended (before Linux 6.5)");
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
fn what_forbids_a_path_is_named() {
    if !alone("what_forbids_a_path_is_named") {
        return;
    }
    let _watchdog = Watchdog::new("what_forbids_a_path_is_named");
    if sys::effective_user() != 0 {
        return say("skipped: only root can change users");
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
    drop(std::os::unix::net::UnixListener::bind(sticky.join("stale")).expect("binds"));
    open_to_all(&sticky.join("stale"), 0o666);
    let other = Fork::run(|| {
        // SAFETY: the calls take numbers, and change this fork alone.
        unsafe {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!((libc::setgid(23_416), libc::setuid(23_416)), (0, 0));
        }
        let connecting =
            |path: &Path| SharedMemoryStream::connect(path).map(drop).expect_err("closed").to_string();
        let binding =
            |path: &Path| SharedMemoryListener::bind(path).map(drop).expect_err("closed").to_string();
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
