//! Which peers are trusted, and which process is the peer: users of namespaces, users that a preloaded library invents, and
//! children behind shells and launchers.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::support::*;
use narrows::internal::handshake::ClientHandshake;
use narrows::{
    ConnectError, ConnectionError, Options, RecvTimeoutError, RejectCode, SharedMemoryStream, SpawnError,
};

const VARIABLE: &str = "NARROWS_PARENT";
const LONG: Duration = Duration::from_secs(30);
/// The number by which the kernel shows users that a namespace does not map.
const OVERFLOW: u32 = 65534;
/// A user other than root and the overflow user.
const OTHER: u32 = 2001;

fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("set");
}

/// A directory that every user may use, with a copy of this test that every user may run.
struct Shared {
    dir: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        open_to_all(dir.path());
        let copy = dir.path().join("test");
        fs::copy(env::current_exe().expect("our path"), &copy).expect("copies");
        open_to_all(&copy);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// This test in another role, in the copy.
    fn run(&self, test: &str, role: &str) -> Command {
        let template = rerun(test, role);
        let mut command = Command::new(self.path("test"));
        command.args(template.get_args());
        command.envs(template.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.current_dir("/");
        command
    }
}

/// Has the command run in a user namespace of its own, whose map of users this is.
fn in_a_namespace(command: &mut Command, uid_map: &str) {
    let (file, map) = (CString::from(c"/proc/self/uid_map"), uid_map.to_owned());
    let enter = move || {
        // SAFETY: makes system calls on locals and memory of the closure only.
        unsafe {
            if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                return Err(io::Error::last_os_error());
            }
            if !map.is_empty() {
                let fd = libc::open(file.as_ptr(), libc::O_WRONLY);
                if libc::write(fd, map.as_ptr().cast(), map.len()) < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::close(fd);
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls; its errors are numbers.
    unsafe { command.pre_exec(enter) };
}

/// Whether this process may make user namespaces.
fn namespaces_are_allowed() -> bool {
    let mut command = Command::new("true");
    in_a_namespace(&mut command, "");
    let made = command.status();
    if let Err(error) = &made {
        log(&format!("no user namespace can be made here ({error}): skipped"));
    }
    made.is_ok()
}

fn own_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Serves all clients at the path until `path.stop` exists. Returns how many came.
fn serve(path: &Path, options: &Options) -> usize {
    let listener = options.bind(path).expect("binds");
    open_to_all(path);
    let (mut came, deadline) = (0, Instant::now() + LONG * 2);
    while !path.with_extension("stop").exists() && Instant::now() < deadline {
        came += usize::from(listener.accept_timeout(Duration::from_millis(20)).is_ok());
    }
    came
}

#[test]
fn a_server_in_a_user_namespace_trusts_no_user_that_is_not_mapped() {
    const NAME: &str = "a_server_in_a_user_namespace_trusts_no_user_that_is_not_mapped";
    let argument = role().unwrap_or_default();
    if let Some(path) = argument.strip_prefix("server ") {
        let shown = SharedMemoryStream::pair().expect("a pair asks no policy").0.peer_cred().uid();
        assert_eq!(shown, OVERFLOW);
        exit(i32::from(serve(Path::new(path), &Options::new()) != 0));
    }
    if let Some(path) = argument.strip_prefix("client ") {
        let mut outcome = SharedMemoryStream::connect(path);
        eventually(|| {
            outcome = SharedMemoryStream::connect(path);
            !matches!(outcome, Err(ConnectError::Io { .. }))
        });
        match outcome {
            Err(ConnectError::Rejected { code: RejectCode::NotAuthorized, text }) => {
                assert!(text.contains("namespace"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    if !namespaces_are_allowed() {
        return;
    }
    let shared = Shared::new();
    for (at, map) in [String::new(), format!("{OVERFLOW} {} 1", own_uid())].into_iter().enumerate() {
        let path = shared.path(&format!("socket{at}"));
        let with_path = |role| format!("{role} {}", path.display());
        let mut server = shared.run(NAME, &with_path("server"));
        in_a_namespace(&mut server, &map);
        let mut server = server.spawn().expect("starts");
        let mut client = shared.run(NAME, &with_path("client"));
        if is_root() {
            client.uid(OTHER).gid(OTHER); // Really another user. Without root it is the same user, which the server cannot know.
        }
        let refused = client.status().expect("runs");
        File::create(path.with_extension("stop")).expect("made");
        let served_none = server.wait().expect("ends");
        assert!(refused.success() && served_none.success(), "{map:?}: {refused}, {served_none}");
    }
}

#[test]
fn a_client_in_a_user_namespace_trusts_no_server_that_is_not_mapped() {
    const NAME: &str = "a_client_in_a_user_namespace_trusts_no_server_that_is_not_mapped";
    if let Some(path) = role() {
        match SharedMemoryStream::connect(path) {
            Err(ref error @ ConnectError::NotAuthorized { uid, .. }) => {
                assert_eq!(uid, OVERFLOW);
                assert!(whole(&error).contains("namespace"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    if !namespaces_are_allowed() {
        return;
    }
    let shared = Shared::new();
    let path = shared.path("socket");
    let open = Options::new().authorize(|_| true);
    let (clients, came) = thread::scope(|scope| {
        let server = scope.spawn(|| serve(&path, &open));
        assert!(eventually(|| exists(&path) && path.metadata().is_ok_and(|it| it.mode() & 0o777 == 0o777)));
        let clients = [String::new(), format!("{OVERFLOW} {} 1", own_uid())].map(|map| {
            let mut client = shared.run(NAME, path.to_str().expect("plain"));
            in_a_namespace(&mut client, &map);
            client.status().is_ok_and(|status| status.success())
        });
        File::create(path.with_extension("stop")).expect("made");
        (clients, server.join().expect("no panic"))
    });
    assert_eq!(clients, [true, true]);
    assert_eq!(came, 0, "the clients said nothing");
}

/// The counterpart of the rule: if all users are mapped, the overflow number is an ordinary user.
#[test]
fn the_overflow_user_trusts_itself_where_all_users_are_mapped() {
    const NAME: &str = "the_overflow_user_trusts_itself_where_all_users_are_mapped";
    if let Some(path) = role() {
        return trusts_itself(Path::new(&path), OVERFLOW);
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !is_root() || !map.contains("4294967295") {
        return log("not root of all users: skipped");
    }
    let shared = Shared::new();
    let mut child = shared.run(NAME, shared.path("socket").to_str().expect("plain"));
    assert!(child.uid(OVERFLOW).gid(OVERFLOW).status().expect("runs").success());
}

/// One process connects to itself, and each end trusts the other.
fn trusts_itself(path: &Path, shown: u32) {
    let listener = Options::new().bind(path).expect("binds");
    thread::scope(|scope| {
        let server = scope.spawn(|| listener.accept_timeout(LONG).map(|stream| stream.peer_cred().uid()));
        let client = SharedMemoryStream::connect(path).expect("trusts its own user");
        assert_eq!(client.peer_cred().uid(), shown);
        assert_eq!(server.join().expect("no panic").expect("trusts its own user"), shown);
    });
}

#[test]
fn a_user_that_a_preloaded_library_invents_is_not_believed() {
    const NAME: &str = "a_user_that_a_preloaded_library_invents_is_not_believed";
    if let Some(argument) = role() {
        let (path, shown) = argument.rsplit_once(' ').expect("two words");
        let shown = shown.parse().expect("a number");
        assert_ne!(own_uid(), shown, "the C library is deceived");
        return trusts_itself(Path::new(path), shown);
    }
    let shared = Shared::new();
    let mut preloads = Vec::new();
    let (source, library) = (shared.path("preload.c"), shared.path("preload.so"));
    let text = "unsigned geteuid(void) { return 0; } unsigned getegid(void) { return 0; }
        unsigned getuid(void) { return 0; } unsigned getgid(void) { return 0; }";
    fs::write(&source, text).expect("writes");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    match compiled {
        Ok(status) if status.success() => {
            open_to_all(&library);
            let mut command = Command::new("env");
            command.arg(format!("LD_PRELOAD={}", library.display()));
            preloads.push(command);
        }
        other => log(&format!("no C compiler here ({other:?}): the preloaded library is skipped")),
    }
    match Command::new("fakeroot").arg("true").status() {
        Ok(status) if status.success() => preloads.push(Command::new("fakeroot")),
        other => log(&format!("no fakeroot here ({other:?}): skipped")),
    }
    let user = if is_root() { OTHER } else { own_uid() }; // Root is trusted whatever its number.
    for (at, mut command) in preloads.into_iter().enumerate() {
        let inner = shared.run(NAME, &format!("{} {user}", shared.path(&format!("socket{at}")).display()));
        command.arg(inner.get_program()).args(inner.get_args()).current_dir("/");
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if is_root() {
            command.uid(user).gid(user);
        }
        let status = command.status().expect("runs");
        assert!(status.success(), "{command:?}: {status}");
    }
}

/// The command, run by a shell as `"$@"` of this script. The shell's standard input is a pipe that the parent can close.
fn by_shell(script: &str, inner: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.stdin(Stdio::piped());
    command
}

/// Ends a shell that waits for its standard input, and a child that does not end by itself.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill(pid: u32) {
    // SAFETY: takes two numbers; the process belongs to this test, and its connection is open.
    assert_eq!(unsafe { libc::kill(pid.try_into().expect("a pid"), libc::SIGKILL) }, 0);
}

/// Whether the process has ended, also if nothing has reaped it.
fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// A backend: echoes.
fn echo() -> ! {
    let mut stream = SharedMemoryStream::from_parent().expect("taken");
    let mut message = Vec::new();
    while stream.recv_into(&mut message).is_ok() && stream.send(&message).is_ok() {}
    exit(0)
}

fn answers(stream: &mut SharedMemoryStream) {
    stream.send_timeout(b"tide", LONG).expect("sends");
    let mut reply = Vec::new();
    stream.recv_into_timeout(&mut reply, LONG).expect("an echo");
    assert_eq!(reply, b"tide");
}

fn end_of(stream: &mut SharedMemoryStream) -> RecvTimeoutError {
    stream.recv_timeout(&mut [0; 8], LONG).expect_err("it ends")
}

#[test]
fn the_death_of_a_backend_behind_a_shell_that_lives_on_is_reported() {
    const NAME: &str = "the_death_of_a_backend_behind_a_shell_that_lives_on_is_reported";
    if role().is_some() {
        echo();
    }
    let _watchdog = Watchdog::new(NAME);
    let (shell, mut stream) =
        Options::new().spawn(by_shell("\"$@\"; read line", &rerun(NAME, "backend"))).expect("spawns");
    let shell = Ends(shell);
    answers(&mut stream);
    let backend = stream.peer_cred().pid();
    assert_ne!(backend, shell.0.id(), "the peer is the backend");
    kill(backend);
    assert_eq!(end_of(&mut stream), RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied));
    drop(shell);
}

#[test]
fn a_backend_that_outlives_its_shell_is_alive() {
    const NAME: &str = "a_backend_that_outlives_its_shell_is_alive";
    if role().is_some() {
        echo();
    }
    let _watchdog = Watchdog::new(NAME);
    let scripts = ["\"$@\" & exit 3", "\"$@\" & read line; exit 3", "(sleep 0.3; \"$@\") & exit 3"];
    for script in scripts {
        let (mut shell, mut stream) =
            Options::new().spawn(by_shell(script, &rerun(NAME, "backend"))).expect("spawns");
        let backend = stream.peer_cred().pid();
        assert_ne!(backend, shell.id());
        drop(shell.stdin.take());
        assert_eq!(shell.wait().expect("ends").code(), Some(3));
        // Long enough for a verdict on the shell's end.
        let quiet = stream.recv_timeout(&mut [0; 8], Duration::from_millis(300));
        assert_eq!(quiet, Err(RecvTimeoutError::Timeout), "{script}");
        answers(&mut stream);
        kill(backend);
        assert_eq!(
            end_of(&mut stream),
            RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied),
            "{script}"
        );
    }
}

#[test]
fn a_wrapper_that_keeps_the_descriptor_to_itself_is_named() {
    const NAME: &str = "a_wrapper_that_keeps_the_descriptor_to_itself_is_named";
    match role().as_deref() {
        Some("backend") => match SharedMemoryStream::from_parent() {
            Err(error @ ConnectError::BadParent(_)) => {
                let text = whole(&error);
                assert!(text.contains("wrapper") && text.contains(VARIABLE), "{text}");
                exit(7);
            }
            other => panic!("{other:?}"),
        },
        Some(how) => {
            let fd = handed_over().0;
            // SAFETY: closes or marks a descriptor that this process was handed and does not use.
            unsafe {
                match how {
                    "closes" => assert_eq!(libc::close(fd), 0),
                    _ => assert_eq!(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC), 0),
                }
            }
            let code = rerun(NAME, "backend").status().expect("runs").code();
            if how == "keeps and lives" {
                thread::sleep(LONG * 2); // It is killed.
            }
            exit(code.unwrap_or(1));
        }
        None => {}
    }
    let _watchdog = Watchdog::new(NAME);
    let options = Options::new().handshake_timeout(Duration::from_secs(2));
    for (how, lives) in [("closes", false), ("keeps", false), ("keeps and lives", true)] {
        let error = options.spawn(rerun(NAME, how)).map(drop).expect_err("the backend has no end");
        match error {
            SpawnError::ChildExited(status) if !lives => assert_eq!(status.code(), Some(7), "{how}"),
            SpawnError::Timeout if lives => {}
            ref other => panic!("{how}: {other:?}"),
        }
        let text = whole(&error);
        assert!(text.contains("wrapper") && text.contains(VARIABLE), "{how}: {text}");
    }
}

/// The number, inode and nonce that the parent handed over.
fn handed_over() -> (i32, u64, u64) {
    let value = env::var(VARIABLE).expect("set");
    let numbers: Vec<u64> = value.split(':').map(|number| number.parse().expect("a number")).collect();
    (i32::try_from(numbers[0]).expect("small"), numbers[1], numbers[2])
}

#[test]
fn a_failed_spawn_leaves_no_backend_behind_a_shell() {
    const NAME: &str = "a_failed_spawn_leaves_no_backend_behind_a_shell";
    let word = env::var("NARROWS_ARGUMENT").map(PathBuf::from).unwrap_or_default();
    match role().as_deref() {
        Some("stops") => {
            let (fd, _, nonce) = handed_over();
            // SAFETY: the parent left this descriptor for this process, and nothing else here uses it.
            let mut socket = unsafe { UnixStream::from_raw_fd(fd) };
            socket.write_all(&ClientHandshake::new(geometry(), 64 << 20, nonce).hello()).expect("sends");
            fs::write(&word, std::process::id().to_string()).expect("writes");
            thread::sleep(Duration::from_secs(100)); // The Accept is never confirmed.
            exit(1);
        }
        Some(_) => {
            thread::sleep(Duration::from_secs(2));
            let text =
                format!("{:?}", matches!(SharedMemoryStream::from_parent(), Err(ConnectError::PeerClosed)));
            fs::write(&word, text).expect("writes");
            exit(0);
        }
        None => {}
    }
    let _watchdog = Watchdog::new(NAME);
    let dir = tempfile::tempdir().expect("dir");
    let failed = |role: &str, timeout: Duration| {
        let mut inner = rerun(NAME, role);
        inner.env("NARROWS_ARGUMENT", dir.path().join(role));
        let options = Options::new().handshake_timeout(timeout);
        let error =
            options.spawn(by_shell("\"$@\" & read line", &inner)).map(drop).expect_err("no handshake");
        assert!(matches!(error, SpawnError::Timeout), "{error:?}");
    };
    failed("stops", Duration::from_secs(4));
    let pid = fs::read_to_string(dir.path().join("stops")).expect("said Hello").parse().expect("a pid");
    assert!(eventually(|| is_gone(pid)));
    failed("sleeps", Duration::from_millis(300));
    let word = dir.path().join("sleeps");
    assert!(eventually(|| fs::read_to_string(&word).is_ok_and(|text| text == "true")));
}

fn flags(fd: i32) -> (i32, i32) {
    // SAFETY: only asks.
    unsafe { (libc::fcntl(fd, libc::F_GETFD), libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK) }
}

/// Two copies of the library in one process recognise each other only by the flags of the socket, so this test plays one of them.
#[test]
fn a_connection_that_another_copy_of_the_library_took_is_left_alone() {
    const NAME: &str = "a_connection_that_another_copy_of_the_library_took_is_left_alone";
    let Some(role) = role() else {
        let _watchdog = Watchdog::new(NAME);
        for role in ["second", "after another", "first"] {
            match Options::new().spawn(rerun(NAME, role)).map(|(child, _stream)| Ends(child)) {
                Ok(mut child) if role == "first" => assert!(child.0.wait().expect("ends").success()),
                Err(SpawnError::ChildExited(status)) if role != "first" => assert_eq!(status.code(), Some(7)),
                other => panic!("{role}: {:?}", other.map(drop)),
            }
        }
        return;
    };
    let (fd, inode, _) = handed_over();
    assert_eq!(flags(fd), (0, 0), "free");
    match &*role {
        "second" => {
            // SAFETY: marks a descriptor that this process was handed.
            unsafe {
                assert_eq!(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC), 0);
                assert_eq!(libc::fcntl(fd, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK), 0);
            }
            let begun = Instant::now();
            let error = SharedMemoryStream::from_parent().expect_err("the other copy has taken it");
            assert!(matches!(error, ConnectError::ParentTaken), "{error:?}");
            assert!(begun.elapsed() < Duration::from_secs(4), "at once");
            let meta = fs::metadata(format!("/proc/self/fd/{fd}")).expect("it is open");
            assert_eq!(meta.ino(), inode, "it is what it was");
            exit(7);
        }
        "after another" => {
            // SAFETY: closes a descriptor that this process was handed, as its owner has.
            unsafe { libc::close(fd) };
            let error = SharedMemoryStream::from_parent().expect_err("it is closed");
            assert!(matches!(error, ConnectError::BadParent(_)), "{error:?}");
            // SAFETY: the number is free.
            unsafe { libc::dup2(File::open("/dev/null").expect("opens").into_raw_fd(), fd) };
            let error = SharedMemoryStream::from_parent().expect_err("it is a file");
            assert!(
                matches!(error, ConnectError::BadParent(_)) && error.to_string().contains("another file")
            );
            // SAFETY: the number is that of the file.
            assert!(unsafe { File::from_raw_fd(fd) }.metadata().is_ok(), "it is open");
            exit(7);
        }
        _ => {
            let stream = SharedMemoryStream::from_parent().expect("free");
            assert_eq!(flags(fd), (libc::FD_CLOEXEC, libc::O_NONBLOCK), "taken");
            drop(stream);
        }
    }
}

#[test]
fn of_two_backends_that_inherit_one_connection_one_takes_it() {
    const NAME: &str = "of_two_backends_that_inherit_one_connection_one_takes_it";
    if role().is_some() {
        match SharedMemoryStream::from_parent() {
            Ok(mut stream) => assert_eq!(stream.recv_timeout(&mut [0; 8], LONG).map(|it| it.len), Ok(4)),
            Err(ConnectError::ParentTaken) => exit(7),
            Err(error) => panic!("{error}"),
        }
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let script = "\"$@\" && \"$@\"";
    let (shell, mut stream) =
        Options::new().spawn(by_shell(script, &rerun(NAME, "backend"))).expect("spawns");
    let mut shell = Ends(shell);
    stream.send(b"ends").expect("sends");
    assert_eq!(end_of(&mut stream), RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected));
    assert_eq!(shell.0.wait().expect("ends").code(), Some(7));
}

#[test]
fn a_command_with_closures_of_its_own_serves_again_and_again() {
    const NAME: &str = "a_command_with_closures_of_its_own_serves_again_and_again";
    if role().is_some() {
        // SAFETY: only asks.
        assert_eq!(unsafe { libc::getsid(0) }, unsafe { libc::getpid() }, "the closure has run");
        echo();
    }
    let _watchdog = Watchdog::new(NAME);
    let mut command = rerun(NAME, "backend");
    command.current_dir("/").stdin(Stdio::null());
    let session = || {
        // SAFETY: takes nothing.
        if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(session) };
    for _ in 0..3 {
        let (child, mut stream) = Options::new().spawn(&mut command).expect("spawns");
        let mut child = Ends(child);
        answers(&mut stream);
        drop(stream);
        assert!(child.0.wait().expect("ends").success());
        assert!(command.get_envs().all(|(name, value)| name != VARIABLE || value.is_none()));
    }
}

/// A copy of the child's end in a process that the parent has started by other means keeps no end from being reported.
#[test]
fn a_copy_in_an_unrelated_process_hides_no_end() {
    const NAME: &str = "a_copy_in_an_unrelated_process_hides_no_end";
    match role().as_deref() {
        Some("backend") => {
            let fd = handed_over().0;
            // SAFETY: takes a number; the copy goes to the process that is started here, which does not use it.
            let copy = unsafe { libc::dup(fd) };
            assert!(copy >= 0);
            let mut holder =
                Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().expect("starts");
            // SAFETY: closes the copy that this process made.
            unsafe { libc::close(copy) };
            let mut stream = SharedMemoryStream::from_parent().expect("taken");
            stream.send(&holder.id().to_le_bytes()).expect("sends");
            let ends = stream.recv_timeout(&mut [0; 8], LONG).map(|it| it.len);
            assert_eq!(ends, Ok(5));
            drop(stream);
            // The process lives: the end is that of the stream.
            thread::sleep(Duration::from_secs(3));
            drop(holder.stdin.take());
            holder.wait().expect("ends");
            exit(0);
        }
        Some(_) => unreachable!("no other role"),
        None => {}
    }
    let _watchdog = Watchdog::new(NAME);
    for kill_it in [false, true] {
        let (child, mut stream) = Options::new().spawn(rerun(NAME, "backend")).expect("spawns");
        let child = Ends(child);
        stream.recv_timeout(&mut [0; 8], LONG).expect("its number");
        if kill_it {
            kill(child.0.id());
            assert_eq!(end_of(&mut stream), RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied));
        } else {
            stream.send(b"close").expect("sends");
            assert_eq!(end_of(&mut stream), RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected));
            assert!(!is_gone(child.0.id()), "it lives");
        }
    }
}

#[test]
fn a_child_is_started_without_a_copy_of_its_parents_memory() {
    const NAME: &str = "a_child_is_started_without_a_copy_of_its_parents_memory";
    match role().as_deref() {
        Some("parent") => {
            let (child, mut stream) = Options::new().spawn(rerun(NAME, "backend")).expect("spawns");
            let mut child = Ends(child);
            answers(&mut stream);
            drop(stream);
            child.0.wait().expect("ends");
            return;
        }
        Some(_) => echo(),
        None => {}
    }
    if !Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return log("strace is not here: skipped");
    }
    let _watchdog = Watchdog::new(NAME);
    let dir = tempfile::tempdir().expect("dir");
    let (trace, inner) = (dir.path().join("trace"), rerun(NAME, "parent"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=clone,clone3,fork,vfork", "-o"]).arg(&trace);
    strace.arg(inner.get_program()).args(inner.get_args());
    strace.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    assert!(strace.stdout(Stdio::null()).status().expect("runs").success());
    let text = fs::read_to_string(trace).expect("reads");
    let made: Vec<&str> = text
        .lines()
        .filter(|line| ["clone(", "clone3(", "fork("].iter().any(|call| line.contains(call)))
        .filter(|line| !line.contains("CLONE_THREAD"))
        .collect();
    let shares = |line: &&&str| line.contains("CLONE_VFORK") || line.contains(" vfork(");
    assert!(!made.is_empty() && made.iter().filter(shares).count() == made.len(), "a fork:\n{text}");
}

#[test]
fn the_deadline_begins_when_the_child_exists() {
    const NAME: &str = "the_deadline_begins_when_the_child_exists";
    if role().is_some() {
        echo();
    }
    let _watchdog = Watchdog::new(NAME);
    let mut command = rerun(NAME, "backend");
    let slow = || {
        thread::sleep(Duration::from_secs(6)); // As long as a fork of very much memory.
        Ok(())
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(slow) };
    let (child, mut stream) = Options::new().spawn(command).expect("its 5 s have just begun");
    let child = Ends(child);
    answers(&mut stream);
    drop(child);
}

#[test]
fn many_children_at_once_have_their_own_connections() {
    const NAME: &str = "many_children_at_once_have_their_own_connections";
    if role().as_deref() == Some("backend") {
        let sockets = fs::read_dir("/proc/self/fd").expect("proc").filter_map(|entry| {
            let path = entry.ok()?.path();
            let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
            let is_socket = fs::read_link(&path).ok()?.to_str()?.starts_with("socket:");
            (number > 2 && is_socket).then_some(number)
        });
        assert_eq!(sockets.collect::<Vec<_>>(), [handed_over().0], "its own end alone");
        echo();
    }
    let _watchdog = Watchdog::new(NAME);
    if !alone(NAME) {
        return;
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let (child, mut stream) = Options::new().spawn(rerun(NAME, "backend")).expect("spawns");
                    let mut child = Ends(child);
                    answers(&mut stream);
                    drop(stream);
                    assert!(child.0.wait().expect("ends").success());
                }
            });
        }
    });
}

/// A program that closed its standard streams: the next descriptors get their numbers, which `Command` gives to the child's
/// own standard streams.
#[test]
fn a_child_gets_its_connection_from_a_parent_without_standard_streams() {
    const NAME: &str = "a_child_gets_its_connection_from_a_parent_without_standard_streams";
    match role().as_deref() {
        None => {
            let _watchdog = Watchdog::new(NAME);
            for monitor in ["monitor before", "monitor after"] {
                let status = rerun(NAME, monitor).status().expect("runs");
                assert!(status.success(), "{monitor}: {status}");
            }
        }
        Some("backend") => echo(),
        Some(monitor) => {
            if monitor == "monitor before" {
                narrows::start_peer_monitor().expect("starts");
            }
            // SAFETY: nothing of this process prints before it ends.
            unsafe { (0..3).for_each(|number| assert_eq!(libc::close(number), 0)) };
            for stdio in [Stdio::null as fn() -> Stdio, Stdio::piped, Stdio::null] {
                let mut command = rerun(NAME, "backend");
                command.stdin(stdio()).stdout(stdio()).stderr(stdio());
                let spawned = Options::new().handshake_timeout(LONG).spawn(command);
                let Ok((child, mut stream)) = spawned else { exit(40) };
                let _child = Ends(child);
                answers(&mut stream);
            }
            // SAFETY: only asks.
            let is_free = |number| unsafe { libc::fcntl(number, libc::F_GETFD) } < 0;
            exit(if (0..3).all(is_free) { 0 } else { 50 });
        }
    }
}
