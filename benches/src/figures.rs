//! The figures of a run: each is read off a trial, and summarised over the rounds that count.

use std::collections::BTreeMap;

use crate::record::{Record, Row, SideReport, Trial};

/// One figure over the rounds.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Summary {
    /// Returns nothing if there are no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.get(values.len().saturating_sub(1) / 2)? + values[values.len() / 2];
        Some(Self { median: middle / 2.0, least: values[0], most: values[values.len() - 1] })
    }
}

/// A figure of a trial; absent where the row has none.
pub(crate) type Figure = fn(&Trial) -> Option<f64>;

pub(crate) fn p50(trial: &Trial) -> Option<f64> {
    Some(trial.a.as_ref()?.latency.as_ref()?.p50)
}

pub(crate) fn p99(trial: &Trial) -> Option<f64> {
    Some(trial.a.as_ref()?.latency.as_ref()?.p99)
}

pub(crate) fn p999(trial: &Trial) -> Option<f64> {
    Some(trial.a.as_ref()?.latency.as_ref()?.p999)
}

pub(crate) fn max(trial: &Trial) -> Option<f64> {
    Some(trial.a.as_ref()?.latency.as_ref()?.max)
}

/// Messages a second.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn rate(trial: &Trial) -> Option<f64> {
    let a = trial.a.as_ref()?;
    Some(a.count as f64 / a.seconds)
}

pub(crate) fn bytes_rate(trial: &Trial) -> Option<f64> {
    let size = u32::try_from(trial.row.work.size).ok()?;
    Some(rate(trial)? * f64::from(size))
}

/// CPU seconds of both sides for each message or round trip.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn cpu(trial: &Trial) -> Option<f64> {
    let (a, b) = (trial.a.as_ref()?, trial.b.as_ref()?);
    Some((a.cpu_seconds + b.cpu_seconds) / a.count.max(1) as f64)
}

/// Sleeps of both sides for each message or round trip.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn sleeps(trial: &Trial) -> Option<f64> {
    let (a, b) = (trial.a.as_ref()?, trial.b.as_ref()?);
    Some((a.sleeps + b.sleeps) as f64 / a.count.max(1) as f64)
}

pub(crate) fn idle_cpu(trial: &Trial) -> Option<f64> {
    Some(cpu(trial)? / trial.b.as_ref()?.seconds)
}

pub(crate) fn idle_sleeps(trial: &Trial) -> Option<f64> {
    Some(sleeps(trial)? / trial.b.as_ref()?.seconds)
}

/// KiB of private memory for each connection, of the side that has more.
pub(crate) fn private(trial: &Trial) -> Option<f64> {
    let of = |side: &Option<SideReport>| side.as_ref()?.more.get("private KiB").copied();
    Some(of(&trial.a)?.max(of(&trial.b)?))
}

/// KiB of shared memory for each connection, as the kernel splits it among the processes that map it.
pub(crate) fn shared(trial: &Trial) -> Option<f64> {
    let of = |side: &Option<SideReport>| side.as_ref()?.more.get("shared KiB").copied();
    Some(of(&trial.a)? + of(&trial.b)?)
}

/// The rows of a run, with what counts of each.
#[derive(Debug)]
pub(crate) struct RowResults<'a> {
    pub(crate) rows: Vec<(&'a Row, Vec<&'a Trial>)>,
}

impl<'a> RowResults<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let mut rows: Vec<(&Row, Vec<&Trial>)> = Vec::new();
        let mut index: BTreeMap<String, usize> = BTreeMap::new();
        for trial in &record.trials {
            let at = *index.entry(trial.row.to_string()).or_insert(rows.len());
            if at == rows.len() {
                rows.push((&trial.row, Vec::new()));
            }
            if trial.clean && trial.error.is_none() {
                rows[at].1.push(trial);
            }
        }
        Self { rows }
    }
}

pub(crate) fn cell(trials: &[&Trial], figure: Figure) -> Option<Summary> {
    Summary::of(trials.iter().filter_map(|trial| figure(trial)).collect())
}
