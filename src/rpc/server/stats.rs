//! What a server has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread adds to.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: Count,
    pub(super) refused: Count,
    pub(super) violated: Count,
    pub(super) died: Count,
    pub(super) calls: Count,
    pub(super) failed: Count,
    pub(super) panicked: Count,
    pub(super) busy: Count,
}

/// What a server has done since it was started.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .inline(1, |request, reply| {
///         reply.extend(request.bytes());
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// client.call(1, b"")?;
/// let stats = server.stats();
/// assert_eq!((stats.connections, stats.calls, stats.failed), (1, 1, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub connections: usize,
    /// Clients that were let in.
    pub accepted: u64,
    /// Clients that were sent away, or whose greeting came to nothing.
    pub refused: u64,
    /// Connections that were closed because the client broke the protocol.
    pub violated: u64,
    /// Connections whose client died.
    pub died: u64,
    /// Methods that ran to their end.
    pub calls: u64,
    /// Of these, those that ended with an error of their own.
    pub failed: u64,
    /// Of these, those that panicked.
    pub panicked: u64,
    /// Calls that were not admitted because the server was at a limit.
    pub busy: u64,
    /// Methods that run now.
    pub running: usize,
}
