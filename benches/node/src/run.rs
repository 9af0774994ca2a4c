//! The rounds: starts side A of each measurement, watches it, and keeps its results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use harness::{Context, Process, Result, bail, busy_seconds};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{NodeConfig, NodeSystem, Outcome, POINTS};
use crate::message::write_template;
use crate::results::{NOT_PINNED, NodeMeasurement, NodeResults};
use crate::rows::{NodeRow, SMALL, phases};
use crate::{machine, report};

/// The choice of measurements.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// How often all is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages of each measurement, in percent of the full number
    #[arg(long, default_value_t = 100.0)]
    percent: f64,
    /// Sizes in bytes: of the raw bytes, or of the object as JSON
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1 << 10, 64 << 10, 1 << 20])]
    sizes: Vec<usize>,
    /// The CPUs of the two sides, such as 0,1; or none. Give it once for each placement [default: 0,1 and none]
    #[arg(long)]
    pin: Vec<String>,
    /// Only systems whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Node.js
    #[arg(long, default_value = "node")]
    node: PathBuf,
    /// Where the results go [default: results, beside this crate]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Measures the chosen rows, and writes the results.
pub fn run(options: &RunOptions) -> Result<()> {
    let pins = match options.pin.as_slice() {
        [] => vec!["0,1".to_owned(), NOT_PINNED.to_owned()],
        given => given.to_vec(),
    };
    for pin in &pins {
        pin_commands(pin, false)?;
    }
    let machine = machine::describe(&options.node)?;
    if pins.iter().any(|pin| pin != NOT_PINNED) {
        machine::require_taskset()?;
    }
    let mut results = NodeResults { machine, rounds: options.rounds, measurements: vec![], failures: vec![] };
    let rows = chosen(options)?;
    let steps = options.rounds * pins.len() * options.sizes.len() * rows.len();
    let bar = progress(steps as u64)?;
    for round in 0..options.rounds {
        for pin in &pins {
            for size in &options.sizes {
                one_of_each(options, &rows, (round, pin, *size), &mut results, &bar)?;
                write(options, &results)?; // A run that is stopped leaves the results so far.
            }
        }
    }
    bar.finish_and_clear();
    println!("{}\nwritten: {}/node.json and node.md", report::markdown(&results), folder(options).display());
    match results.failures.len() {
        0 => Ok(()),
        failed => bail!("{failed} measurements failed"),
    }
}

/// The longest time of one measurement.
const TIMEOUT: Duration = Duration::from_secs(180);

fn chosen(options: &RunOptions) -> Result<Vec<NodeRow>> {
    let mut rows = NodeRow::all();
    if let Some(part) = &options.only {
        rows.retain(|row| row.name().contains(part.as_str()));
    }
    if rows.is_empty() {
        bail!("no system has that in its name");
    }
    Ok(rows)
}

/// Measures all systems one after the other, so that a change of the machine affects all of them.
fn one_of_each(
    options: &RunOptions,
    rows: &[NodeRow],
    (round, pin, size): (usize, &str, usize),
    results: &mut NodeResults,
    bar: &ProgressBar,
) -> Result<()> {
    // Two threads that only spin on one CPU wait for each other's time slice to end: no program does that.
    let one_cpu = pin.split_once(',').is_some_and(|(a, b)| a == b);
    for row in rows.iter().filter(|row| !(one_cpu && row.system == NodeSystem::SharedSpin)) {
        bar.set_message(format!("round {}, pin {pin}, {size} B: {}", round + 1, row.name()));
        match measure(options, *row, pin, size) {
            Ok((trips, rate, others)) => {
                let (pin, name, row) = (pin.to_owned(), row.name(), *row);
                results.measurements.push(NodeMeasurement {
                    row,
                    name,
                    pin,
                    size,
                    round,
                    others,
                    trips,
                    rate,
                });
            }
            Err(error) => {
                let failure = format!("{} of {size} B, pin {pin}, round {}: {error}", row.name(), round + 1);
                bar.suspend(|| eprintln!("failed: {failure}"));
                results.failures.push(failure);
            }
        }
        bar.inc(1);
    }
    Ok(())
}

fn measure(options: &RunOptions, row: NodeRow, pin: &str, size: usize) -> Result<(Outcome, Outcome, f64)> {
    let folder = tempfile::tempdir()?;
    for size in [SMALL, size] {
        write_template(folder.path(), size)?;
    }
    let (pin_a, pin_b) = pin_commands(pin, row.system.is_one_process())?;
    let config = NodeConfig {
        system: row.system,
        kind: row.kind,
        codec: row.codec,
        folder: folder.path().into(),
        largest: size.max(SMALL),
        phases: phases(size, options.percent),
        points: POINTS,
        pin_b,
        node: options.node.clone(),
        rust: std::env::current_exe()?,
    };
    let (busy, began) = (busy_seconds(), Instant::now());
    let mut outcomes = side_a(&config, &pin_a)?;
    let used: f64 = outcomes.iter().map(|phase| phase.cpu_a + phase.cpu_b).sum();
    let others = (busy_seconds() - busy - used) / began.elapsed().as_secs_f64();
    match (outcomes.pop(), outcomes.pop()) {
        (Some(rate), Some(trips)) => Ok((trips, rate, others.max(0.0))),
        _ => bail!("side A reported nothing"),
    }
}

/// Starts side A and returns the outcomes that it reports.
fn side_a(config: &NodeConfig, pin: &[String]) -> Result<Vec<Outcome>> {
    let program = if config.system.is_rust() { &config.rust } else { &config.node };
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("js/driver.js");
    let first = if config.system.is_rust() { "driver".into() } else { script.display().to_string() };
    let words = [program.display().to_string(), first, serde_json::to_string(config)?];
    let mut words = pin.iter().chain(&words);
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words);
    let (sender, output) = mpsc::channel();
    let mut process = Process::start("side A", command, &sender)?;
    let (_, line) = output.recv_timeout(TIMEOUT).with_context(|| format!("no result within {TIMEOUT:?}"))?;
    process.wait(TIMEOUT)?;
    Ok(serde_json::from_str(&line.context("side A reported nothing")?)?)
}

/// Returns the words before the commands of the two sides. One process with two threads gets both CPUs.
fn pin_commands(pin: &str, one_process: bool) -> Result<(Vec<String>, Vec<String>)> {
    if pin == NOT_PINNED {
        return Ok((vec![], vec![]));
    }
    let cpus: Vec<u32> = pin.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [a, b] = cpus[..] else {
        bail!("--pin takes two CPUs, such as 0,1, or {NOT_PINNED}; not {pin}");
    };
    let on = |cpus: String| vec!["taskset".into(), "-c".into(), cpus];
    Ok(if one_process { (on(pin.into()), vec![]) } else { (on(a.to_string()), on(b.to_string())) })
}

fn progress(steps: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left  {wide_msg}")?;
    let bar = ProgressBar::new(steps).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

/// Writes the raw results and the tables.
fn write(options: &RunOptions, results: &NodeResults) -> Result<()> {
    let folder = folder(options);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("node.json"), serde_json::to_string(results)?)?;
    Ok(fs::write(folder.join("node.md"), report::markdown(results))?)
}

fn folder(options: &RunOptions) -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    options.out.clone().unwrap_or_else(beside)
}
