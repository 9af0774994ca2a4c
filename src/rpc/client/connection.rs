//! One connection of a client: what a call sends and receives over the multiplexer.
//!
//! # Invariants
//!
//! 1. A call that fails before its first frame was sent costs the server nothing, and its slot is free at once. A
//!    call that fails later is cancelled, and its slot is free when the server's final frame has arrived.
//! 2. No thread blocks here beyond its caller's deadline.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::in_flight::{CallOutcome, InFlightCalls};
use super::multiplexer::{Multiplexer, MultiplexerParts, WaitError};
use crate::channel::{AdaptiveWait, ConnectionHandle, ConnectionId, Mapping, RawParts, RealSync, Wait};
use crate::error::{BusyReason, CallError, ConnectError, ConnectionError, HandlerError};
use crate::options::Options;
use crate::rpc::fragment::Fragmenter;
use crate::rpc::nesting::{self, Awaited};
use crate::rpc::wire::{DEADLINE, FrameHeader, FrameKind, HEADER_LEN, NOTIFY, Status, kind_from};
use crate::rpc::{flow_control, preface};
use crate::stream::SharedMemoryStream;

/// One connection of a client.
pub(crate) struct ClientConnection {
    pub(super) mux: Multiplexer<Mapping, AdaptiveWait, RealSync>,
    pub(super) handle: ConnectionHandle,
    /// The identity of the connection, if the server is in this process.
    own: Option<ConnectionId>,
    max: usize,
    window: u32,
    /// Makes a successor of this connection, if the policy says so.
    reconnector: OnceLock<Weak<dyn ReplaceConnection>>,
}

/// Replaces a connection whose server takes no more calls.
pub(super) trait ReplaceConnection: Send + Sync {
    /// Makes the successor on another thread, unless that was done.
    fn replace_in_background(self: Arc<Self>, refusing: &ClientConnection);
}

/// A call that was started.
#[derive(Debug)]
pub(super) struct StartedCall {
    pub(super) id: u64,
    pub(super) seq: u16,
}

impl ClientConnection {
    /// Exchanges the prefaces over a fresh stream, until the deadline at most.
    pub(super) fn exchange_preface(
        stream: SharedMemoryStream,
        options: &Options,
        deadline: Option<Instant>,
    ) -> Result<Arc<Self>, ConnectError> {
        let RawParts { mut outbound, mut inbound, handle } = stream.into_ends();
        let (stream_window, push_window) = options.windows();
        let theirs = preface::connect(&mut outbound, &mut inbound, stream_window, push_window, deadline)?;
        let (window, push_window) = preface::negotiate_windows(options, &theirs);
        let (slots, max) = (handle.oob_words(), handle.max_message());
        let calls = InFlightCalls::new(slots, max, window, push_window);
        let max_fragment = handle.inline_room().saturating_sub(HEADER_LEN);
        let (oob_sender, incoming) = (handle.oob_sender(), handle.signals());
        let parts = MultiplexerParts { inbound, outbound, oob_sender, incoming, calls, slots, max_fragment };
        let own = handle.id().filter(|_| handle.cred().pid() == std::process::id());
        Ok(Arc::new(Self {
            mux: Multiplexer::new(parts),
            handle,
            own,
            max,
            window,
            reconnector: OnceLock::new(),
        }))
    }

    /// From now on, a successor is made when the server takes no more calls.
    pub(super) fn set_reconnector(&self, reconnector: Weak<dyn ReplaceConnection>) {
        let _set_before = self.reconnector.set(reconnector);
    }

    /// Returns whether pushes have arrived that no thread has taken.
    pub(super) fn has_pushes(&self) -> bool {
        self.mux.lock().calls.pushes() > 0
    }

    /// Returns the length of the longest chunk of a stream, in bytes.
    pub(super) fn max_chunk(&self) -> usize {
        flow_control::max_chunk(self.window, self.max)
    }

    /// Calls a method, and waits for its reply, which replaces what is in `buffer`.
    pub(super) fn call(
        &self,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        buffer.clear();
        let wait = self.check_and_limit(request, wait, Awaited::Reply(method))?;
        let left = time_left(wait);
        let (head, parts) = call_frame(method, 0, &left, request);
        if parts[0].len() + request.len() <= self.mux.max_fragment() {
            if let Some((id, end)) = self.mux.call_as_leader(head, parts, buffer, wait) {
                return self.finish(id, end, buffer);
            }
        }
        let started = self.start(method, DEADLINE, request, buffer, wait)?;
        let end = self.wait_for_outcome(started.id, buffer, wait);
        self.finish(started.id, end, buffer)
    }

    /// Opens a call and sends its request. With the flag `DEADLINE` the server is sent the time that `wait` has left.
    /// Without it, and unless the call is a notification, the server is sent the time that is left of the call that
    /// this thread's method serves.
    pub(super) fn start(
        &self,
        method: u32,
        flags: u8,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<StartedCall, CallError> {
        let asked = wait;
        let wait = self.check_and_limit_send(request, wait)?;
        let mut open = |calls: &mut InFlightCalls| {
            let id = calls.open(method, flags)?;
            calls.lend_buffer(id, buffer);
            Some(id)
        };
        let mut deadline = until_deadlock_check(wait);
        let opened = loop {
            let opened = self.mux.wait(self.mux.slot_signal(), deadline, &mut open);
            if deadline == wait || opened != Err(WaitError::Timeout) {
                break opened;
            }
            if self.serves_all_slots_itself() {
                return Err(CallError::WouldDeadlock);
            }
            deadline = wait;
        };
        let id = opened.map_err(|stop| self.send_error(stop, asked, wait))?;
        let left = match flags & (DEADLINE | NOTIFY) {
            DEADLINE => time_left(wait),
            0 => time_left(Wait::Deadline(nesting::deadline())),
            _ => None, // The caller of a notification does not wait.
        };
        let (head, parts) = call_frame(method, flags & !DEADLINE, &left, request);
        let mut fragmenter = Fragmenter::new(head, parts[0].len() + request.len());
        let mut seq = 0;
        let sent = self.mux.send_item(&mut fragmenter, parts, &mut seq, id, wait);
        match sent {
            Ok(()) | Err(WaitError::CallOver) => Ok(StartedCall { id, seq }),
            Err(stop) => {
                if fragmenter.is_unsent() {
                    self.mux.forget_unsent(id);
                } else {
                    self.abandon(id);
                    self.mux.cancel(id); // `abandon` does not cancel a notification.
                }
                self.after_failed_send(id, stop, wait);
                Err(self.send_error(stop, asked, wait))
            }
        }
    }

    /// Returns the error of a send whose caller asked for `asked` and that was limited to `wait`.
    fn send_error(&self, stop: WaitError, asked: Wait, wait: Wait) -> CallError {
        match stop {
            WaitError::Timeout if wait == Wait::Never && asked != Wait::Never => CallError::WouldDeadlock,
            stop => self.call_error(stop),
        }
    }

    /// Waits for the outcome of a call, whose reply comes into `buffer`.
    pub(super) fn wait_for_outcome(
        &self,
        id: u64,
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<CallOutcome, WaitError> {
        self.mux.wait(self.mux.signal_of(id), wait, |calls| calls.take_outcome(id, buffer))
    }

    /// Returns the result of a call to its caller. If there is no outcome, the call is given up.
    pub(super) fn finish(
        &self,
        id: u64,
        end: Result<CallOutcome, WaitError>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), CallError> {
        match end {
            Ok(CallOutcome::Reply) => Ok(()),
            Ok(end) => {
                buffer.clear();
                self.outcome(end)
            }
            Err(stop) => {
                self.abandon(id);
                Err(self.call_error(stop))
            }
        }
    }

    /// Converts an outcome to a result. If the server takes no more calls, starts to make a successor for later
    /// calls.
    pub(super) fn outcome(&self, end: CallOutcome) -> Result<(), CallError> {
        let result = outcome(end, self.max);
        if matches!(result, Err(CallError::ShuttingDown)) {
            if let Some(reconnector) = self.reconnector.get().and_then(Weak::upgrade) {
                reconnector.replace_in_background(self);
            }
        }
        result
    }

    /// Gives a call up: asks the server to cancel it.
    pub(super) fn abandon(&self, id: u64) {
        if self.handle.same_process() {
            self.mux.abandon(id);
        }
    }

    /// Receives what the server sent before the connection ended, after a send of this call has failed. If the send
    /// found the end of the connection, only those frames show which calls were lost, and whether the server has
    /// refused calls that it had not begun.
    pub(super) fn after_failed_send(&self, id: u64, stop: WaitError, wait: Wait) {
        if matches!(stop, WaitError::Ended(_)) {
            let _at_its_end = self.mux.wait(self.mux.signal_of(id), wait, |_| None::<()>);
        }
    }

    /// Gives a call up, unless the send failed because the server has ended the call: its outcome is still to be
    /// taken.
    pub(super) fn abandon_unless_over(&self, id: u64, stop: WaitError) {
        if stop != WaitError::CallOver {
            self.abandon(id);
        }
    }

    /// Sends credit to the server, if enough is owed. Credit that cannot be sent in time is owed again.
    pub(super) fn return_credit(
        &self,
        wait: Wait,
        owed: impl FnOnce(&mut InFlightCalls) -> Option<(u64, u32)>,
    ) {
        let owed = owed(&mut self.mux.lock().calls);
        if let Some((id, amount)) = owed {
            let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Credit, amount), 0);
            if self.mux.send_item(&mut fragmenter, [&[], &[]], &mut 0, id, wait).is_err() {
                self.mux.lock().calls.restore_owed_credit(id, amount);
            }
        }
    }

    /// Converts the reason why a wait failed to an error. After a protocol violation it closes the connection in both
    /// directions.
    pub(super) fn call_error(&self, stop: WaitError) -> CallError {
        match stop {
            WaitError::Timeout => CallError::Timeout,
            WaitError::CallOver => CallError::Cancelled,
            WaitError::Exhausted => CallError::Exhausted,
            WaitError::Ended(ConnectionError::Disconnected) if self.mux.lock().calls.is_server_leaving() => {
                CallError::ShuttingDown
            }
            WaitError::Ended(ended) => {
                let error = ended.into();
                if matches!(error, CallError::ConnectionLost(ConnectionError::ProtocolViolation)) {
                    self.handle.fail_protocol();
                }
                error
            }
        }
    }

    /// Checks a request, and returns how long the calling thread may wait for the server, in a method that it runs.
    ///
    /// # Errors
    ///
    /// The errors of [`check`](Self::check), and [`CallError::WouldDeadlock`] if only this thread could end the wait.
    #[inline]
    pub(super) fn check_and_limit(
        &self,
        request: &[u8],
        wait: Wait,
        awaited: Awaited,
    ) -> Result<Wait, CallError> {
        self.check(request)?;
        if !nesting::is_nested() || wait == Wait::Never {
            return Ok(wait);
        }
        match nesting::waits_for_itself(self.own, awaited) {
            true => Err(CallError::WouldDeadlock),
            false => Ok(nesting::limit(wait, awaited)),
        }
    }

    /// Checks a request that is sent and not waited for. Returns `Wait::Never` where only this thread could make
    /// room.
    fn check_and_limit_send(&self, request: &[u8], wait: Wait) -> Result<Wait, CallError> {
        match self.check_and_limit(request, wait, Awaited::Answer) {
            Err(CallError::WouldDeadlock) => Ok(Wait::Never),
            wait => wait,
        }
    }

    /// Returns whether all slots hold calls that only this thread could serve, so that it must not wait for a slot.
    fn serves_all_slots_itself(&self) -> bool {
        let methods = self.mux.lock().calls.methods_in_all_slots();
        let waits = |&method: &u32| nesting::waits_for_itself(self.own, Awaited::Reply(method));
        methods.is_some_and(|methods| methods.iter().all(waits))
    }

    /// Checks that this process may use the connection, and that the request is not too large for it.
    #[inline]
    fn check(&self, request: &[u8]) -> Result<(), CallError> {
        if !self.handle.same_process() {
            return Err(CallError::ConnectionLost(ConnectionError::Forked));
        }
        if request.len() > self.max {
            return Err(CallError::TooLarge { len: request.len(), max: self.max });
        }
        Ok(())
    }
}

/// Returns the header of the first frame of a call, and the two parts of its body.
#[inline]
fn call_frame<'a>(
    method: u32,
    flags: u8,
    left: &'a Option<[u8; 8]>,
    request: &'a [u8],
) -> (FrameHeader, [&'a [u8]; 2]) {
    let head = FrameHeader::new(FrameKind::Call, method).with_flags(flags);
    match left {
        None => (head, [&[], request]),
        Some(left) => (head.with_flags(DEADLINE), [left, request]),
    }
}

/// Returns until when a wait for a slot goes on before it is checked whether a slot can become free at all. In a
/// method that is long enough for the server to send the answers that it already has.
#[inline]
fn until_deadlock_check(wait: Wait) -> Wait {
    match wait {
        Wait::Deadline(deadline) if nesting::is_nested() => {
            Wait::Deadline(Instant::now().checked_add(DEADLOCK_CHECK_DELAY).into_iter().chain(deadline).min())
        }
        wait => wait,
    }
}

/// How long a method waits for a slot before that check.
const DEADLOCK_CHECK_DELAY: Duration = Duration::from_millis(100);

/// Returns the caller's time left, for the server; `None` if it has no deadline.
#[inline]
fn time_left(wait: Wait) -> Option<[u8; 8]> {
    let Wait::Deadline(Some(deadline)) = wait else { return None };
    let left = deadline.saturating_duration_since(Instant::now());
    Some(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).to_le_bytes())
}

fn outcome(end: CallOutcome, max: usize) -> Result<(), CallError> {
    let (status, code, text) = match end {
        CallOutcome::Reply | CallOutcome::End => return Ok(()),
        CallOutcome::OutOfMemory => return Err(CallError::OutOfMemory),
        CallOutcome::Failed(status, code, text) => (status, code, text),
    };
    Err(match status {
        Status::UnknownMethod => CallError::UnknownMethod,
        Status::WrongKind => CallError::WrongKind(kind_from(code)),
        Status::Failed => CallError::Failed(HandlerError::new(code, text)),
        Status::Panicked => CallError::Panicked { message: text },
        Status::ReplyTooLarge => CallError::ReplyTooLarge { len: code as usize, max },
        Status::Busy => CallError::Busy(BusyReason::from_number(code)),
        Status::ShuttingDown => CallError::ShuttingDown,
        Status::Cancelled => CallError::Cancelled,
        Status::OutOfMemory => CallError::OutOfMemory,
    })
}

/// The connection that calls use now: borrowed where it is never replaced, shared where it may be.
pub(super) enum ConnectionRef<'a> {
    Borrowed(&'a Arc<ClientConnection>),
    Shared(Arc<ClientConnection>),
}

impl ConnectionRef<'_> {
    /// Returns a handle that outlives the borrow.
    pub(super) fn share(self) -> Arc<ClientConnection> {
        match self {
            ConnectionRef::Borrowed(connection) => Arc::clone(connection),
            ConnectionRef::Shared(connection) => connection,
        }
    }
}

impl Deref for ConnectionRef<'_> {
    type Target = ClientConnection;

    #[inline]
    fn deref(&self) -> &ClientConnection {
        match self {
            ConnectionRef::Borrowed(connection) => connection,
            ConnectionRef::Shared(connection) => connection,
        }
    }
}
