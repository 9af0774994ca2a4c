//! Facts about the machine.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;

/// Returns a description: kernel, architecture, CPUs.
pub(crate) fn machine() -> String {
    let name = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = name.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let name = name.map(|name| format!(", {}", name.trim())).unwrap_or_default();
    let cpus = match cpus() {
        1 => "1 CPU".into(),
        many => format!("{many} CPUs"),
    };
    format!("Linux {}, {}, {cpus}{name}", release(), std::env::consts::ARCH)
}

/// Returns the number of CPUs that this process may run on.
pub(crate) fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the release of the kernel, as `uname -r` prints it.
pub(crate) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns the first two numbers of the release.
pub(crate) fn version() -> (u32, u32) {
    parse(&release())
}

fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Returns the text of a file without its last line break, if it can be read.
pub(crate) fn read(path: impl AsRef<std::path::Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Returns the value of a line `Key: value` of a file such as `/proc/self/status` or `/proc/meminfo`.
pub(crate) fn value(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Does the same as [`value`] for a number of KiB, which it returns in bytes.
pub(crate) fn bytes(path: &str, key: &str) -> Option<u64> {
    let kib: u64 = value(path, key)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns whether a seccomp filter is in force, or may be: without `/proc` this is not known.
pub(crate) fn is_filtered() -> bool {
    value("/proc/self/status", "Seccomp").as_deref() != Some("0")
}

/// Returns the command that runs this program again as another process, whose output is discarded.
pub(crate) fn this_program(command: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    // Without /proc the program is found by the name with which it was started.
    let path = std::env::current_exe().ok().or_else(|| std::env::args_os().next().map(PathBuf::from));
    let mut again = Command::new(path.context("cannot find this program: is /proc mounted?")?);
    again.arg(command).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        for (text, is) in
            [("6.18.0", (6, 18)), ("5.4-rc3", (5, 4)), ("4.19.0-27-amd64", (4, 19)), ("x", (0, 0))]
        {
            assert_eq!(parse(text), is, "{text}");
        }
        assert!(version() > (3, 0));
        assert!(value("/proc/self/status", "Seccomp").is_some_and(|it| it.parse::<u32>().is_ok()));
        assert!(bytes("/proc/meminfo", "MemTotal").is_some_and(|it| it > 1 << 20));
    }
}
