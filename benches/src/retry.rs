//! Waiting for the other side to appear.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Repeats an attempt each millisecond until it succeeds.
pub fn retry<T, E: Display>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(anyhow!("{error}")),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
