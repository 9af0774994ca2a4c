//! What every test with several processes needs: roles, a second run of this binary, a watchdog.
#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it, through its own harness.

use std::env;
use std::io::Write;
use std::process::{Command, abort};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// How long a test may take before it counts as hung: far more than any busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

const ROLE: &str = "NARROWS_TEST_ROLE";

/// The part that this process plays in a test of several; nothing in the one started by hand.
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// This test binary again, with only `test` in it and a role for it to play.
///
/// # Panics
///
/// If another test asks: a name that no test has would run none, and that counts as a success.
pub fn rerun(test: &str, role: &str) -> Command {
    let here = thread::current();
    let known = here.name().filter(|name| *name != "main"); // Only the runner's threads have names.
    assert!(known.is_none_or(|name| name == test), "{test} is not the name of the test {known:?}");
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env(ROLE, role);
    command
}

/// Ends the process with a clear message if it is not dropped in time.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// One that waits for [`PATIENCE`].
    pub fn new(what: &str) -> Self {
        Self::within(what, PATIENCE)
    }

    pub fn within(what: &str, patience: Duration) -> Self {
        let (alive, dropped) = channel::<()>();
        let what = what.to_owned();
        thread::spawn(move || {
            if dropped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                say(&format!("HUNG: {what} did not end within {patience:?} ({:?})", role()));
                say_threads();
                abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Prints what each thread waits in: its name, and the number and arguments of its system call.
fn say_threads() {
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        say(&format!("  {:?}: {} {}", thread.file_name(), read("comm").trim(), read("syscall").trim()));
    }
}

/// Prints where the test runner does not catch it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether the condition comes true, for as long as any machine may take.
pub fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE / 2;
    while Instant::now() < until {
        if condition() {
            return true;
        }
        sleep(Duration::from_millis(1));
    }
    false
}
