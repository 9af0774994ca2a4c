//! Ends a process whose own threads have all ended.
//!
//! The kernel ends a process with its last thread. Threads can end one by one without the process: by `SYS_exit`,
//! `pthread_exit`, or a seccomp filter that kills threads. If the main thread and all others of the program have ended
//! so, the monitor's thread, in which all signals are blocked, would keep the process alive: its peers would never
//! detect its end, and only SIGKILL would end it.
//!
//! # Invariants
//!
//! 1. The process is ended only if its main thread has ended and each other thread is a helper of the library, by its
//!    name and by the number of helpers: see [`threads::helpers`]. Threads that run the program's code, as those of a
//!    server of remote calls do, belong to the program: they handle its signals, and the process continues with them.
//! 2. A check while the main thread runs makes two system calls, `fstat` and `pread64`. The monitor makes them once
//!    before a connection relies on it. Others are made only if the main thread has ended and at most as many threads
//!    are left as there are helpers.
//! 3. If `/proc` cannot be read, the process is not ended.
//!
//! # Proof
//!
//! The test below; `peer_monitor: a_process_ends_with_the_last_of_its_own_threads`,
//! `a_process_goes_on_without_its_main_thread_while_one_of_its_own_threads_runs`.

use std::fs;
use std::os::fd::AsRawFd;

use super::super::descriptor::Descriptor;
use super::super::{procfs, threads};

/// The state of the main thread, as `/proc` shows it.
#[derive(Debug)]
pub(super) struct MainThread {
    /// Kept open, so that the check works also after the program has installed a filter or changed its root directory.
    stat: Option<Descriptor>,
}

/// The state of a process whose main thread has ended.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// The number of threads besides the main thread.
    threads: usize,
    /// The exit status of the main thread; 128 plus the signal, as in a shell, if a signal or a filter ended it.
    status: i32,
}

impl MainThread {
    /// Opens the file that shows whether the main thread has ended.
    pub(super) fn new() -> Self {
        Self { stat: procfs::open(c"/proc/self/stat").map(Descriptor::from) }
    }

    /// Ends this process if only helper threads of the library are left.
    pub(super) fn end_process_without_threads(&self) {
        let Some(left) = self.left() else {
            return;
        };
        if left.threads <= threads::helpers() && all_are_helpers() {
            // SAFETY: ends the process, in which no thread of the program is left. Destructors of the program do not
            // run, as they would not run if its last thread ended by `SYS_exit`.
            unsafe { libc::_exit(left.status) };
        }
    }

    /// Returns the state of the process if its main thread has ended.
    fn left(&self) -> Option<Left> {
        let stat = self.stat.as_ref().filter(|stat| stat.is_ours())?;
        let mut text = [0_u8; 1024];
        // SAFETY: the kernel fills at most `text.len()` bytes of the local.
        let len = unsafe { libc::pread(stat.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), 0) };
        Left::parse(text.get(..usize::try_from(len).ok()?)?)
    }
}

impl Left {
    fn parse(stat: &[u8]) -> Option<Self> {
        // The name of the program is in parentheses and may hold any bytes. The state, field 3, follows.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
        let has_ended = fields.next()? == "Z";
        let threads: usize = fields.nth(16)?.parse().ok()?; // Field 20. It counts the main thread until all have ended.
        let code = fields.nth(31).and_then(|code| code.parse().ok()).unwrap_or(0); // Field 52, encoded as by `wait`.
        let status =
            if libc::WIFSIGNALED(code) { 128 + libc::WTERMSIG(code) } else { libc::WEXITSTATUS(code) };
        has_ended.then(|| Self { threads: threads.saturating_sub(1), status })
    }
}

/// Returns whether each thread except the main thread has the name of a helper.
fn all_are_helpers() -> bool {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return false;
    };
    let main = std::process::id().to_string();
    let mut names = tasks.map(|task| {
        let number = task.ok()?.file_name().into_string().ok()?;
        if number == main {
            return Some(true);
        }
        let path = std::ffi::CString::new(format!("/proc/self/task/{number}/comm")).ok()?;
        procfs::read(&path).map(|name| threads::is_helper(name.trim_end_matches('\n')))
    });
    names.all(|is_helper| is_helper == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_main_thread_that_has_ended_leaves_others() {
        let stat = |state: &str, code: i32| {
            let mut fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
            (fields[20 - 4], fields[52 - 4]) = ("3".into(), code.to_string());
            format!("7 (a) Z ( \u{e9}) {state} {}\n", fields.join(" "))
        };
        let left = |status| Some(Left { threads: 2, status });
        assert_eq!(Left::parse(stat("Z", 0).as_bytes()), left(0));
        assert_eq!(Left::parse(stat("Z", 3 << 8).as_bytes()), left(3));
        assert_eq!(Left::parse(stat("Z", libc::SIGSYS).as_bytes()), left(128 + libc::SIGSYS));
        for state in ["R", "S", "D", "T", "X"] {
            assert_eq!(Left::parse(stat(state, 0).as_bytes()), None);
        }
        for bad in ["", "7", "7 (a) Z", "7 (a) Z 1 2 3"] {
            assert_eq!(Left::parse(bad.as_bytes()), None, "{bad}");
        }
        let main = MainThread::new();
        assert!(main.stat.is_some() && main.left().is_none(), "it runs");
        assert!(!all_are_helpers(), "the test runner's threads are none");
    }
}
