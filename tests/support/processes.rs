//! Children, forks, and the resources of a process.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use narrows::{Options, RecvTimeoutError, SharedMemoryStream};

use super::process::{eventually, log, must_be_own, rerun};
use super::sys;

/// A timeout that is longer than any operation takes on a busy machine. Only a hang exceeds it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Returns the argument that the test gave this process beside its role.
pub(crate) fn argument() -> String {
    std::env::var("NARROWS_ARGUMENT").unwrap_or_default()
}

/// Returns the command that runs the test again in another role.
pub(crate) fn me(test: &str, role: &str, argument: &str) -> Command {
    let mut command = rerun(test, role);
    command.env("NARROWS_ARGUMENT", argument).stdout(Stdio::null());
    command
}

/// A child that does not outlive the test.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Child);

impl Kept {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONG * 3;
        loop {
            if let Some(status) = self.0.try_wait().expect("waits") {
                return status;
            }
            assert!(Instant::now() < deadline, "a child hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) type Verdict = Result<usize, RecvTimeoutError>;

pub(crate) fn verdict(stream: &mut SharedMemoryStream) -> Verdict {
    stream.recv_timeout(&mut [0; 64], LONG).map(|it| it.len)
}

/// Echoes until the end.
pub(crate) fn echo(mut stream: SharedMemoryStream) {
    let mut buffer = Vec::new();
    while stream.recv_into(&mut buffer).is_ok() && stream.send(&buffer).is_ok() {}
}

pub(crate) fn round_trip(stream: &mut SharedMemoryStream, index: u64) {
    let (mut message, mut copy) = (Vec::new(), Vec::new());
    fill(&mut message, index, 200);
    stream.send_timeout(&message, LONG).expect("sends");
    stream.recv_into_timeout(&mut copy, LONG).expect("comes back");
    assert_eq!(index_of(&copy), Some(index));
}

/// Connects as soon as a server listens there: the path may exist a little earlier.
pub(crate) fn reach(path: &Path, options: &Options) -> SharedMemoryStream {
    let mut last = None;
    eventually(|| last.insert(options.connect(path)).is_ok());
    last.expect("tried").expect("reached")
}

/// Forks a process that runs the closure, for at most a minute and a half. The result of the closure is the exit code. A panic is
/// logged with `name`, and the exit code is 101.
pub(crate) fn forked(name: &str, act: impl FnOnce() -> i32) -> i32 {
    let pid = sys::fork();
    if pid == 0 {
        sys::alarm(90);
        let name = name.to_owned();
        std::panic::set_hook(Box::new(move |info| log(&format!("{name}: {info}"))));
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(101);
        sys::exit_now(code);
    }
    pid
}

/// A process that was forked from this one, with no exec.
#[derive(Debug)]
pub(crate) struct Fork {
    pid: i32,
    over: OnceLock<i32>,
}

impl Fork {
    /// Runs the closure in a fork. Its result is the exit code. A panic exits with 101.
    pub(crate) fn run(act: impl FnOnce() -> i32) -> Self {
        must_be_own();
        Self { pid: forked("in a fork", act), over: OnceLock::new() }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn kill(&self) {
        if self.over.get().is_none() {
            sys::kill(self.pid, libc::SIGKILL);
        }
    }

    /// Returns the exit code, or the negative number of the signal that ended the process.
    pub(crate) fn wait(&self) -> i32 {
        *self.over.get_or_init(|| sys::wait_for(self.pid))
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

/// Returns the number of open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    must_be_own();
    std::fs::read_dir("/proc/self/fd").expect("lists").count() - 1
}

/// Returns the number of threads of this process.
pub(crate) fn threads() -> usize {
    must_be_own();
    std::fs::read_dir("/proc/self/task").expect("lists").count()
}

/// Returns whether this process has a thread of this name.
pub(crate) fn runs(name: &str) -> bool {
    must_be_own();
    let tasks = std::fs::read_dir("/proc/self/task").expect("lists");
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().any(|it| it.trim_end() == name)
}

/// Returns the number of this process's mappings whose line has this word.
pub(crate) fn mappings(word: &str) -> usize {
    must_be_own();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("reads");
    maps.lines().filter(|line| line.contains(word)).count()
}

/// Writes a message that can be verified: its index, bytes that follow from it, and a checksum.
pub(crate) fn fill(buffer: &mut Vec<u8>, index: u64, len: usize) {
    let len = len.max(12);
    buffer.clear();
    buffer.extend_from_slice(&index.to_le_bytes());
    let mut random = fastrand::Rng::with_seed(index);
    while buffer.len() < len - 4 {
        let word = random.u64(..).to_le_bytes();
        let room = (len - 4 - buffer.len()).min(8);
        buffer.extend_from_slice(&word[..room]);
    }
    let sum = crc32fast::hash(buffer);
    buffer.extend_from_slice(&sum.to_le_bytes());
}

/// Returns the index of a message, or `None` if the message is damaged.
pub(crate) fn index_of(message: &[u8]) -> Option<u64> {
    let (body, sum) = message.split_last_chunk::<4>()?;
    let whole = crc32fast::hash(body) == u32::from_le_bytes(*sum);
    body.first_chunk::<8>().filter(|_| whole).map(|index| u64::from_le_bytes(*index))
}
