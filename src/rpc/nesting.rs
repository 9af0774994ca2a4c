//! What the method that runs on this thread means for the calls that the thread makes.
//!
//! ```text
//!   server: a thread runs a method        sets: its role, and the deadline of the call that it runs
//!   client: the method makes a call       asks: `limit` of its wait, `waits_for_itself`, `deadline` to send along
//! ```
//!
//! # Invariants
//!
//! 1. A call that a method makes ends no later than the call that the method was called with. Threads that a method
//!    starts have no such limit.
//! 2. A thread that others wait for does not wait without a deadline. That is one which drives a connection, whose calls
//!    might be the ones that end the wait, over any number of processes; and a worker, of which the pool has so many. A
//!    method with a thread of its own waits without one for chunks and pushes alone: nothing else needs its thread, and
//!    what it passes on may be silent for long.
//! 3. A wait that only the waiting thread could end is found before it begins: for a call over the connection that this
//!    thread drives, and for a method of the pool whose only worker this thread is.
//!
//! # Proof
//!
//! `tests/rpc/deadlocks.rs`.

use std::cell::{Cell, RefCell};
use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::channel::{ConnectionId, Wait};

thread_local! {
    /// Whether one of the others is set. Calls outside of methods look at this alone.
    static NESTED: Cell<bool> = const { Cell::new(false) };
    static ROLE: RefCell<Option<ThreadRole>> = const { RefCell::new(None) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Whether the call that this worker serves came from this process itself.
    static SERVES_OWN: Cell<bool> = const { Cell::new(false) };
}

/// What a thread does for a server, and how long it waits that has no deadline.
struct ThreadRole {
    work: Work,
    timeout: Duration,
}

enum Work {
    /// It reads for this connection, and runs inline methods.
    Driver(Option<ConnectionId>),
    /// It runs methods of this pool.
    Worker(Weak<dyn WorkerPool>),
    /// It runs one method, which streams.
    Stream,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// The reply of this method, which is called by `call`.
    Reply(u32),
    /// The reply of an upload, or that a call may begin.
    Answer,
    /// Chunks and pushes, or that the peer takes some.
    Flow,
}

/// A pool of workers, as a call asks it.
pub(crate) trait WorkerPool: Send + Sync {
    /// Whether a call of this method, over this connection, waits for the worker that makes it. That one serves a call
    /// of this process itself, or of another.
    fn waits_for_itself(&self, connection: ConnectionId, method: u32, serves_own: bool) -> bool;
}

/// The role of this thread, until this is dropped.
pub(crate) struct RoleGuard {
    before: Option<ThreadRole>,
}

impl RoleGuard {
    /// The thread drives a connection.
    pub(crate) fn driver(connection: Option<ConnectionId>, timeout: Duration) -> Self {
        Self::enter(Work::Driver(connection), timeout)
    }

    /// The thread is a worker.
    pub(crate) fn worker(pool: Weak<dyn WorkerPool>, timeout: Duration) -> Self {
        Self::enter(Work::Worker(pool), timeout)
    }

    /// The thread was started for one method.
    pub(crate) fn stream(timeout: Duration) -> Self {
        Self::enter(Work::Stream, timeout)
    }

    fn enter(work: Work, timeout: Duration) -> Self {
        let before = ROLE.replace(Some(ThreadRole { work, timeout }));
        update();
        Self { before }
    }
}

impl Drop for RoleGuard {
    fn drop(&mut self) {
        ROLE.replace(self.before.take());
        update();
    }
}

/// The deadline of the call that this thread's method was called with, until this is dropped.
pub(crate) struct DeadlineGuard {
    before: Option<Instant>,
}

impl DeadlineGuard {
    /// Sets a deadline, if there is one.
    #[inline]
    pub(crate) fn set(deadline: Option<Instant>) -> Option<Self> {
        deadline.map(Self::enter)
    }

    #[cold]
    fn enter(deadline: Instant) -> Self {
        let before = DEADLINE.get();
        // A method may serve connections of its own: what it was called with holds for them as well.
        DEADLINE.set(Some(before.map_or(deadline, |before| before.min(deadline))));
        update();
        Self { before }
    }
}

impl Drop for DeadlineGuard {
    fn drop(&mut self) {
        DEADLINE.set(self.before);
        update();
    }
}

fn update() {
    NESTED.set(DEADLINE.get().is_some() || ROLE.with_borrow(Option::is_some));
}

/// This worker serves a call of this process itself, or of another.
pub(crate) fn set_serves_own(own: bool) {
    SERVES_OWN.set(own);
}

/// Whether this thread runs methods, so that [`limit`] and the others have anything to say.
#[inline]
pub(crate) fn is_nested() -> bool {
    NESTED.get()
}

/// Whether this thread drives a connection.
pub(crate) fn is_driver() -> bool {
    is_nested() && ROLE.with_borrow(|role| matches!(role, Some(ThreadRole { work: Work::Driver(_), .. })))
}

/// The deadline of the call that this thread's method was called with.
pub(crate) fn deadline() -> Option<Instant> {
    if is_nested() { DEADLINE.get() } else { None }
}

/// How long this thread may wait that would wait so long.
#[inline]
pub(crate) fn limit(wait: Wait, awaited: Awaited) -> Wait {
    if is_nested() { limit_nested(wait, awaited) } else { wait }
}

#[cold]
fn limit_nested(wait: Wait, awaited: Awaited) -> Wait {
    let Wait::Deadline(own) = wait else { return wait };
    let deadline = match (own, DEADLINE.get()) {
        (Some(own), Some(inherited)) => Some(own.min(inherited)),
        (own, inherited) => own.or(inherited),
    };
    let timeout = || {
        ROLE.with_borrow(|role| match role {
            Some(ThreadRole { work: Work::Stream, .. }) if awaited == Awaited::Flow => None,
            Some(ThreadRole { timeout, .. }) => Instant::now().checked_add(*timeout),
            None => None,
        })
    };
    Wait::Deadline(deadline.or_else(timeout))
}

/// Whether a wait over this connection could only be ended by this thread itself.
#[cold]
pub(crate) fn waits_for_itself(connection: Option<ConnectionId>, awaited: Awaited) -> bool {
    let Some(connection) = connection else { return false };
    ROLE.with_borrow(|role| match (role.as_ref().map(|kind| &kind.work), awaited) {
        (Some(Work::Driver(driven)), _) => *driven == Some(connection),
        (Some(Work::Worker(pool)), Awaited::Reply(method)) => {
            let serves_own = SERVES_OWN.get();
            pool.upgrade().is_some_and(|pool| pool.waits_for_itself(connection, method, serves_own))
        }
        _ => false,
    })
}
