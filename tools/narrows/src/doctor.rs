//! `narrows doctor`: what narrows needs of a machine, what is there, what is done without, what to change.
//!
//! Each check runs in a process of its own ([`isolate`]), so that a filter that kills what calls something, or a file that
//! never answers, ends that check alone.

mod cgroups;
mod isolate;
mod kernel;
mod limits;
mod memory;
mod sandbox;
pub(crate) mod system;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as it should be.
    Fine,
    /// It is done without, or may come to hurt.
    Note,
    /// Connections do not work like this.
    Problem,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    what: String,
    is: String,
    /// What follows, and what to change.
    advice: String,
}

impl Finding {
    fn new(verdict: Verdict, what: &str, is: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict, what: what.to_owned(), is: is.into(), advice: advice.into() }
    }

    fn fine(what: &str, is: impl Into<String>) -> Self {
        Self::new(Verdict::Fine, what, is, "")
    }

    fn note(what: &str, is: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Verdict::Note, what, is, advice)
    }

    fn problem(what: &str, is: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Verdict::Problem, what, is, advice)
    }

    fn show(&self) {
        let mark = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "PROBLEM",
        };
        println!("  {mark:<8} {:<20} {}", self.what, self.is);
        if !self.advice.is_empty() {
            println!("           {:<20} -> {}", "", self.advice);
        }
    }
}

/// One thing to look at.
#[derive(Clone, Copy, Debug)]
struct Check {
    /// Its name, also for `--check`.
    name: &'static str,
    run: fn() -> Vec<Finding>,
    /// What it is if a filter kills the program that asks.
    if_killed: Verdict,
    /// How long it may take on a busy machine.
    patience: Duration,
}

impl Check {
    /// Something that is done without where it is missing.
    const fn of(name: &'static str, run: fn() -> Vec<Finding>) -> Self {
        Self { name, run, if_killed: Verdict::Note, patience: Duration::from_secs(20) }
    }

    /// Something without which no connection works.
    const fn vital(name: &'static str, run: fn() -> Vec<Finding>) -> Self {
        Self { if_killed: Verdict::Problem, ..Self::of(name, run) }
    }

    /// Something that waits for another process, several times.
    const fn long(self) -> Self {
        Self { patience: Duration::from_secs(120), ..self }
    }
}

/// What belongs together, with its title.
const GROUPS: [(&str, &[Check]); 5] = [
    ("what this process runs in", sandbox::CHECKS),
    ("the kernel, or what stands before it", kernel::CHECKS),
    ("limits", limits::CHECKS),
    ("memory", memory::CHECKS),
    ("two processes, tried", trial::CHECKS),
];

/// Makes all checks and shows what they found; or makes this one, for the process that asked for it.
pub(crate) fn run(check: Option<&str>) -> anyhow::Result<ExitCode> {
    if let Some(name) = check {
        return isolate::answer(name);
    }
    println!("narrows {} on {}", env!("CARGO_PKG_VERSION"), system::machine());
    println!("\nfilters of system calls");
    sandbox::filter().show();
    let (mut notes, mut problems) = (0, 0);
    for (title, checks) in GROUPS {
        println!("\n{title}");
        for check in checks {
            for finding in isolate::ask(check) {
                finding.show();
                notes += usize::from(finding.verdict == Verdict::Note);
                problems += usize::from(finding.verdict == Verdict::Problem);
            }
        }
    }
    println!();
    let counted = |count, what: &str| match count {
        0 => String::new(),
        1 => format!("; 1 {what}"),
        many => format!("; {many} {what}s"),
    };
    let notes = counted(notes, "note");
    if problems > 0 {
        println!("narrows does not work here as it is{}{notes}", counted(problems, "problem"));
        return Ok(ExitCode::from(1));
    }
    println!("narrows works here{notes}");
    Ok(ExitCode::SUCCESS)
}
