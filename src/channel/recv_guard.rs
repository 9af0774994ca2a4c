//! A received message, borrowed in place.

use std::io;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::receiver_core::{IncomingMessage, Received, RecvCoreError};
use super::{Receiver, Wait};
use crate::error::{ConnectionError, RecvError, RecvTimeoutError, TryRecvError};
use crate::memory::{OutOfBounds, OutOfMemory, Span, try_resize};
use crate::sys::raw_span::RawSpan;

/// A message that is borrowed in place until the guard is dropped.
///
/// Copying reads are safe whatever the peer does; borrowing the bytes in place is [`RawSpan::as_slice`], which is
/// `unsafe`. If a guard is forgotten, the next call on the receiver releases its message, which is never received
/// twice. It also implements [`io::Read`].
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"0123456789")?;
/// let guard = b.recv_ref()?;
/// let mut some = [0; 3];
/// guard.read_at(4, &mut some)?;
/// assert_eq!(&some, b"456");
/// guard.finish()?; // Like dropping it, but reports whether the peer has modified the bytes.
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// The bytes cannot outlive the guard:
///
/// ```compile_fail
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair().unwrap();
/// let span = b.recv_ref().unwrap().raw().unwrap();
/// unsafe { span.as_slice() };
/// ```
#[derive(Debug)]
pub struct RecvGuard<'a> {
    receiver: &'a mut Receiver,
    message: Received,
    read: usize,
    over: bool,
}

impl<'a> RecvGuard<'a> {
    pub(super) fn new(receiver: &'a mut Receiver, message: Received) -> Self {
        Self { receiver, message, read: 0, over: false }
    }

    /// Returns the bytes of the message.
    pub fn len(&self) -> usize {
        self.message.len
    }

    /// Returns whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.message.len == 0
    }

    /// Returns the tag that the sender gave it; 0 if none.
    pub fn tag(&self) -> u64 {
        self.message.tag
    }

    /// Copies the bytes from `offset` on into all of `into`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the message has fewer bytes; nothing is copied then. `Unsupported` in a forked child.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.receiver.enter().map_err(Block::recv_error)?;
        let inb = self.receiver.inb_ref();
        let read = inb.at_hand().ok_or(OutOfBounds).and_then(|message| inb.read_at(&message, offset, into));
        read.map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, "the message is shorter"))
    }

    /// Copies the whole message into a new vector.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// a.send(b"hello")?;
    /// assert_eq!(b.recv_ref()?.to_vec()?, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `Unsupported` in a forked child; `OutOfMemory` if there is no memory for the copy.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        try_resize(&mut bytes, self.len(), self.len()).map_err(|OutOfMemory| io::ErrorKind::OutOfMemory)?;
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns the bytes in place, for the `unsafe` borrow that saves a copy.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// a.send(b"in place")?;
    /// let mut guard = b.recv_ref()?;
    /// assert!((guard.len(), guard.tag(), guard.is_empty()) == (8, 0, false));
    /// let span = guard.raw()?;
    /// // SAFETY: the peer is this program, which does not write to what it has committed.
    /// assert_eq!(unsafe { span.as_slice() }, b"in place");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child, where the bytes are not mapped.
    pub fn raw(&mut self) -> Result<RawSpan<'_>, RecvError> {
        self.receiver.enter().map_err(Block::recv_error)?;
        let inb = self.receiver.inb();
        match inb.at_hand() {
            Some(IncomingMessage::Placed(arrival)) => {
                let (span, len): (Span, usize) = (arrival.span, arrival.len);
                inb.ring()
                    .mem()
                    .raw(span, 0, len)
                    .ok_or(RecvError::ConnectionLost(ConnectionError::ProtocolViolation))
            }
            Some(IncomingMessage::Assembled(..)) => Ok(RawSpan::private(inb.assembled())),
            Some(IncomingMessage::Taken(..)) | None => {
                Err(RecvError::ConnectionLost(ConnectionError::ProtocolViolation))
            } // Neither is ever borrowed.
        }
    }

    /// Releases the message, and reports whether the peer has modified it meanwhile.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::ProtocolViolation`](crate::ConnectionError::ProtocolViolation) if it has: what was read is invalid, and the connection is closed.
    /// [`ConnectionError::Forked`](crate::ConnectionError::Forked) in a forked child.
    pub fn finish(mut self) -> Result<(), RecvError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), RecvError> {
        if self.over {
            return Ok(());
        }
        self.over = true;
        self.receiver.enter().map_err(Block::recv_error)?;
        let released = self.receiver.inb().release_borrowed();
        self.receiver.note_end(released).map_err(Block::recv_error)
    }
}

impl Receiver {
    /// Borrows the next message in place, without a copy. Blocks while there is no message.
    ///
    /// Dropping the guard releases the message.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: the connection has ended: the peer closed it, died or violated the protocol.
    ///
    /// ```
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (_sender, mut receiver) = b.split();
    /// a.send(b"0123456789")?;
    /// let message = receiver.recv_ref()?;
    /// let mut middle = [0; 2];
    /// message.read_at(4, &mut middle)?;
    /// assert_eq!(&middle, b"45");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn recv_ref(&mut self) -> Result<RecvGuard<'_>, RecvError> {
        self.recv_borrowed(Block)
    }

    /// Borrows the next message in place, without a copy, if that is possible at once; never blocks.
    ///
    /// Dropping the guard releases the message.
    ///
    /// # Errors
    ///
    /// [`TryRecvError`]: there is no message now, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn try_recv_ref(&mut self) -> Result<RecvGuard<'_>, TryRecvError> {
        self.recv_borrowed(NonBlocking)
    }

    /// Borrows the next message in place, without a copy, blocking for at most `timeout` while there is no message.
    ///
    /// Dropping the guard releases the message.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, or the connection has ended: the peer closed it, died or violated
    /// the protocol.
    #[inline]
    pub fn recv_ref_timeout(&mut self, timeout: Duration) -> Result<RecvGuard<'_>, RecvTimeoutError> {
        self.recv_borrowed(WithDeadline(Wait::for_duration(timeout)))
    }

    /// Borrows the next message in place, without a copy, blocking until `deadline` at most while there is no message.
    ///
    /// Dropping the guard releases the message.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`]: no message came in time, or the connection has ended: the peer closed it, died or violated
    /// the protocol.
    #[inline]
    pub fn recv_ref_deadline(&mut self, deadline: Instant) -> Result<RecvGuard<'_>, RecvTimeoutError> {
        self.recv_borrowed(WithDeadline(Wait::Deadline(Some(deadline))))
    }

    #[inline(always)]
    fn recv_borrowed<H: CallMode>(&mut self, how: H) -> Result<RecvGuard<'_>, H::Recv> {
        let message = self.borrow_next(how.wait()).map_err(H::recv_error)?;
        Ok(RecvGuard::new(self, message))
    }

    #[inline(never)]
    fn borrow_next(&mut self, wait: Wait) -> Result<Received, RecvCoreError> {
        self.enter()?;
        self.wait_for_message(wait);
        let message = self.inb().borrow_next(wait);
        let message = self.note_end(message)?;
        Ok(self.count(Received::from(&message)))
    }
}

impl io::Read for RecvGuard<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.len() - self.read);
        self.read_at(self.read, &mut into[..len])?;
        self.read += len;
        Ok(len)
    }
}

impl Drop for RecvGuard<'_> {
    fn drop(&mut self) {
        // A protocol violation found here has closed the connection: the next call reports it.
        let _next_call_fails = self.release();
    }
}
