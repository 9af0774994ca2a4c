//! Limits for the calls that a method makes: its deadline, its role, and waits that only its own thread could end.
//!
//! ```text
//!   server: a thread runs a method        sets   its role, and the deadline of the call that it runs
//!   client: the method makes a call       asks   `limit` for its wait, `waits_for_itself`, `deadline` to send along
//! ```
//!
//! # Invariants
//!
//! 1. A call that a method makes ends no later than the call that the method serves. Threads that the method starts
//!    have no such limit.
//! 2. A thread on which other calls depend does not wait without a deadline. Such a thread is a connection driver:
//!    the calls that it would serve may be those that end the wait, over any number of processes. It is also a
//!    worker, since the pool has a limited number of them. A method with a thread of its own waits without a deadline
//!    for chunks and pushes alone: no other call needs its thread, and a stream that it forwards may be silent for
//!    long.
//! 3. A wait that only the waiting thread could end is detected before it begins. That is a call over the connection
//!    that this thread drives, and a call of a method of the pool if this thread is the only worker that could run
//!    it.
//!
//! # Proof
//!
//! `tests/rpc/deadlocks.rs`.

use std::cell::{Cell, RefCell};
use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::channel::{ConnectionId, Wait};

thread_local! {
    /// Whether `ROLE` or `DEADLINE` is set. Calls outside of methods read this flag alone.
    static NESTED: Cell<bool> = const { Cell::new(false) };
    static ROLE: RefCell<Option<ThreadRole>> = const { RefCell::new(None) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Whether the call that this worker serves was made by this process itself.
    static SERVES_OWN: Cell<bool> = const { Cell::new(false) };
}

/// What a thread does for a server, and how long it waits where it has no deadline.
struct ThreadRole {
    work: Work,
    timeout: Duration,
}

enum Work {
    /// The thread receives for this connection, and runs inline methods.
    Driver(Option<ConnectionId>),
    /// The thread runs methods of this pool.
    Worker(Weak<dyn WorkerPool>),
    /// The thread runs one streaming, upload or duplex method.
    Stream,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// The reply of the method with this number, called by `call`.
    Reply(u32),
    /// The reply of an upload, or room to begin a call.
    Answer,
    /// Chunks and pushes, or room in the peer's window for them.
    Flow,
}

/// A pool of workers, as far as a call must know it.
pub(crate) trait WorkerPool: Send + Sync {
    /// Returns whether a call of this method, over this connection, would wait for the worker that makes it.
    /// `serves_own` says whether that worker serves a call of this process itself.
    fn waits_for_itself(&self, connection: ConnectionId, method: u32, serves_own: bool) -> bool;
}

/// Sets the role of this thread, until the guard is dropped.
pub(crate) struct RoleGuard {
    before: Option<ThreadRole>,
}

impl RoleGuard {
    /// Makes the thread the driver of a connection.
    pub(crate) fn driver(connection: Option<ConnectionId>, timeout: Duration) -> Self {
        Self::enter(Work::Driver(connection), timeout)
    }

    /// Makes the thread a worker of a pool.
    pub(crate) fn worker(pool: Weak<dyn WorkerPool>, timeout: Duration) -> Self {
        Self::enter(Work::Worker(pool), timeout)
    }

    /// Marks the thread as started for one method.
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

/// Sets the deadline of the call that this thread's method serves, until the guard is dropped.
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
        // A method may serve connections of its own: the deadline of the call that it serves holds for their calls as
        // well.
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

/// Notes whether the call that this worker serves was made by this process itself.
pub(crate) fn set_serves_own(own: bool) {
    SERVES_OWN.set(own);
}

/// Returns whether this thread has a role or a deadline, so that [`limit`] and [`waits_for_itself`] may restrict its
/// waits.
#[inline]
pub(crate) fn is_nested() -> bool {
    NESTED.get()
}

/// Returns whether this thread drives a connection.
pub(crate) fn is_driver() -> bool {
    is_nested() && ROLE.with_borrow(|role| matches!(role, Some(ThreadRole { work: Work::Driver(_), .. })))
}

/// Returns the deadline of the call that this thread's method serves.
pub(crate) fn deadline() -> Option<Instant> {
    if is_nested() { DEADLINE.get() } else { None }
}

/// Returns how long this thread may wait where it would wait for `wait`.
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

/// Returns whether only this thread itself could end a wait over this connection.
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
