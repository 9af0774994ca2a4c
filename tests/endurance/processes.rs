//! The other processes: how they are started, told what to do, heard, and ended.
//!
//! A line of standard input is an order, a line of standard output an answer; one that begins with `fault` is what must not
//! be. The end of standard input is the end of the process, and it never outlives who started it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Stdio, exit};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use narrows::{ConnectError, Options};

use crate::support::{Kept, eventually, log, me, report, role, sys};
use crate::watch::Sample;
use crate::{clients, hostile_peers, leak_check, serve};

/// Longer than any busy machine needs; only what hangs meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The longest message of all servers and clients here.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;

/// What everybody asks for where nothing else matters: a busy machine has time to shake hands.
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
    /// Starts one, that finds `told` (`key=value;key=value`).
    pub(crate) fn start(role: &str, report: &str) -> Self {
        let mut command = me("validation", role, report);
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (notify, lines) = channel();
        let output = child.0.stdout.take().expect("a pipe");
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|line| notify.send(line).is_ok())
        });
        Self { role: role.to_owned(), orders: child.0.stdin.take(), child, lines }
    }

    /// A server at the path, once it listens.
    pub(crate) fn server(path: &Path, also: &str) -> Self {
        let server = Self::start("serve", &format!("path={};{also}", path.display()));
        assert_eq!(server.receive(), "ready");
        server
    }

    /// What a server has that served somebody before, and nobody now.
    pub(crate) fn base(&mut self, path: &Path) -> Sample {
        let mut acceptor = Self::start("guest", &format!("path={};manner=leave", path.display()));
        acceptor.receive();
        assert!(acceptor.wait().success());
        let mut last = Sample::of(self.pid());
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(20));
            last = Sample::of(self.pid());
        }
        last
    }

    /// Waits until a server has no more than this, and tells what is too much.
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

    /// Gives an order. Whether it was heard, the answer says.
    pub(crate) fn send(&mut self, order: &str) {
        if let Some(orders) = &mut self.orders {
            let _may_be_over = writeln!(orders, "{order}");
        }
    }

    /// What it says next.
    ///
    /// # Panics
    ///
    /// If that is a fault, or nothing.
    pub(crate) fn receive(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|_| panic!("{} {} has ended, or says nothing", self.role, self.pid()));
        assert!(!line.starts_with("fault"), "{}: {line}", self.role);
        line
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.send(order);
        self.receive()
    }

    /// The numbers that it answers.
    pub(crate) fn numbers(&mut self, order: &str) -> Vec<u64> {
        let line = self.ask(order);
        line.split(' ').map(|it| it.parse().unwrap_or_else(|_| panic!("{}: {line}", self.role))).collect()
    }

    pub(crate) fn signal(&self, signal: i32) {
        sys::kill(i32::try_from(self.pid()).expect("a number"), signal);
    }

    /// Stops it, all of its threads.
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

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _may_be_over = self.child.0.kill();
        self.child.wait();
    }

    /// Ends it, and wants it to end well.
    pub(crate) fn end(mut self) {
        self.orders = None;
        let status = self.child.wait();
        assert!(status.success(), "{}: {status}", self.role);
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait()
    }
}

/// What this process was told.
#[derive(Debug)]
pub(crate) struct Report(BTreeMap<String, String>);

impl Report {
    fn here() -> Self {
        let report = report();
        let pairs = report.split(';').filter_map(|it| it.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new(self.text("path"))
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("told no {key}"))
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).map(|it| it.parse().expect("a number"))
    }
}

/// In another process: plays the role.
pub(crate) fn play(role: &str) {
    die_with_parent();
    let report = Report::here();
    match role {
        "serve" => serve::serve(&report),
        "crowd" => clients::clients(&report),
        "steady" => clients::steady(&report),
        "worker" => clients::worker(&report),
        "probe" => clients::probe(&report),
        "neighbour" => clients::neighbour(&report),
        "guest" => clients::acceptor(&report),
        "revolver" => clients::revolver(&report),
        "inheritor" => clients::inheritor(),
        "hoarder" => clients::hoarder(&report),
        "starved" => clients::starved(&report),
        "slow" => clients::slow(&report),
        "hunter" => leak_check::hunter(&report),
        "scribbler" => hostile_peers::scribbler(&report),
        "giant" => hostile_peers::giant(&report),
        other => panic!("no role: {other}"),
    }
}

/// In another process: answers.
pub(crate) fn notify(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        exit(0); // Nobody listens any more.
    }
}

/// In another process: tells what must not be, and ends it. In the first, it is a panic, which its check tells.
pub(crate) fn fault(text: &str) -> ! {
    assert!(role().is_some(), "{text}");
    log(&format!("fault: {text}"));
    notify(&format!("fault {}", text.replace('\n', " ")));
    exit(1)
}

/// In another process: the orders, until there are no more.
pub(crate) fn orders() -> impl Iterator<Item = String> {
    BufReader::new(std::io::stdin()).lines().map_while(Result::ok)
}

/// The name of an error's variant.
pub(crate) fn name(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    text.split(|it: char| !it.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// The name of such an error, which prints itself as a text.
pub(crate) fn connect_name(error: &ConnectError) -> String {
    match error {
        ConnectError::Timeout => "Timeout".into(),
        ConnectError::PeerClosed => "PeerClosed".into(),
        ConnectError::Truncated => "Truncated".into(),
        ConnectError::Rejected { code, .. } => format!("Rejected({code:?})"),
        // The kernel's number is not kept by all, its text is.
        ConnectError::Io { source, .. } if source.to_string().contains("os error 24") => "Io(EMFILE)".into(),
        ConnectError::Io { source, .. } => format!("Io({source})"),
        other => other.to_string(),
    }
}

/// As many descriptors as a process may have.
pub(crate) fn most_descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the local.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    usize::try_from(limit.rlim_max).unwrap_or(usize::MAX)
}

/// Who started it ends it, in good order or by its own end; not the Ctrl-C that is meant for that one.
fn die_with_parent() {
    // SAFETY: sets the signal that this process gets when the thread that started it ends, and ignores one.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
}
