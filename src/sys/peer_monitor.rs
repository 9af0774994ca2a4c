//! The peer monitor: one thread that detects the end of every peer of this process.
//!
//! ```text
//!   socket hangs up ──┐                       closed flags set? ── yes ──> Disconnected
//!                     ├─> epoll ─> thread ──> exited? ──────────── yes ──> Died
//!   pidfd readable ───┘                       neither: the grace period, then Disconnected
//! ```
//!
//! A forked child of the peer may keep the socket open, so the socket alone can hide a death. A process may close the
//! socket without ending, so the pidfd alone can hide a hang-up. A killed process closes its files *before* its pidfd
//! reports the exit, so after a hang-up without closed flags the monitor waits for the pidfd. No system call answers
//! sooner without a risk: `process_mrelease` waits for locks of the dying process, and seccomp filters kill threads for
//! calls that they do not know.
//!
//! # Invariants
//!
//! 1. Each connection gets at most one call of [`Watched::on_peer_exit`]. Dropping its [`MonitorHandle`] prevents the
//!    call, but does not wait for a call that has begun: the thread holds a reference to the connection during the
//!    call.
//! 2. The closed flags are read after the event, so a flag that was set before the end is always seen.
//! 3. `is_closed_by_peer` and `on_peer_exit` run without the lock: they may drop any object, also the `MonitorHandle`.
//! 4. The table has the numbers of descriptors. Each belongs to a `MonitorHandle`, which removes itself from the table
//!    and from epoll before it closes them. So under the lock the numbers are right, unless the program has closed
//!    descriptors of the library. The thread uses a number only while it names the file that it named when it was
//!    added.
//! 5. The monitor waits for hang-ups only: bytes in a socket, which no code reads, do not wake the thread. Epoll
//!    reports each end once, so the loop never spins.
//! 6. A forked child does not use its parent's monitor: its page of per-process objects is empty, and a `MonitorHandle`
//!    of the parent only closes its copies of descriptors there.
//! 7. The thread runs before a connection relies on it, and has made each of its system calls once by then. If a filter
//!    kills it for one of them, connecting fails.
//! 8. A thread that was killed later is started again, at most [`STARTS`] times in total. A blocked call does so (at
//!    the end of a slice of its sleep or spin, or at its deadline), or the next connection. If that fails, all
//!    connections end as disconnected.
//! 9. If the program has closed the epoll descriptor, all connections end as disconnected, and the next connection
//!    makes a new monitor. If it has closed the descriptors of one connection, that connection ends. The thread checks
//!    both once in [`HEARTBEAT`], and a blocked call checks them at the end of each slice. Numbers that name other
//!    files by then are not used.
//! 10. The thread makes no system call that waits for a peer: it polls descriptors, and reads private memory and closed
//!     flags. Each system call that it makes under the lock it has made without the lock before, so a filter that kills
//!     the thread for it leaves no lock held.
//! 11. The thread does not keep a process alive whose own threads have all ended: it checks that once in [`HEARTBEAT`]
//!     too.
//!
//! # What it does not cover
//!
//! A program that never blocks (it uses `try_recv` only), and that installs a filter after its first connection which
//! kills the thread: no code checks then whether the thread runs. Before Linux 6.9 also a pidfd that the program has
//! closed, if its number names another pidfd by now.
//!
//! # Proof
//!
//! The decisions as a table, and real processes, in `tests.rs`; filters, killed threads and closed descriptors in
//! `tests/stream/peer_monitor.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use self::last_thread::MainThread;
use self::watch_table::{Candidate, OWN, WatchTable};
pub(crate) use self::watch_table::{PeerExit, Watched};
use self::worker::Worker;
use super::descriptor::{self, Descriptor};
use super::epoll::{Epoll, EpollEvent, EpollEvents, Interest};
use super::foreign::PeerSocket;
use super::fork_guard::{self, ForkGuard, PerProcess, StaticSlot, per_process};
use super::pidfd::Pidfd;
use super::scheduling::{self, NotReset};
use super::signals;
use super::threads;
use super::wait::is_readable;
use crate::events;

mod last_thread;
#[cfg(test)]
mod tests;
mod watch_table;
mod worker;

/// A connection that is watched, until this is dropped. It owns the socket.
#[derive(Debug)]
pub(crate) struct MonitorHandle {
    fork_guard: ForkGuard,
    monitor: &'static PeerMonitor,
    id: u64,
    // `drop` removes them from epoll before they are closed.
    socket: PeerSocket,
    peer: Option<Arc<Pidfd>>,
}

/// Watches a connection by its socket and, if it is known, by the process of the peer. Starts the thread if this is the
/// first connection.
///
/// `watched` must exist already. The monitor does not keep it alive.
///
/// # Errors
///
/// No descriptor or no thread is left, or `watched` does not exist. The socket is closed then.
pub(crate) fn watch(
    socket: impl Into<PeerSocket>,
    peer: Option<Arc<Pidfd>>,
    watched: Weak<dyn Watched>,
) -> io::Result<MonitorHandle> {
    let socket = socket.into();
    if watched.strong_count() == 0 {
        // The thread would take the connection for dropped, and would not report its end.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to watch for"));
    }
    let fork_guard = ForkGuard::new()?;
    for _ in 0..ATTEMPTS {
        let monitor = running()?;
        if let Some(id) = monitor.add(socket.as_fd(), peer.as_ref(), &watched)? {
            failpoint!("watch");
            return Ok(MonitorHandle { fork_guard, monitor, id, socket, peer });
        }
    }
    Err(io::Error::other("the program closes the peer monitor's descriptors as fast as they are made"))
}

/// Starts the monitor, unless it runs. Returns once its thread runs.
///
/// # Errors
///
/// No thread could be started or no descriptor is left; the text names the limits.
pub(crate) fn start() -> io::Result<()> {
    running().map(drop)
}

/// Returns why the monitor's thread is not scheduled like the main thread, if it is not.
///
/// # Errors
///
/// The errors of [`start`].
pub(crate) fn not_reset() -> io::Result<Option<NotReset>> {
    Ok(running()?.scheduling.get().cloned().flatten())
}

/// Returns the monitor of this process, with its thread running.
fn running() -> io::Result<&'static PeerMonitor> {
    for _ in 0..ATTEMPTS {
        let monitor = per_process(PeerMonitor::new)?;
        if monitor.has_its_epoll() {
            return match monitor.ensure_thread() {
                Ok(()) => Ok(monitor),
                Err(error) => {
                    monitor.end_all(); // These connections relied on the thread.
                    Err(error)
                }
            };
        }
        monitor.lose();
    }
    Err(io::Error::other("the program closes the peer monitor's descriptors as fast as they are made"))
}

impl MonitorHandle {
    /// Returns the process of the peer, if it is known.
    #[cfg(test)]
    pub(crate) fn peer(&self) -> Option<&Arc<Pidfd>> {
        self.peer.as_ref()
    }

    /// Makes sure that the monitor would detect the end of the peer, or ends the connection. A thread that waits on the
    /// connection calls this from time to time.
    pub(crate) fn check(&self) {
        self.check_thread();
        if self.fork_guard.same_process() && !self.has_its_files() {
            self.monitor.end_if_closed(self.id);
        }
    }

    /// Starts the monitor's thread again if it was killed; ends all connections if that is not possible.
    pub(crate) fn check_thread(&self) {
        if self.fork_guard.same_process() && self.monitor.ensure_thread().is_err() {
            self.monitor.end_all();
        }
    }

    fn has_its_files(&self) -> bool {
        let has_peer = self.peer.as_ref().is_none_or(|peer| peer.is_ours());
        self.monitor.has_its_epoll() && self.socket.is_ours() && has_peer
    }
}

impl AsFd for MonitorHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for MonitorHandle {
    fn drop(&mut self) {
        if self.fork_guard.same_process() {
            failpoint!("unwatch");
            self.monitor.remove(self.id);
            failpoint!("close the socket");
        }
    }
}

/// How often the thread checks whether the program has closed descriptors of the library, which no event reports: about
/// as often as one blocked call wakes up. Without connections the check can be rarer.
const HEARTBEAT: Duration = Duration::from_secs(3);
const IDLE_HEARTBEAT: Duration = Duration::from_secs(30);
/// The most events that one wait returns.
const BATCH: usize = 64;
/// The stack of the thread, in bytes. It runs `is_closed_by_peer` and `on_peer_exit`, which set words and wake threads,
/// and the destructors of the objects that they drop.
const STACK: usize = 256 << 10;
/// How long a new thread may take until it runs, and how often its starter checks whether it was killed meanwhile.
const START: Duration = Duration::from_secs(5);
const START_SLICE: Duration = Duration::from_millis(5);
/// How often the thread is started in total, if it is killed again and again.
const STARTS: u32 = 4;
/// How often a new monitor is made, if the program closes its descriptors meanwhile.
const ATTEMPTS: u32 = 3;

#[derive(Debug)]
struct PeerMonitor {
    epoll: Epoll,
    /// A socket in the epoll set. While its number names it, and its entry in the set can be modified, the set is ours.
    own: Descriptor,
    /// The thread must compute anew when to wake up next. If one thread sets it while the monitor clears it, the
    /// request may be lost. Then the thread uses the shorter heartbeat for a first connection up to one
    /// [`IDLE_HEARTBEAT`] later; it still gets the events of that connection at once.
    wake: AtomicBool,
    table: Mutex<WatchTable>,
    worker: Mutex<Worker>,
    scheduling: OnceLock<Option<NotReset>>,
    main: MainThread,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for PeerMonitor {
    const SLOT: StaticSlot = StaticSlot::PeerMonitor;
}

impl PeerMonitor {
    fn new() -> io::Result<Self> {
        let (epoll, own) = (Epoll::new()?, Descriptor::new(descriptor::idle_socket()?));
        epoll.add(own.as_fd(), OWN, Interest::HangUp)?;
        let (table, worker) = (Mutex::default(), Mutex::default());
        let wake = AtomicBool::new(false);
        let (scheduling, main) = (OnceLock::new(), MainThread::new());
        Ok(Self { epoll, own, wake, table, worker, scheduling, main })
    }

    fn table(&self) -> MutexGuard<'_, WatchTable> {
        // No code that may panic runs under the lock, and if it did, the table would be consistent.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. Returns `None` if the monitor was lost meanwhile.
    fn add(
        &'static self,
        socket: BorrowedFd<'_>,
        peer: Option<&Arc<Pidfd>>,
        watched: &Weak<dyn Watched>,
    ) -> io::Result<Option<u64>> {
        let mut table = self.table();
        if table.is_lost() {
            return Ok(None);
        }
        let first = table.is_empty();
        let id = table.add(&self.epoll, socket, peer, watched.clone())?;
        if first {
            // The thread sleeps longer without connections.
            self.wake.store(true, Ordering::Relaxed);
            self.has_its_epoll();
        }
        Ok(Some(id))
    }

    /// Returns whether the epoll descriptor still names the set that was made. Both numbers may name files of the
    /// program by now, even another epoll set and a socket in it, so the inode is compared first.
    fn has_its_epoll(&self) -> bool {
        // The socket is always writable, so interest in that wakes the thread.
        let wake = self.wake.load(Ordering::Relaxed);
        let interest = if wake { Interest::Writable } else { Interest::HangUp };
        self.own.is_ours() && self.epoll.modify(self.own.as_fd(), OWN, interest).is_ok()
    }

    /// Ends all connections, since the epoll set is not ours any more, and lets the next connection make another
    /// monitor. The thread, if it runs, ends or stays asleep permanently.
    #[cold]
    fn lose(&'static self) {
        fork_guard::forget(self);
        // The lock ends with this statement: ending a connection may drop its last reference, and a logger may run any
        // code.
        let lost = self.table().lose();
        if let Some(lost) = lost {
            end(&lost, events::monitor_closed);
        }
    }

    /// Ends all connections, since no thread is left that would detect the end of a peer.
    #[cold]
    fn end_all(&'static self) {
        if !self.has_its_epoll() {
            return self.lose();
        }
        let lost = self.table().remove_all(&self.epoll);
        end(&lost, events::monitor_killed);
    }

    /// Ends the connection if the program has closed its descriptors, or those of the monitor.
    #[cold]
    fn end_if_closed(&'static self, id: u64) {
        if !self.has_its_epoll() {
            return self.lose();
        }
        let lost: Vec<_> = self.table().remove_if_closed(&self.epoll, id).into_iter().collect();
        end(&lost, events::monitor_closed);
    }

    fn ensure_thread(&'static self) -> io::Result<()> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_running() {
            return Ok(());
        }
        if worker.starts() >= STARTS {
            return Err(killed());
        }
        let again = worker.starts() > 0;
        if again {
            self.table().begin_again(&self.epoll);
        }
        let started = self.start_thread(&mut worker);
        drop(worker); // A logger may make a connection.
        if again {
            events::monitor_restarted();
        }
        started
    }

    /// Removes a connection. Returns false if it is not in the table: it was removed before, or its end was reported.
    fn remove(&'static self, id: u64) -> bool {
        if !self.has_its_epoll() {
            self.lose(); // Numbers in the table may name files of the program by now.
        }
        // The lock ends with this statement, and the entry is dropped after it.
        let known = self.table().remove(&self.epoll, id);
        known.is_some()
    }

    /// Starts the thread. Returns once the thread has made each of its system calls once. So a plugin that is unloaded
    /// at once does not unmap code that the thread is about to run, and no connection relies on a thread that a filter
    /// kills.
    fn start_thread(&'static self, worker: &mut Worker) -> io::Result<()> {
        let (running, started) = mpsc::sync_channel(1);
        failpoint!("start the peer monitor");
        let handle = {
            // The thread inherits the signal mask, so it never handles a signal, not even at its start.
            let _blocked = signals::block_all()?;
            threads::spawn_with_stack("narrows-watch", STACK, move || self.run(running))?
        };
        worker.started(handle);
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            match started.recv_timeout(START_SLICE) {
                Ok(()) => return Ok(()),
                Err(_) if !worker.is_running() => return Err(killed()),
                Err(_) => {}
            }
        }
        Ok(()) // The thread has not ended, so the machine is only busy.
    }

    fn run(&'static self, running: mpsc::SyncSender<()>) {
        let mut running = Some(running);
        worker::keep_code_mapped();
        let not_reset = self.scheduling.get_or_init(|| scheduling::follow_main_thread().err());
        let mut events = EpollEvents::with_room(BATCH);
        let mut batch = Vec::with_capacity(BATCH);
        // The first iteration makes each system call once, and does not wait.
        let _never = is_readable(self.own.as_fd());
        self.main.end_process_without_threads();
        let mut deadline = Some(Instant::now());
        let mut next_check = Instant::now();
        while self.has_its_epoll() {
            batch.clear();
            match self.epoll.wait(&mut events, deadline) {
                Ok(happened) => batch.extend(happened),
                Err(_) => break, // The number names another file by now.
            }
            self.wake.store(false, Ordering::Relaxed);
            self.handle(&batch);
            if let Some(running) = running.take() {
                let _late = running.send(()); // The starter may have waited long enough.
                not_reset.iter().for_each(|reason| events::monitor_not_reset(reason));
            }
            if Instant::now() >= next_check {
                let lost = self.table().remove_closed(&self.epoll);
                end(&lost, events::monitor_closed);
                self.main.end_process_without_threads();
                next_check = Instant::now() + HEARTBEAT;
            }
            let table = self.table();
            let heartbeat = if table.is_empty() { next_check + IDLE_HEARTBEAT } else { next_check };
            deadline = Some(table.next_deadline().map_or(heartbeat, |grace| grace.min(heartbeat)));
        }
        self.lose();
    }

    fn handle(&'static self, batch: &[EpollEvent]) {
        let candidates = self.table().candidates(batch, Instant::now());
        for candidate in candidates {
            // A panic concerns one connection only, and the others need this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| self.check_candidate(&candidate)));
        }
    }

    fn check_candidate(&'static self, candidate: &Candidate) {
        let Some(watched) = candidate.watched.upgrade() else {
            self.remove(candidate.id);
            return;
        };
        let exited = candidate.peer.as_ref().map(|peer| peer.upgrade().is_some_and(|peer| peer.exited()));
        // In this order: a peer sets its closed flags before it exits, so after an exit was seen, the flags are final.
        let closed = watched.is_closed_by_peer();
        let Some(reason) = peer_exit(exited, closed, candidate.hung_up, candidate.out_of_grace) else {
            return;
        };
        if self.remove(candidate.id) {
            watched.on_peer_exit(reason);
        }
    }
}

/// Decides how a peer has ended. Returns `None` if it has not, or if the monitor has to wait for its pidfd. `exited` is
/// `None` if the peer's process is not known.
fn peer_exit(exited: Option<bool>, closed: bool, hung_up: bool, out_of_grace: bool) -> Option<PeerExit> {
    if exited == Some(true) {
        return Some(if closed { PeerExit::Disconnected } else { PeerExit::Died });
    }
    let nothing_to_wait_for = closed || exited.is_none() || out_of_grace;
    (hung_up && nothing_to_wait_for).then_some(PeerExit::Disconnected)
}

/// Ends connections that were removed from the table, as disconnected, and logs their number.
fn end(lost: &[Weak<dyn Watched>], report: fn(usize)) {
    if lost.is_empty() {
        return;
    }
    for watched in lost.iter().filter_map(Weak::upgrade) {
        // After a panic in one connection, the others must still be ended.
        let _ = catch_unwind(AssertUnwindSafe(|| watched.on_peer_exit(PeerExit::Disconnected)));
    }
    report(lost.len());
}

fn killed() -> io::Error {
    io::Error::other(
        "the peer monitor's thread was killed: a seccomp filter must allow it epoll_wait, epoll_ctl, ppoll, fstat (or newfstatat), pread64 and futex, and as it starts also openat, read, close, prctl, mmap, mprotect, munmap, sigaltstack, set_robust_list, rseq, gettid and sched_getaffinity",
    )
}
