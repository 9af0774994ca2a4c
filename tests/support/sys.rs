//! The system calls that the tests of faults need.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::process::must_be_own;

pub(crate) fn fork() -> i32 {
    // SAFETY: the child only runs a function of the test, and ends by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    pid
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(code) }
}

/// Returns the effective user of this process.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn alarm(seconds: u32) {
    // SAFETY: takes a number.
    unsafe { libc::alarm(seconds) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C set what [`interrupted`] returns, so that a long test ends and removes what it has started.
pub(crate) fn heed_interrupts() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let note = note as extern "C" fn(libc::c_int);
    // SAFETY: the handler stores to an atomic, which is async-signal-safe.
    unsafe { libc::signal(libc::SIGINT, note as libc::sighandler_t) };
}

/// Returns whether Ctrl-C was pressed.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Closes all descriptors except the standard streams, as daemonizing code does without the library's knowledge.
pub(crate) fn close_all_but_standard() {
    must_be_own();
    // SAFETY: takes numbers. The standard library holds no descriptor above them.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

pub(crate) fn kill(pid: i32, signal: i32) {
    assert!(pid > 1, "never a group, never init");
    // SAFETY: takes two numbers. The caller started the process and has not reaped it.
    unsafe { libc::kill(pid, signal) };
}

/// Waits for the end of a child. Returns the exit code, or the negative number of the signal.
pub(crate) fn wait_for(pid: i32) -> i32 {
    loop {
        if let Change::Over(code) = wait_for_change(pid) {
            return code;
        }
    }
}

/// A change of a child's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A signal stopped the child.
    Stopped,
    /// The child has ended. The number is its exit code, or the negative number of the signal.
    Over(i32),
}

/// Waits until a child is stopped or has ended.
pub(crate) fn wait_for_change(pid: i32) -> Change {
    let mut status = 0;
    loop {
        // SAFETY: fills the local.
        let waited = unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waitpid: {error}");
    }
    if libc::WIFSTOPPED(status) {
        return Change::Stopped;
    }
    Change::Over(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
}

/// Raises the limit of descriptors to the highest value that this process may set.
pub(crate) fn raise_descriptor_limit() {
    must_be_own();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the local, and passes it back with one field changed.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

/// Limits the number of descriptors of this process.
pub(crate) fn limit_descriptors(descriptors: u64) {
    must_be_own();
    let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
    // SAFETY: reads the local.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0, "setrlimit");
}

/// Limits the address space of this process to `more` bytes above its current size. `None` removes the limit.
pub(crate) fn limit_memory(more: Option<u64>) {
    must_be_own();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let taken = std::fs::read_to_string("/proc/self/statm").expect("reads");
    let pages: u64 = taken.split(' ').next().and_then(|it| it.parse().ok()).expect("a number");
    // SAFETY: takes a number, fills the local, and passes it back with one field changed.
    unsafe {
        let page = u64::try_from(libc::sysconf(libc::_SC_PAGESIZE)).expect("positive");
        libc::getrlimit(libc::RLIMIT_AS, &mut limit);
        limit.rlim_cur = more.map_or(limit.rlim_max, |more| pages * page + more);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &limit), 0, "setrlimit");
    }
}

/// Makes mappings until this process has `count` of them.
pub(crate) fn fill_mappings(count: usize) {
    must_be_own();
    let lines = std::fs::read_to_string("/proc/self/maps").expect("reads").lines().count();
    let (page, more) = (4096 * 16, count - lines); // Enough for any page size.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: makes a new mapping that nothing refers to, and changes the protection of parts of it.
    unsafe {
        let base = libc::mmap(std::ptr::null_mut(), more * page, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(base, libc::MAP_FAILED, "mmap");
        for at in (1..more).step_by(2) {
            let part = base.cast::<u8>().add(at * page).cast();
            assert_eq!(libc::mprotect(part, page, libc::PROT_READ), 0, "mprotect");
        }
    }
}

/// Returns the CPU time of the calling thread.
pub(crate) fn thread_time() -> Duration {
    usage(libc::RUSAGE_THREAD)
}

/// Returns the CPU time of this process.
pub(crate) fn process_time() -> Duration {
    must_be_own();
    usage(libc::RUSAGE_SELF)
}

fn usage(target: i32) -> Duration {
    // SAFETY: zeros are a valid value of this plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: fills the local.
    unsafe { libc::getrusage(target, &mut usage) };
    let time = |value: libc::timeval| {
        let micros = value.tv_sec * 1_000_000 + value.tv_usec;
        Duration::from_micros(micros.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The pages of a connection, mapped without the library, as a hostile peer may do.
#[derive(Debug)]
pub(crate) struct Pages {
    base: *mut u8,
    len: usize,
    file: OwnedFd,
}

// SAFETY: all accesses are volatile stores and loads of single words of a mapping that it owns.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let address = std::ptr::null_mut();
        // SAFETY: makes a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(address, len, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), len, file })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.len);
        // SAFETY: the word is aligned and inside the mapping, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    pub(crate) fn flag(&self, at: usize) -> &AtomicU32 {
        assert!(at % 4 == 0 && at + 4 <= self.len);
        // SAFETY: the word is aligned and inside the mapping, which lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    /// Overwrites whole pages with zeros, as a hole would if one could be punched.
    pub(crate) fn zero(&self, at: usize, len: usize) {
        let end = self.len.min(at + len);
        (at..end).step_by(8).for_each(|at| self.word(at).store(0, Ordering::Relaxed));
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Wakes all threads that sleep on the word.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel uses the address of a live word as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps on the word while it has this value, for at most `millis` milliseconds.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, millis: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 };
    // SAFETY: the kernel reads a live word and a local.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &time) };
}

/// Stops this process until another process continues it.
pub(crate) fn stop_myself() {
    // SAFETY: takes a number. The signal goes to this process.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Moves all threads that sleep on one word to another word, on which no thread wakes them. Returns their number.
pub(crate) fn futex_requeue(from: &AtomicU32, to: &AtomicU32) -> i64 {
    let all = i64::from(i32::MAX);
    // SAFETY: the kernel uses the addresses of two live words as keys.
    unsafe { libc::syscall(libc::SYS_futex, from.as_ptr(), libc::FUTEX_REQUEUE, 0_i64, all, to.as_ptr()) }
}

/// Does the same if the word has this value.
pub(crate) fn futex_compare_and_requeue(from: &AtomicU32, value: u32, to: &AtomicU32) -> i64 {
    let (op, all) = (libc::FUTEX_CMP_REQUEUE, i64::from(i32::MAX));
    // SAFETY: the kernel reads a live word, and uses the addresses of two as keys.
    unsafe { libc::syscall(libc::SYS_futex, from.as_ptr(), op, 0_i64, all, to.as_ptr(), value) }
}

/// Reads bytes into `into`, and the descriptor that came with them.
pub(crate) fn receive_with_fd(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: zeros are a valid message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message refers to locals that outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled the control buffer, which is aligned for its headers.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    if header.is_null() {
        return Ok((got, None));
    }
    // SAFETY: the pointer is not null, so a whole header is in the buffer.
    let rights =
        unsafe { (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS };
    if !rights {
        return Ok((got, None));
    }
    // SAFETY: an SCM_RIGHTS message holds at least one descriptor, which this process owns now.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()) };
    Ok((got, Some(fd)))
}

/// Sends bytes, and a descriptor with the first of them.
pub(crate) fn send_with_fd(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut control = [0_u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: zeros are a valid message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: computes a size.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
    // SAFETY: the buffer has room for one header and one descriptor, and is aligned for them.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd.as_raw_fd());
    }
    // SAFETY: the message refers to locals that outlive the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Adds seals to a memfd.
pub(crate) fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> io::Result<()> {
    // SAFETY: takes a live descriptor and a number.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

/// Allocates a page after the end of a file.
pub(crate) fn grow(fd: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).expect("small");
    // SAFETY: takes a live descriptor and numbers.
    done(unsafe { libc::fallocate(fd.as_raw_fd(), 0, len, 4096) })
}

/// Removes the first page from a file, which gets shorter.
pub(crate) fn collapse(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a live descriptor and numbers.
    done(unsafe { libc::fallocate(fd.as_raw_fd(), libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096) })
}

/// Frees the memory of the first page of a file, which keeps its size.
pub(crate) fn punch(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a live descriptor and numbers.
    done(unsafe {
        libc::fallocate(fd.as_raw_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096)
    })
}

/// Does the same through a mapping.
pub(crate) fn remove(pages: &Pages) -> io::Result<()> {
    // SAFETY: this is the first page of a mapping that is accessed only by atomics and stays mapped.
    done(unsafe { libc::madvise(pages.base.cast(), 4096, libc::MADV_REMOVE) })
}

/// Returns a second mapping of a file, which can be written.
pub(crate) fn map_again(fd: BorrowedFd<'_>) -> io::Result<Pages> {
    Pages::map(fd.try_clone_to_owned()?, 4096)
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns a memfd of zeros whose size is sealed.
pub(crate) fn sealed_memory(len: usize) -> OwnedFd {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: takes a C string and flags. The new descriptor belongs to this process, which sets its size and seals it.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), flags);
        assert!(fd >= 0);
        assert_eq!(libc::ftruncate(fd, len as libc::off_t), 0);
        assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, seals), 0);
        OwnedFd::from_raw_fd(fd)
    }
}
