//! A client's desk for models, and what its server says.

use std::sync::Arc;
use std::time::Instant;

use loom::thread;

use super::super::code::rpc::client::{Desk, Final, Parts, Stop, Table};
use super::super::code::rpc::pieces::Cut;
use super::super::code::rpc::wire::{Head, Kind, cost};
use super::super::code::{IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore, Wait};
use super::frames::say;
use super::{MAX_MESSAGE, receiver, sender};
use crate::machine::{Cells, LoomThreads, Model, Side};

pub(super) const PLACES: usize = 2;

pub(super) type Shared = Arc<Desk<Model, NoWaitPolicy, LoomThreads>>;

/// A client's connection with so many places, and windows of one chunk of a byte.
pub(super) fn desk(side: &Side<Cells>, places: usize) -> Shared {
    Arc::new(Desk::new(parts(side, receiver(side), sender(side), places)))
}

pub(super) fn parts<P>(
    side: &Side<Cells>,
    inbound: ReceiverCore<Model, P>,
    outbound: SenderCore<Model, P>,
    places: usize,
) -> Parts<Model, P> {
    let (poster, ear, window) =
        (OobSender::new(side.out.clone()), IncomingSignals::new(side.into.clone()), cost(1));
    let table = Table::new(places, MAX_MESSAGE, window, 64 * window);
    Parts { inbound, outbound, poster, ear, table, places, piece: 64 }
}

pub(super) fn soon() -> Wait {
    Wait::Until(Some(Instant::now()))
}

/// Takes a place for a call.
pub(super) fn open(desk: &Shared, flags: u8, wait: Wait) -> Result<u64, Stop> {
    desk.wait(desk.freed(), wait, |table| table.open(7, flags))
}

/// Opens a call and sends it.
pub(super) fn begin(desk: &Shared, flags: u8) -> u64 {
    let id = open(desk, flags, Wait::FOREVER).unwrap();
    let mut cut = Cut::new(Head::new(Kind::Call, 7).with(flags), 1);
    desk.send_item(&mut cut, [&[9], &[]], &mut 0, id, Wait::FOREVER).unwrap();
    id
}

/// Waits for the reply of a call.
pub(super) fn end(desk: &Shared, id: u64, wait: Wait) -> Result<Vec<u8>, Stop> {
    let mut buffer = Vec::new();
    let end = desk.wait(desk.signal_of(id), wait, |table| table.finish(id, &mut buffer))?;
    assert_eq!(end, Final::Reply);
    Ok(buffer)
}

/// The reply to a call, which says whose it is.
pub(super) fn reply_to(id: u64) -> Vec<u8> {
    vec![u8::try_from(id).unwrap(); 2]
}

pub(super) fn reply(server: &Side<Cells>, ids: &[u64]) {
    let mut out = sender(server);
    ids.iter().for_each(|&id| say(&mut out, id, Head::new(Kind::Reply, 0), &reply_to(id)));
}

/// A thread that waits for the reply of a call, which comes.
pub(super) fn waits(desk: &Shared, id: u64) -> thread::JoinHandle<()> {
    let desk = desk.clone();
    thread::spawn(move || assert_eq!(end(&desk, id, Wait::FOREVER), Ok(reply_to(id))))
}
