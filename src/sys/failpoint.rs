//! Failpoints: named steps at which a test makes its own process die, stop or exit. Only with the feature `testing`.
//!
//! ```text
//!   failpoint!("store head");  ── off: one relaxed load
//!                              ── counting: how often each step was hit
//!                              ── armed: at the n-th hit of that step, kill -9, SIGSTOP or _exit
//! ```
//!
//! There is a step *before* each access to shared words, and *after* each system call that succeeded. Between two steps
//! the process does nothing that another process could see. So a test that kills a process once at each hit of each
//! step has covered every moment that matters. Only a copy takes longer than one step: while a step is armed it is made
//! in two halves, with a step between them.
//!
//! # What it does not show
//!
//! In scenarios that wait, the scheduler determines which hit is the n-th. A test must tolerate that a step is not
//! reached.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an armed step does to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `kill -9`.
    Kill,
    /// SIGSTOP: the process continues after SIGCONT.
    Stop,
    /// `_exit(0)`: no destructor runs.
    Exit,
}

/// Starts to count the hits of each step, from 0, and arms no step.
pub fn record() {
    let mut state = state();
    *state = FailpointState { passed: BTreeMap::new(), armed: None };
    ON.store(true, Ordering::Relaxed);
}

/// Starts to count the hits of each step, from 0, and acts at the `nth` hit of `step`. The first hit is 1.
pub fn arm(step: &str, nth: u64, act: Action) {
    let mut state = state();
    *state = FailpointState { passed: BTreeMap::new(), armed: Some(Armed { step: step.into(), nth, act }) };
    ON.store(true, Ordering::Relaxed);
}

/// Returns how often each step was hit since the last [`record`] or [`arm`].
pub fn counts() -> Vec<(&'static str, u64)> {
    state().passed.iter().map(|(step, count)| (*step, *count)).collect()
}

/// Stops counting and acting.
pub fn disarm() {
    ON.store(false, Ordering::Relaxed);
    state().armed = None;
}

/// Returns whether hits are counted.
#[inline]
pub(super) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Hits a step: the process is about to do it, or has just made the system call of that name.
#[inline]
pub(super) fn hit(step: &'static str) {
    if is_on() {
        passed(step);
    }
}

static ON: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<FailpointState> = Mutex::new(FailpointState { passed: BTreeMap::new(), armed: None });

struct FailpointState {
    passed: BTreeMap<&'static str, u64>,
    armed: Option<Armed>,
}

struct Armed {
    step: String,
    nth: u64,
    act: Action,
}

fn state() -> MutexGuard<'static, FailpointState> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cold]
fn passed(step: &'static str) {
    let mut state = state();
    let count = state.passed.entry(step).or_default();
    *count += 1;
    let now = *count;
    let due = state.armed.take_if(|armed| armed.step == step && armed.nth == now);
    drop(state); // A process that is stopped here must not hold the lock when its other threads continue.
    match due.map(|armed| armed.act) {
        None => {}
        Some(Action::Kill) => signal_here(libc::SIGKILL),
        Some(Action::Stop) => signal_here(libc::SIGSTOP),
        // SAFETY: ends the process at once and runs nothing.
        Some(Action::Exit) => unsafe { libc::_exit(0) },
    }
}

/// Sends the signal to the calling thread, so that it takes effect before the call returns.
fn signal_here(signal: i32) {
    // SAFETY: takes numbers: this process, this thread, and a signal.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::fork;

    #[test]
    fn the_nth_hit_acts_and_the_others_count() {
        let ends = |act, nth| {
            let child = fork(move || {
                arm("here", nth, act);
                (0..3).for_each(|_| hit("here"));
                hit("there");
                i32::from(counts() != [("here", 3), ("there", 1)]) + 7
            });
            child.wait()
        };
        assert_eq!(ends(Action::Kill, 3), -libc::SIGKILL);
        assert_eq!(ends(Action::Kill, 4), 7);
        assert_eq!(ends(Action::Exit, 1), 0);
    }

    #[test]
    fn nothing_counts_when_off() {
        let child = fork(|| {
            hit("here");
            record();
            hit("here");
            disarm();
            hit("here");
            i32::from(counts() != [("here", 1)])
        });
        assert_eq!(child.wait(), 0);
    }
}
