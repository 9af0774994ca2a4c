//! What a server can do: its methods by number, and how each is run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::attendant::Started;
use super::peer::Peer;
use super::post::Body;
use super::request::{ChunkReader, ChunkWriter, Request};
use super::stats::Counts;
use super::table::Failure;
use crate::error::HandlerError;
use crate::mem::try_reserve;
use crate::rpc::pieces;
use crate::rpc::wire::{Head, Kind, STREAM, Status, UPLOAD};

/// What a method says: nothing, or its own error.
pub(super) type Outcome = Result<(), HandlerError>;

type Whole = dyn Fn(&Request<'_>, &mut Vec<u8>) -> Outcome + Send + Sync;
type Streaming = dyn Fn(&Request<'_>, &mut ChunkWriter<'_>) -> Outcome + Send + Sync;
type Uploading = dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut Vec<u8>) -> Outcome + Send + Sync;
type Duplex = dyn Fn(&Request<'_>, &mut ChunkReader<'_>, &mut ChunkWriter<'_>) -> Outcome + Send + Sync;

/// A method.
#[derive(Clone)]
pub(super) enum Method {
    /// On the connection's thread.
    Inline(Arc<Whole>),
    /// In the pool.
    Pooled(Arc<Whole>),
    /// These have threads of their own.
    Streaming(Arc<Streaming>),
    Upload(Arc<Uploading>),
    Duplex(Arc<Duplex>),
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
    pub(super) twice: Option<String>,
    fallback: Option<Method>,
}

impl Methods {
    /// Registers a method.
    pub(super) fn put(&mut self, id: u32, method: Method) {
        match self.sorted.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(_) => self.twice = Some(format!("the method {id} is registered twice: use another number")),
            Err(at) => self.sorted.insert(at, (id, method)),
        }
    }

    /// Registers what answers calls of all other numbers.
    pub(super) fn put_fallback(&mut self, method: Method) {
        if self.fallback.replace(method).is_some() {
            self.twice = Some("the fallback is registered twice: one answers all unknown methods".into());
        }
    }

    /// The method that answers such a call.
    #[inline]
    pub(super) fn find(&self, id: u32, flags: u8) -> Result<&Method, Failure> {
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
    peer: &Arc<Peer>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), Failure> {
    if request.len() <= pieces::KEPT {
        return run(method, peer, request, reply, counts);
    }
    pieces::clear(reply);
    try_reserve(reply, request.len())
        .map_err(|_| (Status::Busy, 0, "there is no memory to run the method".into()))?;
    invoke(method, peer, request, reply, counts)
}

/// Runs a method: what it says goes into `reply`, which is memory that is used again.
///
/// # Errors
///
/// Why it has no reply.
#[inline]
pub(super) fn run(
    method: &Method,
    peer: &Arc<Peer>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), Failure> {
    pieces::clear(reply);
    invoke(method, peer, request, reply, counts)
}

#[inline]
fn invoke(
    method: &Method,
    peer: &Arc<Peer>,
    request: &Request<'_>,
    reply: &mut Vec<u8>,
    counts: &Counts,
) -> Result<(), Failure> {
    let id = request.id();
    let ran = catch_unwind(AssertUnwindSafe(|| match method {
        Method::Inline(whole) | Method::Pooled(whole) => whole(request, reply),
        Method::Streaming(stream) => stream(request, &mut ChunkWriter::new(peer, id)),
        Method::Upload(upload) => upload(request, &mut ChunkReader::new(peer, id), reply),
        Method::Duplex(duplex) => {
            duplex(request, &mut ChunkReader::new(peer, id), &mut ChunkWriter::new(peer, id))
        }
    }));
    match ran {
        Ok(Ok(())) if reply.len() <= peer.max_reply => Ok(()),
        failed => Err(failure(failed, reply.len(), peer.max_reply, counts)),
    }
}

/// Gives the answer of a method that ran.
pub(super) fn answer(peer: &Arc<Peer>, started: Started, ran: Result<(), Failure>, reply: &mut Vec<u8>) {
    let streams = started.flags & STREAM != 0;
    match ran {
        Ok(()) if streams => peer.hall.finish(started.id, Head::new(Kind::End, 0), Body::Lent(&[])),
        Ok(()) => peer.hall.finish(started.id, Head::new(Kind::Reply, 0), Body::Own(reply)),
        Err(failure) => peer.hall.fail(started.id, &failure),
    }
}

#[cold]
fn failure(ran: thread::Result<Outcome>, len: usize, max: usize, counts: &Counts) -> Failure {
    match ran {
        Ok(Ok(())) => (Status::ReplyTooLarge, 0, format!("{len} bytes, of at most {max}")),
        Ok(Err(error)) => {
            counts.failed.add();
            (Status::Failed, error.code(), error.text().to_owned())
        }
        Err(panic) => {
            counts.panicked.add();
            (Status::Panicked, 0, said(&*panic))
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
