//! What any thread of this side may hear of the incoming direction, whoever receives there.

use crate::error::ConnectionError;
use crate::memory::{Flag, Memory, Word};
use crate::ring::{closed, load_doorbell, load_oob, notify};

/// The incoming direction of a connection, as any thread of this side may look at it.
#[derive(Clone, Debug)]
pub struct IncomingSignals<M> {
    mem: M,
}

impl<M: Memory> IncomingSignals<M> {
    /// Of this direction, which is incoming.
    pub fn new(mem: M) -> Self {
        Self { mem }
    }

    /// How the connection has ended, if it has.
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ProducerClosed)
    }

    /// The urgent word that the peer has stored; the index is masked.
    pub fn oob(&self, index: u32) -> u64 {
        load_oob(&self.mem, index)
    }

    /// How often the peer has rung.
    pub fn doorbell(&self) -> u64 {
        load_doorbell(&self.mem)
    }

    /// Makes this side's own receiver look up, if it sleeps: its look must find what was changed before.
    pub fn notify_self(&self) {
        notify(&self.mem, Flag::Consumer);
    }
}
