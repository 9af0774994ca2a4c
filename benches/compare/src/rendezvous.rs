//! How the two sides find each other, and how much room each system gets: alike for all.

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Result, Side, retry};

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

/// Marks the file at this path as complete.
pub(crate) fn announce(path: &Path) -> Result<()> {
    Ok(fs::write(sign(path), "")?)
}

/// Waits for that mark of the other side.
pub(crate) fn await_announced(path: &Path) -> Result<()> {
    retry(|| if sign(path).exists() { Ok(()) } else { Err(format!("{} is missing", path.display())) })
}

/// Writes a line of text for the other side.
pub(crate) fn publish(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    announce(path)
}

/// Reads the line of the other side, once it is there.
pub(crate) fn read_published(path: &Path) -> Result<String> {
    await_announced(path)?;
    Ok(fs::read_to_string(path)?)
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
