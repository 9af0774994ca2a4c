//! The switch of the mutants: which step of the mutated copy is mutated in this process.

use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use narrows::internal::memory::{Flag, Load, Memory, Store};

/// One step of the shipped source that can be mutated.
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

/// The environment variable that holds the number of the mutant that runs.
pub const MUTANT_VARIABLE: &str = "NARROWS_MUTANT";

/// The number of a mutant outside of the shipped sources: `set_close_reason` of loom's memory, without its Release.
pub const CLOSE_REASON_MUTANT: usize = 1 << 20;

static ACTIVE: LazyLock<Option<usize>> =
    LazyLock::new(|| std::env::var(MUTANT_VARIABLE).ok().map(|number| number.parse().expect("a number")));

pub(crate) fn on(number: usize) -> bool {
    *ACTIVE == Some(number)
}

pub(crate) fn acquire(number: usize) -> Load {
    if on(number) { Load::Relaxed } else { Load::Acquire }
}

pub(crate) fn release(number: usize) -> Store {
    if on(number) { Store::Relaxed } else { Store::Release }
}

pub(crate) fn close_reason_order() -> Ordering {
    if on(CLOSE_REASON_MUTANT) { Ordering::Relaxed } else { Ordering::AcqRel }
}

/// Returns the comparison's result. It is always true for the mutant with this number, and never for the next mutant.
pub(crate) fn compare(number: usize, is: bool) -> bool {
    on(number) || (is && !on(number + 1))
}

/// Takes a flag: in two steps for the mutant with this number, and without clearing it for the next mutant.
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

/// Hides code from the mutator.
macro_rules! as_is {
    ($($code:tt)*) => { $($code)* };
}
pub(crate) use as_is;
