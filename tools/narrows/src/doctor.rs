//! `narrows doctor`: the features that narrows needs of a machine, which of them exist, and what to change.
//!
//! Each check runs in a process of its own ([`isolate`]). So a filter that kills the caller of a system call, or a file whose read
//! never returns, ends only that check.

mod cgroups;
mod isolate;
mod kernel;
mod limits;
mod memory;
mod sandbox;
mod self_test;
pub(crate) mod system;

use std::process::ExitCode;
use std::time::Duration;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Works.
    Fine,
    /// Works without it, or may cause trouble later.
    Note,
    /// Connections do not work.
    Problem,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    what: String,
    is: String,
    /// The consequence, and what to change.
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

/// One check.
#[derive(Clone, Copy, Debug)]
struct Check {
    /// The name, also for `--check`.
    name: &'static str,
    run: fn() -> Vec<Finding>,
    /// The verdict if a filter kills the process that makes the check.
    if_killed: Verdict,
    /// The longest time that it may take on a busy machine.
    patience: Duration,
}

impl Check {
    /// A check of something that narrows can work without.
    const fn of(name: &'static str, run: fn() -> Vec<Finding>) -> Self {
        Self { name, run, if_killed: Verdict::Note, patience: Duration::from_secs(20) }
    }

    /// A check of something without which no connection works.
    const fn vital(name: &'static str, run: fn() -> Vec<Finding>) -> Self {
        Self { if_killed: Verdict::Problem, ..Self::of(name, run) }
    }

    /// Gives more time to a check that waits for another process several times.
    const fn long(self) -> Self {
        Self { patience: Duration::from_secs(120), ..self }
    }
}

/// The checks in groups, with their titles.
const GROUPS: [(&str, &[Check]); 5] = [
    ("what this process runs in", sandbox::CHECKS),
    ("the kernel, or what stands before it", kernel::CHECKS),
    ("limits", limits::CHECKS),
    ("memory", memory::CHECKS),
    ("two processes, tried", self_test::CHECKS),
];

/// Makes all checks and shows their results. With a name, makes that check alone, for the process that asked for it.
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
