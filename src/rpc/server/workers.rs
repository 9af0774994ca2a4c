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
//! 2. A process that has as many workers as it may is in no turn. It gets a turn again when one of its calls ends.
//! 3. No more calls run than there are workers, except one more while a single process occupies all workers. One
//!    thread more than workers takes calls of other processes then. So the calls of one process may have all workers,
//!    and those of other processes need not wait until one of them ends.
//! 4. A call that may run wakes one thread, if one is idle. So does a process that gets a turn again, and a process
//!    that has come to occupy all workers.
//! 5. No more calls wait than the queue holds, and no more of one other process than its share.
//! 6. A queued notification is served even if its sender has gone, unless the server is stopped.
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

use super::activity::ServerActivity;
use super::connection::CallInfo;
use super::in_flight::CallFailure;
use super::methods::{self, Method, busy};
use super::request::Request;
use super::session::{CountGuard, ProcessId, Session};
use crate::channel::threads;
use crate::error::BusyReason;
use crate::rpc::wire::{NOTIFY, Status};
use crate::rpc::{fragment, nesting};

/// A call that waits for a worker.
pub(super) struct Job {
    pub(super) activity: Arc<ServerActivity>,
    pub(super) session: Arc<Session>,
    pub(super) method: Method,
    pub(super) call: CallInfo,
    pub(super) request: Vec<u8>,
    /// When the first frame of the call arrived, if the call has a deadline.
    pub(super) arrived: Option<Instant>,
}

/// The limits on the calls that wait and run.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    /// How many calls may wait.
    pub(super) queue: usize,
    /// How many calls of one process may wait, unless it is this process.
    pub(super) queue_per_process: usize,
    /// How many calls may run; one more while one process has that many.
    pub(super) workers: usize,
    /// How many calls of one process may run.
    pub(super) workers_per_process: usize,
}

/// The queue, as the workers and the connections share it.
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    /// Signalled when a call may be taken, or the queue is closed.
    ready: Condvar,
    /// Signalled when no notification waits or runs any more.
    notified: Condvar,
    /// The number of calls that wait, for workers that spin briefly before they sleep.
    waiting: AtomicUsize,
    limits: QueueLimits,
}

#[derive(Default)]
struct QueueState {
    processes: HashMap<ProcessId, ProcessQueue>,
    /// The processes of which a call may be taken.
    turns: VecDeque<ProcessId>,
    waiting: usize,
    running: usize,
    /// One process occupies all workers.
    occupied: bool,
    /// The number of notifications that wait or run.
    notifications: usize,
    closed: bool,
}

/// The calls of one process that wait, and the number of those that run.
#[derive(Default)]
struct ProcessQueue {
    connections: HashMap<u64, ConnectionQueue>,
    /// The connections of which a call waits.
    turns: VecDeque<u64>,
    waiting: usize,
    running: usize,
}

/// The calls of a connection that wait. The memory stays as long as the connection.
#[derive(Default)]
struct ConnectionQueue {
    jobs: VecDeque<Job>,
    /// The connection has ended.
    over: bool,
}

impl JobQueue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        let (ready, notified) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::default(), ready, notified, waiting: AtomicUsize::new(0), limits }
    }

    /// Queues a call for the workers.
    ///
    /// # Errors
    ///
    /// Why the call is not taken.
    pub(super) fn push(&self, job: Job) -> Result<(), CallFailure> {
        let (process, connection) = (job.session.process, job.session.id);
        let notification = job.call.flags & NOTIFY != 0;
        let mut state = self.state.lock();
        if state.closed {
            return Err((Status::ShuttingDown, 0, String::new()));
        }
        if state.waiting >= self.limits.queue {
            return Err(busy(BusyReason::Queue));
        }
        let queued = state.processes.entry(process).or_default();
        if !process.is_own() && queued.waiting >= self.limits.queue_per_process {
            return Err(busy(BusyReason::ProcessQueue));
        }
        let calls = queued.connections.entry(connection).or_default();
        calls.jobs.push_back(job);
        if calls.jobs.len() == 1 {
            queued.turns.push_back(connection);
        }
        queued.waiting += 1;
        let in_turn = queued.running < self.limits.workers_per_process;
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

    /// Blocks until a call is in turn, and takes it; returns `None` once the queue is closed. The call counts as
    /// running until [`on_job_done`](Self::on_job_done).
    fn wait_for_job(&self) -> Option<Job> {
        self.spin_briefly();
        let mut state = self.state.lock();
        loop {
            if let Some(job) = self.pop(&mut state) {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// Spins briefly for a call that waits: the next one often comes at once, and a wake-up costs more.
    fn spin_briefly(&self) {
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

    /// Returns whether one more call may run, of a process that is in turn.
    fn may_run(&self, state: &QueueState) -> bool {
        state.running < self.limits.workers || state.occupied
    }

    fn pop(&self, state: &mut QueueState) -> Option<Job> {
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
        if queued.waiting > 0 && queued.running < self.limits.workers_per_process {
            state.turns.push_back(process);
        }
        state.running += 1;
        if queued.running == self.limits.workers {
            state.occupied = true;
            if !state.turns.is_empty() {
                self.ready.notify_one(); // A call of another process may run now, on the extra thread.
            }
        }
        state.waiting -= 1;
        self.waiting.store(state.waiting, Ordering::Relaxed);
        Some(job)
    }

    /// Notes that a call that was taken has ended: another one of its process may run.
    fn on_job_done(&self, process: ProcessId, flags: u8) {
        let state = &mut *self.state.lock();
        let Some(queued) = state.processes.get_mut(&process) else { return };
        let back_in_turn = queued.waiting > 0 && queued.running == self.limits.workers_per_process;
        if queued.running == self.limits.workers {
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

    /// Forgets a connection that has ended, once its calls have been taken.
    pub(super) fn remove_connection(&self, process: ProcessId, connection: u64) {
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

    /// Waits until all queued notifications have been served, until the deadline at most.
    pub(super) fn wait_until_notified(&self, deadline: Option<Instant>) {
        let mut state = self.state.lock();
        while state.notifications > 0 && !state.closed {
            match deadline {
                None => self.notified.wait(&mut state),
                Some(deadline) if self.notified.wait_until(&mut state, deadline).timed_out() => return,
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
        drop(dropped); // After the lock is released: jobs hold sessions, and state of the user's.
    }
}

/// Starts this many threads. A call that a method makes on them without any deadline waits no longer than `timeout`.
pub(super) fn start(
    threads: usize,
    queue: &Arc<JobQueue>,
    pool: &Weak<dyn nesting::WorkerPool>,
    timeout: Duration,
) -> io::Result<()> {
    for _ in 0..threads {
        let (jobs, pool) = (Arc::clone(queue), Weak::clone(pool));
        threads::spawn("narrows-worker", move || run_worker(&jobs, pool, timeout))
            .inspect_err(|_| queue.close())?;
    }
    Ok(())
}

fn run_worker(queue: &JobQueue, pool: Weak<dyn nesting::WorkerPool>, timeout: Duration) {
    let _worker = nesting::RoleGuard::worker(pool, timeout);
    let mut reply = Vec::new();
    while let Some(job) = queue.wait_for_job() {
        let (process, flags) = (job.session.process, job.call.flags);
        nesting::set_serves_own(process.is_own());
        run_job(job, &mut reply);
        queue.on_job_done(process, flags);
    }
}

fn run_job(job: Job, reply: &mut Vec<u8>) {
    let Job { activity, session, method, call, request, arrived } = job;
    let running = (CountGuard::one(&activity.running), CountGuard(&session.running));
    let ran = session.is_wanted(call).then(|| {
        let asked = Request::private(&session, call, &request, arrived);
        let _deadline = nesting::DeadlineGuard::set(asked.deadline());
        methods::run_long(&method, &session, &asked, reply, &activity.counts)
    });
    // Before the answer: once the caller has that, its next request may arrive in this slot.
    session.connection.with_calls(|calls| calls.recycle(call.id, request));
    let Some(ran) = ran else { return };
    activity.counts.calls.add();
    drop(running); // Before the answer: a caller that has it must not find the method still running.
    methods::answer(&session, call, ran, reply);
    activity.on_answered(&session);
    fragment::clear(reply);
}
