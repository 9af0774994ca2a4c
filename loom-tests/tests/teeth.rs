//! Weakens one step of the shipped code at a time, and demands that a model fails each time.
//!
//! The mutants are found in the sources (see `build/`), so an ordering, a fence, a flag, a wake or a
//! comparison that is added there is one more mutant here. Prints which model caught which. A mutant
//! that no model catches must stand in `survivors.rs`, with the reason why it cannot matter; one
//! that stands there and is caught is an error too, for which the quick models alone are run
//! (`NARROWS_TEETH=all`: all models). `NARROWS_TEETH=0` leaves all this out.

#[path = "teeth/sources.rs"]
mod sources;
#[path = "teeth/survivors.rs"]
mod survivors;

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use loom_tests::weak::{Mutant, SETTLE, WHICH};
use loom_tests::weakened::code::MUTANTS;
use loom_tests::{check, weakened};

/// Names the model that this process checks.
const MODEL: &str = "NARROWS_MODEL";

/// Much longer than any model takes: a mutant that goes on for so long is caught as well.
const LONGEST: Duration = Duration::from_secs(30);

/// What a person can do.
const ADVICE: &str = "write a model that fails with it (src/models), or do without it in the source, \
    or say in tests/teeth/survivors.rs why it cannot matter";

/// So many models come first and take but a moment.
const QUICK: usize = 20;

static SETTLING: Mutant = Mutant {
    file: "mem.rs",
    line: 0,
    function: "settle",
    change: "relaxed store",
    text: "the first verdict stays, and is published",
};

/// What became of the mutants: number, and the model that caught it.
static CAUGHT: Mutex<Vec<(usize, Option<&str>)>> = Mutex::new(Vec::new());

/// Those that a model caught by going on for too long, and by nothing else.
static LATE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn main() {
    let models = weakened::models::all();
    if let Ok(name) = std::env::var(MODEL) {
        let (_, body) = models.iter().find(|(model, _)| *model == name).expect("a model");
        return check(*body, Some(2));
    }
    let names: Vec<_> = models.into_iter().map(|(name, _)| name).collect();
    if std::env::var("NARROWS_TEETH").as_deref() == Ok("0") {
        return println!("no teeth: NARROWS_TEETH is 0");
    }
    let mutants = (0..MUTANTS.len()).chain([SETTLE]);
    let all_orderings = Trial::test("no ordering stands outside of what is weakened", sources::are_complete);
    let all_excuses = Trial::test("no excuse is for what is not there", survivors::are_there);
    let trials = mutants.map(|number| trial(number, names.clone()));
    let trials = trials.chain([all_orderings, all_excuses]).collect();
    let (began, arguments) = (Instant::now(), Arguments::from_args());
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        table();
        println!("{}, in {:.1?}\n", summary(), began.elapsed());
    }
    conclusion.exit();
}

fn mutant(number: usize) -> &'static Mutant {
    MUTANTS.get(number).unwrap_or(&SETTLING)
}

fn trial(number: usize, models: Vec<&'static str>) -> Trial {
    let it = mutant(number);
    let name = format!("{}:{}: {} ({number})", it.file, it.line, it.change);
    Trial::test(name, move || {
        let excuse = survivors::why(it);
        // Who is excused is tried by the quick models alone, unless asked otherwise.
        let few = excuse.is_some() && std::env::var("NARROWS_TEETH").as_deref() != Ok("all");
        let tried = if few { QUICK } else { models.len() };
        let by = models.into_iter().take(tried).find(|model| fails(model, number));
        CAUGHT.lock().unwrap().push((number, by));
        match (by, excuse) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            (None, None) => Err(format!("no model misses it: {}\n{ADVICE}", it.text).into()),
            (Some(by), Some(_)) => {
                Err(format!("{by} catches it after all: {}\ntake it out of teeth/survivors.rs", it.text)
                    .into())
            }
        }
    })
}

/// Whether a model fails with this mutant.
fn fails(model: &str, number: usize) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .env(MODEL, model)
        .env(WHICH, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let until = Instant::now() + LONGEST;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return !status.success();
        }
        if Instant::now() > until {
            child.kill().and_then(|()| child.wait()).expect("ends");
            LATE.lock().unwrap().push(number);
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn summary() -> String {
    let tried = CAUGHT.lock().unwrap();
    let caught = tried.iter().filter(|(_, by)| by.is_some()).count();
    let excused =
        tried.iter().filter(|(number, by)| by.is_none() && survivors::why(mutant(*number)).is_some());
    let (all, excused) = (tried.len(), excused.count());
    let open = all - caught - excused;
    format!(
        "{all} of {} mutants tried: {caught} caught, {excused} let pass with a reason, {open} open",
        MUTANTS.len() + 1
    )
}

fn table() {
    let mut caught = CAUGHT.lock().unwrap();
    caught.sort_unstable();
    for (number, by) in &*caught {
        let it = mutant(*number);
        let place = format!("{}:{} {}", it.file, it.line, it.function);
        let by = by.map_or_else(|| format!("-- {}", survivors::why(it).unwrap_or("NOBODY")), str::to_owned);
        let late = if LATE.lock().unwrap().contains(number) { " (went on for too long)" } else { "" };
        println!("{place:38} {:50} {by}{late}\n    {}", it.change, it.text);
    }
}
