//! The calls that the workload makes: it is written against these traits, and runs the same over each transport.

use std::sync::Arc;

use harness::Result;
use serde::{Deserialize, Serialize};

/// The way to make calls that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Transport {
    Narrows,
    /// A Unix socket with the same framing: fragments, streams, windows, cancels.
    Unix,
    /// Node.js on both sides, a Unix socket and JSON: the chats alone.
    Node,
}

/// How a method is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServeMode {
    /// On the connection's own thread.
    Inline,
    /// In a pool of workers.
    Pooled,
    /// On a thread of its own, with a reply in chunks.
    Stream,
}

/// The calling end of a connection, which all threads share.
pub(crate) trait Client: Send + Sync {
    fn call(&self, method: u32, request: &[u8]) -> Result<Vec<u8>>;

    /// Starts a call; its reply may be waited for later, or never.
    fn start(&self, method: u32, request: &[u8]) -> Result<Box<dyn PendingReply>>;

    fn stream(&self, method: u32, request: &[u8]) -> Result<Box<dyn ReplyChunks>>;

    /// Waits for the next push; returns nothing once the connection was closed.
    fn next_push(&self) -> Result<Option<Vec<u8>>>;

    fn close(&self);
}

pub(crate) trait PendingReply {
    fn wait(self: Box<Self>) -> Result<Vec<u8>>;

    fn cancel(self: Box<Self>);
}

pub(crate) trait ReplyChunks {
    /// Waits for the next chunk; returns nothing at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>>;

    fn cancel(self: Box<Self>);
}

/// The serving end of one connection.
pub(crate) trait ClientHandle: Send + Sync {
    fn id(&self) -> u64;

    fn push(&self, bytes: &[u8]) -> Result<()>;
}

/// A call that is being served.
pub(crate) trait RequestContext {
    fn is_cancelled(&self) -> bool;

    fn client(&self) -> Arc<dyn ClientHandle>;
}

/// Takes the chunks of a reply.
pub(crate) trait ChunkSink {
    /// Fails once the caller has cancelled or disconnected.
    fn write(&mut self, chunk: &[u8]) -> Result<()>;
}

/// A server that runs until it is dropped.
pub(crate) trait RunningServer {
    /// Returns the number of open connections.
    fn connections(&self) -> usize;
}

/// The methods of a server.
pub(crate) trait Service: Send + Sync + 'static {
    /// The methods, and how each is served.
    const METHODS: &[(u32, ServeMode)];

    /// Serves a method that gives one reply.
    fn call(
        &self,
        method: u32,
        context: &dyn RequestContext,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<()>;

    /// Serves a method that gives chunks.
    fn stream(
        &self,
        method: u32,
        context: &dyn RequestContext,
        request: &[u8],
        out: &mut dyn ChunkSink,
    ) -> Result<()>;

    /// Is called when a connection has ended.
    fn on_disconnect(&self, connection: u64);
}
