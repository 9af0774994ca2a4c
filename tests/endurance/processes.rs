//! The other processes: how they are started, given orders, and ended, and how their answers are received.
//!
//! A line of standard input is an order, and a line of standard output an answer. An answer that begins with `fault` reports a
//! failure. The process ends at the end of its standard input, and it never outlives the process that started it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio, exit};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use narrows::{ConnectError, Options};

use crate::support::{Kept, argument, eventually, log, me, role, sys};
use crate::watch::Sample;
use crate::{clients, hostile_peers, leak_check, serve};

/// Longer than any busy machine needs: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The longest message of all servers and clients here.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;

/// The options of all servers and clients without other needs. A busy machine has the time for its handshakes.
pub(crate) fn options() -> Options {
    Options::new().max_message(MAX_MESSAGE).handshake_timeout(PATIENCE)
}

/// Another process, in a role.
#[derive(Debug)]
pub(crate) struct Actor {
    role: String,
    child: Kept,
    orders: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Actor {
    /// Starts a process in a role, with arguments (`key=value;key=value`).
    pub(crate) fn start(role: &str, arguments: &str) -> Self {
        Self::run(role, &mut me("endurance", role, arguments))
    }

    /// The same, with all of its memory in one arena. glibc gives threads up to eight arenas for each CPU, and memory that
    /// threads use in turns fills one after another for minutes, although no more of it is allocated.
    pub(crate) fn start_in_one_arena(role: &str, arguments: &str) -> Self {
        Self::run(role, me("endurance", role, arguments).env("MALLOC_ARENA_MAX", "1"))
    }

    fn run(role: &str, command: &mut Command) -> Self {
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (sender, lines) = channel();
        let output = child.0.stdout.take().expect("a pipe");
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Self { role: role.to_owned(), orders: child.0.stdin.take(), child, lines }
    }

    /// Starts a server at the path, and waits until it listens.
    pub(crate) fn server(path: &Path, also: &str) -> Self {
        let server = Self::start("serve", &format!("path={};{also}", path.display()));
        assert_eq!(server.receive(), "ready");
        server
    }

    /// The resources of a server that has served a client before, and serves none now.
    pub(crate) fn base(&mut self, path: &Path) -> Sample {
        let mut client = Self::start("short-lived", &format!("path={};manner=leave", path.display()));
        client.receive();
        assert!(client.wait().success());
        let mut last = Sample::of(self.pid());
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(20));
            last = Sample::of(self.pid());
        }
        last
    }

    /// Waits until a server has no more resources than `base`. Returns a description of what is left over.
    pub(crate) fn leftovers(&mut self, base: &Sample) -> Option<String> {
        let is = |sample: Sample| sample.exact().iter().zip(base.exact()).all(|(is, was)| *is <= was);
        if eventually(|| is(Sample::of(self.pid()))) {
            return None;
        }
        Some(format!("left behind: {:?}, before {base:?}", Sample::of(self.pid())))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Sends an order. Only the answer shows whether it was received.
    pub(crate) fn send(&mut self, order: &str) {
        if let Some(orders) = &mut self.orders {
            let _may_be_over = writeln!(orders, "{order}");
        }
    }

    /// Returns the next answer.
    ///
    /// # Panics
    ///
    /// If the answer is a fault, or if there is none.
    pub(crate) fn receive(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        let line =
            line.unwrap_or_else(|_| panic!("{} {} has ended, or does not answer", self.role, self.pid()));
        assert!(!line.starts_with("fault"), "{}: {line}", self.role);
        line
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.send(order);
        self.receive()
    }

    /// Sends an order, and returns the numbers that the process answers.
    pub(crate) fn numbers(&mut self, order: &str) -> Vec<u64> {
        let line = self.ask(order);
        line.split(' ').map(|it| it.parse().unwrap_or_else(|_| panic!("{}: {line}", self.role))).collect()
    }

    pub(crate) fn signal(&self, signal: i32) {
        sys::kill(i32::try_from(self.pid()).expect("a number"), signal);
    }

    /// Stops the process, and waits until all of its threads have stopped.
    pub(crate) fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        let tasks = format!("/proc/{}/task", self.pid());
        let all = || std::fs::read_dir(&tasks).expect("it lives").flatten().all(stopped);
        assert!(eventually(all), "{} does not stop", self.role);
    }

    /// Kills the process, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _may_be_over = self.child.0.kill();
        self.child.wait();
    }

    /// Ends the process, and checks that it succeeds.
    pub(crate) fn end(mut self) {
        self.orders = None;
        let status = self.child.wait();
        assert!(status.success(), "{}: {status}", self.role);
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait()
    }
}

/// The arguments of this process.
#[derive(Debug)]
pub(crate) struct RoleArguments(BTreeMap<String, String>);

impl RoleArguments {
    fn here() -> Self {
        let text = argument();
        let pairs = text.split(';').filter_map(|it| it.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new(self.text("path"))
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no argument {key}"))
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).map(|it| it.parse().expect("a number"))
    }
}

/// In another process: plays the role.
pub(crate) fn play(role: &str) {
    die_with_parent();
    let arguments = RoleArguments::here();
    match role {
        "serve" => serve::serve(&arguments),
        "many-connections" => clients::many_connections(&arguments),
        "steady" => clients::steady(&arguments),
        "worker" => clients::worker(&arguments),
        "probe" => clients::probe(&arguments),
        "neighbour" => clients::neighbour(&arguments),
        "short-lived" => clients::short_lived(&arguments),
        "revolver" => clients::revolver(&arguments),
        "inheritor" => clients::inheritor(),
        "hoarder" => clients::hoarder(&arguments),
        "starved" => clients::starved(&arguments),
        "slow" => clients::slow(&arguments),
        "leak-check" => leak_check::run_cycles(&arguments),
        "scribbler" => hostile_peers::scribbler(&arguments),
        "giant" => hostile_peers::giant(&arguments),
        other => panic!("no role: {other}"),
    }
}

/// In another process: prints an answer.
pub(crate) fn answer(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        exit(0); // The test has ended.
    }
}

/// In another process: reports a failure and ends the process. In the first process: panics, which its check reports.
pub(crate) fn fault(text: &str) -> ! {
    assert!(role().is_some(), "{text}");
    log(&format!("fault: {text}"));
    answer(&format!("fault {}", text.replace('\n', " ")));
    exit(1)
}

/// In another process: returns the orders, until there are no more.
pub(crate) fn orders() -> impl Iterator<Item = String> {
    BufReader::new(std::io::stdin()).lines().map_while(Result::ok)
}

/// Returns the name of the variant of an error, or how the connection ended.
pub(crate) fn name(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    text.trim_start_matches("ConnectionLost(")
        .split(|it: char| !it.is_alphanumeric())
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Returns the name of a connect error, whose `Debug` is its text.
pub(crate) fn connect_name(error: &ConnectError) -> String {
    match error {
        ConnectError::Timeout => "Timeout".into(),
        ConnectError::PeerClosed => "PeerClosed".into(),
        ConnectError::Truncated => "Truncated".into(),
        ConnectError::Rejected { code, .. } => format!("Rejected({code:?})"),
        // Not all conversions keep the number of the kernel's error, but they keep its text.
        ConnectError::Io { source, .. } if source.to_string().contains("os error 24") => "Io(EMFILE)".into(),
        ConnectError::Io { source, .. } => format!("Io({source})"),
        other => other.to_string(),
    }
}

/// Returns how many descriptors a process may have.
pub(crate) fn most_descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the local.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    usize::try_from(limit.rlim_max).unwrap_or(usize::MAX)
}

/// Ends this process with the one that started it, and ignores a Ctrl-C, which is meant for that one.
fn die_with_parent() {
    // SAFETY: sets the signal that this process gets when the thread that started it ends, and ignores one.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
}
