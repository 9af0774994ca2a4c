//! The errors of making a connection: connect, bind, accept, and spawn.
//!
//! Each text says what the user can do. All convert into an [`io::Error`] of the matching kind.

use std::fmt;
use std::io;
use std::process::ExitStatus;

use super::{FailedCall, HandshakeError, RejectCode};

/// Why a connection could not be made.
///
/// ```
/// use std::io;
/// use narrows::{ConnectError, RejectCode, SharedMemoryStream};
/// match SharedMemoryStream::connect("/nonexistent/socket") {
///     Ok(_) => unreachable!(),
///     Err(ConnectError::Rejected { code: RejectCode::Busy, .. }) => println!("try again later"),
///     Err(ConnectError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
///         println!("no server there: start it");
///     }
///     Err(error) if error.is_timeout() => println!("it does not answer"),
///     Err(error) => panic!("{error}"), // The text says what to do.
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The options are not legal; the text says which and what their range is.
    BadOptions(String),
    /// A system call failed.
    Io {
        /// The operation that failed.
        doing: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file at the path is not a socket.
    NotASocket,
    /// The deadline passed before the handshake was complete.
    Timeout,
    /// The deadline passed while the backlog of the socket was full. The server does not accept, or it has ended and a
    /// process that it forked holds its socket.
    BacklogFull,
    /// The server does not answer, and the process that listened at the path has ended. A fork of that process still
    /// holds its socket.
    ServerEnded {
        /// The process that has ended; 0 if it is outside this process's pid namespace.
        pid: u32,
    },
    /// The server refused.
    Rejected {
        /// The reason, for programs.
        code: RejectCode,
        /// The reason as the server's text: at most 64 bytes, no control characters.
        text: String,
    },
    /// The policy does not trust the user under which the server runs.
    NotAuthorized {
        /// The user id of the server.
        uid: u32,
        /// The reason; that of the default policy contains the user id of this process.
        text: String,
    },
    /// The descriptor that the server sent is not a memory file of the required kind; the text says what is wrong.
    BadMemfd(String),
    /// The server accepted the client without sending memory.
    NoDescriptor,
    /// The server sent more than one descriptor; all were closed.
    SurplusDescriptors,
    /// The memory that the server sent did not arrive. If this process had no room for a descriptor, the error is
    /// [`Io`](Self::Io) instead.
    Truncated,
    /// The server closed the socket in mid-handshake. It may have ended, or this process took longer for the handshake
    /// than the server allows.
    PeerClosed,
    /// The server's answer is malformed.
    BadAnswer(HandshakeError),
    /// No parent handed a connection to this process.
    NoParent,
    /// The parent's connection was taken already, by this process (possibly by another copy of this library in it) or
    /// by another process that inherited it.
    ParentTaken,
    /// The descriptor that the environment names as the parent's connection is not that connection; the text says what
    /// it is. The common cause is a wrapper between parent and child that closes descriptors.
    BadParent(String),
    /// The peer speaks narrows, but serves no calls.
    NoCalls,
}

impl ConnectError {
    /// Returns whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout | Self::BacklogFull)
    }

    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::BadOptions(_) => io::ErrorKind::InvalidInput,
            Self::Io { source, .. } => source.kind(),
            Self::NotASocket => io::ErrorKind::ConnectionRefused,
            Self::Timeout | Self::BacklogFull | Self::ServerEnded { .. } => io::ErrorKind::TimedOut,
            Self::Rejected { code: RejectCode::NotAuthorized | RejectCode::Refused, .. }
            | Self::NotAuthorized { .. } => io::ErrorKind::PermissionDenied,
            Self::Rejected { .. } => io::ErrorKind::ConnectionRefused,
            Self::BadMemfd(_) | Self::NoDescriptor | Self::SurplusDescriptors => io::ErrorKind::InvalidData,
            Self::Truncated => io::ErrorKind::Other,
            Self::PeerClosed => io::ErrorKind::ConnectionAborted,
            Self::BadAnswer(_) | Self::BadParent(_) | Self::NoCalls => io::ErrorKind::InvalidData,
            Self::NoParent => io::ErrorKind::NotFound,
            Self::ParentTaken => io::ErrorKind::AlreadyExists,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadOptions(text) => write!(f, "illegal options: {text}"),
            Self::Io { doing, source } => write!(f, "{doing}{}", advice(source)),
            Self::NotASocket => f.write_str("what stands at the path is not a socket: check the path"),
            Self::BacklogFull => f.write_str(
                "the queue of waiting clients is full: the server does not accept, or a process that it forked holds its socket after its end: `ss -xlp` names the process",
            ),
            Self::ServerEnded { pid } => write!(
                f,
                "the server does not answer: process {pid}, which listened there, has ended, but a process that it forked holds its socket: stop that one (`ss -xlp` names it), then start the server"
            ),
            Self::Timeout => {
                f.write_str("the server did not answer in time: is it calling accept, and is it a narrows server?")
            }
            Self::Rejected { code, text } => write!(f, "the server refused ({code}): {text}"),
            Self::NotAuthorized { uid, text } => {
                write!(f, "the server runs as user {uid}, which is not trusted: {text}")
            }
            Self::BadMemfd(text) => write!(f, "the server's memory cannot be trusted: {text}"),
            Self::NoDescriptor => f.write_str("the server sent no memory with its answer"),
            Self::SurplusDescriptors => f.write_str("the server sent more than one descriptor"),
            Self::Truncated => {
                f.write_str("the memory did not arrive: a security module (SELinux, AppArmor) or a filter may have removed its descriptor")
            }
            Self::PeerClosed => {
                f.write_str("the server closed the connection in mid-handshake: it ended, it allows less time for a handshake than this process took (Options::handshake_timeout of the server), or it is not a narrows server")
            }
            Self::BadAnswer(_) => f.write_str("the server's answer makes no sense"),
            Self::NoParent => {
                f.write_str("no parent handed a connection over: start this program with SharedMemoryStream::spawn")
            }
            Self::ParentTaken => f.write_str(
                "the parent's connection was taken before, by this process or another one that inherited it",
            ),
            Self::BadParent(text) => write!(f, "the parent's connection is not here: {text}"),
            Self::NoCalls => f.write_str(
                "the peer serves no calls: it must be a SharedMemoryServer, not a plain listener or stream",
            ),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::BadAnswer(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a listener could not be bound.
///
/// ```
/// use narrows::{BindError, SharedMemoryListener};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("socket");
/// let _first = SharedMemoryListener::bind(&path)?;
/// match SharedMemoryListener::bind(&path) {
///     Ok(_) => unreachable!("the first lives"),
///     Err(BindError::InUse) => println!("a server runs already"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// The options are not legal; the text says which and what their range is.
    BadOptions(String),
    /// A file that is not a socket is at the path; it was not changed.
    NotASocket,
    /// A live server listens at the path.
    InUse,
    /// The process that bound the path has ended, but a fork of it still holds the socket. The fork may serve clients,
    /// or may only have inherited the socket.
    HeldByFork {
        /// The process that has ended; 0 if it is outside this process's pid namespace.
        pid: u32,
    },
    /// The backlog of the socket at the path is full. Its server is alive and does not accept, or it has ended and a
    /// process that it forked holds its socket.
    BacklogFull,
    /// Another process held the lock file beside the path for too long.
    Locked,
    /// A system call failed.
    Io {
        /// The operation that failed.
        doing: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::BadOptions(_) => io::ErrorKind::InvalidInput,
            Self::NotASocket => io::ErrorKind::AlreadyExists,
            Self::InUse | Self::HeldByFork { .. } | Self::BacklogFull => io::ErrorKind::AddrInUse,
            Self::Locked => io::ErrorKind::TimedOut,
            Self::Io { source, .. } => source.kind(),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadOptions(text) => write!(f, "illegal options: {text}"),
            Self::NotASocket => {
                f.write_str("something that is not a socket stands at the path: move it away")
            }
            Self::InUse => f.write_str("a live server listens at the path: stop it, or choose another path"),
            Self::HeldByFork { pid } => write!(
                f,
                "process {pid}, which listened at the path, has ended, but a process that it forked still holds its socket: stop that one (`ss -xlp` names it)"
            ),
            Self::BacklogFull => f.write_str(
                "a socket whose queue of waiting clients is full is at the path: its server does not accept, or a process that it forked holds the socket after its end: `ss -xlp` names the process",
            ),
            Self::Locked => f.write_str(
                "another process holds the lock file beside the path: is it about to bind there, or stopped?",
            ),
            Self::Io { doing, source } => write!(f, "{doing}{}", advice(source)),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why `accept` returned without a connection. A failed handshake is never a reason.
///
/// ```
/// use std::time::Duration;
/// use narrows::{AcceptError, SharedMemoryListener};
/// let folder = tempfile::tempdir()?;
/// let listener = SharedMemoryListener::bind(folder.path().join("socket"))?;
/// match listener.accept_timeout(Duration::from_millis(1)) {
///     Ok(stream) => println!("{:?} came", stream.peer_cred()),
///     Err(error) if error.is_timeout() => println!("no client came"),
///     Err(AcceptError::Closed) => println!("the listener was closed"),
///     Err(error) => return Err(error.into()), // Too many open files: the client still waits.
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum AcceptError {
    /// No handshake is complete, and the call does not wait.
    WouldBlock,
    /// The deadline passed before a client completed its handshake.
    Timeout,
    /// A [`ListenerCloser`](crate::ListenerCloser) closed the listener.
    Closed,
    /// This process is a fork of the one that bound the listener.
    Forked,
    /// The program closed the listener's descriptors (`close_range`, `closefrom`): bind the path again.
    DescriptorsClosed,
    /// A system call failed. With too many open files the client still waits, and the next call tries again.
    Io(io::Error),
}

impl AcceptError {
    /// Returns whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }

    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::WouldBlock => io::ErrorKind::WouldBlock,
            Self::Timeout => io::ErrorKind::TimedOut,
            Self::Closed | Self::DescriptorsClosed => io::ErrorKind::NotConnected,
            Self::Forked => io::ErrorKind::Unsupported,
            Self::Io(source) => source.kind(),
        }
    }
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("no client has completed its handshake yet"),
            Self::Timeout => f.write_str("the deadline passed before a client connected"),
            Self::Closed => f.write_str("the listener was closed"),
            Self::Forked => {
                f.write_str("the listener belongs to the process that forked this one: bind a new one here")
            }
            Self::DescriptorsClosed => f.write_str(
                "the program closed the descriptors of the listener (close_range, closefrom): bind a new one after that",
            ),
            Self::Io(source) => write!(f, "accepting a client{}", advice(source)),
        }
    }
}

impl std::error::Error for AcceptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a child process with a connection could not be started. No child is left behind.
///
/// ```
/// use std::process::Command;
/// use narrows::{SharedMemoryStream, SpawnError};
/// match SharedMemoryStream::spawn(Command::new("true")) {
///     Ok(_) => unreachable!("it never calls from_parent"),
///     Err(SpawnError::ChildExited(status)) => println!("it ended with {status}, and never called from_parent"),
///     Err(error) => println!("{error}"), // No child is left behind.
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum SpawnError {
    /// The options are not legal; the text says which and what their range is.
    BadOptions(String),
    /// A system call failed.
    Io {
        /// The operation that failed.
        doing: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// No process took the connection before the deadline; the child was killed.
    Timeout,
    /// The child ended, and no process took the connection: no process holds its other end any more, or the deadline
    /// passed.
    ChildExited(ExitStatus),
    /// The child closed the connection in mid-handshake, and was killed.
    ChildClosed,
    /// The child's side of the handshake is malformed; the child was killed.
    Handshake(HandshakeError),
}

impl SpawnError {
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::BadOptions(_) => io::ErrorKind::InvalidInput,
            Self::Io { source, .. } => source.kind(),
            Self::Timeout => io::ErrorKind::TimedOut,
            Self::ChildExited(_) | Self::ChildClosed => io::ErrorKind::ConnectionAborted,
            Self::Handshake(_) => io::ErrorKind::InvalidData,
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadOptions(text) => write!(f, "illegal options: {text}"),
            Self::Io { doing, source } => write!(f, "{doing}{}", advice_by_call(source)),
            Self::Timeout => {
                f.write_str("no process took the child's connection in time: does the child call SharedMemoryStream::from_parent, and if a wrapper starts it (sudo, docker run, Python's close_fds=True), did the wrapper pass the descriptor that NARROWS_PARENT names on?")
            }
            Self::ChildExited(status) => {
                write!(f, "the child ended ({status}), and no process took its connection: does it call SharedMemoryStream::from_parent, and if a wrapper starts it (sudo, docker run, Python's close_fds=True), did the wrapper pass the descriptor that NARROWS_PARENT names on?")
            },
            Self::ChildClosed => f.write_str("the child closed its connection in mid-handshake"),
            Self::Handshake(_) => f.write_str("the child's handshake makes no sense"),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Handshake(error) => Some(error),
            _ => None,
        }
    }
}

macro_rules! into_io_error {
    ($($name:ident)*) => { $(
        impl From<$name> for io::Error {
            fn from(error: $name) -> Self {
                Self::new(error.kind(), error)
            }
        }

    )* };
}

macro_rules! names_what_was_tried {
    ($($name:ident)*) => { $(
        impl $name {
            pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
                let doing = doing.into();
                |source| Self::Io { doing, source }
            }
        }
    )* };
}

names_what_was_tried!(ConnectError BindError SpawnError);
into_io_error!(ConnectError BindError AcceptError SpawnError);

/// Returns what the user can do about a system error, if the system's own text does not say it. It depends on the
/// system call that failed.
fn advice(source: &io::Error) -> &'static str {
    let is_named = source.get_ref().is_some_and(|inner| inner.is::<FailedCall>());
    match (is_named, source.kind()) {
        (false, io::ErrorKind::NotFound) => " (start the server first, or check the path)",
        (false, io::ErrorKind::ConnectionRefused) => " (no server listens there: start it)",
        _ => advice_by_call(source),
    }
}

/// Returns the same as [`advice`], without the advice about the path of a server.
fn advice_by_call(source: &io::Error) -> &'static str {
    const EPERM: i32 = 1;
    const ENOENT: i32 = 2;
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    const EACCES: i32 = 13;
    const EINVAL: i32 = 22;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOSPC: i32 = 28;
    const ETOOMANYREFS: i32 = 109;
    const ECONNREFUSED: i32 = 111;
    const EDQUOT: i32 = 122;
    let failed = source.get_ref().and_then(|inner| inner.downcast_ref::<FailedCall>());
    match (failed.map_or("", |failed| failed.call), number(source)) {
        (_, Some(EMFILE)) => " (raise this process's limit of open files, RLIMIT_NOFILE)",
        (_, Some(ENFILE)) => " (the system has too many open files: raise fs.file-max)",
        (_, Some(ETOOMANYREFS)) => {
            " (this user has too many descriptors on their way between processes: raise RLIMIT_NOFILE, or see who does not receive)"
        }
        ("connect", Some(ENOENT)) => " (start the server first, or check the path)",
        ("connect", Some(ECONNREFUSED)) => " (no server listens there: start it)",
        ("bind" | "open the directory", Some(ENOENT)) => " (the directory does not exist: create it first)",
        ("bind" | "open the lock file", Some(ENOSPC | EDQUOT)) => {
            " (the file system is full, or the user's quota is used up: a socket and its lock file take an inode each)"
        }
        ("fchownat", Some(EPERM)) => " (be a member of the group, or root, to give the socket to it)",
        ("fchownat", Some(EINVAL)) => " (the user namespace does not map the group)",
        ("mmap", Some(EAGAIN)) => {
            " (the program locks its memory by mlockall, and may lock no more: raise RLIMIT_MEMLOCK)"
        }
        ("mmap", Some(ENOMEM)) => {
            " (raise the limit of address space, RLIMIT_AS, or of mappings, vm.max_map_count)"
        }
        ("mmap", Some(EACCES | EPERM)) => " (a security module such as SELinux forbids to map it)",
        ("socket" | "socketpair" | "memfd_create" | "epoll_create1" | "eventfd", Some(EACCES | EPERM)) => {
            " (a seccomp filter or a security module forbids the call: `narrows doctor` tells)"
        }
        _ => "",
    }
}

/// Returns the `errno` value, also if a [`FailedCall`] wraps the error.
fn number(error: &io::Error) -> Option<i32> {
    let failed = error.get_ref().and_then(|inner| inner.downcast_ref::<FailedCall>());
    failed.map_or_else(|| error.raw_os_error(), |failed| failed.source.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_match_and_texts_name_the_remedy() {
        let missing = ConnectError::io("connecting")(io::ErrorKind::NotFound.into());
        assert!(missing.to_string().contains("start the server first"));
        let cases: Vec<(io::Error, io::ErrorKind)> = vec![
            (missing.into(), io::ErrorKind::NotFound),
            (ConnectError::Timeout.into(), io::ErrorKind::TimedOut),
            (
                ConnectError::NotAuthorized { uid: 1, text: "other".into() }.into(),
                io::ErrorKind::PermissionDenied,
            ),
            (BindError::InUse.into(), io::ErrorKind::AddrInUse),
            (AcceptError::Timeout.into(), io::ErrorKind::TimedOut),
            (SpawnError::Timeout.into(), io::ErrorKind::TimedOut),
        ];
        for (error, kind) in cases {
            assert_eq!(error.kind(), kind);
            assert!(!error.to_string().is_empty());
        }
        let full: io::Error = AcceptError::Io(io::Error::from_raw_os_error(24)).into();
        assert!(full.to_string().contains("RLIMIT_NOFILE"));
    }
}
