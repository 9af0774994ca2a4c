//! Internal items that the tests, the models and the fuzz bodies need. Only the feature `testing` exports them.
//!
//! This is not part of the public interface, and may change in any version. The modules and types below are exported as
//! they are. Items of `sys/` are private to the crate, so [`MappedConnection`] and the functions below wrap them.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

pub use crate::channel::{
    AwaitedRelease, IncomingMessage, IncomingSignals, IoSliceReader, Lock, NoWaitPolicy, OobSender, RealSync,
    Received, ReceiverCore, RecvCoreError, SendCoreError, SenderCore, SharedFlag, SyncBackend, Wait,
    WaitPolicy, with_lock,
};
pub use crate::connect::answered;
pub use crate::error::{ConnectionError, ProtocolViolation};
pub use crate::sys::{failpoint, lost_wakeup_check, mapping::testing::Peek};

/// The public items of the private module.
pub mod handshake {
    pub use crate::handshake::*;
}

/// The public items of the private module.
pub mod layout {
    pub use crate::layout::*;
}

/// The public items of the private module.
pub mod memory {
    pub use crate::memory::*;
}

/// The public items of the private module.
pub mod ring {
    pub use crate::ring::*;
}

/// The public items of the private module.
pub mod rpc {
    pub use crate::rpc::*;
}

use crate::channel::{Receiver, Sender, WaitStrategy, on_peer_gone};
use crate::layout::Geometry;
use crate::memory::{Memory, Span};
use crate::sys::connection::Side;
use crate::sys::fuzz_region::FuzzRegion;
use crate::sys::mapping::Mapping;
use crate::sys::{cmsg, memfd};

/// One end of a real connection, whose pages can be read and overwritten. The peer's end stays idle.
#[derive(Debug)]
pub struct MappedConnection(FuzzRegion);

impl MappedConnection {
    /// Creates a connection whose pages are all zero. `direction` is the one in which this end sends: 0 for a client, 1
    /// for a server.
    ///
    /// # Errors
    ///
    /// The system call that failed.
    pub fn new(
        geometry: Geometry,
        direction: usize,
        first_ticket: u64,
        max_message: u64,
    ) -> io::Result<Self> {
        let side = if direction == 0 { Side::Client } else { Side::Server };
        FuzzRegion::new(geometry, side, (first_ticket, max_message), on_peer_gone).map(Self)
    }

    /// Returns the sending half. It must be the only one.
    pub fn sender(&self, strategy: WaitStrategy) -> Sender {
        Sender::new(self.0.connection(), strategy)
    }

    /// Returns the receiving half. It must be the only one.
    pub fn receiver(&self, strategy: WaitStrategy) -> Receiver {
        Receiver::new(self.0.connection(), strategy)
    }

    /// Returns the memory of one direction, as the ring sees it.
    pub fn memory(&self, direction: usize) -> impl Memory + use<> {
        self.mapping(direction)
    }

    /// Returns the length of a span that can be borrowed in place, and `None` if it is not within the memory.
    pub fn raw_len(&self, direction: usize, span: Span, at: usize, len: usize) -> Option<usize> {
        self.mapping(direction).raw(span, at, len).map(|raw| raw.len())
    }

    /// Returns the reason for which the connection was closed, 0 while it is open. It is stored in private memory.
    pub fn close_reason(&self) -> u64 {
        self.0.reason()
    }

    /// Zeroes all pages, and opens the connection again.
    pub fn reset(&self) {
        self.0.reset();
    }

    /// Formats the pages as those of a new connection.
    pub fn format(&self) {
        self.0.format();
    }

    /// Overwrites the word that contains this byte, if the region has it.
    pub fn put(&self, at: usize, value: u64) {
        self.0.put(at, value);
    }

    /// Copies all pages.
    pub fn read(&self, into: &mut Vec<u8>) {
        self.0.read(into);
    }

    fn mapping(&self, direction: usize) -> Mapping {
        Mapping::new(Arc::clone(self.0.connection()), direction)
    }
}

/// Returns anonymous shared memory, with its size sealed or not.
///
/// # Errors
///
/// The system call that failed.
pub fn shared_memory(len: usize, sealed: bool) -> io::Result<OwnedFd> {
    let memory = memfd::create(len)?;
    if sealed {
        memfd::seal_size(memory.as_fd())?;
    }
    Ok(memory)
}

/// Returns the kind of each control record in these bytes, and the descriptors that it names.
pub fn control_records(bytes: &[u8]) -> Vec<(i32, Vec<RawFd>)> {
    cmsg::decoded(bytes)
}
