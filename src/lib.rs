#![doc = include_str!("../README.md")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("narrows runs on 64-bit Linux only: it is built on memfd seals and shared futexes");

#[forbid(unsafe_code)]
mod channel;
#[forbid(unsafe_code)]
mod error;
#[forbid(unsafe_code)]
mod establish;
#[forbid(unsafe_code)]
mod events;
#[doc(hidden)]
#[cfg(feature = "testing")]
#[forbid(unsafe_code)]
pub mod fuzz;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod handshake;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod layout;
#[forbid(unsafe_code)]
mod listener;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod mem;
#[forbid(unsafe_code)]
mod options;
#[forbid(unsafe_code)]
mod prometheus;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod ring;
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod rpc;
#[forbid(unsafe_code)]
mod stream;
#[allow(unsafe_code)] // The only place.
mod sys;

pub use channel::{
    Batch, ByteReader, ByteWriter, Closer, Iter, Received, Receiver, RecvGuard, Reservation, Sender,
    SharedSender, Stats, TryIter, WaitStrategy, Waits,
};
pub use error::{
    AcceptError, BindError, CallError, ConnectError, HandlerError, HandshakeError, RecvError,
    RecvTimeoutError, RejectCode, SendError, SendTimeoutError, SpawnError, TryRecvError, TrySendError,
};
pub use listener::{Incoming, ListenerCloser, SharedMemoryListener};
pub use options::Options;
pub use prometheus::Prometheus;
pub use rpc::client::{
    Canceller, ClientBuilder, ClientStats, Lost, LostCall, PendingCall, Pushes, Reconnect, Reply,
    ReplyStream, SharedMemoryClient, UploadCall, UploadStream,
};
pub use rpc::server::{
    ChunkReader, ChunkWriter, Connection, Drained, Request, ServerHandle, ServerStats, SharedMemoryServer,
};
pub use stream::{Ready, SharedMemoryStream};
pub use sys::borrow::{RawBytes, RawSpan};
pub use sys::socket::PeerCred;

/// What the models, the fuzzers and the tests of the parts see. Not part of the interface.
#[doc(hidden)]
pub mod internal {
    pub use crate::channel::{
        Ear, Gather, Inbound, Incoming, Latch, Monitor, NoPace, Outbound, Pace, Poster, RealThreads,
        RecvFault, SendFault, Threads, Wait, Wanted, in_turn,
    };
    pub use crate::error::{Ended, Violation};
    pub use crate::sys::probe;
    #[cfg(feature = "testing")]
    pub use crate::sys::{failpoint, mapping::testing::Peek, sentinel};
    pub use crate::{handshake, layout, mem, ring, rpc};
}
