//! A process that a benchmark starts: its output is read line by line, and it never outlives its handle.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sys;

/// A process, killed when its handle is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: &'static str,
}

/// The number of a process, and a line that it printed, or nothing at the end of its output.
pub type Output = (u32, Option<String>);

impl Process {
    /// Starts a command, with its standard input open and each line of its output sent to `output`.
    pub fn start(name: &'static str, mut command: Command, output: &Sender<Output>) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (id, output) = (child.id(), output.clone());
        if let Some(pipe) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
                    let _receiver_is_gone = output.send((id, Some(line)));
                }
                let _receiver_is_gone = output.send((id, None));
            });
        }
        Ok(Self { child, name })
    }

    /// Returns its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it; returns when that was, in nanoseconds of [`monotonic`](crate::monotonic).
    pub fn kill(&mut self) -> Result<u64> {
        let now = sys::monotonic();
        self.child.kill()?;
        self.child.wait()?;
        Ok(now)
    }

    /// Closes its standard input, which asks it to exit.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Returns whether it has exited.
    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Closes its standard input and blocks until it exits.
    pub fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.close_input();
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the {} exited with {status}", self.name),
                None if Instant::now() > deadline => bail!("the {} does not exit", self.name),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _exited_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
