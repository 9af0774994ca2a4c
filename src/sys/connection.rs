//! One connection, as this process holds it: the pages, the socket, and the close reason.
//!
//! All state here except the pages is in private memory: the peer cannot write the close reason, the counters or the
//! fork guard.
//!
//! # Invariants
//!
//! 1. The close reason is set once: the first reason stays.
//! 2. After a fork the fork guard fails in the child, so the child touches no page of the region, which is not mapped
//!    there.
//! 3. The socket is open exactly as long as the connection: its hang-up reports the end of this side to the peer.

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
    /// Returns the direction in which this side sends.
    pub(crate) fn outgoing(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// The parts of a connection, once both sides agree.
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

/// The function of the layer above that closes both directions of a connection whose peer has ended.
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
    /// The counters of sending, then those of receiving.
    wait_counters: [WaitCounters; 2],
    /// Whether the end of the connection was logged.
    end_logged: AtomicBool,
    monitor: OnceLock<MonitorHandle>,
    on_peer_gone: OnPeerGone,
    this: Weak<Self>,
}

impl ConnectionInner {
    /// Writes the initial words of a fresh region, before another process can see it.
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

    /// Makes the connection and registers it with the peer monitor.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the region is smaller than the geometry; the error of the peer monitor.
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
        let handle = peer_monitor::watch(socket, peer, watched)?;
        let _first = connection.monitor.set(handle);
        Ok(connection)
    }

    /// Makes sure that the peer monitor would detect the end of the peer. A thread that waits on the connection calls
    /// this, a few times a second at most.
    #[cold]
    pub(crate) fn check_monitor(&self) {
        if let Some(handle) = self.monitor.get() {
            handle.check();
        }
    }

    /// Makes sure that the monitor's thread runs, and checks nothing else. This costs no system call.
    #[cold]
    pub(super) fn check_monitor_thread(&self) {
        if let Some(handle) = self.monitor.get() {
            handle.check_thread();
        }
    }

    /// Returns the fork guard of the process that made the connection.
    pub(crate) fn fork_guard(&self) -> ForkGuard {
        self.fork_guard
    }

    /// Returns whether this is the process that made the connection, and not a fork of it.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.fork_guard.same_process()
    }

    /// Returns the close reason, which is in private memory.
    #[inline]
    pub(super) fn close_reason(&self) -> &AtomicU64 {
        &self.close_reason
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the agreed sizes.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns which end this is.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Returns the credentials of the peer.
    pub(crate) fn cred(&self) -> PeerCred {
        self.cred
    }

    /// Returns the ticket of the first message in either direction.
    pub(crate) fn first_ticket(&self) -> u64 {
        self.first_ticket
    }

    /// Returns the agreed maximum length of a message, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        usize::try_from(self.max_message).unwrap_or(usize::MAX)
    }

    /// Returns the counters of one direction, the outgoing one or the other.
    pub(crate) fn wait_counters(&self, outgoing: bool) -> &WaitCounters {
        let [sending, receiving] = &self.wait_counters;
        if outgoing { sending } else { receiving }
    }

    /// Logs once how the connection has ended. Its threads were woken before: a logger may take long.
    pub(crate) fn log_end(&self) {
        if cfg!(feature = "log") && self.same_process() && !self.end_logged.swap(true, Ordering::Relaxed) {
            let (out, into) = (self.side.outgoing(), 1 - self.side.outgoing());
            let by_peer = self.is_closed_flag_set(out, words::CONSUMER_CLOSED)
                && self.is_closed_flag_set(into, words::PRODUCER_CLOSED);
            events::ended(self.cred.pid(), self.close_reason.load(Ordering::Acquire), by_peer);
        }
    }

    /// Returns whether the peer has set the closed flag of its end of a direction. The caller holds the connection, and
    /// may be the last to hold it.
    fn is_closed_flag_set(&self, direction: usize, closed: usize) -> bool {
        let at = self.geometry.direction(direction).words + closed;
        // SAFETY: in the region, whose size `establish` has checked, 8-aligned by the layout's const asserts, and
        // mapped as long as the connection exists. The caller has checked that this is not a fork.
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
        self.monitor.get().expect("a connection is watched from the start").as_fd()
    }
}

impl fmt::Debug for ConnectionInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInner")
            .field("side", &self.side)
            .field("geometry", &self.geometry)
            .field("close_reason", &self.close_reason.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
