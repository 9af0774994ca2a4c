//! Latency under background load: one client that calls at intervals, and 0, 1, N others that keep the server busy.

use std::time::Duration;

use crate::processes::Actor;
use crate::table::Row;
use crate::watch::Stage;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = [0, 1, (2 * cpus).max(4)];
    counts.map(|neighbours| beside(stage, neighbours, stage.time / 3)).into()
}

fn beside(stage: &Stage, neighbours: usize, time: Duration) -> Row {
    let mut row = Row::new("latency beside neighbours", format!("{neighbours} busy"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls");
    let server = Actor::server(&path, "");
    let arguments = format!("path={}", path.display());
    let mut busy: Vec<_> = (0..neighbours).map(|_| Actor::start("neighbour", &arguments)).collect();
    let mut probe = Actor::start("probe", &arguments);
    let before: u64 = busy.iter_mut().map(|it| it.numbers("count")[0]).sum();
    let slice = (time / 20).clamp(Duration::from_millis(100), Duration::from_secs(1));
    let slices = (time.as_millis() / slice.as_millis()).max(1);
    stage.report_progress(&format!("{neighbours} neighbours"));
    probe.numbers("50"); // Warm.
    let numbers = probe.numbers(&(slice.as_millis() * slices).to_string());
    let theirs: Vec<u64> = busy.iter_mut().map(|it| it.numbers("count")[0]).collect();
    for actor in busy.into_iter().chain([probe, server]) {
        actor.end();
    }
    row.wants(theirs.iter().all(|it| *it > 0), || "a neighbour was not served".into());
    let [calls, p50, p99, p999, max] = numbers[..] else { panic!("{numbers:?}") };
    let us = |ns: u64| {
        let tenths = ns / 100;
        if tenths < 1000 { format!("{}.{}", tenths / 10, tenths % 10) } else { (tenths / 10).to_string() }
    };
    row.figures(format!(
        "{calls} calls of 64 B, each verified: p50 {}, p99 {}, p99.9 {}, longest {} us; {} calls of the neighbours",
        us(p50),
        us(p99),
        us(p999),
        us(max),
        theirs.iter().sum::<u64>() - before
    ))
}
