//! Two processes on one Linux machine exchange messages through shared memory, with plain blocking calls: no async, no
//! runtime, no daemon, and no shared memory left behind.
//!
//! - No message costs a system call while no thread sleeps. A thread that waits for long uses hardly any CPU time
//!   (except with `Spin`).
//! - Blocking calls never hang on a dead peer: each one ends when the peer closes or dies, or at its deadline, and its
//!   error says which. A peer that is stopped, slow or silent is alive: give a deadline.
//! - Nothing that the other process writes can make this one crash.
//!
//! # Streams of messages
//!
//! ```
//! use narrows::{SharedMemoryListener, SharedMemoryStream};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("shout.sock");
//! let listener = SharedMemoryListener::bind(&path)?;
//! let server = std::thread::spawn(move || -> std::io::Result<()> { // In real life: another process.
//!     let mut stream = listener.accept()?;
//!     let mut message = Vec::new();
//!     while stream.recv_into(&mut message).is_ok() {
//!         message.make_ascii_uppercase();
//!         stream.send(&message)?;
//!     }
//!     Ok(())
//! });
//!
//! let mut stream = SharedMemoryStream::connect(&path)?;
//! stream.send(b"mind the tide")?;
//! let mut reply = Vec::new();
//! stream.recv_into(&mut reply)?;
//! assert_eq!(reply, b"MIND THE TIDE");
//! drop(stream);
//! server.join().unwrap()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Calls
//!
//! ```
//! use narrows::{SharedMemoryClient, SharedMemoryServer};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("words.sock");
//! let server = SharedMemoryServer::bind(&path)?
//!     .inline(1, |request, reply| {
//!         reply.extend(request.bytes().to_ascii_uppercase());
//!         Ok(())
//!     })
//!     .streaming(2, |request, chunks| {
//!         for word in request.bytes().split(|byte| *byte == b' ') {
//!             chunks.write_chunk(word)?;
//!         }
//!         Ok(())
//!     })
//!     .spawn()?; // `serve()` would block this thread.
//!
//! let client = SharedMemoryClient::connect(&path)?; // In real life: in another process.
//! assert_eq!(*client.call(1, b"mind the tide")?, *b"MIND THE TIDE");
//! let words = client.call_streaming(2, b"mind the tide")?.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(words.len(), 3);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Which type for what
//!
//! | you want to | streams | RPC |
//! |---|---|---|
//! | serve at a path | [`SharedMemoryListener`] | [`SharedMemoryServer`] |
//! | connect to one | [`SharedMemoryStream::connect`] | [`SharedMemoryClient::connect`] |
//! | give a child process one end | [`SharedMemoryStream::spawn`], [`from_parent`](SharedMemoryStream::from_parent) | [`SharedMemoryClient::over`], [`SharedMemoryServer::serve_stream`] |
//! | set sizes, the wait strategy, the trusted users | [`Options`] | [`SharedMemoryServer::bind_with`], [`ClientBuilder`] |
//! | use many threads | [`SharedMemoryStream::split`], [`SharedSender`] | clone the client |
//! | have many requests in flight | tags: [`Sender::send_tagged`] | [`SharedMemoryClient::start_call`] |
//! | not block, or for a limited time | `try_…`, `…_timeout`, `…_deadline` | [`SharedMemoryClient::try_start_call`], [`SharedMemoryClient::call_timeout`] |
//! | wait for a message or for room | [`SharedMemoryStream::wait_either`] | not needed: the server always reads |
//! | send many small messages | [`Batch`] | [`ReplyStream`], [`UploadCall`] |
//! | avoid a copy | [`Reservation`], [`RecvGuard`] | [`Request::read_at`] |
//! | send without a request | [`Sender::send`] | [`Connection::push`], [`ServerHandle::broadcast`], [`SharedMemoryClient::next_push`] |
//! | cancel | | drop the pending call, or [`Canceller`] |
//! | continue after the server died | connect again | [`Reconnect`] |
//! | use `io::Read` and `io::Write` | [`ByteReader`], [`ByteWriter`] | |
//! | admit clients, keep a state for each | [`Options::authorize`] | [`SharedMemoryServer::on_connect`], [`Connection::set_state`] |
//! | test in one process | [`SharedMemoryStream::pair`] | [`ServerHandle::adopt`], [`SharedMemoryClient::over`] |
//! | close or stop it from another thread | [`Closer`], [`ListenerCloser`] | [`ServerHandle::shutdown`] |
//!
//! Use streams if messages go one way, if you have a protocol of your own, or if a tenth of a microsecond counts. Use
//! RPC if many requests are in flight at once and each reply must be matched with its request, or if cancels must
//! overtake bulk data.
//!
//! The [`guide`] has patterns with examples. The repository's README has the figures, and `docs/operations.md` the
//! limits and what to do about each error.
//!
//! # Guarantees
//!
//! A receiver first gets the messages that the peer committed before it closed or died; then the error says which. No
//! message is lost, torn, duplicated or reordered. The peer never receives a message that was abandoned at a deadline.
//! If a peer violates the protocol in the shared pages, its connection is closed, and calls on it return
//! `ProtocolViolation`. A connection belongs to the process that made it: in a fork its calls return `Forked`. Two
//! things are not guaranteed: service by a hostile peer, and delivery to a peer that died, which may not have read what
//! was sent.
//!
//! # Features
//!
//! - `serde`: values instead of bytes in RPC (`SharedMemoryClient::call_typed`), by postcard.
//! - `log`: the library logs through the `log` crate when connections begin and end, and why.
//!
//! Neither is on by default.

#![cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, unnameable_types, reason = "`internal` exports them, which is not there")
)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("narrows runs on 64-bit Linux only: it is built on memfd seals and shared futexes");

#[forbid(unsafe_code)]
mod channel;
#[forbid(unsafe_code)]
mod connect;
#[forbid(unsafe_code)]
mod error;
#[forbid(unsafe_code)]
mod events;
#[cfg(any(doc, doctest))]
#[forbid(unsafe_code)]
pub mod guide;
#[forbid(unsafe_code)]
mod handshake;
#[doc(hidden)]
#[cfg(feature = "testing")]
#[forbid(unsafe_code)]
pub mod internal;
/// The module through which the macro `forward_memory` names types.
#[cfg(not(feature = "testing"))]
mod internal {
    pub(crate) use crate::memory;
}
#[forbid(unsafe_code)]
mod layout;
#[forbid(unsafe_code)]
mod listener;
#[forbid(unsafe_code)]
mod memory;
#[forbid(unsafe_code)]
mod options;
#[forbid(unsafe_code)]
mod prometheus;
#[forbid(unsafe_code)]
mod ring;
#[forbid(unsafe_code)]
mod rpc;
#[forbid(unsafe_code)]
mod stream;
#[allow(unsafe_code)] // The only module with unsafe code.
mod sys;

pub use channel::{
    Batch, ByteReader, ByteWriter, Closer, Iter, Received, Receiver, RecvGuard, Reservation, Sender,
    SharedSender, Stats, TryIter, WaitStrategy, Waits,
};
pub use connect::start_peer_monitor;
pub use error::{
    AcceptError, BindError, BusyReason, CallError, ConnectError, ConnectionError, HandlerError,
    HandshakeError, MethodKind, RecvError, RecvTimeoutError, RejectCode, SendError, SendTimeoutError,
    ServeError, SpawnError, TryRecvError, TrySendError,
};
pub use listener::{Incoming, ListenerCloser, SharedMemoryListener};
pub use options::Options;
pub use prometheus::Prometheus;
pub use rpc::client::{
    Canceller, ClientBuilder, ClientStats, ConnectionLoss, LostCall, PendingCall, Pushes, Reconnect, Reply,
    ReplyStream, SharedMemoryClient, UploadCall, UploadStream,
};
pub use rpc::server::{
    ChunkReader, ChunkWriter, Connection, Request, ServerHandle, ServerStats, SharedMemoryServer,
    ShutdownReport,
};
pub use stream::{Ready, SharedMemoryStream};
pub use sys::raw_span::{RawBytes, RawSpan};
pub use sys::socket::PeerCred;

/// The questions of the command-line tool to the kernel. This is not behind the feature `testing`: the tool measures
/// the library, so it is built with the same library that users get, without the failpoints.
#[doc(hidden)]
pub use sys::probe;

/// The examples of the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
