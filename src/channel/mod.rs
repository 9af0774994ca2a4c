//! Messages over a ring: block, time out, close, cut and reassemble.
//!
//! ```text
//!   Sender, SharedSender, Batch, Reservation       Receiver, RecvGuard        public, over sys::Mapping
//!          |                                           |
//!      SenderCore<M, P>                            ReceiverCore<M, P>           any memory, any pace
//!          |                                           |
//!      ring::Producer<M>                           ring::Consumer<M>
//! ```
//!
//! `SenderCore` and `ReceiverCore` are generic over the memory and over how to pass the time before
//! sleeping, so the models run the same cutting, reassembly and blocking as users do.

mod batch;
mod byte_stream;
mod call_mode;
mod closer;
mod incoming_signals;
mod io_slice_reader;
mod raw_parts;
mod reassembly;
mod receiver;
mod receiver_core;
mod recv_guard;
mod reservation;
mod sender;
mod sender_core;
mod shared_sender;
mod stats;
mod sync;
mod wait_policy;

pub use batch::Batch;
pub use byte_stream::{ByteReader, ByteWriter};
pub use closer::Closer;
pub(crate) use closer::{close_both, on_peer_gone};
pub use incoming_signals::IncomingSignals;
#[cfg(feature = "testing")]
pub use io_slice_reader::IoSliceReader;
pub(crate) use raw_parts::{ConnectionHandle, ConnectionId, RawParts};
pub use receiver::{Iter, Receiver, TryIter};
pub use receiver_core::{IncomingMessage, Received, ReceiverCore, RecvCoreError};
pub use recv_guard::RecvGuard;
pub use reservation::Reservation;
pub use sender::Sender;
pub use sender_core::{SendCoreError, SenderCore};
pub use shared_sender::SharedSender;
pub(crate) use stats::waits_to;
pub use stats::{Stats, Waits};
#[cfg(feature = "testing")]
pub use sync::with_lock;
pub use sync::{Lock, RealSync, SharedFlag, SyncBackend};
pub(crate) use wait_policy::AdaptiveWait;
#[cfg(feature = "testing")]
pub use wait_policy::NoWaitPolicy;
pub use wait_policy::{WaitPolicy, WaitStrategy};

pub use crate::ring::{AwaitedRelease, OobSender};
pub(crate) use crate::sys::{
    fork_guard::ForkGuard, mapping::Mapping, raw_span::RawBytes, socket::PeerCred, threads,
};

use crate::memory::{Deadline, Memory};

/// Waits that came to nothing, in a row, after which the peer is taken for one that plays with us.
const MAX_SPURIOUS_WAKES: u32 = 64;

/// Whether a call may wait again after so many waits that came to nothing: a peer whose words flicker
/// outlives no deadline, and costs bounded CPU.
pub(crate) fn back_off_or_expire<M: Memory>(mem: &M, deadline: Deadline, tries: u32) -> bool {
    if tries > 0 && mem.has_expired(deadline) {
        return false;
    }
    if tries > MAX_SPURIOUS_WAKES {
        mem.back_off(deadline);
    }
    true
}

/// How long an operation may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It never blocks.
    Never,
    /// Until a deadline, or for ever.
    Deadline(Deadline),
}

impl Wait {
    /// For as long as it takes.
    pub const NO_DEADLINE: Self = Self::Deadline(None);

    /// For a duration; one too long for the clock is for ever.
    pub fn for_duration(timeout: std::time::Duration) -> Self {
        Self::Deadline(std::time::Instant::now().checked_add(timeout))
    }
}
