//! The RPC layer: its codec, each side against a hostile peer, and both sides with each other.
//!
//! ```text
//!   first byte % 4
//!   0  bytes ──▶ headers, settings, fragments in any order ──▶ codec, Reassembler   compared with a reference
//!   1  bytes ──▶ frames of a hostile server ══ ring ══▶ Multiplexer   limits hold, tables are consistent
//!   2  bytes ──▶ frames of a hostile client ══ ring ══▶ ConnectionDriver   the same; legal frames
//!   3  bytes ──▶ program of calls, streams, uploads, pushes ──▶ Multiplexer ══ rings ══ ConnectionDriver   own replies
//! ```
//!
//! Everything runs in one thread; `loom-tests` covers concurrency. No operation blocks. The only one that may wait is a call whose
//! wait policy runs the server.

mod client;
mod codec;
mod hostile_client;
mod hostile_server;
mod program;
mod server;

use std::sync::Arc;

use super::bytes::Bytes;
use narrows::internal::memory::{Heap, INLINE_CAPACITY, Memory};
use narrows::internal::rpc::flow_control::CHUNK_COST;
use narrows::internal::rpc::server::CallLimits;
use narrows::internal::rpc::wire::HEADER_LEN;
use narrows::internal::{NoWaitPolicy, ReceiverCore, SenderCore, WaitPolicy};

pub use program::{CallTally, call_tally};

/// Decodes a mode from the first byte, and runs it with the others.
pub fn calls(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    match bytes.below(4) {
        0 => codec::codec(&mut bytes),
        1 => hostile_server::run(&mut bytes),
        2 => hostile_client::run(&mut bytes),
        _ => drop(program::run(&mut bytes)),
    }
}

type Mem = Arc<Heap>;

/// Two rings, and the limits of the calls on them.
#[derive(Clone, Debug)]
struct CallRings {
    /// Client to server.
    up: Mem,
    /// Server to client.
    down: Mem,
    limits: CallLimits,
}

impl CallRings {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let slots = 1 << bytes.below(3);
        let ring = |bytes: &mut Bytes<'_>| {
            let arena = 128 << bytes.below(3);
            Arc::new(Heap::new(1 << bytes.below(5), arena, slots))
        };
        let (up, down) = (ring(bytes), ring(bytes));
        // As in the library, a frame with a whole fragment fits into either arena, and the code of an error into a fragment.
        let frame = usize::try_from(up.arena().min(down.arena())).unwrap_or(0).clamp(INLINE_CAPACITY, 256);
        let fragment = 8 + bytes.below(frame - HEADER_LEN - 8);
        let window = |bytes: &mut Bytes<'_>| CHUNK_COST + 1 + u32::from(bytes.u8()) * 2;
        let limits = CallLimits {
            slots,
            max_message: 1 + bytes.below(400),
            max_fragment: fragment,
            window: window(bytes),
            push_window: window(bytes),
        };
        Self { up, down, limits }
    }

    fn sender<P: WaitPolicy>(mem: &Mem, policy: P) -> SenderCore<Mem, P> {
        SenderCore::new(Arc::clone(mem), policy, 0, 1 << 12)
    }

    fn receiver<P: WaitPolicy>(mem: &Mem, policy: P) -> ReceiverCore<Mem, P> {
        ReceiverCore::new(Arc::clone(mem), policy, 0, 1 << 12)
    }

    /// Returns the two halves of one end, for code that drives them without waiting.
    fn end(into: &Mem, from: &Mem) -> (SenderCore<Mem, NoWaitPolicy>, ReceiverCore<Mem, NoWaitPolicy>) {
        (Self::sender(into, NoWaitPolicy), Self::receiver(from, NoWaitPolicy))
    }
}

/// Returns a length, often one near a multiple of the fragment size.
fn length(bytes: &mut Bytes<'_>, fragment: usize, most: usize) -> usize {
    match bytes.below(6) {
        0 => 0,
        1 => most,
        2 => bytes
            .pick(&[fragment - 1, fragment, fragment + 1, 2 * fragment, 4 * fragment, 5 * fragment + 1])
            .min(most),
        _ => bytes.below(most + 1),
    }
}

/// Returns bytes that differ for each number.
fn text(number: u64, len: usize) -> Vec<u8> {
    let seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    (0_u8..251).cycle().zip(seed.into_iter().cycle()).map(|(a, b)| a ^ b).take(len).collect()
}
