//! The targets: ratios that were promised, and whether a run holds them.
//!
//! Each rule asks for the medians that it needs, by row; a row that was not measured makes it "not measured". The same
//! rules, asked with a recorder instead of results, list the rows that a target needs ([`needed`]).
//!
//! Targets 13 (instructions) and 15 (Node.js) are reported elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::figures::{self, Figure, RowResults};
use crate::limits;
use crate::record::{CpuPlacement, Record, Row, Trial};
use crate::system::{Wait, Work, WorkKind};

/// The rows that a target needs; those of 10 are all of a run's.
pub fn needed(target: u8) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut recorder = |row: &Row, _: Figure| {
        if !rows.contains(row) {
            rows.push(row.clone());
        }
        Some(1.0)
    };
    let mut evaluation = Evaluation { look: &mut recorder, only: Some(target), results: Vec::new() };
    evaluation.evaluate_all();
    rows
}

/// All results as a Markdown table; those without any row in this run are left out.
pub(crate) fn table(record: &Record) -> String {
    let results_by_row = RowResults::of(record);
    let known: BTreeMap<String, &Vec<&Trial>> =
        results_by_row.rows.iter().map(|(row, trials)| (row.to_string(), trials)).collect();
    let mut look = |row: &Row, figure: Figure| {
        let trials = known.get(&row.to_string())?;
        Some(figures::cell(trials, figure)?.median)
    };
    let mut evaluation = Evaluation { look: &mut look, only: None, results: Vec::new() };
    evaluation.evaluate_all();
    let mut results = evaluation.results;
    results.extend(against_peers(&results_by_row));
    let lines: String = results.iter().filter_map(TargetResult::line).collect();
    if lines.is_empty() {
        return lines;
    }
    format!("\n### Targets\n\n| # | what | measured | wanted | |\n|---|---|---|---|---|\n{lines}")
}

/// The bound of a measured figure.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}
use Bound::{AtLeast, AtMost};

#[derive(Debug)]
struct TargetResult {
    target: u8,
    what: String,
    measured: Option<f64>,
    bound: Bound,
}

impl TargetResult {
    fn line(&self) -> Option<String> {
        let measured = self.measured?;
        let (wanted, held) = match self.bound {
            AtMost(most) => (format!("at most {most}"), measured <= most),
            AtLeast(least) => (format!("at least {least}"), measured >= least),
        };
        let held = if held { "held" } else { "**missed**" };
        Some(format!("| {} | {} | {measured:.2} | {wanted} | {held} |\n", self.target, self.what))
    }
}

/// The median of a figure of a row.
type Look<'a> = dyn FnMut(&Row, Figure) -> Option<f64> + 'a;

type Rule<'a> = fn(&mut Evaluation<'a>);

/// Asks for medians and collects results.
struct Evaluation<'a> {
    look: &'a mut Look<'a>,
    only: Option<u8>,
    results: Vec<TargetResult>,
}

const SMALL: [usize; 4] = [8, 40, 64, 104];
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

impl<'a> Evaluation<'a> {
    fn evaluate_all(&mut self) {
        let rules: [(u8, Rule<'a>); 14] = [
            (1, Self::small_round_trips),
            (2, Self::large_round_trips),
            (3, Self::sleeping),
            (4, Self::adaptive_dense),
            (4, Self::adaptive_sparse),
            (5, Self::small_one_way),
            (6, Self::large_one_way),
            (7, Self::lent),
            (8, Self::batches),
            (9, Self::waking),
            (11, Self::idle),
            (12, Self::flood),
            (14, Self::calls),
            (16, Self::memory_and_connect),
        ];
        for (target, rule) in rules {
            let both = self.only == Some(17) && target == 16;
            if self.only.is_none_or(|only| only == target) || both {
                rule(self);
            }
        }
    }

    fn median(&mut self, system: &str, work: Work, placement: CpuPlacement, figure: Figure) -> Option<f64> {
        (self.look)(&Row { system: system.into(), work, placement }, figure)
    }

    fn p50(&mut self, system: &str, work: Work, placement: CpuPlacement) -> Option<f64> {
        self.median(system, work, placement, figures::p50)
    }

    fn rate(&mut self, system: &str, work: Work) -> Option<f64> {
        self.median(system, work, CpuPlacement::Two, figures::rate)
    }

    fn ratio(&mut self, target: u8, what: String, one: Option<f64>, other: Option<f64>, bound: Bound) {
        let measured = one.zip(other).map(|(one, other)| one / other);
        self.results.push(TargetResult { target, what, measured, bound });
    }

    fn small_round_trips(&mut self) {
        let bare = Work::new(WorkKind::RoundTrip, 64).wait(Wait::Spin).in_place();
        let limit = self.p50("hand-over", bare, CpuPlacement::Two);
        for size in SMALL {
            let own = self.p50("narrows", Work::new(WorkKind::RoundTrip, size), CpuPlacement::Two);
            self.ratio(
                1,
                format!("round trip of {size} B to the hand-over of 64 B"),
                own,
                limit,
                AtMost(1.2),
            );
        }
    }

    fn large_round_trips(&mut self) {
        for (size, copied, in_place) in [(KIB, 1.25, 1.15), (64 * KIB, 1.1, 1.05), (MIB, 0.8, 1.05)] {
            let copy = Work::new(WorkKind::RoundTrip, size);
            for (work, most, how) in [(copy, copied, "copied out"), (copy.in_place(), in_place, "in place")] {
                let own = self.p50("narrows", work, CpuPlacement::Two);
                let limit = self.p50("hand-over", work.wait(Wait::Spin), CpuPlacement::Two);
                self.ratio(
                    2,
                    format!("round trip of {}, {how}, to the hand-over", bytes(size)),
                    own,
                    limit,
                    AtMost(most),
                );
            }
        }
    }

    fn sleeping(&mut self) {
        let work = Work::new(WorkKind::RoundTrip, 64).wait(Wait::Park);
        for placement in [CpuPlacement::One, CpuPlacement::Two] {
            let own = self.p50("narrows", work, placement);
            let limit = self.p50("futex", work.in_place(), placement);
            self.ratio(3, format!("round trip, Park, {placement}, to the futex"), own, limit, AtMost(1.1));
        }
    }

    fn adaptive_dense(&mut self) {
        let work = Work::new(WorkKind::RoundTrip, 64);
        for placement in PLACEMENTS {
            for (name, figure) in [("median", figures::p50 as Figure), ("CPU", figures::cpu)] {
                let own = self.median("narrows", work, placement, figure);
                let spin = self.median("narrows", work.wait(Wait::Spin), placement, figure);
                let park = self.median("narrows", work.wait(Wait::Park), placement, figure);
                let better = spin.zip(park).map(|(spin, park)| spin.min(park));
                let what = format!("dense, {placement}: {name} of Adaptive to the better of Spin and Park");
                self.ratio(4, what, own, better, AtMost(1.3));
            }
        }
        let spin = self.median("narrows", work.wait(Wait::Spin), CpuPlacement::One, figures::p99);
        let what = "dense, one: p99 of Spin in ms, the peer is not starved".into();
        self.ratio(4, what, spin, Some(1e6), AtMost(4.0));
    }

    fn adaptive_sparse(&mut self) {
        for placement in PLACEMENTS {
            for gap in [200, 5000] {
                let work = Work::new(WorkKind::RoundTrip, 64).gap(Duration::from_micros(gap));
                for (name, figure, most) in
                    [("median", figures::p50 as Figure, 1.15), ("CPU", figures::cpu, 1.3)]
                {
                    let own = self.median("narrows", work, placement, figure);
                    let park = self.median("narrows", work.wait(Wait::Park), placement, figure);
                    let what = format!("gaps of {gap} us, {placement}: {name} of Adaptive to Park");
                    self.ratio(4, what, own, park, AtMost(most));
                }
            }
        }
    }

    fn small_one_way(&mut self) {
        for size in SMALL {
            self.against_rtrb(5, size, 1.3);
        }
    }

    fn large_one_way(&mut self) {
        self.against_rtrb(6, KIB, 1.0);
        self.against_rtrb(6, 64 * KIB, 0.95);
        for size in [MIB, 16 * MIB] {
            let work = Work::new(WorkKind::OneWay, size);
            let (own, limit) = (self.rate("narrows", work), self.rate("copy-in-out", work.wait(Wait::Spin)));
            let what = format!("one way, {}, to copy in plus copy out", bytes(size));
            self.ratio(6, what, own, limit, AtLeast(0.95));
        }
    }

    fn against_rtrb(&mut self, target: u8, size: usize, least: f64) {
        let work = Work::new(WorkKind::OneWay, size);
        let (own, limit) = (self.rate("narrows", work), self.rate("rtrb", work.wait(Wait::Spin)));
        self.ratio(
            target,
            format!("one way, {}, to rtrb between threads", bytes(size)),
            own,
            limit,
            AtLeast(least),
        );
    }

    fn lent(&mut self) {
        for what in [WorkKind::RoundTrip, WorkKind::OneWay] {
            let work = |size| Work::new(what, size).in_place();
            let cost = |evaluation: &mut Self, size| match what {
                WorkKind::RoundTrip => evaluation.p50("narrows-lend", work(size), CpuPlacement::Two),
                _ => evaluation.rate("narrows-lend", work(size)).map(|rate| 1.0 / rate),
            };
            let small = cost(self, 64 * KIB);
            for size in [128 * KIB, 256 * KIB] {
                let large = cost(self, size);
                let title = format!("lent, {what:?}: cost of {} to that of 64 KiB", bytes(size));
                self.ratio(7, title, large, small, AtMost(1.1));
            }
        }
    }

    fn batches(&mut self) {
        for size in [8, 40, 64] {
            let work = Work::new(WorkKind::OneWay, size);
            let (own, one) = (self.rate("narrows", work.batch(64)), self.rate("narrows", work));
            self.ratio(8, format!("batch of 64 of {size} B to one at a time"), own, one, AtLeast(1.5));
        }
    }

    fn waking(&mut self) {
        let work = Work::new(WorkKind::Wake, 64).gap(Duration::from_millis(1));
        let own = self.p50("narrows", work, CpuPlacement::Two);
        let limit = self.p50("futex", work.wait(Wait::Park).in_place(), CpuPlacement::Two);
        self.ratio(9, "the sending call to a sleeper, to FUTEX_WAKE".into(), own, limit, AtMost(1.15));
    }

    fn idle(&mut self) {
        for (connections, name, figure) in [
            (1, "wake-ups", figures::sleeps as Figure),
            (1000, "wake-ups", figures::sleeps),
            (1000, "CPU", figures::cpu),
        ] {
            let work = Work::new(WorkKind::Idle, 64).batch(connections);
            let own = self.median("narrows", work, CpuPlacement::Free, figure);
            let limit = self.median("futex-sliced", work.wait(Wait::Park), CpuPlacement::Free, figure);
            let what = format!("idle, {connections} connections: {name} to bare sleepers with slices");
            self.ratio(11, what, own, limit, AtMost(1.2));
        }
    }

    fn flood(&mut self) {
        let cpu = self.median("narrows", Work::new(WorkKind::OneWay, 64), CpuPlacement::Two, figures::cpu);
        self.ratio(12, "flood of 64 B: CPU us a message, both sides".into(), cpu, Some(1e-6), AtMost(0.04));
    }

    fn calls(&mut self) {
        for wait in [Wait::Adaptive, Wait::Park] {
            let work = Work::new(WorkKind::RoundTrip, 32).wait(wait);
            let (own, raw) =
                (self.p50("call", work, CpuPlacement::Two), self.p50("narrows", work, CpuPlacement::Two));
            self.ratio(14, format!("call of 32 B, {wait:?}, to the raw round trip"), own, raw, AtMost(1.3));
        }
    }

    fn memory_and_connect(&mut self) {
        for connections in [1, 1000] {
            let work = Work::new(WorkKind::Memory, 64).batch(connections);
            let private = self.median("narrows", work, CpuPlacement::Free, figures::private);
            let what = format!("{connections} connections: private KiB of each, the larger side");
            self.ratio(16, what, private, Some(1.0), AtMost(16.0));
        }
        let work = Work::new(WorkKind::Connect, 64);
        let (own, limit) = (
            self.p50("narrows-connect", work, CpuPlacement::Two),
            self.p50("unix-connect", work, CpuPlacement::Two),
        );
        self.ratio(17, "connect to first reply, to the bare socket".into(), own, limit, AtMost(3.0));
    }
}

const PLACEMENTS: [CpuPlacement; 4] =
    [CpuPlacement::Two, CpuPlacement::One, CpuPlacement::Free, CpuPlacement::Busy];

/// Target 10: the best mode of narrows against the best of each peer, at each size and batch.
fn against_peers(results_by_row: &RowResults<'_>) -> Vec<TargetResult> {
    type Best = BTreeMap<String, f64>;
    let mut groups: BTreeMap<(bool, usize, usize), Best> = BTreeMap::new();
    for (row, trials) in &results_by_row.rows {
        let work = row.work;
        if !work.is_stream() || row.placement != CpuPlacement::Two || !work.gap.is_zero() {
            continue;
        }
        let one_way = work.kind == WorkKind::OneWay;
        let figure = if one_way { figures::rate as Figure } else { figures::p50 };
        let Some(cell) = figures::cell(trials, figure) else { continue };
        // The cost of a message: less is better in both.
        let cost = if one_way { 1.0 / cell.median } else { cell.median };
        let best = groups.entry((one_way, work.size, work.batch)).or_default();
        best.entry(row.system.clone()).and_modify(|it| *it = it.min(cost)).or_insert(cost);
    }
    let mut results = Vec::new();
    for ((one_way, size, batch), best) in groups {
        let Some(own) = best.get("narrows") else { continue };
        for (peer, cost) in &best {
            let own_too = peer.starts_with("narrows") || peer.starts_with("call");
            if !own_too && !limits::NAMES.contains(&peer.as_str()) {
                let kind = if one_way { "one way" } else { "round trip" };
                let what = format!("{kind}, {}, batch of {batch}: cost to that of {peer}", bytes(size));
                results.push(TargetResult {
                    target: 10,
                    what,
                    measured: Some(own / cost),
                    bound: AtMost(1.0),
                });
            }
        }
    }
    results
}

fn bytes(size: usize) -> String {
    match size {
        _ if size >= MIB && size % MIB == 0 => format!("{} MiB", size / MIB),
        _ if size >= KIB && size % KIB == 0 => format!("{} KiB", size / KIB),
        _ => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_knows_its_rows() {
        assert_eq!(needed(1).len(), 5);
        assert_eq!(needed(12).len(), 1);
        assert!(needed(17).iter().any(|row| row.system == "unix-connect"));
        assert!(needed(99).is_empty());
    }

    #[test]
    fn a_bound_is_held_or_missed() {
        let line = |measured, bound| {
            TargetResult { target: 1, what: String::new(), measured: Some(measured), bound }
                .line()
                .unwrap_or_default()
        };
        assert!(line(1.2, AtMost(1.2)).contains("held"));
        assert!(line(1.21, AtMost(1.2)).contains("missed"));
        assert!(line(1.29, AtLeast(1.3)).contains("missed"));
    }
}
