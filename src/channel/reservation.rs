//! Sending a message that is written in place and then committed.

use std::io;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::sender_core::SendCoreError;
use super::{Mapping, Sender, Wait};
use crate::error::{ConnectionError, SendError, SendTimeoutError, TrySendError};
use crate::memory::Padding;
use crate::ring::{Producer, SlotReservation};
use crate::sys::raw_span::RawSpan;

/// Room in the ring for one message, which the peer does not see until it is committed.
///
/// Dropping or forgetting it sends nothing. Bytes that are not written hold whatever earlier messages left there, so
/// write all bytes that you commit.
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
/// Bytes may be written in any order, and fewer may be committed than were reserved:
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut room = a.reserve(64)?;
/// assert!(room.len() == 64 && !room.is_empty());
/// room.write_at(8, b"payload")?;
/// room.write_at(0, &7_u64.to_le_bytes())?; // The header, once the payload is known.
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
    len: usize,
    written: usize,
    tag: u64,
}

impl<'a> Reservation<'a> {
    pub(super) fn new(sender: &'a mut Sender, len: usize) -> Self {
        Self { sender, len, written: 0, tag: 0 }
    }

    /// Returns the bytes reserved.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no bytes are reserved.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes written through [`io::Write`].
    pub fn written(&self) -> usize {
        self.written
    }

    /// Sets the tag that the message will have; it is 0 otherwise.
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// Writes `bytes` from `offset` on, independently of the position of [`io::Write`].
    ///
    /// # Errors
    ///
    /// `WriteZero` if they do not fit into the reservation; nothing is written then. `Unsupported`
    /// in a forked child.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let (ring, reservation) = self.sender.reserved_slot()?;
        let write = ring.write(reservation, offset, bytes, Padding::Keep);
        write.map_err(|_| io::Error::new(io::ErrorKind::WriteZero, "more bytes than were reserved"))
    }

    /// Returns the reserved bytes in place, for the `unsafe` borrow that saves a copy.
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
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, where the bytes are not mapped.
    pub fn raw(&mut self) -> Result<RawSpan<'_>, SendError> {
        let (ring, reservation) = self.sender.reserved_slot()?;
        ring.mem()
            .raw(reservation.span(), 0, self.len)
            .ok_or(SendError::ConnectionLost(ConnectionError::ProtocolViolation))
    }

    /// Commits all bytes reserved.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended; nothing was sent then.
    pub fn commit(self) -> Result<(), SendError> {
        let len = self.len;
        self.commit_len(len)
    }

    /// Commits what was written through [`io::Write`].
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended; nothing was sent then.
    pub fn commit_written(self) -> Result<(), SendError> {
        let len = self.written;
        self.commit_len(len)
    }

    /// Commits the first `len` bytes.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended, and [`SendError::TooLarge`] if fewer bytes are reserved; nothing was
    /// sent then.
    pub fn commit_len(self, len: usize) -> Result<(), SendError> {
        if len > self.len {
            return Err(Block::send_error((SendCoreError::TooLarge(self.len), len)));
        }
        self.sender.commit_reserved(len, self.tag)
    }
}

impl Sender {
    /// Reserves room for a message of at most `len` bytes, which is written in place and then committed. Blocks while
    /// the ring has no room.
    ///
    /// `len` is at most [`max_in_place`](Self::max_in_place). A reservation that is dropped sends nothing.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    ///
    /// ```
    /// use std::io::Write;
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, _receiver) = a.split();
    /// let mut room = sender.reserve(64)?;
    /// write!(room, "{} m above zero", 4.2)?;
    /// room.commit_written()?;
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"4.2 m above zero");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, SendError> {
        self.reserve_room(len, Block)
    }

    /// Reserves room for a message of at most `len` bytes, which is written in place and then committed, if that is
    /// possible at once; never blocks.
    ///
    /// `len` is at most [`max_in_place`](Self::max_in_place). A reservation that is dropped sends nothing.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_reserve(&mut self, len: usize) -> Result<Reservation<'_>, TrySendError> {
        self.reserve_room(len, NonBlocking)
    }

    /// Reserves room for a message of at most `len` bytes, which is written in place and then committed, blocking for
    /// at most `timeout` while the ring has no room.
    ///
    /// `len` is at most [`max_in_place`](Self::max_in_place). A reservation that is dropped sends nothing.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn reserve_timeout(
        &mut self,
        len: usize,
        timeout: Duration,
    ) -> Result<Reservation<'_>, SendTimeoutError> {
        self.reserve_room(len, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Reserves room for a message of at most `len` bytes, which is written in place and then committed, blocking
    /// until `deadline` at most while the ring has no room.
    ///
    /// `len` is at most [`max_in_place`](Self::max_in_place). A reservation that is dropped sends nothing.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn reserve_deadline(
        &mut self,
        len: usize,
        deadline: Instant,
    ) -> Result<Reservation<'_>, SendTimeoutError> {
        self.reserve_room(len, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    #[inline(always)]
    pub(super) fn reserve_room<H: CallMode>(
        &mut self,
        len: usize,
        how: H,
    ) -> Result<Reservation<'_>, H::Send> {
        match self.claim(len, how.wait()) {
            Ok(()) => Ok(Reservation::new(self, len)),
            Err(fault) => Err(H::send_error((fault, len))),
        }
    }

    #[inline(never)]
    fn claim(&mut self, len: usize, wait: Wait) -> Result<(), SendCoreError> {
        self.enter()?;
        let reservation = self.out().reserve(len, wait);
        let reservation = self.note_end(reservation)?;
        let rest = len % size_of::<u64>();
        if rest > 0 {
            // Zeroes the rest of the last word, so that it never carries old bytes. The reservation's own length is
            // always in bounds.
            let _in_bounds =
                self.out().ring().write(&reservation, len - rest, &[0; 8][..rest], Padding::Zero);
        }
        *self.reserved().1 = Some(reservation);
        Ok(())
    }

    /// Returns the ring, and what was reserved in it.
    fn reserved_slot(&mut self) -> Result<(&Producer<Mapping>, &SlotReservation), SendError> {
        self.enter().map_err(forked)?;
        let (out, reserved) = self.reserved();
        // `claim` has stored it before it made the `Reservation`, so `Closed` is never returned.
        reserved
            .as_ref()
            .map(|reservation| (out.ring(), reservation))
            .ok_or(SendError::ConnectionLost(ConnectionError::Closed))
    }

    fn commit_reserved(&mut self, len: usize, tag: u64) -> Result<(), SendError> {
        self.enter().map_err(forked)?;
        let (out, reserved) = self.reserved();
        out.check()?;
        let Some(reservation) = reserved else {
            return Err(SendError::ConnectionLost(ConnectionError::Closed));
        }; // Never: `claim` has stored it.
        out.ring().mark_writing(reservation);
        out.commit(reservation, len, tag);
        self.count(len);
        Ok(())
    }
}

fn forked(fault: SendCoreError) -> SendError {
    Block::send_error((fault, 0))
}

impl io::Write for Reservation<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.len - self.written;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        self.write_at(self.written, bytes)?;
        self.written += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
