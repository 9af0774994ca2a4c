//! Streams of messages beside the limits of the hardware and the kernel: `cargo bench -p narrows-benches --bench stream`.
//!
//! Two processes for each row; every message is made in the sender's own memory, and every byte of it is read and
//! checked by the receiver. The last table holds the figures against the targets. Useful while tuning:
//! `-- --target 1,5 --rounds 3`, `-- --only narrows,/64/,adaptive`, `-- --list`; `--help` lists the rest.

use std::time::Duration;

use harness::limits::{self, ConnectTimes, SIZES};
use harness::narrows_streams::{Narrows, NarrowsConnect, NarrowsLend};
use harness::{CpuPlacement, Result, Row, Subject, Wait, Work, WorkKind, systems, targets};

fn main() -> Result<()> {
    let mut subjects = systems![Narrows, NarrowsLend];
    subjects.push(Subject::measure::<ConnectTimes<NarrowsConnect>>());
    subjects.extend(limits::subjects());
    harness::main("stream", &subjects, rows(&subjects))
}

const WAITS: [Wait; 3] = [Wait::Adaptive, Wait::Spin, Wait::Park];

/// Returns the rows of the tables, and those that the targets need. The same work of different systems stands together,
/// so that it is measured at about the same time.
fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = dense();
    works.extend(batches());
    works.extend(placed());
    let mut rows = Vec::new();
    for (work, placement) in works {
        for subject in subjects.iter().filter(|it| (it.supports)(&work)) {
            // Bounds that spin are meaningless where they share a CPU; a socket has one way to wait.
            let alone =
                work.wait == Wait::Spin && subject.name != "narrows" && placement != CpuPlacement::Two;
            let twice = work.wait == Wait::Park && subject.name == "unix-stream";
            if !alone && !twice {
                push(&mut rows, Row { system: subject.name.into(), work, placement });
            }
        }
    }
    let needed = (1..=17).filter(|target| *target != 14).flat_map(targets::needed);
    needed.for_each(|row| push(&mut rows, row));
    rows
}

fn push(rows: &mut Vec<Row>, row: Row) {
    if !rows.contains(&row) {
        rows.push(row);
    }
}

/// Every size, every way to wait, copied and in place.
fn dense() -> Vec<(Work, CpuPlacement)> {
    let mut works = Vec::new();
    for what in [WorkKind::RoundTrip, WorkKind::OneWay] {
        for size in SIZES {
            for work in WAITS.map(|wait| Work::new(what, size).wait(wait)) {
                works.extend([(work, CpuPlacement::Two), (work.in_place(), CpuPlacement::Two)]);
            }
        }
    }
    works
}

fn batches() -> Vec<(Work, CpuPlacement)> {
    let mut works = Vec::new();
    for size in [8, 40, 64, 256, 1 << 10] {
        for batch in [8, 64] {
            works.push((Work::new(WorkKind::OneWay, size).batch(batch), CpuPlacement::Two));
        }
        works.push((Work::new(WorkKind::OneWay, size).wait(Wait::Spin).batch(64), CpuPlacement::Two));
    }
    works
}

/// Round trips of 64 B in every placement, dense and sparse; one way where both share a CPU.
fn placed() -> Vec<(Work, CpuPlacement)> {
    let mut works = Vec::new();
    for placement in [CpuPlacement::Two, CpuPlacement::One, CpuPlacement::Free, CpuPlacement::Busy] {
        for gap in [0, 200, 5000] {
            for work in WAITS.map(|wait| Work::new(WorkKind::RoundTrip, 64).wait(wait)) {
                works.push((work.gap(Duration::from_micros(gap)), placement));
            }
        }
        works.push((Work::new(WorkKind::OneWay, 64), placement));
    }
    let bare = Work::new(WorkKind::RoundTrip, 64).wait(Wait::Park).in_place();
    works.extend([(bare, CpuPlacement::One), (bare, CpuPlacement::Two)]);
    works.push((Work::new(WorkKind::Connect, 64), CpuPlacement::Two));
    works.push((Work::new(WorkKind::Memory, 64).wait(Wait::Park), CpuPlacement::Free));
    works
}
