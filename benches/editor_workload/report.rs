//! What the runs come to: tables, pictures, and all of it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use harness::{Chart, Result, ensure};
use serde::Serialize;

use crate::Part;
use crate::item::Tally;
use crate::memory::Memory;
use crate::meter::{Spread, Time, Told};
use crate::plan::Plan;
use crate::transport::Transport;

/// All runs.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) machine: BTreeMap<String, String>,
    pub(crate) notes: Vec<String>,
    pub(crate) legs: Vec<Leg>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub(crate) struct Leg {
    transport: Transport,
    part: Part,
    plan: Plan,
    times: BTreeMap<Time, Spread>,
    tally: Tally,
    counts: BTreeMap<String, u64>,
    faults: Vec<String>,
    /// Seconds: the backend's, the editor's, all light clients', everybody else's on the machine.
    cpu: [f64; 4],
    /// The backend's and the editor's.
    memory: [Memory; 2],
}

impl Leg {
    pub(crate) fn new(
        transport: Transport,
        part: Part,
        plan: Plan,
        told: Told,
        cpu: [f64; 4],
        memory: [Memory; 2],
    ) -> Self {
        let spread = |(time, values): (&Time, &Vec<(u64, u64)>)| Some((*time, Spread::of(values)?));
        Self {
            transport,
            part,
            plan,
            times: told.times.iter().filter_map(spread).collect(),
            tally: told.tally,
            counts: told.counts,
            faults: told.faults,
            cpu,
            memory,
        }
    }
}

/// As tables and progress name a run.
pub(crate) fn name(transport: Transport, part: Part) -> String {
    let transport = match transport {
        Transport::Narrows => "narrows",
        Transport::Unix => "unix socket",
        Transport::Node => "Node.js",
    };
    format!("{transport}{}", if part == Part::Chats { ", chats" } else { "" })
}

/// Writes all files and prints the tables; an error if anything was lost, doubled, out of order, changed, or failed.
pub(crate) fn publish(report: &Report, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    fs::write(out.join("editor_workload.json"), serde_json::to_string(report)?)?;
    let text = markdown(report);
    fs::write(out.join("editor_workload.md"), &text)?;
    println!("{text}\nResults: {}", out.join("editor_workload.{json,md}").display());
    for (time, file) in PICTURES {
        let points = |leg: &Leg| Some((name(leg.transport, leg.part), leg.times.get(&time)?.points.clone()));
        let lines: Vec<_> = report.legs.iter().filter_map(points).filter(|it| it.1.len() > 1).collect();
        if !lines.is_empty() {
            let file = out.join(format!("{file}.svg"));
            Chart::of_tails(format!("{}: how long, up to which share", time.name()), "us", lines)
                .draw(&file)?;
            println!("Plot: {}", file.display());
        }
    }
    for leg in &report.legs {
        let name = name(leg.transport, leg.part);
        ensure!(leg.faults.is_empty(), "{name}: {}", leg.faults.join("; "));
        ensure!(leg.tally.wrong() == 0, "{name}: {:?}", leg.tally);
    }
    Ok(())
}

const PICTURES: [(Time, &str); 8] = [
    (Time::First, "first-chunk"),
    (Time::Delivery, "chunk-delivery"),
    (Time::DeliveryUnpaced, "chunk-delivery-unpaced"),
    (Time::Tool, "tool"),
    (Time::Cancel, "cancel"),
    (Time::Lsp, "lsp"),
    (Time::Light, "light-client"),
    (Time::Reconnect, "reconnect"),
];

fn markdown(report: &Report) -> String {
    let mut text = String::from("# A day in the editor\n\n");
    let machine: Vec<String> = report.machine.iter().map(|(what, is)| format!("{what}: {is}")).collect();
    let _ = writeln!(text, "seed {}, {} s of chats; {}", report.seed, report.seconds, machine.join("; "));
    report.notes.iter().for_each(|note| _ = writeln!(text, "\n{note}"));
    for (part, title) in [(Part::Day, "All of the day"), (Part::Chats, "The chats alone, beside Node.js")] {
        let legs: Vec<&Leg> = report.legs.iter().filter(|leg| leg.part == part).collect();
        if !legs.is_empty() {
            let _ = writeln!(text, "\n## {title}\n");
            times(&mut text, &legs);
            costs(&mut text, &legs);
        }
    }
    text
}

/// A row for each time, a column for each transport.
fn times(text: &mut String, legs: &[&Leg]) {
    head(text, "us: p50 / p99 / p99.9 / most", legs);
    let all: BTreeSet<Time> = legs.iter().flat_map(|leg| leg.times.keys().copied()).collect();
    for time in all {
        row(text, time.name(), legs, |leg| {
            let spread = leg.times.get(&time)?;
            let marks = spread.marks.map(micros);
            Some(format!("{} ({})", marks.join(" / "), spread.count))
        });
    }
    text.push_str("\nIn brackets how many.\n\n");
}

fn costs(text: &mut String, legs: &[&Leg]) {
    head(text, "", legs);
    row(text, "CPU seconds: backend / editor / light clients / others on the machine", legs, |leg| {
        Some(leg.cpu.map(|seconds| format!("{seconds:.2}")).join(" / "))
    });
    let pair = |memory: [u64; 2]| Some(memory.map(|kib| kib.to_string()).join(" / "));
    row(text, "private KiB at most: backend / editor", legs, |leg| pair(leg.memory.map(|it| it.private)));
    row(text, "shared KiB at most: backend / editor", legs, |leg| pair(leg.memory.map(|it| it.shared)));
    let items = |leg: &Leg| Some(format!("{} / {:.0}", leg.tally.items, leg.tally.bytes as f64 / 1e6));
    row(text, "items / MB received and checked", legs, items);
    row(text, "lost / doubled / out of order / changed", legs, |leg| {
        let Tally { lost, duplicated, reordered, corrupt, .. } = leg.tally;
        Some([lost, duplicated, reordered, corrupt].map(|it| it.to_string()).join(" / "))
    });
    let counts: BTreeSet<&String> = legs.iter().flat_map(|leg| leg.counts.keys()).collect();
    for what in counts {
        row(text, what, legs, |leg| leg.counts.get(what).map(u64::to_string));
    }
    row(text, "faults", legs, |leg| (!leg.faults.is_empty()).then(|| leg.faults.join("; ")));
}

fn head(text: &mut String, first: &str, legs: &[&Leg]) {
    let names: Vec<String> = legs.iter().map(|leg| name(leg.transport, leg.part)).collect();
    let _ = writeln!(text, "| {first} | {} |\n|---|{}", names.join(" | "), "---|".repeat(legs.len()));
}

/// Left out if no transport has it.
fn row(text: &mut String, first: &str, legs: &[&Leg], cell: impl Fn(&Leg) -> Option<String>) {
    let cells: Vec<Option<String>> = legs.iter().map(|leg| cell(leg)).collect();
    if cells.iter().any(Option::is_some) {
        let cells: Vec<String> = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".into())).collect();
        let _ = writeln!(text, "| {first} | {} |", cells.join(" | "));
    }
}

/// Three digits.
#[allow(clippy::cast_precision_loss)]
fn micros(nanos: u64) -> String {
    let micros = nanos as f64 / 1e3;
    match micros {
        ..10.0 => format!("{micros:.2}"),
        10.0..100.0 => format!("{micros:.1}"),
        _ => format!("{micros:.0}"),
    }
}
