//! The self-test with two real processes: messages each way, and a death.

use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use narrows::{ConnectError, ConnectionError, Options, RecvTimeoutError, SharedMemoryStream, WaitStrategy};

use super::isolate::{self, REPORT};
use super::{Check, Finding, system};
use crate::child::pattern;
use crate::format;

/// Longer than any step takes.
const LONG: Duration = Duration::from_secs(10);
/// An empty message, one inline in its slot, one in the arena, and one that is fragmented.
const SIZES: [usize; 4] = [0, 100, 100_000, 3 << 20];

pub(super) const CHECKS: &[Check] = &[
    Check::vital("by hand-over", parent_and_child).long(),
    Check::vital("by a path", client_and_server).long(),
];

fn parent_and_child() -> Vec<Finding> {
    outcome("by hand-over", "a child was started, and answered messages of 0 B to 3 MiB", handed_over)
}

fn client_and_server() -> Vec<Finding> {
    outcome("by a path", "a server was reached at its path, and answered messages of 0 B to 3 MiB", by_path)
}

type SelfTest = fn() -> anyhow::Result<Other>;

/// The other process, and the connection to it.
struct Other {
    child: Kept,
    stream: SharedMemoryStream,
    slept: u64,
}

/// A process that is killed when this is dropped.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn outcome(what: &str, is: &str, test: SelfTest) -> Vec<Finding> {
    isolate::about_to("makes, uses or watches a connection");
    let other = match test() {
        Ok(other) => other,
        Err(error) => {
            let advice = format!("this is what programs will meet. If all above is fine, {REPORT}");
            return vec![Finding::problem(what, format::causes(&error), advice)];
        }
    };
    let slept = match other.slept {
        0 => "; no wake-up was needed",
        _ => "; each side slept and was woken",
    };
    vec![Finding::fine(what, format!("{is}{slept}")), death(other)]
}

/// Kills the other process, and checks how its death is reported.
fn death(mut other: Other) -> Finding {
    let what = "  its death";
    let at = Instant::now();
    if let Err(error) = other.child.0.kill() {
        return Finding::problem(what, error.to_string(), "a process could not be killed");
    }
    let reported = other.stream.recv_timeout(&mut [0; 8], LONG);
    let took = format::time(at.elapsed());
    match reported {
        Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)) => {
            Finding::fine(what, format!("reported as `PeerDied` after {took}"))
        }
        Err(RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)) => Finding::note(
            what,
            format!("reported as `Disconnected` after {took}"),
            "connections end all the same; see above for what is missing to know a death as one",
        ),
        Err(RecvTimeoutError::Timeout) => Finding::problem(
            what,
            format!("not reported within {took}"),
            format!(
                "calls without a deadline hang on a dead peer: does a filter kill threads? If not, {REPORT}"
            ),
        ),
        other => Finding::problem(what, format!("reported as {other:?}"), REPORT),
    }
}

fn options() -> Options {
    Options::new().wait(WaitStrategy::Park) // So that both sides sleep, and are woken.
}

fn handed_over() -> anyhow::Result<Other> {
    let command = system::this_program("child", &["--wait", "park"])?;
    let (child, stream) = options().spawn(command)?;
    talk(Kept(child), stream)
}

fn by_path() -> anyhow::Result<Other> {
    let folder = tempfile::tempdir().context("a directory for the socket")?;
    let path = folder.path().join("doctor.sock");
    let mut command: Command = system::this_program("child", &["--wait", "park", "--path"])?;
    let mut child = Kept(command.arg(&path).spawn().context("starting the other process")?);
    let stream = reach(&path, &mut child)?;
    talk(child, stream)
}

/// Connects once the server listens.
fn reach(path: &Path, server: &mut Kept) -> anyhow::Result<SharedMemoryStream> {
    let deadline = Instant::now() + LONG;
    loop {
        match options().connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error @ (ConnectError::Rejected { .. } | ConnectError::NotAuthorized { .. })) => {
                return Err(error.into());
            }
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = server.0.try_wait()? {
            anyhow::bail!("the server could not listen at {}: it ended with {status}", path.display());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn talk(child: Kept, mut stream: SharedMemoryStream) -> anyhow::Result<Other> {
    let mut answer = Vec::new();
    for size in SIZES {
        let message = pattern(size);
        // Receives while it sends, since the message may exceed the ring: the other process reads while this one waits for room.
        let (sender, receiver) = stream.halves();
        thread::scope(|scope| -> anyhow::Result<()> {
            let sent = scope.spawn(|| sender.send_timeout(&message, LONG));
            receiver.recv_into_timeout(&mut answer, LONG)?;
            sent.join().map_err(|_| anyhow::anyhow!("the sending thread panicked"))??;
            Ok(())
        })
        .with_context(|| format!("a message of {size} bytes"))?;
        ensure!(answer == message, "a message of {size} bytes came back changed");
        thread::sleep(Duration::from_millis(5)); // The other process falls asleep.
    }
    let slept = stream.stats().sleeps;
    Ok(Other { child, stream, slept })
}
