//! The errors of remote calls.

use std::fmt;
use std::io;

use super::{ConnectError, ConnectionError};

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
///     Err(CallError::Busy(_)) => println!("try again later"),
///     Err(error) if error.is_timeout() => println!("too late"),
///     Err(error) if error.is_disconnected() => println!("over, and whether it was done is not known: {error}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The server has no such method.
    UnknownMethod,
    /// The method is of another kind (plain, streaming or upload); the text says which call to use.
    WrongKind(String),
    /// The method's own error.
    Failed(HandlerError),
    /// The method panicked; the server continues. With `panic = "abort"` in the server's profile its process ends
    /// instead, which is reported as `PeerDied`.
    Panicked(String),
    /// The reply is longer than the connection's maximum.
    ReplyTooLarge(String),
    /// The server is at its limit: try again later.
    Busy(String),
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
    /// The configuration of the server is not legal, so it was not started; the text says what to change.
    BadOptions(String),
    /// The value could not be serialized or deserialized (feature `serde`).
    Codec(String),
    /// The server closed the connection.
    Disconnected,
    /// The server's process ended without closing.
    PeerDied,
    /// This process closed its end.
    Closed,
    /// The peer violated the protocol; the connection is closed and cannot be used again.
    ProtocolViolated,
    /// This process is a fork of the one that owns the connection.
    Forked,
    /// The connection has carried all the messages that it can: make a new one.
    Exhausted,
    /// The connection was lost, and reconnecting failed.
    Unreachable(Box<ConnectError>),
}

impl CallError {
    /// Returns whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }

    /// Returns whether the connection has ended: without a policy to reconnect, no later call on it can succeed.
    pub fn is_disconnected(&self) -> bool {
        matches!(
            self,
            Self::Disconnected
                | Self::PeerDied
                | Self::Closed
                | Self::ProtocolViolated
                | Self::Forked
                | Self::Exhausted
                | Self::Unreachable(_)
        )
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::UnknownMethod | Self::WrongKind(_) => io::ErrorKind::Unsupported,
            Self::Failed(_) | Self::Panicked(_) | Self::Taken | Self::Exhausted => io::ErrorKind::Other,
            Self::ReplyTooLarge(_) | Self::Codec(_) => io::ErrorKind::InvalidData,
            Self::Busy(_) => io::ErrorKind::WouldBlock,
            Self::OutOfMemory => io::ErrorKind::OutOfMemory,
            Self::ShuttingDown => io::ErrorKind::ConnectionRefused,
            Self::TooLarge { .. } | Self::BadOptions(_) => io::ErrorKind::InvalidInput,
            Self::Timeout => io::ErrorKind::TimedOut,
            Self::Cancelled => io::ErrorKind::Interrupted,
            Self::WouldDeadlock => io::ErrorKind::Deadlock,
            Self::Disconnected => ConnectionError::Disconnected.describe().1,
            Self::PeerDied => ConnectionError::PeerDied.describe().1,
            Self::Closed => ConnectionError::Closed.describe().1,
            Self::ProtocolViolated => ConnectionError::ProtocolViolated.describe().1,
            Self::Forked => ConnectionError::Forked.describe().1,
            Self::Unreachable(_) => io::ErrorKind::NotConnected,
        }
    }
}

impl From<ConnectionError> for CallError {
    fn from(ended: ConnectionError) -> Self {
        match ended {
            ConnectionError::Disconnected => Self::Disconnected,
            ConnectionError::PeerDied => Self::PeerDied,
            ConnectionError::Closed => Self::Closed,
            ConnectionError::ProtocolViolated => Self::ProtocolViolated,
            ConnectionError::Forked => Self::Forked,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMethod => f.write_str("the server has no such method"),
            Self::WrongKind(text) => write!(f, "the method is not called this way: {text}"),
            Self::Failed(error) => write!(f, "the method failed: {error}"),
            Self::Panicked(text) => write!(f, "the method panicked: {text}"),
            Self::ReplyTooLarge(text) => write!(f, "the reply is too large: {text}"),
            Self::Busy(text) => write!(f, "the server is busy, try again later: {text}"),
            Self::ShuttingDown => f.write_str("the server is about to end"),
            Self::TooLarge { len, max } => {
                write!(f, "{len} bytes are too large: this connection takes at most {max}")
            }
            Self::Timeout => f.write_str("the deadline passed before the reply came"),
            Self::Cancelled => f.write_str("the call was cancelled"),
            Self::WouldDeadlock => f.write_str(
                "only this thread could end the wait: use `method` instead of `inline`, or more workers",
            ),
            Self::OutOfMemory => {
                f.write_str("there is no memory for the reply or a chunk: ask for less at once")
            }
            Self::Taken => f.write_str("the reply was taken before"),
            Self::BadOptions(text) => write!(f, "illegal options: {text}"),
            Self::Codec(text) => write!(f, "the value does not fit the bytes: {text}"),
            Self::Disconnected => f.write_str(ConnectionError::Disconnected.describe().0),
            Self::PeerDied => f.write_str(ConnectionError::PeerDied.describe().0),
            Self::Closed => f.write_str(ConnectionError::Closed.describe().0),
            Self::ProtocolViolated => f.write_str(ConnectionError::ProtocolViolated.describe().0),
            Self::Forked => f.write_str(ConnectionError::Forked.describe().0),
            Self::Exhausted => {
                f.write_str("the connection has carried all the messages that it can: make a new one")
            }
            Self::Unreachable(error) => {
                write!(f, "the connection was lost, and there is no new one: {error}")
            }
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Unreachable(error) => Some(error),
            _ => None,
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        Self::new(error.kind(), error)
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

impl From<&str> for HandlerError {
    fn from(text: &str) -> Self {
        Self::new(0, text)
    }
}

impl From<String> for HandlerError {
    fn from(text: String) -> Self {
        Self::new(0, text)
    }
}

/// Lets a method use `?` on I/O errors, and on errors of the connection. The code is 0.
impl From<io::Error> for HandlerError {
    fn from(error: io::Error) -> Self {
        Self::new(0, error.to_string())
    }
}

impl From<CallError> for HandlerError {
    fn from(error: CallError) -> Self {
        Self::new(0, error.to_string())
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

impl std::error::Error for HandlerError {}
