//! Threads of the library: none is started where the start itself would abort the process.
//!
//! A thread that was created maps its alternative signal stack before any of its code runs. Where that fails, the
//! standard library aborts the process. So there must be address space and mappings for it, and for what other
//! threads map meanwhile.
//!
//! # Invariants
//!
//! 1. A thread is started only if [`MAPPINGS`] further mappings were possible shortly before, and memory for its stack.
//! 2. Between two looks at the mappings, fewer are used than the look has found.
//!
//! # Proof
//!
//! The tests below; `tests/hostile/low_memory.rs` with a limited address space, and with a limited number of mappings.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use super::call;

/// Mappings that have to be possible, so that the program's own do not fail because of the library's.
const MAPPINGS: usize = 512;

/// Mappings that one connection and its thread take at most.
const EACH: usize = 8;

/// Bytes that a thread takes beside its stack.
const BESIDE: usize = 1 << 20;

/// Bytes that stay for what the program allocates meanwhile.
const MARGIN: usize = 5 << 20;

/// What a stack takes by default, in bytes.
const STACK: usize = 2 << 20;

/// Threads that may start before the next look.
static BUDGET: AtomicUsize = AtomicUsize::new(0);

/// Starts a thread with this name.
///
/// # Errors
///
/// There is no memory for it, the process is close to its limit of mappings, or the system has no thread for it.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    check()?;
    Builder::new().name(name.into()).spawn(act)
}

/// Looks whether one more thread, and the connection that it serves, can be had.
///
/// # Errors
///
/// `OutOfMemory`, with what is short.
pub(crate) fn check() -> io::Result<()> {
    if !has_room(STACK + BESIDE + MARGIN) {
        let text = "no memory for one more thread: raise the limit of the address space (RLIMIT_AS)";
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
    }
    let paid = BUDGET.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    if paid.is_ok() {
        return Ok(());
    }
    if !can_map(MAPPINGS) {
        let text = "the process is close to its limit of mappings: raise vm.max_map_count";
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
    }
    BUDGET.store(MAPPINGS / 2 / EACH, Ordering::Relaxed);
    Ok(())
}

/// Whether so many bytes can be mapped now, as a stack is. Not by the allocator, which would keep them.
fn has_room(len: usize) -> bool {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at a place that the kernel chooses, which nothing refers to; it is removed whole.
    unsafe {
        let base = libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0);
        base != libc::MAP_FAILED && libc::munmap(base, len) == 0
    }
}

/// Whether so many further mappings are possible now: makes them, of untouched pages, and removes them.
fn can_map(mappings: usize) -> bool {
    let page = page_size();
    let len = mappings * page;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place that the kernel chooses, which nothing else refers to.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return false;
    }
    // A page whose protection differs from its neighbours' is a mapping of its own.
    let made = (1..mappings).step_by(2).all(|at| {
        // SAFETY: a page of the mapping above, which nothing refers to.
        let done = unsafe { libc::mprotect(base.cast::<u8>().add(at * page).cast(), page, libc::PROT_READ) };
        call::check("mprotect", done).is_ok()
    });
    // SAFETY: removes the mapping above, whole; nothing refers to it.
    unsafe { libc::munmap(base, len) };
    made
}

fn page_size() -> usize {
    // SAFETY: takes a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_leaves_no_mapping_behind() {
        let count = || std::fs::read_to_string("/proc/self/maps").expect("reads").lines().count();
        let before = count();
        assert!(can_map(5000), "of 65530 by default");
        assert!(count() < before + 1000, "other tests run meanwhile, and map a little");
    }

    #[test]
    fn a_thread_starts_and_has_its_name() {
        let thread = spawn("narrows-test", || std::thread::current().name().map(str::to_owned));
        assert_eq!(thread.expect("starts").join().expect("ends"), Some("narrows-test".into()));
    }
}
