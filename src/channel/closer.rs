//! Closing a connection at once, from any thread.

use std::sync::{Arc, Weak};

use crate::ring::{self, CloseReason};
use crate::sys::connection::ConnectionInner;
use crate::sys::mapping::Mapping;
use crate::sys::peer_monitor::PeerExit;

/// Closes a connection from any thread, and ends the calls that are blocked on it.
///
/// It may be cloned. It does not keep the connection open; if the connection is gone, [`close`](Self::close) does
/// nothing.
///
/// ```
/// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
/// let closer = a.closer();
/// let thread = std::thread::spawn(move || a.recv(&mut [0; 64]));
/// closer.close();
/// assert_eq!(thread.join().unwrap(), Err(narrows::RecvError::ConnectionLost(narrows::ConnectionError::Closed)));
/// # drop(b);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Closer {
    connection: Weak<ConnectionInner>,
}

impl Closer {
    pub(crate) fn new(connection: &Arc<ConnectionInner>) -> Self {
        Self { connection: Arc::downgrade(connection) }
    }

    /// Closes both directions. Never blocks; closing again does nothing.
    ///
    /// This side's calls end with `Closed`, including the blocked ones. The peer receives what was committed before,
    /// then `Disconnected`. In a forked child it does nothing.
    pub fn close(&self) {
        if let Some(connection) = self.connection.upgrade() {
            close_both(&connection, CloseReason::Closed);
        }
    }
}

/// Sets the close reason of a connection whose peer is gone, as the peer monitor reports it, and wakes this side's
/// threads.
pub(crate) fn on_peer_gone(connection: &Arc<ConnectionInner>, how: PeerExit) {
    let reason = match how {
        PeerExit::Disconnected => CloseReason::Disconnected,
        PeerExit::Died => CloseReason::Died,
    };
    let [outgoing, incoming] = directions(connection);
    ring::on_peer_gone(&outgoing, &incoming, reason);
    connection.log_end();
}

/// Sets the close reason of a connection that has none, closes both directions and wakes all four sleepers.
pub(crate) fn close_both(connection: &Arc<ConnectionInner>, reason: CloseReason) {
    if !connection.same_process() {
        return;
    }
    let [outgoing, incoming] = directions(connection);
    ring::close_both(&outgoing, &incoming, reason);
    connection.log_end();
}

fn directions(connection: &Arc<ConnectionInner>) -> [Mapping; 2] {
    let out = connection.side().outgoing();
    [out, 1 - out].map(|direction| Mapping::new(Arc::clone(connection), direction))
}
