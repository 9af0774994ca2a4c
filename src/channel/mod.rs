//! Messages over a ring: block, time out, close, cut and reassemble.
//!
//! ```text
//!   Sender, SharedSender, Batch, Reservation       Receiver, RecvGuard        public, over sys::Mapping
//!          |                                           |
//!      Outbound<M, P>                              Inbound<M, P>              any memory, any pace
//!          |                                           |
//!      ring::Producer<M>                           ring::Consumer<M>
//! ```
//!
//! `Outbound` and `Inbound` are generic over the memory and over how to pass the time before
//! sleeping, so the models run the same cutting, reassembly and blocking as users do.

#[macro_use]
mod family;

mod batch;
mod bytes;
mod closer;
mod ear;
mod ends;
mod gather;
mod manner;
mod monitor;
mod pace;
mod partial;
mod receiver;
mod receiver_core;
mod recv_guard;
mod reservation;
mod sender;
mod sender_core;
mod shared;
mod stats;

pub use batch::Batch;
pub use bytes::{ByteReader, ByteWriter};
pub use closer::Closer;
pub(crate) use closer::{bury, shut};
pub use ear::Ear;
pub(crate) use ends::{ConnectionId, Ends, Line};
#[cfg(feature = "testing")]
pub use gather::Gather;
#[cfg(feature = "testing")]
pub use monitor::in_turn;
pub use monitor::{Latch, Monitor, RealThreads, Threads};
#[cfg(feature = "testing")]
pub use pace::NoPace;
pub(crate) use pace::Waiting;
pub use pace::{Pace, WaitStrategy};
pub use receiver::{Iter, Receiver, TryIter};
pub use receiver_core::{Inbound, Incoming, Received, RecvFault};
pub use recv_guard::RecvGuard;
pub use reservation::Reservation;
pub use sender::Sender;
pub use sender_core::{Outbound, SendFault};
pub use shared::SharedSender;
pub(crate) use stats::waits_to;
pub use stats::{Stats, Waits};

pub use crate::ring::{Poster, Wanted};
pub(crate) use crate::sys::{borrow::RawBytes, fork::Canary, mapping::Mapping, socket::PeerCred, threads};

use crate::mem::{Memory, Until};

/// Waits that came to nothing, in a row, after which the peer is taken for one that plays with us.
const PLAYED: u32 = 64;

/// Whether a call may wait again after so many waits that came to nothing: a peer whose words flicker
/// outlives no deadline, and costs bounded CPU.
pub(crate) fn may_wait_on<M: Memory>(mem: &M, until: Until, tries: u32) -> bool {
    if tries > 0 && mem.expired(until) {
        return false;
    }
    if tries > PLAYED {
        mem.doze(until);
    }
    true
}

/// How long an operation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It never blocks.
    Never,
    /// Until a deadline, or for ever.
    Until(Until),
}

impl Wait {
    /// For as long as it takes.
    pub const FOREVER: Self = Self::Until(None);

    /// For a duration; one too long for the clock is for ever.
    pub fn for_duration(timeout: std::time::Duration) -> Self {
        Self::Until(std::time::Instant::now().checked_add(timeout))
    }
}
