//! A connection split into its parts, for the RPC layer: both halves, and a handle that all its threads may share.

use std::sync::Arc;

use super::{AdaptiveWait, Closer, IncomingSignals, OobSender, ReceiverCore, SenderCore, Stats, close_both};
use crate::error::ConnectionError;
use crate::memory::Word;
use crate::ring::{CloseReason, closed};
use crate::sys::connection::ConnectionInner;
use crate::sys::mapping::Mapping;
use crate::sys::socket::PeerCred;

/// The halves of a connection, and the handle to the connection itself.
pub(crate) struct RawParts {
    pub(crate) outbound: SenderCore<Mapping, AdaptiveWait>,
    pub(crate) inbound: ReceiverCore<Mapping, AdaptiveWait>,
    pub(crate) handle: ConnectionHandle,
}

/// The handle of a connection whose halves were taken out. Dropping it closes both directions.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    connection: Arc<ConnectionInner>,
    outgoing: Mapping,
}

/// The identity of a connection: both ends have the same, and no other connection has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn of(connection: &ConnectionInner) -> Option<Self> {
        connection.region().inode().map(Self)
    }
}

impl ConnectionHandle {
    pub(crate) fn new(connection: &Arc<ConnectionInner>) -> Self {
        let outgoing = Mapping::new(Arc::clone(connection), connection.side().outgoing());
        Self { connection: Arc::clone(connection), outgoing }
    }

    /// Returns whether this is still the process that made the connection.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.connection.same_process()
    }

    /// Returns the signals of the incoming direction, which any thread may read.
    pub(crate) fn signals(&self) -> IncomingSignals<Mapping> {
        IncomingSignals::new(Mapping::new(
            Arc::clone(&self.connection),
            1 - self.connection.side().outgoing(),
        ))
    }

    /// Returns the outgoing direction's memory.
    pub(crate) fn outgoing(&self) -> Mapping {
        Mapping::new(Arc::clone(&self.connection), self.connection.side().outgoing())
    }

    /// Makes the sender of OOB words. A connection must have only one.
    pub(crate) fn oob_sender(&self) -> OobSender<Mapping> {
        OobSender::new(self.outgoing())
    }

    /// Returns how many OOB words a direction has.
    pub(crate) fn oob_words(&self) -> usize {
        self.connection.geometry().oob() as usize
    }

    pub(crate) fn cred(&self) -> PeerCred {
        self.connection.cred()
    }

    /// Returns what distinguishes this connection from others of this process.
    pub(crate) fn id(&self) -> Option<ConnectionId> {
        ConnectionId::of(&self.connection)
    }

    pub(crate) fn max_message(&self) -> usize {
        self.connection.max_message()
    }

    /// Returns the longest message of which several always fit into an empty ring at once.
    pub(crate) fn inline_room(&self) -> usize {
        let arena = usize::try_from(self.connection.geometry().arena()).unwrap_or(usize::MAX);
        (arena / 4).clamp(crate::memory::INLINE_CAPACITY, 64 << 10).min(self.max_message())
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer::new(&self.connection)
    }

    /// Returns how the outgoing direction has ended, or `None` if it is open.
    pub(crate) fn ended(&self) -> Option<ConnectionError> {
        if !self.same_process() {
            return Some(ConnectionError::Forked);
        }
        closed(&self.outgoing, Word::ConsumerClosed)
    }

    /// Returns how both halves have waited. `fullest` is how full the sending half has seen its direction. Messages are
    /// not counted here.
    pub(crate) fn stats(&self, peak_fill: Option<u32>) -> Stats {
        Stats::of(&self.connection, peak_fill)
    }

    /// Closes both directions after a protocol violation of the peer.
    pub(crate) fn fail_protocol(&self) {
        close_both(&self.connection, CloseReason::Violated);
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        close_both(&self.connection, CloseReason::Closed);
    }
}
