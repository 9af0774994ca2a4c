//! The models. Each is small, and its name says what it proves.
//!
//! They run twice: over the code that ships, and over its mutated copy. `super::code` is either of the two.

use narrows::internal::memory::{Deadline, Flag, Memory, Padding};

use super::code::ring::{Cursor, Producer, WaitSlot, park};
use super::code::{NoWaitPolicy, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, Wait};
use crate::memory::{Cells, Model, Side, Spans, View, connection};

mod calls;
mod client;
mod close;
mod deadlines;
mod fragmented;
mod frames;
mod hostile_peer;
mod leader_follower;
mod limits;
mod messages;
mod oob;
mod overwrite;
mod parking;
mod server;
mod server_replies;
mod shared_sender;
mod streamed;
mod wait_for_either;

/// A model: its name and its body, which runs once for each execution.
pub type Named = (&'static str, fn());

/// Lists functions with their names.
macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}
use named;

/// Returns all models, the quickest first.
pub fn all() -> Vec<Named> {
    [of_streams(), of_clients(), of_servers()].concat()
}

/// Returns the models of the ring and the channel.
fn of_streams() -> Vec<Named> {
    [
        hostile_peer::ALL,
        limits::ALL,
        oob::ALL,
        wait_for_either::ALL,
        parking::ALL,
        messages::ALL,
        overwrite::ALL,
        close::ALL,
        shared_sender::ALL,
        fragmented::ALL,
        deadlines::ALL,
    ]
    .concat()
}

/// Returns the models of a client's calls.
pub fn of_clients() -> Vec<Named> {
    [calls::ALL, leader_follower::ALL].concat()
}

/// Returns the models of a server's calls.
pub fn of_servers() -> Vec<Named> {
    [server_replies::ALL, streamed::ALL].concat()
}

const MAX_MESSAGE: usize = 1 << 20;

/// The capacity of the buffers that models receive into. With an empty buffer no model would run the fast path of receiving.
const BUFFER_CAPACITY: usize = 4096;

fn sender<S: Spans>(side: &Side<S>) -> SenderCore<View<S>, NoWaitPolicy> {
    SenderCore::new(side.out.clone(), NoWaitPolicy, 0, MAX_MESSAGE)
}

/// Returns a sender and a receiver of a ring whose first ticket is `first`.
fn ring_from(
    first: u64,
    slots: usize,
    arena: usize,
) -> (SenderCore<Model, NoWaitPolicy>, ReceiverCore<Model, NoWaitPolicy>) {
    let (a, b) = connection::<Cells>(slots, arena);
    Producer::format(&a.out, first);
    let sender = SenderCore::new(a.out, NoWaitPolicy, first, MAX_MESSAGE);
    (sender, ReceiverCore::new(b.into, NoWaitPolicy, first, MAX_MESSAGE))
}

fn receiver<S: Spans>(side: &Side<S>) -> ReceiverCore<View<S>, NoWaitPolicy> {
    ReceiverCore::new(side.into.clone(), NoWaitPolicy, 0, MAX_MESSAGE)
}

fn send<M: Memory>(out: &mut SenderCore<M, NoWaitPolicy>, message: &[u8]) -> Result<usize, SendCoreError> {
    out.send_one(message, 0, Wait::NO_DEADLINE)
}

/// Stages a message at the cursor `from`, and returns the cursor after it.
fn stage<M: Memory>(out: &mut SenderCore<M, NoWaitPolicy>, from: Cursor, message: &[u8]) -> Cursor {
    if let Some(to) = out.try_stage_inline(from, message, 0) {
        return to;
    }
    let claim = out.stage(from, message.len()).unwrap();
    out.ring().mark_writing(&claim);
    out.ring().write(&claim, 0, message, Padding::Zero).unwrap();
    out.describe_whole(&claim, message.len(), 0);
    claim.after()
}

fn try_send<M: Memory>(
    out: &mut SenderCore<M, NoWaitPolicy>,
    message: &[u8],
) -> Result<usize, SendCoreError> {
    out.send_one(message, 0, Wait::Never)
}

fn recv<M: Memory>(inb: &mut ReceiverCore<M, NoWaitPolicy>) -> Result<Vec<u8>, RecvCoreError> {
    recv_within(inb, Wait::NO_DEADLINE)
}

fn recv_within<M: Memory>(
    inb: &mut ReceiverCore<M, NoWaitPolicy>,
    wait: Wait,
) -> Result<Vec<u8>, RecvCoreError> {
    let mut buffer = Vec::with_capacity(BUFFER_CAPACITY);
    inb.recv_into(&mut buffer, wait).map(|_| buffer)
}

/// Waits for a message or for the release of a ticket.
fn wait_for_either(side: &Side<Cells>, found: impl Fn() -> bool) {
    let look = || found().then_some(());
    assert_eq!(park(&WaitSlot::either(&side.into, &side.out), None, 0, look), Some(()));
}

/// Sleeps as the consumer until `found` returns true. Returns false if the deadline passed first.
fn sleep_until(view: &Model, deadline: Deadline, found: impl Fn() -> bool) -> bool {
    park(&WaitSlot::consumer(view), deadline, 0, || found().then_some(())).is_some()
}

/// Takes our flag as a peer that dies before it wakes us.
fn take_flag_and_die(view: &Model, flag: Flag) {
    let _taken = view.take_flag(flag);
}
