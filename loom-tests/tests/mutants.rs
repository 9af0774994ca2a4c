//! Mutates one step of the shipped code at a time, and demands that a model fails for each mutant.
//!
//! The mutants are found in the sources (see `build/`), so an ordering, a fence, a flag, a wake or a comparison that is added
//! there is one more mutant here. Prints which model killed which mutant. A mutant that no model kills must be listed in
//! `survivors.rs`, with the reason why it cannot matter. A listed mutant that a model kills is an error too. For listed mutants
//! only the quick models run, or all models with `NARROWS_MUTANTS=all`.

#[path = "mutants/sources.rs"]
mod sources;
#[path = "mutants/survivors.rs"]
mod survivors;

use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use loom_tests::mutated::code::MUTANTS;
use loom_tests::mutation::{CLOSE_REASON_MUTANT, MUTANT_VARIABLE, Mutant};
use loom_tests::{MAX_EXECUTIONS, TOO_MANY_EXECUTIONS, check_requested, command_for, mutated};

/// Much longer than [`MAX_EXECUTIONS`] executions take. If it passes, an execution does not end.
const LONGEST: Duration = Duration::from_secs(40);

/// What to do about a mutant that survives.
const ADVICE: &str = "write a model that fails with it (src/models), or remove the step from the source, \
    or add the reason why it cannot matter to tests/mutants/survivors.rs";

/// The number of quick models, which come first in the list.
const QUICK: usize = 8;

static CLOSE_REASON: Mutant = Mutant {
    file: "memory.rs",
    line: 0,
    function: "set_close_reason",
    change: "relaxed store",
    label: "",
    text: "the first close reason stays, and is published",
};

/// The result of a mutant.
struct Outcome {
    number: usize,
    kill: Option<Kill>,
}

/// The model that killed it.
struct Kill {
    model: &'static str,
    /// The model did not end in time, and did not fail otherwise.
    expired: bool,
}

static OUTCOMES: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());

fn main() {
    let models = mutated::models::all();
    if check_requested(&models, Some(2), MAX_EXECUTIONS) {
        return;
    }
    let names =
        |models: Vec<(&'static str, fn())>| models.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let clients = names(mutated::models::of_clients());
    let servers = names(mutated::models::of_servers());
    let all = names(models);
    let mutants = (0..MUTANTS.len()).chain([CLOSE_REASON_MUTANT]);
    let all_orderings = Trial::test("no ordering is outside of the mutated files", sources::are_complete);
    let all_survivors = Trial::test("each survivor in the list is a mutant", survivors::are_mutants);
    // No other model runs these files.
    let trials = mutants.map(|number| match mutant(number).file {
        file if file.starts_with("rpc/client/") => trial(number, clients.clone()),
        file if file.starts_with("rpc/server/") => trial(number, servers.clone()),
        _ => trial(number, all.clone()),
    });
    let trials = trials.chain([all_orderings, all_survivors]).collect();
    let (began, arguments) = (Instant::now(), Arguments::from_args());
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        print_table();
        println!("{}, in {:.1?}\n", summary(), began.elapsed());
    }
    conclusion.exit();
}

fn mutant(number: usize) -> &'static Mutant {
    MUTANTS.get(number).unwrap_or(&CLOSE_REASON)
}

fn trial(number: usize, models: Vec<&'static str>) -> Trial {
    let it = mutant(number);
    let name = format!("{}:{}: {} ({number})", it.file, it.line, it.change);
    Trial::test(name, move || {
        let reason = survivors::reason(it);
        // A listed survivor is tried by the quick models only, unless all are asked for.
        let few = reason.is_some() && std::env::var("NARROWS_MUTANTS").as_deref() != Ok("all");
        let tried = if few { QUICK } else { models.len() };
        let (killers, others): (Vec<_>, Vec<_>) = models.into_iter().partition(|model| has_killed(model, it));
        let kill = killers.into_iter().chain(others).take(tried).find_map(|model| try_kill(model, number));
        let model = kill.as_ref().map(|kill| kill.model);
        OUTCOMES.lock().unwrap().push(Outcome { number, kill });
        match (model, reason) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            (None, None) => Err(format!("no model kills it: {}\n{ADVICE}", it.text).into()),
            (Some(model), Some(_)) => {
                Err(format!("{model} kills it after all: {}\nremove it from mutants/survivors.rs", it.text)
                    .into())
            }
        }
    })
}

/// The model that killed each mutant in an earlier run, a line for each.
const KILLERS: &str = include_str!("mutants/killers.txt");

/// Returns whether this model is known to fail with this mutant. Such a model is tried first, which saves most of the time.
fn has_killed(model: &str, mutant: &Mutant) -> bool {
    KILLERS.lines().filter_map(|line| line.split_once(": ")).any(|known| known == (mutant.label, model))
}

/// Runs a model with a mutant, and returns the kill if the model fails.
fn try_kill(model: &'static str, number: usize) -> Option<Kill> {
    let mut child = command_for(model)
        .env(MUTANT_VARIABLE, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            let expired = status.code() == Some(TOO_MANY_EXECUTIONS);
            return (!status.success()).then_some(Kill { model, expired });
        }
        if Instant::now() > deadline {
            child.kill().and_then(|()| child.wait()).expect("ends");
            return Some(Kill { model, expired: true });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn summary() -> String {
    let tried = OUTCOMES.lock().unwrap();
    let (killed, survived): (Vec<_>, Vec<_>) = tried.iter().partition(|it| it.kill.is_some());
    let accepted = survived.iter().filter(|it| survivors::reason(mutant(it.number)).is_some()).count();
    format!(
        "{} of {} mutants tried: {} killed, {accepted} accepted survivors, {} unexpected survivors",
        tried.len(),
        MUTANTS.len() + 1,
        killed.len(),
        survived.len() - accepted,
    )
}

fn print_table() {
    let mut tried = OUTCOMES.lock().unwrap();
    tried.sort_unstable_by_key(|it| it.number);
    for Outcome { number, kill } in &*tried {
        let it = mutant(*number);
        let location = format!("{}:{} {}", it.file, it.line, it.label);
        let result = match kill {
            Some(Kill { model, expired: false }) => (*model).to_owned(),
            Some(Kill { model, expired: true }) => format!("{model} (did not end in time)"),
            None => format!("-- {}", survivors::reason(it).unwrap_or("UNEXPECTED")),
        };
        println!("{location:38} {:50} {result}\n    {}", it.change, it.text);
    }
}
