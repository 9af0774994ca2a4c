//! A server's connection for models, and a client that is written by hand.

use std::sync::Arc;
use std::time::Instant;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::rpc::server::{
    BorrowedRequest, CallEvent, CallFailure, CallInfo, CallLimits, ConnectionDriver, Dispatch, Payload,
    ServedCalls, ServerConnection, ServerConnectionParts,
};
use super::super::code::rpc::wire::{FrameHeader, FrameKind, Status, window_cost};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore,
};
use super::frames::{Frame, receive_frame, send_frame};
use super::{MAX_MESSAGE, receiver, sender};
use crate::memory::{Cells, LoomSync, Model, Side};

pub(super) const SLOTS: usize = 2;

/// The first calls of the two places.
pub(super) const FIRST: u64 = 2;
pub(super) const SECOND: u64 = 3;

/// Methods that the attendant runs itself.
pub(super) const INLINE: u32 = 1;
/// Methods that are handed on.
pub(super) const POOLED: u32 = 2;

pub(super) type Shared = Arc<ServerConnection<Model, NoWaitPolicy, LoomSync>>;

/// A connection whose client was welcomed.
pub(super) fn server_connection(side: &Side<Cells>) -> Shared {
    let connection = closed_connection(side);
    connection.accept(|_| ());
    connection
}

/// A connection whose windows are one chunk of a byte each.
pub(super) fn closed_connection(side: &Side<Cells>) -> Shared {
    let window = window_cost(1);
    Arc::new(ServerConnection::new(ServerConnectionParts {
        outbound: sender(side),
        outgoing: side.out.clone(),
        incoming: IncomingSignals::new(side.into.clone()),
        calls: ServedCalls::new(CallLimits {
            slots: SLOTS,
            max_message: MAX_MESSAGE,
            max_fragment: 64,
            window,
            push_window: window,
        }),
        max_fragment: 64,
    }))
}

/// A call runs.
pub(super) fn runs(connection: &Shared, id: u64, flags: u8) {
    let head = FrameHeader::new(FrameKind::Call, POOLED).with_flags(flags);
    let event = connection.with_calls(|calls| calls.on_frame(id, head, 1, |_| (), |_, _| Ok(())));
    assert!(matches!(event, Ok(CallEvent::Run(_))));
}

/// What the connection's thread does with calls.
#[derive(Default)]
pub(super) struct Methods {
    pub(super) started: Vec<CallInfo>,
    /// Told when a call begins.
    pub(super) begun: Option<Arc<Notify>>,
    pub(super) over: Option<Arc<AtomicBool>>,
    pub(super) connection: Option<Shared>,
    pub(super) reply: Vec<u8>,
}

impl Dispatch<Model, NoWaitPolicy> for Methods {
    fn admit(&mut self, method: u32, _flags: u8) -> Result<bool, CallFailure> {
        match method {
            INLINE => Ok(true),
            POOLED => Ok(false),
            _ => Err((Status::UnknownMethod, 0, String::new())),
        }
    }

    fn dispatch(&mut self, call: CallInfo, _request: Vec<u8>, _arrived: Option<Instant>) {
        self.started.push(call);
        if let Some(begun) = &self.begun {
            begun.notify();
        }
    }

    fn run_inline(
        &mut self,
        _: CallInfo,
        _: BorrowedRequest<'_, Model, NoWaitPolicy>,
    ) -> Result<&mut Vec<u8>, CallFailure> {
        self.reply = vec![7];
        Ok(&mut self.reply)
    }

    fn is_done(&self) -> bool {
        let quiet = || self.connection.as_ref().is_none_or(|connection| connection.is_idle());
        self.over.as_ref().is_some_and(|over| over.load(Ordering::Relaxed) && quiet())
    }
}

/// Serves until the connection ends.
pub(super) fn attend(connection: &Shared, side: &Side<Cells>, methods: &mut Methods) -> ConnectionError {
    ConnectionDriver::new(connection.clone(), receiver(side)).run(methods)
}

pub(super) fn reply(connection: &Shared, id: u64) {
    connection.finish(
        id,
        FrameHeader::new(FrameKind::Reply, 0),
        Payload::Borrowed(&[u8::try_from(id).unwrap()]),
    );
}

pub(super) fn kind((_, head, _): &Frame) -> FrameKind {
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
        receive_frame(&mut self.inb).unwrap()
    }

    pub(super) fn says(&mut self, id: u64, head: FrameHeader) {
        send_frame(&mut self.out, id, head, &[]);
    }

    pub(super) fn calls(&mut self, id: u64, method: u32) {
        self.says(id, FrameHeader::new(FrameKind::Call, method));
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
    connection: &Shared,
    (client, server): (Side<Cells>, Side<Cells>),
    methods: &mut Methods,
    part: impl FnOnce(&mut Client) + Send + 'static,
) {
    let client = thread::spawn(move || part(&mut Client::new(&client)));
    assert_eq!(attend(connection, &server, methods), ConnectionError::Disconnected);
    client.join().unwrap();
}
