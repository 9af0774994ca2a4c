//! The errors of remote calls.

use std::fmt;
use std::io;

use super::{BindError, ConnectError, ConnectionError};

/// Why a call failed.
///
/// The first variants are answers of the server, and the connection stays usable. The next have their cause in this
/// process, or in a deadline. The last report the end of the connection: whether the server has executed the call is
/// not known then. The client never sends a call twice.
///
/// ```
/// use narrows::{CallError, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new().method(1, |_, _| Err("not today".into())).spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// match client.call(1, b"please") {
///     Ok(reply) => println!("{} bytes", reply.len()),
///     Err(CallError::Failed(error)) => assert_eq!(error.text(), "not today"), // The connection lives.
///     Err(CallError::Busy(reason)) => println!("try again later: {reason}"),
///     Err(CallError::Timeout) => println!("too late"),
///     Err(CallError::ConnectionLost(reason)) => println!("whether it was done is not known: {reason}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The server has no such method.
    UnknownMethod,
    /// The method is of another kind, which has a call of its own.
    WrongKind(MethodKind),
    /// The method's own error.
    Failed(HandlerError),
    /// The method panicked; the server continues. With `panic = "abort"` in the server's profile its process ends
    /// instead, which is reported as `PeerDied`.
    Panicked {
        /// The text of the panic; empty if the panic carried no text.
        message: String,
    },
    /// The reply is longer than the connection's maximum.
    ReplyTooLarge {
        /// The length of the reply, in bytes; `u32::MAX` stands for that many or more.
        len: usize,
        /// The most that the connection carries, in bytes.
        max: usize,
    },
    /// The server is at one of its limits: try again later. The method did not run.
    Busy(BusyReason),
    /// The server shuts down and takes no more calls: this one was never begun. All later calls on this connection fail
    /// in the same way.
    ShuttingDown,
    /// The request or chunk is longer than this connection allows.
    TooLarge {
        /// Bytes that were to be sent.
        len: usize,
        /// The most that it allows, in bytes.
        max: usize,
    },
    /// A call that never blocks (`try_…`) would have to block.
    WouldBlock,
    /// The deadline passed. The client has sent a cancel to the server, and drops a late reply.
    Timeout,
    /// The call was cancelled.
    Cancelled,
    /// The call would wait for an event that only this thread can bring about. An inline method must not wait for its
    /// own connection. If calls of this process may occupy one worker only, a method on that worker must not wait for a
    /// method of the same pool, nor for a call slot while calls of such methods hold all of them.
    WouldDeadlock,
    /// There is no memory for the reply or a chunk, in this process or in the server's. The connection stays usable.
    /// Whether the server has executed the call is not known. A request for which the server has no memory fails with
    /// `Busy` instead: its method did not run.
    OutOfMemory,
    /// The reply was taken before.
    Taken,
    /// The value could not be serialized or deserialized.
    Codec(Box<dyn std::error::Error + Send + Sync>),
    /// The connection has ended. Without a policy to reconnect, no later call on it can succeed.
    ConnectionLost(ConnectionError),
    /// The connection has carried all the messages that it can: make a new one.
    Exhausted,
    /// The connection was lost, and reconnecting failed.
    ReconnectFailed(Box<ConnectError>),
}

/// How a method is called.
///
/// ```
/// use narrows::{CallError, MethodKind, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new().streaming(1, |_, _| Ok(())).spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// assert!(matches!(client.call(1, b""), Err(CallError::WrongKind(MethodKind::Streaming))));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MethodKind {
    /// One request and one reply: `call`.
    Unary,
    /// One request and a stream of chunks: `call_streaming`.
    Streaming,
    /// A stream of chunks and one reply: `start_upload`.
    Upload,
    /// Streams of chunks in both directions: `start_duplex`.
    Duplex,
}

impl fmt::Display for MethodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unary => "it is called by `call`",
            Self::Streaming => "it streams its reply: use `call_streaming`",
            Self::Upload => "it takes an upload: use `start_upload`",
            Self::Duplex => "it streams both ways: use `start_duplex`",
        })
    }
}

/// Which limit of a server a call has met.
///
/// ```
/// use narrows::{BusyReason, CallError};
/// fn advice(error: &CallError) -> Option<&'static str> {
///     match error {
///         CallError::Busy(BusyReason::Queue | BusyReason::ProcessQueue) => Some("fewer calls at once"),
///         CallError::Busy(BusyReason::Memory) => Some("smaller requests"),
///         CallError::Busy(_) => Some("later"),
///         _ => None,
///     }
/// }
/// assert_eq!(advice(&CallError::Busy(BusyReason::Threads)), Some("later"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusyReason {
    /// As many calls wait for a worker as the server's queue holds.
    Queue,
    /// As many calls of this client's process wait for a worker as may.
    ProcessQueue,
    /// As many methods run for this client as may.
    Methods,
    /// There is no memory for the request, or to run the method.
    Memory,
    /// There is no thread for the method.
    Threads,
    /// A reason that this version does not know, by its number.
    Other(u32),
}

impl BusyReason {
    /// Returns the number that stands for the reason on the wire.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Queue => 1,
            Self::ProcessQueue => 2,
            Self::Methods => 3,
            Self::Memory => 4,
            Self::Threads => 5,
            Self::Other(number) => number,
        }
    }

    /// Returns the reason that this number stands for.
    pub(crate) fn from_number(number: u32) -> Self {
        let known = [Self::Queue, Self::ProcessQueue, Self::Methods, Self::Memory, Self::Threads];
        known.into_iter().find(|reason| reason.number() == number).unwrap_or(Self::Other(number))
    }
}

impl fmt::Display for BusyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue => f.write_str("too many calls wait for a worker"),
            Self::ProcessQueue => f.write_str("too many calls of this client's process wait for a worker"),
            Self::Methods => f.write_str("too many methods run for this client"),
            Self::Memory => f.write_str("there is no memory for the request"),
            Self::Threads => f.write_str("there is no thread for the method"),
            Self::Other(number) => write!(f, "reason {number}"),
        }
    }
}

impl CallError {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::UnknownMethod | Self::WrongKind(_) => io::ErrorKind::Unsupported,
            Self::Failed(_) | Self::Panicked { .. } | Self::Taken | Self::Exhausted => io::ErrorKind::Other,
            Self::ReplyTooLarge { .. } | Self::Codec(_) => io::ErrorKind::InvalidData,
            Self::Busy(_) => io::ErrorKind::ResourceBusy,
            Self::WouldBlock => io::ErrorKind::WouldBlock,
            Self::OutOfMemory => io::ErrorKind::OutOfMemory,
            Self::ShuttingDown => io::ErrorKind::ConnectionRefused,
            Self::TooLarge { .. } => io::ErrorKind::InvalidInput,
            Self::Timeout => io::ErrorKind::TimedOut,
            Self::Cancelled => io::ErrorKind::Interrupted,
            Self::WouldDeadlock => io::ErrorKind::Deadlock,
            Self::ConnectionLost(error) => error.describe().1,
            Self::ReconnectFailed(_) => io::ErrorKind::NotConnected,
        }
    }
}

impl From<ConnectionError> for CallError {
    fn from(error: ConnectionError) -> Self {
        Self::ConnectionLost(error)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMethod => f.write_str("the server has no such method"),
            Self::WrongKind(kind) => write!(f, "the method is not called this way: {kind}"),
            Self::Failed(error) => write!(f, "the method failed: {error}"),
            Self::Panicked { message } => write!(f, "the method panicked: {message}"),
            Self::ReplyTooLarge { len, max } => {
                write!(f, "the reply of {len} bytes is too large: this connection takes at most {max}")
            }
            Self::Busy(reason) => write!(f, "the server is busy, try again later: {reason}"),
            Self::ShuttingDown => f.write_str("the server is about to end"),
            Self::TooLarge { len, max } => {
                write!(f, "{len} bytes are too large: this connection takes at most {max}")
            }
            Self::WouldBlock => f.write_str("the call would have to wait"),
            Self::Timeout => f.write_str("the deadline passed before the reply came"),
            Self::Cancelled => f.write_str("the call was cancelled"),
            Self::WouldDeadlock => f.write_str(
                "only this thread could end the wait: use `method` instead of `inline`, or more workers",
            ),
            Self::OutOfMemory => {
                f.write_str("there is no memory for the reply or a chunk: ask for less at once")
            }
            Self::Taken => f.write_str("the reply was taken before"),
            Self::Codec(_) => f.write_str("the value could not be serialized or deserialized"),
            Self::ConnectionLost(error) => error.fmt(f),
            Self::Exhausted => {
                f.write_str("the connection has carried all the messages that it can: make a new one")
            }
            Self::ReconnectFailed(_) => f.write_str("reconnecting failed"),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Codec(error) => Some(&**error),
            Self::ReconnectFailed(error) => Some(error),
            _ => None, // What `Failed` and `ConnectionLost` contain is in the text.
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Why [`SharedMemoryServer::serve_stream`](crate::SharedMemoryServer::serve_stream) returned without its client having
/// closed the connection.
///
/// ```
/// use narrows::{ServeError, SharedMemoryServer, SharedMemoryStream};
/// let (a, _b) = SharedMemoryStream::pair()?;
/// let twice = SharedMemoryServer::new().method(1, |_, _| Ok(())).method(1, |_, _| Ok(()));
/// assert!(matches!(twice.serve_stream(a), Err(ServeError::NotStarted(_))));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The server could not be started; the stream was dropped.
    NotStarted(BindError),
    /// The connection has ended in another way than by the client's close.
    ConnectionLost(ConnectionError),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(_) => f.write_str("the server could not be started"),
            Self::ConnectionLost(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotStarted(error) => Some(error),
            Self::ConnectionLost(_) => None,
        }
    }
}

impl From<ConnectionError> for ServeError {
    fn from(error: ConnectionError) -> Self {
        Self::ConnectionLost(error)
    }
}

impl From<ServeError> for io::Error {
    fn from(error: ServeError) -> Self {
        let kind = match &error {
            ServeError::NotStarted(error) => error.kind(),
            ServeError::ConnectionLost(error) => error.describe().1,
        };
        Self::new(kind, error)
    }
}

/// An error that a method returns instead of a reply.
///
/// ```
/// use narrows::HandlerError;
/// const NO_SUCH_FILE: u32 = 2;
/// let error = HandlerError::new(NO_SUCH_FILE, "there is no main.rs");
/// assert_eq!((error.code(), error.text()), (2, "there is no main.rs"));
/// let error: HandlerError = "of a text alone, the code is 0".into();
/// assert_eq!(error.code(), 0);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerError {
    code: u32,
    text: String,
}

impl HandlerError {
    /// Creates an error with a code for programs and a text for people. The first 1 024 bytes of the text reach the
    /// client; if the ring is too small for that, as many as one frame holds.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Returns the code, a number that the method chose for programs.
    pub fn code(&self) -> u32 {
        self.code
    }

    /// Returns the text for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Makes an error of a text or of any other error, so that a method may use `?` and `"text".into()`. The code is 0, and the
/// text is that of the error and of its sources, separated by colons. It is not an error itself, as `Box<dyn Error>` is not.
impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = error.into();
        let (mut text, mut source) = (error.to_string(), error.source());
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        Self::new(0, text)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            0 => f.write_str(&self.text),
            code => write!(f, "{} (code {code})", self.text),
        }
    }
}
