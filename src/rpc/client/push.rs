//! Pushes: messages that the server sends without a request.

use std::iter::FusedIterator;
use std::thread;
use std::time::{Duration, Instant};

use super::SharedMemoryClient;
use super::call::would_block;
use super::connection::ClientConnection;
use super::multiplexer::WaitError;
use crate::channel::Wait;
use crate::error::{CallError, ConnectionError};
use crate::rpc::nesting::Awaited;

impl SharedMemoryClient {
    /// Blocks until the next push of the server, and returns it. Each push goes to one of the threads that wait.
    ///
    /// While no thread takes pushes, [`Options::push_window`](crate::Options::push_window) bytes of them are kept.
    /// After that the server has to wait.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .inline(1, |request, _| {
    ///         request.connection().try_push(b"you called")?;
    ///         Ok(())
    ///     })
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// client.call(1, b"")?;
    /// assert_eq!(client.next_push()?, b"you called");
    /// assert!(matches!(client.try_next_push(), Err(narrows::CallError::WouldBlock)));
    /// client.close();
    /// assert_eq!(client.pushes().count(), 0); // All there are until the end.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken. A thread that waits while the connection
    /// ends gets the error. With a policy to [`Reconnect`](crate::Reconnect), a later call makes a new connection
    /// instead. [`CallError::OutOfMemory`] if pushes were lost for want of memory; the connection goes on.
    pub fn next_push(&self) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::NO_DEADLINE)
    }

    /// Waits for the next push of the server, for at most `timeout`. A timeout that overflows `Instant` means no
    /// deadline.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken. [`CallError::OutOfMemory`] if pushes were
    /// lost for want of memory; the connection goes on. [`CallError::Timeout`] if no push arrived in time.
    pub fn next_push_timeout(&self, timeout: Duration) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::for_duration(timeout))
    }

    /// Waits for the next push of the server, until `deadline` at most.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken. [`CallError::OutOfMemory`] if pushes were
    /// lost for want of memory; the connection goes on. [`CallError::Timeout`] if no push arrived in time.
    pub fn next_push_deadline(&self, deadline: Instant) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::Deadline(Some(deadline)))
    }

    /// Returns the next push if one has arrived; never blocks. Receives the frames that are there, for calls too.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken. [`CallError::OutOfMemory`] if pushes were
    /// lost for want of memory; the connection goes on. [`CallError::WouldBlock`] if no push has arrived.
    pub fn try_next_push(&self) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::Never).map_err(would_block)
    }

    /// Returns an iterator over pushes, until the connection ends; it blocks between them. A clean close ends the
    /// iteration. The server's death or a protocol violation is yielded once as an error.
    ///
    /// With a policy to [`Reconnect`](crate::Reconnect) the iteration goes on over the next connections, until the
    /// client is closed. It blocks while there is no server. Pushes that were lost with a connection are reported by
    /// `on_loss`.
    pub fn pushes(&self) -> Pushes<'_> {
        Pushes { client: self, over: false }
    }

    fn push_until(&self, wait: Wait) -> Result<Vec<u8>, CallError> {
        let connection = self.source.get_for_pushes(wait)?;
        next(&connection, wait)
    }
}

fn next(connection: &ClientConnection, wait: Wait) -> Result<Vec<u8>, CallError> {
    let wait = connection.check_and_limit(&[], wait, Awaited::Flow)?;
    connection.return_credit(wait, |calls| calls.take_owed_push_credit().map(|owed| (0, owed)));
    let push =
        connection.mux.wait(connection.mux.push_signal(), wait, |calls| match calls.take_push_lost() {
            true => Some(Err(CallError::OutOfMemory)),
            false => calls.next_push().map(Ok),
        });
    // The push is returned at once, also if the server does not read.
    connection.return_credit(Wait::Never, |calls| calls.take_owed_push_credit().map(|owed| (0, owed)));
    push.map_err(|stop| match stop {
        WaitError::Ended(ConnectionError::Disconnected) => {
            CallError::ConnectionLost(ConnectionError::Disconnected)
        } // `ShuttingDown` is for calls.
        stop => connection.call_error(stop),
    })?
}

/// An iterator over pushes until the connection ends; made by [`SharedMemoryClient::pushes`].
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .inline(1, |request, _| {
///         request.connection().try_push(b"you called")?;
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// let listener = client.clone();
/// let listener = std::thread::spawn(move || listener.pushes().take(2).count());
/// client.call(1, b"")?;
/// client.call(1, b"")?;
/// assert_eq!(listener.join().unwrap(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pushes<'a> {
    client: &'a SharedMemoryClient,
    over: bool,
}

impl FusedIterator for Pushes<'_> {}

impl Iterator for Pushes<'_> {
    type Item = Result<Vec<u8>, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        loop {
            match self.client.next_push() {
                Ok(push) => return Some(Ok(push)),
                Err(CallError::OutOfMemory) => return Some(Err(CallError::OutOfMemory)),
                Err(error) if self.client.source.is_reconnecting() && is_loss(&error) => thread::sleep(PAUSE),
                Err(error) => {
                    self.over = true;
                    let clean = matches!(
                        error,
                        CallError::ConnectionLost(ConnectionError::Disconnected)
                            | CallError::ConnectionLost(ConnectionError::Closed)
                    );
                    return (!clean).then_some(Err(error));
                }
            }
        }
    }
}

/// Returns whether a new connection may follow this error.
fn is_loss(error: &CallError) -> bool {
    matches!(
        error,
        CallError::ConnectionLost(ConnectionError::Disconnected)
            | CallError::ConnectionLost(ConnectionError::PeerDied)
            | CallError::ConnectionLost(ConnectionError::ProtocolViolation)
            | CallError::ShuttingDown
            | CallError::ReconnectFailed(_)
    )
}

/// The pause before the next connection, so that a server that closes each one at once does not keep this thread
/// busy.
const PAUSE: Duration = Duration::from_millis(10);
