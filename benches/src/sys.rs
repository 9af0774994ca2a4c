//! The only unsafe code of the harness: the time stamp counter, memory shared by two processes, and the futex.
//!
//! Memory is shared between two sides of this same program, and each writes only to bytes that the other does not read
//! at the time. So bytes may be borrowed and copied as if they were private.

use std::fs::File;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use memmap2::{MmapOptions, MmapRaw};
use narrows::RawSpan;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The time stamp counter, or nanoseconds where there is none.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has it.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        static ZERO: OnceLock<std::time::Instant> = OnceLock::new();
        ZERO.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
    }
}

/// Adds up whole words, each by a load of its own; what is left behind them comes too. A compiler's wide loads of bytes
/// that were just stored word by word would stall, and measure the compiler.
#[inline]
pub(crate) fn sum_words(bytes: &[u8]) -> (u64, &[u8]) {
    #[repr(C, packed)]
    struct Word(u64);
    let words = bytes.len() / 8;
    let first: *const Word = bytes.as_ptr().cast();
    let mut sum = 0_u64;
    for index in 0..words {
        // SAFETY: within the slice; packed, so at any address.
        sum = sum.wrapping_add(unsafe { first.add(index).read_volatile() }.0);
    }
    (sum, &bytes[words * 8..])
}

/// The usage so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: f64,
    pub(crate) sleeps: u64,
}

/// Returns the usage of this process, or of the calling thread alone.
pub(crate) fn usage(thread: bool) -> Usage {
    usage_of(if thread { UsageWho::RUSAGE_THREAD } else { UsageWho::RUSAGE_SELF })
}

/// Returns the CPU seconds of this process so far, all threads.
pub fn cpu_seconds() -> f64 {
    usage(false).cpu
}

/// Returns the CPU seconds of the children that have exited and were waited for.
pub fn cpu_seconds_of_children() -> f64 {
    usage_of(UsageWho::RUSAGE_CHILDREN).cpu
}

#[allow(clippy::cast_precision_loss)]
fn usage_of(whose: UsageWho) -> Usage {
    let Ok(usage) = getrusage(whose) else { return Usage::default() };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Usage { cpu: micros as f64 / 1e6, sleeps: u64::try_from(usage.voluntary_context_switches()).unwrap_or(0) }
}

/// Binds the calling thread to a CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// Nanoseconds of the clock that all processes of the machine share.
#[inline]
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |it| it.num_nanoseconds());
    u64::try_from(now).unwrap_or(0)
}

/// The calling process shall not outlive the thread that started it.
pub fn die_with_parent() {
    // SAFETY: sets a signal number, nothing else.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Takes a descriptor that came through a socket.
pub(crate) fn adopt(descriptor: RawFd) -> File {
    // SAFETY: the kernel has just made it for us, and nothing else owns it.
    unsafe { File::from_raw_fd(descriptor) }
}

/// Memory shared by the two sides.
pub(crate) struct SharedBytes {
    map: MmapRaw,
}

impl SharedBytes {
    /// All of a file.
    pub(crate) fn of(file: &File) -> Result<Self> {
        Ok(Self { map: MmapOptions::new().map_raw(file)? })
    }

    /// A word that both may write.
    #[inline]
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.map.len());
        // SAFETY: in bounds and aligned, just checked; mapped as long as self; only accessed as an atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// A word to sleep on.
    #[inline]
    pub(crate) fn futex(&self, at: usize) -> &AtomicU32 {
        assert!(at % 4 == 0 && at + 4 <= self.map.len());
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// Copies a message in, while it is this side's turn.
    #[inline]
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.map.len() && bytes.len() <= self.map.len() - at);
        // SAFETY: in bounds, just checked; the other side does not read before it is notified.
        unsafe { self.map.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Lends a message, while it is this side's turn.
    #[inline]
    pub(crate) fn lend(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.map.len() && len <= self.map.len() - at);
        // SAFETY: in bounds, just checked; the other side does not write before it is notified.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(at), len) }
    }
}

/// Writes a reservation of narrows.
#[inline]
pub(crate) fn fill(span: &mut RawSpan<'_>, bytes: &[u8]) {
    // SAFETY: the other side is this same program. It accesses a message once that is committed, and writes to none of
    // this direction.
    unsafe { span.as_mut_slice() }.copy_from_slice(bytes);
}

/// Reads a message that narrows lends.
#[inline]
pub(crate) fn with_bytes(span: &RawSpan<'_>, read: impl FnOnce(&[u8])) {
    // SAFETY: the other side is this same program, and writes to no message that it has committed.
    read(unsafe { span.as_slice() });
}

/// Sleeps until woken if the word is still `value`, or for so long.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let limit = timeout.map(|it| libc::timespec {
        tv_sec: i64::try_from(it.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(it.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time are valid during the call. Whatever comes back, the caller looks again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, limit) };
}

/// Wakes one sleeper.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: wakes by address alone.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Spins until the word is `value`.
#[inline]
pub(crate) fn spin_while_not(word: &AtomicU64, value: u64) {
    while word.load(Ordering::Acquire) != value {}
}
