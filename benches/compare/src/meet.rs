//! How the two sides find each other, and how much room each system gets: alike for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Result, Side, anyhow};

/// Longest wait for the other side to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that one direction has room for: 1 MiB of them, but 4 at least, and 4096 at most. A power of two.
pub(crate) const fn slots(size: usize) -> usize {
    let fit = (1 << 20) / if size == 0 { 1 } else { size };
    if fit > 4096 {
        4096
    } else if fit < 4 {
        4
    } else {
        fit.next_power_of_two()
    }
}

/// The paths of the two directions: what this side sends on, and what it receives on.
pub(crate) fn ways(side: Side, folder: &Path) -> [PathBuf; 2] {
    let [ab, ba] = ["ab", "ba"].map(|name| folder.join(name));
    if side == Side::A { [ab, ba] } else { [ba, ab] }
}

/// Says that what lies at this path is complete.
pub(crate) fn announce(path: &Path) -> Result<()> {
    Ok(fs::write(sign(path), "")?)
}

/// Waits until the other side has said so.
pub(crate) fn await_announced(path: &Path) -> Result<()> {
    patiently(|| if sign(path).exists() { Ok(()) } else { Err(format!("{} is missing", path.display())) })
}

/// Leaves a line of text for the other side.
pub(crate) fn tell(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    announce(path)
}

/// Reads what the other side leaves.
pub(crate) fn hear(path: &Path) -> Result<String> {
    await_announced(path)?;
    Ok(fs::read_to_string(path)?)
}

/// Tries until it works, within bounds.
pub(crate) fn patiently<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T> {
    let limit = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > limit => return Err(anyhow!("{error}")),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A name that no other run uses, for systems whose names are of the whole machine.
pub(crate) fn unique(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().replace('.', ""))
}

fn sign(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-ready");
    name.into()
}
