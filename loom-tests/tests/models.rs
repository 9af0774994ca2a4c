//! Checks each model over the shipped code, in a process of its own.
//!
//! The default is a bound of 2 preemptions. `NARROWS_PREEMPTIONS=3 cargo test -p loom-tests --test models` raises it, and `none`
//! removes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use libtest_mimic::{Arguments, Trial};
use loom_tests::{MAX_EXECUTIONS, Preemptions, check_requested, command_for, shipped};

static EXPLORED: AtomicU64 = AtomicU64::new(0);

fn main() {
    let models = shipped::models::all();
    if check_requested(&models, preemptions(), u64::MAX) {
        return;
    }
    let (count, began) = (models.len(), Instant::now());
    let trials = models.into_iter().map(|(name, _)| Trial::test(name, move || explore(name))).collect();
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    let bound = preemptions().map_or_else(|| "any number of".to_owned(), |most| format!("{most}"));
    let (held, failed) = (conclusion.num_passed, conclusion.num_failed);
    let (executions, took) = (EXPLORED.load(Ordering::Relaxed), began.elapsed());
    println!(
        "{held} models hold and {failed} fail, of {count}, up to {bound} preemptions: {executions} executions in {took:.1?}\n"
    );
    conclusion.exit();
}

fn preemptions() -> Preemptions {
    match std::env::var("NARROWS_PREEMPTIONS").as_deref() {
        Err(_) => Some(2),
        Ok("none") => None,
        Ok(most) => Some(most.parse().expect("NARROWS_PREEMPTIONS is a number or none")),
    }
}

fn explore(name: &str) -> Result<(), libtest_mimic::Failed> {
    let child = command_for(name).output()?;
    let (output, errors) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    if !child.status.success() {
        return Err(format!("{}\n{output}{errors}", child.status).into());
    }
    let executions: u64 = output.trim().parse()?;
    EXPLORED.fetch_add(executions, Ordering::Relaxed);
    println!("{name}: {executions} executions");
    if preemptions() == Some(2) && executions > MAX_EXECUTIONS / 2 {
        return Err(format!(
            "{executions} executions are more than {}: make the model smaller",
            MAX_EXECUTIONS / 2
        )
        .into());
    }
    Ok(())
}
