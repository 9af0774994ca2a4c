//! Memory under sustained load: the memory of both processes is constant over time, and bounded by their connections alone.

use std::time::{Duration, Instant};

use crate::processes::Actor;
use crate::table::{Row, kib, median};
use crate::watch::{Sample, Stage, change, grown};

/// Few connections, and more of them: the difference is the cost of the additional ones.
const CONNECTIONS: [u64; 2] = [2, 6];

/// The memory of an RPC connection and a stream in a process besides shared pages, in KiB: buffers for messages of 1 MiB, both
/// ways, in each of the kinds of call, and the overhead of the allocator.
const PRIVATE: u64 = 24 << 10;
/// The memory of a process without connections.
const BASE: u64 = 32 << 10;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut peaks = Vec::new();
    for connections in CONNECTIONS {
        let (found, last) = load(stage, connections, stage.time / 2);
        rows.extend(found);
        peaks.push(last);
    }
    if let [few, more] = &peaks[..] {
        let each = |of: fn(&Sample) -> u64, at: usize| {
            of(&more[at]).saturating_sub(of(&few[at])) / (CONNECTIONS[1] - CONNECTIONS[0])
        };
        for (at, side) in ["server", "client"].into_iter().enumerate() {
            let (private, shared) = (each(|it| it.private, at), each(|it| it.shared, at));
            let mut row = Row::new("memory under load", format!("{side}, each more connection and stream"));
            row.wants(private <= PRIVATE, || format!("more than {}", kib(PRIVATE)));
            rows.push(row.figures(format!("private {}, shared {}", kib(private), kib(shared))));
        }
    }
    rows
}

/// Runs connections for some time. Returns a row for each process, and the last sample of each.
fn load(stage: &Stage, connections: u64, time: Duration) -> (Vec<Row>, [Sample; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls");
    let mut server = Actor::server(&path, "");
    let mut client = Actor::start("steady", &format!("path={};connections={connections}", path.display()));
    let pids = [server.pid(), client.pid()];
    while client.numbers("count")[0] < 1000 * connections && !crate::watch::interrupted() {
        stage.rest(Duration::from_millis(20)); // Everything is done in every size before the samples count.
    }
    let (began, before) = (Instant::now(), client.numbers("count"));
    let mut samples: [Vec<Sample>; 2] = Default::default();
    let mut allocated: [Vec<u64>; 2] = Default::default();
    while (samples[0].len() < 30 || began.elapsed() < time) && !crate::watch::interrupted() {
        stage.rest((time / 200).clamp(Duration::from_millis(20), Duration::from_millis(500)));
        for (samples, pid) in samples.iter_mut().zip(pids) {
            samples.push(Sample::of(pid));
        }
        let now = client.numbers("count");
        allocated[0].push(server.numbers("stats")[6] >> 10);
        allocated[1].push(now[2] >> 10);
        let last = samples.each_ref().map(|it| it[it.len() - 1]);
        stage.report_progress(&format!(
            "{connections} connections: {} calls, {} MiB; private {} and {}, shared {}",
            now[0] - before[0],
            (now[1] - before[1]) >> 10,
            kib(last[0].private),
            kib(last[1].private),
            kib(last[0].shared)
        ));
    }
    let after = client.numbers("count");
    let took = began.elapsed();
    client.end();
    server.end();
    let done = format!("{} calls, {} MiB in {took:.0?}", after[0] - before[0], (after[1] - before[1]) >> 10);
    let rows = ["server", "client"].into_iter().zip(samples.iter().zip(&allocated)).map(
        |(side, (samples, allocated))| {
            check(
                Row::new("memory under load", format!("{side}, {connections} connections and streams")),
                samples,
                allocated,
                connections,
            )
            .figures_behind(&done)
        },
    );
    let rows = rows.collect();
    (rows, samples.map(|it| Sample::thirds(&it).1))
}

fn check(mut row: Row, samples: &[Sample], allocated: &[u64], connections: u64) -> Row {
    let (first, last) = Sample::thirds(samples);
    let of_third = |of: &[u64]| median(of.to_vec());
    let warm = &allocated[allocated.len() / 10..];
    let third = (warm.len() / 3).max(1);
    let allocated = (of_third(&warm[..third]), of_third(&warm[warm.len() - third..]));
    let flat = [
        ("private KiB", first.private, last.private, grown(first.private, last.private, 8, 8 << 10)),
        ("allocated KiB", allocated.0, allocated.1, grown(allocated.0, allocated.1, 8, 2 << 10)),
        ("shared KiB", first.shared, last.shared, grown(first.shared, last.shared, 20, 256)),
        ("threads", first.threads, last.threads, grown(first.threads, last.threads, 1 << 40, connections)),
        ("descriptors", first.descriptors, last.descriptors, last.descriptors != first.descriptors),
        ("regions", first.regions, last.regions, last.regions != first.regions),
        ("mappings", first.mappings, last.mappings, grown(first.mappings, last.mappings, 8, 16)),
    ];
    for (what, first, last, grew) in flat {
        row.wants(!grew, || format!("{what} grew from {first} to {last}"));
    }
    // Each connection has two regions: that of the calls and that of the stream.
    let region =
        narrows::internal::layout::Geometry::new(256, 1 << 20, 64).expect("legal").region_len() as u64 >> 10;
    let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    let (shared, private) = (most(|it| it.shared), most(|it| it.private));
    row.wants(shared <= 2 * connections * region + 64, || {
        format!("{shared} KiB are more than the regions have")
    });
    row.wants(private <= BASE + connections * PRIVATE, || format!("{} are too much", kib(private)));
    row.figures(format!(
        "first and last third: private {} KiB, of that allocated {} KiB, shared {} KiB, threads {}, descriptors {}, mappings {}; most private {}",
        change(first.private, last.private),
        change(allocated.0, allocated.1),
        change(first.shared, last.shared),
        change(first.threads, last.threads),
        change(first.descriptors, last.descriptors),
        change(first.mappings, last.mappings),
        kib(private)
    ))
}
