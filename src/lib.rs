#![doc = include_str!("../README.md")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("narrows runs on 64-bit Linux only: it is built on memfd seals and shared futexes");

#[forbid(unsafe_code)]
mod channel;
#[forbid(unsafe_code)]
mod error;
#[forbid(unsafe_code)]
mod establish;
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
#[doc(hidden)]
#[forbid(unsafe_code)]
pub mod ring;
#[forbid(unsafe_code)]
mod stream;
#[allow(unsafe_code)] // The only place.
mod sys;

pub use channel::{
    Batch, ByteReader, ByteWriter, Closer, Iter, Received, Receiver, RecvGuard, Reservation, Sender,
    SharedSender, Stats, TryIter, WaitStrategy,
};
pub use error::{
    AcceptError, BindError, ConnectError, HandshakeError, RecvError, RecvTimeoutError, RejectCode, SendError,
    SendTimeoutError, SpawnError, TryRecvError, TrySendError,
};
pub use listener::{Incoming, ListenerCloser, SharedMemoryListener};
pub use options::Options;
pub use stream::{Ready, SharedMemoryStream};
pub use sys::borrow::RawSpan;
pub use sys::socket::PeerCred;

/// What the models, the fuzzers and the tests of the parts see. Not part of the interface.
#[doc(hidden)]
pub mod internal {
    pub use crate::channel::{
        Gather, Inbound, Incoming, Monitor, NoPace, Outbound, Pace, RecvFault, SendFault, Wait, in_turn,
    };
    pub use crate::error::{Ended, Violation};
    #[cfg(feature = "testing")]
    pub use crate::sys::{failpoint, mapping::testing::Peek, sentinel};
    pub use crate::{handshake, layout, mem, ring};
}
