//! What a server's threads share, and the front door.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::methods::Methods;
use super::peer::{Connection, Peer};
use super::pool::{self, Queue};
use super::serve::serve_counted;
use super::stats::{Counts, ServerStats};
use crate::channel::Closer;
use crate::error::{AcceptError, CallError, HandlerError, RejectCode};
use crate::events;
use crate::listener::SharedMemoryListener;
use crate::options::Options;
use crate::rpc::greeting;
use crate::stream::SharedMemoryStream;

pub(super) type OnConnect = dyn Fn(&Connection) -> Result<(), HandlerError> + Send + Sync;
pub(super) type OnDisconnect = dyn Fn(&Connection, CallError) + Send + Sync;

/// What the program wants to be told.
#[derive(Clone, Default)]
pub(super) struct Callbacks {
    pub(super) connect: Option<Arc<OnConnect>>,
    pub(super) disconnect: Option<Arc<OnDisconnect>>,
}

/// How many of what.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) workers: usize,
    pub(super) queue: usize,
    pub(super) connections: usize,
    pub(super) streams: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self { workers: cpus.max(4), queue: 1024, connections: 1024, streams: 32 }
    }
}

/// What all threads of a server share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) methods: Methods,
    pub(super) callbacks: Callbacks,
    pub(super) sizes: Sizes,
    pub(super) queue: Mutex<Option<Queue>>,
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
        let (queue, jobs) = Queue::new(sizes.queue);
        let shared = Arc::new(Self {
            options,
            methods,
            callbacks,
            sizes,
            queue: Mutex::new(Some(queue)),
            peers: Mutex::default(),
            open: AtomicUsize::new(0),
            gone: Condvar::new(),
            draining: AtomicBool::new(false),
            next: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            counts: Counts::default(),
        });
        pool::start(sizes.workers, &jobs, &Arc::downgrade(&shared))?;
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

    /// Waits until no connection is open, until the deadline at most.
    pub(super) fn wait_until_idle(&self, until: Option<Instant>) -> bool {
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

    /// Closes every connection, and lets the workers go when they have nothing to do.
    pub(super) fn stop(&self) {
        self.draining.store(true, Ordering::Relaxed);
        *self.queue.lock() = None;
        // A close may tell the program's log, which may ask for our statistics.
        let closers: Vec<_> = self.peers.lock().values().map(|peer| peer.line.closer()).collect();
        closers.iter().for_each(Closer::close);
    }

    /// Calls that are not over, of all connections.
    pub(super) fn in_flight(&self) -> usize {
        self.peers.lock().values().map(|peer| peer.hall.with(|table| table.in_flight())).sum()
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        self.peers.lock().values().map(Connection::new).collect()
    }

    pub(super) fn stats(&self) -> ServerStats {
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

    /// A connection has ended, or came to nothing.
    pub(super) fn leave(&self, id: u64) {
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

/// How long to wait when the machine has no descriptors or threads left.
const SHORT: Duration = Duration::from_millis(20);

/// Accepts clients until the listener is closed; each gets a thread.
pub(super) fn accept_all(shared: &Arc<Shared>, listener: &SharedMemoryListener) {
    loop {
        match listener.accept() {
            Ok(stream) => admit(shared, stream),
            Err(AcceptError::Closed | AcceptError::Forked) => return,
            // Without descriptors it fails at once, again and again.
            Err(_) => thread::sleep(SHORT),
        }
    }
}

/// Gives a fresh connection a thread, or sends it away.
pub(super) fn admit(shared: &Arc<Shared>, stream: SharedMemoryStream) {
    let open = shared.open.fetch_add(1, Ordering::Relaxed);
    if open >= shared.sizes.connections || shared.draining.load(Ordering::Relaxed) {
        shared.leave(0);
        return refuse(shared, stream);
    }
    let served = Arc::clone(shared);
    let seat = Arc::new(Mutex::new(Some(stream)));
    let taken = Arc::clone(&seat);
    let thread = thread::Builder::new().name("narrows-serve".into()).spawn(move || {
        if let Some(stream) = taken.lock().take() {
            let _told_by_on_disconnect = serve_counted(&served, stream);
        }
    });
    if thread.is_err() {
        shared.leave(0);
        if let Some(stream) = seat.lock().take() {
            refuse(shared, stream);
        }
    }
}

fn refuse(shared: &Shared, stream: SharedMemoryStream) {
    shared.counts.refused.add();
    let (pid, uid) = (stream.peer_cred().pid(), stream.peer_cred().uid());
    events::rejected(pid, uid, &"the server has as many clients as it takes, or is about to end");
    let mut ends = stream.into_ends();
    let _gone = greeting::refuse(&mut ends.outbound, RejectCode::Busy, "try again later");
}
