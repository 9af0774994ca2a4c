//! Runs rows: two processes for each, under a watchdog, and a probe of the machine before and after.
//!
//! Rows are interleaved: all of round 0, all of round 1, …, so that a slow change of the machine affects all rows alike. A row that
//! was disturbed (the CPUs moved, or others worked) is repeated twice at most, and kept, but not counted, if it still is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::driver::Subject;
use crate::process::{Output, Process};
use crate::record::{CpuPlacement, Row, SideReport, Trial};
use crate::system::{Job, Side, WorkKind};
use crate::{probe, sys};

/// How a run is done.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) warm: Duration,
    pub(crate) cpus: [usize; 2],
    /// Whether rows that were disturbed count.
    pub(crate) keep: bool,
}

/// CPUs that others may take before a row does not count.
const OTHERS: f64 = 0.15;

/// How much the probe may move: before to after, and from the median of the run.
const MOVED: f64 = 1.5;

const REPEATS: usize = 3;

pub(crate) fn run(plan: &RunPlan, subjects: &[Subject], rows: &[Row]) -> Vec<Trial> {
    let bar = ProgressBar::new((plan.rounds * rows.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} of {duration} {wide_msg}")
    {
        bar.set_style(style);
    }
    let mut trials = Vec::new();
    for round in 0..plan.rounds {
        for row in rows {
            bar.set_message(row.to_string());
            let trial = measure(plan, subjects, row, round);
            if let Some(error) = &trial.error {
                bar.suspend(|| eprintln!("{row}: {error}"));
            }
            trials.push(trial);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    drop_moved(plan, &mut trials);
    trials
}

/// Runs one side, in the process or thread that was started for it.
pub(crate) fn side(job: &Job, subjects: &[Subject]) -> Result<SideReport> {
    if let Some(cpus) = job.cpus {
        sys::pin(cpus[usize::from(job.side == Side::B)])?;
    }
    let subject = subject(subjects, &job.system)?;
    (subject.run)(job).with_context(|| format!("side {:?}", job.side))
}

/// Runs both sides as threads of this process.
pub(crate) fn both_sides(job: &Job, subjects: &[Subject]) -> Result<[SideReport; 2]> {
    thread::scope(|scope| {
        let b = scope.spawn(|| side(&Job { side: Side::B, ..job.clone() }, subjects));
        let a = side(job, subjects)?;
        Ok([a, b.join().map_err(|_| anyhow!("side B panicked"))??])
    })
}

/// Measures a row, and repeats it if it was disturbed.
fn measure(plan: &RunPlan, subjects: &[Subject], row: &Row, round: usize) -> Trial {
    let mut trial = attempt(plan, subjects, row, round);
    for _ in 1..REPEATS {
        if trial.clean || trial.error.is_some() {
            break;
        }
        trial = attempt(plan, subjects, row, round);
    }
    trial
}

fn attempt(plan: &RunPlan, subjects: &[Subject], row: &Row, round: usize) -> Trial {
    let before = probe::cache_line(plan.cpus);
    let neighbours = if row.placement == CpuPlacement::Busy { neighbours() } else { Vec::new() };
    let (began, others) = (Instant::now(), probe::cpu_seconds_of_others());
    let outcome = sides(plan, subjects, row);
    let seconds = began.elapsed().as_secs_f64();
    drop(neighbours); // Reaped, so that their CPU time is known.
    let others = (probe::cpu_seconds_of_others() - others) / seconds;
    let probes = [before, probe::cache_line(plan.cpus)];
    let clean = plan.keep || (others < OTHERS && near(probes[0], probes[1]));
    let (sides, error) = match outcome {
        Ok(sides) => (Some(sides), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let [a, b] = sides.map_or([None, None], |sides| sides.map(Some));
    Trial { row: row.clone(), round, probes, others, clean, error, a, b }
}

fn near(one: f64, other: f64) -> bool {
    one.max(other) <= MOVED * one.min(other)
}

/// Excludes rows that were measured while the CPUs were elsewhere than most of the time.
fn drop_moved(plan: &RunPlan, trials: &mut [Trial]) {
    let mut probes: Vec<f64> = trials.iter().flat_map(|trial| trial.probes).collect();
    probes.sort_by(f64::total_cmp);
    let Some(usual) = probes.get(probes.len() / 2).copied() else { return };
    for trial in trials.iter_mut().filter(|_| !plan.keep) {
        trial.clean &= trial.probes.iter().all(|it| near(*it, usual));
    }
}

/// Starts as many busy processes as there are CPUs, at most two.
fn neighbours() -> Vec<Process> {
    let spins = sys::cpus().len().min(2);
    let (output, _nothing) = mpsc::channel();
    (0..spins).filter_map(|_| start(&["--spin"], &output).ok()).collect()
}

fn subject<'a>(subjects: &'a [Subject], name: &str) -> Result<&'a Subject> {
    subjects.iter().find(|it| it.name == name).with_context(|| format!("no system {name}"))
}

fn sides(plan: &RunPlan, subjects: &[Subject], row: &Row) -> Result<[SideReport; 2]> {
    let thread = subject(subjects, &row.system)?.threads;
    let folder = folder()?;
    let cpus = match row.placement {
        CpuPlacement::Two => Some(plan.cpus),
        CpuPlacement::One => Some([plan.cpus[0]; 2]),
        CpuPlacement::Free | CpuPlacement::Busy => None,
    };
    let time = time_for(row, plan.time);
    let (system, work, path) = (row.system.clone(), row.work, folder.path().to_owned());
    let job = Job { side: Side::A, system, work, folder: path, cpus, warm: plan.warm, time, thread };
    let limit = Instant::now() + Duration::from_secs(20) + 4 * (plan.warm + time);
    let mut lines = in_processes(&job, limit)?;
    if thread {
        return Ok(serde_json::from_str(&lines.remove(0))?);
    }
    Ok([serde_json::from_str(&lines[0])?, serde_json::from_str(&lines[1])?])
}

/// Returns the time of a row: rare events need longer, for enough samples.
fn time_for(row: &Row, time: Duration) -> Duration {
    match row.work.kind {
        WorkKind::Idle => 10 * time,
        _ => time.max(row.work.gap * 40),
    }
}

/// Makes a temporary folder, in memory if possible, since some systems map files in it.
fn folder() -> Result<tempfile::TempDir> {
    let named = || tempfile::Builder::new().prefix("bench").to_owned();
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { named().tempdir_in(memory) } else { named().tempdir() };
    Ok(made?)
}

/// Starts the processes and returns the line that each prints, side A's first.
fn in_processes(job: &Job, deadline: Instant) -> Result<Vec<String>> {
    let sides: &[Side] = if job.thread { &[Side::A] } else { &[Side::B, Side::A] }; // Some systems listen at B.
    let (sender, output) = mpsc::channel();
    let (mut processes, mut lines) = (Vec::new(), BTreeMap::new());
    for side in sides {
        let text = serde_json::to_string(&Job { side: *side, ..job.clone() })?;
        processes.push((*side, start(&["--job", &text], &sender)?));
    }
    while lines.len() < sides.len() {
        let Ok((id, line)) = output.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            bail!("the row hung, and was killed");
        };
        match line {
            Some(line) => match line.strip_prefix(FAILED) {
                Some(error) => bail!("{}", error.trim()),
                None => _ = lines.insert(id, line),
            },
            None if lines.contains_key(&id) => {}
            None => {
                let side = processes.iter().find(|(_, process)| process.id() == id).map(|(side, _)| *side);
                bail!("side {side:?} died");
            }
        }
    }
    for (_, process) in &mut processes {
        // Some systems clean up before they exit.
        let _killed_if_late = process.wait(deadline.saturating_duration_since(Instant::now()));
    }
    Ok(processes.iter().rev().filter_map(|(_, process)| lines.remove(&process.id())).collect())
}

/// The prefix of the line of a side that failed.
pub(crate) const FAILED: &str = "FAILED ";

/// Starts this program once more.
fn start(arguments: &[&str], output: &mpsc::Sender<Output>) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Process::start("side", command, output)
}
