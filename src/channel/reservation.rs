//! A message that is written in place and then committed.

use std::io;

use super::Sender;
use super::manner::{Blocking, Manner};
use super::outbound::SendFault;
use crate::error::{Ended, SendError};
use crate::mem::Tail;
use crate::ring::Claim;
use crate::sys::borrow::RawSpan;

/// Room in the ring for one message, which nobody sees until it is committed.
///
/// Dropping or forgetting it aborts: nothing was sent. What is not written holds whatever earlier
/// messages left there, so write what you commit.
///
/// ```
/// use std::io::Write;
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut room = a.reserve(64)?;
/// write!(room, "{} + {}", 1, 2)?;
/// room.commit_written()?;
/// assert_eq!(b.recv_ref()?.to_vec()?, b"1 + 2");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A sender has one reservation at a time:
///
/// ```compile_fail
/// let (mut a, _b) = narrows::SharedMemoryStream::pair().unwrap();
/// let room = a.reserve(64).unwrap();
/// a.send(b"meanwhile").unwrap();
/// room.commit().unwrap();
/// ```
///
/// In any order, and less of it than was reserved:
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut room = a.reserve(64)?;
/// assert!(room.len() == 64 && !room.is_empty());
/// room.write_at(8, b"payload")?;
/// room.write_at(0, &7_u64.to_le_bytes())?; // The head, once the rest is known.
/// assert_eq!(room.written(), 0); // That counts `io::Write` alone.
/// room.set_tag(7);
/// room.commit_len(15)?;
/// let message = b.recv_ref()?;
/// assert_eq!((message.len(), message.tag()), (15, 7));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a reservation must be committed to be sent"]
pub struct Reservation<'a> {
    sender: &'a mut Sender,
    claim: Claim,
    written: usize,
    tag: u64,
}

impl<'a> Reservation<'a> {
    pub(super) fn new(sender: &'a mut Sender, claim: Claim) -> Self {
        sender.out().ring().open(&claim);
        let rest = claim.len() % size_of::<u64>();
        // The last word's rest never holds old bytes; the claim's own length is always in bounds.
        let _in_claim = sender.out().ring().write(&claim, claim.len() - rest, &[0; 8][..rest], Tail::Zero);
        Self { sender, claim, written: 0, tag: 0 }
    }

    /// Bytes reserved.
    pub fn len(&self) -> usize {
        self.claim.len()
    }

    /// Whether no bytes are reserved.
    pub fn is_empty(&self) -> bool {
        self.claim.is_empty()
    }

    /// Bytes written through [`io::Write`].
    pub fn written(&self) -> usize {
        self.written
    }

    /// Sets the tag that the message will have; it is 0 otherwise.
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// Writes `bytes` from `offset` on, wherever `io::Write` stands.
    ///
    /// # Errors
    ///
    /// `WriteZero` if they do not fit into the reservation; nothing is written then. `Unsupported`
    /// in a forked child.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.enter()?;
        let write = self.sender.out().ring().write(&self.claim, offset, bytes, Tail::Keep);
        write.map_err(|_| io::Error::new(io::ErrorKind::WriteZero, "more bytes than were reserved"))
    }

    /// The reserved bytes in place, for the `unsafe` borrow that spares a copy.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let mut room = a.reserve(3)?;
    /// let mut span = room.raw()?;
    /// // SAFETY: the peer is this program, which leaves alone what was not committed to it.
    /// unsafe { span.as_mut_slice() }.copy_from_slice(b"ebb");
    /// room.commit()?;
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"ebb");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError::Forked`] in a forked child, where they are not mapped.
    pub fn raw(&mut self) -> Result<RawSpan<'_>, SendError> {
        self.enter()?;
        let (span, len) = (self.claim.span(), self.claim.len());
        self.sender.out().ring().mem().raw(span, 0, len).ok_or(SendError::ProtocolViolated)
    }

    /// Commits all bytes reserved.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended; nothing was sent then.
    pub fn commit(self) -> Result<(), SendError> {
        let len = self.claim.len();
        self.commit_len(len)
    }

    /// Commits what was written through [`io::Write`].
    ///
    /// # Errors
    ///
    /// As for [`commit`](Self::commit).
    pub fn commit_written(self) -> Result<(), SendError> {
        let len = self.written;
        self.commit_len(len)
    }

    /// Commits the first `len` bytes.
    ///
    /// # Errors
    ///
    /// As for [`commit`](Self::commit); [`SendError::TooLarge`] if fewer are reserved.
    pub fn commit_len(self, len: usize) -> Result<(), SendError> {
        if len > self.claim.len() {
            return Err(Blocking::send_error((SendFault::TooLarge(self.claim.len()), len)));
        }
        self.enter()?;
        self.sender.out().check().map_err(SendError::from)?;
        self.sender.out().commit(&self.claim, len, self.tag);
        self.sender.count(len);
        Ok(())
    }

    fn enter(&self) -> Result<(), SendError> {
        self.sender.enter().map_err(|_| SendError::from(Ended::Forked))
    }
}

impl io::Write for Reservation<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.claim.len() - self.written;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.write_at(self.written, bytes)?;
        self.written += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
