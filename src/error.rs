//! The errors of the public interface: one small enum for each operation, with crossbeam's names.
//!
//! All are `#[non_exhaustive]` and convert into [`std::io::Error`]. No error returns the message, since every send
//! borrows its bytes.
//!
//! | variant | [`std::io::ErrorKind`] |
//! |---|---|
//! | `ConnectionLost(Disconnected)` | `BrokenPipe` of a send, `UnexpectedEof` of a receive |
//! | `ConnectionLost(PeerDied)` | `ConnectionReset` |
//! | `ConnectionLost(Closed)` | `NotConnected` |
//! | `ConnectionLost(ProtocolViolation)` | `InvalidData` |
//! | `ConnectionLost(Forked)` | `Unsupported` |
//! | `WouldBlock` | `WouldBlock` |
//! | `Timeout` | `TimedOut` |
//! | `TooLarge`, `TooLargeToTry`, `BufferTooSmall` | `InvalidInput` |
//! | `OutOfMemory` | `OutOfMemory` |

mod calls;
mod handshake;
mod setup;
#[cfg(test)]
mod texts;

use std::fmt;
use std::io;

pub use calls::{BusyReason, CallError, HandlerError, MethodKind, ServeError};
pub use handshake::{HandshakeError, RejectCode};
pub(crate) use handshake::{SPOKEN, shortened};
pub use setup::{AcceptError, BindError, ConnectError, SpawnError};

/// A system call that failed, with its name.
#[derive(Debug)]
pub(crate) struct FailedCall {
    pub(crate) call: &'static str,
    pub(crate) source: io::Error,
}

impl fmt::Display for FailedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.source)
    }
}

impl std::error::Error for FailedCall {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// How a connection ended: the same for all operations on it.
///
/// ```
/// use narrows::{ConnectionError, RecvError, SharedMemoryStream};
/// let (a, mut b) = SharedMemoryStream::pair()?;
/// drop(a);
/// match b.recv_ref() {
///     Err(RecvError::ConnectionLost(ConnectionError::Disconnected)) => println!("the peer has finished"),
///     Err(RecvError::ConnectionLost(ConnectionError::PeerDied)) => println!("it crashed: start another"),
///     Err(other) => return Err(other.into()),
///     Ok(_) => unreachable!("nothing was sent"),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The peer closed its end, and every message that it had committed was received.
    Disconnected,
    /// The peer's process ended without closing.
    PeerDied,
    /// This process closed its end.
    Closed,
    /// The peer violated the protocol.
    ProtocolViolation,
    /// This process is a fork of the one that owns the connection.
    Forked,
}

/// The peer wrote a value that no well-formed peer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolViolation(pub &'static str);

impl fmt::Display for ProtocolViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer broke the protocol: {}", self.0)
    }
}

impl std::error::Error for ProtocolViolation {}

impl ConnectionError {
    /// Returns the text and the kind that all errors with this cause share.
    fn describe(self) -> (&'static str, io::ErrorKind) {
        match self {
            Self::Disconnected => ("the peer closed the connection", io::ErrorKind::BrokenPipe),
            Self::PeerDied => ("the peer's process died", io::ErrorKind::ConnectionReset),
            Self::Closed => ("this end was closed by this process", io::ErrorKind::NotConnected),
            Self::ProtocolViolation => ("the peer broke the protocol", io::ErrorKind::InvalidData),
            Self::Forked => (
                "the connection belongs to the process that forked this one: make a new one here",
                io::ErrorKind::Unsupported,
            ),
        }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe().0)
    }
}

impl std::error::Error for ConnectionError {}

impl From<ConnectionError> for io::Error {
    fn from(error: ConnectionError) -> Self {
        Self::new(error.describe().1, error)
    }
}

/// Declares an error enum with a variant for the end of the connection.
macro_rules! operation_error {
    (
        $(#[$meta:meta])* $name:ident, disconnected: $disconnected:ident {
            $( $(#[$vmeta:meta])* $variant:ident $({ $($(#[$fmeta:meta])* $field:ident: $ty:ty),+ })? => $kind:ident, $text:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $ty),+ })?, )*
            /// The connection has ended: no later call on it can succeed.
            ConnectionLost(ConnectionError),
        }

        impl From<ConnectionError> for $name {
            fn from(error: ConnectionError) -> Self {
                Self::ConnectionLost(error)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$variant $({ $($field),+ })? => write!(f, $text), )*
                    Self::ConnectionLost(error) => error.fmt(f),
                }
            }
        }

        impl std::error::Error for $name {}

        impl From<$name> for io::Error {
            fn from(error: $name) -> Self {
                let kind = match error {
                    $( $name::$variant $({ $($field: _),+ })? => io::ErrorKind::$kind, )*
                    $name::ConnectionLost(ConnectionError::Disconnected) => io::ErrorKind::$disconnected,
                    $name::ConnectionLost(error) => error.describe().1,
                };
                Self::new(kind, error)
            }
        }
    };
}

operation_error! {
    /// Why a blocking send failed.
    ///
    /// ```
    /// use narrows::{SendError, SharedMemoryStream};
    /// let (mut a, b) = SharedMemoryStream::pair()?;
    /// drop(b);
    /// match a.send(b"hello") {
    ///     Ok(()) => println!("sent"),
    ///     Err(SendError::ConnectionLost(narrows::ConnectionError::PeerDied)) => println!("it crashed: start another"),
    ///     Err(SendError::ConnectionLost(error)) => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()), // `TooLarge`: the connection stays usable.
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    SendError, disconnected: BrokenPipe {
        /// The message is longer than the connection's maximum.
        TooLarge {
            /// Bytes that were to be sent.
            len: usize,
            /// The most that this call can send, in bytes.
            max: usize
        } => InvalidInput, "a message of {len} bytes is too large: this call takes at most {max}";
        /// This direction has carried its 2^63 - 1 messages: make a new connection.
        Exhausted => Other, "this direction has carried all the messages that it can: make a new connection";
    }
}

operation_error! {
    /// Why a send that never blocks failed.
    ///
    /// ```
    /// use narrows::{Options, TrySendError};
    /// let (mut a, _b) = Options::new().slots(1).pair()?;
    /// a.try_send(b"first")?;
    /// match a.try_send(b"second") {
    ///     Ok(()) => unreachable!("there is room for one"),
    ///     Err(TrySendError::WouldBlock) => println!("later"),
    ///     Err(TrySendError::TooLargeToTry { len }) => println!("{len} bytes need a blocking send"),
    ///     Err(TrySendError::ConnectionLost(error)) => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TrySendError, disconnected: BrokenPipe {
        /// There is no room for the whole message now, or another thread holds the shared sender.
        WouldBlock => WouldBlock, "there is no room for the message now";
        /// The message does not fit at once, even into an empty ring: use a blocking send.
        TooLargeToTry {
            /// Bytes that were to be sent.
            len: usize
        } => InvalidInput, "a message of {len} bytes never fits at once: use a send that may block";
        /// The message is longer than the connection's maximum.
        TooLarge {
            /// Bytes that were to be sent.
            len: usize,
            /// The most that this call can send, in bytes.
            max: usize
        } => InvalidInput, "a message of {len} bytes is too large: this call takes at most {max}";
        /// This direction has carried its 2^63 - 1 messages: make a new connection.
        Exhausted => Other, "this direction has carried all the messages that it can: make a new connection";
    }
}

operation_error! {
    /// Why a send with a deadline failed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::Options;
    /// let (mut a, _b) = Options::new().slots(1).pair()?;
    /// a.send(b"first")?;
    /// match a.send_timeout(b"second", Duration::from_millis(1)) {
    ///     Ok(()) => unreachable!("there is room for one"),
    ///     Err(narrows::SendTimeoutError::Timeout) => println!("the peer receives no part of it"),
    ///     Err(narrows::SendTimeoutError::ConnectionLost(error)) => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    SendTimeoutError, disconnected: BrokenPipe {
        /// The deadline passed; no part of the message will be delivered.
        Timeout => TimedOut, "the deadline passed: the message was not delivered";
        /// The message is longer than the connection's maximum.
        TooLarge {
            /// Bytes that were to be sent.
            len: usize,
            /// The most that this call can send, in bytes.
            max: usize
        } => InvalidInput, "a message of {len} bytes is too large: this call takes at most {max}";
        /// This direction has carried its 2^63 - 1 messages: make a new connection.
        Exhausted => Other, "this direction has carried all the messages that it can: make a new connection";
    }
}

operation_error! {
    /// Why a blocking receive failed.
    ///
    /// ```
    /// use narrows::{RecvError, SharedMemoryStream};
    /// let (mut a, mut b) = SharedMemoryStream::pair()?;
    /// a.send(b"some bytes")?;
    /// let mut buffer = [0; 4];
    /// match b.recv(&mut buffer) {
    ///     Ok(received) => println!("{:?}", &buffer[..received.len]),
    ///     Err(RecvError::BufferTooSmall { needed }) => assert_eq!(needed, 10), // It waits for the next call.
    ///     Err(RecvError::ConnectionLost(narrows::ConnectionError::Disconnected)) => println!("the peer is done"),
    ///     Err(RecvError::ConnectionLost(error)) => println!("over: {error}"), // `PeerDied`, ...
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvError, disconnected: UnexpectedEof {
        /// The message is longer than the buffer; it stays, and the next call can receive it.
        BufferTooSmall {
            /// Bytes that the message has.
            needed: usize
        } => InvalidInput, "the message has {needed} bytes, more than the buffer holds: it was kept for a larger one";
        /// There is no memory for the message; it stays, and a later call can receive it. Until then nothing behind it
        /// is received, and its sender waits for room.
        OutOfMemory {
            /// Bytes that the message has.
            needed: usize
        } => OutOfMemory, "there is no memory for the message of {needed} bytes: it was kept, receive it when there is";
    }
}

operation_error! {
    /// Why a receive that never blocks failed.
    ///
    /// ```
    /// use narrows::SharedMemoryStream;
    /// let (_a, mut b) = SharedMemoryStream::pair()?;
    /// match b.try_recv_into(&mut Vec::new()) {
    ///     Ok(received) => println!("{} bytes", received.len),
    ///     Err(narrows::TryRecvError::WouldBlock) => println!("nothing now"),
    ///     Err(narrows::TryRecvError::ConnectionLost(error)) => println!("nothing any more: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TryRecvError, disconnected: UnexpectedEof {
        /// No complete message has come yet.
        WouldBlock => WouldBlock, "there is no message now";
        /// The message is longer than the buffer; it stays, and the next call can receive it.
        BufferTooSmall {
            /// Bytes that the message has.
            needed: usize
        } => InvalidInput, "the message has {needed} bytes, more than the buffer holds: it was kept for a larger one";
        /// There is no memory for the message; it stays, and a later call can receive it. Until then nothing behind it
        /// is received, and its sender waits for room.
        OutOfMemory {
            /// Bytes that the message has.
            needed: usize
        } => OutOfMemory, "there is no memory for the message of {needed} bytes: it was kept, receive it when there is";
    }
}

operation_error! {
    /// Why a receive with a deadline failed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::SharedMemoryStream;
    /// let (_a, mut b) = SharedMemoryStream::pair()?;
    /// match b.recv_into_timeout(&mut Vec::new(), Duration::from_millis(1)) {
    ///     Ok(received) => println!("{} bytes", received.len),
    ///     Err(narrows::RecvTimeoutError::Timeout) => println!("nothing in time"),
    ///     Err(narrows::RecvTimeoutError::ConnectionLost(error)) => println!("nothing any more: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvTimeoutError, disconnected: UnexpectedEof {
        /// The deadline passed; the fragments of a message that had come stay for the next call.
        Timeout => TimedOut, "the deadline passed before a message came";
        /// The message is longer than the buffer; it stays, and the next call can receive it.
        BufferTooSmall {
            /// Bytes that the message has.
            needed: usize
        } => InvalidInput, "the message has {needed} bytes, more than the buffer holds: it was kept for a larger one";
        /// There is no memory for the message; it stays, and a later call can receive it. Until then nothing behind it
        /// is received, and its sender waits for room.
        OutOfMemory {
            /// Bytes that the message has.
            needed: usize
        } => OutOfMemory, "there is no memory for the message of {needed} bytes: it was kept, receive it when there is";
    }
}
