//! Operations on a peer's objects that may block, on threads that no deadline depends on.
//!
//! ```text
//!   close(descriptor) ──▶ queue ──▶ up to 16 detached threads, each ends when the queue is empty
//!   within(deadline, …, work) ──▶ a thread for this one work; the caller waits for it, up to its deadline
//! ```
//!
//! The last close of a descriptor can block for as long as the one who made it wants: a TCP socket with unsent
//! data lingers, a file of FUSE waits for its server. Adding a seal waits for the lock of the file, which a
//! process that punches a hole into it holds. Neither can be interrupted.
//!
//! # Invariants
//!
//! 1. No function here blocks on the work that it is given: [`close`] returns at once, [`within`] at its deadline.
//! 2. There are at most [`MOST_CLOSING`] threads that close, and [`MOST_WAITING`] descriptors that wait for one.
//!    What exceeds that, or finds that no thread can be had, stays open until the process ends: a
//!    descriptor is lost, which a peer can do at most once for each connection that it makes, and nothing blocks.
//! 3. There are at most [`MOST_WORKING`] threads of [`within`]; beyond, it answers as if the deadline had passed.
//! 4. No thread stays without work, so a program that never meets such a peer has none of them.
//! 5. A forked child has a queue of its own: the parent's descriptors in the parent's queue are not its business.
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

/// Closes a descriptor that came from a peer, or a socket whose queue may hold some. Returns at once.
pub(crate) fn close(descriptor: OwnedFd) {
    match per_process(|| Ok(Offload::default())) {
        Ok(offload) => offload.close(descriptor),
        Err(_) => lose(descriptor),
    }
}

/// Does the work on a thread of its own, and returns what it came to; `None` if that is not known at the deadline, or when
/// the caller does not want it any more. The work goes on then.
///
/// # Errors
///
/// No thread can be had; the work was not begun.
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
        let came_to = work();
        offload.working.fetch_sub(1, Ordering::Relaxed);
        let _ = done.send(came_to); // It fails if the caller has gone at its deadline.
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
        // It ends now. Joined, no thread runs this library's code when the program unloads it.
        let _ = thread.join();
    }
    Ok(received.ok())
}

/// How long a caller waits before it looks whether it is cancelled.
const SLICE: Duration = Duration::from_millis(50);
/// Threads that close, at most.
const MOST_CLOSING: usize = 16;
/// Descriptors that wait for one of them, at most.
const MOST_WAITING: usize = 256;
/// Threads that do other work, at most.
const MOST_WORKING: usize = 64;
/// They call little more than the kernel.
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
        // Nothing under the lock panics, and if it did, the queue would be whole.
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
                Err(_) if closing.threads > 0 => {} // Another one comes to it.
                Err(_) => mem::take(&mut closing.waiting).into_iter().for_each(lose),
            }
        }
    }

    fn run(&self) {
        while let Some(descriptor) = self.next() {
            drop(descriptor);
        }
    }

    /// The next descriptor to close; without one, the calling thread does not count any more.
    fn next(&self) -> Option<OwnedFd> {
        let mut closing = self.closing();
        let next = closing.waiting.pop_front();
        if next.is_none() {
            closing.threads -= 1;
        }
        next
    }
}

/// A thread that takes no signal: the program's handlers are not for it.
fn start(body: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    let _blocked = signals::block_all();
    threads::spawn_with_stack("narrows-offload", STACK, body)
}

/// Leaves a descriptor open: better than a thread that blocks, and the program is told.
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
            let far = Some(Instant::now() + Duration::from_secs(60));
            assert_eq!(within(far, || false, || 8).expect("a thread"), Some(8));
            let (reader, writer) = pair();
            for number in 0..MOST_WORKING {
                let reader = reader.try_clone().expect("a copy");
                // One is not left at its deadline, but since its caller is cancelled.
                let deadline = if number == 0 { far } else { soon() };
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
            assert_eq!(within(far, || false, || 9).expect("no thread is tried"), None);
            drop(writer);
            assert!(eventually(|| within(far, || false, || 10).expect("a thread") == Some(10)));
        });
    }

    #[test]
    fn closes_that_block_are_bounded_and_nothing_waits_for_them() {
        in_child(|| {
            let offload = per_process(|| Ok(Offload::default())).expect("one");
            // As if all threads were blocked.
            offload.closing().threads = MOST_CLOSING;
            let before = open_descriptors();
            for _ in 0..MOST_WAITING + 10 {
                close(pair().0);
            }
            assert_eq!(offload.closing().waiting.len(), MOST_WAITING);
            assert_eq!(open_descriptors(), before + MOST_WAITING + 10);
            // One of them comes back.
            offload.run();
            assert_eq!(open_descriptors(), before + 10);
        });
    }
}
