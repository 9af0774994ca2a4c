//! The state that all threads of a server share.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::activity::ServerActivity;
use super::methods::{Method, Methods};
use super::session::{Connection, ProcessId, Session};
use super::stats::ServerStats;
use super::workers::{self, JobQueue, QueueLimits};
use crate::channel::{Closer, ConnectionId, ForkGuard};
use crate::error::{ConnectionError, HandlerError};
use crate::options::Options;
use crate::rpc::nesting;

pub(super) type OnConnect = dyn Fn(&Connection) -> Result<(), HandlerError> + Send + Sync;
pub(super) type OnDisconnect = dyn Fn(&Connection, ConnectionError) + Send + Sync;

/// The callbacks of the program.
#[derive(Clone, Default)]
pub(super) struct Callbacks {
    pub(super) connect: Option<Arc<OnConnect>>,
    pub(super) disconnect: Option<Arc<OnDisconnect>>,
}

/// The limits of a server. A limit for one process that is not set follows from the limit for all.
#[derive(Clone, Copy)]
pub(super) struct ServerLimits {
    pub(super) workers: usize,
    pub(super) workers_per_process: Option<usize>,
    pub(super) queue: usize,
    pub(super) connections: usize,
    pub(super) connections_per_process: Option<usize>,
    pub(super) streams: usize,
    /// How long a method waits for a call that it makes, where neither has a deadline.
    pub(super) nested_timeout: Duration,
}

impl ServerLimits {
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            queue: self.queue,
            queue_per_process: (self.queue / 2).max(1),
            workers: self.workers,
            workers_per_process: self.workers_per_process.unwrap_or(self.workers).clamp(1, self.workers),
        }
    }

    /// Returns how many threads the pool has: one more than workers, for other processes while one process occupies
    /// all workers. With one worker there is no such thread, since no two methods run at once. With a bound for each
    /// process there is none either, since the bound leaves workers for others.
    fn threads(&self) -> usize {
        self.workers + usize::from(self.workers > 1 && self.workers_per_process.is_none())
    }

    /// Returns how many connections a process may have.
    fn connections_of(&self, process: ProcessId) -> usize {
        match self.connections_per_process {
            Some(connections) => connections,
            None if process.is_own() => usize::MAX,
            None => self.connections.div_ceil(2),
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: cpus.max(4),
            workers_per_process: None,
            queue: 1024,
            connections: 1024,
            connections_per_process: None,
            streams: 32,
            nested_timeout: Duration::from_secs(30),
        }
    }
}

/// The state of a server.
pub(super) struct ServerState {
    /// Detects a fork of the process that made the server. A fork has none of its threads, and its locks may be held.
    fork_guard: ForkGuard,
    pub(super) options: Options,
    pub(super) methods: Methods,
    pub(super) callbacks: Callbacks,
    pub(super) limits: ServerLimits,
    pub(super) queue: Arc<JobQueue>,
    /// The server has stopped: no connection is accepted.
    stopped: AtomicBool,
    /// The number of connections with a thread, by process.
    processes: Mutex<HashMap<ProcessId, usize>>,
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    /// The number of connections with a thread, including those in the handshake.
    open: AtomicUsize,
    connection_closed: Condvar,
    pub(super) activity: Arc<ServerActivity>,
    /// The id of the next connection.
    next: AtomicU64,
}

impl ServerState {
    pub(super) fn new(
        options: Options,
        methods: Methods,
        callbacks: Callbacks,
        limits: ServerLimits,
    ) -> io::Result<Arc<Self>> {
        let state = Arc::new(Self {
            fork_guard: ForkGuard::new()?,
            options,
            methods,
            callbacks,
            limits,
            queue: Arc::new(JobQueue::new(limits.limits())),
            stopped: AtomicBool::new(false),
            processes: Mutex::default(),
            sessions: Mutex::default(),
            open: AtomicUsize::new(0),
            connection_closed: Condvar::new(),
            activity: Arc::default(),
            next: AtomicU64::new(1),
        });
        let pool: Weak<dyn nesting::WorkerPool> = Arc::<Self>::downgrade(&state);
        workers::start(limits.threads(), &state.queue, &pool, limits.nested_timeout)?;
        Ok(state)
    }

    /// Begins no call any more, and lets connections end that have nothing under way.
    pub(super) fn drain(&self) {
        self.activity.drain();
        self.sessions.lock().values().for_each(|session| session.connection.notify_driver());
    }

    /// Waits until no connection is open and no notification of a former one is left, until the deadline at most.
    pub(super) fn wait_until_idle(&self, deadline: Option<Instant>) {
        if self.wait_until_closed(deadline) {
            self.queue.wait_until_notified(deadline);
        }
    }

    fn wait_until_closed(&self, deadline: Option<Instant>) -> bool {
        let mut sessions = self.sessions.lock();
        while self.open.load(Ordering::Relaxed) > 0 {
            match deadline {
                None => self.connection_closed.wait(&mut sessions),
                Some(deadline) if self.connection_closed.wait_until(&mut sessions, deadline).timed_out() => {
                    return false;
                }
                Some(_) => {}
            }
        }
        true
    }

    /// Returns whether this is the process that made the server, and not a fork of it.
    pub(super) fn same_process(&self) -> bool {
        self.fork_guard.same_process()
    }

    /// Closes every connection, and lets the workers end. Does nothing in a forked child.
    pub(super) fn stop(&self) {
        if !self.same_process() {
            return;
        }
        self.activity.drain();
        // Before the list is read: a session that is registered later finds this flag.
        self.stopped.store(true, Ordering::Relaxed);
        self.queue.close();
        // A close may write to the program's log, which may call `stats`, so the lock is not held.
        let closers: Vec<_> = self.sessions.lock().values().map(|session| session.handle.closer()).collect();
        closers.iter().for_each(Closer::close);
    }

    /// Returns the number of calls that are not over, of all connections.
    pub(super) fn in_flight(&self) -> usize {
        self.sessions
            .lock()
            .values()
            .map(|session| session.connection.with_calls(|calls| calls.in_flight()))
            .sum()
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        if !self.same_process() {
            return Vec::new(); // A thread that the fork does not have may hold the lock.
        }
        self.sessions.lock().values().map(Connection::new).collect()
    }

    pub(super) fn stats(&self) -> ServerStats {
        if !self.same_process() {
            return ServerStats::default();
        }
        let (counts, sessions) = (&self.activity.counts, self.sessions.lock());
        let inline: u64 = sessions.values().map(|session| session.connection.inline_answered()).sum();
        let former = *counts.waits.lock();
        let waits = sessions.values().fold(former, |sum, session| sum.and_waits(session.stats()));
        ServerStats {
            connections: sessions.len(),
            accepted: counts.accepted.get(),
            refused: counts.refused.get(),
            violated: counts.violated.get(),
            died: counts.died.get(),
            calls: counts.calls.get() + inline,
            failed: counts.failed.get(),
            panicked: counts.panicked.get(),
            busy: counts.busy.get(),
            running: self.activity.running.load(Ordering::Relaxed),
            sending: waits.sending,
            receiving: waits.receiving,
            full_stalls: waits.full_stalls,
            peak_fill: waits.peak_fill,
        }
    }

    /// Lists a connection whose client was admitted.
    pub(super) fn register(&self, session: &Arc<Session>) {
        self.sessions.lock().insert(session.id, Arc::clone(session));
    }

    /// Counts one more connection of a process. Returns false if the process has as many as it may.
    pub(super) fn admit_process(&self, process: ProcessId) -> bool {
        let mut processes = self.processes.lock();
        let count = processes.entry(process).or_default();
        let fits = *count < self.limits.connections_of(process);
        *count += usize::from(fits);
        fits
    }

    /// Counts one connection of a process less.
    pub(super) fn release_process(&self, process: ProcessId) {
        let mut processes = self.processes.lock();
        if let Some(count) = processes.get_mut(&process) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                processes.remove(&process);
            }
        }
    }

    /// Counts one open connection more, and returns how many there were.
    pub(super) fn count_connection(&self) -> usize {
        self.open.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns an id that no other connection has.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns whether the server has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Counts one open connection less, which came to nothing.
    pub(super) fn release_connection(&self) {
        let _sessions = self.sessions.lock();
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.connection_closed.notify_all();
    }

    /// Removes a connection that has ended, or came to nothing.
    pub(super) fn unregister(&self, id: u64, process: ProcessId) {
        self.release_process(process);
        self.queue.remove_connection(process, id);
        let removed; // Dropped after the list is unlocked: it may hold state of the user's.
        let mut sessions = self.sessions.lock();
        removed = sessions.remove(&id);
        if let Some(session) = &removed {
            self.activity.counts.calls.add_many(session.connection.inline_answered());
            let mut waits = self.activity.counts.waits.lock();
            *waits = waits.and_waits(session.stats());
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.connection_closed.notify_all();
    }
}

impl nesting::WorkerPool for ServerState {
    /// Returns true for a method of the pool of this server if no other worker may serve a call of this process. That
    /// is so if there is one worker. It is also so if this process may occupy only one, and the call that the calling
    /// worker serves counts for this process. With more workers, no single call can know.
    fn waits_for_itself(&self, connection: ConnectionId, method: u32, serves_own: bool) -> bool {
        let share = self.limits.limits().workers_per_process;
        let only = self.limits.workers == 1 || (share == 1 && serves_own);
        let pooled = || self.methods.find(method, 0).is_ok_and(Method::is_pooled);
        let own = || self.sessions.lock().values().any(|session| session.handle.id() == Some(connection));
        only && pooled() && own()
    }
}
