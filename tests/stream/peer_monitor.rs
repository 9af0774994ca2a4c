//! The peer monitor reports each death in time, whatever filters, schedulers, plugins and programs do around it.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::{
    Fork, Kept, LONG, Watchdog, argument, echo, eventually, log, me, role, round_trip, sys, verdict, whole,
};
use narrows::{
    ConnectError, ConnectionError, Options, RecvTimeoutError, RejectCode, SharedMemoryListener,
    SharedMemoryStream, WaitStrategy,
};

/// `pidfd_open` and `process_mrelease`: calls that filters do not know.
const UNKNOWN_TO_FILTERS: [libc::c_long; 2] = [libc::SYS_pidfd_open, libc::SYS_process_mrelease];

/// Kills the process, or the thread, for these calls, in all threads from now on.
fn kill_for(calls: &[libc::c_long], action: u32) {
    kill_when(calls, None, action);
}

/// As [`kill_for`], where the argument of that number has that value.
fn kill_when(calls: &[libc::c_long], argument: Option<(u32, u32)>, action: u32) {
    let step = |code: u32, skip: u8, k: u32| libc::sock_filter {
        code: code.try_into().expect("16 bits"),
        jt: 0,
        jf: skip,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let mut program = Vec::new();
    for call in calls {
        program.push(step(load, 0, 0));
        let rest = if argument.is_some() { 3 } else { 1 };
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ, rest, (*call).try_into().expect("small")));
        if let Some((number, value)) = argument {
            program.push(step(load, 0, 16 + 8 * number));
            program.push(step(libc::BPF_JMP | libc::BPF_JEQ, 1, value));
        }
        program.push(step(libc::BPF_RET, 0, action));
    }
    program.push(step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW));
    let len = program.len().try_into().expect("few");
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the calls read the program, which outlives them, and change only this process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, all) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, all, &raw const program), 0);
    }
}

/// Runs the test again in a process of its own, which must succeed.
fn alone(test: &str, role: &str) {
    let folder = tempfile::tempdir().expect("directory");
    let open_to_all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(folder.path(), open_to_all).expect("changes the mode");
    let status = Kept::start(&mut me(test, role, folder.path().to_str().expect("plain"))).wait();
    assert!(status.success(), "{role}: {status}");
}

/// Returns the path of the socket in the directory that [`alone`] has made.
fn socket_path() -> PathBuf {
    Path::new(&argument()).join("socket")
}

#[test]
fn a_filter_that_kills_for_unknown_calls_hides_no_death() {
    const NAME: &str = "a_filter_that_kills_for_unknown_calls_hides_no_death";
    let actions = [("process", libc::SECCOMP_RET_KILL_PROCESS), ("thread", libc::SECCOMP_RET_KILL_THREAD)];
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            actions.iter().for_each(|(role, _)| alone(NAME, role));
        }
        Some("closes") => drop(SharedMemoryStream::connect(argument()).expect("connects")),
        Some("dies") => {
            let mut stream = SharedMemoryStream::connect(argument()).expect("connects");
            stream.send(b"x").expect("sends");
            sleep(LONG * 2);
        }
        Some("child") => echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(action) => {
            kill_for(&UNKNOWN_TO_FILTERS, actions.iter().find(|it| it.0 == action).expect("known").1);
            let path = socket_path();
            let listener = SharedMemoryListener::bind(&path).expect("binds");
            let path = path.to_str().expect("plain");
            for _ in 0..3 {
                let _client = Kept::start(&mut me(NAME, "closes", path));
                let mut stream = listener.accept_timeout(LONG).expect("accepts");
                assert_eq!(
                    verdict(&mut stream),
                    Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
                );
                let mut client = Kept::start(&mut me(NAME, "dies", path));
                let mut stream = listener.accept_timeout(LONG).expect("accepts");
                assert_eq!(verdict(&mut stream), Ok(1));
                client.0.kill().expect("kills");
                assert_eq!(
                    verdict(&mut stream),
                    Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
                );
                let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
                let mut child = Kept(child);
                round_trip(&mut stream, 1);
                child.0.kill().expect("kills");
                let end = verdict(&mut stream).expect_err("it has ended");
                assert!(
                    matches!(
                        end,
                        RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)
                            | RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)
                    ),
                    "{end:?}"
                );
            }
        }
    }
}

/// Hangs up while its own fork holds its memory locked. Nothing that waits for that lock may delay the reports about other
/// peers.
fn die_with_locked_memory(path: &str) {
    let mut stream = SharedMemoryStream::connect(path).expect("connects");
    stream.send(b"x").expect("sends");
    let socket = fs::read_dir("/proc/self/fd").expect("lists").flatten().find_map(|entry| {
        let is_socket = fs::metadata(entry.path()).is_ok_and(|it| it.file_type().is_socket());
        is_socket.then(|| entry.file_name().to_str().and_then(|name| name.parse().ok())).flatten()
    });
    let socket: i32 = socket.expect("the socket of the connection");
    let (mut start, begin) = UnixStream::pair().expect("pair");
    let whole = std::process::id().try_into().expect("small");
    let _helper = Fork::run(|| {
        std::io::Read::read_exact(&mut &begin, &mut [0; 1]).expect("the start signal");
        sleep(Duration::from_millis(30));
        sys::kill(whole, libc::SIGKILL);
        // SAFETY: takes numbers; the socket is a copy of the parent's.
        unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
        0
    });
    let len = 48_usize << 30;
    // SAFETY: a new mapping, of which one byte is read in each 2 MiB, so that there are many page tables to copy.
    unsafe {
        let (protection, flags) =
            (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        let map = libc::mmap(std::ptr::null_mut(), len, protection | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        libc::madvise(map, len, libc::MADV_NOHUGEPAGE);
        map.cast::<u8>().write(1);
        (0..len).step_by(2 << 20).for_each(|at| assert!(map.cast::<u8>().add(at).read_volatile() < 2));
    }
    start.write_all(b"x").expect("the child reads");
    let _copy = Fork::run(|| 0); // Killed in the middle of it.
    sleep(LONG);
}

#[test]
fn a_death_is_reported_while_another_peer_dies_with_its_memory_locked() {
    const NAME: &str = "a_death_is_reported_while_another_peer_dies_with_its_memory_locked";
    match role().as_deref() {
        Some("locked") => return die_with_locked_memory(&argument()),
        Some(_) => {
            let mut stream = SharedMemoryStream::connect(argument()).expect("connects");
            stream.send(b"x").expect("sends");
            return sleep(LONG);
        }
        None => {}
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let path = path.to_str().expect("plain");
    let mut other = Kept::start(&mut me(NAME, "other", path));
    let mut to_other = listener.accept_timeout(LONG).expect("accepts");
    assert_eq!(verdict(&mut to_other), Ok(1));
    let mut locked = Kept::start(&mut me(NAME, "locked", path));
    let mut to_locked = listener.accept_timeout(LONG).expect("accepts");
    assert_eq!(verdict(&mut to_locked), Ok(1));
    // Its socket hangs up long before its process can end.
    thread::scope(|scope| {
        let first = scope.spawn(|| verdict(&mut to_locked));
        sleep(Duration::from_millis(500));
        let began = Instant::now();
        other.0.kill().expect("kills");
        assert_eq!(verdict(&mut to_other), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
        let reported = began.elapsed();
        let end = first.join().expect("ends");
        log(&format!(
            "the death of the other peer was reported after {reported:.1?}; the locked one: {end:?}"
        ));
        assert!(end.is_err());
    });
    let _ = locked.wait();
}

#[test]
fn a_monitor_whose_threads_are_killed_ends_its_connections() {
    const NAME: &str = "a_monitor_whose_threads_are_killed_ends_its_connections";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "filtered");
    }
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pairs");
    a.send(b"x").expect("sends");
    assert_eq!(verdict(&mut b), Ok(1));
    // Each thread of the monitor is killed in its first wait; nothing of it is unwound.
    kill_for(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait], libc::SECCOMP_RET_KILL_THREAD);
    assert_eq!(verdict(&mut b), Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)));
}

#[test]
fn a_program_that_closes_all_descriptors_gets_an_error_and_keeps_its_files() {
    const NAME: &str = "a_program_that_closes_all_descriptors_gets_an_error_and_keeps_its_files";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            alone(NAME, "blocked");
            alone(NAME, "polls");
        }
        Some("child") => echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(how) => {
            let listener = SharedMemoryListener::bind(socket_path()).expect("binds");
            let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
            let mut child = Kept(child);
            round_trip(&mut stream, 1);
            sys::close_all_but_standard();
            let files: Vec<_> = (0..64).map(|_| File::open("/dev/null").expect("opens")).collect();
            child.0.kill().expect("kills");
            if how == "blocked" {
                let end = verdict(&mut stream).expect_err("it has ended");
                assert!(
                    matches!(end, RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)),
                    "{end:?}"
                );
            } else {
                assert!(eventually(|| stream
                    .try_recv(&mut [0; 8])
                    .is_err_and(|error| matches!(error, narrows::TryRecvError::ConnectionLost(_)))));
            }
            let (mut a, mut b) =
                SharedMemoryStream::pair().expect("a new connection has a monitor of its own");
            a.send(b"x").expect("sends");
            assert_eq!(verdict(&mut b), Ok(1));
            drop((stream, listener, a, b));
            assert!(files.iter().all(|file| file.metadata().is_ok()), "a file of the program was closed");
        }
    }
}

/// An event loop of the program makes its first descriptors right after the program has closed all of them, so that they get the
/// numbers of the monitor's descriptors.
#[test]
fn an_event_loop_that_got_the_numbers_of_the_monitor_is_left_alone() {
    const NAME: &str = "an_event_loop_that_got_the_numbers_of_the_monitor_is_left_alone";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            return alone(NAME, "loop");
        }
        Some("child") => return echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(_) => {}
    }
    narrows::start_peer_monitor().expect("starts");
    let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
    let mut child = Kept(child);
    round_trip(&mut stream, 1);
    sys::close_all_but_standard();
    const TOKEN: u64 = 0x5eed;
    // Makes descriptors as long as each might get a number of the monitor: first an epoll set, then the eventfd that wakes it.
    // SAFETY: the calls make descriptors of this process, and read a live local.
    let (set, wake) = unsafe {
        let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let wake = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: TOKEN };
        assert_eq!(libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, wake, &mut event), 0);
        (set, wake)
    };
    let _others: Vec<_> = (0..32).map(|_| File::open("/dev/null").expect("opens")).collect();
    child.0.kill().expect("kills");
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)));
    drop(stream);
    // SAFETY: writes 8 bytes of a local, and fills one event.
    unsafe {
        let one = 1_u64;
        assert_eq!(libc::write(wake, (&raw const one).cast(), 8), 8);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        assert_eq!(
            libc::epoll_wait(set, &mut event, 1, 10_000),
            1,
            "the loop's own registration was changed"
        );
        assert_eq!({ event.u64 }, TOKEN);
    }
}

/// Neither the drop of a listener nor its closer touches the descriptors that have its numbers by then.
#[test]
fn a_listener_whose_descriptors_were_closed_leaves_the_files_of_an_event_loop_alone() {
    const NAME: &str = "a_listener_whose_descriptors_were_closed_leaves_the_files_of_an_event_loop_alone";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "loop");
    }
    let listener = SharedMemoryListener::bind(socket_path()).expect("binds");
    let closer = listener.closer();
    sys::close_all_but_standard();
    // SAFETY: the calls make descriptors of this process.
    let made: Vec<i32> = (0..24)
        .map(|index| unsafe {
            match index % 3 {
                0 => libc::eventfd(0, libc::EFD_NONBLOCK),
                1 => libc::epoll_create1(0),
                _ => libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK),
            }
        })
        .collect();
    closer.close();
    drop(listener);
    for (index, number) in made.iter().enumerate() {
        // SAFETY: asks, and fills 8 bytes of a local.
        unsafe {
            assert!(
                libc::fcntl(*number, libc::F_GETFD) >= 0,
                "descriptor {number} of the program was closed"
            );
            let mut count = 0_u64;
            let read = libc::read(*number, (&raw mut count).cast(), 8);
            assert!(index % 3 != 0 || read == -1, "eventfd {number} of the program was signalled");
        }
    }
}

/// The descriptors of this process, but not the one that lists them.
fn numbers() -> Vec<i32> {
    let listed = fs::read_dir("/proc/self/fd").expect("lists").flatten();
    let numbers = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| Path::new(&format!("/proc/self/fd/{number}")).exists()).collect()
}

/// The monitor keeps its own descriptors. Only those of one connection are gone, so that its peer can no longer end it.
#[test]
fn a_connection_whose_descriptors_alone_are_closed_ends_and_the_others_go_on() {
    const NAME: &str = "a_connection_whose_descriptors_alone_are_closed_ends_and_the_others_go_on";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            alone(NAME, "blocked");
            alone(NAME, "spins");
            return alone(NAME, "polls");
        }
        Some("child") => return echo(SharedMemoryStream::from_parent().expect("handed over")),
        Some(_) => {}
    }
    let spawn = |options: &Options| options.spawn(me(NAME, "child", "")).expect("spawns");
    let (other, mut to_other) = spawn(&Options::new());
    let mut other = Kept(other);
    round_trip(&mut to_other, 1);
    let before = numbers();
    let spins = role().as_deref() == Some("spins");
    let (child, mut stream) =
        spawn(&Options::new().wait(if spins { WaitStrategy::Spin } else { WaitStrategy::Adaptive }));
    let mut child = Kept(child);
    round_trip(&mut stream, 2);
    let pid = child.pid().try_into().expect("small");
    sys::kill(pid, libc::SIGSTOP); // The peer must not notice that its connection was closed and send a goodbye.
    for number in numbers().iter().filter(|number| !before.contains(number)) {
        // SAFETY: closes descriptors that the program has no right to close; the library must tolerate that.
        unsafe { libc::close(*number) };
    }
    let files: Vec<_> = (0..8).map(|_| File::open("/dev/null").expect("opens")).collect();
    child.0.kill().expect("kills");
    match role().as_deref() {
        Some("polls") => {
            let poll = Duration::from_millis(20);
            let ended = || {
                let result = stream.recv_timeout(&mut [0; 8], poll);
                result.is_err_and(|error| error != RecvTimeoutError::Timeout)
            };
            assert!(eventually(ended));
        }
        _ => assert_eq!(
            verdict(&mut stream),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
        ),
    }
    round_trip(&mut to_other, 3);
    drop(stream);
    assert!(files.iter().all(|file| file.metadata().is_ok()), "a file of the program was closed");
    other.0.kill().expect("kills");
    let end = verdict(&mut to_other).expect_err("it has ended");
    assert!(matches!(end, RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)), "{end:?}");
}

/// The thread of the monitor is killed in the middle of its work for one connection, and the next thread completes that work.
#[test]
fn an_end_that_killed_the_monitor_is_not_forgotten() {
    const NAME: &str = "an_end_that_killed_the_monitor_is_not_forgotten";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            return alone(NAME, "filtered");
        }
        Some("child") => {
            let mut stream = SharedMemoryStream::from_parent().expect("handed over");
            stream.send(b"before").expect("sends");
            let mut byte = [0];
            let _go = std::io::Read::read(&mut std::io::stdin(), &mut byte);
            panic!("{}", Command::new("sleep").arg("60").exec());
        }
        Some(_) => {}
    }
    let mut command = me(NAME, "child", "");
    command.stdin(std::process::Stdio::piped());
    let (child, mut stream) = SharedMemoryStream::spawn(command).expect("spawns");
    let mut child = Kept(child);
    assert_eq!(verdict(&mut stream), Ok(6));
    // How the thread asks whether the process has ended.
    kill_for(&[libc::SYS_ppoll], libc::SECCOMP_RET_KILL_THREAD);
    child.0.stdin.take().expect("piped").write_all(b"x").expect("the child reads");
    assert_eq!(verdict(&mut stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)));
}

/// Nothing connects with a monitor that cannot live, however often it is tried, and nothing is left behind.
#[test]
fn a_filter_that_kills_the_monitor_as_it_starts_makes_connecting_an_error() {
    const NAME: &str = "a_filter_that_kills_the_monitor_as_it_starts_makes_connecting_an_error";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "filtered");
    }
    kill_for(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait], libc::SECCOMP_RET_KILL_THREAD);
    let refused = || whole(&SharedMemoryStream::pair().map(drop).expect_err("its end would not be noticed"));
    let output = refused();
    assert!(output.contains("epoll_wait") && output.contains("seccomp"), "{output}");
    (0..8).for_each(|_| drop(refused()));
    let before = numbers().len();
    (0..50).for_each(|_| drop(refused()));
    assert_eq!(numbers().len(), before, "refusals leak descriptors");
    let bound = SharedMemoryListener::bind(socket_path()).map(drop);
    let bound = whole(&bound.expect_err("the ends of its clients would not be noticed"));
    assert!(bound.contains("seccomp"), "{bound}");
}

#[test]
fn a_caller_with_short_timeouts_learns_of_a_lost_monitor_thread() {
    const NAME: &str = "a_caller_with_short_timeouts_learns_of_a_lost_monitor_thread";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        alone(NAME, "short timeouts");
        return alone(NAME, "spins");
    }
    let spins = role().as_deref() == Some("spins");
    let options = Options::new().wait(if spins { WaitStrategy::Spin } else { WaitStrategy::Adaptive });
    let (_a, mut b) = options.pair().expect("pairs");
    kill_for(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait], libc::SECCOMP_RET_KILL_THREAD);
    if spins {
        return assert_eq!(
            verdict(&mut b),
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
        );
    }
    let ended = || {
        b.recv_timeout(&mut [0; 8], Duration::from_millis(20))
            == Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
    };
    assert!(eventually(ended));
}

#[test]
fn a_lack_of_threads_is_an_error_of_the_call_that_first_needs_the_monitor() {
    const NAME: &str = "a_lack_of_threads_is_an_error_of_the_call_that_first_needs_the_monitor";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            if sys::effective_user() != 0 {
                return log("skipped: only root can become a user with no other threads");
            }
            alone(NAME, "early");
            alone(NAME, "late");
            alone(NAME, "lost");
            alone(NAME, "calls");
        }
        Some("rejected") => {
            let mut byte = [0];
            std::io::Read::read_exact(&mut std::io::stdin(), &mut byte).expect("the start signal");
            let error = SharedMemoryStream::connect(argument())
                .map(drop)
                .expect_err("no monitor would watch the peer");
            let is_unavailable =
                matches!(error, ConnectError::Rejected { code: RejectCode::Unavailable, .. });
            assert!(is_unavailable && whole(&error).contains("thread"), "{error}");
        }
        Some("client") => {
            let mut stream = SharedMemoryStream::connect(argument()).expect("connects");
            stream.send(b"x").expect("sends");
        }
        Some(when) => {
            become_user_without_threads();
            let path = socket_path();
            if when == "early" {
                limit_threads();
                let bound = whole(&SharedMemoryListener::bind(&path).map(drop).expect_err("no thread"));
                assert!(bound.contains("RLIMIT_NPROC"), "{bound}");
                let paired: ConnectError = SharedMemoryStream::pair().map(drop).expect_err("no thread");
                assert!(whole(&paired).contains("RLIMIT_NPROC"), "{paired}");
                assert_ne!(std::io::Error::from(paired).kind(), std::io::ErrorKind::WouldBlock);
                assert!(!path.exists(), "nothing is left behind");
                return;
            }
            if when == "calls" {
                return lack_of_threads_for_calls(&path);
            }
            let listener = SharedMemoryListener::bind(&path).expect("binds");
            if when == "lost" {
                return accept_without_a_thread(
                    &listener,
                    &mut me(NAME, "rejected", path.to_str().expect("plain")),
                );
            }
            let _client = Kept::start(&mut me(NAME, "client", path.to_str().expect("plain")));
            sleep(Duration::from_millis(100));
            limit_threads();
            let mut stream = listener.accept_timeout(LONG).expect("the monitor runs since the bind");
            assert_eq!(verdict(&mut stream), Ok(1));
            assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected))
            );
        }
    }
}

/// The monitor runs, but the threads of the server and a child cannot be started. Each error names the limit, and none asks for a
/// retry.
fn lack_of_threads_for_calls(path: &Path) {
    narrows::start_peer_monitor().expect("starts");
    let pooled = narrows::SharedMemoryServer::bind(path).expect("binds").method(1, |_, _| Ok(()));
    let plain = narrows::SharedMemoryServer::bind(path.with_extension("plain")).expect("binds");
    limit_threads();
    let errors: [std::io::Error; 3] = [
        pooled.spawn().map(drop).expect_err("no worker").into(),
        plain.spawn().map(drop).expect_err("no accepting thread").into(),
        SharedMemoryStream::spawn(Command::new("true")).map(drop).expect_err("no child").into(),
    ];
    for error in errors {
        let text = whole(&error);
        assert!(text.contains("RLIMIT_NPROC") && text.contains("pids.max"), "{text}");
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory, "{text}");
    }
}

/// The thread of the monitor is killed after the bind, and no other can be started.
fn accept_without_a_thread(listener: &SharedMemoryListener, client: &mut Command) {
    let mut client = Kept::start(client.stdin(std::process::Stdio::piped()));
    // The monitor fetches 64 events at a time, a listener some more.
    kill_when(&[libc::SYS_epoll_wait, libc::SYS_epoll_pwait], Some((2, 64)), libc::SECCOMP_RET_KILL_THREAD);
    // The thread wakes up for a connection, and may be dead before the second end is watched.
    let _either_way = SharedMemoryStream::pair().map(drop);
    assert!(eventually(|| !crate::support::runs("narrows-watch")));
    limit_threads();
    client.0.stdin.take().expect("piped").write_all(b"x").expect("the child reads");
    let error = whole(&listener.accept_timeout(LONG).map(drop).expect_err("no thread"));
    assert!(error.contains("RLIMIT_NPROC"), "{error}");
    assert!(client.wait().success());
    assert_eq!(listener.failed_handshakes(), 1);
}

fn become_user_without_threads() {
    // SAFETY: the calls take numbers, and change this process alone.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(23_416), 0);
        assert_eq!(libc::setuid(23_416), 0);
    }
}

fn limit_threads() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads a live local.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &none) }, 0);
}

/// Policy, nice value and CPUs of a thread.
fn schedule(task: &Path) -> (String, String, String) {
    let stat = fs::read_to_string(task.join("stat")).expect("readable");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let status = fs::read_to_string(task.join("status")).expect("readable");
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("listed");
    (fields[38].into(), fields[16].into(), cpus.trim().into())
}

#[test]
fn a_monitor_started_by_a_pinned_idle_thread_is_scheduled_as_the_main_thread() {
    const NAME: &str = "a_monitor_started_by_a_pinned_idle_thread_is_scheduled_as_the_main_thread";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        if sys::effective_user() != 0 {
            return log("skipped: only root can take a thread out of SCHED_IDLE");
        }
        return alone(NAME, "pinned");
    }
    let main = schedule(Path::new("/proc/self"));
    let first = main.2.split(['-', ',']).next().expect("one").parse().expect("a number");
    let pinned = move || {
        // SAFETY: changes this thread alone; the set and the parameter are live locals.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(first, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
            assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, 19), 0);
            let parameter = libc::sched_param { sched_priority: 0 };
            assert_eq!(libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameter), 0);
        }
        SharedMemoryStream::pair().map(drop).expect("pairs");
    };
    thread::spawn(pinned).join().expect("ends");
    let monitor = fs::read_dir("/proc/self/task").expect("lists").flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "narrows-watch")
    });
    assert_eq!(schedule(&monitor.expect("runs").path()), main);
}

#[test]
fn a_plugin_may_be_unloaded_right_after_its_connection() {
    const NAME: &str = "a_plugin_may_be_unloaded_right_after_its_connection";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        let build = Command::new(env!("CARGO"))
            .args(["build", "-p", "narrows-tests", "--example", "plugin"])
            .current_dir(crate::support::ROOT)
            .output();
        assert!(build.expect("runs").status.success());
        (0..20).for_each(|_| alone(NAME, "host"));
        return;
    }
    let binary = std::env::current_exe().expect("a path");
    let target = binary.ancestors().nth(3).expect("the folder of all that is built");
    let built = target.join("debug/examples/libplugin.so");
    let path = std::ffi::CString::new(built.to_str().expect("plain")).expect("no zero");
    // SAFETY: the plugin's one function has this type, and is called before it is unloaded.
    unsafe {
        let plugin = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!plugin.is_null(), "{}", built.display());
        let run = libc::dlsym(plugin, c"narrows_plugin_run".as_ptr());
        assert!(!run.is_null());
        let run: extern "C" fn() -> i32 = std::mem::transmute(run);
        assert_eq!(thread::spawn(move || run()).join().expect("ends"), 0);
        assert_eq!(libc::dlclose(plugin), 0);
    }
    sleep(Duration::from_millis(200)); // A thread that lost its code would crash in the meantime.
}

/// The figures are printed, not asserted, since a busy machine may take any time.
#[test]
fn deaths_are_reported_as_soon_as_the_kernel_reports_the_exit() {
    const NAME: &str = "deaths_are_reported_as_soon_as_the_kernel_reports_the_exit";
    let around = match role() {
        Some(role) if role == "child" => {
            return echo(SharedMemoryStream::from_parent().expect("handed over"));
        }
        Some(around) => around,
        None => {
            let _watchdog = Watchdog::new(NAME);
            let around =
                ["nothing", "a filter that kills processes", "a filter that kills threads", "a new monitor"];
            return around.iter().for_each(|around| alone(NAME, around));
        }
    };
    match around.as_str() {
        "a filter that kills processes" => kill_for(&UNKNOWN_TO_FILTERS, libc::SECCOMP_RET_KILL_PROCESS),
        "a filter that kills threads" => kill_for(&UNKNOWN_TO_FILTERS, libc::SECCOMP_RET_KILL_THREAD),
        "a new monitor" => {
            let (_a, mut b) = SharedMemoryStream::pair().expect("pairs");
            sys::close_all_but_standard();
            assert_eq!(verdict(&mut b), Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)));
        }
        _ => {}
    }
    let mut took: Vec<Duration> = (0..30)
        .map(|index| {
            let (child, mut stream) = SharedMemoryStream::spawn(me(NAME, "child", "")).expect("spawns");
            let mut child = Kept(child);
            round_trip(&mut stream, index);
            child.0.kill().expect("kills");
            child.0.wait().expect("reaps"); // The kernel has reported the exit by now.
            let began = Instant::now();
            assert_eq!(
                verdict(&mut stream),
                Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied))
            );
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    log(&format!("after the exit, with {around} around: median {:.1?}, at most {:.1?}", took[15], took[29]));
}

#[test]
fn the_monitor_can_be_started_before_any_connection() {
    const NAME: &str = "the_monitor_can_be_started_before_any_connection";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "early");
    }
    narrows::start_peer_monitor().expect("starts");
    narrows::start_peer_monitor().expect("runs");
    let threads = || fs::read_dir("/proc/self/task").expect("lists").count();
    let before = threads();
    drop(SharedMemoryStream::pair().expect("pairs"));
    assert_eq!(threads(), before, "the connection has started no other");
}

/// An emulator of system calls accepts `MADV_WIPEONFORK` and does nothing.
#[test]
fn a_fork_under_an_emulator_is_another_process() {
    const NAME: &str = "a_fork_under_an_emulator_is_another_process";
    if role().is_some() {
        let (mut a, mut b) = SharedMemoryStream::pair().expect("pairs");
        let fork = Fork::run(|| {
            i32::from(
                a.send(b"from the fork") != Err(narrows::SendError::ConnectionLost(ConnectionError::Forked)),
            )
        });
        assert_eq!(fork.wait(), 0);
        a.send(b"parent").expect("its connection is untouched");
        assert_eq!(verdict(&mut b), Ok(6));
        return assert!(b.recv_timeout(&mut [0; 64], Duration::from_millis(50)).is_err());
    }
    let _watchdog = Watchdog::new(NAME);
    alone(NAME, "native");
    let emulator = format!("qemu-{}", std::env::consts::ARCH);
    let names = [format!("{emulator}-static"), emulator];
    let Some(emulator) = names.iter().find(|name| Command::new(name).arg("--version").output().is_ok())
    else {
        return log("skipped: no qemu-user");
    };
    let native = me(NAME, "emulated", "");
    let mut emulated = Command::new(emulator);
    emulated.arg(native.get_program()).args(native.get_args()).stdout(std::process::Stdio::null());
    for (name, value) in native.get_envs() {
        emulated.env(name, value.expect("set"));
    }
    assert!(Kept::start(&mut emulated).wait().success());
}

/// Ends the calling thread as the kernel does for a filter: the thread is not unwound, and no other thread ends with it.
fn end_this_thread() -> ! {
    // SAFETY: takes a number. What the thread owns is left to the process, which is about to end.
    unsafe { libc::syscall(libc::SYS_exit, 3) };
    unreachable!("exit does not return")
}

/// Has this process killed with the thread that forked it: if the test fails, no other signal would end it.
fn end_with_the_parent() {
    // SAFETY: takes numbers, and changes this process alone.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }, 0);
}

/// Runs the test against a process that connects, hands its stream to another thread, and ends its main thread.
fn without_a_main_thread(test: &str, last: fn(SharedMemoryStream), check: fn(&mut SharedMemoryStream)) {
    if !crate::support::alone(test) {
        return;
    }
    let _watchdog = Watchdog::new(test);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let fork = Fork::run(|| {
        end_with_the_parent();
        let stream = SharedMemoryStream::connect(&path).expect("connects");
        thread::spawn(move || {
            last(stream);
            end_this_thread()
        });
        end_this_thread()
    });
    let mut stream = listener.accept_timeout(LONG).expect("accepts");
    check(&mut stream);
    drop(stream);
    assert_eq!(fork.wait(), 3, "the status is that of its main thread");
}

/// The thread of the monitor is not one of the program's: it does not keep a process alive whose own threads have ended.
#[test]
fn a_process_ends_with_the_last_of_its_own_threads() {
    let send_and_end = |mut stream: SharedMemoryStream| {
        stream.send(b"x").expect("sends");
        sleep(Duration::from_millis(100));
        std::mem::forget(stream); // The thread ends as a filter would end it.
    };
    without_a_main_thread("a_process_ends_with_the_last_of_its_own_threads", send_and_end, |stream| {
        assert_eq!(verdict(stream), Ok(1));
        assert_eq!(verdict(stream), Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)));
    });
}

#[test]
fn a_process_goes_on_without_its_main_thread_while_one_of_its_own_threads_runs() {
    const NAME: &str = "a_process_goes_on_without_its_main_thread_while_one_of_its_own_threads_runs";
    without_a_main_thread(NAME, echo, |stream| {
        round_trip(stream, 1);
        sleep(Duration::from_secs(7)); // The monitor looks every three seconds.
        round_trip(stream, 2);
    });
}

#[test]
fn a_monitor_started_by_a_thread_with_a_long_timer_slack_wakes_up_in_time() {
    const NAME: &str = "a_monitor_started_by_a_thread_with_a_long_timer_slack_wakes_up_in_time";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "slack");
    }
    // SAFETY: takes numbers, and changes this thread alone.
    if unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) } != 0 {
        return log("skipped: a filter is in force, which might kill for the change");
    }
    thread::spawn(|| {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 60_000_000_000_u64) }, 0);
        narrows::start_peer_monitor().expect("starts");
    })
    .join()
    .expect("ends");
    let monitor = fs::read_dir("/proc/self/task").expect("lists").flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "narrows-watch")
    });
    let number = monitor.expect("runs").file_name();
    match fs::read_to_string(Path::new("/proc").join(number).join("timerslack_ns")) {
        Ok(slack) => assert_eq!(slack.trim(), "50000"),
        Err(error) => log(&format!("skipped: only root may ask for the slack of another thread ({error})")),
    }
}

/// Only connections by a path need `statx`, and the filter of a process that hands connections to its children may not allow it.
#[test]
fn the_monitor_starts_under_a_filter_that_kills_for_statx() {
    const NAME: &str = "the_monitor_starts_under_a_filter_that_kills_for_statx";
    if role().is_none() {
        let _watchdog = Watchdog::new(NAME);
        return alone(NAME, "filtered");
    }
    kill_for(&[libc::SYS_statx], libc::SECCOMP_RET_KILL_PROCESS);
    let listener = SharedMemoryListener::bind(socket_path()).expect("binds");
    thread::scope(|scope| {
        scope.spawn(|| SharedMemoryStream::connect(listener.local_path()).map(drop).expect("connects"));
        drop(listener.accept_timeout(LONG).expect("accepts"));
    });
    drop(SharedMemoryStream::pair().expect("pairs"));
}
