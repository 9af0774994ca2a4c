//! Detects forks, by a word that a fork wipes, and holds the objects that exist once in each process.
//!
//! ```text
//!   static PAGE ──> | epoch | peer monitor | pidfds | ...   one page, MADV_WIPEONFORK
//!                       |
//!   ForkGuard { epoch } '  equal: the process that made the guard; else: a fork of it
//! ```
//!
//! If the kernel only pretends to wipe the page, as emulators of system calls do, a handler that the C library runs in
//! the child wipes it.
//!
//! A fork copies memory and descriptors but not threads. So a forked child must not use a connection that it inherited,
//! and a lock may have been copied while it was held. The kernel zeroes the page in the child before the child runs. So
//! the child finds no epoch and none of the parent's per-process objects, and makes its own.
//!
//! # Invariants
//!
//! 1. The epoch of a page is 0 or was drawn from [`EPOCHS`], which a fork inherits: every object that a process
//!    inherited was made under an epoch that the process never draws itself.
//! 2. The page is published by one compare-and-swap, after the kernel promised to wipe it: there is no lock that a fork
//!    could leave held.
//! 3. The page and the objects that its slots point to are never freed.
//!
//! # Proof
//!
//! Real forks in the tests below, with the kernel alone and with the handler alone. Not covered: `vfork` and
//! `CLONE_VM`, which share the page, and a direct `clone` system call under such an emulator.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::syscall_error;

/// Remembers the process that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForkGuard {
    epoch: u64,
    current: &'static AtomicU64,
}

impl ForkGuard {
    /// Creates a fork guard for this process.
    ///
    /// # Errors
    ///
    /// The kernel is older than 4.14 (no `MADV_WIPEONFORK`), or there is no memory.
    pub(crate) fn new() -> io::Result<Self> {
        let current = &page()?.epoch;
        Ok(Self { epoch: settled_epoch(current), current })
    }

    /// Returns whether this is the process that made the fork guard.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        // Relaxed: within one process the word never changes once a fork guard exists.
        self.current.load(Ordering::Relaxed) == self.epoch
    }
}

/// The slots of the objects that exist once in a process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StaticSlot {
    /// The thread that watches peers.
    PeerMonitor = 0,
    /// The pidfds that connections share.
    Pidfds = 1,
    /// The lock under which child processes are started.
    Spawns = 6,
    /// The socket that is open unless the program closes all descriptors.
    Witness = 4,
    /// The threads that close descriptors from peers.
    Offload = 7,
    /// For the tests below.
    #[cfg(test)]
    Test = 2,
}

/// An object that exists once in a process; each fork makes its own.
///
/// # Safety
///
/// No two types name the same slot.
pub(crate) unsafe trait PerProcess: Sync + Sized + 'static {
    /// The slot of the object.
    const SLOT: StaticSlot;
}

/// Returns this process's `T`, and makes it if there is none yet. If two threads make one at once, one of them is
/// dropped.
///
/// # Errors
///
/// Those of `make`, and those of [`ForkGuard::new`].
pub(crate) fn per_process<T: PerProcess>(make: impl FnOnce() -> io::Result<T>) -> io::Result<&'static T> {
    let slot = &page()?.slots[T::SLOT as usize];
    let mut known = slot.load(Ordering::Acquire);
    if known.is_null() {
        known = publish(slot, Box::new(make()?));
    }
    // SAFETY: only `T` uses this slot, so the pointer came from a `Box<T>` in `publish`, which is never freed once
    // published; `T: Sync`, and Acquire orders its initialization before this.
    Ok(unsafe { &*known.cast::<T>() })
}

/// Removes this process's `T`: the next [`per_process`] makes another. The old one is not freed.
pub(crate) fn forget<T: PerProcess>(known: &'static T) {
    if let Ok(page) = page() {
        let known: *const T = known;
        let slot = &page.slots[T::SLOT as usize];
        let _another = slot.compare_exchange(
            known.cast_mut().cast(),
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }
}

const SLOTS: usize = 8;
const LEN: usize = 4096;

static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());
static EPOCHS: AtomicU64 = AtomicU64::new(1);

struct Page {
    epoch: AtomicU64,
    slots: [AtomicPtr<c_void>; SLOTS],
}

static_assertions::const_assert!(size_of::<Page>() <= LEN);

/// Returns the epoch of this process, and draws it if there is none yet.
fn settled_epoch(current: &AtomicU64) -> u64 {
    let known = current.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let fresh = EPOCHS.fetch_add(1, Ordering::Relaxed);
    match current.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => fresh,
        Err(first) => first,
    }
}

fn publish<T>(slot: &AtomicPtr<c_void>, fresh: Box<T>) -> *mut c_void {
    let fresh = Box::into_raw(fresh);
    let swap = slot.compare_exchange(ptr::null_mut(), fresh.cast(), Ordering::AcqRel, Ordering::Acquire);
    match swap {
        Ok(_) => fresh.cast(),
        Err(first) => {
            // SAFETY: this function made it, and as the swap failed, no other thread has seen it.
            drop(unsafe { Box::from_raw(fresh) });
            first
        }
    }
}

fn page() -> io::Result<&'static Page> {
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        page = publish_page()?;
    }
    // SAFETY: `PAGE` holds null or a mapping of at least a `Page` that is never unmapped; zeros,
    // which the kernel puts there first and after each fork, are a valid `Page` of atomics.
    Ok(unsafe { &*page })
}

fn publish_page() -> io::Result<*mut Page> {
    let fresh = wiped_page()?;
    let swap = PAGE.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire);
    match swap {
        Ok(_) => {
            // SAFETY: `wipe_in_child` makes no calls, so it may run in a child of a process with threads. The C library
            // unregisters it when the shared object that holds it is unloaded.
            let code = unsafe { libc::pthread_atfork(None, None, Some(wipe_in_child)) };
            if code != 0 {
                return Err(syscall_error::named("pthread_atfork", io::Error::from_raw_os_error(code)));
            }
            Ok(fresh)
        }
        Err(first) => {
            unmap(fresh);
            Ok(first)
        }
    }
}

/// Wipes the page in a forked child, before `fork` returns there.
extern "C" fn wipe_in_child() {
    let page = PAGE.load(Ordering::Acquire);
    if !page.is_null() {
        // SAFETY: `PAGE` holds a mapping of at least a `Page` that is never unmapped, of atomics.
        let page = unsafe { &*page };
        page.epoch.store(0, Ordering::Relaxed);
        page.slots.iter().for_each(|slot| slot.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

/// Returns whether the kernel implements `MADV_WIPEONFORK`. Such a kernel refuses it for shared memory; one that
/// ignores unknown advice does not.
pub(super) fn kernel_wipes_on_fork() -> io::Result<bool> {
    let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address that the kernel chooses, advised and unmapped before anything refers to it.
    unsafe {
        let page = libc::mmap(ptr::null_mut(), LEN, protection, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(syscall_error::last("mmap"));
        }
        let advised = libc::madvise(page, LEN, libc::MADV_WIPEONFORK);
        libc::munmap(page, LEN);
        Ok(advised != 0)
    }
}

/// Maps a page that is all zeros now and in every fork.
fn wiped_page() -> io::Result<*mut Page> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses touches no other memory.
    let page = unsafe { libc::mmap(ptr::null_mut(), LEN, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(syscall_error::last("mmap"));
    }
    #[cfg(test)]
    if tests::KERNEL_ONLY_PRETENDS.load(Ordering::Relaxed) {
        return Ok(page.cast());
    }
    // SAFETY: the range is the mapping just made, which nothing refers to yet.
    let advised = unsafe { libc::madvise(page, LEN, libc::MADV_WIPEONFORK) };
    syscall_error::check("madvise(MADV_WIPEONFORK), which needs Linux 4.14", advised)
        .inspect_err(|_| unmap(page.cast()))?;
    Ok(page.cast())
}

fn unmap(page: *mut Page) {
    // SAFETY: both callers made this mapping and did not publish it. Unmapping a whole mapping of our own does not
    // fail; a failure would only leave a page mapped.
    unsafe { libc::munmap(page.cast(), LEN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_child;
    use std::sync::atomic::AtomicBool;

    /// Simulates an emulator that accepts the advice and does nothing.
    pub(super) static KERNEL_ONLY_PRETENDS: AtomicBool = AtomicBool::new(false);

    struct Once(AtomicU64);

    #[test]
    fn a_fork_is_another_process_where_the_kernel_only_pretends_to_wipe() {
        in_child(|| {
            // This resets the state of the process: the page that the test process made is really wiped.
            PAGE.store(ptr::null_mut(), Ordering::Release);
            KERNEL_ONLY_PRETENDS.store(true, Ordering::Relaxed);
            let fork_guard = ForkGuard::new().expect("guard");
            let make = || Ok(Once(AtomicU64::new(0)));
            per_process(make).expect("made").0.store(7, Ordering::Relaxed);
            in_child(move || {
                assert!(!fork_guard.same_process());
                assert_eq!(per_process(make).expect("anew").0.load(Ordering::Relaxed), 0);
                let own = ForkGuard::new().expect("guard");
                in_child(move || assert!(!own.same_process() && !fork_guard.same_process()));
            });
            assert!(fork_guard.same_process());
        });
    }

    #[test]
    fn this_kernel_wipes_on_fork() {
        assert!(kernel_wipes_on_fork().expect("asks"));
    }

    // SAFETY: the only type with this slot.
    unsafe impl PerProcess for Once {
        const SLOT: StaticSlot = StaticSlot::Test;
    }

    #[test]
    fn a_fork_and_its_fork_are_other_processes() {
        let fork_guard = ForkGuard::new().expect("guard");
        assert!(fork_guard.same_process());
        in_child(move || {
            assert!(!fork_guard.same_process());
            let own = ForkGuard::new().expect("guard");
            assert!(own.same_process() && !fork_guard.same_process());
            in_child(move || {
                assert!(!own.same_process() && !fork_guard.same_process());
                let third = ForkGuard::new().expect("guard");
                assert!(third.same_process());
                assert!(!own.same_process() && !fork_guard.same_process());
            });
            assert!(own.same_process());
        });
        assert!(fork_guard.same_process());
    }

    #[test]
    fn fork_guards_of_many_threads_agree() {
        let made: Vec<_> = (0..8).map(|_| std::thread::spawn(ForkGuard::new)).collect();
        for thread in made {
            assert!(thread.join().expect("joins").expect("guard").same_process());
        }
    }

    #[test]
    fn what_is_per_process_is_made_anew_in_a_fork() {
        let make = || Ok(Once(AtomicU64::new(0)));
        let once = per_process(make).expect("made");
        once.0.store(7, Ordering::Relaxed);
        assert_eq!(per_process(make).expect("known").0.load(Ordering::Relaxed), 7);
        in_child(move || {
            assert_eq!(per_process(make).expect("anew").0.load(Ordering::Relaxed), 0);
        });
        let failing = per_process::<Once>(|| Err(io::Error::other("not called")));
        assert_eq!(failing.expect("known").0.load(Ordering::Relaxed), 7);
    }
}
