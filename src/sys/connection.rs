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
use super::peer_monitor::{self, MonitorHandle, PeerExit, Watched};
use super::pidfd::Pidfd;
use super::region::Region;
use super::socket::PeerCred;
use super::wait_counters::WaitCounters;
use crate::events;
use crate::layout::{Geometry, words};

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
pub(crate) type OnPeerGone = fn(&Arc<ConnectionInner>, PeerExit);

/// One connection.
pub(crate) struct ConnectionInner {
    region: Region,
    geometry: Geometry,
    side: Side,
    cred: PeerCred,
    first_ticket: u64,
    max_message: u64,
    fork_guard: ForkGuard,
    close_reason: AtomicU64,
    /// Sending, and receiving.
    wait_counters: [WaitCounters; 2],
    /// The log has been told of the end.
    end_logged: AtomicBool,
    monitor: OnceLock<MonitorHandle>,
    on_peer_gone: OnPeerGone,
    this: Weak<Self>,
}

impl ConnectionInner {
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
    pub(crate) fn establish(parts: ConnectionParts, on_peer_gone: OnPeerGone) -> io::Result<Arc<Self>> {
        let ConnectionParts { region, socket, geometry, side, cred, peer, first_ticket, max_message } = parts;
        if region.len() < geometry.region_len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the region is smaller than its geometry",
            ));
        }
        let fork_guard = ForkGuard::new()?;
        let connection = Arc::new_cyclic(|this: &Weak<Self>| Self {
            region,
            geometry,
            side,
            cred,
            first_ticket,
            max_message,
            fork_guard,
            close_reason: AtomicU64::new(0),
            wait_counters: Default::default(),
            end_logged: AtomicBool::new(false),
            monitor: OnceLock::new(),
            on_peer_gone,
            this: this.clone(),
        });
        let watched: Weak<dyn Watched> = connection.this.clone();
        let watch = peer_monitor::watch(socket, peer, watched)?;
        let _first = connection.monitor.set(watch);
        Ok(connection)
    }

    /// Makes sure that the end of the peer would be noticed; for a thread that waits on the connection, a few times a second
    /// at most.
    #[cold]
    pub(crate) fn check_monitor(&self) {
        if let Some(watch) = self.monitor.get() {
            watch.check();
        }
    }

    /// As [`check_monitor`](Self::check_monitor), but only whether the monitor's thread lives, which costs no system call.
    #[cold]
    pub(super) fn check_monitor_thread(&self) {
        if let Some(watch) = self.monitor.get() {
            watch.check_thread();
        }
    }

    /// What knows the process that made the connection.
    pub(crate) fn fork_guard(&self) -> ForkGuard {
        self.fork_guard
    }

    /// Whether this is still the process that made the connection, not a fork of it.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.fork_guard.same_process()
    }

    /// The fate, in private memory.
    #[inline]
    pub(super) fn close_reason(&self) -> &AtomicU64 {
        &self.close_reason
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
    pub(crate) fn wait_counters(&self, outgoing: bool) -> &WaitCounters {
        let [sending, receiving] = &self.wait_counters;
        if outgoing { sending } else { receiving }
    }

    /// Tells the log how the connection has ended, once. What it ends has been told before: a logger may take its time.
    pub(crate) fn log_end(&self) {
        if cfg!(feature = "log") && self.same_process() && !self.end_logged.swap(true, Ordering::Relaxed) {
            let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
            let by_peer = self.is_closed_flag_set(out, words::CONSUMER_CLOSED)
                && self.is_closed_flag_set(into, words::PRODUCER_CLOSED);
            events::ended(self.cred.pid(), self.close_reason.load(Ordering::Acquire), by_peer);
        }
    }

    /// Whether the peer has marked its end of a direction, for one that may be the last to hold the link.
    fn is_closed_flag_set(&self, direction: usize, closed: usize) -> bool {
        let at = self.geometry.direction(direction).words + closed;
        // SAFETY: in the region, whose size `establish` has checked, 8-aligned by the layout's const asserts, and
        // mapped as long as the link; this is no fork, by the caller.
        let word = unsafe { AtomicU64::from_ptr(self.region.base().add(at).cast().as_ptr()) };
        word.load(Ordering::Acquire) != 0
    }
}

impl Watched for ConnectionInner {
    fn is_closed_by_peer(&self) -> bool {
        let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
        self.is_closed_flag_set(out, words::CONSUMER_CLOSED)
            && self.is_closed_flag_set(into, words::PRODUCER_CLOSED)
    }

    fn on_peer_exit(&self, how: PeerExit) {
        if let Some(this) = self.this.upgrade() {
            (self.on_peer_gone)(&this, how);
        }
    }
}

impl Drop for ConnectionInner {
    fn drop(&mut self) {
        self.log_end();
    }
}

impl AsFd for ConnectionInner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.get().expect("a link is watched from the start").as_fd()
    }
}

impl fmt::Debug for ConnectionInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInner")
            .field("side", &self.side)
            .field("geometry", &self.geometry)
            .field("fate", &self.close_reason.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
