//! Both sides of one piece of work, and the list of systems of a benchmark.
//!
//! ```text
//!   A: warm up │ mark ─▶ │ measure … │ stop ─▶ │ report
//!   B: echo    │ ◀─ mark │ echo, or  │ ◀─ stop │ report
//!                          count
//! ```
//!
//! B answers the mark, so both sides begin to measure with no message under way. B answers the stop as well, so a
//! rate counts only messages that have arrived.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::endpoint::Endpoint;
use crate::record::SideReport;
use crate::source::Checked;
use crate::system::{Job, Side, System, Work, WorkKind};
use crate::timing::{Samples, UsageMeter};
use crate::{many_connections, sys};

/// A measurement with a driver of its own.
pub trait Measurement {
    /// Its name in the tables.
    const NAME: &'static str;
    /// The version of the crate or library.
    const VERSION: &'static str;

    /// Returns whether it can do this work.
    fn supports(work: &Work) -> bool;

    /// Runs one side.
    fn run(job: &Job) -> Result<SideReport>;
}

/// A system or measurement, as a benchmark lists it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Subject {
    pub name: &'static str,
    pub version: &'static str,
    pub threads: bool,
    pub supports: fn(&Work) -> bool,
    pub run: fn(&Job) -> Result<SideReport>,
}

impl Subject {
    /// Returns the entry of a system.
    pub fn of<S: System>() -> Self {
        Self { name: S::NAME, version: S::VERSION, threads: S::THREADS, supports: S::supports, run: run::<S> }
    }

    /// Returns the entry of a measurement with a driver of its own.
    pub fn measure<M: Measurement>() -> Self {
        Self { name: M::NAME, version: M::VERSION, threads: false, supports: M::supports, run: M::run }
    }
}

/// Lists the systems of a binary: `systems![Narrows, UnixStream]`.
#[macro_export]
macro_rules! systems {
    ($($system:ty),* $(,)?) => { vec![$($crate::Subject::of::<$system>()),*] };
}

fn run<S: System>(job: &Job) -> Result<SideReport> {
    match (job.work.kind, job.side) {
        (WorkKind::RoundTrip, Side::A) => round_trips(job, Endpoint::<S>::open(job)?),
        (WorkKind::OneWay, Side::A) => flood(job, Endpoint::<S>::open(job)?),
        (WorkKind::Wake, Side::A) => wakes(job, Endpoint::<S>::open(job)?),
        (WorkKind::RoundTrip | WorkKind::OneWay | WorkKind::Wake, Side::B) => {
            serve(job, Endpoint::<S>::open(job)?)
        }
        (WorkKind::Idle | WorkKind::Memory, _) => many_connections::run::<S>(job),
        (WorkKind::Connect, _) => bail!("a system has no driver for connects"),
    }
}

/// Repeats an operation for the time of the warm-up, at least three times; returns the nanoseconds of a tick.
fn warm_up(job: &Job, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    let (meter, began) = (UsageMeter::start(true), Instant::now());
    let mut done = 0;
    while done < 3 || began.elapsed() < job.warm {
        operation()?;
        done += 1;
    }
    Ok(meter.nanos_per_tick())
}

fn round_trips<S: System>(job: &Job, mut endpoint: Endpoint<S>) -> Result<SideReport> {
    let gap = job.work.gap;
    let pause = || if gap.is_zero() { 0 } else { pause(gap) };
    let tick = warm_up(job, || {
        pause();
        endpoint.round_trip()
    })?;
    let mut samples = Samples::for_time(job.time, gap);
    endpoint.agree(Checked::Mark)?;
    let meter = UsageMeter::start(job.thread);
    let mut before = sys::ticks();
    let end = before + in_ticks(job.time, tick);
    let mut count = 0;
    while before < end {
        before += pause();
        endpoint.round_trip()?;
        let now = sys::ticks();
        samples.keep(now.wrapping_sub(before));
        before = now;
        count += 1;
    }
    finish(endpoint, &meter, count, Some(samples))
}

fn flood<S: System>(job: &Job, mut endpoint: Endpoint<S>) -> Result<SideReport> {
    let batches = ((65_536 / job.work.size.max(1)).clamp(1, 1024) / job.work.batch).max(1);
    let burst = |endpoint: &mut Endpoint<S>| (0..batches).try_for_each(|_| endpoint.send_batch());
    let tick = warm_up(job, || burst(&mut endpoint))?;
    endpoint.agree(Checked::Mark)?;
    let meter = UsageMeter::start(job.thread);
    let end = sys::ticks() + in_ticks(job.time, tick);
    let mut count = 0;
    while sys::ticks() < end {
        burst(&mut endpoint)?;
        count += (batches * job.work.batch) as u64;
    }
    finish(endpoint, &meter, count, None)
}

fn wakes<S: System>(job: &Job, mut endpoint: Endpoint<S>) -> Result<SideReport> {
    let gap = job.work.gap;
    let mut samples = Samples::for_time(job.time, gap);
    endpoint.agree(Checked::Mark)?;
    let (meter, began) = (UsageMeter::start(job.thread), Instant::now());
    while began.elapsed() < job.time {
        thread::sleep(gap);
        let before = sys::ticks();
        endpoint.send_batch()?;
        samples.keep(sys::ticks().wrapping_sub(before));
    }
    thread::sleep(gap);
    let count = began.elapsed().as_micros() / gap.as_micros().max(1);
    finish(endpoint, &meter, u64::try_from(count)?, Some(samples))
}

fn finish<S: System>(
    mut endpoint: Endpoint<S>,
    meter: &UsageMeter,
    count: u64,
    samples: Option<Samples>,
) -> Result<SideReport> {
    endpoint.agree(Checked::Stop)?;
    let mut report = meter.stop(count);
    report.latency = samples.and_then(|it| it.latency(meter.nanos_per_tick()));
    Ok(report)
}

/// Side B: echoes batch by batch, or counts, up to the stop.
fn serve<S: System>(job: &Job, mut endpoint: Endpoint<S>) -> Result<SideReport> {
    let echo = job.work.kind == WorkKind::RoundTrip;
    let mut meter = UsageMeter::start(job.thread);
    let (mut pending, mut before) = (0, 0);
    loop {
        match endpoint.receive()? {
            Checked::Message if echo => {
                pending += 1;
                if pending == job.work.batch {
                    pending = 0;
                    endpoint.send_batch()?;
                }
            }
            Checked::Message => {}
            Checked::Mark => {
                (meter, before) = (UsageMeter::start(job.thread), endpoint.received());
                endpoint.send_signal(Checked::Mark)?;
            }
            _ => break,
        }
    }
    let report = meter.stop(endpoint.received() - before);
    endpoint.send_signal(Checked::Stop)?;
    Ok(report)
}

/// Sleeps; returns the ticks that it took.
fn pause(gap: Duration) -> u64 {
    let before = sys::ticks();
    thread::sleep(gap);
    sys::ticks().wrapping_sub(before)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn in_ticks(time: Duration, nanos_per_tick: f64) -> u64 {
    (time.as_secs_f64() * 1e9 / nanos_per_tick) as u64
}
