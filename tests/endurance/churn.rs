//! Churn: clients connect, make calls and vanish, cleanly or not, one after the other and several at once. Nothing is left
//! behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::processes::Actor;
use crate::support::eventually;
use crate::table::Row;
use crate::watch::{Sample, Stage, change, grown};

/// Short-lived clients at once.
const AT_ONCE: u64 = 3;
/// The least number of short-lived clients of each manner.
const LEAST: u64 = 5;
const MANNERS: [&str; 3] = ["leave", "exit", "wait"];

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls");
    let mut server = Actor::server(&path, "");
    let base = server.base(&path);
    let before = server.numbers("stats");
    let arguments = format!("path={}", path.display());
    let files = || std::fs::read_dir(folder.path()).expect("lists").count();
    let files_before = files();

    let mut survivor = Actor::start("worker", &arguments);
    let mut revolver = Actor::start("revolver", &arguments);
    while revolver.numbers("count")[0] < 20 {
        stage.rest(Duration::from_millis(10));
    }
    let first = Sample::of(revolver.pid());
    let turned = revolver.numbers("count")[0];
    let vanished = MANNERS.map(|_| AtomicU64::new(0));
    thread::scope(|s| {
        for at in 0..AT_ONCE {
            let (vanished, arguments) = (&vanished, &arguments);
            s.spawn(move || {
                let mut random = fastrand::Rng::with_seed(stage.seed + at);
                for turn in at.. {
                    let enough = turn / 3 >= LEAST;
                    if enough && stage.is_over() {
                        return;
                    }
                    let manner = usize::try_from(turn % 3).expect("few");
                    run_short_lived(arguments, MANNERS[manner], &mut random);
                    vanished[manner].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while !stage.is_over() {
            let [left, exited, killed] = counts(&vanished);
            let survives = survivor.numbers("count")[0];
            stage.report_progress(&format!(
                "{left} left, {exited} exited, {killed} were killed; the survivor has {survives} calls"
            ));
            stage.rest(Duration::from_millis(200));
        }
    });
    let [left, exited, killed] = counts(&vanished);
    let survived = survivor.numbers("count")[0];
    let turns = revolver.numbers("count")[0] - turned;
    // Between two connections there is a moment at which the process has as many resources as at first.
    let same = eventually(|| {
        let now = Sample::of(revolver.pid());
        now.exact().iter().zip(first.exact()).all(|(is, was)| *is <= was)
    });
    let last = Sample::of(revolver.pid());
    survivor.end();
    revolver.end();

    let mut row = Row::new("churn", "processes that vanish");
    row.wants(survived > 0, || "the survivor was not served".into());
    row.faults.extend(server.leftovers(&base));
    row.wants(files() == files_before, || "files were left".into());
    let stats = server.numbers("stats");
    let (died, broken) = (stats[2] - before[2], stats[5] - before[5]);
    let vanished = exited + killed;
    row.wants(died == vanished && broken == vanished, || {
        format!("{died} calls' connections and {broken} streams of {vanished} were reported as deaths")
    });
    row.wants(stats[..2] == [0, 0] && stats[4] == 0, || format!("{stats:?}"));
    // Each worker of the pool keeps a buffer of at most 256 KiB, and not all had one before.
    let workers = thread::available_parallelism().map_or(1, usize::from).max(4) as u64;
    row.wants(!grown(before[6], stats[6], 1 << 40, (64 << 10) + workers * (256 << 10)), || {
        format!("{} bytes are allocated, {} before", stats[6], before[6])
    });
    let now = Sample::of(server.pid());
    row = row.figures(format!(
        "{left} left, {exited} exited in mid-call, {killed} were killed in mid-call; of these {died} and {broken} streams reported as \
         deaths; the survivor's {survived} calls verified; server before and after: descriptors {}, threads {}, regions {}, \
         private {} KiB, allocated {} KiB",
        change(base.descriptors, now.descriptors),
        change(base.threads, now.threads),
        change(base.regions, now.regions),
        change(base.private, now.private),
        change(before[6] >> 10, stats[6] >> 10),
    ));
    server.end();

    let mut turning = Row::new("churn", "one process, connections that come and go");
    turning.wants(same, || format!("{last:?}, before {first:?}"));
    let turning = turning.figures(format!(
        "{turns} connections and as many streams, each used; descriptors {}, threads {}, private {} KiB",
        change(first.descriptors, last.descriptors),
        change(first.threads, last.threads),
        change(first.private, last.private)
    ));
    vec![row, turning]
}

fn counts(vanished: &[AtomicU64; 3]) -> [u64; 3] {
    vanished.each_ref().map(|it| it.load(Ordering::Relaxed))
}

fn run_short_lived(arguments: &str, manner: &str, random: &mut fastrand::Rng) {
    let mut client = Actor::start("short-lived", &format!("{arguments};manner={manner}"));
    client.receive();
    if manner == "wait" {
        thread::sleep(Duration::from_micros(random.u64(0..5000)));
        client.kill();
        return;
    }
    let status = client.wait();
    assert!(status.success(), "a client that would {manner}: {status}");
}
