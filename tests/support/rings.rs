//! One direction in private memory: both halves, and the memory itself to inspect or to change.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use narrows::internal::memory::{Heap, Load, Memory, Word};
use narrows::internal::ring::Producer;
use narrows::internal::{NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait};

pub type Out<M = Arc<Heap>> = SenderCore<M, NoWaitPolicy>;
pub type In<M = Arc<Heap>> = ReceiverCore<M, NoWaitPolicy>;

/// The longest message of the rings made here, in bytes.
pub const MAX: usize = 4 << 20;

/// Returns a direction whose first ticket is `first`.
pub fn ring(slots: usize, arena: usize, first: u64) -> (Out, In, Arc<Heap>) {
    let heap = Arc::new(Heap::new(slots, arena, 4));
    let (out, inb) = over(&heap, first);
    (out, inb, heap)
}

/// Returns a direction over a memory that the test provides.
pub fn over<M: Memory + Clone>(mem: &M, first: u64) -> (Out<M>, In<M>) {
    Producer::format(mem, first);
    (
        SenderCore::new(mem.clone(), NoWaitPolicy, first, MAX),
        ReceiverCore::new(mem.clone(), NoWaitPolicy, first, MAX),
    )
}

/// Returns a wait whose deadline has passed. Unlike `Wait::Never` it may leave a long message half sent.
pub fn at_once() -> Wait {
    Wait::Deadline(Some(Instant::now()))
}

pub fn send<M: Memory>(
    out: &mut Out<M>,
    message: &[u8],
    tag: u64,
    wait: Wait,
) -> Result<usize, SendCoreError> {
    out.send(&[IoSlice::new(message)], tag, wait)
}

/// Sends a message that must have room now.
#[track_caller]
pub fn put<M: Memory>(out: &mut Out<M>, message: &[u8], tag: u64) {
    assert_eq!(send(out, message, tag, Wait::Never), Ok(message.len()), "room for it");
}

/// Receives a message that must be there now.
#[track_caller]
pub fn take<M: Memory>(inb: &mut In<M>) -> (Vec<u8>, u64) {
    let mut buffer = Vec::new();
    let message = inb.recv_into(&mut buffer, Wait::Never).expect("a message is there");
    assert_eq!(message.len, buffer.len());
    (buffer, message.tag)
}

pub fn try_take<M: Memory>(inb: &mut In<M>) -> Result<(Vec<u8>, u64), RecvCoreError> {
    let mut buffer = Vec::new();
    let message = inb.recv_into(&mut buffer, Wait::Never)?;
    Ok((buffer, message.tag))
}

/// Returns the head that the consumer has published.
pub fn head<M: Memory>(mem: &M) -> u64 {
    mem.load(Word::Head, Load::Relaxed)
}
