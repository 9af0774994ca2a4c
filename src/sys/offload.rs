//! Runs operations on a peer's objects that may block, on threads that no deadline depends on.
//!
//! ```text
//!   close(descriptor) ──▶ queue ──▶ up to 16 detached threads, each ends when the queue is empty
//!   within(deadline, …, work) ──▶ a thread for this work only; the caller waits for it until its deadline at most
//! ```
//!
//! The last close of a descriptor can block for as long as the process that made it wants: a TCP socket with unsent
//! data lingers, a file of FUSE waits for its server. Adding a seal waits for the lock of the file, which a process
//! holds while it punches a hole. Neither can be interrupted.
//!
//! # Invariants
//!
//! 1. No function here blocks on the work that it is given: [`close`] returns at once, [`within`] at its deadline.
//! 2. At most [`MOST_CLOSING`] threads close, and at most [`MOST_WAITING`] descriptors wait for them. A descriptor
//!    beyond that, or one for which no thread can be started, stays open until the process ends. A peer can cause this
//!    at most once for each connection that it makes, and nothing blocks.
//! 3. There are at most [`MOST_WORKING`] threads of [`within`]. Beyond that, it returns as if the deadline had passed.
//! 4. A thread without work ends, so a program that never meets such a peer has no such threads.
//! 5. A forked child has a queue of its own. It does not close the descriptors in the parent's queue.
//!
//! # Proof
//!
//! Tests below, and `tests/listener/foreign_descriptors.rs` with descriptors whose close blocks.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::fork_guard::{PerProcess, StaticSlot, per_process};
use super::signals;
use super::threads;
use super::wait::remaining;
use crate::events;

/// Closes a descriptor that came from a peer, or a socket whose queue may hold descriptors. Returns at once.
pub(crate) fn close(descriptor: OwnedFd) {
    match per_process(|| Ok(Offload::default())) {
        Ok(offload) => offload.close(descriptor),
        Err(_) => lose(descriptor),
    }
}

/// Runs the work on a separate thread, and returns its result. Returns `None` if there is no result at the deadline, or
/// if the caller is cancelled first. The work continues then.
///
/// # Errors
///
/// No thread could be started; the work was not begun.
pub(crate) fn within<T: Send + 'static>(
    deadline: Option<Instant>,
    is_cancelled: impl Fn() -> bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let offload = per_process(|| Ok(Offload::default()))?;
    if offload.working.fetch_add(1, Ordering::Relaxed) >= MOST_WORKING {
        offload.working.fetch_sub(1, Ordering::Relaxed);
        return Ok(None);
    }
    let (done, result) = sync_channel(1);
    let thread = start(move || {
        let output = work();
        offload.working.fetch_sub(1, Ordering::Relaxed);
        let _ = done.send(output); // It fails if the caller has returned at its deadline.
    });
    let thread = thread.inspect_err(|_| {
        offload.working.fetch_sub(1, Ordering::Relaxed);
    })?;
    let received = loop {
        let left = remaining(deadline);
        let received = result.recv_timeout(left.min(SLICE));
        let goes_on =
            matches!(received, Err(RecvTimeoutError::Timeout)) && !left.is_zero() && !is_cancelled();
        if !goes_on {
            break received;
        }
    };
    if received.is_ok() {
        // The thread ends now. It is joined, so that no thread runs this library's code when the program unloads it.
        let _ = thread.join();
    }
    Ok(received.ok())
}

/// How long a caller waits before it checks whether it is cancelled.
const SLICE: Duration = Duration::from_millis(50);
/// Threads that close, at most.
const MOST_CLOSING: usize = 16;
/// Descriptors that wait for one of them, at most.
const MOST_WAITING: usize = 256;
/// Threads that do other work, at most.
const MOST_WORKING: usize = 64;
/// The stack of these threads in bytes. They run little besides system calls.
const STACK: usize = 128 << 10;

#[derive(Debug, Default)]
struct Offload {
    closing: Mutex<Closing>,
    working: AtomicUsize,
}

#[derive(Debug, Default)]
struct Closing {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Offload {
    const SLOT: StaticSlot = StaticSlot::Offload;
}

impl Offload {
    fn closing(&self) -> MutexGuard<'_, Closing> {
        // No code under the lock panics, and if it did, the queue would be consistent.
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&'static self, descriptor: OwnedFd) {
        let mut closing = self.closing();
        if closing.waiting.len() >= MOST_WAITING {
            drop(closing);
            return lose(descriptor);
        }
        closing.waiting.push_back(descriptor);
        if closing.threads < MOST_CLOSING {
            match start(|| self.run()) {
                Ok(_detached) => closing.threads += 1,
                Err(_) if closing.threads > 0 => {} // A thread that runs will close it.
                Err(_) => mem::take(&mut closing.waiting).into_iter().for_each(lose),
            }
        }
    }

    fn run(&self) {
        while let Some(descriptor) = self.next() {
            drop(descriptor);
        }
    }

    /// Returns the next descriptor to close. If there is none, the calling thread is no longer counted.
    fn next(&self) -> Option<OwnedFd> {
        let mut closing = self.closing();
        let next = closing.waiting.pop_front();
        if next.is_none() {
            closing.threads -= 1;
        }
        next
    }
}

/// Starts a thread with all signals blocked: it must not run the program's signal handlers.
fn start(body: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    let _blocked = signals::block_all();
    threads::spawn_with_stack("narrows-offload", STACK, body)
}

/// Leaves a descriptor open, which is better than a thread that blocks, and logs it.
fn lose(descriptor: OwnedFd) {
    mem::forget(descriptor);
    events::descriptor_lost();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{eventually, in_child, open_descriptors, refuse};
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn pair() -> (OwnedFd, OwnedFd) {
        crate::sys::socket::pair().expect("pair")
    }

    #[test]
    fn what_is_handed_over_is_closed_and_no_thread_stays() {
        in_child(|| {
            let before = open_descriptors();
            for _ in 0..100 {
                let (reader, writer) = pair();
                close(reader);
                close(writer);
            }
            assert!(eventually(|| open_descriptors() == before));
            let threads = || std::fs::read_dir("/proc/self/task").expect("listable").count();
            assert!(eventually(|| threads() == 1));
        });
    }

    #[test]
    fn without_a_thread_a_descriptor_stays_open() {
        in_child(|| {
            let before = open_descriptors();
            refuse(libc::SYS_clone, libc::EAGAIN);
            refuse(libc::SYS_clone3, libc::EAGAIN);
            let (reader, _writer) = pair();
            close(reader);
            assert_eq!(open_descriptors(), before + 2);
            within(None, || false, || ()).expect_err("no thread");
        });
    }

    #[test]
    fn work_that_takes_too_long_is_left_behind_and_bounded() {
        in_child(|| {
            let soon = || Some(Instant::now() + Duration::from_millis(5));
            assert_eq!(within(None, || false, || 7).expect("a thread"), Some(7));
            let late = Some(Instant::now() + Duration::from_secs(60));
            assert_eq!(within(late, || false, || 8).expect("a thread"), Some(8));
            let (reader, writer) = pair();
            for number in 0..MOST_WORKING {
                let reader = reader.try_clone().expect("a copy");
                // The first ends since its caller is cancelled, the others at their deadline.
                let deadline = if number == 0 { late } else { soon() };
                let blocked = within(
                    deadline,
                    || number == 0,
                    move || {
                        crate::sys::wait::wait_ready(
                            reader.as_fd(),
                            crate::sys::wait::Readiness::Readable,
                            None,
                        )
                    },
                );
                assert!(blocked.expect("a thread").is_none());
            }
            assert_eq!(within(late, || false, || 9).expect("no thread is tried"), None);
            drop(writer);
            assert!(eventually(|| within(late, || false, || 10).expect("a thread") == Some(10)));
        });
    }

    #[test]
    fn closes_that_block_are_bounded_and_nothing_waits_for_them() {
        in_child(|| {
            let offload = per_process(|| Ok(Offload::default())).expect("one");
            // Simulates that all threads are blocked.
            offload.closing().threads = MOST_CLOSING;
            let before = open_descriptors();
            for _ in 0..MOST_WAITING + 10 {
                close(pair().0);
            }
            assert_eq!(offload.closing().waiting.len(), MOST_WAITING);
            assert_eq!(open_descriptors(), before + MOST_WAITING + 10);
            // One of them continues.
            offload.run();
            assert_eq!(open_descriptors(), before + 10);
        });
    }
}
