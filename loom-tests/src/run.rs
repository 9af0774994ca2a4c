//! Runs one model in a process of its own.

use std::env::{current_exe, var};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names the model which a process checks.
const MODEL_VARIABLE: &str = "NARROWS_MODEL";

/// The number of times that a thread may be preempted. `None` means any number.
pub type Preemptions = Option<usize>;

/// Twice the executions of the largest model. A model that has more with a mutant counts as endless. Executions are counted,
/// not timed, so that a busy machine gives the same result.
pub const MAX_EXECUTIONS: u64 = 120_000;

/// The exit code of a process whose model has more executions than allowed.
pub const TOO_MANY_EXECUTIONS: i32 = 9;

/// Returns the command that runs this program again to check one model. Its `main` begins with [`check_requested`].
///
/// # Panics
///
/// If this program cannot be found any more.
pub fn command_for(model: &str) -> Command {
    let mut command = Command::new(current_exe().expect("this program"));
    command.env(MODEL_VARIABLE, model);
    command
}

/// Checks the model that this process was started for, prints the number of its executions and returns true. Returns false if
/// the process was started for no model. Exits with [`TOO_MANY_EXECUTIONS`] if the model has more than `most`.
///
/// # Panics
///
/// If an execution fails. Loom may abort the process then, so each model has a process of its own.
pub fn check_requested(models: &[(&str, fn())], preemptions: Preemptions, most: u64) -> bool {
    let Ok(requested) = var(MODEL_VARIABLE) else { return false };
    let (_, body) = models.iter().find(|(name, _)| *name == requested).expect("a model");
    println!("{}", check(*body, preemptions, most));
    true
}

/// Checks a model in all its executions, and returns their number.
fn check(body: fn(), preemptions: Preemptions, most: u64) -> u64 {
    static EXECUTIONS: AtomicU64 = AtomicU64::new(0);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 4_000;
    builder.preemption_bound = preemptions;
    builder.check(move || {
        if EXECUTIONS.fetch_add(1, Ordering::Relaxed) >= most {
            exit(TOO_MANY_EXECUTIONS);
        }
        body();
    });
    EXECUTIONS.load(Ordering::Relaxed)
}
