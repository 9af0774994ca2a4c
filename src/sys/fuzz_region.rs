//! A connection whose pages can be read and overwritten, for the fuzzers.
//!
//! It is made like any other: a sealed memfd, verified and mapped, a socketpair, the peer monitor. Each run uses it
//! again, since making it takes longer than most runs.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::connection::{ConnectionInner, ConnectionParts, OnPeerGone, Side};
use super::memfd;
use super::region::Region;
use super::socket::{self, PeerCred};
use crate::layout::Geometry;

/// One end of a connection, its pages, and the socket of an idle peer.
#[derive(Debug)]
pub(crate) struct FuzzRegion {
    connection: Arc<ConnectionInner>,
    _theirs: OwnedFd,
    one_thread: PhantomData<Cell<()>>,
}

impl FuzzRegion {
    /// Creates a connection with fresh pages, all zero.
    ///
    /// # Errors
    ///
    /// The system call that failed.
    pub(crate) fn new(
        geometry: Geometry,
        side: Side,
        (first_ticket, max_message): (u64, u64),
        on_peer_gone: OnPeerGone,
    ) -> io::Result<Self> {
        let len = geometry.region_len();
        let memfd = memfd::create(len)?;
        memfd::seal_size(memfd.as_fd())?;
        memfd::verify(memfd.as_fd(), len).map_err(io::Error::other)?;
        let region = Region::map(memfd.as_fd(), len)?;
        memfd::seal_mappings(memfd.as_fd())?;
        let (socket, theirs) = socket::pair()?;
        let cred = PeerCred::own()?;
        let parts = ConnectionParts {
            region,
            socket: socket.into(),
            geometry,
            side,
            cred,
            peer: None,
            first_ticket,
            max_message,
        };
        Ok(Self {
            connection: ConnectionInner::establish(parts, on_peer_gone)?,
            _theirs: theirs,
            one_thread: PhantomData,
        })
    }

    /// Returns the connection.
    pub(crate) fn connection(&self) -> &Arc<ConnectionInner> {
        &self.connection
    }

    /// Returns the close reason, which is in private memory; 0 while the connection is open.
    pub(crate) fn reason(&self) -> u64 {
        self.connection.close_reason().load(Ordering::Relaxed)
    }

    /// Zeroes all pages, and opens the connection again.
    pub(crate) fn reset(&self) {
        let region = self.connection.region();
        // SAFETY: the whole region, which the connection keeps mapped. The peer is idle, and only one thread uses this
        // (it is not `Sync`), so accesses come one after the other.
        unsafe { region.base().as_ptr().write_bytes(0, region.len()) };
        self.connection.close_reason().store(0, Ordering::Relaxed);
    }

    /// Formats the pages as for a new connection.
    pub(crate) fn format(&self) {
        ConnectionInner::format(
            self.connection.region(),
            &self.connection.geometry(),
            self.connection.first_ticket(),
        );
    }

    /// Overwrites the word that contains this byte, if the region has it.
    pub(crate) fn put(&self, at: usize, value: u64) {
        let (region, at) = (self.connection.region(), at / 8 * 8);
        if at < region.len() {
            // SAFETY: inside, since the region has whole pages, and 8-aligned.
            let word = unsafe { AtomicU64::from_ptr(region.base().add(at).cast().as_ptr()) };
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Copies all pages.
    pub(crate) fn read(&self, into: &mut Vec<u8>) {
        let region = self.connection.region();
        into.resize(region.len(), 0);
        // SAFETY: as for `reset`; `into` is private and has as many bytes.
        unsafe { region.base().as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), region.len()) };
    }
}

static_assertions::assert_not_impl_any!(FuzzRegion: Sync);
