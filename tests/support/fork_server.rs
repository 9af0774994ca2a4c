//! A process that forks subjects and reports how they end: hundreds a second, since nothing is exec'ed.
//!
//! ```text
//!   test ── orders, a line each ──▶ fork server ── fork ──▶ subject: does what the line says
//!     ▲                               │ waitpid            │
//!     └── "@stopped", "@over", ... ───┴────────────────────┘ "@" and its text
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::{Kept, forked, me, sys};

/// What a fork server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The subject with this process id was stopped by a signal.
    Stopped(i32),
    /// The subject has ended and is reaped. The number is its exit code, or the negative number of the signal.
    Over(i32),
    /// The subject reported this text.
    Text(String),
}

/// The test's end of a fork server.
#[derive(Debug)]
pub(crate) struct ForkServer {
    child: Kept,
    orders: Option<ChildStdin>,
    reports: Option<Receiver<Report>>,
}

impl ForkServer {
    /// Starts the test again in the role "fork_server", in which it calls [`serve`].
    pub(crate) fn start(test: &str, argument: &str) -> Self {
        let mut command = me(test, "fork_server", argument);
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let orders = child.0.stdin.take();
        let reports = receive(child.0.stdout.take().expect("a pipe"));
        Self { child, orders, reports: Some(reports) }
    }

    /// Returns the channel of reports. It can be taken once.
    pub(crate) fn reports(&mut self) -> Receiver<Report> {
        self.reports.take().expect("taken once")
    }

    /// Orders a fork of a subject that does what the line says.
    pub(crate) fn order(&self, line: &str) {
        let mut orders = self.orders.as_ref().expect("open");
        writeln!(orders, "{line}").expect("the fork server lives");
    }

    /// Ends the fork server. All subjects must have ended as they should.
    pub(crate) fn end(mut self) {
        self.orders = None;
        assert!(self.child.wait().success(), "a subject did not end as it should");
    }
}

/// Runs in the fork server: forks a subject for each order, one after the other. The result of `subject` is its exit code. A
/// panic exits with 101.
pub(crate) fn serve(subject: impl Fn(&str) -> i32) {
    for line in BufReader::new(std::io::stdin()).lines() {
        let line = line.expect("reads");
        let pid = forked(&format!("subject of {line:?}"), || subject(&line));
        loop {
            match sys::wait_for_change(pid) {
                sys::Change::Stopped => report(&format!("stopped {pid}")),
                sys::Change::Over(code) => break report(&format!("over {code}")),
            }
        }
    }
}

/// Returns the reports that a process writes to its standard output.
pub(crate) fn receive(output: ChildStdout) -> Receiver<Report> {
    let (sender, reports) = channel();
    thread::spawn(move || {
        // The test runner's own output may precede the `@` on the same line.
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let reported = lines.filter_map(|line| line.rsplit_once('@').map(|(_, text)| text.to_owned()));
        reported.map(|text| parse(&text)).all(|report| sender.send(report).is_ok())
    });
    reports
}

/// Reports a text to the test, from the fork server or from a subject.
pub(crate) fn report(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "@{text}").and_then(|()| out.flush());
    written.expect("the test listens");
}

fn parse(text: &str) -> Report {
    let number = |text: &str| text.parse().expect("a number");
    match text.split_once(' ') {
        Some(("stopped", pid)) => Report::Stopped(number(pid)),
        Some(("over", code)) => Report::Over(number(code)),
        _ => Report::Text(text.to_owned()),
    }
}
