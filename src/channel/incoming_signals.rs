//! The state of the incoming direction that any thread of this side may read, whichever thread receives its messages.

use crate::error::ConnectionError;
use crate::memory::{Flag, Memory, Word};
use crate::ring::{closed, load_doorbell, load_oob, notify};

/// The signals of a connection's incoming direction: its end, its OOB words and its doorbell.
#[derive(Clone, Debug)]
pub struct IncomingSignals<M> {
    mem: M,
}

impl<M: Memory> IncomingSignals<M> {
    /// Makes the signals of the direction whose memory is `mem`, which must be the incoming one.
    pub fn new(mem: M) -> Self {
        Self { mem }
    }

    /// Returns how the connection has ended, or `None` if it is open.
    pub fn ended(&self) -> Option<ConnectionError> {
        closed(&self.mem, Word::ProducerClosed)
    }

    /// Returns the OOB word that the peer has stored last; the index is masked.
    pub fn oob(&self, index: u32) -> u64 {
        load_oob(&self.mem, index)
    }

    /// Returns the doorbell: how many OOB words the peer has stored.
    pub fn doorbell(&self) -> u64 {
        load_doorbell(&self.mem)
    }

    /// Wakes this side's own receiver if it sleeps. The condition that the receiver waits for must have changed before.
    pub fn notify_self(&self) {
        notify(&self.mem, Flag::Consumer);
    }
}
