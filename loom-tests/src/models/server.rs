//! A server's connection for models, and a client that is written by hand.

use std::sync::Arc;
use std::time::Instant;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::rpc::server::{
    Attendant, Body, Event, Failure, Given, Hall, Limits, Parts, Service, Started, Table,
};
use super::super::code::rpc::wire::{Head, Kind, Status, cost};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore,
};
use super::frames::{Frame, hear, say};
use super::{MAX_MESSAGE, receiver, sender};
use crate::machine::{Cells, LoomThreads, Model, Side};

pub(super) const PLACES: usize = 2;

/// The first calls of the two places.
pub(super) const FIRST: u64 = 2;
pub(super) const SECOND: u64 = 3;

/// Methods that the attendant runs itself.
pub(super) const INLINE: u32 = 1;
/// Methods that are handed on.
pub(super) const POOLED: u32 = 2;

pub(super) type Shared = Arc<Hall<Model, NoWaitPolicy, LoomThreads>>;

/// A connection whose client was welcomed.
pub(super) fn hall(side: &Side<Cells>) -> Shared {
    let hall = closed_hall(side);
    hall.open(|_| ());
    hall
}

/// A connection whose windows are one chunk of a byte each.
pub(super) fn closed_hall(side: &Side<Cells>) -> Shared {
    let window = cost(1);
    Arc::new(Hall::new(Parts {
        outbound: sender(side),
        outgoing: side.out.clone(),
        ear: IncomingSignals::new(side.into.clone()),
        table: Table::new(Limits {
            places: PLACES,
            max: MAX_MESSAGE,
            piece: 64,
            window,
            push_window: window,
        }),
        piece: 64,
    }))
}

/// A call runs.
pub(super) fn runs(hall: &Shared, id: u64, flags: u8) {
    let head = Head::new(Kind::Call, POOLED).with(flags);
    let event = hall.with(|table| table.take(id, head, 1, |_| (), |_, _| Ok(())));
    assert!(matches!(event, Ok(Event::Run(_))));
}

/// What the connection's thread does with calls.
#[derive(Default)]
pub(super) struct Methods {
    pub(super) started: Vec<Started>,
    /// Told when a call begins.
    pub(super) begun: Option<Arc<Notify>>,
    pub(super) over: Option<Arc<AtomicBool>>,
    pub(super) hall: Option<Shared>,
    pub(super) reply: Vec<u8>,
}

impl Service<Model, NoWaitPolicy> for Methods {
    fn admit(&mut self, method: u32, _flags: u8) -> Result<bool, Failure> {
        match method {
            INLINE => Ok(true),
            POOLED => Ok(false),
            _ => Err((Status::UnknownMethod, 0, String::new())),
        }
    }

    fn run(&mut self, call: Started, _request: Vec<u8>, _arrived: Option<Instant>) {
        self.started.push(call);
        if let Some(begun) = &self.begun {
            begun.notify();
        }
    }

    fn run_in_place(
        &mut self,
        _: Started,
        _: Given<'_, Model, NoWaitPolicy>,
    ) -> Result<&mut Vec<u8>, Failure> {
        self.reply = vec![7];
        Ok(&mut self.reply)
    }

    fn is_over(&self) -> bool {
        let quiet = || self.hall.as_ref().is_none_or(|hall| hall.is_quiet());
        self.over.as_ref().is_some_and(|over| over.load(Ordering::Relaxed) && quiet())
    }
}

/// Serves until the connection ends.
pub(super) fn attend(hall: &Shared, side: &Side<Cells>, methods: &mut Methods) -> ConnectionError {
    Attendant::new(hall.clone(), receiver(side)).attend(methods)
}

pub(super) fn reply(hall: &Shared, id: u64) {
    hall.finish(id, Head::new(Kind::Reply, 0), Body::Lent(&[u8::try_from(id).unwrap()]));
}

pub(super) fn kind((_, head, _): &Frame) -> Kind {
    head.kind
}

/// A client's halves. It goes when this is dropped.
pub(super) struct Client {
    inb: ReceiverCore<Model, NoWaitPolicy>,
    out: SenderCore<Model, NoWaitPolicy>,
    pub(super) poster: OobSender<Model>,
}

impl Client {
    pub(super) fn new(side: &Side<Cells>) -> Self {
        Self { inb: receiver(side), out: sender(side), poster: OobSender::new(side.out.clone()) }
    }

    pub(super) fn hears(&mut self) -> Frame {
        hear(&mut self.inb).unwrap()
    }

    pub(super) fn says(&mut self, id: u64, head: Head) {
        say(&mut self.out, id, head, &[]);
    }

    pub(super) fn calls(&mut self, id: u64, method: u32) {
        self.says(id, Head::new(Kind::Call, method));
    }

    pub(super) fn cancels(&mut self, id: u64) {
        self.poster.send_oob(u32::try_from(id).unwrap() % 2, id);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.out.ring().close();
    }
}

/// The connection's thread serves until the client, whose part another thread plays, goes.
pub(super) fn serve(
    hall: &Shared,
    (client, server): (Side<Cells>, Side<Cells>),
    methods: &mut Methods,
    part: impl FnOnce(&mut Client) + Send + 'static,
) {
    let client = thread::spawn(move || part(&mut Client::new(&client)));
    assert_eq!(attend(hall, &server, methods), ConnectionError::Disconnected);
    client.join().unwrap();
}
