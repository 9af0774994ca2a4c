//! Drives the handshake over a socket, until there is a connection or an error.
//!
//! ```text
//!  connect / from_parent          pair               accept / spawn
//!        │                          │                      │
//!     Connector (connector.rs) ◀────┴─────────▶ Acceptor (acceptor.rs)
//!        │  advance() until Ready                          │  advance() until Ready
//!        │  confirm(): map, seal, one byte ──────────────▶ │
//!     Confirmed: finish()                                  │  finish()
//!        └─────────── Established { connection } ──────────┘
//! ```
//!
//! Both sides are nonblocking state machines: `advance` does all that is possible now, and returns for what the socket
//! must become ready. The calling function decides how to wait: for one socket, for many, or not at all. Sealing the
//! memory can block with a hostile server, so the calling function passes to `confirm` which thread does it.
//!
//! # Invariants
//!
//! 1. One absolute deadline covers the whole handshake; no wait here goes past it.
//! 2. A server allocates only after a valid Hello from an allowed peer, and takes no descriptor. A client takes at most
//!    one, and owns it before it validates it.
//! 3. No side reads from the socket after the last byte of the handshake, which is the client's acknowledgement. A
//!    server sends nothing between its Accept and that byte.
//! 4. On every failure the owner's drop closes each descriptor. That drop never blocks: see `sys::foreign`.
//! 5. No page of the memory is touched while a peer can punch a hole into it. The server writes the first words before
//!    another process has the descriptor, and nothing more until it has seen all seals. The client seals first.
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

/// The result of a handshake.
pub(crate) struct Established {
    /// The connection.
    pub(crate) connection: Arc<ConnectionInner>,
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Established").finish_non_exhaustive()
    }
}

/// What one side of a handshake needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The socket must become ready for this operation.
    Wants(Readiness),
    /// The handshake is complete: the connection can be made.
    Ready,
}

/// Starts this process's peer monitor, the thread that detects the end of every peer. Does nothing if it runs.
///
/// No program needs this: the first listener or connection starts the thread. It is useful in a program that has
/// threads with special scheduling, or that gives up privileges:
///
/// - The thread inherits CPU affinity, scheduling policy and nice value from the thread that starts it, and then takes
///   those of the main thread if the kernel permits it (`narrows doctor` shows whether). Called from an ordinary
///   thread, this ensures that deaths are reported in time even if a pinned or real-time thread makes the connections.
/// - Some system calls of a sandbox need a process of one thread: `unshare(CLONE_NEWUSER)`, `setns` of a user
///   namespace. Make them *before* the first listener, connection or call of this function.
/// - A seccomp filter that forbids new threads, or a limit on threads, may be installed after this call.
///
/// ```
/// narrows::start_peer_monitor()?; // In `main`, before any thread is pinned.
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// No thread could be started, or no descriptor is left; the text names the limit.
pub fn start_peer_monitor() -> io::Result<()> {
    peer_monitor::start()
}

/// Returns the moment after `timeout`; `None` (no deadline) if the timeout overflows `Instant`.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Returns whether the deadline has passed.
pub(crate) fn expired(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// How long a client tries to connect: until a deadline, or until another thread sets a flag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectLimit<'a> {
    deadline: Option<Instant>,
    cancelled: Option<&'a AtomicBool>,
}

impl<'a> ConnectLimit<'a> {
    /// Returns a limit that ends at the deadline.
    pub(crate) fn deadline(deadline: Option<Instant>) -> Self {
        Self { deadline, cancelled: None }
    }

    /// Returns a limit that ends at the deadline, or when the flag is set. Both cause the same error.
    pub(crate) fn cancelled_by(deadline: Option<Instant>, flag: &'a AtomicBool) -> Self {
        Self { deadline, cancelled: Some(flag) }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        self.is_cancelled() || expired(self.deadline)
    }

    /// Returns how long to wait before the limit is checked again, at most `longest`.
    fn slice(&self, longest: Duration) -> Duration {
        let longest = if self.cancelled.is_some() { longest.min(CANCEL_SLICE) } else { longest };
        self.deadline
            .map_or(longest, |deadline| deadline.saturating_duration_since(Instant::now()).min(longest))
    }
}

/// How long a client may take to notice that it was cancelled.
const CANCEL_SLICE: Duration = Duration::from_millis(100);

/// Makes the connection, and passes it the function of the layer above that handles the end of the peer.
fn connection(parts: ConnectionParts) -> io::Result<Established> {
    let (side, cred) = (parts.side, parts.cred);
    let connection = ConnectionInner::establish(parts, on_peer_gone)?;
    match side {
        Side::Client => events::connected(cred.pid(), cred.uid()),
        Side::Server => events::accepted(cred.pid(), cred.uid()),
    }
    Ok(Established { connection })
}

/// Validates the options and starts the peer monitor. Returns the sizes that a client requests.
fn wanted(options: &Options) -> Result<HandshakeLimits, ConnectError> {
    let limits = options.limits().map_err(ConnectError::BadOptions)?;
    // This comes before the server knows of this client: without a monitor a blocking call would not end with the peer.
    peer_monitor::start().map_err(ConnectError::io("watching for the server's end"))?;
    Ok(limits)
}
