//! A connection taken apart, for the layer of calls: both halves, and what all its threads may know of it.

use std::sync::Arc;

use super::{AdaptiveWait, Closer, IncomingSignals, OobSender, ReceiverCore, SenderCore, Stats, close_both};
use crate::error::ConnectionError;
use crate::mem::Word;
use crate::ring::{CloseReason, closed};
use crate::sys::connection::Connection;
use crate::sys::mapping::Mapping;
use crate::sys::socket::PeerCred;

/// The halves of a connection, and the connection itself.
pub(crate) struct RawParts {
    pub(crate) outbound: SenderCore<Mapping, AdaptiveWait>,
    pub(crate) inbound: ReceiverCore<Mapping, AdaptiveWait>,
    pub(crate) line: ConnectionHandle,
}

/// A connection whose halves were taken apart. Dropping it closes both directions.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    link: Arc<Connection>,
    outgoing: Mapping,
}

/// What both ends of a connection have in common, and no other connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn of(link: &Connection) -> Option<Self> {
        link.region().inode().map(Self)
    }
}

impl ConnectionHandle {
    pub(crate) fn new(link: &Arc<Connection>) -> Self {
        let outgoing = Mapping::new(Arc::clone(link), link.side().outgoing());
        Self { link: Arc::clone(link), outgoing }
    }

    /// Whether this is still the process that made the connection.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.link.same_process()
    }

    /// What any thread may hear.
    pub(crate) fn signals(&self) -> IncomingSignals<Mapping> {
        IncomingSignals::new(Mapping::new(Arc::clone(&self.link), 1 - self.link.side().outgoing()))
    }

    /// The outgoing direction's memory.
    pub(crate) fn outgoing(&self) -> Mapping {
        Mapping::new(Arc::clone(&self.link), self.link.side().outgoing())
    }

    /// Stores urgent words; there must be but one.
    pub(crate) fn oob_sender(&self) -> OobSender<Mapping> {
        OobSender::new(self.outgoing())
    }

    /// How many urgent words a direction has.
    pub(crate) fn oob_words(&self) -> usize {
        self.link.geometry().oob() as usize
    }

    pub(crate) fn cred(&self) -> PeerCred {
        self.link.cred()
    }

    /// What tells this connection from others of this process.
    pub(crate) fn id(&self) -> Option<ConnectionId> {
        ConnectionId::of(&self.link)
    }

    pub(crate) fn max_message(&self) -> usize {
        self.link.max_message()
    }

    /// The longest message that always fits a ring at once when it is empty, and of which several do.
    pub(crate) fn inline_room(&self) -> usize {
        let arena = usize::try_from(self.link.geometry().arena()).unwrap_or(usize::MAX);
        (arena / 4).clamp(crate::mem::INLINE_CAPACITY, 64 << 10).min(self.max_message())
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer::new(&self.link)
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
        Stats::of(&self.link, fullest)
    }

    /// The peer lied: both directions are closed.
    pub(crate) fn fail_protocol(&self) {
        close_both(&self.link, CloseReason::Violated);
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        close_both(&self.link, CloseReason::Closed);
    }
}
