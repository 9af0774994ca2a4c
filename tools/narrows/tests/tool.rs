//! The tool as people run it: what it says and how it ends, not how fast anything is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
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

/// A process that does not outlive its test.
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

    /// An echo server that listens already.
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

    /// Reads what else it says until it ends: how it ended, what it said, and what it complained of.
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

/// The tool under limits of the shell's.
fn limited(limit: &str, arguments: &str) -> Output {
    let command = format!("ulimit {limit} && exec \"$0\" {arguments}");
    Command::new("sh").args(["-c", &command, NARROWS]).output().expect("a shell")
}

#[test]
fn the_doctor_finds_that_connections_work_here() {
    let (code, out, err) = narrows(&["doctor"]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    for what in [
        "memory",
        "futex",
        "pidfd_open",
        "MADV_POPULATE_WRITE",
        "open files",
        "Yama",
        "by hand-over",
        "by a path",
    ] {
        assert!(out.lines().any(|line| line.contains(what)), "{what} is missing in\n{out}");
    }
    assert!(out.contains("narrows works here") && !out.contains("FAIL"), "{out}");
    assert!(out.contains("told as `PeerDied`") || out.contains("told as `Disconnected`"), "{out}");
}

#[test]
fn the_doctor_says_what_does_not_work_and_what_to_change() {
    let output = limited("-f 16", "doctor");
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("FAIL  file size") && out.contains("raise `ulimit -f`"), "{out}");
    assert!(
        out.contains("FAIL  memory") && out.contains("FAIL  by hand-over"),
        "it was tried all the same: {out}"
    );
    assert!(out.contains("narrows does not work here"), "{out}");
}

#[test]
fn the_doctor_notes_what_may_come_to_hurt() {
    let output = limited("-n 64", "doctor");
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(out.contains("note  open files") && out.contains("-> a server with many clients"), "{out}");
    assert!(out.contains("narrows works here; ") && out.contains("note"), "{out}");
}

/// The doctor behind a filter that answers some calls with an error: their number, and of these those only that have
/// this argument with these bits.
fn filtered(refused: &[(i64, Option<(u8, u64)>)], error: i32) -> (Option<i32>, String) {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, when) in refused {
        let rules = rules.entry(*call).or_default();
        rules.extend(when.map(|(at, bits)| {
            let is = SeccompCmpOp::MaskedEq(bits);
            let condition =
                SeccompCondition::new(at, SeccompCmpArgLen::Dword, is, bits).expect("a condition");
            SeccompRule::new(vec![condition]).expect("a rule")
        }));
    }
    let action = SeccompAction::Errno(error.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("known");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    // In a thread of its own, which this process and its other tests are not behind.
    let doctor = thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("a filter");
        Command::new(NARROWS).arg("doctor").output().expect("runs")
    });
    let output = doctor.join().expect("runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn the_doctor_says_what_an_old_kernel_is_done_without() {
    const PASSPIDFD: u64 = 76;
    const PEERPIDFD: u64 = 77;
    let missing = [
        (libc::SYS_pidfd_open, None),
        (libc::SYS_process_mrelease, None),
        (libc::SYS_setsockopt, Some((2, PASSPIDFD))),
        (libc::SYS_getsockopt, Some((2, PEERPIDFD))),
    ];
    let (code, out) = filtered(&missing, libc::ENOSYS);
    assert_eq!(code, Some(0), "{out}");
    for what in ["pidfd_open", "SO_PEERPIDFD", "SO_PASSPIDFD", "process_mrelease"] {
        let note = out.lines().find(|line| line.contains(what));
        assert!(
            note.is_some_and(|line| line.starts_with("  note") && line.contains("missing")),
            "{what}: {out}"
        );
    }
    assert_eq!(out.matches("told as `Disconnected`").count(), 2, "{out}");
    assert!(out.contains("a filter is in force") && out.contains("narrows works here; "), "{out}");
}

#[test]
fn the_doctor_names_the_call_that_a_filter_takes_away() {
    let (code, out) = filtered(&[(libc::SYS_memfd_create, None)], libc::EPERM);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("FAIL  memory               memfd_create: Operation not permitted"), "{out}");
    assert!(out.contains("a seccomp filter must let memfd_create"), "{out}");
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
    // A stream's message is a lie to it: it closes, and the tool knows why.
    let (code, out, err) = narrows(&["ping", text(&path), "-c", "1"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(err.contains("`--calls`"), "{err}");
    server.signal(Signal::TERM);
    let (status, out, _) = server.end();
    assert!(status.success() && out.contains("2 calls of 2 clients"), "{out}");
}

#[test]
fn calls_to_a_server_of_streams_are_told_what_to_leave_away() {
    let (_folder, path) = folder();
    let _server = Running::serving(&[text(&path)]);
    let (code, _, err) = narrows(&["ping", text(&path), "--calls", "-c", "1"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("leave out `--calls`"), "{err}");
}

#[test]
fn who_cannot_be_reached_is_told_with_what_to_do() {
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
    assert!(code == Some(2) && err.contains("nobody listens there any more"), "{err}");
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
    let (_folder, path) = folder();
    let _server = Running::serving(&[text(&path)]);
    let (code, _, err) = narrows(&["ping", text(&path), "--size", "5000000000"]);
    assert!(code == Some(2) && err.contains("at most"), "{err}");
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

/// A server that is stopped answers nobody: pings are lost, and late answers are no mistake.
#[test]
fn what_comes_late_is_lost_and_does_no_harm() {
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
fn an_echo_server_gives_its_path_back_when_it_is_asked_to_end() {
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
