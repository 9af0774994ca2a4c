//! A connection taken apart, for the layer of calls: both halves, and what all its threads may know of it.

use std::sync::Arc;

use super::{Closer, Ear, Inbound, Outbound, Poster, Stats, Waiting, shut};
use crate::error::Ended;
use crate::mem::Word;
use crate::ring::{Fate, ended};
use crate::sys::link::Link;
use crate::sys::mapping::Mapping;
use crate::sys::socket::PeerCred;

/// The halves of a connection, and the connection itself.
pub(crate) struct Ends {
    pub(crate) outbound: Outbound<Mapping, Waiting>,
    pub(crate) inbound: Inbound<Mapping, Waiting>,
    pub(crate) line: Line,
}

/// A connection whose halves were taken apart. Dropping it closes both directions.
#[derive(Debug)]
pub(crate) struct Line {
    link: Arc<Link>,
    outgoing: Mapping,
}

/// What both ends of a connection have in common, and no other connection has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn of(link: &Link) -> Option<Self> {
        link.region().inode().map(Self)
    }
}

impl Line {
    pub(crate) fn new(link: &Arc<Link>) -> Self {
        let outgoing = Mapping::new(Arc::clone(link), link.side().outgoing());
        Self { link: Arc::clone(link), outgoing }
    }

    /// Whether this is still the process that made the connection.
    #[inline]
    pub(crate) fn same_process(&self) -> bool {
        self.link.same_process()
    }

    /// What any thread may hear.
    pub(crate) fn ear(&self) -> Ear<Mapping> {
        Ear::new(Mapping::new(Arc::clone(&self.link), 1 - self.link.side().outgoing()))
    }

    /// The outgoing direction's memory.
    pub(crate) fn outgoing(&self) -> Mapping {
        Mapping::new(Arc::clone(&self.link), self.link.side().outgoing())
    }

    /// Stores urgent words; there must be but one.
    pub(crate) fn poster(&self) -> Poster<Mapping> {
        Poster::new(self.outgoing())
    }

    /// How many urgent words a direction has.
    pub(crate) fn urgent_words(&self) -> usize {
        self.link.geometry().urgent() as usize
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
    pub(crate) fn handy(&self) -> usize {
        let arena = usize::try_from(self.link.geometry().arena()).unwrap_or(usize::MAX);
        (arena / 4).clamp(crate::mem::INLINE, 64 << 10).min(self.max_message())
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer::new(&self.link)
    }

    /// How the outgoing direction has ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        if !self.same_process() {
            return Some(Ended::Forked);
        }
        ended(&self.outgoing, Word::ConsumerMark)
    }

    /// How both halves waited, of which the sending one has seen its direction so full; messages are not counted here.
    pub(crate) fn stats(&self, fullest: Option<u32>) -> Stats {
        Stats::of(&self.link, fullest)
    }

    /// The peer lied: both directions are closed.
    pub(crate) fn condemn(&self) {
        shut(&self.link, Fate::Violated);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        shut(&self.link, Fate::Closed);
    }
}
