//! A client in one thread: the operations of `SharedMemoryClient`, one step at a time and without blocking.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::server::{MethodResult, Server, refused};
use super::{CallRings, Mem, text};
use narrows::internal::mem::Deadline;
use narrows::internal::rpc::Over;
use narrows::internal::rpc::client::{Desk, Final, Parts, Stop, Table};
use narrows::internal::rpc::pieces::Cut;
use narrows::internal::rpc::server::Limits;
use narrows::internal::rpc::wire::{DEADLINE, Head, Kind, NOTIFY, STREAM, Status, UPLOAD, cost};
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
                let len = run.request.len().min(server.limits.max);
                server.finish(id, len, false);
            }
        }
        server.step();
    }
}

impl WaitPolicy for Turn {
    fn active(&mut self) {}

    fn spin(&mut self, _until: Deadline, look: impl Fn() -> bool) -> bool {
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
    pub(super) cut: Option<Cut>,
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
    pub(super) desk: Desk<Mem, Turn, RealSync>,
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) turn: Turn,
    pub(super) pushes: usize,
    pub(super) limits: Limits,
    pub(super) ends: u64,
    count: u64,
}

impl Client {
    pub(super) fn new(rings: &CallRings, server: Server) -> Self {
        let turn = Turn(Arc::new(Mutex::new(server)));
        let limits = rings.limits;
        let Limits { places, max, piece, window, push_window } = limits;
        let desk = Desk::new(Parts {
            inbound: CallRings::receiver(&rings.down, turn.clone()),
            outbound: CallRings::sender(&rings.up, turn.clone()),
            poster: OobSender::new(rings.up.clone()),
            ear: IncomingSignals::new(rings.down.clone()),
            table: Table::new(places, max, window, push_window),
            places,
            piece,
        });
        Self { desk, calls: BTreeMap::new(), turn, pushes: 0, limits, ends: 0, count: 0 }
    }

    /// Returns the header of a call's first frame, and the call.
    fn compose(&mut self, method: u32, flags: u8, len: usize) -> (Head, Call) {
        self.count += 1;
        let left = if flags & DEADLINE != 0 { u64::MAX.to_le_bytes().to_vec() } else { Vec::new() };
        let body = [left, text(self.count, len)];
        let head = Head::new(Kind::Call, method).with(flags);
        let call = Call {
            method,
            flags,
            cut: Some(Cut::new(head, body[0].len() + len)),
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
        let opened = self.desk.wait(self.desk.freed(), Wait::Never, |table| {
            let id = table.open(method, flags)?;
            table.lend(id, &mut Vec::with_capacity(8));
            Some(id)
        });
        match opened {
            Ok(id) => {
                assert!(self.calls.insert(id, call).is_none(), "an id was used twice");
                Some(id)
            }
            Err(stop) => {
                assert_eq!(stop, Stop::Timeout);
                None
            }
        }
    }

    /// Makes a call that the server answers while the client waits for it. Returns false if no slot or no room was free.
    pub(super) fn at_once(&mut self, method: u32, flags: u8, len: usize) -> bool {
        let (head, mut call) = self.compose(method, flags, len);
        if call.body[0].len() + len > self.limits.piece {
            return false;
        }
        let (mut buffer, wait) = (Vec::new(), Wait::Until(Instant::now().checked_add(LONG)));
        let parts = [&call.body[0][..], &call.body[1][..]];
        let Some((id, end)) = self.desk.call_at_once(head, parts, &mut buffer, wait) else { return false };
        (call.cut, call.asked) = (None, true);
        assert!(self.calls.insert(id, call).is_none(), "an id was used twice");
        self.check_end(id, end.expect("the server answers at once"), &buffer);
        true
    }

    /// Continues the item that is being sent. Returns whether all of it is sent.
    pub(super) fn send(&mut self, id: u64) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        let Some(cut) = &mut call.cut else { return true };
        let parts = match call.asked {
            false => [&call.body[0][..], &call.body[1][..]],
            true => [call.chunks.last().map_or(&[][..], Vec::as_slice), &[]],
        };
        match self.desk.send_item(cut, parts, &mut call.seq, id, Wait::Never) {
            Ok(()) => (call.cut, call.asked) = (None, true),
            Err(Stop::Over) => call.cut = None, // `asked` stays false if the server did not get the whole request.
            Err(stop) => {
                assert_eq!(stop, Stop::Timeout);
                return false;
            }
        }
        true
    }

    /// Gives up the item that is being sent, as a sender whose deadline has passed.
    pub(super) fn stop_sending(&mut self, id: u64) {
        let call = self.calls.get_mut(&id).expect("begun");
        let Some(cut) = call.cut.take() else { return };
        match (cut.is_whole(), call.asked) {
            (true, false) => {
                self.desk.unsend(id);
                self.calls.remove(&id);
            }
            (true, true) => {
                let chunk = call.chunks.pop().expect("it is being sent");
                self.desk.books().table.refund(id, cost(chunk.len()));
            }
            (false, asked) => {
                self.give_up(id);
                if !asked {
                    self.desk.cancel(id); // A notification is cancelled as well.
                }
            }
        }
    }

    /// Gives up the call.
    pub(super) fn give_up(&mut self, id: u64) {
        let call = self.calls.get_mut(&id).expect("begun");
        (call.waited, call.cancelled, call.cut) = (false, true, None);
        self.desk.abandon(id);
    }

    /// Begins to send a chunk of an upload, if its window has room. Returns whether it did.
    pub(super) fn upload(&mut self, id: u64, len: usize) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        if !call.uploads() {
            return false;
        }
        let len = len.min((self.limits.window - cost(0)) as usize).min(self.limits.max);
        let room =
            self.desk.wait(self.desk.signal_of(id), Wait::Never, |table| match table.spend(id, cost(len)) {
                Ok(room) => room.then_some(true),
                Err(Over) => Some(false),
            });
        match room {
            Ok(true) => {}
            Ok(false) => {
                call.ended = true;
                return false;
            }
            Err(stop) => {
                assert_eq!(stop, Stop::Timeout);
                return false;
            }
        }
        self.count += 1;
        call.chunks.push(text(self.count, len));
        call.cut = Some(Cut::new(Head::new(Kind::Chunk, 0), len));
        self.send(id);
        true
    }

    /// Sends the end of the upload. Returns whether it was sent, or is not needed.
    pub(super) fn end_upload(&mut self, id: u64) -> bool {
        let call = self.calls.get_mut(&id).expect("begun");
        if !call.uploads() {
            return false;
        }
        let mut cut = Cut::new(Head::new(Kind::End, 0), 0);
        let sent = self.desk.send_item(&mut cut, [&[], &[]], &mut call.seq, id, Wait::Never);
        assert!(matches!(sent, Ok(()) | Err(Stop::Over | Stop::Timeout)), "{sent:?}");
        call.ended = sent != Err(Stop::Timeout);
        call.ended
    }

    /// Takes a chunk of a call's reply, or its end. Returns whether one was there.
    pub(super) fn take(&mut self, id: u64) -> bool {
        let mut buffer = Vec::new();
        let streams = self.calls[&id].flags & STREAM != 0;
        let mut chunk = None;
        let end = self.desk.wait(self.desk.signal_of(id), Wait::Never, |table| {
            chunk = table.chunk(id).map(|chunk| (chunk, table.owed(id)));
            if chunk.is_some() { Some(None) } else { table.finish(id, &mut buffer).map(Some) }
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
                assert_eq!(end.map(|_| ()), Err(Stop::Timeout));
                return false;
            }
        }
        true
    }

    fn give_credit(&self, id: u64, owed: Option<u32>) {
        let Some(owed) = owed else { return };
        let mut cut = Cut::new(Head::new(Kind::Credit, owed), 0);
        match self.desk.send_item(&mut cut, [&[], &[]], &mut 0, id, Wait::Never) {
            Ok(()) | Err(Stop::Over) => {}
            Err(stop) => {
                assert_eq!(stop, Stop::Timeout);
                self.desk.books().table.take_back(id, owed);
            }
        }
    }

    /// Checks that a call ended with the result of its method, after all chunks of the reply.
    fn check_end(&mut self, id: u64, end: Final, buffer: &[u8]) {
        let call = self.calls.get_mut(&id).expect("begun");
        (call.waited, call.cut) = (false, None);
        self.ends += 1;
        let server = self.turn.server();
        let Some(run) = server.methods.runs.get(&id) else {
            assert!(refused(call.method), "{end:?} of a call that did not run");
            let text = &"refused"[..7.min(self.limits.piece - 4)];
            assert_eq!(end, Final::Failed(Status::Busy, 0, text.into()));
            return;
        };
        assert!(call.asked && call.taken == run.written.len(), "an end before its chunks");
        match (end, run.result.as_ref().expect("the method has ended")) {
            (Final::Reply, MethodResult::Reply(reply)) => assert_eq!(buffer, reply),
            (Final::End, MethodResult::End) => {}
            (Final::Failed(status, code, text), MethodResult::Failed(failure)) => {
                assert_eq!((status, code), (failure.0, failure.1));
                let most = self.limits.piece - 4;
                assert_eq!(text, &failure.2[..failure.2.len().min(most)]);
            }
            (end, result) => panic!("the method returned {result:?}, and the client got {end:?}"),
        }
    }

    /// Takes a push. Returns whether one was there.
    pub(super) fn take_push(&mut self) -> bool {
        let taken = self.desk.wait(self.desk.pushed(), Wait::Never, |table| {
            table.next_push().map(|push| (push, table.push_owed()))
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
        let _read = self.desk.wait(self.desk.freed(), Wait::Never, |_| {
            checks += 1;
            (checks > 1).then_some(())
        });
    }
}

impl Call {
    /// Returns whether a chunk may be sent now.
    fn uploads(&self) -> bool {
        self.flags & UPLOAD != 0 && self.asked && self.cut.is_none() && !self.ended && !self.cancelled
    }
}
