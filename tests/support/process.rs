//! Helpers for tests with several processes: roles, a second run of this binary, a watchdog.

use std::env;
use std::io::Write;
use std::process::{Command, abort};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// The time after which a test counts as hung. It is far more than any busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

const ROLE: &str = "NARROWS_TEST_ROLE";

/// Set in a process that runs one test alone, without a role.
const ALONE: &str = "NARROWS_TEST_ALONE";

/// The full name of the only test that this process runs.
const NAME: &str = "NARROWS_TEST_NAME";

/// Returns the role of this process in a test with several processes, and `None` in the first process.
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// Returns the command that runs this test binary again, with only `test` in it and a role for it. `test` is a name within its
/// module.
///
/// # Panics
///
/// If another test calls this, or there is no such test: a run of no test would count as a success.
pub fn rerun(test: &str, role: &str) -> Command {
    let mut command = run_again(&full_name(test));
    command.env(ROLE, role);
    command
}

/// Returns whether this process runs only this test. If not, runs it alone in another process, and checks that it succeeds.
///
/// A test that changes or counts what belongs to the whole process begins with this. A test in a role has a process of its own
/// already. [`must_be_own`] finds tests that lack this call.
#[must_use]
pub fn alone(test: &str) -> bool {
    if is_own() {
        return true;
    }
    let mut command = run_again(&full_name(test));
    let output = command.env(ALONE, "1").output().expect("runs");
    log(&String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{test}, alone: {}\n{stdout}", output.status);
    assert!(stdout.contains("test result: ok. 1 passed"), "{test} did not run alone: {stdout}");
    false
}

/// The only test of a binary with a harness of its own.
static ONLY: OnceLock<&str> = OnceLock::new();

/// Says that this process runs nothing beside its caller, a test of this name: for a binary with a harness of its own.
pub fn run_nothing_beside(name: &'static str) {
    let _ = ONLY.set(name);
}

/// Returns whether this process runs one test alone.
fn is_own() -> bool {
    ONLY.get().is_some() || role().is_some() || env::var_os(ALONE).is_some()
}

/// Refuses operations that no test may make while others run in the same process.
///
/// # Panics
///
/// In a process that runs several tests.
#[track_caller]
pub fn must_be_own() {
    assert!(is_own(), "this test needs a process of its own: `if !alone(NAME) {{ return; }}`");
}

/// Returns the command that runs this test binary again with only this test, by its full name.
fn run_again(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(NAME, name);
    command
}

/// Returns the full name of a test, with its modules. The runner's threads have that name. A run with one thread gets it from its
/// environment, and other threads look it up.
fn full_name(test: &str) -> String {
    let of_test =
        |name: &str| name == test || name.strip_suffix(test).is_some_and(|path| path.ends_with("::"));
    if let Some(name) = ONLY.get().map(|name| (*name).to_owned()).or_else(|| env::var(NAME).ok()) {
        assert!(of_test(&name), "{test} is not the name of the test {name}");
        return name;
    }
    let here = thread::current();
    if let Some(name) = here.name().filter(|name| *name != "main") {
        assert!(of_test(name), "{test} is not the name of the test {name}");
        return name.to_owned();
    }
    let output = Command::new(env::current_exe().expect("a path")).arg("--list").output().expect("runs");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut names =
        listed.lines().filter_map(|line| line.strip_suffix(": test")).filter(|name| of_test(name));
    let name = names.next().unwrap_or_else(|| panic!("there is no test {test}"));
    assert!(names.next().is_none(), "there are several tests {test}");
    name.to_owned()
}

/// Ends the process with a clear message if it is not dropped in time.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Starts a watchdog that waits for [`PATIENCE`].
    pub fn new(what: &str) -> Self {
        Self::within(what, PATIENCE)
    }

    pub fn within(what: &str, patience: Duration) -> Self {
        let (alive, dropped) = channel::<()>();
        let what = what.to_owned();
        thread::spawn(move || {
            if dropped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                log(&format!("HUNG: {what} did not end within {patience:?} ({:?})", role()));
                log_threads();
                abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Prints for each thread its name, and the number and arguments of the system call that it waits in.
fn log_threads() {
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        log(&format!("  {:?}: {} {}", thread.file_name(), read("comm").trim(), read("syscall").trim()));
    }
}

/// Prints to standard error, which the test runner does not capture.
pub fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Returns whether the condition becomes true within the time that any machine may take.
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE / 2;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        sleep(Duration::from_millis(1));
    }
    false
}

/// Returns the text of an error and of its sources, as a reporter prints them.
pub fn whole(error: &dyn std::error::Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
