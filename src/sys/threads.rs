//! Starts the threads of the library, unless the start would abort the process.
//!
//! A new thread maps its alternative signal stack before any of its code runs. If that fails, the standard library
//! aborts the process. So there must be address space and mappings left for it, and for other threads that map memory
//! meanwhile.
//!
//! # Invariants
//!
//! 1. A thread is started only if [`MAPPINGS`] further mappings, and memory for its stack, were possible shortly
//!    before. If the program has locked its memory (`mlockall(MCL_FUTURE)`), each mapping counts for RLIMIT_MEMLOCK, so
//!    the check maps no more than the thread itself takes.
//! 2. Between two checks of the mappings, the threads use fewer mappings than the check has found.
//! 3. [`helpers`] is never less than the number of [`HELPERS`] that run: a helper that was killed stays counted.
//!
//! # Proof
//!
//! The tests below; `tests/hostile/low_memory.rs` with a limited address space, a limited number of mappings, and
//! locked memory.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use super::syscall_error;

/// Mappings that must be possible, so that mappings of the program do not fail because of the library.
const MAPPINGS: usize = 512;

/// Mappings that one connection and its thread take at most.
const EACH: usize = 8;

/// Bytes that a thread takes besides its stack.
const BESIDE: usize = 1 << 20;

/// The least bytes that a thread maps besides its stack: its alternative signal stack, guard pages, its first
/// allocations.
const LEAST_BESIDE: usize = 256 << 10;

/// Bytes that must be left for allocations of the program meanwhile.
const MARGIN: usize = 5 << 20;

/// The default size of a stack, in bytes.
const STACK: usize = 2 << 20;

/// The names of helper threads, which serve the library itself and run no code of the program except its callbacks. The
/// threads of a server of remote calls are not helpers.
const HELPERS: [&str; 3] = ["narrows-watch", "narrows-offload", "narrows-reconnect"];

/// The number of bytes of a thread's name that the kernel keeps.
const LONGEST_NAME: usize = 15;

/// Threads that may start before the next check of the mappings.
static BUDGET: AtomicUsize = AtomicUsize::new(0);

/// Helpers that run. A forked child counts its parent's too, so the number may be too large there, but never too small.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Starts a thread with this name.
///
/// # Errors
///
/// There is no memory for it, the process is close to its limit of mappings, or the system has no thread for it.
pub(crate) fn spawn<T: Send + 'static>(
    name: &'static str,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    check(STACK)?;
    start(Builder::new(), name, act)
}

/// Starts a thread with this name, and a stack of `stack` bytes.
///
/// # Errors
///
/// The errors of [`spawn`].
pub(super) fn spawn_with_stack<T: Send + 'static>(
    name: &'static str,
    stack: usize,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    check(stack)?;
    start(Builder::new().stack_size(stack), name, act)
}

fn start<T: Send + 'static>(
    builder: Builder,
    name: &'static str,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let helper = HELPERS.contains(&name).then(Helper::new);
    let started = builder.name(name.into()).spawn(move || {
        let _helper = helper;
        act()
    });
    started
        .map_err(|error| lacking(error).unwrap_or_else(|error| syscall_error::named("pthread_create", error)))
}

/// Returns how many helpers run. The number may be too large, but is never too small.
pub(super) fn helpers() -> usize {
    RUNNING.load(Ordering::Acquire)
}

/// Returns whether a thread of this name, as the kernel shows it, is a helper.
pub(super) fn is_helper(name: &str) -> bool {
    HELPERS.iter().any(|helper| helper[..helper.len().min(LONGEST_NAME)] == *name)
}

/// Counts a helper while it runs.
struct Helper;

impl Helper {
    fn new() -> Self {
        RUNNING.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Converts the error of a process or thread that the kernel did not start, if a limit is the cause: the text names the
/// limits that may be reached. Returns other errors unchanged. The kernel reports a limit as `EAGAIN`.
pub(super) fn lacking(error: io::Error) -> Result<io::Error, io::Error> {
    let text = match syscall_error::errno(&error) {
        Some(libc::EAGAIN) => {
            "the limit of processes and threads is reached: raise RLIMIT_NPROC (ulimit -u), or the control group's pids.max; a thread of SCHED_DEADLINE cannot start one"
        }
        Some(libc::ENOMEM) => {
            "no memory for one more process or thread: raise the control group's memory, RLIMIT_AS, RLIMIT_DATA, or vm.overcommit_ratio where vm.overcommit_memory is 2"
        }
        _ => return Err(error),
    };
    Ok(io::Error::new(io::ErrorKind::OutOfMemory, text))
}

/// Verifies that memory and mappings are left for one more thread with a stack of `stack` bytes, and for the connection
/// that it serves.
///
/// # Errors
///
/// `OutOfMemory`, with a text that names the limit.
fn check(stack: usize) -> io::Result<()> {
    let is_locked = match map_and_unmap(stack + BESIDE + MARGIN) {
        Err(libc::EAGAIN) => {
            map_and_unmap(stack + LEAST_BESIDE).map_err(no_memory)?;
            true
        }
        result => result.map_err(no_memory).map(|()| false)?,
    };
    let paid = BUDGET.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    if paid.is_ok() {
        return Ok(());
    }
    if is_locked {
        // These mappings count as locked memory too, so this tries only as many as the thread needs.
        return can_map(2 * EACH).map_err(no_mapping);
    }
    can_map(MAPPINGS).map_err(no_mapping)?;
    BUDGET.store(MAPPINGS / 2 / EACH, Ordering::Relaxed);
    Ok(())
}

fn no_memory(number: i32) -> io::Error {
    let text = match number {
        libc::EAGAIN => {
            "no memory for one more thread: the program locks its memory by mlockall, and may lock no more: raise RLIMIT_MEMLOCK"
        }
        _ => {
            "no memory for one more thread: raise the limit of the address space (RLIMIT_AS) or of data (RLIMIT_DATA), or vm.overcommit_ratio where vm.overcommit_memory is 2"
        }
    };
    io::Error::new(io::ErrorKind::OutOfMemory, text)
}

fn no_mapping(number: i32) -> io::Error {
    if number == libc::EAGAIN {
        return no_memory(number);
    }
    let text = "the process is close to its limit of mappings: raise vm.max_map_count";
    io::Error::new(io::ErrorKind::OutOfMemory, text)
}

/// Maps `len` bytes like a stack, and unmaps them. It does not use the allocator, which would keep them. The error is
/// the error number.
fn map_and_unmap(len: usize) -> Result<(), i32> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address that the kernel chooses, which nothing refers to; it is removed as a whole.
    unsafe {
        let base = libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0);
        if base == libc::MAP_FAILED || libc::munmap(base, len) != 0 {
            return Err(last_number());
        }
    }
    Ok(())
}

/// Makes `mappings` further mappings of untouched pages, and removes them. The error is the error number.
fn can_map(mappings: usize) -> Result<(), i32> {
    let page = page_size();
    let len = mappings * page;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses, which nothing else refers to.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(last_number());
    }
    // A page whose protection differs from that of the pages around it is a mapping of its own.
    let made = (1..mappings).step_by(2).try_for_each(|at| {
        // SAFETY: a page of the mapping above, which nothing refers to.
        let done = unsafe { libc::mprotect(base.cast::<u8>().add(at * page).cast(), page, libc::PROT_READ) };
        syscall_error::check("mprotect", done).map(drop).map_err(|_| libc::ENOMEM)
    });
    // SAFETY: removes the whole mapping above, which nothing refers to.
    unsafe { libc::munmap(base, len) };
    made
}

fn last_number() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM)
}

fn page_size() -> usize {
    // SAFETY: takes a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_leaves_no_mapping_behind() {
        let count = || std::fs::read_to_string("/proc/self/maps").expect("reads").lines().count();
        let before = count();
        assert_eq!(can_map(5000), Ok(()), "of 65530 by default");
        assert!(count() < before + 1000, "other tests run meanwhile, and map a little");
    }

    #[test]
    fn a_thread_starts_and_has_its_name() {
        let thread = spawn("narrows-test", || std::thread::current().name().map(str::to_owned));
        assert_eq!(thread.expect("starts").join().expect("ends"), Some("narrows-test".into()));
    }

    #[test]
    fn a_lack_of_processes_names_the_limits_and_other_errors_stay() {
        for (number, limit) in [(libc::EAGAIN, "pids.max"), (libc::ENOMEM, "RLIMIT_DATA")] {
            let error = lacking(io::Error::from_raw_os_error(number)).expect("a lack");
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(error.to_string().contains(limit), "{error}");
        }
        let other = lacking(io::Error::from_raw_os_error(libc::ENOENT)).expect_err("no lack");
        assert_eq!(other.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn helpers_are_known_by_the_names_that_the_kernel_shows() {
        for name in ["narrows-watch", "narrows-offload", "narrows-reconne"] {
            assert!(is_helper(name), "{name}");
        }
        for name in ["narrows-worker", "narrows-watc", "narrows-watch2", "narrows", ""] {
            assert!(!is_helper(name), "{name}");
        }
    }
}
