//! The peer monitor: one thread that notices the end of every peer of this process.
//!
//! ```text
//!   socket hangs up ──┐                       closed marks? ── yes ──> Disconnected
//!                     ├─> epoll ─> thread ──> exited? ──────── yes ──> Died
//!   pidfd readable ───┘                       neither: the grace, then Disconnected
//! ```
//!
//! A forked child of the peer may keep the socket open, so the socket alone can hide a death; and a process may close the
//! socket without ending, so the pidfd alone can hide a hang-up. A killed process closes its files *before* its pidfd
//! reports the exit, so a hang-up without closed marks waits for the pidfd. No system call answers sooner without a risk:
//! `process_mrelease` waits for locks of the dying process, and seccomp filters kill for calls that they do not know.
//!
//! # Invariants
//!
//! 1. Each connection gets at most one [`Watched::gone`]. Dropping its [`Watch`] keeps it from
//!    being called, but does not wait for a call that is due already: what it is called on lives.
//! 2. The mark is read after the event, so a mark that was set before the end is always seen.
//! 3. `marked` and `gone` run without the lock: they may drop anything, also the `Watch`.
//! 4. The table names descriptors by number. Each belongs to a `Watch`, which removes itself from
//!    the table, and from epoll, before it closes them: under the lock the numbers are right.
//! 5. Only hang-ups are waited for: bytes that nobody reads wake nothing. What reported its end leaves
//!    epoll at once, so the loop never spins.
//! 6. A forked child reads and changes nothing of its parent's monitor: its page of per-process
//!    objects is empty, and a `Watch` of the parent only closes its copies of descriptors there.
//! 7. The thread runs before a connection relies on it. A thread that was killed is started again, at the end of a slice of a
//!    blocked call or with the next connection. If the program closed the epoll descriptor, all connections end as
//!    disconnected within [`HEARTBEAT`], and the next connection gets a monitor of its own.
//! 8. The thread makes no system call that waits for a peer: it polls descriptors and reads private memory and marks.
//!
//! # Proof
//!
//! The verdicts as a table, and real processes, in `tests.rs`; filters, lost threads and lost descriptors in
//! `tests/peer_monitor.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::table::{Suspect, Table};
use self::worker::Worker;
use super::call;
use super::epoll::{Epoll, Event, Eventfd, Events, Interest};
use super::foreign::PeerSocket;
use super::fork::{self, Canary, PerProcess, Slot, per_process};
use super::pidfd::Pidfd;
use super::scheduling::{self, NotReset};
use super::{signals, threads};
use crate::events;

mod table;
#[cfg(test)]
mod tests;
mod worker;

/// A connection, as the lifeline sees it. Both methods run on the lifeline's thread and hold up
/// all other connections meanwhile, so they do not block.
pub(crate) trait Watched: Send + Sync {
    /// Whether the peer has marked its end as closed.
    fn marked(&self) -> bool;

    /// The peer is gone; called at most once.
    fn gone(&self, fate: Gone);
}

/// How a peer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It closed its end, or its process lives on without it.
    Disconnected,
    /// Its process ended without closing.
    Died,
}

/// A connection that is watched, until this is dropped. It owns the socket.
#[derive(Debug)]
pub(crate) struct Watch {
    canary: Canary,
    lifeline: &'static Lifeline,
    id: u64,
    // Closed after `drop` has removed them from epoll.
    socket: PeerSocket,
    #[cfg_attr(not(test), expect(dead_code, reason = "the lifeline's table names its descriptor"))]
    peer: Option<Arc<Pidfd>>,
}

/// Watches a connection by its socket and, if known, by the process of the peer. Starts the thread
/// if this is the first one.
///
/// `watched` must exist already; it is not kept alive.
///
/// # Errors
///
/// A lack of descriptors or threads, or `watched` does not exist; the socket is closed then.
pub(crate) fn watch(
    socket: impl Into<PeerSocket>,
    peer: Option<Arc<Pidfd>>,
    watched: Weak<dyn Watched>,
) -> io::Result<Watch> {
    let socket = socket.into();
    if watched.strong_count() == 0 {
        // It would be taken for gone: an end that came now would be told to nobody.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to watch for"));
    }
    let canary = Canary::new()?;
    for _ in 0..ATTEMPTS {
        let lifeline = running()?;
        if let Some(id) = lifeline.add(socket.as_fd(), peer.as_ref(), &watched)? {
            step!("watch");
            return Ok(Watch { canary, lifeline, id, socket, peer });
        }
    }
    Err(io::Error::other("the program closes the peer monitor's descriptors as fast as they are made"))
}

/// Starts the monitor, unless it runs. Returns once its thread runs.
///
/// # Errors
///
/// No thread or no descriptor is to be had; the text names the limits.
pub(crate) fn start() -> io::Result<()> {
    running().map(drop)
}

/// Returns why the monitor's thread is not scheduled as the main thread is, if it is not.
///
/// # Errors
///
/// As [`start`].
pub(crate) fn not_reset() -> io::Result<Option<NotReset>> {
    Ok(running()?.scheduling.get().cloned().flatten())
}

fn running() -> io::Result<&'static Lifeline> {
    for _ in 0..ATTEMPTS {
        let lifeline = per_process(Lifeline::new)?;
        if lifeline.has_its_epoll() {
            lifeline.ensure_thread()?;
            return Ok(lifeline);
        }
        lifeline.lose();
    }
    Err(io::Error::other("the program closes the peer monitor's descriptors as fast as they are made"))
}

impl Watch {
    /// The process of the peer, if it is known.
    #[cfg(test)]
    pub(crate) fn peer(&self) -> Option<&Arc<Pidfd>> {
        self.peer.as_ref()
    }

    /// Starts the monitor's thread again if it was killed; ends all connections if that is not possible.
    ///
    /// For a thread that sleeps on the connection, from time to time.
    pub(crate) fn check(&self) {
        if self.canary.same_process() && self.lifeline.ensure_thread().is_err() {
            self.lifeline.lose();
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.canary.same_process() {
            step!("unwatch");
            self.lifeline.remove(self.id);
            step!("close the socket");
        }
    }
}

/// How long the pidfd may take to report a death after the socket has hung up. A killed process with 20 000 open files
/// needs about 100 ms in between; a process that lives on without its socket is reported this much later.
const GRACE: Duration = Duration::from_millis(500);
/// How often the thread looks whether the program has closed its epoll descriptor, which no event reports.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Events that one wait fetches.
const BATCH: usize = 64;
/// The thread calls `marked` and `gone`, which set words and wake; and what they drop.
const STACK: usize = 256 << 10;
/// How long a new thread may take until it runs.
const START: Duration = Duration::from_secs(5);
/// How often a thread that is killed again and again is started.
const STARTS: u32 = 4;
/// How often a monitor is made anew whose descriptors are closed meanwhile.
const ATTEMPTS: u32 = 3;
/// The token of the descriptor by which the monitor recognizes its epoll set; connections count from 1.
const OWN: u64 = 0;

#[derive(Debug)]
struct Lifeline {
    epoll: Epoll,
    /// Never signalled. While it can be changed in the set, the set is ours.
    own: Eventfd,
    table: Mutex<Table>,
    worker: Mutex<Worker>,
    scheduling: OnceLock<Option<NotReset>>,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Lifeline {
    const SLOT: Slot = Slot::Lifeline;
}

impl Lifeline {
    fn new() -> io::Result<Self> {
        let (epoll, own) = (Epoll::new()?, Eventfd::new()?);
        epoll.add(own.as_fd(), OWN, Interest::HangUp)?;
        let (table, worker) = (Mutex::default(), Mutex::default());
        Ok(Self { epoll, own, table, worker, scheduling: OnceLock::new() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that may panic runs under the lock, and if it did, the table would be whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; `None` if the monitor was lost meanwhile.
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
        table.add(&self.epoll, socket, peer, watched.clone()).map(Some)
    }

    /// Whether the epoll descriptor still names the set that was made. Its number may name another set of the program.
    fn has_its_epoll(&self) -> bool {
        self.epoll.modify(self.own.as_fd(), OWN, Interest::HangUp).is_ok()
    }

    /// Ends all connections as disconnected, since no end of a peer can be noticed any more, and makes room for another
    /// monitor. The thread, if it is there, leaves or stays asleep for good.
    #[cold]
    fn lose(&'static self) {
        fork::forget(self);
        let Some(lost) = self.table().lose() else {
            return; // Another thread was first.
        };
        events::monitor_lost(lost.len());
        for watched in lost.iter().filter_map(Weak::upgrade) {
            // A panic of one connection must not keep the others from being told.
            let _ = catch_unwind(AssertUnwindSafe(|| watched.gone(Gone::Disconnected)));
        }
    }

    fn ensure_thread(&'static self) -> io::Result<()> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_running() {
            return Ok(());
        }
        if worker.starts() >= STARTS {
            return Err(io::Error::other("the peer monitor's thread was killed again and again"));
        }
        if worker.starts() > 0 {
            events::monitor_restarted();
        }
        let handle = self.start_thread().map_err(no_thread)?;
        worker.started(handle);
        Ok(())
    }

    /// Removes a connection. False if it is not there: removed already, or told its end.
    fn remove(&'static self, id: u64) -> bool {
        if !self.has_its_epoll() {
            self.lose(); // Numbers in the table may name files of the program by now.
        }
        // The lock ends with this statement, and what was known of the connection goes after it.
        let known = self.table().remove(&self.epoll, id);
        known.is_some()
    }

    fn start_thread(&'static self) -> io::Result<thread::JoinHandle<()>> {
        // The thread inherits the mask, so there is no moment in which it takes a signal.
        let _blocked = signals::block_all()?;
        threads::check()?;
        let thread = thread::Builder::new().name("narrows-watch".into()).stack_size(STACK);
        let (running, started) = mpsc::sync_channel(1);
        step!("start the lifeline");
        let handle = thread.spawn(move || {
            worker::keep_code_mapped();
            let _first = self.scheduling.set(scheduling::follow_main_thread().err());
            let _ = running.send(()); // Fails if the starter has waited long enough.
            if let Some(Some(reason)) = self.scheduling.get() {
                events::monitor_not_reset(reason);
            }
            self.run();
        })?;
        // Else a plugin that is unloaded at once would take the code away from a thread that is about to run it.
        let _late = started.recv_timeout(START);
        Ok(handle)
    }

    fn run(&'static self) {
        let mut events = Events::with_room(BATCH);
        let mut batch = Vec::with_capacity(BATCH);
        while self.has_its_epoll() {
            let deadline = self.table().next_wakeup(Instant::now());
            batch.clear();
            match self.epoll.wait(&mut events, deadline) {
                Ok(happened) => batch.extend(happened),
                Err(_) => break, // The number names something else by now.
            }
            self.handle(&batch);
        }
        self.lose();
    }

    fn handle(&'static self, batch: &[Event]) {
        let suspects = self.table().suspects(&self.epoll, batch, Instant::now());
        for suspect in suspects {
            // What panics is one connection's affair, and the others need this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| self.judge(&suspect)));
        }
    }

    fn judge(&'static self, suspect: &Suspect) {
        let Some(watched) = suspect.watched.upgrade() else {
            self.remove(suspect.id);
            return;
        };
        let exited = suspect.peer.as_ref().map(|peer| peer.upgrade().is_some_and(|peer| peer.exited()));
        // In this order: who marks its end and then exits must not be seen the other way round.
        let marked = watched.marked();
        let Some(fate) = verdict(exited, marked, suspect.hung_up, suspect.out_of_grace) else {
            return;
        };
        if self.remove(suspect.id) {
            watched.gone(fate);
        }
    }
}

/// What became of a peer, or `None` if it has to be waited for. `exited` is `None` if its process
/// is not known.
fn verdict(exited: Option<bool>, marked: bool, hung_up: bool, out_of_grace: bool) -> Option<Gone> {
    if exited == Some(true) {
        return Some(if marked { Gone::Disconnected } else { Gone::Died });
    }
    let nothing_to_wait_for = marked || exited.is_none() || out_of_grace;
    (hung_up && nothing_to_wait_for).then_some(Gone::Disconnected)
}

/// A lack of threads, with the limits that cause it: the kernel's word for it is that of a call to try again.
fn no_thread(error: io::Error) -> io::Error {
    match call::errno(&error) {
        Some(libc::EAGAIN | libc::ENOMEM) => {
            let text = "no thread for the peer monitor: raise RLIMIT_NPROC (ulimit -u), the control group's pids.max or its \
                        memory";
            io::Error::new(io::ErrorKind::OutOfMemory, text)
        }
        _ => call::named("starting the peer monitor's thread", error),
    }
}
