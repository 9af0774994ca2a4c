//! The tables: medians over the rounds, with the least and the most of them beside each.
//!
//! First the target, then a table for each kind of work, size and placement, then every cell in which Node is ahead.

use std::fmt::Write;

use crate::config::{Kind, System};
use crate::rows::Row;
use crate::run::{Measurement, NOT_PINNED, Results};

/// All of it as Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = heading(results);
    for pin in in_order(results.measurements.iter().map(|m| m.pin.clone())) {
        let _ = write!(text, "\n## {}\n", placement(&pin));
        for kind in [Kind::Objects, Kind::Bytes] {
            for size in in_order(results.measurements.iter().map(|m| m.size)) {
                let lines = lines(results, &pin, kind, size);
                if !lines.is_empty() {
                    text += &table(kind, size, &lines);
                    text += &target(kind, size, &lines);
                    text += &node_ahead(&lines);
                }
            }
        }
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nFailed: {failure}");
    }
    text
}

/// The rounds of one row.
struct Line {
    name: String,
    row: Row,
    /// By the number of the column.
    cells: [Cell; 7],
}

#[derive(Clone, Copy)]
struct Cell {
    median: f64,
    least: f64,
    most: f64,
}

/// The columns: what, and whether more of it is better.
const COLUMNS: [(&str, bool); 7] = [
    ("round trip p50, us", false),
    ("p99, us", false),
    ("p99.9, us", false),
    ("longest, us", false),
    ("CPU a round trip, us", false),
    ("one way, messages/s", true),
    ("CPU a message, us", false),
];
const TRIP: usize = 0;
const LONGEST: usize = 3;
const RATE: usize = 5;

fn heading(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "# narrows and Node.js doing the same work\n\n\
         {}, {} CPUs, Linux {}, Node {}, {}; {}. Medians of {} rounds, (least..most); the longest of all rounds. CPU: \
         user and system seconds of both sides together. A round trip waits for a reply of the same size; one way is many \
         messages under way and one acknowledgement at the end. Both sides verify every message. *One process*: both sides \
         are threads of one process, which is a bound and no way between processes. *Bound*: nothing is sent; the round \
         trip is serialising and parsing twice, the rate that of the slower of the two.\n",
        machine.cpu, machine.cpus, machine.kernel, machine.node, machine.rustc, machine.date, results.rounds
    )
}

fn placement(pin: &str) -> String {
    if pin == NOT_PINNED {
        return "Not pinned".into();
    }
    format!("Pinned: side A and side B to the CPUs {pin} (one process: to both)")
}

fn lines(results: &Results, pin: &str, kind: Kind, size: usize) -> Vec<Line> {
    let here = |m: &&Measurement| m.pin == pin && m.row.kind == kind && m.size == size;
    let measured: Vec<&Measurement> = results.measurements.iter().filter(here).collect();
    let mut lines: Vec<Line> = in_order(measured.iter().map(|m| m.name.clone()))
        .into_iter()
        .filter_map(|name| {
            let rounds: Vec<&Measurement> = measured.iter().copied().filter(|m| m.name == name).collect();
            let row = rounds.first()?.row;
            let cells = std::array::from_fn(|column| cell(results, &rounds, column));
            Some(Line { name, row, cells })
        })
        .collect();
    lines.sort_by(|a, b| a.cells[TRIP].median.total_cmp(&b.cells[TRIP].median));
    lines
}

fn cell(results: &Results, rounds: &[&Measurement], column: usize) -> Cell {
    let mut values: Vec<f64> = rounds.iter().map(|m| value(results, m, column)).collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Cell { median: if column == LONGEST { most } else { median }, least, most }
}

#[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
fn value(results: &Results, m: &Measurement, column: usize) -> f64 {
    let quantile = |point: f64| {
        let at = results.points.iter().position(|here| *here >= point);
        at.and_then(|at| m.trips.quantiles.get(at)).copied().unwrap_or(f64::NAN)
    };
    let (trips, messages) = (m.trips.phase.count as f64, m.rate.phase.count as f64);
    match column {
        0 => quantile(0.5),
        1 => quantile(0.99),
        2 => quantile(0.999),
        3 => quantile(1.0),
        4 => (m.trips.cpu_a + m.trips.cpu_b) * 1e6 / trips,
        5 => messages / m.rate.seconds,
        _ => (m.rate.cpu_a + m.rate.cpu_b) * 1e6 / messages,
    }
}

fn table(kind: Kind, size: usize, lines: &[Line]) -> String {
    let what = match kind {
        Kind::Objects => "Objects against objects",
        Kind::Bytes => "Bytes against bytes",
    };
    let columns = COLUMNS.map(|(name, _)| name).join(" | ");
    let mut text =
        format!("\n### {what}, {}\n\n| system | {columns} |\n|---{}|\n", human(size), "|---:".repeat(7));
    for line in lines {
        let bound = match line.row.system {
            system if system.is_alone() => " (*bound*)",
            system if system.is_one_process() => " (*one process*)",
            _ => "",
        };
        let strong = if line.row.system.is_narrows() { "**" } else { "" };
        let _ = write!(text, "| {strong}{}{strong}{bound} |", line.name);
        for (column, cell) in line.cells.iter().enumerate() {
            let median = short(cell.median);
            let _ = match column {
                LONGEST => write!(text, " {median} |"),
                _ => write!(text, " {median} ({}..{}) |", short(cell.least), short(cell.most)),
            };
        }
        text.push('\n');
    }
    text
}

/// Target 15, at the size for which it is set.
fn target(kind: Kind, size: usize, lines: &[Line]) -> String {
    if kind != Kind::Objects || size != 1024 {
        return String::new();
    }
    let mut text = String::from(
        "\nTarget: 10 times Node's best rate, and a tenth of its best round trip, by `Adaptive`.\n\n",
    );
    for (who, threads) in [("between processes", false), ("worker threads", true)] {
        let nodes = |line: &&Line| is_node(line) && line.row.system.is_one_process() == threads;
        for line in lines.iter().filter(|line| is_ours(line)) {
            let compared = [TRIP, RATE].map(|column| {
                let node = best(lines.iter().filter(nodes), column)?;
                let (theirs, ours) = (node.cells[column].median, line.cells[column].median);
                Some(if COLUMNS[column].1 { ours / theirs } else { theirs / ours })
            });
            let [Some(trip), Some(rate)] = compared else { continue };
            let held = match (line.row.system, threads) {
                (System::NarrowsAdaptive, false) if trip >= 10.0 && rate >= 10.0 => ": met",
                (System::NarrowsAdaptive, false) => ": missed",
                _ => "",
            };
            let _ = writeln!(
                text,
                "- {} against Node's best {who}: round trip 1/{trip:.1}, rate {rate:.1} times{held}",
                line.name
            );
        }
    }
    text
}

/// Every column in which Node's best is better than one of ours.
fn node_ahead(lines: &[Line]) -> String {
    let mut text = String::new();
    for (threads, bound) in [(false, ""), (true, " (*one process*)")] {
        let nodes = |line: &&Line| is_node(line) && line.row.system.is_one_process() == threads;
        for (column, (name, _)) in COLUMNS.iter().enumerate() {
            let Some(node) = best(lines.iter().filter(nodes), column) else { continue };
            let told = |line: &Line| format!("{} {}", line.name, short(line.cells[column].median));
            let behind = lines.iter().filter(|line| is_ours(line) && better(node, line, column));
            let behind: Vec<String> = behind.map(told).collect();
            if !behind.is_empty() {
                let _ = writeln!(text, "- {name}: {}{bound}; behind it: {}", told(node), behind.join("; "));
            }
        }
    }
    if text.is_empty() { text } else { format!("\nNode is ahead in:\n\n{text}") }
}

fn is_node(line: &Line) -> bool {
    !line.row.system.is_narrows() && !line.row.system.is_alone()
}

fn is_ours(line: &Line) -> bool {
    line.row.system.is_narrows()
}

fn best<'a>(lines: impl Iterator<Item = &'a Line>, column: usize) -> Option<&'a Line> {
    lines.reduce(|one, other| if better(other, one, column) { other } else { one })
}

fn better(one: &Line, other: &Line, column: usize) -> bool {
    let (one, other) = (one.cells[column].median, other.cells[column].median);
    if COLUMNS[column].1 { one > other } else { one < other }
}

fn in_order<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

fn human(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size / 1024),
        _ => format!("{} MiB", size >> 20),
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{:.2} M", value / 1e6),
        1e4.. => format!("{:.0} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.123, 12.34, 1234.0, 12_340.0, 2_345_678.0].map(short);
        assert_eq!(texts, ["0.12", "12.3", "1234", "12 k", "2.35 M"]);
    }
}
