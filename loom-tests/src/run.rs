//! Running one model.

use std::sync::atomic::{AtomicU64, Ordering};

/// Executions of the model that was checked in this process.
pub static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

/// How often a thread may be interrupted where it need not be; `None` is as often as can be.
pub type Preemptions = Option<usize>;

/// Checks a model in all its executions.
///
/// # Panics
///
/// If one of them fails. Loom may then abort the process: each model has one of its own.
pub fn check(body: fn(), preemptions: Preemptions) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = preemptions;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Ordering::Relaxed);
        body();
    });
}
