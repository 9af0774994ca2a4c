//! A server in one thread: its attendant is driven step by step, its methods by the fuzzer's bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::super::bytes::Bytes;
use super::{Mem, World, length, text};
use crate::channel::{Ear, NoPace, RealThreads, Wait};
use crate::error::Ended;
use crate::rpc::server::{
    Attendant, Body, Failure, Given, Gone, Hall, Limits, Parts, Service, Started, Table, Upload,
};
use crate::rpc::wire::{DEADLINE, Head, Kind, MORE, STREAM, Status, UPLOAD, cost};

type TheHall = Hall<Mem, NoPace, RealThreads>;

/// What a method said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Reply(Vec<u8>),
    End,
    Failed(Failure),
}

/// A call that was handed to its method.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) method: u32,
    pub(super) flags: u8,
    pub(super) request: Vec<u8>,
    pub(super) written: Vec<Vec<u8>>,
    pub(super) read: Vec<Vec<u8>>,
    /// The upload is at its end.
    pub(super) read_all: bool,
    /// It was told that nobody waits.
    pub(super) gone: bool,
    pub(super) said: Option<Said>,
}

/// Whether calls of this method are refused.
pub(super) fn refused(method: u32) -> bool {
    method % 8 == 7
}

fn inline(method: u32, flags: u8) -> bool {
    method % 8 == 6 && flags & (STREAM | UPLOAD) == 0
}

/// What an inline method says.
fn answer(method: u32, request: &[u8], max: usize) -> Said {
    if method & 8 != 0 {
        return Said::Failed((Status::Failed, method, "no".into()));
    }
    Said::Reply(request.iter().rev().copied().take(max).collect())
}

/// All calls, and what they do.
pub(super) struct Book {
    pub(super) runs: BTreeMap<u64, Run>,
    hall: Arc<TheHall>,
    reply: Vec<u8>,
    max: usize,
    honest: bool,
}

impl Book {
    fn begin(&mut self, call: Started, request: Vec<u8>) {
        let run = Run {
            method: call.method,
            flags: call.flags & !MORE,
            request,
            written: Vec::new(),
            read: Vec::new(),
            read_all: false,
            gone: false,
            said: None,
        };
        assert!(!refused(call.method), "a call runs that was refused");
        let again = self.runs.contains_key(&call.id);
        // A liar's is judged behind an inline method.
        assert!(!(again && self.honest), "call {} runs twice", call.id);
        self.runs.entry(call.id).or_insert(run);
    }

    /// The method says its last word.
    fn say(&mut self, id: u64, said: Said) {
        match &said {
            Said::Reply(reply) => {
                self.hall.finish(id, Head::new(Kind::Reply, 0), Body::Own(&mut reply.clone()));
            }
            Said::End => self.hall.finish(id, Head::new(Kind::End, 0), Body::Lent(&[])),
            Said::Failed(failure) => self.hall.fail(id, failure),
        }
        self.runs.get_mut(&id).expect("it runs").said = Some(said);
    }
}

impl Service<Mem, NoPace> for Book {
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, Failure> {
        if refused(method) {
            return Err((Status::Busy, 0, "refused".into()));
        }
        Ok(inline(method, flags))
    }

    fn run(&mut self, call: Started, request: Vec<u8>, _arrived: Option<Instant>) {
        let said =
            inline(call.method, call.flags).then(|| answer(call.method, body(call, &request), self.max));
        self.begin(call, request.clone());
        if let Some(said) = said {
            self.say(call.id, said);
            self.hall.with(|table| table.recycle(call.id, request));
        }
    }

    fn run_in_place(
        &mut self,
        call: Started,
        given: Given<'_, Mem, NoPace>,
    ) -> Result<&mut Vec<u8>, Failure> {
        let request = given.to_vec();
        let said = answer(call.method, body(call, &request), self.max);
        self.begin(call, request);
        self.runs.get_mut(&call.id).expect("begun").said = Some(said.clone());
        match said {
            Said::Reply(reply) => {
                self.reply = reply;
                Ok(&mut self.reply)
            }
            Said::Failed(failure) => Err(failure),
            Said::End => unreachable!("no stream is inline"),
        }
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// The request itself, behind the time left.
fn body(call: Started, request: &[u8]) -> &[u8] {
    let skip = if call.flags & DEADLINE != 0 { 8 } else { 0 };
    request.get(skip..).unwrap_or_default()
}

/// The server.
pub(super) struct Server {
    pub(super) hall: Arc<TheHall>,
    attendant: Attendant<Mem, NoPace, RealThreads>,
    pub(super) book: Book,
    pub(super) over: Option<Ended>,
    /// Pushes that were taken to be sent.
    pub(super) pushed: Vec<Vec<u8>>,
    pub(super) limits: Limits,
    count: u64,
    past: Instant,
}

impl Server {
    /// With a client that is honest, or is not.
    pub(super) fn new(world: &World, honest: bool) -> Self {
        let (out, inbound) = World::liar(&world.down, &world.up);
        let limits = world.limits;
        let parts = Parts {
            outbound: out,
            outgoing: Arc::clone(&world.down),
            ear: Ear::new(Arc::clone(&world.up)),
            table: Table::new(limits),
            piece: limits.piece,
        };
        let hall = Arc::new(Hall::new(parts));
        Self {
            attendant: Attendant::new(Arc::clone(&hall), inbound),
            book: Book {
                runs: BTreeMap::new(),
                hall: Arc::clone(&hall),
                reply: Vec::new(),
                max: limits.max,
                honest,
            },
            hall,
            over: None,
            pushed: Vec::new(),
            limits,
            count: 1 << 32,
            past: Instant::now(),
        }
    }

    /// Takes what is there and sends what is left. Whether there was anything.
    pub(super) fn step(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        match self.attendant.step(&mut self.book) {
            Ok(busy) => {
                self.hall.with(|table| table.audit());
                busy
            }
            Err(ended) => {
                self.over = Some(ended);
                false
            }
        }
    }

    /// Calls whose methods have not said their last word.
    pub(super) fn open(&self) -> Vec<u64> {
        self.book.runs.iter().filter(|(_, run)| run.said.is_none()).map(|(id, _)| *id).collect()
    }

    /// One of the methods does something; or the server pushes.
    pub(super) fn act(&mut self, bytes: &mut Bytes<'_>) {
        let Limits { piece, max, window, push_window, .. } = self.limits;
        let open = self.open();
        self.count += 1;
        let choice = bytes.below(8);
        if open.is_empty() || choice == 7 {
            return self.push(length(bytes, piece, max.min((push_window - cost(0)) as usize)));
        }
        let id = bytes.pick(&open);
        match choice {
            0..=2 => self.write(id, length(bytes, piece, max.min((window - cost(0)) as usize))),
            3..=4 => drop(self.read(id)),
            _ => {
                let len = length(bytes, piece, max);
                self.finish(id, len, bytes.rarely(4));
            }
        }
        if self.over.is_none() {
            self.hall.with(|table| table.audit());
        }
    }

    fn push(&mut self, len: usize) {
        let push = text(self.count, len);
        match self.hall.push(&push, Wait::Never) {
            Ok(()) => self.pushed.push(push),
            Err(Gone::Timeout) => assert!(self.over.is_none()),
            Err(gone) => assert_eq!(Gone::Ended(self.over.expect("over")), gone),
        }
    }

    fn write(&mut self, id: u64, len: usize) {
        let chunk = text(self.count, len);
        let run = self.book.runs.get_mut(&id).expect("open");
        if run.flags & STREAM == 0 {
            return;
        }
        match self.hall.write_chunk(id, &chunk, Some(self.past)) {
            Ok(()) => run.written.push(chunk),
            Err(Gone::Cancelled) => run.gone = true,
            Err(Gone::Timeout) => {}
            Err(gone) => assert_eq!(Gone::Ended(self.over.expect("over")), gone),
        }
    }

    /// Takes a chunk of an upload; whether there may be more.
    pub(super) fn read(&mut self, id: u64) -> bool {
        let run = self.book.runs.get_mut(&id).expect("open");
        match self.hall.next_chunk(id, Some(self.past)) {
            Ok(Upload::Chunk(chunk)) => {
                assert!(!run.read_all && run.flags & UPLOAD != 0, "a chunk behind the end");
                run.read.push(chunk);
                return true;
            }
            Ok(Upload::End) => run.read_all = true,
            Err(Gone::Cancelled) => run.gone = true,
            Err(Gone::Timeout) => {}
            Err(gone) => assert_eq!(Gone::Ended(self.over.expect("over")), gone),
        }
        false
    }

    /// The method says its last word: a reply of so many bytes, the end of its stream, or that it failed.
    pub(super) fn finish(&mut self, id: u64, len: usize, fails: bool) {
        let streams = self.book.runs[&id].flags & STREAM != 0;
        let said = match (fails, streams) {
            (true, _) => Said::Failed((Status::Failed, 7, "failed, for a reason".into())),
            (false, true) => Said::End,
            (false, false) => Said::Reply(text(self.count, len)),
        };
        self.book.say(id, said);
    }
}
