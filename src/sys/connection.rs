//! One connection, as this process holds it: the pages, the socket, and what became of it.
//!
//! Everything here but the pages is private memory: the peer cannot write the fate, the counters or
//! the canary.
//!
//! # Invariants
//!
//! 1. The fate is written once: the first verdict stays.
//! 2. After a fork the child finds the canary wiped and touches no page of the region, which is not
//!    mapped there.
//! 3. The socket is open exactly as long as the link: its hang-up tells the peer that we are gone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::foreign::PeerSocket;
use super::fork_guard::ForkGuard;
use super::lifeline::{self, MonitorHandle, PeerExit, Watched};
use super::mapping::Mapping;
use super::pidfd::Pidfd;
use super::region::Region;
use super::socket::PeerCred;
use super::wait_counters::WaitCounters;
use crate::events;
use crate::layout::{Geometry, words};
use crate::mem::{Load, Memory, Word};

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Sends in direction 0.
    Client,
    /// Sends in direction 1.
    Server,
}

impl Side {
    /// The direction in which this side sends.
    pub(crate) fn outgoing(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// What a connection is made of, once both sides agree.
#[derive(Debug)]
pub(crate) struct ConnectionParts {
    pub(crate) region: Region,
    pub(crate) socket: PeerSocket,
    pub(crate) geometry: Geometry,
    pub(crate) side: Side,
    pub(crate) cred: PeerCred,
    pub(crate) peer: Option<Arc<Pidfd>>,
    pub(crate) first_ticket: u64,
    pub(crate) max_message: u64,
}

/// What the layer above does to a connection, outgoing and incoming, whose peer is gone.
pub(crate) type OnPeerGone = fn(&Mapping, &Mapping, PeerExit);

/// One connection.
pub(crate) struct Connection {
    region: Region,
    geometry: Geometry,
    side: Side,
    cred: PeerCred,
    first_ticket: u64,
    max_message: u64,
    canary: ForkGuard,
    fate: AtomicU64,
    /// Sending, and receiving.
    activities: [WaitCounters; 2],
    /// The log has been told of the end.
    told: AtomicBool,
    watch: OnceLock<MonitorHandle>,
    bury: OnPeerGone,
    this: Weak<Self>,
}

impl Connection {
    /// Writes the initial words of a fresh region, before anybody else can see it.
    pub(crate) fn format(region: &Region, geometry: &Geometry, first_ticket: u64) {
        for direction in [0, 1] {
            failpoint!("format");
            let head = geometry.direction(direction).words + words::HEAD;
            if head + size_of::<u64>() <= region.len() {
                // SAFETY: in the region by the check, 8-aligned by the layout's const asserts.
                let word = unsafe { AtomicU64::from_ptr(region.base().add(head).cast().as_ptr()) };
                word.store(first_ticket, Ordering::Relaxed);
            }
        }
    }

    /// Makes the connection and puts it under the lifeline's watch.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the region is smaller than the geometry; what the lifeline says.
    pub(crate) fn establish(parts: ConnectionParts, bury: OnPeerGone) -> io::Result<Arc<Self>> {
        let ConnectionParts { region, socket, geometry, side, cred, peer, first_ticket, max_message } = parts;
        if region.len() < geometry.region_len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the region is smaller than its geometry",
            ));
        }
        let canary = ForkGuard::new()?;
        let link = Arc::new_cyclic(|this: &Weak<Self>| Self {
            region,
            geometry,
            side,
            cred,
            first_ticket,
            max_message,
            canary,
            fate: AtomicU64::new(0),
            activities: Default::default(),
            told: AtomicBool::new(false),
            watch: OnceLock::new(),
            bury,
            this: this.clone(),
        });
        let watched: Weak<dyn Watched> = link.this.clone();
        let watch = lifeline::watch(socket, peer, watched)?;
        let _first = link.watch.set(watch);
        Ok(link)
    }

    /// Makes sure that the end of the peer would be noticed; for a thread that waits on the connection, a few times a second
    /// at most.
    #[cold]
    pub(crate) fn check_monitor(&self) {
        if let Some(watch) = self.watch.get() {
            watch.check();
        }
    }

    /// As [`check_monitor`](Self::check_monitor), but only whether the monitor's thread lives, which costs no system call.
    #[cold]
    pub(super) fn check_monitor_thread(&self) {
        if let Some(watch) = self.watch.get() {
            watch.check_thread();
        }
    }

    /// What knows the process that made the connection.
    pub(crate) fn canary(&self) -> ForkGuard {
        self.canary
    }

    /// Whether this is still the process that made the connection, not a fork of it.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.canary.same_process()
    }

    /// The fate, in private memory.
    #[inline]
    pub(super) fn close_reason(&self) -> &AtomicU64 {
        &self.fate
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// The sizes agreed on.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Which end this is.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Who the peer is.
    pub(crate) fn cred(&self) -> PeerCred {
        self.cred
    }

    /// The ticket of the first message in either direction.
    pub(crate) fn first_ticket(&self) -> u64 {
        self.first_ticket
    }

    /// The longest message that the peers agreed on, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        usize::try_from(self.max_message).unwrap_or(usize::MAX)
    }

    /// What this process has done at one direction, the outgoing one or the other.
    pub(crate) fn activity(&self, outgoing: bool) -> &WaitCounters {
        let [sending, receiving] = &self.activities;
        if outgoing { sending } else { receiving }
    }

    /// Tells the log how the connection has ended, once. What it ends has been told before: a logger may take its time.
    pub(crate) fn log_end(&self) {
        if cfg!(feature = "log") && self.same_process() && !self.told.swap(true, Ordering::Relaxed) {
            let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
            let by_peer =
                self.is_marked(out, words::CONSUMER_CLOSED) && self.is_marked(into, words::PRODUCER_CLOSED);
            events::ended(self.cred.pid(), self.fate.load(Ordering::Acquire), by_peer);
        }
    }

    /// Whether the peer has marked its end of a direction, for one that may be the last to hold the link.
    fn is_marked(&self, direction: usize, mark: usize) -> bool {
        let at = self.geometry.direction(direction).words + mark;
        // SAFETY: in the region, whose size `establish` has checked, 8-aligned by the layout's const asserts, and
        // mapped as long as the link; this is no fork, by the caller.
        let word = unsafe { AtomicU64::from_ptr(self.region.base().add(at).cast().as_ptr()) };
        word.load(Ordering::Acquire) != 0
    }

    fn ring(&self, direction: usize) -> Option<Mapping> {
        self.this.upgrade().map(|link| Mapping::new(link, direction))
    }
}

impl Watched for Connection {
    fn marked(&self) -> bool {
        let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
        let mark = |direction, word| {
            // pairs with the Release store of the mark in `ring/`.
            self.ring(direction).is_some_and(|ring| ring.load(word, Load::Acquire) != 0)
        };
        mark(out, Word::ConsumerClosed) && mark(into, Word::ProducerClosed)
    }

    fn on_peer_exit(&self, how: PeerExit) {
        let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
        let (Some(outgoing), Some(incoming)) = (self.ring(out), self.ring(into)) else {
            return;
        };
        (self.bury)(&outgoing, &incoming, how);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.log_end();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.get().expect("a link is watched from the start").as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("side", &self.side)
            .field("geometry", &self.geometry)
            .field("fate", &self.fate.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
