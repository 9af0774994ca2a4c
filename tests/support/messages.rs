//! Payloads that can be verified, and a second process to exchange them with.
//!
//! ```text
//!   test process                            second process: the same binary, `--exact <test>`
//!     role() is None                          role() is Some("...")
//!     Partner::start(options, test, role) ──▶ Options::from_parent()
//!     partner.finish(): it must succeed
//! ```
use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use narrows::{Options, SharedMemoryStream};

use super::process::{PATIENCE, rerun};

/// The second process of a test. It is killed and reaped if the test fails before it has finished.
pub struct Partner {
    child: Child,
    reaped: bool,
}

impl Partner {
    /// Starts this test binary again, with only `test` in it and a role for it.
    pub fn start(options: &Options, test: &str, role: &str) -> (Self, SharedMemoryStream) {
        let (child, stream) = options.spawn(command(test, role)).expect("spawns");
        (Self::of(child), stream)
    }

    /// Takes over a child that was started otherwise.
    pub fn of(child: Child) -> Self {
        Self { child, reaped: false }
    }

    /// Writes to the partner's standard input, which was made a pipe.
    pub fn send(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        input.write_all(text.as_bytes()).expect("listens");
    }

    /// Waits for the partner's end, and panics unless it succeeded.
    pub fn finish(mut self) {
        let status = self.wait();
        assert!(status.success(), "the partner failed: {status}");
    }

    /// Waits for the partner's end.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                self.reaped = true;
                return status;
            }
            assert!(Instant::now() < end, "the partner does not end");
            sleep(Duration::from_millis(2));
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kills");
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns the command that runs this test binary again, with only `test` in it and a role for it.
pub fn command(test: &str, role: &str) -> Command {
    let mut command = rerun(test, role);
    command.stdout(Stdio::null()); // Failures are printed on standard error.
    command
}

/// Replaces the content of `buffer` with the `len` bytes that belong to `seed`.
pub fn payload(seed: u64, len: usize, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.reserve(len + 8);
    for index in 0..len.div_ceil(8) as u64 {
        buffer.extend_from_slice(&word(seed, index));
    }
    buffer.truncate(len);
}

/// Returns the `len` bytes that belong to `seed`.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut buffer = Vec::new();
    payload(seed, len, &mut buffer);
    buffer
}

/// Panics unless `bytes` are exactly those that belong to `seed`.
#[track_caller]
pub fn check(seed: u64, len: usize, bytes: &[u8]) {
    assert_eq!(bytes.len(), len, "the length of message {seed}");
    for (index, chunk) in bytes.chunks(8).enumerate() {
        if word(seed, index as u64)[..chunk.len()] != *chunk {
            panic!("message {seed} of {len} bytes differs within the 8 bytes from {}", index * 8);
        }
    }
}

#[inline]
fn word(seed: u64, index: u64) -> [u8; 8] {
    let x = (seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x ^ x >> 29).to_le_bytes()
}
