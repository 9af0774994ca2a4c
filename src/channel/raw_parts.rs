//! A connection taken apart, for the layer of calls: both halves, and what all its threads may know of it.

use std::sync::Arc;

use super::{AdaptiveWait, Closer, IncomingSignals, OobSender, ReceiverCore, SenderCore, Stats, close_both};
use crate::error::ConnectionError;
use crate::memory::Word;
use crate::ring::{CloseReason, closed};
use crate::sys::connection::ConnectionInner;
use crate::sys::mapping::Mapping;
use crate::sys::socket::PeerCred;

/// The halves of a connection, and the connection itself.
pub(crate) struct RawParts {
    pub(crate) outbound: SenderCore<Mapping, AdaptiveWait>,
    pub(crate) inbound: ReceiverCore<Mapping, AdaptiveWait>,
    pub(crate) handle: ConnectionHandle,
}

/// A connection whose halves were taken apart. Dropping it closes both directions.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    connection: Arc<ConnectionInner>,
    outgoing: Mapping,
}

/// What both ends of a connection have in common, and no other connection has.
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

    /// Whether this is still the process that made the connection.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.connection.same_process()
    }

    /// What any thread may hear.
    pub(crate) fn signals(&self) -> IncomingSignals<Mapping> {
        IncomingSignals::new(Mapping::new(
            Arc::clone(&self.connection),
            1 - self.connection.side().outgoing(),
        ))
    }

    /// The outgoing direction's memory.
    pub(crate) fn outgoing(&self) -> Mapping {
        Mapping::new(Arc::clone(&self.connection), self.connection.side().outgoing())
    }

    /// Stores urgent words; there must be but one.
    pub(crate) fn oob_sender(&self) -> OobSender<Mapping> {
        OobSender::new(self.outgoing())
    }

    /// How many urgent words a direction has.
    pub(crate) fn oob_words(&self) -> usize {
        self.connection.geometry().oob() as usize
    }

    pub(crate) fn cred(&self) -> PeerCred {
        self.connection.cred()
    }

    /// What tells this connection from others of this process.
    pub(crate) fn id(&self) -> Option<ConnectionId> {
        ConnectionId::of(&self.connection)
    }

    pub(crate) fn max_message(&self) -> usize {
        self.connection.max_message()
    }

    /// The longest message that always fits a ring at once when it is empty, and of which several do.
    pub(crate) fn inline_room(&self) -> usize {
        let arena = usize::try_from(self.connection.geometry().arena()).unwrap_or(usize::MAX);
        (arena / 4).clamp(crate::memory::INLINE_CAPACITY, 64 << 10).min(self.max_message())
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer::new(&self.connection)
    }

    /// How the outgoing direction has ended, if it has.
    pub(crate) fn ended(&self) -> Option<ConnectionError> {
        if !self.same_process() {
            return Some(ConnectionError::Forked);
        }
        closed(&self.outgoing, Word::ConsumerClosed)
    }

    /// How both halves waited, of which the sending one has seen its direction so full; messages are not counted here.
    pub(crate) fn stats(&self, fullest: Option<u32>) -> Stats {
        Stats::of(&self.connection, fullest)
    }

    /// The peer lied: both directions are closed.
    pub(crate) fn fail_protocol(&self) {
        close_both(&self.connection, CloseReason::Violated);
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        close_both(&self.connection, CloseReason::Closed);
    }
}
