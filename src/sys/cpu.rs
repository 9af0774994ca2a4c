//! Which CPU this thread runs on, how many there are for it, and a way to step aside.

use std::sync::OnceLock;

/// The CPU of the calling thread plus one, or 0 if it cannot be told.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: takes nothing and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    u64::try_from(cpu).map_or(0, |cpu| cpu + 1)
}

/// Lets another thread of this CPU run first.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}

/// Whether the machine has more than one CPU; asked once.
///
/// Not whether this thread may use more than one: a process that is bound to a CPU spins well while
/// its peer runs on another.
pub(crate) fn is_multicore() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    // SAFETY: takes a constant and touches no memory of ours.
    *MANY.get_or_init(|| unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } > 1)
}
