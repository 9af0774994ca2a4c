//! Many connections at once, on which little happens: what they cost in CPU and in memory.
//!
//! `Idle`: side B has a thread for each connection that waits for a message, side A holds the other ends; after a
//! second of rest both count CPU and sleeps. `Memory`: one thread on each side; 300 round trips over each
//! connection, after which the growth of the process since before the first is divided by their number.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::endpoint::Endpoint;
use crate::record::SideReport;
use crate::source::Checked;
use crate::system::{Job, Side, System, Work, WorkKind};
use crate::timing::UsageMeter;

const REST: Duration = Duration::from_secs(1);
const TRIPS: usize = 300;

pub(crate) fn run<S: System>(job: &Job) -> Result<SideReport> {
    match (job.work.kind, job.side) {
        (WorkKind::Idle, Side::A) => hold::<S>(job),
        (WorkKind::Idle, Side::B) => wait_in_all::<S>(job),
        _ => grow::<S>(job),
    }
}

/// The job of one connection of many: one message at a time, in a folder of its own.
fn one_of(job: &Job, index: usize) -> Result<Job> {
    let folder = job.folder.join(index.to_string());
    fs::create_dir_all(&folder)?;
    Ok(Job { folder, work: Work { batch: 1, ..job.work }, ..job.clone() })
}

fn hold<S: System>(job: &Job) -> Result<SideReport> {
    let jobs = (0..job.work.batch).map(|index| one_of(job, index)).collect::<Result<Vec<_>>>()?;
    let mut endpoints = jobs.iter().map(Endpoint::<S>::open).collect::<Result<Vec<_>>>()?;
    endpoints.iter_mut().try_for_each(|endpoint| endpoint.agree(Checked::Mark))?;
    thread::sleep(REST);
    let meter = UsageMeter::start(false);
    thread::sleep(job.time);
    let report = meter.stop(job.work.batch as u64);
    thread::sleep(REST / 4); // Side B has begun a little later.
    endpoints.iter_mut().try_for_each(|endpoint| endpoint.agree(Checked::Stop))?;
    Ok(report)
}

fn wait_in_all<S: System>(job: &Job) -> Result<SideReport> {
    let ready = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let wait = move |index| -> Result<()> {
            let job = one_of(job, index)?;
            let mut endpoint = Endpoint::<S>::open(&job)?;
            while endpoint.answer_signal()? != Checked::Stop {
                ready.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..job.work.batch).map(|index| scope.spawn(move || wait(index))).collect();
        let limit = Instant::now() + Duration::from_secs(15);
        while ready.load(Ordering::Relaxed) < job.work.batch {
            ensure!(Instant::now() < limit, "not all connections were made");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(REST);
        let meter = UsageMeter::start(false);
        thread::sleep(job.time);
        let report = meter.stop(job.work.batch as u64);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a waiting thread panicked"))??;
        }
        Ok(report)
    })
}

#[allow(clippy::cast_precision_loss)]
fn grow<S: System>(job: &Job) -> Result<SideReport> {
    let jobs = (0..job.work.batch).map(|index| one_of(job, index)).collect::<Result<Vec<_>>>()?;
    let (meter, before) = (UsageMeter::start(false), memory()?);
    let mut endpoints = Vec::with_capacity(jobs.len());
    for job in &jobs {
        endpoints.push(Endpoint::<S>::open(job)?);
    }
    for endpoint in &mut endpoints {
        for _ in 0..TRIPS {
            if job.side == Side::A { endpoint.round_trip()? } else { endpoint.echo()? }
        }
    }
    let after = memory()?;
    // Neither side closes before the other has read its memory.
    for endpoint in &mut endpoints {
        if job.side == Side::A {
            endpoint.agree(Checked::Stop)?
        } else {
            endpoint.answer_signal().map(drop)?
        }
    }
    let mut report = meter.stop(job.work.batch as u64);
    let each = |after: u64, before: u64| (after as f64 - before as f64) / job.work.batch as f64;
    report.more.insert("private KiB".into(), each(after.0, before.0));
    report.more.insert("shared KiB".into(), each(after.1, before.1));
    Ok(report)
}

/// KiB of private memory, and this process's share of what is shared.
fn memory() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|it| it.trim_end_matches("kB").trim().parse().ok());
        number.ok_or_else(|| anyhow!("no {name} in smaps_rollup"))
    };
    Ok((of("Anonymous:")?, of("Pss_Shmem:")?))
}
