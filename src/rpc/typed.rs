//! Typed calls: values instead of bytes, encoded by serde and postcard (feature `serde`).

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{Reply, SharedMemoryClient};
use super::server::{Request, SharedMemoryServer};
use crate::error::{CallError, HandlerError};

/// The code, in a [`HandlerError`], of a request that cannot be decoded as the method's type.
const BAD_REQUEST: u32 = u32::MAX;

impl SharedMemoryClient {
    /// Calls a method with a value, and returns the value of its reply. Needs the feature `serde`.
    ///
    /// Both values are encoded by postcard. Blocks until the reply arrives or the connection ends, without a
    /// deadline.
    ///
    /// ```
    /// # use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// # let (a, b) = SharedMemoryStream::pair()?;
    /// # std::thread::spawn(move || {
    /// SharedMemoryServer::new()
    ///     .method_typed(1, |_, (a, b): (u32, u32)| Ok(a + b))
    /// # .serve_stream(b) });
    /// # let client = SharedMemoryClient::over(a)?;
    /// let sum: u32 = client.call_typed(1, &(20_u32, 22_u32))?;
    /// assert_eq!(sum, 42);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Codec`] if the
    /// request cannot be encoded or the reply cannot be decoded as an `R`.
    pub fn call_typed<A, R>(&self, method: u32, request: &A) -> Result<R, CallError>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        decoded(&self.call(method, &encoded(request)?)?)
    }

    /// Calls a method with a value, and returns the value of its reply, within `timeout`. Needs the feature `serde`.
    ///
    /// Both values are encoded by postcard. A timeout that overflows `Instant` means no deadline. After the timeout
    /// the server is asked to cancel the call, and a late reply is dropped.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the server's answer, or the reason why the connection ended. [`CallError::Timeout`] if the
    /// reply did not arrive within `timeout`. [`CallError::Codec`] if the request cannot be encoded or the reply
    /// cannot be decoded as an `R`.
    pub fn call_typed_timeout<A, R>(
        &self,
        method: u32,
        request: &A,
        timeout: Duration,
    ) -> Result<R, CallError>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        decoded(&self.call_timeout(method, &encoded(request)?, timeout)?)
    }
}

impl Reply {
    /// Decodes the reply as a value, by postcard. Needs the feature `serde`.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .method_typed(1, |_, words: Vec<String>| Ok(words.join(" ")))
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let pending = client.start_call(1, &[2, 1, b'a', 1, b'b'])?; // As postcard encodes ["a", "b"].
    /// assert_eq!(pending.wait()?.decode::<String>()?, "a b");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError::Codec`] if the bytes are not an `R`, or bytes are left over behind it.
    pub fn decode<R: DeserializeOwned>(&self) -> Result<R, CallError> {
        decoded(self)
    }
}

impl SharedMemoryServer {
    /// Registers a method of the pool that takes a value and returns one. Needs the feature `serde`.
    ///
    /// Both values are encoded by postcard. It runs as a [`method`](Self::method) does. A request that cannot be
    /// decoded as an `A` is answered with [`CallError::Failed`], and the method does not run.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .method_typed(1, |_, words: Vec<String>| Ok(words.join(" ")))
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let line: String = client.call_typed(1, &["ebb", "flow"].as_slice())?;
    /// assert_eq!(line, "ebb flow");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn method_typed<A, R, F>(self, id: u32, method: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(&Request<'_>, A) -> Result<R, HandlerError> + Send + Sync + 'static,
    {
        self.method(id, move |request, reply| answer(&method, request, reply))
    }

    /// Registers an inline method that takes a value and returns one. Needs the feature `serde`.
    ///
    /// Both values are encoded by postcard. It runs as an [`inline`](Self::inline) method does, on the connection's
    /// own thread. A request that cannot be decoded as an `A` is answered with [`CallError::Failed`], and the method
    /// does not run.
    ///
    /// ```
    /// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
    /// let (a, b) = SharedMemoryStream::pair()?;
    /// let server = SharedMemoryServer::new()
    ///     .inline_typed(1, |_, (a, b): (u32, u32)| Ok(a.checked_add(b)))
    ///     .spawn()?;
    /// server.adopt(b);
    /// let client = SharedMemoryClient::over(a)?;
    /// let sum: Option<u32> = client.call_typed(1, &(20_u32, 22_u32))?;
    /// assert_eq!(sum, Some(42));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn inline_typed<A, R, F>(self, id: u32, method: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(&Request<'_>, A) -> Result<R, HandlerError> + Send + Sync + 'static,
    {
        self.inline(id, move |request, reply| answer(&method, request, reply))
    }
}

fn answer<A, R, F>(method: &F, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError>
where
    A: DeserializeOwned,
    R: Serialize,
    F: Fn(&Request<'_>, A) -> Result<R, HandlerError>,
{
    let argument = decoded(request.bytes()).map_err(|error| bad_value(error.into()))?;
    let value = method(request, argument)?;
    let buffer = postcard::to_extend(&value, std::mem::take(reply));
    *reply = buffer.map_err(|error| bad_value(error.into()))?;
    Ok(())
}

fn bad_value(error: HandlerError) -> HandlerError {
    HandlerError::new(BAD_REQUEST, error.text())
}

fn encoded<A: Serialize + ?Sized>(value: &A) -> Result<Vec<u8>, CallError> {
    postcard::to_extend(value, Vec::new()).map_err(|error| CallError::Codec(error.into()))
}

/// Decodes a value that must occupy all of the bytes.
fn decoded<R: DeserializeOwned>(bytes: &[u8]) -> Result<R, CallError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(CallError::Codec(format!("{} bytes are left over", rest.len()).into())),
        Err(error) => Err(CallError::Codec(error.into())),
    }
}
