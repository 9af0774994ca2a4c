//! Messages over a ring: blocking, deadlines, closing, fragmentation and reassembly.
//!
//! ```text
//!   Sender, SharedSender, Batch, Reservation       Receiver, RecvGuard        public, over sys::Mapping
//!          |                                           |
//!      SenderCore<M, P>                            ReceiverCore<M, P>    any memory, any wait policy
//!          |                                           |
//!      ring::Producer<M>                           ring::Consumer<M>
//! ```
//!
//! `SenderCore` and `ReceiverCore` are generic over the memory and over the wait policy, which decides what a thread
//! does before it sleeps. So the models run the same fragmentation, reassembly and blocking as the library's users.

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

/// Waits in a row that returned without a result, after which the peer is treated as hostile: each further wait backs
/// off first.
const MAX_SPURIOUS_WAKES: u32 = 64;

/// Returns whether a call may wait again after `tries` waits that returned without a result. A peer that keeps changing
/// its words cannot delay a call past its deadline, and costs bounded CPU.
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
    /// The call never blocks.
    Never,
    /// The call blocks until a deadline, or without one.
    Deadline(Deadline),
}

impl Wait {
    /// Blocks without a deadline.
    pub const NO_DEADLINE: Self = Self::Deadline(None);

    /// Blocks for a duration; one that overflows `Instant` means no deadline.
    pub fn for_duration(timeout: std::time::Duration) -> Self {
        Self::Deadline(std::time::Instant::now().checked_add(timeout))
    }
}
