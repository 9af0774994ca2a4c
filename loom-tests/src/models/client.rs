//! A client's multiplexer for models, and the frames of its server.

use std::sync::Arc;
use std::time::Instant;

use loom::thread;

use super::super::code::rpc::client::{CallOutcome, InFlightCalls, Multiplexer, MultiplexerParts, WaitError};
use super::super::code::rpc::flow_control::window_cost;
use super::super::code::rpc::fragment::Fragmenter;
use super::super::code::rpc::wire::{FrameHeader, FrameKind};
use super::super::code::{IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait};
use super::frames::send_frame;
use super::{MAX_MESSAGE, receiver, sender};
use crate::memory::{Cells, LoomSync, Model, Side};

pub(super) const SLOTS: usize = 2;

pub(super) type Shared = Arc<Multiplexer<Model, NoWaitPolicy, LoomSync>>;

/// Returns a client's multiplexer with `slots` call slots, and windows of one chunk of one byte.
pub(super) fn mux(side: &Side<Cells>, slots: usize) -> Shared {
    Arc::new(Multiplexer::new(parts(side, receiver(side), sender(side), slots)))
}

pub(super) fn parts<P>(
    side: &Side<Cells>,
    inbound: ReceiverCore<Model, P>,
    outbound: SenderCore<Model, P>,
    slots: usize,
) -> MultiplexerParts<Model, P> {
    let oob_sender = OobSender::new(side.out.clone());
    let incoming = IncomingSignals::new(side.into.clone());
    let window = window_cost(1);
    let calls = InFlightCalls::new(slots, MAX_MESSAGE, window, 64 * window);
    MultiplexerParts { inbound, outbound, oob_sender, incoming, calls, slots, max_fragment: 64 }
}

pub(super) fn soon() -> Wait {
    Wait::Deadline(Some(Instant::now()))
}

/// Takes a slot for a call.
pub(super) fn open(mux: &Shared, flags: u8, wait: Wait) -> Result<u64, WaitError> {
    mux.wait(mux.slot_signal(), wait, |calls| calls.open(7, flags))
}

/// Opens a call and sends it.
pub(super) fn begin(mux: &Shared, flags: u8) -> u64 {
    let id = open(mux, flags, Wait::NO_DEADLINE).unwrap();
    let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Call, 7).with_flags(flags), 1);
    mux.send_item(&mut fragmenter, [&[9], &[]], &mut 0, id, Wait::NO_DEADLINE).unwrap();
    id
}

/// Waits for the reply of a call.
pub(super) fn end(mux: &Shared, id: u64, wait: Wait) -> Result<Vec<u8>, WaitError> {
    let mut buffer = Vec::new();
    let end = mux.wait(mux.signal_of(id), wait, |calls| calls.take_outcome(id, &mut buffer))?;
    assert_eq!(end, CallOutcome::Reply);
    Ok(buffer)
}

/// Returns the reply to a call. Its bytes are the id of the call.
pub(super) fn reply_to(id: u64) -> Vec<u8> {
    vec![u8::try_from(id).unwrap(); 2]
}

pub(super) fn reply(server: &Side<Cells>, ids: &[u64]) {
    let mut out = sender(server);
    ids.iter().for_each(|&id| send_frame(&mut out, id, FrameHeader::new(FrameKind::Reply, 0), &reply_to(id)));
}

/// Starts a thread that waits for the reply of a call, and checks it.
pub(super) fn spawn_waiter(mux: &Shared, id: u64) -> thread::JoinHandle<()> {
    let mux = mux.clone();
    thread::spawn(move || assert_eq!(end(&mux, id, Wait::NO_DEADLINE), Ok(reply_to(id))))
}
