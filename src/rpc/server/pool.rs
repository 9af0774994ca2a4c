//! The workers: threads that run methods, one call at a time each, and the queue in front of them.
//!
//! ```text
//!   turns of processes      each: turns of its connections      each: its calls, in order
//!     pid 7  ───────────────▶ connection 1 ────────────────────▶ call, call, call
//!       │                     connection 4 ────────────────────▶ call
//!     pid 9  ───────────────▶ connection 2 ────────────────────▶ call, call
//! ```
//!
//! # Invariants
//!
//! 1. A free worker takes the oldest call of the connection whose turn it is, of the process whose turn it is.
//! 2. A process that has as many workers as it may is in no turn, and comes into it again when one of its calls ends.
//! 3. No more calls run than there are workers, but for one while a single process occupies all of these: a thread more
//!    than workers takes calls of the others then. So the calls of one process have all workers, and those of the others
//!    need not wait until one of them ends.
//! 4. A call that may run wakes one thread, if one is idle; so does a process that comes into turn again, and one that
//!    comes to occupy all workers.
//! 5. No more calls wait than the queue holds, and of one process no more than its share.
//! 6. A notification that was put is served though its sender is gone, unless the server is stopped.
//!
//! # Proof
//!
//! `tests/rpc/bounds.rs`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{hint, mem, thread};

use parking_lot::{Condvar, Mutex};

use super::attendant::Started;
use super::methods::{self, Method};
use super::peer::{Peer, ProcessId, Running};
use super::request::Request;
use super::service::Shared;
use crate::channel::threads;
use crate::rpc::wire::NOTIFY;
use crate::rpc::{nesting, pieces};

/// A call that waits for a worker.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
    pub(super) method: Method,
    pub(super) started: Started,
    pub(super) request: Vec<u8>,
    /// When its first frame came, if it has a deadline.
    pub(super) arrived: Option<Instant>,
}

/// What bounds the calls that wait and run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Calls that may wait.
    pub(super) queue: usize,
    /// Those of one process, unless it is this one.
    pub(super) queue_per_process: usize,
    /// Calls that may run, unless those of one process are so many.
    pub(super) workers: usize,
    /// Calls of one process that may run.
    pub(super) workers_per_process: usize,
}

/// The queue, as the workers and the connections share it.
pub(super) struct Queue {
    state: Mutex<State>,
    /// A call may be taken, or the queue is closed.
    ready: Condvar,
    /// No notification waits or runs any more.
    notified: Condvar,
    /// Calls that wait, for workers that look a few times before they sleep.
    waiting: AtomicUsize,
    bounds: Bounds,
}

#[derive(Default)]
struct State {
    processes: HashMap<ProcessId, Process>,
    /// Processes of which a call may be taken.
    turns: VecDeque<ProcessId>,
    waiting: usize,
    running: usize,
    /// One process occupies all workers.
    occupied: bool,
    /// Notifications that wait or run.
    notifications: usize,
    closed: bool,
}

/// What waits and runs of one process.
#[derive(Default)]
struct Process {
    connections: HashMap<u64, Calls>,
    /// Connections of which a call waits.
    turns: VecDeque<u64>,
    waiting: usize,
    running: usize,
}

/// The calls of a connection that wait. The memory stays as long as the connection.
#[derive(Default)]
struct Calls {
    jobs: VecDeque<Job>,
    /// The connection has ended.
    over: bool,
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (ready, notified) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::default(), ready, notified, waiting: AtomicUsize::new(0), bounds }
    }

    /// Leaves a call to the workers.
    ///
    /// # Errors
    ///
    /// Why it is not taken.
    pub(super) fn put(&self, job: Job) -> Result<(), &'static str> {
        let (process, connection) = (job.peer.process, job.peer.id);
        let notification = job.started.flags & NOTIFY != 0;
        let mut state = self.state.lock();
        if state.closed {
            return Err("the server is about to end");
        }
        if state.waiting >= self.bounds.queue {
            return Err("too many calls wait for a worker");
        }
        let queued = state.processes.entry(process).or_default();
        if !process.is_own() && queued.waiting >= self.bounds.queue_per_process {
            return Err("too many calls of this client's process wait for a worker");
        }
        let calls = queued.connections.entry(connection).or_default();
        calls.jobs.push_back(job);
        if calls.jobs.len() == 1 {
            queued.turns.push_back(connection);
        }
        queued.waiting += 1;
        let in_turn = queued.running < self.bounds.workers_per_process;
        if in_turn && queued.waiting == 1 {
            state.turns.push_back(process);
        }
        state.waiting += 1;
        state.notifications += usize::from(notification);
        self.waiting.store(state.waiting, Ordering::Relaxed);
        let wakes = in_turn && self.may_run(&state);
        drop(state);
        if wakes {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// The next call in turn; `None` once the queue is closed. It counts as running until it is [`done`](Self::done).
    fn take(&self) -> Option<Job> {
        self.glance();
        let mut state = self.state.lock();
        loop {
            if let Some(job) = self.next(&mut state) {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// Looks a few times whether a call waits: the next one often comes at once, and waking costs more.
    fn glance(&self) {
        for round in 0..10_u32 {
            if self.waiting.load(Ordering::Relaxed) > 0 {
                return;
            }
            match round {
                0..=6 => (0..1_u32 << round).for_each(|_| hint::spin_loop()),
                _ => thread::yield_now(),
            }
        }
    }

    /// Whether one call more may run, of a process that is in turn.
    fn may_run(&self, state: &State) -> bool {
        state.running < self.bounds.workers || state.occupied
    }

    fn next(&self, state: &mut State) -> Option<Job> {
        if !self.may_run(state) {
            return None;
        }
        let process = state.turns.pop_front()?;
        let queued = state.processes.get_mut(&process)?;
        let connection = queued.turns.pop_front()?;
        let calls = queued.connections.get_mut(&connection)?;
        let job = calls.jobs.pop_front()?;
        match (calls.jobs.is_empty(), calls.over) {
            (false, _) => queued.turns.push_back(connection),
            (true, true) => drop(queued.connections.remove(&connection)),
            (true, false) => {}
        }
        queued.waiting -= 1;
        queued.running += 1;
        if queued.waiting > 0 && queued.running < self.bounds.workers_per_process {
            state.turns.push_back(process);
        }
        state.running += 1;
        if queued.running == self.bounds.workers {
            state.occupied = true;
            if !state.turns.is_empty() {
                self.ready.notify_one(); // What waits may run from now on, on the thread for the others.
            }
        }
        state.waiting -= 1;
        self.waiting.store(state.waiting, Ordering::Relaxed);
        Some(job)
    }

    /// A call that was taken has ended: another one of its process may run.
    fn done(&self, process: ProcessId, flags: u8) {
        let state = &mut *self.state.lock();
        let Some(queued) = state.processes.get_mut(&process) else { return };
        let back_in_turn = queued.waiting > 0 && queued.running == self.bounds.workers_per_process;
        if queued.running == self.bounds.workers {
            state.occupied = false;
        }
        queued.running -= 1;
        state.running -= 1;
        if queued.connections.is_empty() && queued.running == 0 {
            state.processes.remove(&process);
        }
        if back_in_turn {
            state.turns.push_back(process);
            if self.may_run(state) {
                self.ready.notify_one();
            }
        }
        if flags & NOTIFY != 0 {
            state.notifications = state.notifications.saturating_sub(1);
            if state.notifications == 0 {
                self.notified.notify_all();
            }
        }
    }

    /// A connection has ended: it is forgotten once its calls have been taken.
    pub(super) fn leave(&self, process: ProcessId, connection: u64) {
        let mut state = self.state.lock();
        let Some(queued) = state.processes.get_mut(&process) else { return };
        match queued.connections.get_mut(&connection) {
            Some(calls) if !calls.jobs.is_empty() => calls.over = true,
            _ => drop(queued.connections.remove(&connection)),
        }
        if queued.connections.is_empty() && queued.running == 0 {
            state.processes.remove(&process);
        }
    }

    /// Waits until all notifications that were put have been served, until the deadline at most.
    pub(super) fn wait_until_notified(&self, until: Option<Instant>) {
        let mut state = self.state.lock();
        while state.notifications > 0 && !state.closed {
            match until {
                None => self.notified.wait(&mut state),
                Some(until) if self.notified.wait_until(&mut state, until).timed_out() => return,
                Some(_) => {}
            }
        }
    }

    /// Takes no call any more, and drops those that wait. The workers end.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.turns.clear();
        state.waiting = 0;
        let mut dropped = Vec::new();
        for queued in state.processes.values_mut() {
            queued.turns.clear();
            queued.waiting = 0;
            dropped.push(mem::take(&mut queued.connections));
        }
        self.waiting.store(0, Ordering::Relaxed);
        drop(state);
        self.ready.notify_all();
        self.notified.notify_all();
        drop(dropped); // They hold connections, and states of the user's.
    }
}

/// Starts so many threads.
pub(super) fn start(threads: usize, shared: &Arc<Shared>) -> io::Result<()> {
    let timeout = shared.sizes.nested_timeout;
    for _ in 0..threads {
        let (queue, pool) = (Arc::clone(&shared.queue), Arc::downgrade(shared));
        threads::spawn("narrows-worker", move || work(&queue, pool, timeout))
            .inspect_err(|_| shared.queue.close())?;
    }
    Ok(())
}

fn work(queue: &Queue, pool: Weak<Shared>, timeout: Duration) {
    let _worker = nesting::Role::worker(pool, timeout);
    let mut reply = Vec::new();
    while let Some(job) = queue.take() {
        let (process, flags) = (job.peer.process, job.started.flags);
        nesting::serve(process.is_own());
        run(job, &mut reply);
        queue.done(process, flags);
    }
}

fn run(job: Job, reply: &mut Vec<u8>) {
    let Job { shared, peer, method, started, request, arrived } = job;
    let running = (Running::one(&shared.running), Running(&peer.running));
    let ran = peer.is_wanted(started).then(|| {
        let asked = Request::private(&peer, started, &request, arrived);
        let _deadline = nesting::Deadline::set(asked.deadline());
        methods::run_long(&method, &peer, &asked, reply, &shared.counts)
    });
    // Before the answer: once the caller has that, its next request may come into this place.
    peer.hall.with(|table| table.recycle(started.id, request));
    let Some(ran) = ran else { return };
    shared.counts.calls.add();
    drop(running); // Who has its answer finds that it does not run any more.
    methods::answer(&peer, started, ran, reply);
    shared.answered(&peer);
    pieces::clear(reply);
}
