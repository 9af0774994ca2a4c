//! What a server's threads share, and the front door.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::methods::{Method, Methods};
use super::peer::{Connection, Peer, ProcessId};
use super::pool::{self, Bounds, Queue};
use super::serve::serve_counted;
use super::stats::{Counts, ServerStats};
use crate::channel::{Closer, ConnectionId, ForkGuard, threads};
use crate::error::{AcceptError, CallError, HandlerError, RejectCode};
use crate::events;
use crate::listener::SharedMemoryListener;
use crate::options::Options;
use crate::rpc::{greeting, nesting};
use crate::stream::SharedMemoryStream;

pub(super) type OnConnect = dyn Fn(&Connection) -> Result<(), HandlerError> + Send + Sync;
pub(super) type OnDisconnect = dyn Fn(&Connection, CallError) + Send + Sync;

/// What the program wants to be told.
#[derive(Clone, Default)]
pub(super) struct Callbacks {
    pub(super) connect: Option<Arc<OnConnect>>,
    pub(super) disconnect: Option<Arc<OnDisconnect>>,
}

/// How many of what. What is not said of a process follows from the whole.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) workers: usize,
    pub(super) workers_per_process: Option<usize>,
    pub(super) queue: usize,
    pub(super) connections: usize,
    pub(super) connections_per_process: Option<usize>,
    pub(super) streams: usize,
    /// How long a method waits for what it calls, without any deadline.
    pub(super) nested_timeout: Duration,
}

impl Sizes {
    fn bounds(&self) -> Bounds {
        Bounds {
            queue: self.queue,
            queue_per_process: (self.queue / 2).max(1),
            workers: self.workers,
            workers_per_process: self.workers_per_process.unwrap_or(self.workers).clamp(1, self.workers),
        }
    }

    /// How many threads the pool has: one more than workers, for the others while one process occupies all of these. With
    /// one worker no two methods run at once, and a bound that was chosen says what is left to others.
    fn threads(&self) -> usize {
        self.workers + usize::from(self.workers > 1 && self.workers_per_process.is_none())
    }

    /// How many connections a process may have.
    fn connections_of(&self, process: ProcessId) -> usize {
        match self.connections_per_process {
            Some(connections) => connections,
            None if process.is_own() => usize::MAX,
            None => self.connections.div_ceil(2),
        }
    }
}

impl Default for Sizes {
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

/// What all threads of a server share.
pub(super) struct Shared {
    /// The process that made it. A fork has none of its threads, and its locks may have been held meanwhile.
    canary: ForkGuard,
    pub(super) options: Options,
    pub(super) methods: Methods,
    pub(super) callbacks: Callbacks,
    pub(super) sizes: Sizes,
    pub(super) queue: Arc<Queue>,
    /// The server has stopped: no connection is welcomed.
    pub(super) stopped: AtomicBool,
    /// Connections with a thread, by process.
    processes: Mutex<HashMap<ProcessId, usize>>,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    /// Connections with a thread, those in mid-greeting included.
    pub(super) open: AtomicUsize,
    gone: Condvar,
    /// No call is admitted any more.
    pub(super) draining: AtomicBool,
    pub(super) next: AtomicU64,
    pub(super) running: AtomicUsize,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn new(
        options: Options,
        methods: Methods,
        callbacks: Callbacks,
        sizes: Sizes,
    ) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Self {
            canary: ForkGuard::new()?,
            options,
            methods,
            callbacks,
            sizes,
            queue: Arc::new(Queue::new(sizes.bounds())),
            stopped: AtomicBool::new(false),
            processes: Mutex::default(),
            peers: Mutex::default(),
            open: AtomicUsize::new(0),
            gone: Condvar::new(),
            draining: AtomicBool::new(false),
            next: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            counts: Counts::default(),
        });
        pool::start(sizes.threads(), &shared)?;
        Ok(shared)
    }

    /// Admits no call any more, and lets connections end that have nothing under way.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.peers.lock().values().for_each(|peer| peer.hall.nudge());
    }

    /// A method has answered, off its connection's thread: while the server drains, that one may leave now.
    pub(super) fn answered(&self, peer: &Peer) {
        if self.draining.load(Ordering::Relaxed) {
            peer.hall.nudge(); // It sleeps, and an answer that went straight out does not wake it.
        }
    }

    /// Waits until no connection is open and no notification of one that was is left, until the deadline at most.
    pub(super) fn wait_until_idle(&self, until: Option<Instant>) {
        if self.wait_until_closed(until) {
            self.queue.wait_until_notified(until);
        }
    }

    fn wait_until_closed(&self, until: Option<Instant>) -> bool {
        let mut peers = self.peers.lock();
        while self.open.load(Ordering::Relaxed) > 0 {
            match until {
                None => self.gone.wait(&mut peers),
                Some(until) if self.gone.wait_until(&mut peers, until).timed_out() => return false,
                Some(_) => {}
            }
        }
        true
    }

    /// Whether this is the process that made the server, and not a fork of it.
    pub(super) fn same_process(&self) -> bool {
        self.canary.same_process()
    }

    /// Closes every connection, and lets the workers go. Does nothing in a forked child.
    pub(super) fn stop(&self) {
        if !self.same_process() {
            return;
        }
        self.draining.store(true, Ordering::Relaxed);
        self.stopped.store(true, Ordering::Relaxed); // Before the list is read: who comes into it later, finds this.
        self.queue.close();
        // A close may tell the program's log, which may ask for our statistics.
        let closers: Vec<_> = self.peers.lock().values().map(|peer| peer.line.closer()).collect();
        closers.iter().for_each(Closer::close);
    }

    /// Calls that are not over, of all connections.
    pub(super) fn in_flight(&self) -> usize {
        self.peers.lock().values().map(|peer| peer.hall.with(|table| table.in_flight())).sum()
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        if !self.same_process() {
            return Vec::new(); // A thread that the fork does not have may hold the lock.
        }
        self.peers.lock().values().map(Connection::new).collect()
    }

    pub(super) fn stats(&self) -> ServerStats {
        if !self.same_process() {
            return ServerStats::default();
        }
        let (counts, peers) = (&self.counts, self.peers.lock());
        let inline: u64 = peers.values().map(|peer| peer.hall.answered()).sum();
        let gone = *counts.waits.lock();
        let waits = peers.values().fold(gone, |sum, peer| sum.and_waits(peer.stats()));
        ServerStats {
            connections: peers.len(),
            accepted: counts.accepted.get(),
            refused: counts.refused.get(),
            violated: counts.violated.get(),
            died: counts.died.get(),
            calls: counts.calls.get() + inline,
            failed: counts.failed.get(),
            panicked: counts.panicked.get(),
            busy: counts.busy.get(),
            running: self.running.load(Ordering::Relaxed),
            sending: waits.sending,
            receiving: waits.receiving,
            full_stalls: waits.full_stalls,
            peak_fill: waits.peak_fill,
        }
    }

    /// Lists a connection that was let in.
    pub(super) fn enter(&self, peer: &Arc<Peer>) {
        self.peers.lock().insert(peer.id, Arc::clone(peer));
    }

    /// Counts one more connection of a process; false if it has as many as it may.
    pub(super) fn open_one(&self, process: ProcessId) -> bool {
        let mut processes = self.processes.lock();
        let count = processes.entry(process).or_default();
        let fits = *count < self.sizes.connections_of(process);
        *count += usize::from(fits);
        fits
    }

    /// A connection that was counted has ended.
    fn close_one(&self, process: ProcessId) {
        let mut processes = self.processes.lock();
        if let Some(count) = processes.get_mut(&process) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                processes.remove(&process);
            }
        }
    }

    /// A connection that was opened came to nothing.
    fn close_uncounted(&self) {
        let _peers = self.peers.lock();
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.gone.notify_all();
    }

    /// A connection has ended, or came to nothing.
    pub(super) fn leave(&self, id: u64, process: ProcessId) {
        self.close_one(process);
        self.queue.leave(process, id);
        let gone; // Dropped when the list is free again: it may hold a state of the user's.
        let mut peers = self.peers.lock();
        gone = peers.remove(&id);
        if let Some(peer) = &gone {
            self.counts.calls.add_many(peer.hall.answered());
            let mut waits = self.counts.waits.lock();
            *waits = waits.and_waits(peer.stats());
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.gone.notify_all();
    }
}

impl nesting::Pool for Shared {
    /// That is so for a method of the pool, if no other worker may serve a call of this process: there is one, or this
    /// process may occupy one, and the call that this one serves counts for it. With more of them no single call can
    /// know.
    fn waits_for_itself(&self, connection: ConnectionId, method: u32, serves_own: bool) -> bool {
        let share = self.sizes.bounds().workers_per_process;
        let only = self.sizes.workers == 1 || (share == 1 && serves_own);
        let pooled = || self.methods.find(method, 0).is_ok_and(Method::is_pooled);
        let own = || self.peers.lock().values().any(|peer| peer.line.id() == Some(connection));
        only && pooled() && own()
    }
}

/// How long to wait when the machine has no descriptors or threads left.
const SHORT: Duration = Duration::from_millis(20);

/// Accepts clients until the listener is closed; each gets a thread. It is an error if the program closed its descriptors.
pub(super) fn accept_all(shared: &Arc<Shared>, listener: &SharedMemoryListener) -> Result<(), AcceptError> {
    loop {
        match listener.accept() {
            Ok(stream) => admit(shared, stream),
            Err(AcceptError::Closed | AcceptError::Forked) => return Ok(()),
            Err(error @ AcceptError::DescriptorsClosed) => return Err(error),
            // Without descriptors it fails at once, again and again.
            Err(_) => thread::sleep(SHORT),
        }
    }
}

/// Gives a fresh connection a thread, or sends it away.
pub(super) fn admit(shared: &Arc<Shared>, stream: SharedMemoryStream) {
    if !shared.same_process() {
        return;
    }
    let process = ProcessId::of(stream.peer_cred());
    let open = shared.open.fetch_add(1, Ordering::Relaxed);
    if open >= shared.sizes.connections || shared.draining.load(Ordering::Relaxed) {
        shared.close_uncounted();
        return refuse(shared, stream, FULL);
    }
    if !shared.open_one(process) {
        shared.close_uncounted();
        let outside = stream.peer_cred().pid() == 0;
        return refuse(shared, stream, if outside { TOO_MANY_OUTSIDE } else { TOO_MANY });
    }
    let served = Arc::clone(shared);
    let seat = Arc::new(Mutex::new(Some(stream)));
    let taken = Arc::clone(&seat);
    let thread = threads::spawn("narrows-serve", move || {
        if let Some(stream) = taken.lock().take() {
            let _told_by_on_disconnect = serve_counted(&served, stream);
        }
    });
    if let Err(error) = thread {
        shared.close_one(process);
        shared.close_uncounted();
        if let Some(stream) = seat.lock().take() {
            let reason = ("the server has no thread for it: try again later", format!("no thread: {error}"));
            refuse(shared, stream, (reason.0, &reason.1));
        }
    }
}

/// Why a client is refused: what it is sent, and what is logged.
type Reason<'a> = (&'a str, &'a str);

const FULL: Reason<'_> =
    ("try again later", "the server has as many clients as it takes, or is about to end");
const TOO_MANY: Reason<'_> =
    ("this process has as many connections as it may", "its process has as many connections as it may");

/// The processes of one user that the server's pid namespace does not show count as one.
const TOO_MANY_OUTSIDE: Reason<'_> = (
    "processes outside the server's pid namespace share one limit",
    "the processes of its user outside of the pid namespace together have as many connections as one may",
);

fn refuse(shared: &Shared, stream: SharedMemoryStream, (text, logged): Reason<'_>) {
    shared.counts.refused.add();
    let (pid, uid) = (stream.peer_cred().pid(), stream.peer_cred().uid());
    events::rejected(pid, uid, &logged);
    let mut ends = stream.into_ends();
    let _gone = greeting::refuse(&mut ends.outbound, RejectCode::Busy, text);
}
