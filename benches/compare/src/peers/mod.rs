//! One file for each peer: which of its documented configurations is used, what it is better at than narrows, and
//! what it cannot do. Sizes, waits and batches that a peer has not are left out, not imitated.

#[cfg(feature = "aeron")]
pub(crate) mod aeron;
#[cfg(feature = "boost")]
#[allow(unsafe_code)] // A C interface.
pub(crate) mod boost;
pub(crate) mod bytes;
pub(crate) mod iceoryx2;
#[allow(unsafe_code)] // rtrb's uninitialized chunks.
pub(crate) mod inproc;
pub(crate) mod ipc_channel;
pub(crate) mod ipmpsc;
pub(crate) mod mqueue;
#[cfg(feature = "nng")]
pub(crate) mod nng;
pub(crate) mod ringfire;
pub(crate) mod seqpacket;
#[cfg(feature = "shaq")]
#[allow(unsafe_code)] // Its queues are joined by `unsafe`.
pub(crate) mod shaq;
#[allow(unsafe_code)] // It lends by pointer.
pub(crate) mod shmem_ipc;
#[cfg(feature = "zeromq")]
pub(crate) mod zeromq;
