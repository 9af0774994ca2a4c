//! Chaos: a fault happens each second. The clients that it does not concern go on, and those that it does get the right error.
//!
//! ```text
//!   each second one of fault_scenarios::KINDS, on a thread of its own ──▶ the server ◀── survivors: their calls are counted
//!                                                                 another one ◀── the control: no faults
//! ```
//!
//! In each second the survivors must make progress. If neither they nor the control do, the machine was busy, and the second
//! lasts until the control makes progress.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::fault_scenarios::{self, KINDS, Scene};
use crate::processes::{Actor, PATIENCE};
use crate::table::Row;
use crate::watch::{Sample, Stage, change};

const SURVIVORS: usize = 3;
const SECOND: Duration = Duration::from_secs(1);
/// Calls of the control that show that the machine is not too busy.
const WORKS: u64 = 50;
/// Descriptors of the server: enough for all but the hoarder.
const DESCRIPTORS: usize = 128;

/// By fault and process: each outcome, and how often it occurred.
type Outcomes = BTreeMap<(usize, String), BTreeMap<String, usize>>;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, control_path) = (folder.path().join("calls"), folder.path().join("control"));
    let mut server = Actor::server(&path, &format!("descriptors={DESCRIPTORS};handshake=2000"));
    let base = server.base(&path);
    let arguments = format!("path={}", path.display());
    let mut workers: Vec<_> = (0..SURVIVORS).map(|_| Actor::start("worker", &arguments)).collect();
    let control_server = Actor::server(&control_path, "");
    workers.push(Actor::start("worker", &format!("path={}", control_path.display())));
    while counts(&mut workers).contains(&0) {
        stage.rest(Duration::from_millis(5));
    }
    let began = Instant::now();
    let beginning = counts(&mut workers);
    let server = Mutex::new(server);
    let (scene, outcomes) =
        (Scene { path: &path, folder: folder.path(), server: &server }, Mutex::new(Outcomes::new()));
    let mut survivors = Survivors::default();
    let mut random = fastrand::Rng::with_seed(stage.seed);
    let mut bag: Vec<usize> = Vec::new();
    let mut events = 0_u64;
    thread::scope(|s| {
        while events < KINDS.len() as u64 || !stage.is_over() {
            if bag.is_empty() {
                bag.extend(0..KINDS.len());
                random.shuffle(&mut bag);
            }
            let kind = bag.pop().expect("filled");
            let (scene, outcomes, seed) = (&scene, &outcomes, random.u64(..));
            s.spawn(move || {
                for (process, what) in fault_scenarios::happen(kind, scene, seed) {
                    let mut outcomes = outcomes.lock().expect("no panic");
                    *outcomes.entry((kind, process)).or_default().entry(what).or_default() += 1;
                }
            });
            events += 1;
            survivors.second(&mut workers);
            stage.report_progress(&format!(
                "second {events}: {}; survivors {} calls, at least {} in a second",
                KINDS[kind].0,
                survivors.last[..SURVIVORS].iter().sum::<u64>(),
                survivors.least.unwrap_or(0)
            ));
            if crate::watch::interrupted() {
                break;
            }
        }
    });
    let took = began.elapsed();
    survivors.second(&mut workers); // All of them still work after the last event.
    let end = counts(&mut workers);
    workers.into_iter().for_each(Actor::end);
    control_server.end();
    let mut server = server.into_inner().expect("no panic");

    let mut rows = Vec::new();
    let outcomes = outcomes.into_inner().expect("no panic");
    for (kind, (name, expected)) in KINDS.iter().enumerate() {
        rows.push(outcomes_row(kind, name, expected, &outcomes));
    }
    let mut row = Row::new("chaos", format!("{SURVIVORS} survivors"));
    row.faults.extend(server.leftovers(&base));
    row.faults.append(&mut survivors.stalls);
    let now = Sample::of(server.pid());
    let of = |at: usize| end[at] - beginning[at];
    rows.push(row.figures(format!(
        "{events} events in {took:.0?}; {} calls of the survivors, each verified, no error, least in a second {} ({} of the control); \
         the slowest second took {:.1?}; server before and after: descriptors {}, threads {}, regions {}",
        (0..SURVIVORS).map(of).sum::<u64>(),
        survivors.least.unwrap_or(0),
        survivors.control.unwrap_or(0),
        survivors.longest,
        change(base.descriptors, now.descriptors),
        change(base.threads, now.threads),
        change(base.regions, now.regions)
    )));
    server.end();
    rows
}

/// The outcomes of one kind of fault. Each must be an allowed one, every time.
fn outcomes_row(kind: usize, name: &str, expected: &[(&str, &[&str])], outcomes: &Outcomes) -> Row {
    let mut row = Row::new("chaos", name);
    let mut figures = Vec::new();
    for (process, allowed) in expected {
        let none = BTreeMap::new();
        let seen = outcomes.get(&(kind, (*process).to_owned())).unwrap_or(&none);
        let texts: Vec<_> = seen.iter().map(|(what, times)| format!("{what} x {times}")).collect();
        row.wants(!seen.is_empty(), || format!("{process}: no outcome"));
        for what in seen.keys().filter(|it| !allowed.contains(&it.as_str())) {
            row.faults.push(format!("{process} got {what}, not {}", allowed.join(" or ")));
        }
        figures.push(format!("{process}: {}", texts.join(", ")));
    }
    for (_, process) in
        outcomes.keys().filter(|(at, it)| *at == kind && !expected.iter().any(|(process, _)| process == it))
    {
        row.faults.push(format!("{process}: {:?}", outcomes[&(kind, process.clone())]));
    }
    row.figures(figures.join("; "))
}

fn counts(workers: &mut [Actor]) -> Vec<u64> {
    workers.iter_mut().map(|it| it.numbers("count")[0]).collect()
}

/// The progress of the survivors and of the control.
#[derive(Debug, Default)]
struct Survivors {
    last: Vec<u64>,
    least: Option<u64>,
    control: Option<u64>,
    longest: Duration,
    stalls: Vec<String>,
}

impl Survivors {
    /// Waits for a second, and checks the progress in it.
    fn second(&mut self, workers: &mut [Actor]) {
        let (began, before) = (Instant::now(), counts(workers));
        loop {
            thread::sleep(SECOND.saturating_sub(began.elapsed()).max(Duration::from_millis(20)));
            let after = counts(workers); // A survivor that had an error ends the check here.
            let done: Vec<u64> = after.iter().zip(&before).map(|(it, was)| it - was).collect();
            let (control, survivors) = done.split_last().expect("at least the control");
            let least = survivors.iter().min().copied().unwrap_or(0);
            let stalled = least == 0 && (*control >= WORKS || began.elapsed() > PATIENCE);
            if stalled {
                self.stalls.push(format!(
                    "a second in which the survivors made {survivors:?} and the control {control}"
                ));
            }
            if least > 0 || stalled {
                self.longest = self.longest.max(began.elapsed());
                self.least = Some(self.least.map_or(least, |it| it.min(least)));
                self.control = Some(self.control.map_or(*control, |it| it.min(*control)));
                self.last = after;
                return;
            }
        }
    }
}
