//! What the method that runs on this thread means for the calls that the thread makes.
//!
//! ```text
//!   server: a thread runs a method        sets: its role, and the deadline of the call that it runs
//!   client: the method makes a call       asks: `limit` of its wait, `waits_for_itself`
//! ```
//!
//! # Invariants
//!
//! 1. A call that a method makes ends no later than the call that the method was called with. Threads that a method
//!    starts have no such limit.
//! 2. On a thread that drives a connection no call waits without a deadline: the calls that this thread has to read
//!    might be the ones that end the wait, over any number of processes.
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
    static ROLE: RefCell<Option<Kind>> = const { RefCell::new(None) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What a thread does for a server.
enum Kind {
    /// It reads for this connection, and runs inline methods; a call without any deadline gets this time.
    Driver { connection: Option<ConnectionId>, timeout: Duration },
    /// It runs methods of this pool.
    Worker(Weak<dyn Pool>),
}

/// A pool of workers, as a call asks it.
pub(crate) trait Pool: Send + Sync {
    /// Whether a call of this method, over this connection, waits for the worker that makes it.
    fn waits_for_itself(&self, connection: ConnectionId, method: u32) -> bool;
}

/// The role of this thread, until this is dropped.
pub(crate) struct Role {
    before: Option<Kind>,
}

impl Role {
    /// The thread drives a connection.
    pub(crate) fn driver(connection: Option<ConnectionId>, timeout: Duration) -> Self {
        Self::enter(Kind::Driver { connection, timeout })
    }

    /// The thread is a worker.
    pub(crate) fn worker(pool: Weak<dyn Pool>) -> Self {
        Self::enter(Kind::Worker(pool))
    }

    fn enter(kind: Kind) -> Self {
        let before = ROLE.replace(Some(kind));
        update();
        Self { before }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        ROLE.replace(self.before.take());
        update();
    }
}

/// The deadline of the call that this thread's method was called with, until this is dropped.
pub(crate) struct Deadline {
    before: Option<Instant>,
}

impl Deadline {
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

impl Drop for Deadline {
    fn drop(&mut self) {
        DEADLINE.set(self.before);
        update();
    }
}

fn update() {
    NESTED.set(DEADLINE.get().is_some() || ROLE.with_borrow(Option::is_some));
}

/// Whether this thread runs methods, so that [`limit`] and the others have anything to say.
#[inline]
pub(crate) fn is_nested() -> bool {
    NESTED.get()
}

/// Whether this thread drives a connection.
pub(crate) fn is_driver() -> bool {
    is_nested() && ROLE.with_borrow(|role| matches!(role, Some(Kind::Driver { .. })))
}

/// How long a call of this thread may wait that would wait so long.
#[inline]
pub(crate) fn limit(wait: Wait) -> Wait {
    if is_nested() { limit_nested(wait) } else { wait }
}

#[cold]
fn limit_nested(wait: Wait) -> Wait {
    let Wait::Until(own) = wait else { return wait };
    let until = match (own, DEADLINE.get()) {
        (Some(own), Some(inherited)) => Some(own.min(inherited)),
        (own, inherited) => own.or(inherited),
    };
    let timeout = || {
        ROLE.with_borrow(|role| match role {
            Some(Kind::Driver { timeout, .. }) => Instant::now().checked_add(*timeout),
            _ => None,
        })
    };
    Wait::Until(until.or_else(timeout))
}

/// Whether a wait for an answer over this connection could only be ended by this thread itself. Without a method it is
/// any answer that is waited for, or room.
#[cold]
pub(crate) fn waits_for_itself(connection: Option<ConnectionId>, method: Option<u32>) -> bool {
    let Some(connection) = connection else { return false };
    ROLE.with_borrow(|role| match role {
        Some(Kind::Driver { connection: driven, .. }) => *driven == Some(connection),
        Some(Kind::Worker(pool)) => method
            .is_some_and(|method| pool.upgrade().is_some_and(|it| it.waits_for_itself(connection, method))),
        None => false,
    })
}
