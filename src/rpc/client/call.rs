//! A call under way, and its reply.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::connection::ClientConnection;
use super::multiplexer::WaitError;
use crate::channel::Wait;
use crate::error::CallError;
use crate::rpc::nesting::Awaited;

/// A call whose request was sent; made by [`SharedMemoryClient::start_call`](crate::SharedMemoryClient::start_call).
///
/// Dropping it before the reply was taken cancels the call: the server's method is notified, and its answer is
/// dropped.
///
/// ```
/// use std::time::Duration;
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
/// let mut pending = client.start_call(1, b"hello")?;
/// println!("call {} is under way", pending.id());
/// let reply = pending.wait_timeout(Duration::from_secs(5))?; // `wait` takes as long as it takes.
/// assert_eq!(*reply, *b"hello");
/// let pending = client.start_call(1, b"never mind")?;
/// let canceller = pending.canceller(); // For use on another thread.
/// pending.cancel();
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "a call that is dropped is cancelled"]
pub struct PendingCall {
    connection: Arc<ClientConnection>,
    id: u64,
    method: u32,
    taken: bool,
}

impl PendingCall {
    pub(super) fn new(connection: Arc<ClientConnection>, id: u64, method: u32) -> Self {
        Self { connection, id, method, taken: false }
    }

    /// Returns the id of the call, which no other call of the connection has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the reply, without a deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Timeout`] only in a
    /// method or callback of a server, whose calls have a limit
    /// ([`nested_call_timeout`](crate::SharedMemoryServer::nested_call_timeout)).
    pub fn wait(mut self) -> Result<Reply, CallError> {
        self.take(Wait::NO_DEADLINE)
    }

    /// Waits for the reply, for at most `timeout`. A timeout that overflows `Instant` means no deadline; one of zero
    /// never blocks.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. After [`CallError::Timeout`] the
    /// call is still under way. [`CallError::Taken`] after the reply was taken.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Reply, CallError> {
        self.take(Wait::for_duration(timeout))
    }

    /// Waits for the reply, until `deadline` at most.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. After [`CallError::Timeout`] the
    /// call is still under way. [`CallError::Taken`] after the reply was taken.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Result<Reply, CallError> {
        self.take(Wait::Deadline(Some(deadline)))
    }

    /// Returns the reply if it has arrived; never blocks. Receives the frames that are there, for other calls too.
    ///
    /// # Errors
    ///
    /// [`CallError::WouldBlock`] if the reply has not arrived: the call is still under way. Otherwise the server's answer,
    /// or the reason why the connection ended. [`CallError::Taken`] after the reply was taken.
    pub fn try_wait(&mut self) -> Result<Reply, CallError> {
        self.take(Wait::Never).map_err(would_block)
    }

    /// Cancels the call, like dropping it.
    pub fn cancel(self) {}

    /// Returns a handle that cancels the call from any thread, also while another thread waits for the reply.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.connection, self.id)
    }

    fn take(&mut self, wait: Wait) -> Result<Reply, CallError> {
        let wait = self.connection.check_and_limit(&[], wait, Awaited::Reply(self.method))?;
        if self.taken {
            return Err(CallError::Taken);
        }
        let mut buffer = Vec::new();
        match self.connection.wait_for_outcome(self.id, &mut buffer, wait) {
            Err(WaitError::Timeout) => Err(CallError::Timeout),
            end => {
                self.taken = end.is_ok();
                self.connection.finish(self.id, end, &mut buffer).map(|()| Reply::new(buffer))
            }
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if !self.taken {
            self.connection.abandon(self.id);
        }
    }
}

impl fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCall").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Returns the error of a call that never blocks, of which the waiting kind has timed out at once.
pub(super) fn would_block(error: CallError) -> CallError {
    match error {
        CallError::Timeout => CallError::WouldBlock,
        error => error,
    }
}

/// Cancels a call from any thread; made by [`PendingCall::canceller`] and [`ReplyStream::canceller`].
///
/// It may be cloned, outlives the call harmlessly, and does not keep the connection open.
///
/// [`ReplyStream::canceller`]: crate::ReplyStream::canceller
///
/// ```
/// use narrows::CallError;
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .streaming(1, |_, chunks| {
///         loop {
///             chunks.write_chunk(b"tick")?; // Fails once the caller has cancelled.
///             std::thread::sleep(std::time::Duration::from_millis(1));
///         }
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let stream = client.call_streaming(1, b"")?;
/// let canceller = stream.canceller();
/// let key = std::thread::spawn(move || canceller.cancel());
/// let end = stream.into_iter().find_map(Result::err); // Waits for chunks meanwhile.
/// assert!(matches!(end, Some(CallError::Cancelled)));
/// key.join().unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Canceller {
    connection: Weak<ClientConnection>,
    id: u64,
}

impl Canceller {
    pub(super) fn new(connection: &Arc<ClientConnection>, id: u64) -> Self {
        Self { connection: Arc::downgrade(connection), id }
    }

    /// Cancels the call; never blocks, whatever is under way. A thread that waits for the call gets
    /// [`CallError::Cancelled`] as soon as the server has answered the cancel. Does nothing if the call is over.
    pub fn cancel(&self) {
        if let Some(connection) = self.connection.upgrade() {
            connection.abandon(self.id);
        }
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canceller").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The bytes that a method replied.
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
/// let reply = client.call(1, b"some bytes")?;
/// assert_eq!(&reply[..4], b"some"); // It is a slice of bytes, ...
/// let bytes: Vec<u8> = reply.into_vec(); // ... and gives them away.
/// assert_eq!(bytes, b"some bytes");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply(Vec<u8>);

impl Reply {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for Reply {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Reply {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Reply> for Vec<u8> {
    fn from(reply: Reply) -> Self {
        reply.0
    }
}

static_assertions::assert_impl_all!(PendingCall: Send);
static_assertions::assert_impl_all!(Canceller: Clone, Send, Sync);
