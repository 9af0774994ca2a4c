//! A client in one thread: the operations of `SharedMemoryClient`, one step at a time and without blocking.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::server::{MethodResult, Server, refused};
use super::{CallRings, Mem, text};
use narrows::internal::memory::Deadline;
use narrows::internal::rpc::CallOver;
use narrows::internal::rpc::client::{CallOutcome, InFlightCalls, Multiplexer, MultiplexerParts, WaitError};
use narrows::internal::rpc::flow_control::window_cost;
use narrows::internal::rpc::fragment::Fragmenter;
use narrows::internal::rpc::server::CallLimits;
use narrows::internal::rpc::wire::{DEADLINE, FrameHeader, FrameKind, NOTIFY, STREAM, Status, UPLOAD};
use narrows::internal::{IncomingSignals, OobSender, RealSync, Wait, WaitPolicy};

/// A deadline that no call reaches which the server answers at once.
const LONG: Duration = Duration::from_secs(20);

/// A wait policy that runs the server where the client would wait.
#[derive(Clone)]
pub(super) struct Turn(pub(super) Arc<Mutex<Server>>);

impl Turn {
    pub(super) fn server(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers each call without streams.
    fn answer(&self) {
        let mut server = self.server();
        for id in server.open() {
            let run = &server.methods.runs[&id];
            if run.flags & (STREAM | UPLOAD) == 0 {
                let len = run.request.len().min(server.limits.max_message);
                server.finish(id, len, false);
            }
        }
        server.step();
    }
}

impl WaitPolicy for Turn {
    fn active(&mut self) {}

    fn spin(&mut self, _deadline: Deadline, look: impl Fn() -> bool) -> bool {
        (0..200).any(|_| {
            self.answer();
            look()
        })
    }

    fn slept(&mut self) {}

    fn brief_spins(&mut self) -> u32 {
        self.answer();
        1
    }
}

/// A call, as the client knows it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: u32,
    pub(super) flags: u8,
    /// The time left, if the call has a deadline, and the request.
    pub(super) body: [Vec<u8>; 2],
    /// The fragmentation of the item that is being sent: the request or the last chunk.
    pub(super) fragmenter: Option<Fragmenter>,
    seq: u16,
    /// The whole request was sent.
    pub(super) asked: bool,
    /// The chunks of the upload, the one that is being sent included.
    pub(super) chunks: Vec<Vec<u8>>,
    /// The end of the upload was sent, or the server needs none.
    pub(super) ended: bool,
    /// The number of chunks of the reply that were taken.
    taken: usize,
    /// Its end was not taken yet, and it was not given up.
    pub(super) waited: bool,
    /// It was given up.
    pub(super) cancelled: bool,
}

/// The client, and all calls that it made.
pub(super) struct Client {
    pub(super) mux: Multiplexer<Mem, Turn, RealSync>,
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) turn: Turn,
    pub(super) pushes: usize,
    pub(super) limits: CallLimits,
    pub(super) ends: u64,
    count: u64,
}

impl Client {
    pub(super) fn new(rings: &CallRings, server: Server) -> Self {
        let turn = Turn(Arc::new(Mutex::new(server)));
        let limits = rings.limits;
        let CallLimits { slots, max_message: max, max_fragment: fragment, window, push_window } = limits;
        let mux = Multiplexer::new(MultiplexerParts {
            inbound: CallRings::receiver(&rings.down, turn.clone()),
            outbound: CallRings::sender(&rings.up, turn.clone()),
            oob_sender: OobSender::new(rings.up.clone()),
            incoming: IncomingSignals::new(rings.down.clone()),
            calls: InFlightCalls::new(slots, max, window, push_window),
            slots,
            max_fragment: fragment,
        });
        Self { mux, calls: BTreeMap::new(), turn, pushes: 0, limits, ends: 0, count: 0 }
    }

    /// Returns the header of a call's first frame, and the call.
    fn compose(&mut self, method: u32, flags: u8, len: usize) -> (FrameHeader, Call) {
        self.count += 1;
        let left = if flags & DEADLINE != 0 { u64::MAX.to_le_bytes().to_vec() } else { Vec::new() };
        let body = [left, text(self.count, len)];
        let head = FrameHeader::new(FrameKind::Call, method).with_flags(flags);
        let call = Call {
            method,
            flags,
            fragmenter: Some(Fragmenter::new(head, body[0].len() + len)),
            body,
            seq: 0,
            asked: false,
            chunks: Vec::new(),
            ended: false,
            taken: 0,
            waited: flags & NOTIFY == 0,
            cancelled: false,
        };
        (head, call)
    }

    /// Opens a call if a slot is free. Nothing of it is sent.
    pub(super) fn begin(&mut self, method: u32, flags: u8, len: usize) -> Option<u64> {
        let (_, call) = self.compose(method, flags, len);
        let opened = self.mux.wait(self.mux.slot_signal(), Wait::Never, |calls| {
            let id = calls.open(method, flags)?;
            calls.lend_buffer(id, &mut Vec::with_capacity(8));
            Some(id)
        });
        match opened {
            Ok(id) => {
                assert!(self.calls.insert(id, call).is_none(), "an id was used twice");
                Some(id)
            }
            Err(stop) => {
                assert_eq!(stop, WaitError::Timeout);
                None
            }
        }
    }

    /// Makes a call that the server answers while the client waits for it. Returns false if no slot or no room was free.
    pub(super) fn at_once(&mut self, method: u32, flags: u8, len: usize) -> bool {
        let (head, mut call) = self.compose(method, flags, len);
        if call.body[0].len() + len > self.limits.max_fragment {
            return false;
        }
        let (mut buffer, wait) = (Vec::new(), Wait::Deadline(Instant::now().checked_add(LONG)));
        let parts = [&call.body[0][..], &call.body[1][..]];
        let Some((id, end)) = self.mux.call_as_leader(head, parts, &mut buffer, wait) else { return false };
        (call.fragmenter, call.asked) = (None, true);
        assert!(self.calls.insert(id, call).is_none(), "an id was used twice");
        self.check_end(id, end.expect("the server answers at once"), &buffer);
        true
    }

    /// Continues the item that is being sent. Returns whether all of it is sent.
    pub(super) fn send(&mut self, id: u64) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        let Some(fragmenter) = &mut call.fragmenter else { return true };
        let parts = match call.asked {
            false => [&call.body[0][..], &call.body[1][..]],
            true => [call.chunks.last().map_or(&[][..], Vec::as_slice), &[]],
        };
        match self.mux.send_item(fragmenter, parts, &mut call.seq, id, Wait::Never) {
            Ok(()) => (call.fragmenter, call.asked) = (None, true),
            Err(WaitError::CallOver) => call.fragmenter = None, // `asked` stays false if the server did not get the whole request.
            Err(stop) => {
                assert_eq!(stop, WaitError::Timeout);
                return false;
            }
        }
        true
    }

    /// Gives up the item that is being sent, as a sender whose deadline has passed.
    pub(super) fn stop_sending(&mut self, id: u64) {
        let call = self.calls.get_mut(&id).expect("begun");
        let Some(fragmenter) = call.fragmenter.take() else { return };
        match (fragmenter.is_unsent(), call.asked) {
            (true, false) => {
                self.mux.forget_unsent(id);
                self.calls.remove(&id);
            }
            (true, true) => {
                let chunk = call.chunks.pop().expect("it is being sent");
                self.mux.lock().calls.refund_credit(id, window_cost(chunk.len()));
            }
            (false, asked) => {
                self.give_up(id);
                if !asked {
                    self.mux.cancel(id); // A notification is cancelled as well.
                }
            }
        }
    }

    /// Gives up the call.
    pub(super) fn give_up(&mut self, id: u64) {
        let call = self.calls.get_mut(&id).expect("begun");
        (call.waited, call.cancelled, call.fragmenter) = (false, true, None);
        self.mux.abandon(id);
    }

    /// Begins to send a chunk of an upload, if its window has room. Returns whether it did.
    pub(super) fn upload(&mut self, id: u64, len: usize) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        if !call.uploads() {
            return false;
        }
        let len = len.min((self.limits.window - window_cost(0)) as usize).min(self.limits.max_message);
        let room = self.mux.wait(self.mux.signal_of(id), Wait::Never, |calls| {
            match calls.spend_credit(id, window_cost(len)) {
                Ok(room) => room.then_some(true),
                Err(CallOver) => Some(false),
            }
        });
        match room {
            Ok(true) => {}
            Ok(false) => {
                call.ended = true;
                return false;
            }
            Err(stop) => {
                assert_eq!(stop, WaitError::Timeout);
                return false;
            }
        }
        self.count += 1;
        call.chunks.push(text(self.count, len));
        call.fragmenter = Some(Fragmenter::new(FrameHeader::new(FrameKind::Chunk, 0), len));
        self.send(id);
        true
    }

    /// Sends the end of the upload. Returns whether it was sent, or is not needed.
    pub(super) fn end_upload(&mut self, id: u64) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        if !call.uploads() {
            return false;
        }
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::End, 0), 0);
        let sent = self.mux.send_item(&mut fragmenter, [&[], &[]], &mut call.seq, id, Wait::Never);
        assert!(matches!(sent, Ok(()) | Err(WaitError::CallOver | WaitError::Timeout)), "{sent:?}");
        call.ended = sent != Err(WaitError::Timeout);
        call.ended
    }

    /// Takes a chunk of a call's reply, or its end. Returns whether one was there.
    pub(super) fn take(&mut self, id: u64) -> bool {
        let mut buffer = Vec::new();
        let streams = self.calls[&id].flags & STREAM != 0;
        let mut chunk = None;
        let end = self.mux.wait(self.mux.signal_of(id), Wait::Never, |calls| {
            chunk = calls.next_chunk(id).map(|chunk| (chunk, calls.take_owed_credit(id)));
            if chunk.is_some() { Some(None) } else { calls.take_outcome(id, &mut buffer).map(Some) }
        });
        match (end, chunk) {
            (Ok(None), Some((chunk, owed))) => {
                let call = self.calls.get_mut(&id).expect("begun");
                let server = self.turn.server();
                assert!(
                    streams && Some(&chunk) == server.methods.runs[&id].written.get(call.taken),
                    "another chunk"
                );
                drop(server);
                call.taken += 1;
                self.give_credit(id, owed);
            }
            (Ok(Some(end)), _) => self.check_end(id, end, &buffer),
            (end, _) => {
                assert_eq!(end.map(|_| ()), Err(WaitError::Timeout));
                return false;
            }
        }
        true
    }

    fn give_credit(&self, id: u64, owed: Option<u32>) {
        let Some(owed) = owed else { return };
        let mut fragmenter = Fragmenter::new(FrameHeader::new(FrameKind::Credit, owed), 0);
        match self.mux.send_item(&mut fragmenter, [&[], &[]], &mut 0, id, Wait::Never) {
            Ok(()) | Err(WaitError::CallOver) => {}
            Err(stop) => {
                assert_eq!(stop, WaitError::Timeout);
                self.mux.lock().calls.restore_owed_credit(id, owed);
            }
        }
    }

    /// Checks that a call ended with the result of its method, after all chunks of the reply.
    fn check_end(&mut self, id: u64, end: CallOutcome, buffer: &[u8]) {
        let call = self.calls.get_mut(&id).expect("begun");
        (call.waited, call.fragmenter) = (false, None);
        self.ends += 1;
        let server = self.turn.server();
        let Some(run) = server.methods.runs.get(&id) else {
            assert!(refused(call.method), "{end:?} of a call that did not run");
            let text = &"refused"[..7.min(self.limits.max_fragment - 4)];
            assert_eq!(end, CallOutcome::Failed(Status::Busy, 0, text.into()));
            return;
        };
        assert!(call.asked && call.taken == run.written.len(), "an end before its chunks");
        match (end, run.result.as_ref().expect("the method has ended")) {
            (CallOutcome::Reply, MethodResult::Reply(reply)) => assert_eq!(buffer, reply),
            (CallOutcome::End, MethodResult::End) => {}
            (CallOutcome::Failed(status, code, text), MethodResult::Failed(failure)) => {
                assert_eq!((status, code), (failure.0, failure.1));
                let most = self.limits.max_fragment - 4;
                assert_eq!(text, &failure.2[..failure.2.len().min(most)]);
            }
            (end, result) => panic!("the method returned {result:?}, and the client got {end:?}"),
        }
    }

    /// Takes a push. Returns whether one was there.
    pub(super) fn take_push(&mut self) -> bool {
        let taken = self.mux.wait(self.mux.push_signal(), Wait::Never, |calls| {
            calls.next_push().map(|push| (push, calls.take_owed_push_credit()))
        });
        let Ok((push, owed)) = taken else { return false };
        assert_eq!(Some(&push), self.turn.server().pushed.get(self.pushes), "another push");
        self.pushes += 1;
        self.give_credit(0, owed);
        true
    }

    /// Reads the next frame.
    pub(super) fn read_one(&self) {
        let mut checks = 0;
        let _read = self.mux.wait(self.mux.slot_signal(), Wait::Never, |_| {
            checks += 1;
            (checks > 1).then_some(())
        });
    }
}

impl Call {
    /// Returns whether a chunk may be sent now.
    fn uploads(&self) -> bool {
        self.flags & UPLOAD != 0 && self.asked && self.fragmenter.is_none() && !self.ended && !self.cancelled
    }
}
