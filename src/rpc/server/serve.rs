//! The thread of one connection: the greeting, then calls until the end.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::attendant::{Attendant, Given, Service, Started};
use super::hall::{Hall, Parts};
use super::methods::{self, Method};
use super::peer::{Connection, Peer, ProcessId, Running};
use super::place::Limits;
use super::pool::Job;
use super::request::Request;
use super::service::Shared;
use super::table::{Failure, Table};
use crate::channel::{AdaptiveWait, Mapping, RawParts, RealSync, RecvCoreError, threads};
use crate::error::{CallError, ConnectionError, RejectCode};
use crate::events;
use crate::mem::{Deadline, try_reserve};
use crate::rpc::greeting::{self, MAX_FRAME_HEAD};
use crate::rpc::nesting;
use crate::rpc::wire::{NOTIFY, STREAM, Status, UPLOAD};
use crate::stream::SharedMemoryStream;

/// Serves one connection on this thread until it ends.
pub(super) fn serve(shared: &Arc<Shared>, stream: SharedMemoryStream) -> Result<(), CallError> {
    shared.open.fetch_add(1, Ordering::Relaxed);
    serve_counted(shared, stream)
}

/// As [`serve`], of a connection that was counted as open already.
pub(super) fn serve_counted(shared: &Arc<Shared>, stream: SharedMemoryStream) -> Result<(), CallError> {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let (process, connection) = (ProcessId::of(stream.peer_cred()), stream.id());
    let open = Open { shared, id, process };
    let _driver = nesting::Role::driver(connection, shared.sizes.nested_timeout);
    let (peer, mut attendant) = greet(shared, stream, id).inspect_err(|_| {
        shared.counts.refused.add();
    })?;
    let ended = match welcome(shared, &peer) {
        true => {
            shared.counts.accepted.add();
            let mut desk = Desk { shared, peer: &peer, admitted: None, reply: Vec::new(), copy: Vec::new() };
            attendant.attend(&mut desk)
        }
        false => {
            shared.counts.refused.add();
            peer.hall.end(ConnectionError::Closed);
            ConnectionError::Closed
        }
    };
    peer.line.closer().close();
    drop(open);
    told(shared, &peer, ended);
    match ended {
        ConnectionError::Disconnected => Ok(()),
        ended => Err(ended.into()),
    }
}

/// Answers a client that was judged, unless the server has stopped or it has gone.
///
/// It is listed first: who stops the server closes it then, or is seen here. Else a client that was welcomed might
/// outlive the server, and be told that it died.
fn welcome(shared: &Shared, peer: &Arc<Peer>) -> bool {
    shared.enter(peer);
    if shared.stopped.load(Ordering::Relaxed) {
        return false;
    }
    let (stream_window, push_window) = shared.options.windows();
    peer.hall.open(|out| greeting::answer(out, stream_window, push_window)).is_ok()
}

/// A connection that counts as open while this lives.
struct Open<'a> {
    shared: &'a Shared,
    id: u64,
    process: ProcessId,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.id, self.process);
    }
}

fn told(shared: &Shared, peer: &Arc<Peer>, ended: ConnectionError) {
    match ended {
        ConnectionError::ProtocolViolated => shared.counts.violated.add(),
        ConnectionError::PeerDied => shared.counts.died.add(),
        _ => {}
    }
    if let Some(tell) = &shared.callbacks.disconnect {
        tell(&Connection::new(peer), ended.into());
    }
}

type Greeted = (Arc<Peer>, Attendant<Mapping, AdaptiveWait, RealSync>);

/// Hears a fresh client's greeting, and judges it.
fn greet(shared: &Shared, stream: SharedMemoryStream, id: u64) -> Result<Greeted, CallError> {
    let RawParts { outbound, mut inbound, line } = stream.into_ends();
    let until = Instant::now().checked_add(shared.options.accept_timeout_or_default());
    let cred = line.cred();
    let theirs = greeting::hear(&mut inbound, until).map_err(|fault| {
        match fault {
            RecvCoreError::Ended(ConnectionError::Disconnected | ConnectionError::PeerDied) => {
                events::left(cred.pid(), cred.uid())
            }
            _ => events::rejected(cred.pid(), cred.uid(), &"it did not greet as a client of calls does"),
        }
        CallError::ProtocolViolated
    })?;
    let (window, push_window) = greeting::agree(&shared.options, &theirs);
    let max = line.max_message();
    let piece = line.inline_room().saturating_sub(MAX_FRAME_HEAD);
    let table = Table::new(Limits { places: line.oob_words(), max, piece, window, push_window });
    let hall = Hall::new(Parts { outbound, outgoing: line.outgoing(), ear: line.signals(), table, piece });
    let hall = Arc::new(hall);
    let peer = Arc::new(Peer {
        id,
        process: ProcessId::of(cred),
        hall: Arc::clone(&hall),
        line,
        state: OnceLock::new(),
        max_chunk: greeting::longest_chunk(window, max),
        max_push: greeting::longest_chunk(push_window, max),
        max_reply: max,
        running: AtomicUsize::new(0),
        streams: AtomicUsize::new(0),
    });
    let mut door = Door { peer: &peer, passed: false };
    if let Some(judge) = &shared.callbacks.connect {
        if let Err(refusal) = judge(&Connection::new(&peer)) {
            let text = refusal.text();
            events::rejected(cred.pid(), cred.uid(), &format_args!("by on_connect: {text}"));
            let _gone = hall.open(|out| greeting::refuse(out, RejectCode::Refused, text));
            return Err(CallError::Closed);
        }
    }
    door.passed = true;
    drop(door);
    Ok((peer, Attendant::new(hall, inbound)))
}

/// A client that is not judged yet: if it is refused, those are told who push to it already.
struct Door<'a> {
    peer: &'a Peer,
    passed: bool,
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        if !self.passed {
            self.peer.hall.end(ConnectionError::Closed);
            self.peer.line.closer().close();
        }
    }
}

/// What one connection's thread does with calls.
struct Desk<'a> {
    shared: &'a Arc<Shared>,
    peer: &'a Arc<Peer>,
    /// The inline method that was just admitted.
    admitted: Option<&'a Method>,
    reply: Vec<u8>,
    copy: Vec<u8>,
}

impl Desk<'_> {
    /// Runs a method on a thread of its own.
    fn spawn(&self, method: Method, started: Started, request: Vec<u8>, arrived: Deadline) {
        let (shared, peer) = (Arc::clone(self.shared), Arc::clone(self.peer));
        self.peer.streams.fetch_add(1, Ordering::Relaxed);
        let thread = threads::spawn("narrows-stream", move || {
            let running =
                (Running::one(&shared.running), Running::one(&peer.running), Running(&peer.streams));
            let asked = Request::private(&peer, started, &request, arrived);
            let _stream = nesting::Role::stream(shared.sizes.nested_timeout);
            let _deadline = nesting::Deadline::set(asked.deadline());
            let mut reply = Vec::new();
            let ran = methods::run_long(&method, &peer, &asked, &mut reply, &shared.counts);
            shared.counts.calls.add();
            drop(running); // Who has its answer finds that it does not run any more.
            methods::answer(&peer, started, ran, &mut reply);
            shared.answered(&peer);
        });
        if let Err(error) = thread {
            self.peer.streams.fetch_sub(1, Ordering::Relaxed);
            self.busy(started, &format!("no thread for the method: {error}"));
        }
    }

    fn queue(&self, method: Method, started: Started, request: Vec<u8>, arrived: Deadline) {
        let (peer, running) = (Arc::clone(self.peer), &self.peer.running);
        running.fetch_add(1, Ordering::Relaxed);
        let job = Job { shared: Arc::clone(self.shared), peer, method, started, request, arrived };
        if let Err(reason) = self.shared.queue.put(job) {
            running.fetch_sub(1, Ordering::Relaxed);
            self.busy(started, reason);
        }
    }

    /// Whether the client has closed its end or died: the connection ends once what it had committed was received.
    fn has_left(&self) -> bool {
        matches!(self.peer.hall.ear.ended(), Some(ConnectionError::Disconnected | ConnectionError::PeerDied))
    }

    #[cold]
    fn busy(&self, started: Started, text: &str) {
        self.shared.counts.busy.add();
        self.peer.hall.fail(started.id, &(Status::Busy, 0, text.into()));
    }

    /// Whether one more may run for this client.
    fn room(&self, method: &Method) -> Result<(), Failure> {
        let streams =
            method.streams() && self.peer.streams.load(Ordering::Relaxed) >= self.shared.sizes.streams;
        // Those that nobody waits for any more count as well: a client must not pile them up.
        let places = self.peer.hall.places();
        let running = self.peer.running.load(Ordering::Relaxed) >= 2 * places;
        if !(streams || running) {
            return Ok(());
        }
        self.shared.counts.busy.add();
        Err((Status::Busy, 0, "too many methods run for this client".into()))
    }
}

impl Service<Mapping, AdaptiveWait> for Desk<'_> {
    #[inline]
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, Failure> {
        // What a client had committed when it left is served whole; there is no more of it.
        if self.shared.draining.load(Ordering::Relaxed) && !(flags & NOTIFY != 0 && self.has_left()) {
            return Err((Status::ShuttingDown, 0, String::new()));
        }
        let method = self.shared.methods.find(method, flags & (STREAM | UPLOAD))?;
        if method.is_inline() {
            self.admitted = Some(method);
            return Ok(true);
        }
        self.room(method).map(|()| false)
    }

    fn run(&mut self, call: Started, request: Vec<u8>, arrived: Deadline) {
        let method = match self.shared.methods.find(call.method, call.flags) {
            Ok(method) => method,
            Err(failure) => return self.peer.hall.fail(call.id, &failure),
        };
        if method.is_inline() {
            let asked = Request::private(self.peer, call, &request, arrived);
            let deadline = nesting::Deadline::set(asked.deadline());
            let ran = methods::run_long(method, self.peer, &asked, &mut self.reply, &self.shared.counts);
            drop(deadline);
            methods::answer(self.peer, call, ran, &mut self.reply);
            self.shared.counts.calls.add();
            self.peer.hall.with(|table| table.recycle(call.id, request));
        } else if let Err(failure) = self.room(method) {
            self.peer.hall.fail(call.id, &failure); // Others began to run while its request came.
        } else if method.streams() {
            self.spawn(method.clone(), call, request, arrived);
        } else {
            self.queue(method.clone(), call, request, arrived);
        }
    }

    #[inline]
    fn run_in_place(
        &mut self,
        call: Started,
        given: Given<'_, Mapping, AdaptiveWait>,
    ) -> Result<&mut Vec<u8>, Failure> {
        let Self { shared, peer, reply, copy, admitted, .. } = self;
        let method = admitted.take().map_or_else(|| shared.methods.find(call.method, call.flags), Ok)?;
        let asked = match given.private() {
            Some(bytes) => Request::private(peer, call, bytes, None), // It has just come.
            None => {
                let room = try_reserve(copy, given.frame.len());
                room.map_err(|_| (Status::Busy, 0, "there is no memory for the request".into()))?;
                Request::placed(peer, call, given, copy)
            }
        };
        let _deadline = nesting::Deadline::set(asked.deadline());
        methods::run(method, peer, &asked, reply, &shared.counts).map(|()| reply)
    }

    fn is_over(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed) && self.peer.hall.is_quiet() && !self.has_left()
    }
}
