//! Tables: the median over the rounds of each figure, and its least and greatest beside it.

use std::fmt::Write;

use crate::figures::{
    Figure, RowResults, Summary, bytes_rate, cell, cpu, idle_cpu, idle_sleeps, max, p50, p99, p999, private,
    rate, shared, sleeps,
};
use crate::record::Record;
use crate::system::WorkKind;
use crate::targets;

/// All tables of a run, as Markdown.
pub(crate) fn tables(record: &Record) -> String {
    let mut text = String::new();
    for (what, value) in &record.about {
        let _to_a_string = writeln!(text, "- {what}: {value}");
    }
    let results = RowResults::of(record);
    for (what, title, columns) in TABLES {
        let rows: Vec<_> = results
            .rows
            .iter()
            .filter(|(row, trials)| row.work.kind == *what && !trials.is_empty())
            .collect();
        if rows.is_empty() {
            continue;
        }
        let heads: Vec<_> = columns.iter().map(|(head, ..)| *head).collect();
        let line = "---|".repeat(heads.len() + 2);
        let _to_a_string =
            write!(text, "\n### {title}\n\n| row | {} | rounds |\n|{line}\n", heads.join(" | "));
        for (row, trials) in rows {
            let text_of = |(_, scale, figure): &Column| {
                cell(trials, *figure).map_or_else(|| "-".into(), |it| with_spread(it, *scale))
            };
            let cells: Vec<String> = columns.iter().map(text_of).collect();
            let _to_a_string = writeln!(text, "| {row} | {} | {} |", cells.join(" | "), trials.len());
        }
    }
    text + &targets::table(record) + &left_out(&results, record)
}

/// Rows that failed, and rows that were disturbed in every round.
fn left_out(results: &RowResults<'_>, record: &Record) -> String {
    let disturbed = record.trials.iter().filter(|trial| !trial.clean && trial.error.is_none()).count();
    let mut text = match disturbed {
        0 => String::new(),
        some => format!("\n{some} of {} trials were disturbed and do not count.\n", record.trials.len()),
    };
    for (row, _) in results.rows.iter().filter(|(_, trials)| trials.is_empty()) {
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

fn with_spread(summary: Summary, scale: f64) -> String {
    let [median, least, most] = [summary.median, summary.least, summary.most].map(|it| short(it * scale));
    format!("{median} ({least} to {most})")
}

/// Formats a number with three significant digits.
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
