//! `narrows doctor`: what narrows needs of a machine, what is there, what is done without, what to change.

mod kernel;
mod limits;
pub(crate) mod system;
mod trial;

use std::process::ExitCode;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as it should be.
    Fine,
    /// It is done without, or may come to hurt.
    Without,
    /// Connections do not work like this.
    Broken,
}

/// What was found of one thing.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    what: &'static str,
    is: String,
    /// What follows, and what to change.
    advice: Option<String>,
}

impl Finding {
    fn fine(what: &'static str, is: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fine, what, is: is.into(), advice: None }
    }

    fn without(what: &'static str, is: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Without, what, is: is.into(), advice: Some(advice.into()) }
    }

    fn broken(what: &'static str, is: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Broken, what, is: is.into(), advice: Some(advice.into()) }
    }

    fn show(&self) {
        let mark = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Without => "note",
            Verdict::Broken => "FAIL",
        };
        println!("  {mark:<5} {:<20} {}", self.what, self.is);
        for line in self.advice.iter().flat_map(|advice| advice.lines()) {
            println!("        {:<20} -> {}", "", line.trim());
        }
    }
}

/// Checks everything, and says it.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    println!("narrows {} on {}", env!("CARGO_PKG_VERSION"), system::machine());
    type Check = fn() -> Vec<Finding>;
    let parts: [(&str, Check); 3] = [
        ("the kernel, and what filters its calls", kernel::check),
        ("limits and settings", limits::check),
        ("two processes, tried", trial::check),
    ];
    let (mut without, mut broken) = (0, 0);
    for (title, check) in parts {
        println!("\n{title}");
        for finding in check() {
            finding.show();
            without += usize::from(finding.verdict == Verdict::Without);
            broken += usize::from(finding.verdict == Verdict::Broken);
        }
    }
    println!();
    let notes = match without {
        0 => String::new(),
        1 => "; 1 note".into(),
        many => format!("; {many} notes"),
    };
    if broken > 0 {
        println!("narrows does not work here as it is: {broken} failed{notes}");
        return Ok(ExitCode::from(1));
    }
    println!("narrows works here{notes}");
    Ok(ExitCode::SUCCESS)
}
