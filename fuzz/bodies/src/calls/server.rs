//! A server in one thread: the fuzzer's bytes choose when the connection is served, and what each method does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{CallRings, Mem, length, text};
use crate::bytes::Bytes;
use narrows::internal::ConnectionError;
use narrows::internal::rpc::flow_control::window_cost;
use narrows::internal::rpc::server::{
    BorrowedRequest, CallFailure, CallInfo, CallLimits, ConnectionDriver, Dispatch, Payload, RespondError,
    ServedCalls, ServerConnection, ServerConnectionParts, UploadItem,
};
use narrows::internal::rpc::wire::{DEADLINE, FrameHeader, FrameKind, MORE, STREAM, Status, UPLOAD};
use narrows::internal::{IncomingSignals, NoWaitPolicy, RealSync, Wait};

type TestConnection = ServerConnection<Mem, NoWaitPolicy, RealSync>;

/// The end of a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MethodResult {
    Reply(Vec<u8>),
    End,
    Failed(CallFailure),
}

/// A call that its method was started for.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) method: u32,
    pub(super) flags: u8,
    pub(super) request: Vec<u8>,
    pub(super) written: Vec<Vec<u8>>,
    pub(super) read: Vec<Vec<u8>>,
    /// The end of the upload was read.
    pub(super) read_all: bool,
    /// The method was notified that the client gave the call up.
    pub(super) gone: bool,
    pub(super) result: Option<MethodResult>,
}

/// Returns whether calls of this method are refused.
pub(super) fn refused(method: u32) -> bool {
    method % 8 == 7
}

fn inline(method: u32, flags: u8) -> bool {
    method % 8 == 6 && flags & (STREAM | UPLOAD) == 0
}

/// Returns the result of an inline method.
fn answer(method: u32, request: &[u8], max: usize) -> MethodResult {
    if method & 8 != 0 {
        return MethodResult::Failed((Status::Failed, method, "no".into()));
    }
    MethodResult::Reply(request.iter().rev().copied().take(max).collect())
}

/// The methods, and all calls that they were started for.
pub(super) struct Methods {
    pub(super) runs: BTreeMap<u64, Run>,
    connection: Arc<TestConnection>,
    reply: Vec<u8>,
    max: usize,
    /// The client is well-formed.
    well_formed: bool,
}

impl Methods {
    fn begin(&mut self, call: CallInfo, request: Vec<u8>) {
        let run = Run {
            method: call.method,
            flags: call.flags & !MORE,
            request,
            written: Vec::new(),
            read: Vec::new(),
            read_all: false,
            gone: false,
            result: None,
        };
        assert!(!refused(call.method), "a refused call runs");
        let again = self.runs.contains_key(&call.id);
        // A hostile client may use an id again, which is found only after an inline method ran.
        assert!(!(again && self.well_formed), "call {} runs twice", call.id);
        self.runs.entry(call.id).or_insert(run);
    }

    /// Ends the method of a call.
    fn end(&mut self, id: u64, result: MethodResult) {
        match &result {
            MethodResult::Reply(reply) => {
                self.connection.finish(
                    id,
                    FrameHeader::new(FrameKind::Reply, 0),
                    Payload::Owned(&mut reply.clone()),
                );
            }
            MethodResult::End => {
                self.connection.finish(id, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]))
            }
            MethodResult::Failed(failure) => self.connection.fail(id, failure),
        }
        self.runs.get_mut(&id).expect("it runs").result = Some(result);
    }
}

impl Dispatch<Mem, NoWaitPolicy> for Methods {
    fn admit(&mut self, method: u32, flags: u8) -> Result<bool, CallFailure> {
        if refused(method) {
            return Err((Status::Busy, 0, "refused".into()));
        }
        Ok(inline(method, flags))
    }

    fn dispatch(&mut self, call: CallInfo, request: Vec<u8>, _arrived: Option<Instant>) {
        let result =
            inline(call.method, call.flags).then(|| answer(call.method, body(call, &request), self.max));
        self.begin(call, request.clone());
        if let Some(result) = result {
            self.end(call.id, result);
            self.connection.with_calls(|calls| calls.recycle(call.id, request));
        }
    }

    fn run_inline(
        &mut self,
        call: CallInfo,
        given: BorrowedRequest<'_, Mem, NoWaitPolicy>,
    ) -> Result<&mut Vec<u8>, CallFailure> {
        let request = given.to_vec();
        let result = answer(call.method, body(call, &request), self.max);
        self.begin(call, request);
        self.runs.get_mut(&call.id).expect("begun").result = Some(result.clone());
        match result {
            MethodResult::Reply(reply) => {
                self.reply = reply;
                Ok(&mut self.reply)
            }
            MethodResult::Failed(failure) => Err(failure),
            MethodResult::End => unreachable!("no stream is inline"),
        }
    }

    fn is_done(&self) -> bool {
        false
    }
}

/// Returns the request without the time left.
fn body(call: CallInfo, request: &[u8]) -> &[u8] {
    let skip = if call.flags & DEADLINE != 0 { 8 } else { 0 };
    request.get(skip..).unwrap_or_default()
}

/// The server, and what it did.
pub(super) struct Server {
    pub(super) connection: Arc<TestConnection>,
    driver: ConnectionDriver<Mem, NoWaitPolicy, RealSync>,
    pub(super) methods: Methods,
    /// The error that the connection ended with.
    pub(super) over: Option<ConnectionError>,
    /// Pushes that the server accepted.
    pub(super) pushed: Vec<Vec<u8>>,
    pub(super) limits: CallLimits,
    count: u64,
    past: Instant,
}

impl Server {
    /// Makes a server for a well-formed or a hostile client.
    pub(super) fn new(rings: &CallRings, well_formed: bool) -> Self {
        let (out, inbound) = CallRings::end(&rings.down, &rings.up);
        let limits = rings.limits;
        let parts = ServerConnectionParts {
            outbound: out,
            outgoing: Arc::clone(&rings.down),
            incoming: IncomingSignals::new(Arc::clone(&rings.up)),
            calls: ServedCalls::new(limits),
            max_fragment: limits.max_fragment,
        };
        let connection = Arc::new(ServerConnection::new(parts));
        Self {
            driver: ConnectionDriver::new(Arc::clone(&connection), inbound),
            methods: Methods {
                runs: BTreeMap::new(),
                connection: Arc::clone(&connection),
                reply: Vec::new(),
                max: limits.max_message,
                well_formed,
            },
            connection,
            over: None,
            pushed: Vec::new(),
            limits,
            count: 1 << 32,
            past: Instant::now(),
        }
    }

    /// Receives all frames and sends what is queued. Returns whether there was anything to do.
    pub(super) fn step(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        match self.driver.step(&mut self.methods) {
            Ok(busy) => {
                self.connection.with_calls(|calls| calls.audit());
                busy
            }
            Err(ended) => {
                self.over = Some(ended);
                false
            }
        }
    }

    /// Returns the calls whose methods have not ended.
    pub(super) fn open(&self) -> Vec<u64> {
        self.methods.runs.iter().filter(|(_, run)| run.result.is_none()).map(|(id, _)| *id).collect()
    }

    /// Lets one of the methods do something, or sends a push.
    pub(super) fn act(&mut self, bytes: &mut Bytes<'_>) {
        let CallLimits { max_fragment: fragment, max_message: max, window, push_window, .. } = self.limits;
        let open = self.open();
        self.count += 1;
        let choice = bytes.below(8);
        if open.is_empty() || choice == 7 {
            return self.push(length(bytes, fragment, max.min((push_window - window_cost(0)) as usize)));
        }
        let id = bytes.pick(&open);
        match choice {
            0..=2 => self.write(id, length(bytes, fragment, max.min((window - window_cost(0)) as usize))),
            3..=4 => drop(self.read(id)),
            _ => {
                let len = length(bytes, fragment, max);
                self.finish(id, len, bytes.rarely(4));
            }
        }
        if self.over.is_none() {
            self.connection.with_calls(|calls| calls.audit());
        }
    }

    fn push(&mut self, len: usize) {
        let push = text(self.count, len);
        match self.connection.push(&push, Wait::Never) {
            Ok(()) => self.pushed.push(push),
            Err(RespondError::Timeout) => assert!(self.over.is_none()),
            Err(gone) => assert_eq!(RespondError::Ended(self.over.expect("over")), gone),
        }
    }

    fn write(&mut self, id: u64, len: usize) {
        let chunk = text(self.count, len);
        let run = self.methods.runs.get_mut(&id).expect("open");
        if run.flags & STREAM == 0 {
            return;
        }
        match self.connection.write_chunk(id, &chunk, Some(self.past)) {
            Ok(()) => run.written.push(chunk),
            Err(RespondError::Cancelled) => run.gone = true,
            Err(RespondError::Timeout) => {}
            Err(gone) => assert_eq!(RespondError::Ended(self.over.expect("over")), gone),
        }
    }

    /// Reads a chunk of an upload. Returns whether it got one.
    pub(super) fn read(&mut self, id: u64) -> bool {
        let run = self.methods.runs.get_mut(&id).expect("open");
        match self.connection.next_chunk(id, Some(self.past)) {
            Ok(UploadItem::Chunk(chunk)) => {
                assert!(!run.read_all && run.flags & UPLOAD != 0, "a chunk after the end");
                run.read.push(chunk);
                return true;
            }
            Ok(UploadItem::End) => run.read_all = true,
            Err(RespondError::Cancelled) => run.gone = true,
            Err(RespondError::Timeout) => {}
            Err(gone) => assert_eq!(RespondError::Ended(self.over.expect("over")), gone),
        }
        false
    }

    /// Ends the method of a call: with an error, with the end of its stream, or with a reply of this length.
    pub(super) fn finish(&mut self, id: u64, len: usize, fails: bool) {
        let streams = self.methods.runs[&id].flags & STREAM != 0;
        let result = match (fails, streams) {
            (true, _) => MethodResult::Failed((Status::Failed, 7, "failed, for a reason".into())),
            (false, true) => MethodResult::End,
            (false, false) => MethodResult::Reply(text(self.count, len)),
        };
        self.methods.end(id, result);
    }
}
