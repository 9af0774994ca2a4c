//! Both sides of one piece of work, and what a binary lists.
//!
//! ```text
//!   A: warm up │ mark ─▶ │ measure … │ stop ─▶ │ report
//!   B: echo    │ ◀─ mark │ echo, or  │ ◀─ stop │ report
//!                          count
//! ```
//!
//! The mark is answered, so both sides begin to measure with nothing under way; the stop is answered too, so a
//! rate counts what has arrived.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::record::SideReport;
use crate::sample::{Samples, UsageMeter};
use crate::source::{Check, Checked, Source};
use crate::system::{ReceiveHalf, SendHalf, Side, System, Work, WorkKind};
use crate::{Result, bail, many_connections, sys};

/// What one side of one row has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Which side.
    pub side: Side,
    /// The system's name.
    pub system: String,
    /// The work.
    pub work: Work,
    /// An empty folder that both sides know.
    pub folder: PathBuf,
    /// The CPUs to run on, if any: A's and B's.
    pub cpus: Option<[usize; 2]>,
    /// How long to warm up.
    pub warm: Duration,
    /// How long to measure.
    pub time: Duration,
    /// Whether the sides are threads of one process.
    pub thread: bool,
}

/// A measurement with a driver of its own.
pub trait Measurement {
    /// As the tables name it.
    const NAME: &'static str;
    /// Of the crate or library.
    const VERSION: &'static str;

    /// Whether it can do this work.
    fn supports(work: &Work) -> bool;

    /// One side.
    ///
    /// # Errors
    ///
    /// The row fails then.
    fn run(job: &Job) -> Result<SideReport>;
}

/// A system or measurement, as a binary lists it.
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
    /// A system.
    pub fn of<S: System>() -> Self {
        Self { name: S::NAME, version: S::VERSION, threads: S::THREADS, supports: S::supports, run: run::<S> }
    }

    /// A measurement with a driver of its own.
    pub fn measure<M: Measurement>() -> Self {
        Self { name: M::NAME, version: M::VERSION, threads: false, supports: M::supports, run: M::run }
    }
}

fn run<S: System>(job: &Job) -> Result<SideReport> {
    match (job.work.kind, job.side) {
        (WorkKind::RoundTrip, Side::A) => Link::<S>::open(job)?.round_trips(),
        (WorkKind::OneWay, Side::A) => Link::<S>::open(job)?.flood(),
        (WorkKind::Wake, Side::A) => Link::<S>::open(job)?.wakes(),
        (WorkKind::RoundTrip | WorkKind::OneWay | WorkKind::Wake, Side::B) => Link::<S>::open(job)?.serve(),
        (WorkKind::Idle | WorkKind::Memory, _) => many_connections::run::<S>(job),
        (WorkKind::Connect, _) => bail!("a system has no driver for connects"),
    }
}

/// One side of a connection at work.
pub(crate) struct Link<'a, S: System> {
    sender: S::Sender,
    receiver: S::Receiver,
    source: Source,
    check: Check,
    job: &'a Job,
}

impl<'a, S: System> Link<'a, S> {
    pub(crate) fn open(job: &'a Job) -> Result<Self> {
        let (sender, receiver) = S::open(job.side, &job.folder, &job.work)?;
        let (source, check) = (Source::new(job.work.size), Check::new(job.work.size));
        Ok(Self { sender, receiver, source, check, job })
    }

    #[inline]
    fn receive(&mut self) -> Result<Checked> {
        self.receiver.receive(&mut self.check)?;
        self.check.take_result()
    }

    #[inline]
    fn send_batch(&mut self) -> Result<()> {
        self.sender.send_batch(&mut self.source, self.job.work.batch)
    }

    #[inline]
    pub(crate) fn round(&mut self) -> Result<()> {
        self.send_batch()?;
        for _ in 0..self.job.work.batch {
            if self.receive()? != Checked::Message {
                bail!("a signal instead of a reply");
            }
        }
        Ok(())
    }

    fn signal(&mut self, seen: Checked) -> Result<()> {
        let message = if seen == Checked::Mark { self.source.mark() } else { self.source.stop() };
        self.sender.send(&message)?;
        self.sender.flush()
    }

    /// Sends a signal and waits for its answer.
    pub(crate) fn agree(&mut self, seen: Checked) -> Result<()> {
        self.signal(seen)?;
        let answer = self.receive()?;
        if answer != seen {
            bail!("{answer:?} instead of {seen:?}");
        }
        Ok(())
    }

    /// Side B: waits for a signal and answers it.
    pub(crate) fn answer_signal(&mut self) -> Result<Checked> {
        let seen = self.receive()?;
        self.signal(seen)?;
        Ok(seen)
    }

    /// Side B: one round trip.
    pub(crate) fn echo(&mut self) -> Result<()> {
        match self.receive()? {
            Checked::Message => self.send_batch(),
            seen => bail!("{seen:?} instead of a message"),
        }
    }

    /// Does it for the time of the warm-up, three times at least; the length of a tick comes out.
    fn warm_up(&mut self, mut one: impl FnMut(&mut Self) -> Result<()>) -> Result<f64> {
        let (meter, began) = (UsageMeter::start(true), Instant::now());
        let mut done = 0;
        while done < 3 || began.elapsed() < self.job.warm {
            one(self)?;
            done += 1;
        }
        Ok(meter.nanos_per_tick())
    }

    fn round_trips(mut self) -> Result<SideReport> {
        let gap = self.job.work.gap;
        let pause = || if gap.is_zero() { 0 } else { pause(gap) };
        let tick = self.warm_up(|link| {
            pause();
            link.round()
        })?;
        let mut samples = Samples::for_time(self.job.time, gap);
        self.agree(Checked::Mark)?;
        let meter = UsageMeter::start(self.job.thread);
        let mut before = sys::ticks();
        let end = before + in_ticks(self.job.time, tick);
        let mut count = 0;
        while before < end {
            before += pause();
            self.round()?;
            let now = sys::ticks();
            samples.keep(now.wrapping_sub(before));
            before = now;
            count += 1;
        }
        self.finish(&meter, count, Some(samples))
    }

    fn flood(mut self) -> Result<SideReport> {
        let stride = (65_536 / self.job.work.size.max(1)).clamp(1, 1024) / self.job.work.batch;
        let burst = |link: &mut Self| (0..stride.max(1)).try_for_each(|_| link.send_batch());
        let tick = self.warm_up(burst)?;
        self.agree(Checked::Mark)?;
        let meter = UsageMeter::start(self.job.thread);
        let end = sys::ticks() + in_ticks(self.job.time, tick);
        let mut count = 0;
        while sys::ticks() < end {
            burst(&mut self)?;
            count += (stride.max(1) * self.job.work.batch) as u64;
        }
        self.finish(&meter, count, None)
    }

    fn wakes(mut self) -> Result<SideReport> {
        let gap = self.job.work.gap;
        let mut samples = Samples::for_time(self.job.time, gap);
        self.agree(Checked::Mark)?;
        let (meter, began) = (UsageMeter::start(self.job.thread), Instant::now());
        while began.elapsed() < self.job.time {
            thread::sleep(gap);
            let before = sys::ticks();
            self.send_batch()?;
            samples.keep(sys::ticks().wrapping_sub(before));
        }
        thread::sleep(gap);
        let count = began.elapsed().as_micros() / gap.as_micros().max(1);
        self.finish(&meter, u64::try_from(count)?, Some(samples))
    }

    fn finish(mut self, meter: &UsageMeter, count: u64, samples: Option<Samples>) -> Result<SideReport> {
        self.agree(Checked::Stop)?;
        let mut report = meter.stop(count, self.job.work.size);
        let tick = meter.nanos_per_tick();
        report.latency = samples.and_then(|it| it.latency(tick));
        Ok(report)
    }

    /// Side B: echoes batch by batch, or counts, until the stop.
    fn serve(mut self) -> Result<SideReport> {
        let echo = self.job.work.kind == WorkKind::RoundTrip;
        let mut meter = UsageMeter::start(self.job.thread);
        let (mut pending, mut before) = (0, 0);
        loop {
            match self.receive()? {
                Checked::Message if echo => {
                    pending += 1;
                    if pending == self.job.work.batch {
                        pending = 0;
                        self.send_batch()?;
                    }
                }
                Checked::Message => {}
                Checked::Mark => {
                    (meter, before) = (UsageMeter::start(self.job.thread), self.check.count());
                    self.signal(Checked::Mark)?;
                }
                _ => break,
            }
        }
        let report = meter.stop(self.check.count() - before, self.job.work.size);
        self.signal(Checked::Stop)?;
        Ok(report)
    }
}

/// Sleeps; the ticks that it took.
fn pause(gap: Duration) -> u64 {
    let before = sys::ticks();
    thread::sleep(gap);
    sys::ticks().wrapping_sub(before)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn in_ticks(time: Duration, nanos_per_tick: f64) -> u64 {
    (time.as_secs_f64() * 1e9 / nanos_per_tick) as u64
}
