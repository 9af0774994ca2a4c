//! What a server can do: its methods by number, and how each is run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::activity::Counts;
use super::driver::CallInfo;
use super::in_flight::CallFailure;
use super::request::{ChunkReader, ChunkWriter, Request};
use super::send_queue::Payload;
use super::session::Session;
use crate::error::HandlerError;
use crate::memory::try_reserve;
use crate::rpc::fragment;
use crate::rpc::wire::{FrameHeader, FrameKind, STREAM, Status, UPLOAD};

/// What a method says: nothing, or its own error.
pub(super) type HandlerResult = Result<(), HandlerError>;

type UnaryFn = dyn Fn(&Request<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync;
type StreamingFn = dyn Fn(&Request<'_>, &mut ChunkWriter<'_>) -> HandlerResult + Send + Sync;
type UploadFn = dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync;
type DuplexFn =
    dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut ChunkWriter<'_>) -> HandlerResult + Send + Sync;

/// A method.
#[derive(Clone)]
pub(super) enum Method {
    /// On the connection's thread.
    Inline(Arc<UnaryFn>),
    /// In the pool.
    Pooled(Arc<UnaryFn>),
    /// These have threads of their own.
    Streaming(Arc<StreamingFn>),
    Upload(Arc<UploadFn>),
    Duplex(Arc<DuplexFn>),
}

impl Method {
    /// The flags with which it is called.
    fn flags(&self) -> u8 {
        match self {
            Self::Inline(_) | Self::Pooled(_) => 0,
            Self::Streaming(_) => STREAM,
            Self::Upload(_) => UPLOAD,
            Self::Duplex(_) => UPLOAD | STREAM,
        }
    }

    /// How it is called.
    fn call(&self) -> &'static str {
        match self {
            Self::Inline(_) | Self::Pooled(_) => "it is called by `call`",
            Self::Streaming(_) => "it streams its reply: use `call_streaming`",
            Self::Upload(_) => "it takes an upload: use `start_upload`",
            Self::Duplex(_) => "it streams both ways: use `start_duplex`",
        }
    }

    pub(super) fn is_pooled(&self) -> bool {
        matches!(self, Self::Pooled(_))
    }

    pub(super) fn is_inline(&self) -> bool {
        matches!(self, Self::Inline(_))
    }

    /// Whether it needs a thread of its own.
    pub(super) fn streams(&self) -> bool {
        self.flags() != 0
    }
}

/// All methods of a server, by number.
#[derive(Default)]
pub(super) struct Methods {
    sorted: Vec<(u32, Method)>,
    /// What was registered more than once.
    pub(super) duplicate: Option<String>,
    fallback: Option<Method>,
}

impl Methods {
    /// Registers a method.
    pub(super) fn register(&mut self, id: u32, method: Method) {
        match self.sorted.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(_) => {
                self.duplicate = Some(format!("the method {id} is registered twice: use another number"))
            }
            Err(at) => self.sorted.insert(at, (id, method)),
        }
    }

    /// Registers what answers calls of all other numbers.
    pub(super) fn register_fallback(&mut self, method: Method) {
        if self.fallback.replace(method).is_some() {
            self.duplicate = Some("the fallback is registered twice: one answers all unknown methods".into());
        }
    }

    /// The method that answers such a call.
    #[inline]
    pub(super) fn find(&self, id: u32, flags: u8) -> Result<&Method, CallFailure> {
        let found = self.sorted.binary_search_by_key(&id, |(id, _)| *id);
        let method = match found {
            Ok(at) => self.sorted.get(at).map(|(_, method)| method),
            Err(_) => self.fallback.as_ref(),
        };
        let method = method.ok_or((Status::UnknownMethod, 0, String::new()))?;
        if method.flags() == flags & (UPLOAD | STREAM) {
            return Ok(method);
        }
        let status = if found.is_ok() { Status::WrongKind } else { Status::UnknownMethod };
        Err((status, 0, method.call().into()))
    }
}

/// As [`run`], for a request that may be long. There is memory for a reply that is as long then: a method that finds none
/// aborts the process.
///
/// # Errors
///
/// As there; `Busy` if there is no such memory, and the method was not run.
pub(super) fn run_long(
    method: &Method,
    session: &Arc<Session>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), CallFailure> {
    if request.len() <= fragment::MAX_KEPT {
        return run(method, session, request, reply, counts);
    }
    fragment::clear(reply);
    try_reserve(reply, request.len())
        .map_err(|_| (Status::Busy, 0, "there is no memory to run the method".into()))?;
    invoke(method, session, request, reply, counts)
}

/// Runs a method: what it says goes into `reply`, which is memory that is used again.
///
/// # Errors
///
/// Why it has no reply.
#[inline]
pub(super) fn run(
    method: &Method,
    session: &Arc<Session>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), CallFailure> {
    fragment::clear(reply);
    invoke(method, session, request, reply, counts)
}

#[inline]
fn invoke(
    method: &Method,
    session: &Arc<Session>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), CallFailure> {
    let id = request.id();
    let ran = catch_unwind(AssertUnwindSafe(|| match method {
        Method::Inline(whole) | Method::Pooled(whole) => whole(request, reply),
        Method::Streaming(stream) => stream(request, &mut ChunkWriter::new(session, id)),
        Method::Upload(upload) => upload(request, &mut ChunkReader::new(session, id), reply),
        Method::Duplex(duplex) => {
            duplex(request, &mut ChunkReader::new(session, id), &mut ChunkWriter::new(session, id))
        }
    }));
    match ran {
        Ok(Ok(())) if reply.len() <= session.max_reply => Ok(()),
        failed => Err(failure(failed, reply.len(), session.max_reply, counts)),
    }
}

/// Gives the answer of a method that ran.
pub(super) fn answer(
    session: &Arc<Session>,
    call: CallInfo,
    ran: Result<(), CallFailure>,
    reply: &mut Vec<u8>,
) {
    let streams = call.flags & STREAM != 0;
    match ran {
        Ok(()) if streams => {
            session.connection.finish(call.id, FrameHeader::new(FrameKind::End, 0), Payload::Borrowed(&[]))
        }
        Ok(()) => {
            session.connection.finish(call.id, FrameHeader::new(FrameKind::Reply, 0), Payload::Owned(reply))
        }
        Err(failure) => session.connection.fail(call.id, &failure),
    }
}

#[cold]
fn failure(ran: thread::Result<HandlerResult>, len: usize, max: usize, counts: &Counts) -> CallFailure {
    match ran {
        Ok(Ok(())) => (Status::ReplyTooLarge, 0, format!("{len} bytes, of at most {max}")),
        Ok(Err(error)) => {
            counts.failed.add();
            (Status::Failed, error.code(), error.text().to_owned())
        }
        Err(panic) => {
            counts.panicked.add();
            (Status::Panicked, 0, panic_text(&*panic))
        }
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
