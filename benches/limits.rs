//! The limits of the hardware and the kernel: `cargo bench -p narrows-benches --bench limits`.
//!
//! The bounds alone; `stream` runs those that its targets need beside narrows, in the same run, and only such figures
//! can be compared on a machine whose CPUs move about.

use std::time::Duration;

use harness::limits::{self, SIZES};
use harness::{CpuPlacement, Result, Row, Subject, Wait, Work, WorkKind};

fn main() -> Result<()> {
    let subjects = limits::subjects();
    harness::main("limits", &subjects, rows(&subjects))
}

fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = Vec::new();
    for size in SIZES {
        let trip = Work::new(WorkKind::RoundTrip, size);
        let spun = [trip.wait(Wait::Spin), trip.wait(Wait::Spin).in_place()];
        works.extend(spun.map(|work| (work, CpuPlacement::Two)));
        works.push((Work::new(WorkKind::OneWay, size).wait(Wait::Spin), CpuPlacement::Two));
        let slept = [trip, trip.wait(Wait::Park).in_place()];
        works.extend(slept.map(|work| (work, CpuPlacement::Two)));
    }
    for placement in [CpuPlacement::One, CpuPlacement::Free, CpuPlacement::Busy] {
        let trip = Work::new(WorkKind::RoundTrip, 64);
        works.extend([trip, trip.wait(Wait::Park).in_place()].map(|work| (work, placement)));
    }
    for gap in [200, 5000].map(Duration::from_micros) {
        let trip = Work::new(WorkKind::RoundTrip, 64).gap(gap);
        works.extend([trip, trip.wait(Wait::Park).in_place()].map(|work| (work, CpuPlacement::Two)));
    }
    let wake = Work::new(WorkKind::Wake, 64).gap(Duration::from_millis(1));
    works.push((wake.wait(Wait::Park).in_place(), CpuPlacement::Two));
    works.push((Work::new(WorkKind::Connect, 64), CpuPlacement::Two));
    for sleepers in [1, 1000] {
        works.push((Work::new(WorkKind::Idle, 64).wait(Wait::Park).batch(sleepers), CpuPlacement::Free));
    }
    let rows = works.into_iter().flat_map(|(work, placement)| {
        let able = subjects.iter().filter(move |it| (it.supports)(&work));
        able.map(move |it| Row { system: it.name.into(), work, placement })
    });
    rows.filter(|row| row.work.kind != WorkKind::Idle || row.system == "futex-sliced").collect()
}
