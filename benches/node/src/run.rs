//! The rounds: starts side A of each measurement, watches it, and keeps what it says.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::Wanted;
use crate::config::{Config, Outcome, System};
use crate::machine::{Machine, busy_seconds, needs_taskset};
use crate::message::{Result, write_template};
use crate::report;
use crate::rows::{Row, SMALL, phases};

/// All that was measured, and where: the raw results.
#[derive(Debug, Deserialize, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub rounds: usize,
    /// Where in the distribution the quantiles stand.
    pub points: Vec<f64>,
    pub measurements: Vec<Measurement>,
    /// What did not come to its end, and why.
    pub failures: Vec<String>,
}

/// One start of both sides.
#[derive(Debug, Deserialize, Serialize)]
pub struct Measurement {
    pub row: Row,
    pub name: String,
    pub pin: String,
    pub size: usize,
    pub round: usize,
    /// CPUs that others used meanwhile, and the two sides to start.
    pub others: f64,
    pub trips: Outcome,
    pub rate: Outcome,
}

/// Measures what is wanted, and writes the results.
pub fn run(wanted: &Wanted) -> Result<()> {
    let pins = match wanted.pin.as_slice() {
        [] => vec!["0,1".to_owned(), NOT_PINNED.to_owned()],
        given => given.to_vec(),
    };
    for pin in &pins {
        pin_commands(pin, false)?;
    }
    let machine = Machine::look(&wanted.node)?;
    if pins.iter().any(|pin| pin != NOT_PINNED) {
        needs_taskset()?;
    }
    let mut results =
        Results { machine, rounds: wanted.rounds, points: points(), measurements: vec![], failures: vec![] };
    let rows = chosen(wanted)?;
    let steps = wanted.rounds * pins.len() * wanted.sizes.len() * rows.len();
    let bar = progress(steps as u64)?;
    for round in 0..wanted.rounds {
        for pin in &pins {
            for size in &wanted.sizes {
                one_of_each(wanted, &rows, (round, pin, *size), &mut results, &bar)?;
                write(wanted, &results)?; // It takes long: who stops it has what there is.
            }
        }
    }
    bar.finish_and_clear();
    println!("{}\nwritten: {}/node.json and node.md", report::markdown(&results), folder(wanted).display());
    match results.failures.len() {
        0 => Ok(()),
        failed => Err(format!("{failed} measurements did not come to their end").into()),
    }
}

/// No pinning.
pub const NOT_PINNED: &str = "none";

/// A side A that says nothing for so long is stopped.
const PATIENCE: Duration = Duration::from_secs(180);

fn chosen(wanted: &Wanted) -> Result<Vec<Row>> {
    let mut rows = Row::all();
    if let Some(part) = &wanted.only {
        rows.retain(|row| row.name().contains(part.as_str()));
    }
    if rows.is_empty() {
        return Err("no system has that in its name".into());
    }
    Ok(rows)
}

/// All systems, one after the other: what the machine does to one it does to its neighbours too.
fn one_of_each(
    wanted: &Wanted,
    rows: &[Row],
    (round, pin, size): (usize, &str, usize),
    results: &mut Results,
    bar: &ProgressBar,
) -> Result<()> {
    // Two that only spin on one CPU each wait for the end of the other's slice: nobody would do that.
    let one_cpu = pin.split_once(',').is_some_and(|(a, b)| a == b);
    for row in rows.iter().filter(|row| !(one_cpu && row.system == System::SharedSpin)) {
        bar.set_message(format!("round {}, pin {pin}, {size} B: {}", round + 1, row.name()));
        match measure(wanted, *row, pin, size) {
            Ok((trips, rate, others)) => {
                let (pin, name, row) = (pin.to_owned(), row.name(), *row);
                results.measurements.push(Measurement { row, name, pin, size, round, others, trips, rate });
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

fn measure(wanted: &Wanted, row: Row, pin: &str, size: usize) -> Result<(Outcome, Outcome, f64)> {
    let folder = tempfile::tempdir()?;
    for size in [SMALL, size] {
        write_template(folder.path(), size)?;
    }
    let (pin_a, pin_b) = pin_commands(pin, row.system.is_one_process())?;
    let config = Config {
        system: row.system,
        kind: row.kind,
        codec: row.codec,
        folder: folder.path().into(),
        largest: size.max(SMALL),
        phases: phases(size, wanted.percent),
        points: points(),
        pin_b,
        node: wanted.node.clone(),
        rust: std::env::current_exe()?,
    };
    let (busy, began) = (busy_seconds()?, Instant::now());
    let mut outcomes = side_a(&config, &pin_a)?;
    let used: f64 = outcomes.iter().map(|phase| phase.cpu_a + phase.cpu_b).sum();
    let others = (busy_seconds()? - busy - used) / began.elapsed().as_secs_f64();
    match (outcomes.pop(), outcomes.pop()) {
        (Some(rate), Some(trips)) => Ok((trips, rate, others.max(0.0))),
        _ => Err("side A said nothing".into()),
    }
}

/// Starts side A and waits for its line; stops it if none comes.
fn side_a(config: &Config, pin: &[String]) -> Result<Vec<Outcome>> {
    let program = if config.system.is_rust() { &config.rust } else { &config.node };
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("js/drive.js");
    let first = if config.system.is_rust() { "drive".into() } else { script.display().to_string() };
    let words = [program.display().to_string(), first, serde_json::to_string(config)?];
    let mut words = pin.iter().chain(&words);
    let mut command = Command::new(words.next().ok_or("no command")?);
    let mut child = command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let said = listen(&mut child);
    if said.is_err() {
        let _already_gone = child.kill();
    }
    let status = child.wait()?;
    let text = said?;
    if !status.success() {
        return Err(format!("side A ended with {status}").into());
    }
    Ok(serde_json::from_str(&text)?)
}

/// What it writes until its end.
fn listen(child: &mut Child) -> Result<String> {
    let mut output = child.stdout.take().ok_or("no output")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = output.read_to_string(&mut text);
        tell.send(read.map(|_| text))
    });
    match told.recv_timeout(PATIENCE) {
        Ok(text) => Ok(text?),
        Err(_) => Err(format!("no result within {} s", PATIENCE.as_secs()).into()),
    }
}

/// What stands before the commands of the two sides. One process with two threads gets both CPUs.
fn pin_commands(pin: &str, one_process: bool) -> Result<(Vec<String>, Vec<String>)> {
    if pin == NOT_PINNED {
        return Ok((vec![], vec![]));
    }
    let cpus: Vec<u32> = pin.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [a, b] = cpus[..] else {
        return Err(format!("--pin wants two CPUs, such as 0,1, or {NOT_PINNED}; not {pin}").into());
    };
    let on = |cpus: String| vec!["taskset".into(), "-c".into(), cpus];
    Ok(if one_process { (on(pin.into()), vec![]) } else { (on(a.to_string()), on(b.to_string())) })
}

/// Each percent, and the tail.
fn points() -> Vec<f64> {
    let percents = (0..100).map(|percent| f64::from(percent) / 100.0);
    percents.chain([0.999, 0.9999, 1.0]).collect()
}

fn progress(steps: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left  {wide_msg}")?;
    let bar = ProgressBar::new(steps).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

/// Writes the raw results and the tables.
fn write(wanted: &Wanted, results: &Results) -> Result<()> {
    let folder = folder(wanted);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("node.json"), serde_json::to_string(results)?)?;
    Ok(fs::write(folder.join("node.md"), report::markdown(results))?)
}

fn folder(wanted: &Wanted) -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    wanted.out.clone().unwrap_or_else(beside)
}
