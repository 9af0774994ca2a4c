//! Tables: the median over the rounds of each figure, and its least and greatest beside it.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::record::{Record, Row, SideReport, Trial};
use crate::system::WorkKind;
use crate::targets;

/// One figure over the rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    least: f64,
    most: f64,
}

impl Summary {
    /// Nothing, of nothing.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.get(values.len().saturating_sub(1) / 2)? + values[values.len() / 2];
        Some(Self { median: middle / 2.0, least: values[0], most: values[values.len() - 1] })
    }

    fn text(self, scale: f64) -> String {
        let [median, least, most] = [self.median, self.least, self.most].map(|it| short(it * scale));
        format!("{median} ({least} to {most})")
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

fn p999(trial: &Trial) -> Option<f64> {
    Some(trial.a.as_ref()?.latency.as_ref()?.p999)
}

fn max(trial: &Trial) -> Option<f64> {
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

fn idle_cpu(trial: &Trial) -> Option<f64> {
    Some(cpu(trial)? / trial.b.as_ref()?.seconds)
}

fn idle_sleeps(trial: &Trial) -> Option<f64> {
    Some(sleeps(trial)? / trial.b.as_ref()?.seconds)
}

/// KiB of private memory for each connection, of the side that has more.
pub(crate) fn private(trial: &Trial) -> Option<f64> {
    let of = |side: &Option<SideReport>| side.as_ref()?.more.get("private KiB").copied();
    Some(of(&trial.a)?.max(of(&trial.b)?))
}

/// KiB of shared memory for each connection, as the kernel splits it among those who map it.
fn shared(trial: &Trial) -> Option<f64> {
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

/// All tables of a run, as Markdown.
pub(crate) fn tables(record: &Record) -> String {
    let mut text = String::new();
    for (what, value) in &record.about {
        let _to_a_string = writeln!(text, "- {what}: {value}");
    }
    let ledger = RowResults::of(record);
    for (what, title, columns) in TABLES {
        let rows: Vec<_> =
            ledger.rows.iter().filter(|(row, trials)| row.work.kind == *what && !trials.is_empty()).collect();
        if rows.is_empty() {
            continue;
        }
        let heads: Vec<_> = columns.iter().map(|(head, ..)| *head).collect();
        let line = "---|".repeat(heads.len() + 2);
        let _to_a_string =
            write!(text, "\n### {title}\n\n| row | {} | rounds |\n|{line}\n", heads.join(" | "));
        for (row, trials) in rows {
            let text_of = |(_, scale, figure): &Column| {
                cell(trials, *figure).map_or_else(|| "-".into(), |it| it.text(*scale))
            };
            let cells: Vec<String> = columns.iter().map(text_of).collect();
            let _to_a_string = writeln!(text, "| {row} | {} | {} |", cells.join(" | "), trials.len());
        }
    }
    text + &targets::table(record) + &left_out(&ledger, record)
}

/// Rows that failed, and rows that were disturbed in every round.
fn left_out(ledger: &RowResults<'_>, record: &Record) -> String {
    let disturbed = record.trials.iter().filter(|trial| !trial.clean && trial.error.is_none()).count();
    let mut text = match disturbed {
        0 => String::new(),
        some => format!("\n{some} of {} trials were disturbed and do not count.\n", record.trials.len()),
    };
    for (row, _) in ledger.rows.iter().filter(|(_, trials)| trials.is_empty()) {
        let mut errors =
            record.trials.iter().filter(|trial| trial.row == **row).filter_map(|it| it.error.as_ref());
        let why = errors.next().map_or("disturbed in every round", String::as_str);
        let _to_a_string = writeln!(text, "- no figure for {row}: {why}");
    }
    text
}

type Column = (&'static str, f64, Figure);

const TABLES: &[(WorkKind, &str, &[Column])] = &[
    (
        WorkKind::RoundTrip,
        "Round trips",
        &[
            ("p50 us", 1e-3, p50),
            ("p99 us", 1e-3, p99),
            ("p99.9 us", 1e-3, p999),
            ("max us", 1e-3, max),
            ("CPU us, both", 1e6, cpu),
            ("sleeps, both", 1.0, sleeps),
        ],
    ),
    (
        WorkKind::OneWay,
        "One way",
        &[
            ("million messages/s", 1e-6, rate),
            ("GB/s", 1e-9, bytes_rate),
            ("CPU us a message, both", 1e6, cpu),
            ("sleeps a message, both", 1.0, sleeps),
        ],
    ),
    (
        WorkKind::Wake,
        "The sending call, to a sleeper",
        &[("p50 us", 1e-3, p50), ("p99 us", 1e-3, p99), ("CPU us a message, both", 1e6, cpu)],
    ),
    (
        WorkKind::Idle,
        "Idle connections",
        &[("CPU us a second, each", 1e6, idle_cpu), ("wake-ups a second, each", 1.0, idle_sleeps)],
    ),
    (
        WorkKind::Memory,
        "Memory of each connection",
        &[("private KiB, the larger side", 1.0, private), ("shared KiB", 1.0, shared)],
    ),
    (
        WorkKind::Connect,
        "From connect to the first reply",
        &[("p50 us", 1e-3, p50), ("p99 us", 1e-3, p99), ("max us", 1e-3, max), ("CPU us, both", 1e6, cpu)],
    ),
];

/// Three digits that say something.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        it if it >= 100.0 => 0,
        it if it >= 10.0 => 1,
        it if it >= 1.0 => 2,
        it if it >= 0.1 => 3,
        it if it >= 0.01 => 4,
        it if it >= 0.001 => 5,
        0.0 => 0,
        _ => return format!("{value:.1e}"),
    };
    format!("{value:.digits$}")
}
