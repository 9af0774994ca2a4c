//! Support for the tests of this directory: forked children, and the number of open descriptors.
//!
//! The tests run at once in one process, and each fork copies the descriptors of all tests. So a test runs in a child
//! of its own ([`in_child`]) if it counts descriptors, or closes a socket and checks that the other end detects it.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for any machine; a test ends as soon as its condition holds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The seconds after which a child ends by itself.
const TOO_LONG: u32 = 120;

/// A forked child that is killed and reaped when it is dropped.
pub(crate) struct Forked {
    pid: i32,
    reaped: bool,
}

/// Forks; the child runs `body` and exits with its result, or with 101 if it panics.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> Forked {
    // SAFETY: the child has only a copy of this thread. It may allocate, since the C library makes its allocator usable
    // after a fork, and it ends by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        // If a test fails, its child may be killed before it has ended its own children.
        // SAFETY: only sets a timer, whose signal ends the process.
        unsafe { libc::alarm(TOO_LONG) };
        let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref().copied()).unwrap_or("a panic");
            // The output that the test harness captures is lost with the child.
            let _ = io::stderr().write_all(format!("in a forked child: {text}\n").as_bytes());
            101
        });
        // SAFETY: ends the child without running what the parent registered for its own end.
        unsafe { libc::_exit(code) };
    }
    Forked { pid, reaped: false }
}

/// Runs `body` in a forked child without the descriptors of this process. Panics if it does not return.
pub(crate) fn in_child(body: impl FnOnce()) {
    let child = fork(|| {
        // SAFETY: the owners of these descriptors belong to the other tests, whose threads do not exist here, and
        // `body` uses none of them.
        unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
        body();
        0
    });
    assert_eq!(child.wait(), 0, "the child failed");
}

impl Forked {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    pub(crate) fn kill(&self) {
        assert!(!self.reaped);
        // SAFETY: sends a signal to a child of ours that was not reaped.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Returns the exit code, or the negated number of the signal that ended the child.
    pub(crate) fn wait(mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(code) = self.reap(libc::WNOHANG) {
                return code;
            }
            sleep(Duration::from_millis(1));
        }
        panic!("the child does not end");
    }

    fn reap(&mut self, flags: i32) -> Option<i32> {
        let mut status = 0;
        // SAFETY: waits for a child of ours; `status` is a local.
        if unsafe { libc::waitpid(self.pid, &mut status, flags) } != self.pid {
            return None;
        }
        self.reaped = true;
        let exited = libc::WIFEXITED(status);
        Some(if exited { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.reap(0);
        }
    }
}

/// Makes the kernel refuse a system call to this process from now on. It cannot be undone, so call it in a forked
/// child.
pub(crate) fn refuse(call: libc::c_long, error: i32) {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("16 bits"),
        jt: 0,
        jf,
        k,
    };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ, 1, u32::try_from(call).expect("small")),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | error.unsigned_abs()),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the calls read the program, which outlives them, and only restrict this process.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Returns how many descriptors this process has open. Other threads change it: count in a forked child.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("listable").count()
}

/// Waits until `holds` returns true, for at most [`PATIENCE`]. Returns whether it did.
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if holds() {
            return true;
        }
        sleep(Duration::from_millis(1));
    }
    holds()
}
