//! The workload over narrows: default options.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harness::Result;
use narrows::{
    CallError, ChunkWriter, Connection, ConnectionError, HandlerError, PendingCall, ReplyStream, Request,
    ServerHandle, SharedMemoryClient, SharedMemoryServer,
};

use crate::transport::{
    ChunkSink, Client, ClientHandle, PendingReply, ReplyChunks, RequestContext, RunningServer, ServeMode,
    Service,
};

pub(crate) fn connect(path: &Path) -> Result<SharedMemoryClient> {
    Ok(SharedMemoryClient::connect(path)?)
}

impl Client for SharedMemoryClient {
    fn call(&self, method: u32, request: &[u8]) -> Result<Vec<u8>> {
        Ok(Self::call(self, method, request)?.into_vec())
    }

    fn start(&self, method: u32, request: &[u8]) -> Result<Box<dyn PendingReply>> {
        Ok(Box::new(self.start_call(method, request)?))
    }

    fn stream(&self, method: u32, request: &[u8]) -> Result<Box<dyn ReplyChunks>> {
        Ok(Box::new(self.call_streaming(method, request)?))
    }

    fn next_push(&self) -> Result<Option<Vec<u8>>> {
        match Self::next_push(self) {
            Ok(push) => Ok(Some(push)),
            Err(CallError::ConnectionLost(ConnectionError::Closed)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn close(&self) {
        Self::close(self);
    }
}

impl PendingReply for PendingCall {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        Ok((*self).wait()?.into_vec())
    }

    fn cancel(self: Box<Self>) {
        (*self).cancel();
    }
}

impl ReplyChunks for ReplyStream {
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(self.next_chunk()?)
    }

    fn cancel(self: Box<Self>) {
        (*self).cancel();
    }
}

impl ClientHandle for Connection {
    fn id(&self) -> u64 {
        Self::id(self)
    }

    fn push(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.push_timeout(bytes, Duration::from_secs(5))?)
    }
}

impl RequestContext for Request<'_> {
    fn is_cancelled(&self) -> bool {
        Request::is_cancelled(self)
    }

    fn client(&self) -> Arc<dyn ClientHandle> {
        Arc::new(self.connection())
    }
}

impl ChunkSink for ChunkWriter<'_> {
    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        Ok(self.write_chunk(chunk)?)
    }
}

impl RunningServer for ServerHandle {
    fn connections(&self) -> usize {
        self.stats().connections
    }
}

pub(crate) fn serve<S: Service>(path: &Path, service: &Arc<S>) -> Result<ServerHandle> {
    let mut server = SharedMemoryServer::bind(path)?;
    for &(method, mode) in S::METHODS {
        let own = Arc::clone(service);
        let whole = move |request: &Request<'_>, reply: &mut Vec<u8>| {
            own.call(method, request, request.bytes(), reply).map_err(failed)
        };
        let own = Arc::clone(service);
        let chunks = move |request: &Request<'_>, chunks: &mut ChunkWriter<'_>| {
            own.stream(method, request, request.bytes(), chunks).map_err(failed)
        };
        server = match mode {
            ServeMode::Inline => server.inline(method, whole),
            ServeMode::Pooled => server.method(method, whole),
            ServeMode::Stream => server.streaming(method, chunks),
        };
    }
    let service = Arc::clone(service);
    Ok(server.on_disconnect(move |connection, _| service.on_disconnect(connection.id())).spawn()?)
}

fn failed(error: harness::Error) -> HandlerError {
    HandlerError::new(1, format!("{error:#}"))
}
