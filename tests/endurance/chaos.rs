//! Chaos: each second something happens to somebody; the others go on, and who it happened to is told what it was.
//!
//! ```text
//!   each second one of fault_scenarios::KINDS, on a thread of its own ──▶ the server ◀── survivors: their calls are counted
//!                                                                 another one ◀── the control: nothing happens to it
//! ```
//!
//! A second is over when the clock says so. In each the survivors must get on; where they do not and the control does not
//! either, the machine was busy, and the second goes on until the control does.

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
/// Calls of the control that show that the machine lets somebody work.
const WORKS: u64 = 50;
/// Descriptors of the server: enough for all but the hoarder.
const DESCRIPTORS: usize = 128;

/// What became of whom, and how often.
type Fates = BTreeMap<(usize, String), BTreeMap<String, usize>>;

pub(crate) fn run(stage: &Stage) -> Vec<Row> {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, control_path) = (folder.path().join("calls"), folder.path().join("control"));
    let mut server = Actor::server(&path, &format!("descriptors={DESCRIPTORS};handshake=2000"));
    let base = server.base(&path);
    let report = format!("path={}", path.display());
    let mut workers: Vec<_> = (0..SURVIVORS).map(|_| Actor::start("worker", &report)).collect();
    let control_server = Actor::server(&control_path, "");
    workers.push(Actor::start("worker", &format!("path={}", control_path.display())));
    while counts(&mut workers).contains(&0) {
        stage.rest(Duration::from_millis(5));
    }
    let began = Instant::now();
    let beginning = counts(&mut workers);
    let server = Mutex::new(server);
    let (scene, fates) =
        (Scene { path: &path, folder: folder.path(), server: &server }, Mutex::new(Fates::new()));
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
            let (scene, fates, seed) = (&scene, &fates, random.u64(..));
            s.spawn(move || {
                for (whom, what) in fault_scenarios::happen(kind, scene, seed) {
                    let mut fates = fates.lock().expect("no panic");
                    *fates.entry((kind, whom)).or_default().entry(what).or_default() += 1;
                }
            });
            events += 1;
            survivors.second(&mut workers);
            stage.notify(&format!(
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
    survivors.second(&mut workers); // All of them live, behind the last event as well.
    let end = counts(&mut workers);
    workers.into_iter().for_each(Actor::end);
    control_server.end();
    let mut server = server.into_inner().expect("no panic");

    let mut rows = Vec::new();
    let fates = fates.into_inner().expect("no panic");
    for (kind, (name, wanted)) in KINDS.iter().enumerate() {
        rows.push(told_of(kind, name, wanted, &fates));
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

/// What the victims of a kind were told; each must have been told what it should, every time.
fn told_of(kind: usize, name: &str, wanted: &[(&str, &[&str])], fates: &Fates) -> Row {
    let mut row = Row::new("chaos", name);
    let mut figures = Vec::new();
    for (whom, allowed) in wanted {
        let none = BTreeMap::new();
        let report = fates.get(&(kind, (*whom).to_owned())).unwrap_or(&none);
        let texts: Vec<_> = report.iter().map(|(what, times)| format!("{what} x {times}")).collect();
        row.wants(!report.is_empty(), || format!("{whom} was told nothing"));
        for what in report.keys().filter(|it| !allowed.contains(&it.as_str())) {
            row.faults.push(format!("{whom} was told {what}, not {}", allowed.join(" or ")));
        }
        figures.push(format!("{whom}: {}", texts.join(", ")));
    }
    for (_, whom) in fates.keys().filter(|(at, it)| *at == kind && !wanted.iter().any(|(whom, _)| whom == it))
    {
        row.faults.push(format!("{whom}: {:?}", fates[&(kind, whom.clone())]));
    }
    row.figures(figures.join("; "))
}

fn counts(workers: &mut [Actor]) -> Vec<u64> {
    workers.iter_mut().map(|it| it.numbers("count")[0]).collect()
}

/// How the survivors and the control get on.
#[derive(Debug, Default)]
struct Survivors {
    last: Vec<u64>,
    least: Option<u64>,
    control: Option<u64>,
    longest: Duration,
    stalls: Vec<String>,
}

impl Survivors {
    /// Waits for a second, and judges it.
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
