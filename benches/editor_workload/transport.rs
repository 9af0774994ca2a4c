//! What the workload needs of a way to make calls. It is written against these traits, and runs the same over each.

use std::path::Path;
use std::sync::Arc;

use harness::Result;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::{over_narrows, unix};

/// Whose calls are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Transport {
    Narrows,
    /// A Unix socket with the same framing: pieces, streams, windows, cancels.
    Unix,
    /// Node.js on both sides, a Unix socket and JSON: the chats alone.
    Node,
}

/// How a method is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
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

    /// Begins a call whose reply is waited for later, or never.
    fn start(&self, method: u32, request: &[u8]) -> Result<Box<dyn Pending>>;

    fn stream(&self, method: u32, request: &[u8]) -> Result<Box<dyn Stream>>;

    /// Waits for what the server sends unasked; nothing once the connection was closed.
    fn next_push(&self) -> Result<Option<Vec<u8>>>;

    fn close(&self);
}

pub(crate) trait Pending {
    fn wait(self: Box<Self>) -> Result<Vec<u8>>;

    fn cancel(self: Box<Self>);
}

pub(crate) trait Stream {
    /// Nothing at its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>>;

    fn cancel(self: Box<Self>);
}

/// The serving end of one connection.
pub(crate) trait Link: Send + Sync {
    fn id(&self) -> u64;

    fn push(&self, bytes: &[u8]) -> Result<()>;
}

/// A call that is being served.
pub(crate) trait Served {
    fn is_cancelled(&self) -> bool;

    fn link(&self) -> Arc<dyn Link>;
}

/// Takes the chunks of a reply.
pub(crate) trait Out {
    /// An error once the caller has cancelled, or is gone.
    fn write(&mut self, chunk: &[u8]) -> Result<()>;
}

/// A server that runs until it is dropped.
pub(crate) trait Server {
    /// Connections that are open.
    fn connections(&self) -> usize;
}

pub(crate) fn connect(transport: Transport, path: &Path) -> Result<Arc<dyn Client>> {
    Ok(match transport {
        Transport::Narrows => Arc::new(over_narrows::connect(path)?),
        Transport::Unix => Arc::new(unix::client::Client::connect(path)?),
        Transport::Node => harness::bail!("Node.js has clients of its own"),
    })
}

pub(crate) fn serve(transport: Transport, path: &Path, backend: &Arc<Backend>) -> Result<Box<dyn Server>> {
    Ok(match transport {
        Transport::Narrows => Box::new(over_narrows::serve(path, backend)?),
        Transport::Unix => Box::new(unix::server::Server::start(path, backend)?),
        Transport::Node => harness::bail!("Node.js has a server of its own"),
    })
}
