//! The CPU that this thread runs on, whether there are several, and how to yield it.

use std::sync::OnceLock;

/// Returns the CPU of the calling thread plus one, or 0 if it is unknown.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: takes nothing and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    u64::try_from(cpu).map_or(0, |cpu| cpu + 1)
}

/// Yields the CPU to another thread.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}

/// Returns whether the machine has more than one CPU. The first call asks the system.
///
/// The affinity of this thread does not matter: a process that is bound to one CPU may spin while its peer runs on
/// another.
pub(crate) fn is_multicore() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    // SAFETY: takes a constant and touches no memory of ours.
    *MANY.get_or_init(|| unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } > 1)
}
