//! Weakens one step of the shipped code at a time, and demands that a model fails each time.
//!
//! The mutants are found in the sources (see `build/`), so an ordering, a fence, a flag, a wake or a
//! comparison that is added there is one more mutant here. Prints which model caught which. A mutant
//! that no model catches must stand in `survivors.rs`, with the reason why it cannot matter; one
//! that stands there and is caught is an error too, for which the quick models alone are run
//! (`NARROWS_MUTANTS=all`: all models).

#[path = "mutants/sources.rs"]
mod sources;
#[path = "mutants/survivors.rs"]
mod survivors;

use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use loom_tests::mutated::code::MUTANTS;
use loom_tests::mutation::{Mutant, SETTLE, WHICH};
use loom_tests::{MOST, TOO_MANY, alone, check_mine, mutated};

/// Much longer than [`MOST`] executions take: one of them does not end.
const LONGEST: Duration = Duration::from_secs(40);

/// What a person can do.
const ADVICE: &str = "write a model that fails with it (src/models), or do without it in the source, \
    or say in tests/mutants/survivors.rs why it cannot matter";

/// So many models come first and take but a moment.
const QUICK: usize = 8;

static SETTLING: Mutant = Mutant {
    file: "memory.rs",
    line: 0,
    function: "set_close_reason",
    change: "relaxed store",
    label: "",
    text: "the first verdict stays, and is published",
};

/// What became of a mutant.
struct Outcome {
    number: usize,
    by: Option<Catch>,
}

/// The model that caught it.
struct Catch {
    model: &'static str,
    /// It went on for too long, and nothing else.
    expired: bool,
}

static OUTCOMES: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());

fn main() {
    let models = mutated::models::all();
    if check_mine(&models, Some(2), MOST) {
        return;
    }
    let names =
        |models: Vec<(&'static str, fn())>| models.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let clients = names(mutated::models::of_clients());
    let servers = names(mutated::models::of_servers());
    let all = names(models);
    let mutants = (0..MUTANTS.len()).chain([SETTLE]);
    let all_orderings = Trial::test("no ordering stands outside of what is weakened", sources::are_complete);
    let all_excuses = Trial::test("no excuse is for what is not there", survivors::are_there);
    // No other model runs these files.
    let trials = mutants.map(|number| match mutant(number).file {
        file if file.starts_with("rpc/client/") => trial(number, clients.clone()),
        file if file.starts_with("rpc/server/") => trial(number, servers.clone()),
        _ => trial(number, all.clone()),
    });
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
        let few = excuse.is_some() && std::env::var("NARROWS_MUTANTS").as_deref() != Ok("all");
        let tried = if few { QUICK } else { models.len() };
        let (killers, others): (Vec<_>, Vec<_>) = models.into_iter().partition(|model| has_killed(model, it));
        let by = killers.into_iter().chain(others).take(tried).find_map(|model| caught(model, number));
        let model = by.as_ref().map(|by| by.model);
        OUTCOMES.lock().unwrap().push(Outcome { number, by });
        match (model, excuse) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            (None, None) => Err(format!("no model misses it: {}\n{ADVICE}", it.text).into()),
            (Some(model), Some(_)) => {
                Err(format!("{model} catches it after all: {}\ntake it out of mutants/survivors.rs", it.text)
                    .into())
            }
        }
    })
}

/// Which model has killed which mutant in an earlier run, a line for each.
const KILLERS: &str = include_str!("mutants/killers.txt");

/// Whether this model is known to fail with this mutant. It is tried first, which saves most of the time.
fn has_killed(model: &str, mutant: &Mutant) -> bool {
    KILLERS.lines().filter_map(|line| line.split_once(": ")).any(|known| known == (mutant.label, model))
}

/// The model, if it fails with this mutant.
fn caught(model: &'static str, number: usize) -> Option<Catch> {
    let mut child = alone(model)
        .env(WHICH, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            let expired = status.code() == Some(TOO_MANY);
            return (!status.success()).then_some(Catch { model, expired });
        }
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).expect("ends");
            return Some(Catch { model, expired: true });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn summary() -> String {
    let tried = OUTCOMES.lock().unwrap();
    let (caught, passed): (Vec<_>, Vec<_>) = tried.iter().partition(|it| it.by.is_some());
    let excused = passed.iter().filter(|it| survivors::why(mutant(it.number)).is_some()).count();
    format!(
        "{} of {} mutants tried: {} caught, {excused} let pass with a reason, {} open",
        tried.len(),
        MUTANTS.len() + 1,
        caught.len(),
        passed.len() - excused,
    )
}

fn table() {
    let mut tried = OUTCOMES.lock().unwrap();
    tried.sort_unstable_by_key(|it| it.number);
    for Outcome { number, by } in &*tried {
        let it = mutant(*number);
        let slot = format!("{}:{} {}", it.file, it.line, it.label);
        let by = match by {
            Some(Catch { model, expired: false }) => (*model).to_owned(),
            Some(Catch { model, expired: true }) => format!("{model} (went on for too long)"),
            None => format!("-- {}", survivors::why(it).unwrap_or("NOBODY")),
        };
        println!("{place:38} {:50} {by}\n    {}", it.change, it.text);
    }
}
