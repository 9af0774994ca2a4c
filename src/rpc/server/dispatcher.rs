//! Serves one connection on its own thread: exchanges the prefaces, then dispatches calls until the end.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::activity::ServerActivity;
use super::connection::{BorrowedRequest, CallInfo, ConnectionDriver, Dispatch};
use super::connection::{ServerConnection, ServerConnectionParts};

use super::in_flight::{CallFailure, CallLimits, ServedCalls};
use super::methods::{self, Method, busy};
use super::request::Request;
use super::session::{Connection, CountGuard, ProcessId, Session};
use super::state::ServerState;
use super::workers::Job;
use crate::channel::{AdaptiveWait, Mapping, RawParts, RealSync, RecvCoreError, threads};
use crate::error::{BusyReason, ConnectionError, RejectCode};
use crate::events;
use crate::memory::{Deadline, try_reserve};
use crate::rpc::nesting;
use crate::rpc::wire::{HEADER_LEN, NOTIFY, STREAM, Status, UPLOAD};
use crate::rpc::{flow_control, preface};
use crate::stream::SharedMemoryStream;

/// Serves one connection on this thread until it ends.
pub(super) fn serve(state: &Arc<ServerState>, stream: SharedMemoryStream) -> Result<(), ConnectionError> {
    state.count_connection();
    serve_counted(state, stream)
}

/// Serves a connection that was counted as open already, on this thread until it ends.
pub(super) fn serve_counted(
    state: &Arc<ServerState>,
    stream: SharedMemoryStream,
) -> Result<(), ConnectionError> {
    let id = state.next_id();
    let (process, connection) = (ProcessId::of(stream.peer_cred()), stream.id());
    let open = OpenGuard { state, id, process };
    let _driver = nesting::RoleGuard::driver(connection, state.limits.nested_timeout);
    let (session, mut driver) = exchange_preface(state, stream, id).inspect_err(|_| {
        state.activity.counts.refused.add();
    })?;
    let ended = match accept(state, &session) {
        true => {
            state.activity.counts.accepted.add();
            let mut dispatcher = Dispatcher {
                state,
                activity: &state.activity,
                session: &session,
                admitted: None,
                reply: Vec::new(),
                copy: Vec::new(),
            };
            driver.run(&mut dispatcher)
        }
        false => {
            state.activity.counts.refused.add();
            session.connection.close(ConnectionError::Closed);
            ConnectionError::Closed
        }
    };
    session.handle.closer().close();
    drop(open);
    report_end(state, &session, ended);
    match ended {
        ConnectionError::Disconnected => Ok(()),
        ended => Err(ended),
    }
}

/// Accepts a client that `on_connect` has admitted, unless the server has stopped or the client has gone.
///
/// The session is registered first: a thread that stops the server then closes it, or this thread sees that the
/// server has stopped. Otherwise a client that was accepted might outlive the server, and get `PeerDied`.
fn accept(state: &ServerState, session: &Arc<Session>) -> bool {
    state.register(session);
    if state.is_stopped() {
        return false;
    }
    let (stream_window, push_window) = state.options.windows();
    session.connection.accept(|out| preface::accept(out, stream_window, push_window)).is_ok()
}

/// Counts a connection as open, until the guard is dropped.
struct OpenGuard<'a> {
    state: &'a ServerState,
    id: u64,
    process: ProcessId,
}

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.state.unregister(self.id, self.process);
    }
}

fn report_end(state: &ServerState, session: &Arc<Session>, ended: ConnectionError) {
    match ended {
        ConnectionError::ProtocolViolation => state.activity.counts.violated.add(),
        ConnectionError::PeerDied => state.activity.counts.died.add(),
        _ => {}
    }
    if let Some(notify) = &state.callbacks.disconnect {
        notify(&Connection::new(session), ended);
    }
}

type NewConnection = (Arc<Session>, ConnectionDriver<Mapping, AdaptiveWait, RealSync>);

/// Receives a fresh client's preface, negotiates with it, and calls `on_connect`.
fn exchange_preface(
    state: &ServerState,
    stream: SharedMemoryStream,
    id: u64,
) -> Result<NewConnection, ConnectionError> {
    let RawParts { outbound, mut inbound, handle } = stream.into_ends();
    let deadline = Instant::now().checked_add(state.options.accept_timeout_or_default());
    let cred = handle.cred();
    let theirs = preface::receive_hello(&mut inbound, deadline).map_err(|fault| {
        match fault {
            RecvCoreError::Ended(ConnectionError::Disconnected | ConnectionError::PeerDied) => {
                events::left(cred.pid(), cred.uid())
            }
            _ => events::rejected(cred.pid(), cred.uid(), &"it did not send the preface of an RPC client"),
        }
        ConnectionError::ProtocolViolation
    })?;
    let (window, push_window) = preface::negotiate_windows(&state.options, &theirs);
    let max = handle.max_message();
    let max_fragment = handle.inline_room().saturating_sub(HEADER_LEN);
    let calls = ServedCalls::new(CallLimits {
        slots: handle.oob_words(),
        max_message: max,
        max_fragment,
        window,
        push_window,
    });
    let connection = ServerConnection::new(ServerConnectionParts {
        outbound,
        outgoing: handle.outgoing(),
        incoming: handle.signals(),
        calls,
        max_fragment,
    });
    let connection = Arc::new(connection);
    let session = Arc::new(Session {
        id,
        process: ProcessId::of(cred),
        connection: Arc::clone(&connection),
        handle,
        state: OnceLock::new(),
        max_chunk: flow_control::max_chunk(window, max),
        max_push: flow_control::max_chunk(push_window, max),
        max_reply: max,
        running: AtomicUsize::new(0),
        streams: AtomicUsize::new(0),
    });
    let mut guard = AdmissionGuard { session: &session, admitted: false };
    if let Some(authorize) = &state.callbacks.connect {
        if let Err(refusal) = authorize(&Connection::new(&session)) {
            let text = refusal.text();
            events::rejected(cred.pid(), cred.uid(), &format_args!("by on_connect: {text}"));
            let _client_may_have_left =
                connection.accept(|out| preface::refuse(out, RejectCode::Refused, text));
            return Err(ConnectionError::Closed);
        }
    }
    guard.admitted = true;
    drop(guard);
    Ok((session, ConnectionDriver::new(connection, inbound)))
}

/// Guards a client that is not admitted yet. If it is refused, threads that push to it already are woken with the
/// end.
struct AdmissionGuard<'a> {
    session: &'a Session,
    admitted: bool,
}

impl Drop for AdmissionGuard<'_> {
    fn drop(&mut self) {
        if !self.admitted {
            self.session.connection.close(ConnectionError::Closed);
            self.session.handle.closer().close();
        }
    }
}

/// Handles the calls of one connection, on the connection's own thread.
struct Dispatcher<'a> {
    state: &'a Arc<ServerState>,
    activity: &'a ServerActivity,
    session: &'a Arc<Session>,
    /// The inline method that was just admitted.
    admitted: Option<&'a Method>,
    reply: Vec<u8>,
    copy: Vec<u8>,
}

impl Dispatcher<'_> {
    /// Runs a method on a thread of its own.
    fn spawn_stream(&self, method: Method, call: CallInfo, request: Vec<u8>, arrived: Deadline) {
        let (state, session) = (Arc::clone(self.state), Arc::clone(self.session));
        self.session.streams.fetch_add(1, Ordering::Relaxed);
        let thread = threads::spawn("narrows-stream", move || {
            let running = (
                CountGuard::one(&state.activity.running),
                CountGuard::one(&session.running),
                CountGuard(&session.streams),
            );
            let asked = Request::private(&session, call, &request, arrived);
            let _stream = nesting::RoleGuard::stream(state.limits.nested_timeout);
            let _deadline = nesting::DeadlineGuard::set(asked.deadline());
            let mut reply = Vec::new();
            let ran = methods::run_long(&method, &session, &asked, &mut reply, &state.activity.counts);
            state.activity.counts.calls.add();
            drop(running); // Before the answer: a caller that has it must not find the method still running.
            methods::answer(&session, call, ran, &mut reply);
            state.activity.on_answered(&session);
        });
        if thread.is_err() {
            self.session.streams.fetch_sub(1, Ordering::Relaxed);
            self.reject_busy(call, BusyReason::Threads);
        }
    }

    fn enqueue(&self, method: Method, call: CallInfo, request: Vec<u8>, arrived: Deadline) {
        let (session, running) = (Arc::clone(self.session), &self.session.running);
        running.fetch_add(1, Ordering::Relaxed);
        let job = Job { activity: Arc::clone(&self.state.activity), session, method, call, request, arrived };
        if let Err(failure) = self.state.queue.push(job) {
            running.fetch_sub(1, Ordering::Relaxed);
            self.reject(call, &failure);
        }
    }

    /// Returns whether the client has closed its end or died. The connection ends once the frames that the client had
    /// committed were received.
    fn client_has_left(&self) -> bool {
        matches!(
            self.session.connection.incoming_ended(),
            Some(ConnectionError::Disconnected | ConnectionError::PeerDied)
        )
    }

    #[cold]
    fn reject_busy(&self, call: CallInfo, reason: BusyReason) {
        self.reject(call, &busy(reason));
    }

    #[cold]
    fn reject(&self, call: CallInfo, failure: &CallFailure) {
        self.activity.counts.busy.add();
        self.session.connection.fail(call.id, failure);
    }

    /// Checks whether one more method may run for this client.
    fn check_capacity(&self, method: &Method) -> Result<(), CallFailure> {
        let streams =
            method.streams() && self.session.streams.load(Ordering::Relaxed) >= self.state.limits.streams;
        // Methods whose calls were given up count as well: a client must not pile them up.
        let slots = self.session.connection.slots();
        let running = self.session.running.load(Ordering::Relaxed) >= 2 * slots;
        if !(streams || running) {
            return Ok(());
        }
        self.activity.counts.busy.add();
        Err(busy(BusyReason::Methods))
    }
}

impl Dispatch<Mapping, AdaptiveWait> for Dispatcher<'_> {
    #[inline]
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, CallFailure> {
        // A notification that a client had committed when it left is still served: the client sends no more of them.
        if self.activity.is_draining() && !(flags & NOTIFY != 0 && self.client_has_left()) {
            return Err((Status::ShuttingDown, 0, String::new()));
        }
        let method = self.state.methods.find(method, flags & (STREAM | UPLOAD))?;
        if method.is_inline() {
            self.admitted = Some(method);
            return Ok(true);
        }
        self.check_capacity(method).map(|()| false)
    }

    fn dispatch(&mut self, call: CallInfo, request: Vec<u8>, arrived: Deadline) {
        let method = match self.state.methods.find(call.method, call.flags) {
            Ok(method) => method,
            Err(failure) => return self.session.connection.fail(call.id, &failure),
        };
        if method.is_inline() {
            let asked = Request::private(self.session, call, &request, arrived);
            let deadline = nesting::DeadlineGuard::set(asked.deadline());
            let ran = methods::run_long(method, self.session, &asked, &mut self.reply, &self.activity.counts);
            drop(deadline);
            methods::answer(self.session, call, ran, &mut self.reply);
            self.activity.counts.calls.add();
            self.session.connection.with_calls(|calls| calls.recycle(call.id, request));
        } else if let Err(failure) = self.check_capacity(method) {
            self.session.connection.fail(call.id, &failure); // Other methods began to run while its request arrived.
        } else if method.streams() {
            self.spawn_stream(method.clone(), call, request, arrived);
        } else {
            self.enqueue(method.clone(), call, request, arrived);
        }
    }

    #[inline]
    fn run_inline(
        &mut self,
        call: CallInfo,
        borrowed: BorrowedRequest<'_, Mapping, AdaptiveWait>,
    ) -> Result<&mut Vec<u8>, CallFailure> {
        let Self { state, activity, session, reply, copy, admitted } = self;
        let method = admitted.take().map_or_else(|| state.methods.find(call.method, call.flags), Ok)?;
        let asked = match borrowed.private() {
            Some(bytes) => Request::private(session, call, bytes, None), // It has just arrived.
            None => {
                let reserved = try_reserve(copy, borrowed.len());
                reserved.map_err(|_| busy(BusyReason::Memory))?;
                Request::in_ring(session, call, borrowed, copy)
            }
        };
        let _deadline = nesting::DeadlineGuard::set(asked.deadline());
        methods::run(method, session, &asked, reply, &activity.counts).map(|()| reply)
    }

    fn is_done(&self) -> bool {
        self.activity.is_draining() && self.session.connection.is_idle() && !self.client_has_left()
    }
}
