//! The switch of the mutants: which one step of the weakened copy is weak in this process.

use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use narrows::internal::memory::{Flag, Load, Memory, Store};

/// One weakened step of the shipped source.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The file, below `src/`.
    pub file: &'static str,
    /// The line.
    pub line: usize,
    /// The function.
    pub function: &'static str,
    /// What is changed.
    pub change: &'static str,
    /// Type, function, kind of change, and which of several.
    pub label: &'static str,
    /// The line itself.
    pub text: &'static str,
}

/// Names the mutant that runs, by its number.
pub const WHICH: &str = "NARROWS_MUTANT";

/// Behind all that stand in the sources of the ring: the machine's own `set_close_reason`, Release left out.
pub const SETTLE: usize = 1 << 20;

static CHOSEN: LazyLock<Option<usize>> =
    LazyLock::new(|| std::env::var(WHICH).ok().map(|number| number.parse().expect("a number")));

pub(crate) fn on(number: usize) -> bool {
    *CHOSEN == Some(number)
}

pub(crate) fn acquire(number: usize) -> Load {
    if on(number) { Load::Relaxed } else { Load::Acquire }
}

pub(crate) fn release(number: usize) -> Store {
    if on(number) { Store::Relaxed } else { Store::Release }
}

pub(crate) fn settling() -> Ordering {
    if on(SETTLE) { Ordering::Relaxed } else { Ordering::AcqRel }
}

/// Always true with this number, never with the next.
pub(crate) fn compare(number: usize, is: bool) -> bool {
    on(number) || (is && !on(number + 1))
}

/// In two steps with this number, not cleared with the next.
pub(crate) fn take_flag<M: Memory>(number: usize, mem: &M, flag: Flag) -> u32 {
    if on(number) {
        let seen = mem.load_flag(flag);
        mem.store_flag(flag, 0);
        seen
    } else if on(number + 1) {
        mem.load_flag(flag)
    } else {
        mem.take_flag(flag)
    }
}

/// Hides code from what weakens.
macro_rules! as_is {
    ($($code:tt)*) => { $($code)* };
}
pub(crate) use as_is;
