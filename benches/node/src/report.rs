//! The tables: medians over the rounds, with the least and the most of them beside each.
//!
//! First the target, then a table for each kind of work, size and placement, then every cell in which Node is ahead.

use std::fmt::Write;

use harness::Summary;

use crate::config::{NodeSystem, PayloadKind};
use crate::results::{NOT_PINNED, NodeMeasurement, NodeResults};
use crate::rows::NodeRow;

/// All of it as Markdown.
pub fn markdown(results: &NodeResults) -> String {
    let mut text = heading(results);
    for pin in in_order(results.measurements.iter().map(|m| m.pin.clone())) {
        let _ = write!(text, "\n## {}\n", placement(&pin));
        for kind in [PayloadKind::Objects, PayloadKind::Bytes] {
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
struct SystemRow {
    name: String,
    row: NodeRow,
    /// By the number of the column.
    cells: [Summary; 7],
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

fn heading(results: &NodeResults) -> String {
    let of = |name: &str| results.machine.get(name).map_or("unknown", String::as_str);
    let [cpu, cpus, kernel, node, rustc, date] = ["cpu", "cpus", "kernel", "node", "rustc", "date"].map(of);
    format!(
        "# narrows and Node.js doing the same work\n\n\
         {cpu}, {cpus} CPUs, Linux {kernel}, Node {node}, {rustc}; {date}. Medians of {} rounds, (least..most); the longest of all rounds. CPU: \
         user and system seconds of both sides together. A round trip waits for a reply of the same size; one way is many \
         messages under way and one acknowledgement at the end. Both sides verify every message. *One process*: both sides \
         are threads of one process, which is a bound and no way between processes. *Bound*: nothing is sent; the round \
         trip is serialising and parsing twice, the rate that of the slower of the two.\n",
        results.rounds
    )
}

fn placement(pin: &str) -> String {
    if pin == NOT_PINNED {
        return "Not pinned".into();
    }
    format!("Pinned: side A and side B to the CPUs {pin} (one process: to both)")
}

fn lines(results: &NodeResults, pin: &str, kind: PayloadKind, size: usize) -> Vec<SystemRow> {
    let here = |m: &&NodeMeasurement| m.pin == pin && m.row.kind == kind && m.size == size;
    let measured: Vec<&NodeMeasurement> = results.measurements.iter().filter(here).collect();
    let mut lines: Vec<SystemRow> = in_order(measured.iter().map(|m| m.name.clone()))
        .into_iter()
        .filter_map(|name| {
            let rounds: Vec<&NodeMeasurement> = measured.iter().copied().filter(|m| m.name == name).collect();
            let row = rounds.first()?.row;
            let cells: Vec<_> = (0..COLUMNS.len()).filter_map(|column| cell(&rounds, column)).collect();
            Some(SystemRow { name, row, cells: cells.try_into().ok()? })
        })
        .collect();
    lines.sort_by(|a, b| a.cells[TRIP].median.total_cmp(&b.cells[TRIP].median));
    lines
}

fn cell(rounds: &[&NodeMeasurement], column: usize) -> Option<Summary> {
    let summary = Summary::of(rounds.iter().map(|m| value(m, column)).collect())?;
    Some(if column == LONGEST { Summary { median: summary.most, ..summary } } else { summary })
}

#[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
fn value(m: &NodeMeasurement, column: usize) -> f64 {
    let (trips, messages) = (m.trips.phase.count as f64, m.rate.phase.count as f64);
    match column {
        0..=LONGEST => m.trips.quantiles.get(column).copied().unwrap_or(f64::NAN), // In the order of POINTS.
        4 => (m.trips.cpu_a + m.trips.cpu_b) * 1e6 / trips,
        RATE => messages / m.rate.seconds,
        _ => (m.rate.cpu_a + m.rate.cpu_b) * 1e6 / messages,
    }
}

fn table(kind: PayloadKind, size: usize, lines: &[SystemRow]) -> String {
    let what = match kind {
        PayloadKind::Objects => "Objects against objects",
        PayloadKind::Bytes => "Bytes against bytes",
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
fn target(kind: PayloadKind, size: usize, lines: &[SystemRow]) -> String {
    if kind != PayloadKind::Objects || size != 1024 {
        return String::new();
    }
    let mut text = String::from(
        "\nTarget: 10 times Node's best rate, and a tenth of its best round trip, by `Adaptive`.\n\n",
    );
    for (nodes_best, threads) in [("between processes", false), ("worker threads", true)] {
        let nodes = |line: &&SystemRow| is_node(line) && line.row.system.is_one_process() == threads;
        for line in lines.iter().filter(|line| is_ours(line)) {
            let compared = [TRIP, RATE].map(|column| {
                let node = best(lines.iter().filter(nodes), column)?;
                let (theirs, ours) = (node.cells[column].median, line.cells[column].median);
                Some(if COLUMNS[column].1 { ours / theirs } else { theirs / ours })
            });
            let [Some(trip), Some(rate)] = compared else { continue };
            let held = match (line.row.system, threads) {
                (NodeSystem::NarrowsAdaptive, false) if trip >= 10.0 && rate >= 10.0 => ": met",
                (NodeSystem::NarrowsAdaptive, false) => ": missed",
                _ => "",
            };
            let _ = writeln!(
                text,
                "- {} against Node's best {nodes_best}: round trip 1/{trip:.1}, rate {rate:.1} times{held}",
                line.name
            );
        }
    }
    text
}

/// Every column in which Node's best is better than one of ours.
fn node_ahead(lines: &[SystemRow]) -> String {
    let mut text = String::new();
    for (threads, bound) in [(false, ""), (true, " (*one process*)")] {
        let nodes = |line: &&SystemRow| is_node(line) && line.row.system.is_one_process() == threads;
        for (column, (name, _)) in COLUMNS.iter().enumerate() {
            let Some(node) = best(lines.iter().filter(nodes), column) else { continue };
            let shown = |line: &SystemRow| format!("{} {}", line.name, short(line.cells[column].median));
            let behind = lines.iter().filter(|line| is_ours(line) && better(node, line, column));
            let behind: Vec<String> = behind.map(shown).collect();
            if !behind.is_empty() {
                let _ = writeln!(text, "- {name}: {}{bound}; behind it: {}", shown(node), behind.join("; "));
            }
        }
    }
    if text.is_empty() { text } else { format!("\nNode is ahead in:\n\n{text}") }
}

fn is_node(line: &SystemRow) -> bool {
    !line.row.system.is_narrows() && !line.row.system.is_alone()
}

fn is_ours(line: &SystemRow) -> bool {
    line.row.system.is_narrows()
}

fn best<'a>(lines: impl Iterator<Item = &'a SystemRow>, column: usize) -> Option<&'a SystemRow> {
    lines.reduce(|one, other| if better(other, one, column) { other } else { one })
}

fn better(one: &SystemRow, other: &SystemRow, column: usize) -> bool {
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
