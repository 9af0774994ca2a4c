//! What the machine says of itself.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;

/// Kernel, architecture, CPUs.
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

/// CPUs that this process may run on.
pub(crate) fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// As `uname -r` has it.
pub(crate) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The first two numbers of the release.
pub(crate) fn version() -> (u32, u32) {
    parse(&release())
}

fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The value of a line `Key: value` in `/proc/self/status`.
pub(crate) fn status(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// This program again, as its own other process; its words are not shown.
pub(crate) fn this_program(command: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    let path = std::env::current_exe().context("cannot find this program: is /proc mounted?")?;
    let mut again = Command::new(path);
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
        assert!(status("Seccomp").is_some_and(|it| it.parse::<u32>().is_ok()));
    }
}
