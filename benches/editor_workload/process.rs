//! A process of a run: what it says comes as lines, and it never outlives its handle.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, bail, monotonic};

use crate::lines::Line;

/// Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
}

/// What came of whom: a line, or the end of its output.
pub(crate) type Heard = (u32, Option<Line>);

impl Process {
    pub(crate) fn start(name: &'static str, mut command: Command, tell: &Sender<Heard>) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (id, tell) = (child.id(), tell.clone());
        if let Some(out) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
                    // Half a line is what one leaves that was killed.
                    if let Ok(line) = serde_json::from_str(&line) {
                        let _nobody = tell.send((id, Some(line)));
                    }
                }
                let _nobody = tell.send((id, None));
            });
        }
        Ok(Self { child, name })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it the hard way; when that was.
    pub(crate) fn kill(&mut self) -> Result<u64> {
        let now = monotonic();
        self.child.kill()?;
        self.child.wait()?;
        Ok(now)
    }

    /// It has nothing more to do.
    pub(crate) fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<()> {
        self.end_input();
        let until = Instant::now() + patience;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the {} ended with {status}", self.name),
                None if Instant::now() > until => bail!("the {} does not come to its end", self.name),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
