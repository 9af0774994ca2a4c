//! Notices the end of peers: one thread for all connections of a process.
//!
//! ```text
//!   socket hangs up ──┐                       marked? ── yes ──> Disconnected
//!                     ├─> epoll ─> thread ──> exited? ── yes ──> Died
//!   pidfd readable ───┘                       neither: a grace for the pidfd, then Disconnected
//! ```
//!
//! A forked child of the peer may keep the socket open, so the socket alone can hide a death; and
//! a process may close the socket without ending, so the pidfd alone can hide a hang-up. A killed
//! process closes its files *before* its pidfd tells, sometimes long before: so a hang-up asks the
//! kernel whether the process still has memory, and where it cannot say there is a grace.
//!
//! # Invariants
//!
//! 1. Each connection gets at most one [`Watched::gone`]. Dropping its [`Watch`] keeps it from
//!    being called, but does not wait for a call that is due already: what it is called on lives.
//! 2. The mark is read after the event, so a mark that was set before the end is always seen.
//! 3. `marked` and `gone` run without the lock: they may drop anything, also the `Watch`.
//! 4. The table names descriptors by number. Each belongs to a `Watch`, which removes itself from
//!    the table, and from epoll, before it closes them: under the lock the numbers are right.
//! 5. Only hang-ups are waited for: bytes that nobody reads wake nothing. What told its end leaves
//!    epoll at once, so the loop never spins.
//! 6. A forked child reads and changes nothing of its parent's lifeline: its page of per-process
//!    objects is empty, and a `Watch` of the parent only closes its copies of descriptors there.
//!
//! # Proof
//!
//! The verdicts as a table, and real processes, in `tests.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::table::{Suspect, Table};
use super::epoll::{Epoll, Event, Events};
use super::foreign::PeerSocket;
use super::fork::{Canary, PerProcess, Slot, per_process};
use super::pidfd::Pidfd;
use super::signals;

mod table;
#[cfg(test)]
mod tests;

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
    let lifeline = per_process(Lifeline::new)?;
    let canary = Canary::new()?;
    let id = lifeline.add(socket.as_fd(), peer.as_ref(), watched)?;
    step!("watch");
    Ok(Watch { canary, lifeline, id, socket, peer })
}

impl Watch {
    /// The process of the peer, if it is known.
    #[cfg(test)]
    pub(crate) fn peer(&self) -> Option<&Arc<Pidfd>> {
        self.peer.as_ref()
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

/// How long the pidfd may take to tell a death after the socket has hung up.
const GRACE: Duration = Duration::from_millis(100);
/// Events that one wait fetches.
const BATCH: usize = 64;
/// The thread calls `marked` and `gone`, which set words and wake; and what they drop.
const STACK: usize = 256 << 10;

#[derive(Debug)]
struct Lifeline {
    epoll: Epoll,
    table: Mutex<Table>,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Lifeline {
    const SLOT: Slot = Slot::Lifeline;
}

impl Lifeline {
    fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that may panic runs under the lock, and if it did, the table would be whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(
        &'static self,
        socket: BorrowedFd<'_>,
        peer: Option<&Arc<Pidfd>>,
        watched: Weak<dyn Watched>,
    ) -> io::Result<u64> {
        let mut table = self.table();
        if !table.thread_started {
            self.start()?;
            table.thread_started = true;
        }
        table.add(&self.epoll, socket, peer, watched)
    }

    /// Removes a connection. False if it is not there: removed already, or told its end.
    fn remove(&self, id: u64) -> bool {
        // The lock ends with this statement, and what was known of the connection goes after it.
        let known = self.table().remove(&self.epoll, id);
        known.is_some()
    }

    fn start(&'static self) -> io::Result<()> {
        // The thread inherits the mask, so there is no moment in which it takes a signal.
        let _blocked = signals::block_all()?;
        let thread = thread::Builder::new().name("narrows-watch".into()).stack_size(STACK);
        step!("start the lifeline");
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(&self) {
        let mut events = Events::with_room(BATCH);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let until = self.table().next_deadline();
            batch.clear();
            match self.epoll.wait(&mut events, until) {
                Ok(happened) => batch.extend(happened),
                // Not to be expected, and not to be met with spinning.
                Err(_) => thread::sleep(GRACE),
            }
            self.handle(&batch);
        }
    }

    fn handle(&self, batch: &[Event]) {
        let suspects = self.table().suspects(&self.epoll, batch, Instant::now());
        for suspect in suspects {
            // What panics is one connection's affair, and the others need this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| self.judge(&suspect)));
        }
    }

    fn judge(&self, suspect: &Suspect) {
        let Some(watched) = suspect.watched.upgrade() else {
            self.remove(suspect.id);
            return;
        };
        // A hang-up may come long before the pidfd tells: a killed process that had much to close.
        let over = |peer: Arc<Pidfd>| if suspect.hung_up { peer.finished() } else { peer.exited() };
        let exited = suspect.peer.as_ref().map(|peer| peer.upgrade().is_some_and(over));
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
