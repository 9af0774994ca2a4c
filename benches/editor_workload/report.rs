//! The results: tables, and all of it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use harness::{Result, ensure};
use serde::Serialize;

use crate::config::Scope;
use crate::item::Tally;
use crate::memory::PeakMemory;
use crate::plan::Plan;
use crate::recorder::{Measured, Metric, Quantiles};
use crate::transport::Transport;

/// All runs.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) machine: BTreeMap<String, String>,
    pub(crate) notes: Vec<String>,
    pub(crate) runs: Vec<TransportRun>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub(crate) struct TransportRun {
    transport: Transport,
    scope: Scope,
    plan: Plan,
    times: BTreeMap<Metric, Quantiles>,
    tally: Tally,
    counts: BTreeMap<String, u64>,
    faults: Vec<String>,
    /// Seconds: the backend's, the editor's, all light clients', all other processes'.
    cpu: [f64; 4],
    /// The backend's and the editor's.
    memory: [PeakMemory; 2],
}

impl TransportRun {
    pub(crate) fn new(
        transport: Transport,
        scope: Scope,
        plan: Plan,
        measured: Measured,
        cpu: [f64; 4],
        memory: [PeakMemory; 2],
    ) -> Self {
        let spread = |(time, values): (&Metric, &Vec<(u64, u64)>)| Some((*time, Quantiles::of(values)?));
        Self {
            transport,
            scope,
            plan,
            times: measured.times.iter().filter_map(spread).collect(),
            tally: measured.tally,
            counts: measured.counts,
            faults: measured.faults,
            cpu,
            memory,
        }
    }
}

/// Returns the name of a run in tables and in the progress.
pub(crate) fn name(transport: Transport, scope: Scope) -> String {
    let transport = match transport {
        Transport::Narrows => "narrows",
        Transport::Unix => "unix socket",
        Transport::Node => "Node.js",
    };
    format!("{transport}{}", if scope == Scope::Chats { ", chats" } else { "" })
}

/// Writes all files and prints the tables; an error if anything was lost, doubled, out of order, changed, or failed.
pub(crate) fn publish(report: &Report, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    fs::write(out.join("editor_workload.json"), serde_json::to_string(report)?)?;
    let text = markdown(report);
    fs::write(out.join("editor_workload.md"), &text)?;
    println!("{text}\nResults: {}", out.join("editor_workload.{json,md}").display());
    for run in &report.runs {
        let name = name(run.transport, run.scope);
        ensure!(run.faults.is_empty(), "{name}: {}", run.faults.join("; "));
        ensure!(run.tally.wrong() == 0, "{name}: {:?}", run.tally);
    }
    Ok(())
}

fn markdown(report: &Report) -> String {
    let mut text = String::from("# The editor workload\n\n");
    let machine: Vec<String> = report.machine.iter().map(|(what, is)| format!("{what}: {is}")).collect();
    let _ = writeln!(text, "seed {}, {} s of chats; {}", report.seed, report.seconds, machine.join("; "));
    report.notes.iter().for_each(|note| _ = writeln!(text, "\n{note}"));
    for (scope, title) in [(Scope::Whole, "All flows"), (Scope::Chats, "The chats alone, beside Node.js")] {
        let runs: Vec<&TransportRun> = report.runs.iter().filter(|run| run.scope == scope).collect();
        if !runs.is_empty() {
            let _ = writeln!(text, "\n## {title}\n");
            times(&mut text, &runs);
            costs(&mut text, &runs);
        }
    }
    text
}

/// A row for each time, a column for each transport.
fn times(text: &mut String, runs: &[&TransportRun]) {
    head(text, "us: p50 / p99 / p99.9 / most", runs);
    let all: BTreeSet<Metric> = runs.iter().flat_map(|run| run.times.keys().copied()).collect();
    for time in all {
        row(text, time.name(), runs, |run| {
            let quantiles = run.times.get(&time)?;
            Some(format!("{} ({})", quantiles.nanos.map(micros).join(" / "), quantiles.count))
        });
    }
    text.push_str("\nIn brackets how many.\n\n");
}

fn costs(text: &mut String, runs: &[&TransportRun]) {
    head(text, "", runs);
    row(text, "CPU seconds: backend / editor / light clients / others on the machine", runs, |run| {
        Some(run.cpu.map(|seconds| format!("{seconds:.2}")).join(" / "))
    });
    let pair = |memory: [u64; 2]| Some(memory.map(|kib| kib.to_string()).join(" / "));
    row(text, "private KiB at most: backend / editor", runs, |run| pair(run.memory.map(|it| it.private)));
    row(text, "shared KiB at most: backend / editor", runs, |run| pair(run.memory.map(|it| it.shared)));
    let items =
        |run: &TransportRun| Some(format!("{} / {:.0}", run.tally.items, run.tally.bytes as f64 / 1e6));
    row(text, "items / MB received and checked", runs, items);
    row(text, "lost / duplicated / out of order / changed", runs, |run| {
        let Tally { lost, duplicated, reordered, corrupt, .. } = run.tally;
        Some([lost, duplicated, reordered, corrupt].map(|it| it.to_string()).join(" / "))
    });
    let counts: BTreeSet<&String> = runs.iter().flat_map(|run| run.counts.keys()).collect();
    for what in counts {
        row(text, what, runs, |run| run.counts.get(what).map(u64::to_string));
    }
    row(text, "faults", runs, |run| (!run.faults.is_empty()).then(|| run.faults.join("; ")));
}

fn head(text: &mut String, first: &str, runs: &[&TransportRun]) {
    let names: Vec<String> = runs.iter().map(|run| name(run.transport, run.scope)).collect();
    let _ = writeln!(text, "| {first} | {} |\n|---|{}", names.join(" | "), "---|".repeat(runs.len()));
}

/// Adds a row, unless no transport has a value for it.
fn row(
    text: &mut String,
    first: &str,
    runs: &[&TransportRun],
    cell: impl Fn(&TransportRun) -> Option<String>,
) {
    let cells: Vec<Option<String>> = runs.iter().map(|run| cell(run)).collect();
    if cells.iter().any(Option::is_some) {
        let cells: Vec<String> = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".into())).collect();
        let _ = writeln!(text, "| {first} | {} |", cells.join(" | "));
    }
}

/// Formats microseconds with three digits.
#[allow(clippy::cast_precision_loss)]
fn micros(nanos: u64) -> String {
    let micros = nanos as f64 / 1e3;
    match micros {
        ..10.0 => format!("{micros:.2}"),
        10.0..100.0 => format!("{micros:.1}"),
        _ => format!("{micros:.0}"),
    }
}
