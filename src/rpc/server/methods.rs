//! The methods of a server by number, and how each is run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::activity::Counts;
use super::connection::CallInfo;
use super::in_flight::CallFailure;
use super::request::{ChunkReader, ChunkWriter, Request};
use super::send_queue::Payload;
use super::session::Session;
use crate::error::{BusyReason, HandlerError};
use crate::memory::try_reserve;
use crate::rpc::fragment;
use crate::rpc::wire::{FrameHeader, FrameKind, STREAM, Status, UPLOAD, kind_from};

/// The result of a method: no value, or the method's own error.
pub(super) type HandlerResult = Result<(), HandlerError>;

type UnaryFn = dyn Fn(&Request<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync;
type StreamingFn = dyn Fn(&Request<'_>, &mut ChunkWriter<'_>) -> HandlerResult + Send + Sync;
type UploadFn = dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut Vec<u8>) -> HandlerResult + Send + Sync;
type DuplexFn =
    dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut ChunkWriter<'_>) -> HandlerResult + Send + Sync;

/// A method, by where it runs.
#[derive(Clone)]
pub(super) enum Method {
    /// Runs on the connection's thread.
    Inline(Arc<UnaryFn>),
    /// Runs in the pool.
    Pooled(Arc<UnaryFn>),
    /// These three run on threads of their own.
    Streaming(Arc<StreamingFn>),
    Upload(Arc<UploadFn>),
    Duplex(Arc<DuplexFn>),
}

impl Method {
    /// Returns the flags of the calls of this method.
    fn flags(&self) -> u8 {
        match self {
            Self::Inline(_) | Self::Pooled(_) => 0,
            Self::Streaming(_) => STREAM,
            Self::Upload(_) => UPLOAD,
            Self::Duplex(_) => UPLOAD | STREAM,
        }
    }

    pub(super) fn is_pooled(&self) -> bool {
        matches!(self, Self::Pooled(_))
    }

    pub(super) fn is_inline(&self) -> bool {
        matches!(self, Self::Inline(_))
    }

    /// Returns whether the method needs a thread of its own.
    pub(super) fn streams(&self) -> bool {
        self.flags() != 0
    }
}

/// Returns the failure of a call that meets a limit of the server.
pub(super) fn busy(reason: BusyReason) -> CallFailure {
    (Status::Busy, reason.number(), reason.to_string())
}

/// All methods of a server, sorted by number.
#[derive(Default)]
pub(super) struct Methods {
    sorted: Vec<(u32, Method)>,
    /// An error text, if a method or the fallback was registered more than once.
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

    /// Registers the method that answers calls of all other numbers.
    pub(super) fn register_fallback(&mut self, method: Method) {
        if self.fallback.replace(method).is_some() {
            self.duplicate = Some("the fallback is registered twice: one answers all unknown methods".into());
        }
    }

    /// Returns the method that answers calls of this number with these flags.
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
        Err((status, method.flags().into(), kind_from(u32::from(method.flags())).to_string()))
    }
}

/// Runs a method, whose request may be long. If the request is long, memory for a reply of the same length is
/// reserved first: a method that finds no memory aborts the process.
///
/// # Errors
///
/// Why the method has no reply; `Busy` if there is no such memory, and the method did not run.
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
    try_reserve(reply, request.len()).map_err(|_| busy(BusyReason::Memory))?;
    invoke(method, session, request, reply, counts)
}

/// Runs a method, which writes its reply into `reply`, a buffer that is used again.
///
/// # Errors
///
/// Why the method has no reply.
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

/// Answers a call with the result of its method.
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
        Ok(Ok(())) => {
            (Status::ReplyTooLarge, u32::try_from(len).unwrap_or(u32::MAX), format!("of at most {max} bytes"))
        }
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

/// Returns the text of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
