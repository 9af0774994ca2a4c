//! What the tests of the bodies share: a watchdog.
#![allow(unreachable_pub)] // Each test file has it as its own module.

use std::process::abort;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// The longest time that a test may take before it counts as hung. Slow machines need far less.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Aborts the process with a message if it is not dropped in time.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Starts one that waits for this long.
    pub fn start(name: &str, patience: Duration) -> Self {
        let (alive, dropped) = channel::<()>();
        let name = name.to_owned();
        thread::spawn(move || {
            if dropped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln!`: the test runner captures that, and the process ends before it is shown.
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("HUNG: {name} did not end within {patience:?}\n").as_bytes(),
                );
                abort();
            }
        });
        Self { _alive: alive }
    }
}
