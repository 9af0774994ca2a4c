//! Where it runs: what the tables say of the machine, and how much of it others took during a measurement.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::message::Result;

/// What is told above the tables.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub node: String,
    pub rustc: String,
    pub date: String,
}

impl Machine {
    /// Looks; an error without Node, since nothing could be measured.
    pub fn look(node: &Path) -> Result<Self> {
        Ok(Self {
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            node: node_version(node)?,
            rustc: said("rustc", "--version").unwrap_or_else(|_| "unknown".into()),
            date: said("date", "--iso-8601").unwrap_or_else(|_| "unknown".into()),
        })
    }
}

/// An error if processes cannot be pinned.
pub fn needs_taskset() -> Result<()> {
    said("taskset", "--version").map(drop).map_err(|error| {
        format!("pinning needs the command `taskset` (util-linux): {error}; or run with `--pin none`").into()
    })
}

/// CPU seconds that the whole machine has used, in hundredths.
pub fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let numbers = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = numbers.filter_map(|number| number.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((ticks.iter().take(8).sum::<f64>() - idle) / 100.0)
}

fn node_version(node: &Path) -> Result<String> {
    let version = said(node, "--version").map_err(|error| {
        format!(
            "this comparison needs Node.js 20 or later: `{} --version` failed: {error}. Install it, or say where it \
             is with `--node PATH`",
            node.display()
        )
    })?;
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(20..) => Ok(version),
        _ => {
            Err(format!("this comparison needs Node.js 20 or later; {} is {version}", node.display()).into())
        }
    }
}

fn said(program: impl AsRef<std::ffi::OsStr>, word: &str) -> Result<String> {
    let output = Command::new(program).arg(word).output()?;
    if !output.status.success() {
        return Err(format!("{}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split(": ").nth(1).unwrap_or("unknown CPU").into()
}
