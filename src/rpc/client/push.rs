//! What the server sends unasked.

use std::thread;
use std::time::{Duration, Instant};

use super::SharedMemoryClient;
use super::connection::ClientConnection;
use super::multiplexer::WaitError;
use crate::channel::Wait;
use crate::error::{CallError, ConnectionError};
use crate::rpc::nesting::Awaited;

impl SharedMemoryClient {
    /// Waits for the next push of the server. Each push goes to one of those who wait.
    ///
    /// While nobody takes pushes, [`Options::push_window`](crate::Options::push_window) bytes of them are kept;
    /// then the server has to wait.
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
    /// assert_eq!(client.try_next_push()?, None);
    /// client.close();
    /// assert_eq!(client.pushes().count(), 0); // All there are until the end.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken. One who listens while it ends is told so;
    /// one who comes later makes a new connection, if there is a policy to [`Reconnect`](crate::Reconnect).
    /// [`CallError::OutOfMemory`] says that pushes were lost for want of memory; the connection goes on.
    pub fn next_push(&self) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::NO_DEADLINE)
    }

    /// As [`next_push`](Self::next_push), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As there, and [`CallError::Timeout`].
    pub fn next_push_timeout(&self, timeout: Duration) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::for_duration(timeout))
    }

    /// As [`next_push`](Self::next_push), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As there, and [`CallError::Timeout`].
    pub fn next_push_deadline(&self, deadline: Instant) -> Result<Vec<u8>, CallError> {
        self.push_until(Wait::Deadline(Some(deadline)))
    }

    /// The next push if one is there; never blocks. It receives what is there, for calls too.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the connection has ended, and all pushes were taken.
    pub fn try_next_push(&self) -> Result<Option<Vec<u8>>, CallError> {
        match self.push_until(Wait::Never) {
            Ok(push) => Ok(Some(push)),
            Err(CallError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pushes until the connection ends; blocks between them. A clean end ends the iteration, the server's
    /// death or violation of the protocol comes once as an error.
    ///
    /// With a policy to [`Reconnect`](crate::Reconnect) it goes on over the next connections, blocking while there is no
    /// server, until the client is closed: what was pushed in between is lost, as `on_loss` reports.
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
    // A push is a push: nobody waits here for a server that does not read.
    connection.return_credit(Wait::Never, |calls| calls.take_owed_push_credit().map(|owed| (0, owed)));
    push.map_err(|stop| match stop {
        WaitError::Ended(ConnectionError::Disconnected) => CallError::Disconnected, // No call was refused.
        stop => connection.call_error(stop),
    })?
}

/// Pushes until the connection ends; see [`SharedMemoryClient::pushes`].
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
                    let clean = matches!(error, CallError::Disconnected | CallError::Closed);
                    return (!clean).then_some(Err(error));
                }
            }
        }
    }
}

/// Whether another connection may be had.
fn is_loss(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Disconnected
            | CallError::PeerDied
            | CallError::ProtocolViolated
            | CallError::ShuttingDown
            | CallError::Unreachable(_)
    )
}

/// Before the next connection, so that a server that ends each at once does not keep this thread busy.
const PAUSE: Duration = Duration::from_millis(10);
