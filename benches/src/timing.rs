//! Samples of the time stamp counter, one reading each, and the usage of the process.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::record::{Latency, SideReport};
use crate::sys::{self, Usage};
use crate::system::Job;

/// More samples than this are not kept; the first ones stay.
const MOST: usize = 1 << 22;

/// Samples in ticks, in memory that was touched before, so that keeping one costs a store.
#[derive(Debug)]
pub(crate) struct Samples {
    ticks: Vec<u32>,
    kept: usize,
}

impl Samples {
    /// Returns room for the samples of `time` if each takes at least 40 ns and `gap`.
    pub(crate) fn for_time(time: Duration, gap: Duration) -> Self {
        let most = time.as_nanos() / (40 + gap.as_nanos());
        Self { ticks: vec![1; usize::try_from(most).unwrap_or(MOST).clamp(1024, MOST)], kept: 0 }
    }

    #[inline]
    pub(crate) fn keep(&mut self, ticks: u64) {
        if let Some(sample) = self.ticks.get_mut(self.kept) {
            *sample = u32::try_from(ticks).unwrap_or(u32::MAX);
            self.kept += 1;
        }
    }

    /// Returns the distribution of the samples, given the length of a tick.
    pub(crate) fn latency(mut self, nanos_per_tick: f64) -> Option<Latency> {
        let kept = &mut self.ticks[..self.kept];
        kept.sort_unstable();
        kept.first()?;
        let at = |share: f64| quantile(kept, share) * nanos_per_tick;
        Some(Latency {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            quantiles: SHARES.iter().map(|share| (*share, at(*share))).collect(),
        })
    }
}

/// A quantile of grouped data. The counter of some CPUs advances by 10 ns at once (AMD's: 26 ticks of 2.6 GHz), which is
/// a tenth of the fastest round trips: samples on one such step are spread evenly over it.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn quantile(sorted: &[u32], share: f64) -> f64 {
    let rank = (sorted.len() - 1) as f64 * share;
    let value = sorted[rank as usize];
    let (low, high) = (value.saturating_sub(2), value.saturating_add(2));
    let (first, end) = (sorted.partition_point(|it| *it < low), sorted.partition_point(|it| *it <= high));
    let below = first.checked_sub(1).map(|it| f64::from(value - sorted[it]));
    let above = sorted.get(end).map(|it| f64::from(it - value));
    let (Some(below), Some(above)) = (below, above) else { return f64::from(value) };
    if below.min(above) < STEP / 2.0 {
        return f64::from(value);
    }
    let (below, above) = (below.min(STEP) / 2.0, above.min(STEP) / 2.0);
    f64::from(value) - below + (below + above) * (rank - first as f64 + 0.5) / (end - first) as f64
}

/// The longest step of a counter that is smoothed, in ticks.
const STEP: f64 = 32.0;

/// The shares that are kept for the plots: finer towards the tail.
const SHARES: [f64; 24] = [
    0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99,
    0.995, 0.998, 0.999, 0.9999, 1.0,
];

/// The usage of a side from its start to its end: wall time, CPU, switches.
#[derive(Debug)]
pub struct UsageMeter {
    began: Instant,
    ticks: u64,
    usage: Usage,
    thread: bool,
}

impl UsageMeter {
    /// Starts now; `thread`: counts the calling thread alone.
    pub fn start(thread: bool) -> Self {
        Self { usage: sys::usage(thread), began: Instant::now(), ticks: sys::ticks(), thread }
    }

    /// Returns the usage since the start, for `count` messages.
    pub fn stop(&self, count: u64) -> SideReport {
        let seconds = self.began.elapsed().as_secs_f64();
        let usage = sys::usage(self.thread);
        SideReport {
            count,
            seconds,
            cpu_seconds: usage.cpu - self.usage.cpu,
            sleeps: usage.sleeps - self.usage.sleeps,
            ..SideReport::default()
        }
    }

    /// Returns the length of a tick, from the time since the start.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn nanos_per_tick(&self) -> f64 {
        let ticks = sys::ticks().wrapping_sub(self.ticks);
        self.began.elapsed().as_secs_f64() * 1e9 / (ticks.max(1) as f64)
    }
}

/// Repeats `one` without a pause: warms up, calls `mark`, then times each run with one reading of the counter.
pub fn dense(
    job: &Job,
    mark: impl FnOnce() -> Result<()>,
    mut one: impl FnMut() -> Result<()>,
) -> Result<SideReport> {
    let began = Instant::now();
    while began.elapsed() < job.warm {
        one()?;
    }
    let mut samples = Samples::for_time(job.time, Duration::ZERO);
    mark()?;
    let meter = UsageMeter::start(false);
    let (began, mut before) = (Instant::now(), sys::ticks());
    let mut count = 0_u64;
    // The clock costs more than the counter, so it is read once in 16 runs.
    while count % 16 != 0 || began.elapsed() < job.time {
        one()?;
        let now = sys::ticks();
        samples.keep(now.wrapping_sub(before));
        before = now;
        count += 1;
    }
    let mut report = meter.stop(count);
    report.latency = samples.latency(meter.nanos_per_tick());
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_on_steps_are_spread_over_them() {
        let mut sorted = vec![260; 50];
        sorted.extend([286; 100]);
        sorted.extend([312; 50]);
        let median = quantile(&sorted, 0.5);
        assert!((median - 286.0).abs() < 0.5, "{median}");
        assert!(quantile(&sorted, 0.7) > 290.0);
        assert!(quantile(&sorted, 0.3) < 282.0);
    }

    #[test]
    fn samples_without_steps_are_unchanged() {
        let sorted: Vec<u32> = (100..200).collect();
        assert!((quantile(&sorted, 0.5) - 149.0).abs() < f64::EPSILON);
        assert!((quantile(&[7], 0.99) - 7.0).abs() < f64::EPSILON);
    }
}
