//! A server's connection for models, and a client that the model plays.

use std::sync::Arc;
use std::time::Instant;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::super::code::rpc::flow_control::window_cost;
use super::super::code::rpc::server::{
    BorrowedRequest, CallEvent, CallFailure, CallInfo, CallLimits, ConnectionDriver, Dispatch, Payload,
    ServedCalls, ServerConnection, ServerConnectionParts,
};
use super::super::code::rpc::wire::{FrameHeader, FrameKind, Status};
use super::super::code::{
    ConnectionError, IncomingSignals, NoWaitPolicy, OobSender, ReceiverCore, SenderCore,
};
use super::frames::{Frame, receive_frame, send_frame};
use super::{MAX_MESSAGE, receiver, sender};
use crate::memory::{Cells, LoomSync, Model, Side};

pub(super) const SLOTS: usize = 2;

/// The ids of the first calls in the two slots.
pub(super) const FIRST: u64 = 2;
pub(super) const SECOND: u64 = 3;

/// The method that the driver runs itself.
pub(super) const INLINE: u32 = 1;
/// The method that is dispatched to a worker.
pub(super) const POOLED: u32 = 2;

pub(super) type Shared = Arc<ServerConnection<Model, NoWaitPolicy, LoomSync>>;

/// Returns a connection whose client was accepted.
pub(super) fn server_connection(side: &Side<Cells>) -> Shared {
    let connection = unaccepted_connection(side);
    connection.accept(|_| ());
    connection
}

/// Returns a connection whose client was not accepted yet. Each window is one chunk of one byte.
pub(super) fn unaccepted_connection(side: &Side<Cells>) -> Shared {
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

/// Enters a call that runs.
pub(super) fn start_call(connection: &Shared, id: u64, flags: u8) {
    let head = FrameHeader::new(FrameKind::Call, POOLED).with_flags(flags);
    let event = connection.with_calls(|calls| calls.on_frame(id, head, 1, |_| (), |_, _| Ok(())));
    assert!(matches!(event, Ok(CallEvent::Run(_))));
}

/// What the driver does with calls.
#[derive(Default)]
pub(super) struct Methods {
    pub(super) started: Vec<CallInfo>,
    /// Is notified when a call begins.
    pub(super) begun: Option<Arc<Notify>>,
    pub(super) stopping: Option<Arc<AtomicBool>>,
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
        let is_idle = || self.connection.as_ref().is_none_or(|connection| connection.is_idle());
        self.stopping.as_ref().is_some_and(|stopping| stopping.load(Ordering::Relaxed) && is_idle())
    }
}

/// Runs the driver until the connection ends.
pub(super) fn drive(connection: &Shared, side: &Side<Cells>, methods: &mut Methods) -> ConnectionError {
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

/// The two halves of a client, which closes when this is dropped.
pub(super) struct Client {
    inb: ReceiverCore<Model, NoWaitPolicy>,
    out: SenderCore<Model, NoWaitPolicy>,
    oob_sender: OobSender<Model>,
}

impl Client {
    pub(super) fn new(side: &Side<Cells>) -> Self {
        Self { inb: receiver(side), out: sender(side), oob_sender: OobSender::new(side.out.clone()) }
    }

    pub(super) fn receive(&mut self) -> Frame {
        receive_frame(&mut self.inb).unwrap()
    }

    pub(super) fn send(&mut self, id: u64, head: FrameHeader) {
        send_frame(&mut self.out, id, head, &[]);
    }

    pub(super) fn call(&mut self, id: u64, method: u32) {
        self.send(id, FrameHeader::new(FrameKind::Call, method));
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.oob_sender.send_oob(u32::try_from(id).unwrap() % 2, id);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.out.ring().close();
    }
}

/// Runs the driver until the client closes. Another thread plays the client.
pub(super) fn serve(
    connection: &Shared,
    (client, server): (Side<Cells>, Side<Cells>),
    methods: &mut Methods,
    part: impl FnOnce(&mut Client) + Send + 'static,
) {
    let client = thread::spawn(move || part(&mut Client::new(&client)));
    assert_eq!(drive(connection, &server, methods), ConnectionError::Disconnected);
    client.join().unwrap();
}
