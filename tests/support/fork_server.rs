//! A process that forks victims and tells how they end: hundreds a second, since nothing is exec'ed.
//!
//! ```text
//!   test ── orders, a line each ──▶ fork server ── fork ──▶ victim: does what the line says
//!     ▲                               │ waitpid            │
//!     └── "@stopped", "@over", ... ───┴────────────────────┘ "@" and what it says
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::{Kept, forked, me, sys};

/// What a fork server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The victim, by its number, was stopped by a signal.
    Stopped(i32),
    /// The victim is over and reaped: its exit code, or the number of the signal, negative.
    Over(i32),
    /// What the victim said.
    Said(String),
}

/// The test's end of a fork server.
#[derive(Debug)]
pub(crate) struct ForkServer {
    child: Kept,
    orders: Option<ChildStdin>,
    reports: Option<Receiver<Report>>,
}

impl ForkServer {
    /// Starts the test again, in the role "fork server"; there it calls [`serve`].
    pub(crate) fn start(test: &str, argument: &str) -> Self {
        let mut command = me(test, "fork_server", argument);
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let orders = child.0.stdin.take();
        let reports = receive(child.0.stdout.take().expect("a pipe"));
        Self { child, orders, reports: Some(reports) }
    }

    /// The reports, for whoever is to hear them.
    pub(crate) fn reports(&mut self) -> Receiver<Report> {
        self.reports.take().expect("taken once")
    }

    /// Has a victim forked that does what the line says.
    pub(crate) fn order(&self, line: &str) {
        let mut orders = self.orders.as_ref().expect("open");
        writeln!(orders, "{line}").expect("the fork server lives");
    }

    /// No more victims.
    pub(crate) fn end(mut self) {
        self.orders = None;
        assert!(self.child.wait().success(), "a victim did not end as it should");
    }
}

/// In the fork server: forks a victim for each order, one after the other. What it returns is its exit
/// code, and a panic is 101.
pub(crate) fn serve(subject: impl Fn(&str) -> i32) {
    for line in BufReader::new(std::io::stdin()).lines() {
        let line = line.expect("reads");
        let pid = forked(&format!("victim of {line:?}"), || subject(&line));
        loop {
            match sys::wait_for_change(pid) {
                sys::Change::Stopped => report(&format!("stopped {pid}")),
                sys::Change::Over(code) => break report(&format!("over {code}")),
            }
        }
    }
}

/// What a process reports on its standard output.
pub(crate) fn receive(output: ChildStdout) -> Receiver<Report> {
    let (notify, reports) = channel();
    thread::spawn(move || {
        // The test runner's own output comes before the mark, on the same line at times.
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        let marked = lines.filter_map(|line| line.rsplit_once('@').map(|(_, text)| text.to_owned()));
        marked.map(|text| parse(&text)).all(|report| notify.send(report).is_ok())
    });
    reports
}

/// Tells the test; from the fork server or from a victim.
pub(crate) fn report(text: &str) {
    let mut out = std::io::stdout().lock();
    let argument = writeln!(out, "@{text}").and_then(|()| out.flush());
    argument.expect("the test listens");
}

fn parse(text: &str) -> Report {
    let number = |text: &str| text.parse().expect("a number");
    match text.split_once(' ') {
        Some(("stopped", pid)) => Report::Stopped(number(pid)),
        Some(("over", code)) => Report::Over(number(code)),
        _ => Report::Said(text.to_owned()),
    }
}
