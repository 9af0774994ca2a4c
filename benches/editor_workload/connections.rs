//! Makes the connections of a transport.

use std::path::Path;
use std::sync::Arc;

use harness::Result;

use crate::transport::{Client, RunningServer, Service, Transport};
use crate::{narrows_calls, unix};

/// Connects a client.
pub(crate) fn connect(transport: Transport, path: &Path) -> Result<Arc<dyn Client>> {
    Ok(match transport {
        Transport::Narrows => Arc::new(narrows_calls::connect(path)?),
        Transport::Unix => Arc::new(unix::client::UnixClient::connect(path)?),
        Transport::Node => harness::bail!("Node.js has clients of its own"),
    })
}

/// Starts a server.
pub(crate) fn serve<S: Service>(
    transport: Transport,
    path: &Path,
    service: &Arc<S>,
) -> Result<Box<dyn RunningServer>> {
    Ok(match transport {
        Transport::Narrows => Box::new(narrows_calls::serve(path, service)?),
        Transport::Unix => Box::new(unix::server::UnixServer::start(path, service)?),
        Transport::Node => harness::bail!("Node.js has a server of its own"),
    })
}
