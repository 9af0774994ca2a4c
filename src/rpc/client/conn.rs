//! One connection of a client: the desk, and what a call is made of.
//!
//! # Invariants
//!
//! 1. A call that failed before its first frame was sent costs the server nothing and its place is free at
//!    once; one that failed later is cancelled, and its place is free when the server has said so.
//! 2. Nobody blocks here without the caller's deadline.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::desk::{Desk, Parts, Stop};
use super::renewal::Renewal;
use super::table::{Final, Table};
use crate::channel::{AdaptiveWait, ConnectionHandle, ConnectionId, Mapping, RawParts, RealSync, Wait};
use crate::error::{CallError, ConnectError, ConnectionError, HandlerError};
use crate::options::Options;
use crate::rpc::greeting::{self, MAX_FRAME_HEAD};
use crate::rpc::nesting::{self, Awaited};
use crate::rpc::pieces::Cut;
use crate::rpc::wire::{DEADLINE, Head, Kind, NOTIFY, Status};
use crate::stream::SharedMemoryStream;

/// One connection.
pub(crate) struct Conn {
    pub(super) desk: Desk<Mapping, AdaptiveWait, RealSync>,
    pub(super) line: ConnectionHandle,
    /// Which connection this is, if the server is in this process.
    own: Option<ConnectionId>,
    max: usize,
    window: u32,
    /// Makes a successor, where the policy says so.
    renewal: OnceLock<Weak<Renewal>>,
}

/// A call that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) seq: u16,
}

impl Conn {
    /// Exchanges greetings over a fresh stream, until the deadline.
    pub(super) fn greet(
        stream: SharedMemoryStream,
        options: &Options,
        until: Option<Instant>,
    ) -> Result<Arc<Self>, ConnectError> {
        let RawParts { mut outbound, mut inbound, line } = stream.into_ends();
        let (stream_window, push_window) = options.windows();
        let theirs = greeting::say(&mut outbound, &mut inbound, stream_window, push_window, until)?;
        let (window, push_window) = greeting::agree(options, &theirs);
        let (places, max) = (line.oob_words(), line.max_message());
        let table = Table::new(places, max, window, push_window);
        let piece = line.inline_room().saturating_sub(MAX_FRAME_HEAD);
        let (poster, ear) = (line.oob_sender(), line.signals());
        let parts = Parts { inbound, outbound, poster, ear, table, places, piece };
        let own = line.id().filter(|_| line.cred().pid() == std::process::id());
        Ok(Arc::new(Self { desk: Desk::new(parts), line, own, max, window, renewal: OnceLock::new() }))
    }

    /// From now on a successor is made when the server takes no more calls.
    pub(super) fn renewed_by(&self, renewal: &Arc<Renewal>) {
        let _set_before = self.renewal.set(Arc::downgrade(renewal));
    }

    /// Whether pushes have come that nobody has taken.
    pub(super) fn has_pushes(&self) -> bool {
        self.desk.books().table.pushes() > 0
    }

    /// The longest chunk of a stream.
    pub(super) fn max_chunk(&self) -> usize {
        greeting::longest_chunk(self.window, self.max)
    }

    /// Calls, and waits for the reply, which replaces what is in `buffer`.
    pub(super) fn call(
        &self,
        method: u32,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<(), CallError> {
        buffer.clear();
        let wait = self.enter(request, wait, Awaited::Reply(method))?;
        let left = time_left(wait);
        let (head, parts) = frame(method, 0, &left, request);
        if parts[0].len() + request.len() <= self.desk.piece() {
            if let Some((id, end)) = self.desk.call_at_once(head, parts, buffer, wait) {
                return self.settle(id, end, buffer);
            }
        }
        let begun = self.begin(method, DEADLINE, request, buffer, wait)?;
        let end = self.end(begun.id, buffer, wait);
        self.settle(begun.id, end, buffer)
    }

    /// Opens a call and sends its request. With the flag `DEADLINE` the server is sent the time that this wait has left; a
    /// call that is waited for later has what is left of the call that this thread's method serves.
    pub(super) fn begin(
        &self,
        method: u32,
        flags: u8,
        request: &[u8],
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Result<Begun, CallError> {
        let asked = wait;
        let wait = self.enter_to_send(request, wait)?;
        let mut open = |table: &mut Table| {
            let id = table.open(method, flags)?;
            table.lend(id, buffer);
            Some(id)
        };
        let mut until = settled(wait);
        let opened = loop {
            let opened = self.desk.wait(self.desk.freed(), until, &mut open);
            if until == wait || opened != Err(Stop::Timeout) {
                break opened;
            }
            if self.frees_all_places_itself() {
                return Err(CallError::WouldDeadlock);
            }
            until = wait;
        };
        let id = opened.map_err(|stop| self.unable_to_send(stop, asked, wait))?;
        let left = match flags & (DEADLINE | NOTIFY) {
            DEADLINE => time_left(wait),
            0 => time_left(Wait::Until(nesting::deadline())),
            _ => None, // Nobody waits for a notification.
        };
        let (head, parts) = frame(method, flags & !DEADLINE, &left, request);
        let mut cut = Cut::new(head, parts[0].len() + request.len());
        let mut seq = 0;
        let sent = self.desk.send_item(&mut cut, parts, &mut seq, id, wait);
        match sent {
            Ok(()) | Err(Stop::Over) => Ok(Begun { id, seq }),
            Err(stop) => {
                if cut.is_whole() {
                    self.desk.unsend(id);
                } else {
                    self.abandon(id);
                    self.desk.cancel(id); // Of a notification too.
                }
                self.unsent(id, stop, wait);
                Err(self.unable_to_send(stop, asked, wait))
            }
        }
    }

    /// Why a send has failed that was to take as long as `asked`, and was given `wait`.
    fn unable_to_send(&self, stop: Stop, asked: Wait, wait: Wait) -> CallError {
        match stop {
            Stop::Timeout if wait == Wait::Never && asked != Wait::Never => CallError::WouldDeadlock,
            stop => self.stopped(stop),
        }
    }

    /// Waits for the end of a call, whose reply comes into `buffer`.
    pub(super) fn end(&self, id: u64, buffer: &mut Vec<u8>, wait: Wait) -> Result<Final, Stop> {
        self.desk.wait(self.desk.signal_of(id), wait, |table| table.finish(id, buffer))
    }

    /// What the end of a call means; nobody waits for it any more if there was none.
    pub(super) fn settle(
        &self,
        id: u64,
        end: Result<Final, Stop>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), CallError> {
        match end {
            Ok(Final::Reply) => Ok(()),
            Ok(end) => {
                buffer.clear();
                self.outcome(end)
            }
            Err(stop) => {
                self.abandon(id);
                Err(self.stopped(stop))
            }
        }
    }

    /// What the server's last word means for the caller. If the server takes no more calls, a successor is made for later ones.
    pub(super) fn outcome(&self, end: Final) -> Result<(), CallError> {
        let result = outcome(end);
        if matches!(result, Err(CallError::ShuttingDown)) {
            if let Some(renewal) = self.renewal.get().and_then(Weak::upgrade) {
                renewal.replace_in_background(self);
            }
        }
        result
    }

    /// Nobody waits for the call any more: the server is told.
    pub(super) fn abandon(&self, id: u64) {
        if self.line.same_process() {
            self.desk.abandon(id);
        }
    }

    /// A send of this call has failed. If it found the end, what the server sent before that is taken first: only then
    /// is it known what was lost, this call among it, and whether the server has refused what it had not begun.
    pub(super) fn unsent(&self, id: u64, stop: Stop, wait: Wait) {
        if matches!(stop, Stop::Ended(_)) {
            let _at_its_end = self.desk.wait(self.desk.signal_of(id), wait, |_| None::<()>);
        }
    }

    /// As `abandon`, but for a call that the server has ended: its end is still to be taken.
    pub(super) fn abandon_unless(&self, id: u64, stop: Stop) {
        if stop != Stop::Over {
            self.abandon(id);
        }
    }

    /// Gives credit back to the server, if it is owed enough; what cannot be sent in time is given with the next.
    pub(super) fn give_owed(&self, wait: Wait, owed: impl FnOnce(&mut Table) -> Option<(u64, u32)>) {
        let owed = owed(&mut self.desk.books().table);
        if let Some((id, amount)) = owed {
            let mut cut = Cut::new(Head::new(Kind::Credit, amount), 0);
            if self.desk.send_item(&mut cut, [&[], &[]], &mut 0, id, wait).is_err() {
                self.desk.books().table.take_back(id, amount);
            }
        }
    }

    /// Why a wait came to nothing, as callers see it. A liar's connection is closed in both directions.
    pub(super) fn stopped(&self, stop: Stop) -> CallError {
        match stop {
            Stop::Timeout => CallError::Timeout,
            Stop::Over => CallError::Cancelled,
            Stop::Exhausted => CallError::Exhausted,
            Stop::Ended(ConnectionError::Disconnected) if self.desk.books().table.goodbye => {
                CallError::ShuttingDown
            }
            Stop::Ended(ended) => {
                let error = ended.into();
                if matches!(error, CallError::ProtocolViolated) {
                    self.line.fail_protocol();
                }
                error
            }
        }
    }

    /// As [`admit`](Self::admit), for what waits for the server: how long it may, in a method that this thread runs.
    ///
    /// # Errors
    ///
    /// [`CallError::WouldDeadlock`] if only this thread could end the wait.
    #[inline]
    pub(super) fn enter(&self, request: &[u8], wait: Wait, awaited: Awaited) -> Result<Wait, CallError> {
        self.admit(request)?;
        if !nesting::is_nested() || wait == Wait::Never {
            return Ok(wait);
        }
        match nesting::waits_for_itself(self.own, awaited) {
            true => Err(CallError::WouldDeadlock),
            false => Ok(nesting::limit(wait, awaited)),
        }
    }

    /// As [`enter`](Self::enter), for a request that is sent and not waited for: where only this thread could make room,
    /// it does not wait for that.
    fn enter_to_send(&self, request: &[u8], wait: Wait) -> Result<Wait, CallError> {
        match self.enter(request, wait, Awaited::Answer) {
            Err(CallError::WouldDeadlock) => Ok(Wait::Never),
            wait => wait,
        }
    }

    /// Whether all places are those of calls that only this thread could serve, so that it must not wait for one.
    fn frees_all_places_itself(&self) -> bool {
        let methods = self.desk.books().table.methods_in_all_places();
        let waits = |&method: &u32| nesting::waits_for_itself(self.own, Awaited::Reply(method));
        methods.is_some_and(|methods| methods.iter().all(waits))
    }

    /// Whether this process may use the connection, and the connection takes so much.
    #[inline]
    fn admit(&self, request: &[u8]) -> Result<(), CallError> {
        if !self.line.same_process() {
            return Err(CallError::Forked);
        }
        if request.len() > self.max {
            return Err(CallError::TooLarge { len: request.len(), max: self.max });
        }
        Ok(())
    }
}

/// The first frame of a call, and the two parts of its body.
#[inline]
fn frame<'a>(method: u32, flags: u8, left: &'a Option<[u8; 8]>, request: &'a [u8]) -> (Head, [&'a [u8]; 2]) {
    let head = Head::new(Kind::Call, method).with(flags);
    match left {
        None => (head, [&[], request]),
        Some(left) => (head.with(DEADLINE), [left, request]),
    }
}

/// How long a wait for a place goes on before it is looked whether a place can come at all: in a method, long enough for
/// the server to send what it has answered already.
#[inline]
fn settled(wait: Wait) -> Wait {
    match wait {
        Wait::Until(until) if nesting::is_nested() => {
            Wait::Until(Instant::now().checked_add(SETTLING).into_iter().chain(until).min())
        }
        wait => wait,
    }
}

/// The time for that.
const SETTLING: Duration = Duration::from_millis(100);

/// The caller's time left, for the server; none if it waits for ever.
#[inline]
fn time_left(wait: Wait) -> Option<[u8; 8]> {
    let Wait::Until(Some(until)) = wait else { return None };
    let left = until.saturating_duration_since(Instant::now());
    Some(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).to_le_bytes())
}

fn outcome(end: Final) -> Result<(), CallError> {
    let (status, code, text) = match end {
        Final::Reply | Final::End => return Ok(()),
        Final::OutOfMemory => return Err(CallError::OutOfMemory),
        Final::Failed(status, code, text) => (status, code, text),
    };
    Err(match status {
        Status::UnknownMethod => CallError::UnknownMethod,
        Status::WrongKind => CallError::WrongKind(text),
        Status::Failed => CallError::Failed(HandlerError::new(code, text)),
        Status::Panicked => CallError::Panicked(text),
        Status::ReplyTooLarge => CallError::ReplyTooLarge(text),
        Status::Busy => CallError::Busy(text),
        Status::ShuttingDown => CallError::ShuttingDown,
        Status::Cancelled => CallError::Cancelled,
        Status::OutOfMemory => CallError::OutOfMemory,
    })
}
