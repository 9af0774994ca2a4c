//! The tool as people run it: its output and its exit status, not its speed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use tempfile::TempDir;

const NARROWS: &str = env!("CARGO_BIN_EXE_narrows");

/// A process that is killed when this is dropped.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(NARROWS);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    /// Starts an echo server, and waits until it listens.
    fn serving(arguments: &[&str]) -> Self {
        let mut server = Self::start(&[&["serve-echo"], arguments].concat());
        let first = server.line();
        assert!(first.contains("Ctrl-C ends"), "{first}");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("lives");
    }

    /// Waits until the process ends. Returns its exit status, its further output, and its error output.
    fn end(mut self) -> (ExitStatus, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("text");
        self.child.stderr.as_mut().expect("piped").read_to_string(&mut err).expect("text");
        (self.child.wait().expect("ended"), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn narrows(arguments: &[&str]) -> (Option<i32>, String, String) {
    let (status, out, err) = Running::start(arguments).end();
    (status.code(), out, err)
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("echo.sock");
    (folder, path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain")
}

/// Runs the tool under limits of the shell.
fn limited(limit: &str, arguments: &str) -> Output {
    let command = format!("ulimit {limit} && exec \"$0\" {arguments}");
    Command::new("sh").args(["-c", &command, NARROWS]).output().expect("a shell")
}

/// Returns the verdict and the line of the doctor about something.
fn finding<'a>(out: &'a str, what: &str) -> (&'a str, &'a str) {
    let line = out.lines().find(|line| line.get(11..).is_some_and(|rest| rest.starts_with(what)));
    let line = line.unwrap_or_else(|| panic!("{what} is missing in\n{out}"));
    (line[..11].trim(), line)
}

/// Runs the doctor through other programs. Returns `None` if these do not exist here, or do not work.
fn doctor_through(wrapper: &[&str]) -> Option<(Option<i32>, String)> {
    doctor_of(NARROWS, wrapper)
}

fn doctor_of(program: &str, wrapper: &[&str]) -> Option<(Option<i32>, String)> {
    let tried = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        println!("skipped: {wrapper:?} does not work here");
        return None;
    }
    let output =
        Command::new(wrapper[0]).args(&wrapper[1..]).args([program, "doctor"]).output().expect("ran before");
    Some((output.status.code(), String::from_utf8(output.stdout).expect("text")))
}

#[test]
fn the_doctor_finds_that_connections_work_here() {
    let (code, out, err) = narrows(&["doctor"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    for what in [
        "seccomp",
        "user ",
        "user namespace",
        "PID namespace",
        "/tmp",
        "memory ",
        "futex",
        "pidfd_open",
        "MADV_POPULATE_WRITE",
        "CPU quota",
        "open files",
        "mappings",
        "threads",
        "idle connection",
        "overcommit",
        "locked memory",
        "by hand-over",
        "by a path",
    ] {
        let (mark, line) = finding(&out, what);
        assert!(["ok", "note"].contains(&mark), "{line}");
    }
    assert!(out.contains("narrows works here") && !out.contains("PROBLEM"), "{out}");
    assert!(out.contains("reported as `PeerDied`") || out.contains("reported as `Disconnected`"), "{out}");
    let room = finding(&out, "mappings").1;
    assert!(!room.contains("max_map_count is") || room.contains("connections of an RPC server"), "{room}");
}

#[test]
fn the_doctor_says_what_does_not_work_and_what_to_change() {
    let output = limited("-f 16", "doctor");
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert_eq!(finding(&out, "file size").0, "PROBLEM");
    assert!(out.contains("raise `ulimit -f`"), "{out}");
    for tried_all_the_same in ["memory ", "by hand-over"] {
        assert_eq!(finding(&out, tried_all_the_same).0, "PROBLEM", "{out}");
    }
    assert!(out.contains("narrows does not work here as it is; ") && out.contains(" problems"), "{out}");
}

#[test]
fn the_doctor_notes_what_may_cause_trouble_later() {
    for (limit, what, advice) in [
        ("--nofile=64", "open files", "-> a server with many clients"),
        ("--as=400000000", "address space", "-> raise `ulimit -v`"),
        ("--nproc=199", "threads", "LimitNPROC"),
    ] {
        let Some((code, out)) = doctor_through(&["prlimit", limit]) else { continue };
        assert_eq!(finding(&out, what).0, "note", "{out}");
        assert!(out.contains(advice), "{out}");
        // The user of the tests may have more threads than that already.
        let works = code == Some(0) && out.contains("narrows works here; ") && out.contains(" note");
        assert!(works || what == "threads", "{out}");
    }
}

/// If the user may have no more processes, the doctor makes its checks itself.
#[test]
fn the_doctor_says_which_limit_keeps_threads_from_being_started() {
    let root = rustix::process::geteuid().is_root();
    let user = ["setpriv", "--reuid=1234567", "--clear-groups", "prlimit", "--nproc=1"];
    let Some((code, out)) = doctor_through(if root { &user } else { &user[3..] }) else { return };
    let (mark, line) = finding(&out, "threads");
    assert!(code == Some(1) && mark == "PROBLEM" && line.contains("none can be started"), "{out}");
    assert!(out.contains("`ulimit -u` (LimitNPROC)") && out.contains("narrows does not work here"), "{out}");
}

#[test]
fn the_doctor_says_what_a_program_that_locks_its_memory_has_room_for() {
    let limit = "ulimit -l 64 && exec \"$0\" \"$@\"";
    // The limit does not apply to root, unless it drops that privilege.
    let root = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "sh", "-c", limit];
    let wrapper = if rustix::process::geteuid().is_root() { &root[..] } else { &root[3..] };
    let Some((code, out)) = doctor_through(wrapper) else { return };
    let (mark, line) = finding(&out, "locked memory");
    assert_eq!((code, mark), (Some(0), "note"), "{out}");
    assert!(line.contains("mlockall(MCL_FUTURE)") && out.contains("mmap fails with EAGAIN"), "{out}");
}

/// The calls that a filter affects: all of one number, or only those whose argument of this index has these bits.
type Filtered = (i64, Option<(u8, u64)>);

/// Runs the doctor under a filter.
fn filtered(calls: &[Filtered], action: SeccompAction) -> (Option<i32>, String) {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, when) in calls {
        let rules = rules.entry(*call).or_default();
        rules.extend(when.map(|(at, bits)| {
            let is = SeccompCmpOp::MaskedEq(bits);
            let condition =
                SeccompCondition::new(at, SeccompCmpArgLen::Dword, is, bits).expect("a condition");
            SeccompRule::new(vec![condition]).expect("a rule")
        }));
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("known");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    // Runs in a thread of its own, so that the filter does not apply to this process and its other tests.
    let doctor = thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("a filter");
        Command::new(NARROWS).arg("doctor").output().expect("runs")
    });
    let output = doctor.join().expect("runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

fn refused(error: i32) -> SeccompAction {
    SeccompAction::Errno(error.unsigned_abs())
}

#[test]
fn the_doctor_says_what_an_old_kernel_lacks() {
    const PASSPIDFD: u64 = 76;
    const PEERPIDFD: u64 = 77;
    let missing = [
        (libc::SYS_pidfd_open, None),
        (libc::SYS_process_mrelease, None),
        (libc::SYS_setsockopt, Some((2, PASSPIDFD))),
        (libc::SYS_getsockopt, Some((2, PEERPIDFD))),
    ];
    let (code, out) = filtered(&missing, refused(libc::ENOSYS));
    assert_eq!(code, Some(0), "{out}");
    for what in ["pidfd_open", "SO_PEERPIDFD", "SO_PASSPIDFD"] {
        let (mark, line) = finding(&out, what);
        assert!(mark == "note" && line.contains("missing"), "{line}");
    }
    assert_eq!(out.matches("reported as `Disconnected`").count(), 2, "{out}");
    assert!(out.contains("a filter is in force") && out.contains("narrows works here; "), "{out}");
}

#[test]
fn the_doctor_names_the_call_that_a_filter_takes_away() {
    let (code, out) = filtered(&[(libc::SYS_memfd_create, None)], refused(libc::EPERM));
    assert_eq!(code, Some(1), "{out}");
    let (mark, line) = finding(&out, "memory ");
    assert!(mark == "PROBLEM" && line.contains("memfd_create: Operation not permitted"), "{line}");
    assert!(out.contains("a seccomp filter must let memfd_create"), "{out}");
}

#[test]
fn the_doctor_outlives_a_filter_that_kills_and_names_the_call() {
    for action in [SeccompAction::KillProcess, SeccompAction::KillThread, SeccompAction::Trap] {
        let (code, out) = filtered(&[(libc::SYS_memfd_create, None)], action.clone());
        assert_eq!(code, Some(1), "{action:?}: {out}");
        let (mark, line) = finding(&out, "memory ");
        assert!(mark == "PROBLEM" && line.contains("kills the program that calls memfd_create"), "{line}");
        assert!(out.contains("SystemCallFilter=") && out.contains("narrows does not work here"), "{out}");

        // The checks that are not vital, each kind of call alone.
        let calls =
            [libc::SYS_pidfd_open, libc::SYS_process_mrelease, libc::SYS_fallocate, libc::SYS_mlockall];
        let (code, out) = filtered(&calls.map(|call| (call, None)), action.clone());
        assert!(code.is_some(), "{action:?}: it died:\n{out}");
        for (what, calls) in [
            ("pidfd_open", "pidfd_open"),
            ("F_SEAL_FUTURE_WRITE", "fcntl (F_SEAL_FUTURE_WRITE) or fallocate"),
            ("locked memory", "mlockall"),
        ] {
            let (mark, line) = finding(&out, what);
            assert!(
                mark == "note" && line.contains(&format!("kills the program that calls {calls}")),
                "{line}"
            );
        }
        assert!(
            out.contains("\nnarrows works here") || out.contains("\nnarrows does not work here"),
            "{out}"
        );
    }
}

#[test]
fn the_doctor_neither_dies_nor_hangs_without_proc_and_sys() {
    let hide = "mount -t tmpfs none /sys && mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    let Some((code, out)) = doctor_through(&["unshare", "--mount", "sh", "-c", hide]) else { return };
    assert_eq!(code, Some(0), "{out}");
    for what in ["seccomp", "user namespace", "mappings", "CPU quota"] {
        assert_eq!(finding(&out, what).0, "ok", "{out}");
    }
    assert_eq!(finding(&out, "by a path").0, "ok", "{out}");
}

#[test]
fn the_doctor_notes_a_private_tmp() {
    // Not in /tmp, where the program may be as well.
    let Ok(beside) = tempfile::tempdir_in("/var/tmp") else { return println!("skipped: no /var/tmp") };
    let (program, private) = (beside.path().join("narrows"), beside.path().join("systemd-private-test-tmp"));
    std::fs::copy(NARROWS, &program).expect("copies");
    std::fs::create_dir(&private).expect("a directory");
    let hide = format!("mount --bind {} /tmp && exec \"$0\" \"$@\"", text(&private));
    let Some((_, out)) = doctor_of(text(&program), &["unshare", "--mount", "sh", "-c", &hide]) else {
        return;
    };
    let (mark, line) = finding(&out, "/tmp");
    assert!(mark == "note" && line.contains("PrivateTmp") && out.contains("RuntimeDirectory"), "{out}");
}

#[test]
fn the_doctor_notes_which_users_a_namespace_does_not_map() {
    let Some((_, out)) = doctor_through(&["unshare", "--user"]) else { return };
    let (mark, line) = finding(&out, "user namespace");
    assert!(
        mark == "note" && line.contains("0 users are mapped") && line.contains("that user itself"),
        "{line}"
    );
    let Some((code, out)) = doctor_through(&["unshare", "--user", "--map-root-user", "--pid", "--fork"])
    else {
        return;
    };
    let (mark, line) = finding(&out, "user namespace");
    assert!(code == Some(0) && mark == "ok" && line.contains("1 users are mapped"), "{out}");
}

#[test]
fn the_doctor_goes_by_the_kernels_user_and_not_by_fakeroots() {
    let root = rustix::process::geteuid().is_root();
    let wrapper = ["setpriv", "--reuid=65534", "--clear-groups", "fakeroot"];
    let Some((_, out)) = doctor_through(if root { &wrapper } else { &wrapper[3..] }) else { return };
    let (mark, line) = finding(&out, "user ");
    assert!(mark == "note" && line.contains("to the kernel and to peers, 0 to this process"), "{line}");
}

/// A control group of version 1 or 2 that this test made. It is removed when this is dropped.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _still_used = std::fs::remove_dir(&self.0);
    }
}

/// Makes a group with the first of these limits that is possible: the folder of a controller, the file, and the value.
fn group(limits: &[(&str, &str, &str)]) -> Option<Group> {
    limits.iter().find_map(|(folder, file, value)| {
        let group =
            Group(Path::new(folder).join(format!("narrows-tool-{}-{}", std::process::id(), random())));
        std::fs::create_dir(&group.0).ok()?;
        // The kernel makes the files of a group. If there is no controller, they do not exist.
        let mut limit = std::fs::OpenOptions::new().write(true).open(group.0.join(file)).ok()?;
        limit.write_all(value.as_bytes()).ok()?;
        Some(group)
    })
}

/// Returns a number that differs each time.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

#[test]
fn the_doctor_shows_the_quotas_of_control_groups() {
    let v2 = "/sys/fs/cgroup";
    for (what, shown, limits) in [
        (
            "CPU quota",
            "0.50 CPUs",
            [(v2, "cpu.max", "50000 100000"), ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "50000")],
        ),
        (
            "memory limit",
            " of 256 MiB",
            [(v2, "memory.max", "256M"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "256M")],
        ),
        ("threads", " of 60 left", [(v2, "pids.max", "60"), ("/sys/fs/cgroup/pids", "pids.max", "60")]),
    ] {
        let Some(group) = group(&limits) else {
            println!("skipped: no control group for {what} can be made here");
            continue;
        };
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", text(&group.0));
        let Some((code, out)) = doctor_through(&["sh", "-c", &enter]) else { continue };
        let (mark, line) = finding(&out, what);
        assert!(code == Some(0) && line.contains(shown), "{out}");
        assert_eq!(mark, if what == "memory limit" { "ok" } else { "note" }, "{line}");
    }
}

#[test]
fn a_ping_of_any_size_comes_back() {
    let (_folder, path) = folder();
    let mut server = Running::serving(&[text(&path)]);
    for size in ["0", "5", "56", "100000", "3000000"] {
        let (code, out, err) =
            narrows(&["ping", text(&path), "--count", "3", "--interval", "0.01", "--size", size]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        let head = format!("PING {} (process {} of user ", path.display(), server.child.id());
        assert!(out.starts_with(&head) && out.contains(&format!(") {size} bytes\n")), "{out}");
        assert!(
            out.contains(&format!("{size} bytes from process {}: seq=3 time=", server.child.id())),
            "{out}"
        );
        assert!(
            out.contains("\n3 sent, 3 received, 0% lost, time ") && out.contains("\nrtt min/avg/max/mdev = "),
            "{out}"
        );
        assert!(server.line().ends_with("came"));
        assert!(server.line().contains("it closed; 3 messages, "));
    }
    let (code, out, _) = narrows(&["ping", text(&path), "-c", "2", "-i", "0", "--quiet", "--wait", "park"]);
    assert_eq!((code, out.contains("seq=")), (Some(0), false), "{out}");
}

#[test]
fn a_ping_calls_a_server_of_calls_whether_it_has_the_method_or_not() {
    let (_folder, path) = folder();
    let server = Running::serving(&[text(&path), "--calls"]);
    let (code, out, err) = narrows(&["ping", text(&path), "--calls", "-c", "2", "-i", "0"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("56 bytes from process") && out.contains("2 sent, 2 received"), "{out}");
    let (code, out, _) = narrows(&["ping", text(&path), "--calls", "--method", "77", "-c", "2", "-i", "0"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("an answer: no such method, from process"), "{out}");
    // To an RPC server the message of a stream is a protocol violation: it closes, and the tool names the reason.
    let (code, out, err) = narrows(&["ping", text(&path), "-c", "1"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(err.contains("`--calls`"), "{err}");
    server.signal(Signal::TERM);
    let (status, out, _) = server.end();
    assert!(status.success() && out.contains("2 calls of 2 clients"), "{out}");
}

#[test]
fn a_call_to_a_server_of_streams_names_the_option_to_leave_out() {
    let (_folder, path) = folder();
    let _server = Running::serving(&[text(&path)]);
    let (code, _, err) = narrows(&["ping", text(&path), "--calls", "-c", "1"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("leave out `--calls`"), "{err}");
}

#[test]
fn an_unreachable_server_is_reported_with_what_to_do() {
    let (folder, path) = folder();
    let (code, out, err) = narrows(&["ping", text(&path)]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("nothing stands there") && err.contains("serve-echo"), "{err}");

    let file = folder.path().join("file");
    std::fs::write(&file, "no socket").expect("writes");
    let (code, _, err) = narrows(&["ping", text(&file)]);
    assert!(code == Some(2) && err.contains("something else than a server's"), "{err}");
    let (code, _, err) = narrows(&["serve-echo", text(&file)]);
    assert!(code == Some(2) && err.contains("left alone"), "{err}");

    let server = Running::serving(&[text(&path)]);
    let (code, _, err) = narrows(&["serve-echo", text(&path)]);
    assert!(code == Some(2) && err.contains("a server lives there"), "{err}");
    server.signal(Signal::KILL);
    drop(server);
    let (code, _, err) = narrows(&["ping", text(&path)]);
    assert!(code == Some(2) && err.contains("no server listens there any more"), "{err}");
    let (code, _, err) = narrows(&["serve-echo", text(&folder.path().join("no/such/place"))]);
    assert!(code == Some(2) && err.contains("make the directory first"), "{err}");
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let cases: [&[&str]; 5] = [
        &["ping"],
        &["ping", "x", "--count", "0"],
        &["ping", "x", "--interval", "-1"],
        &["ping", "x", "--method", "7"],
        &["bench", "--millis", "0"],
    ];
    for arguments in cases {
        let (code, out, err) = narrows(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.contains("Usage") || err.contains("error:"), "{arguments:?}: {err}");
    }
    let (code, _, err) = narrows(&["ping", "x", "--size", "5000000000"]);
    assert!(
        code == Some(2) && err.contains("no narrows connection carries more than 4294967295 bytes"),
        "{err}"
    );
}

/// The tool has no limit of its own below that of the server.
#[test]
fn a_ping_is_as_large_as_the_server_takes() {
    for calls in [&[][..], &["--calls"]] {
        let (_folder, path) = folder();
        let _server = Running::serving(&[&[text(&path), "--max-message", "70000000"], calls].concat());
        let ping =
            |size| narrows(&[&["ping", text(&path), "-c", "1", "-W", "60", "--size", size], calls].concat());
        let (code, out, err) = ping("70000000");
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains("70000000 bytes from process"), "{out}");
        let (code, _, err) = ping("70000001");
        assert!(
            code == Some(2) && err.contains("the server takes messages of at most 70000000 bytes"),
            "{err}"
        );
    }
}

#[test]
fn a_ping_ends_with_its_statistics_at_ctrl_c_and_when_the_server_dies() {
    let (_folder, path) = folder();
    let server = Running::serving(&[text(&path)]);
    let mut ping = Running::start(&["ping", text(&path), "-i", "30"]);
    assert!(ping.line().starts_with("PING") && ping.line().contains("seq=1"));
    ping.signal(Signal::INT);
    let (status, out, err) = ping.end();
    assert!(status.success() && out.contains("1 sent, 1 received") && err.is_empty(), "{out}{err}");

    let mut ping = Running::start(&["ping", text(&path), "-i", "0.01"]);
    assert!(ping.line().starts_with("PING") && ping.line().contains("seq=1"));
    server.signal(Signal::KILL);
    let (status, out, err) = ping.end();
    assert!(out.contains("ping statistics"), "{out}");
    assert!(status.code() == Some(1) && err.contains("narrows: "), "{err}");
}

/// A stopped server does not answer: pings are lost, and late answers are no error.
#[test]
fn a_late_answer_counts_as_lost_and_does_no_harm() {
    let (_folder, path) = folder();
    let server = Running::serving(&[text(&path)]);
    let mut ping = Running::start(&["ping", text(&path), "-i", "0.05", "-W", "0.2"]);
    assert!(ping.line().starts_with("PING"));
    server.signal(Signal::STOP);
    while !ping.line().contains(" no answer in 200 ms") {}
    server.signal(Signal::CONT);
    while !ping.line().contains(" bytes from process ") {}
    ping.signal(Signal::INT);
    let (status, out, err) = ping.end();
    assert_eq!((status.code(), err.as_str()), (Some(1), ""), "{out}");
    assert!(!out.contains(" 0% lost") && !out.contains(" 100% lost"), "{out}");
}

#[test]
fn an_echo_server_removes_its_path_when_it_is_asked_to_end() {
    for signal in [Signal::INT, Signal::TERM] {
        let (_folder, path) = folder();
        let server = Running::serving(&[text(&path)]);
        assert!(path.exists());
        server.signal(signal);
        let (status, _, err) = server.end();
        assert!(status.success() && err.is_empty() && !path.exists(), "{err}");
    }
}

#[test]
fn a_bench_shows_every_size_for_each_way_of_waiting() {
    let (code, out, err) = narrows(&["bench", "--millis", "5"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    for wait in ["spin", "adaptive", "park"] {
        for size in ["64 B", "1 KiB", "64 KiB", "1 MiB"] {
            let row = out.lines().find(|line| line.starts_with(wait) && line.contains(&format!(" {size} ")));
            assert!(row.is_some_and(|row| row.split_whitespace().count() > 12), "{wait} {size} in\n{out}");
        }
    }
    assert!(out.contains("all payloads came as they were sent"), "{out}");
    let (code, out, _) = narrows(&["bench", "--millis", "1", "--wait", "park"]);
    assert_eq!((code, out.contains("spin ")), (Some(0), false), "{out}");
}

#[test]
fn the_other_process_is_none_to_start_by_hand() {
    let (code, _, err) = narrows(&["child"]);
    assert!(code == Some(2) && err.contains("this command is for"), "{err}");
}
