//! The system calls that the tests about faults need.

use std::io;
use std::time::Duration;

pub(crate) fn fork() -> i32 {
    // SAFETY: the child only runs what the tests give it and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    pid
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(code) }
}

pub(crate) fn alarm(seconds: u32) {
    // SAFETY: takes a number.
    unsafe { libc::alarm(seconds) };
}

pub(crate) fn kill(pid: i32, signal: i32) {
    assert!(pid > 1, "never a group, never init");
    // SAFETY: takes two numbers; the caller started the process and has not reaped it.
    unsafe { libc::kill(pid, signal) };
}

/// The exit code, or the number of the signal, negative.
pub(crate) fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: fills the local.
        let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waitpid: {error}");
    }
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

/// CPU time of the calling thread.
pub(crate) fn thread_time() -> Duration {
    usage(libc::RUSAGE_THREAD)
}

/// CPU time of this process.
pub(crate) fn process_time() -> Duration {
    usage(libc::RUSAGE_SELF)
}

fn usage(who: i32) -> Duration {
    // SAFETY: zeros are a valid value of this plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: fills the local.
    unsafe { libc::getrusage(who, &mut usage) };
    let time = |value: libc::timeval| {
        let micros = value.tv_sec * 1_000_000 + value.tv_usec;
        Duration::from_micros(micros.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
