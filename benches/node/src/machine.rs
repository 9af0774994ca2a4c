//! The machine that a run was made on, and the programs that it needs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use harness::{Context, Result, ensure};

/// Returns the description of the machine for the heading; fails without Node.js, or if it is too old.
pub fn describe(node: &Path) -> Result<BTreeMap<String, String>> {
    let mut machine = harness::machine();
    machine.insert("node".into(), node_version(node)?);
    for (name, program, option) in [("rustc", "rustc", "--version"), ("date", "date", "--iso-8601")] {
        machine.insert(name.into(), output_of(program, option).unwrap_or_else(|_| "unknown".into()));
    }
    Ok(machine)
}

/// Fails if processes cannot be pinned.
pub fn require_taskset() -> Result<()> {
    output_of("taskset", "--version")
        .map(drop)
        .context("pinning needs the command `taskset` (util-linux); or run with `--pin none`")
}

fn node_version(node: &Path) -> Result<String> {
    let version = output_of(node, "--version").with_context(|| {
        let node = node.display();
        format!("this comparison needs Node.js 20 or later, and `{node} --version` failed; name it with `--node PATH`")
    })?;
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    ensure!(major >= Some(20), "this comparison needs Node.js 20 or later; {} is {version}", node.display());
    Ok(version)
}

fn output_of(program: impl AsRef<OsStr>, option: &str) -> Result<String> {
    let output = Command::new(program).arg(option).output()?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}
