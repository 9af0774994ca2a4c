//! Runs an example for a test: it is built first, its output goes to a file, and it ends with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn example(name: &str) -> Command {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(Path::parent).expect("target folder");
    let path = folder.join("examples").join(name);
    static BUILT: Once = Once::new();
    BUILT.call_once(|| build_examples(folder));
    Command::new(path)
}

fn build_examples(folder: &Path) {
    let profile = if folder.ends_with("release") { "release" } else { "dev" };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "narrows",
        "--examples",
        "--profile",
        profile,
        "--manifest-path",
    ]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    cargo.arg("--target-dir").arg(folder.parent().expect("target folder"));
    assert!(cargo.status().expect("cargo").success(), "the examples cannot be built");
}

/// A process that does not outlive the test.
pub(crate) struct Ending(pub(crate) Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A process whose output goes into a file, and which does not outlive the test.
pub(crate) struct Run {
    pub(crate) child: Child,
    words: PathBuf,
    _folder: TempDir,
}

impl Run {
    pub(crate) fn start(mut command: Command) -> Self {
        let folder = TempDir::new().expect("folder");
        let words = folder.path().join("words");
        let file = File::create(&words).expect("creates");
        let other = file.try_clone().expect("clones");
        let child = command.stdin(Stdio::piped()).stdout(file).stderr(other).spawn().expect("starts");
        Self { child, words, _folder: folder }
    }

    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.words).expect("reads")).into_owned()
    }

    pub(crate) fn wait_for(&self, word: &str) {
        let start = Instant::now();
        while !self.output().contains(word) {
            assert!(start.elapsed() < PATIENCE, "no {word:?} in {:?}", self.output());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes the process's input, and waits for its end.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        drop(self.child.stdin.take());
        let status = within_patience("the end", || self.child.try_wait().expect("waits"));
        (status, self.output())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Repeats `ask` until it returns a value.
pub(crate) fn within_patience<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the first child of a process.
pub(crate) fn child_of(parent: u32) -> Option<u32> {
    let ours = |pid: &u32| parent_of(*pid) == Some(parent);
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(ours)
}

/// Returns the parent of a running process: the second field after the name in its status line.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    (fields.next()? != "Z").then_some(())?;
    fields.next()?.parse().ok()
}

pub(crate) fn is_running(pid: u32) -> bool {
    parent_of(pid).is_some()
}

pub(crate) fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").arg(name).arg(pid.to_string()).status().expect("kill");
    assert!(sent.success());
}
