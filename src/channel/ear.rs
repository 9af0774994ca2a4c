//! What any thread of this side may hear of the incoming direction, whoever receives there.

use crate::error::Ended;
use crate::mem::{Flag, Memory, Word};
use crate::ring::{bell, ended, rouse, urgent};

/// The incoming direction of a connection, as any thread of this side may look at it.
#[derive(Clone, Debug)]
pub struct Ear<M> {
    mem: M,
}

impl<M: Memory> Ear<M> {
    /// Of this direction, which is incoming.
    pub fn new(mem: M) -> Self {
        Self { mem }
    }

    /// How the connection has ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        ended(&self.mem, Word::ProducerMark)
    }

    /// The urgent word that the peer has stored; the index is masked.
    pub fn urgent(&self, index: u32) -> u64 {
        urgent(&self.mem, index)
    }

    /// How often the peer has rung.
    pub fn bell(&self) -> u64 {
        bell(&self.mem)
    }

    /// Makes this side's own receiver look up, if it sleeps: its look must find what was changed before.
    pub fn nudge(&self) {
        rouse(&self.mem, Flag::Consumer);
    }
}
