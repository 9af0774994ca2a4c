//! Runs each check in a process of its own: this program again, as `doctor --check NAME`.
//!
//! A seccomp filter may kill a process that makes a call which it does not know, and a read from a broken file system may never
//! return. Then that process is killed, and the doctor reports it.
//!
//! The process prints records: a verdict and three texts, or the action that it is about to do.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::{Check, Finding, GROUPS, Verdict, system};

/// Separates two fields of a record.
const FIELD: char = '\u{1f}';
/// Ends each record.
const RECORD: char = '\u{1e}';
/// The first field of a record that says what comes next.
const ABOUT_TO: &str = "about to";

/// Whether this process makes one check for another process.
static ISOLATED: AtomicBool = AtomicBool::new(false);

/// Reports what this process does next, in case a filter kills it for that: "calls memfd_create".
pub(super) fn about_to(act: &str) {
    if !ISOLATED.load(Ordering::Relaxed) {
        return;
    }
    print!("{ABOUT_TO}{FIELD}{act}{RECORD}");
    let _flushed = std::io::stdout().flush();
}

/// Names the system calls that come next.
pub(super) fn about_to_call(calls: &str) {
    about_to(&format!("calls {calls}"));
}

/// Makes the check of this name, and prints what it found.
pub(super) fn answer(name: &str) -> anyhow::Result<ExitCode> {
    let mut checks = GROUPS.iter().flat_map(|(_, checks)| checks.iter());
    let check = checks.find(|check| check.name == name).context("there is no such check")?;
    ISOLATED.store(true, Ordering::Relaxed);
    for finding in (check.run)() {
        let Finding { verdict, what, is, advice } = finding;
        print!("{verdict:?}{FIELD}{what}{FIELD}{is}{FIELD}{advice}{RECORD}");
    }
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the check in a process of its own. Returns its findings, or how that process ended.
pub(super) fn ask(check: &Check) -> Vec<Finding> {
    let started = system::this_program("doctor", &["--check", check.name])
        .and_then(|mut command| Ok(command.stdout(Stdio::piped()).spawn()?));
    let child = match started {
        Ok(child) => child,
        // Makes the check in this process, unless a filter might kill it.
        Err(_) if !system::is_filtered() => return (check.run)(),
        Err(error) => {
            let is = format!("not asked: a filter is in force, and no process can be started: {error:#}");
            return vec![Finding::note(
                check.name,
                is,
                "let the filter and the limits of processes allow it",
            )];
        }
    };
    let (ended, output) = collect(child, check.patience);
    let (mut findings, about_to) = read(&output);
    let lost = match ended {
        Some(status) if status.success() => return findings,
        Some(status) if status.signal() == Some(Signal::SYS.as_raw()) => {
            let does = about_to.unwrap_or_else(|| format!("calls {}", check.name));
            let is = format!("a filter kills the program that {does}");
            let advice = "let the filter allow it, or refuse it with ENOSYS (systemd: SystemCallFilter=, SystemCallErrorNumber=)";
            Finding::new(check.if_killed, check.name, is, advice)
        }
        Some(status) => Finding::problem(check.name, format!("the check ended with {status}"), REPORT),
        None => {
            let is = format!("no answer in {} s: the check was ended", check.patience.as_secs());
            Finding::problem(check.name, is, "a file or a call hangs: see `dmesg`, and what is mounted")
        }
    };
    findings.push(lost);
    findings
}

/// The advice for unexpected results.
pub(super) const REPORT: &str = "this is a bug, or a check is missing: report it with this output";

/// Returns the exit status of the process, if it ended in time, and what it printed.
fn collect(mut child: Child, patience: Duration) -> (Option<ExitStatus>, String) {
    let deadline = Instant::now() + patience;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            _ => {
                let _gone = child.kill();
                let _reaped = child.wait();
                break None;
            }
        }
    };
    // The output is far smaller than a pipe's buffer, and the children of the process do not inherit the pipe.
    let mut output = Vec::new();
    let _what_there_is = child.stdout.take().map(|mut out| out.read_to_end(&mut output));
    (ended, String::from_utf8_lossy(&output).into_owned())
}

/// Returns the findings of these records, and the last action that the process was about to do.
fn read(output: &str) -> (Vec<Finding>, Option<String>) {
    let (mut findings, mut last) = (Vec::new(), None);
    for record in output.split(RECORD) {
        let fields: Vec<_> = record.split(FIELD).collect();
        match fields[..] {
            [ABOUT_TO, next] => last = Some(next.to_owned()),
            [verdict, what, is, advice] => {
                let verdict = match verdict {
                    "Fine" => Verdict::Fine,
                    "Note" => Verdict::Note,
                    _ => Verdict::Problem,
                };
                findings.push(Finding::new(verdict, what, is, advice));
            }
            _ => {}
        }
    }
    (findings, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let output =
            "about to\u{1f}one\u{1e}Note\u{1f}a\u{1f}b\u{1f}c\u{1e}about to\u{1f}two\u{1e}Fine\u{1f}d";
        let (findings, last) = read(output);
        assert_eq!(findings, [Finding::note("a", "b", "c")]);
        assert_eq!(last.as_deref(), Some("two"));
    }

    #[test]
    fn every_check_has_a_name_of_its_own_and_finds_something() {
        let mut names = Vec::new();
        for check in GROUPS.iter().flat_map(|(_, checks)| checks.iter()) {
            assert!(!names.contains(&check.name), "{}", check.name);
            names.push(check.name);
        }
        assert!(answer("no such").is_err());
    }

    #[test]
    fn a_check_that_does_not_end_is_killed() {
        let sleep =
            std::process::Command::new("sleep").arg("600").stdout(Stdio::piped()).spawn().expect("sleep");
        assert_eq!(collect(sleep, Duration::from_millis(20)), (None, String::new()));
    }
}
