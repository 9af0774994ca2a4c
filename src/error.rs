//! The errors of the public interface: one small enum for each operation, with crossbeam's names.
//!
//! All are `#[non_exhaustive]` and convert into [`std::io::Error`]. No error returns the message, since every send
//! borrows its bytes.
//!
//! | variant | [`std::io::ErrorKind`] |
//! |---|---|
//! | `Disconnected` | `BrokenPipe` of a send, `UnexpectedEof` of a receive |
//! | `PeerDied` | `ConnectionReset` |
//! | `Closed` | `NotConnected` |
//! | `ProtocolViolated` | `InvalidData` |
//! | `Forked` | `Unsupported` |
//! | `Full`, `Empty` | `WouldBlock` |
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

pub use calls::{CallError, HandlerError};
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

/// How a connection ended, as the layers below the public errors report it.
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
    ProtocolViolated,
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
            Self::ProtocolViolated => ("the peer broke the protocol", io::ErrorKind::InvalidData),
            Self::Forked => (
                "the connection belongs to the process that forked this one: make a new one here",
                io::ErrorKind::Unsupported,
            ),
        }
    }
}

/// Declares an error enum whose variants include the five ways in which a connection ends.
macro_rules! ending_error {
    (
        $(#[$meta:meta])* $name:ident, gone: $gone:ident {
            $( $(#[$vmeta:meta])* $variant:ident $({ $($(#[$fmeta:meta])* $field:ident: $ty:ty),+ })? => $kind:ident, $text:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $ty),+ })?, )*
            /// The peer closed its end; every message that it had committed before was received.
            Disconnected,
            /// The peer's process ended without closing its end.
            PeerDied,
            /// This process closed its end, through a [`Closer`](crate::Closer) or `close`.
            Closed,
            /// The peer violated the protocol; the connection is closed and cannot be used again.
            ProtocolViolated,
            /// This process is a fork of the one that owns the connection.
            Forked,
        }

        impl $name {
            /// Returns whether the connection has ended: no later call on it can succeed.
            pub fn is_disconnected(&self) -> bool {
                self.ended().is_some()
            }

            fn ended(&self) -> Option<ConnectionError> {
                match self {
                    Self::Disconnected => Some(ConnectionError::Disconnected),
                    Self::PeerDied => Some(ConnectionError::PeerDied),
                    Self::Closed => Some(ConnectionError::Closed),
                    Self::ProtocolViolated => Some(ConnectionError::ProtocolViolated),
                    Self::Forked => Some(ConnectionError::Forked),
                    $( Self::$variant $({ $($field: _),+ })? => None, )*
                }
            }
        }

        impl From<ConnectionError> for $name {
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

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$variant $({ $($field),+ })? => write!(f, $text), )*
                    _ => f.write_str(self.ended().map_or("", |e| e.describe().0)),
                }
            }
        }

        impl std::error::Error for $name {}

        impl From<$name> for io::Error {
            fn from(error: $name) -> Self {
                let kind = match error {
                    $( $name::$variant $({ $($field: _),+ })? => io::ErrorKind::$kind, )*
                    $name::Disconnected => io::ErrorKind::$gone,
                    _ => error.ended().map_or(io::ErrorKind::Other, |e| e.describe().1),
                };
                Self::new(kind, error)
            }
        }
    };
}

ending_error! {
    /// Why a blocking send failed.
    ///
    /// ```
    /// use narrows::{SendError, SharedMemoryStream};
    /// let (mut a, b) = SharedMemoryStream::pair()?;
    /// drop(b);
    /// match a.send(b"hello") {
    ///     Ok(()) => println!("sent"),
    ///     Err(SendError::PeerDied) => println!("it crashed: start another"),
    ///     Err(error) if error.is_disconnected() => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()), // `TooLarge`: the connection stays usable.
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    SendError, gone: BrokenPipe {
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

ending_error! {
    /// Why a send that never blocks failed.
    ///
    /// ```
    /// use narrows::{Options, TrySendError};
    /// let (mut a, _b) = Options::new().slots(1).pair()?;
    /// a.try_send(b"first")?;
    /// match a.try_send(b"second") {
    ///     Ok(()) => unreachable!("there is room for one"),
    ///     Err(error) if error.is_full() => println!("later"),
    ///     Err(TrySendError::TooLargeToTry { len }) => println!("{len} bytes need a blocking send"),
    ///     Err(error) if error.is_disconnected() => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TrySendError, gone: BrokenPipe {
        /// There is no room for the whole message now, or another thread holds the shared sender.
        Full => WouldBlock, "there is no room for the message now";
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

ending_error! {
    /// Why a send with a deadline failed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::Options;
    /// let (mut a, _b) = Options::new().slots(1).pair()?;
    /// a.send(b"first")?;
    /// match a.send_timeout(b"second", Duration::from_millis(1)) {
    ///     Ok(()) => unreachable!("there is room for one"),
    ///     Err(error) if error.is_timeout() => println!("the peer receives no part of it"),
    ///     Err(error) if error.is_disconnected() => println!("over: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    SendTimeoutError, gone: BrokenPipe {
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

ending_error! {
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
    ///     Err(RecvError::Disconnected) => println!("the peer is done"),
    ///     Err(error) if error.is_disconnected() => println!("over: {error}"), // `PeerDied`, ...
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvError, gone: UnexpectedEof {
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

ending_error! {
    /// Why a receive that never blocks failed.
    ///
    /// ```
    /// use narrows::SharedMemoryStream;
    /// let (_a, mut b) = SharedMemoryStream::pair()?;
    /// match b.try_recv_into(&mut Vec::new()) {
    ///     Ok(received) => println!("{} bytes", received.len),
    ///     Err(error) if error.is_empty() => println!("nothing now"),
    ///     Err(error) if error.is_disconnected() => println!("nothing any more: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    TryRecvError, gone: UnexpectedEof {
        /// No complete message has come yet.
        Empty => WouldBlock, "there is no message now";
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

ending_error! {
    /// Why a receive with a deadline failed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use narrows::SharedMemoryStream;
    /// let (_a, mut b) = SharedMemoryStream::pair()?;
    /// match b.recv_into_timeout(&mut Vec::new(), Duration::from_millis(1)) {
    ///     Ok(received) => println!("{} bytes", received.len),
    ///     Err(error) if error.is_timeout() => println!("nothing in time"),
    ///     Err(error) if error.is_disconnected() => println!("nothing any more: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    RecvTimeoutError, gone: UnexpectedEof {
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

impl TrySendError {
    /// Returns whether the send can succeed later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }
}

impl SendTimeoutError {
    /// Returns whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
}

impl TryRecvError {
    /// Returns whether a message may come later.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl RecvTimeoutError {
    /// Returns whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
}
