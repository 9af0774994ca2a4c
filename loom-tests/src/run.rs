//! Running one model, in a process of its own.

use std::env::{current_exe, var};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the model that a process checks.
const MODEL: &str = "NARROWS_MODEL";

/// How often a thread may be interrupted where it need not be; `None` is as often as can be.
pub type Preemptions = Option<usize>;

/// So many executions are twice what any model has: one that has more with a mutant goes on for ever. Counted, not timed,
/// so that a busy machine comes to the same verdict.
pub const MOST: u64 = 120_000;

/// What a process that finds more of them says as it exits.
pub const TOO_MANY: i32 = 9;

/// This program again, to check one model: its `main` begins with [`check_mine`].
///
/// # Panics
///
/// If this program cannot be found any more.
pub fn alone(model: &str) -> Command {
    let mut command = Command::new(current_exe().expect("this program"));
    command.env(MODEL, model);
    command
}

/// Checks the model that this process was started for, and prints its executions; otherwise false. Exits with
/// [`TOO_MANY`] if it has more than `most`.
///
/// # Panics
///
/// If one of them fails. Loom may then abort the process: each model has one of its own.
pub fn check_mine(models: &[(&str, fn())], preemptions: Preemptions, most: u64) -> bool {
    let Ok(mine) = var(MODEL) else { return false };
    let (_, body) = models.iter().find(|(name, _)| *name == mine).expect("a model");
    println!("{}", check(*body, preemptions, most));
    true
}

/// Checks a model in all its executions; how many there are.
fn check(body: fn(), preemptions: Preemptions, most: u64) -> u64 {
    static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 4_000;
    builder.preemption_bound = preemptions;
    builder.check(move || {
        if EXECUTIONS.fetch_add(1, Ordering::Relaxed) >= most {
            exit(TOO_MANY);
        }
        body();
    });
    EXECUTIONS.load(Ordering::Relaxed)
}
