//! The driver: the handshake over a real socket, until there is a link or an error.
//!
//! ```text
//!  connect / from_parent          pair               accept / spawn
//!        │                          │                      │
//!     Caller (client.rs) ◀──────────┴──────────────▶ Guest (server.rs)
//!        │  advance() until Ready                          │  advance() until Ready
//!        │  confirm(): map, seal, one byte ──────────────▶ │
//!     Confirmed: finish()                                  │  finish()
//!        └────────────── Established { link } ─────────────┘
//! ```
//!
//! Both sides are nonblocking steppers: `advance` does all that can be done now and says what the
//! socket must be ready for. The caller decides how to wait: for one socket, for many, or not at all. Sealing the memory
//! can block on a hostile server, so `confirm` is given the way to do it.
//!
//! # Invariants
//!
//! 1. One absolute deadline covers the whole exchange; no wait here goes past it.
//! 2. A server allocates only after a valid Hello from an allowed peer, and takes no
//!    descriptor. A client takes at most one, and owns it before it validates it.
//! 3. Nothing is read from a socket behind the last byte of the handshake, which is the client's: the
//!    acknowledgement. A server sends nothing between its Welcome and that byte.
//! 4. Whatever goes wrong, every descriptor is closed by its owner's drop, which never blocks: see `sys::foreign`.
//! 5. No page of the memory is touched while a peer can punch a hole into it. The server writes the first words
//!    before anybody else has the descriptor, and nothing more until it has seen all seals; the client seals first.
//!
//! # Proof
//!
//! `tests/listener/handshake.rs`: hostile clients and servers, a second process, another user, leaks.
//! `tests/listener/foreign_descriptors.rs`: descriptors whose close blocks, and servers that punch holes.

mod acceptor;
mod child;
mod connector;
mod pair;
mod permission;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::channel::on_peer_gone;
use crate::error::ConnectError;
use crate::events;
use crate::handshake::HandshakeLimits;
use crate::options::Options;
use crate::sys::connection::{ConnectionInner, ConnectionParts, Side};
use crate::sys::peer_monitor;
use crate::sys::wait::Readiness;

pub(crate) use acceptor::{AcceptFailure, Acceptor, refuse_unwatched};
pub(crate) use child::{from_parent, spawn};
#[cfg(feature = "testing")]
pub use connector::answered;
pub(crate) use connector::connect;
pub(crate) use pair::pair;
pub(crate) use permission::{why_not_bound, why_not_connected, why_not_locked};

/// What a handshake makes.
pub(crate) struct Established {
    /// The connection.
    pub(crate) connection: Arc<ConnectionInner>,
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Established").finish_non_exhaustive()
    }
}

/// What one side needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The socket must become ready for this.
    Wants(Readiness),
    /// Everything was exchanged: finish it.
    Ready,
}

/// Starts this process's peer monitor, the thread that notices the end of every peer; does nothing if it runs.
///
/// No program needs this: the first listener or connection starts it. It is of use to a program that has threads with
/// special scheduling, or that gives up rights:
///
/// - The thread inherits CPUs, policy and nice value from the thread that starts it, and then takes those of the main
///   thread where the kernel permits it (`narrows doctor` says whether). Called from an ordinary thread, this makes sure that
///   deaths are reported in time even if a pinned or real-time thread makes the connections.
/// - Some calls that a sandbox makes need a process of one thread: `unshare(CLONE_NEWUSER)`, `setns` of a user namespace.
///   They must come *before* the first listener, connection or call of this function: sandbox first, then connect.
/// - A seccomp filter that counts threads, or a limit on them, may come behind it.
///
/// ```
/// narrows::start_peer_monitor()?; // In `main`, before any thread is pinned.
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// There is no thread or no descriptor to be had; the text names the limit.
pub fn start_peer_monitor() -> io::Result<()> {
    peer_monitor::start()
}

/// The moment this long from now; `None`, for ever, if there is no such moment.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Whether the deadline has passed.
pub(crate) fn expired(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Until when a client tries to connect: a deadline, and a flag by which another thread ends it before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectLimit<'a> {
    deadline: Option<Instant>,
    cancelled: Option<&'a AtomicBool>,
}

impl<'a> ConnectLimit<'a> {
    /// Tries until the deadline.
    pub(crate) fn deadline(deadline: Option<Instant>) -> Self {
        Self { deadline, cancelled: None }
    }

    /// Tries until the deadline, and no longer than until the flag is set. It fails as at its deadline then.
    pub(crate) fn cancelled_by(deadline: Option<Instant>, flag: &'a AtomicBool) -> Self {
        Self { deadline, cancelled: Some(flag) }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        self.is_cancelled() || expired(self.deadline)
    }

    /// How long to wait, at most so long, before it is looked whether it is over.
    fn slice(&self, longest: Duration) -> Duration {
        let longest = if self.cancelled.is_some() { longest.min(CANCEL_SLICE) } else { longest };
        self.deadline
            .map_or(longest, |deadline| deadline.saturating_duration_since(Instant::now()).min(longest))
    }
}

/// How soon a client that is cancelled gives up.
const CANCEL_SLICE: Duration = Duration::from_millis(100);

/// Makes the link: the one place where the driver meets the layers above it.
fn connection(parts: ConnectionParts) -> io::Result<Established> {
    let (side, cred) = (parts.side, parts.cred);
    let connection = ConnectionInner::establish(parts, on_peer_gone)?;
    match side {
        Side::Client => events::connected(cred.pid(), cred.uid()),
        Side::Server => events::accepted(cred.pid(), cred.uid()),
    }
    Ok(Established { connection })
}

/// The limits of the options, for a client whose peer monitor runs.
fn wanted(options: &Options) -> Result<HandshakeLimits, ConnectError> {
    let limits = options.limits().map_err(ConnectError::BadOptions)?;
    // Before the server learns of us: a connection that nothing watches would never end.
    peer_monitor::start().map_err(ConnectError::io("watching for the server's end"))?;
    Ok(limits)
}
