//! The call layer: its codec, one side against a peer that lies, and both sides with an honest program.
//!
//! ```text
//!   first byte % 4
//!   0  bytes ──▶ heads, settings, pieces in any order ──▶ codec, Assembly        against a reference
//!   1  bytes ──▶ frames of a liar ══ ring ══▶ Desk       the client: bounded, its books balance
//!   2  bytes ──▶ frames of a liar ══ ring ══▶ Attendant  the server: bounded, its books balance, its frames judged
//!   3  bytes ──▶ calls, streams, uploads, pushes, cancels: Desk ══ rings ══ Attendant    against what was said
//! ```
//!
//! One thread: who waits for whom is `loom-tests`' part. No call here waits, but for one that the pace answers.

mod client;
mod codec;
mod hostile_client;
mod hostile_server;
mod program;
mod server;

use std::sync::Arc;

use super::bytes::Bytes;
use narrows::internal::mem::{Heap, INLINE, Memory};
use narrows::internal::rpc::server::Limits;
use narrows::internal::rpc::wire::{CHUNK_COST, HEAD};
use narrows::internal::{Inbound, NoPace, Outbound, Pace};

pub use program::{CallTally, call_tally};

/// Runs what the bytes are.
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

/// Two rings, and what bounds the calls on them.
#[derive(Clone, Debug)]
struct World {
    /// Client to server.
    up: Mem,
    /// Server to client.
    down: Mem,
    limits: Limits,
}

impl World {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let places = 1 << bytes.below(3);
        let ring = |bytes: &mut Bytes<'_>| {
            let arena = 128 << bytes.below(3);
            Arc::new(Heap::new(1 << bytes.below(5), arena, places))
        };
        let (up, down) = (ring(bytes), ring(bytes));
        // A whole frame fits either ring, as the real piece does, and an error's code fits a piece.
        let handy = usize::try_from(up.arena().min(down.arena())).unwrap_or(0).clamp(INLINE, 256);
        let piece = 8 + bytes.below(handy - HEAD - 8);
        let window = |bytes: &mut Bytes<'_>| CHUNK_COST + 1 + u32::from(bytes.u8()) * 2;
        let limits = Limits {
            places,
            max: 1 + bytes.below(400),
            piece,
            window: window(bytes),
            push_window: window(bytes),
        };
        Self { up, down, limits }
    }

    fn sender<P: Pace>(mem: &Mem, pace: P) -> Outbound<Mem, P> {
        Outbound::new(Arc::clone(mem), pace, 0, 1 << 12)
    }

    fn receiver<P: Pace>(mem: &Mem, pace: P) -> Inbound<Mem, P> {
        Inbound::new(Arc::clone(mem), pace, 0, 1 << 12)
    }

    /// The halves of a peer that is no part of the library: what it sends, and what it gets.
    fn liar(into: &Mem, from: &Mem) -> (Outbound<Mem, NoPace>, Inbound<Mem, NoPace>) {
        (Self::sender(into, NoPace), Self::receiver(from, NoPace))
    }
}

/// A length, most often a small one or one near a border.
fn length(bytes: &mut Bytes<'_>, piece: usize, most: usize) -> usize {
    match bytes.below(6) {
        0 => 0,
        1 => most,
        2 => bytes.pick(&[piece - 1, piece, piece + 1, 2 * piece, 4 * piece, 5 * piece + 1]).min(most),
        _ => bytes.below(most + 1),
    }
}

/// Bytes that say which of all texts they are.
fn text(number: u64, len: usize) -> Vec<u8> {
    let seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    (0_u8..251).cycle().zip(seed.into_iter().cycle()).map(|(a, b)| a ^ b).take(len).collect()
}
