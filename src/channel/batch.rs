//! Sending many messages that are committed together.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use super::call_mode::{Block, CallMode, NonBlocking, WithDeadline};
use super::io_slice_reader::IoSliceReader;
use super::sender_core::SendCoreError;
use super::{Sender, Wait};
use crate::error::{ConnectionError, SendError, SendTimeoutError, TrySendError};
use crate::ring::Cursor;

/// Collects messages and commits them together, with one fence and at most one wake.
///
/// If the ring has no room for all messages, they are committed in parts. Dropping the batch flushes it; a batch that
/// is forgotten sends nothing of what it had not flushed.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut batch = a.batch();
/// for word in ["ebb", "flow"] {
///     batch.push(word.as_bytes())?;
/// }
/// batch.flush()?;
/// drop(batch);
/// let mut buffer = [0; 8];
/// assert_eq!(b.recv(&mut buffer)?.len, 3);
/// assert_eq!(b.recv(&mut buffer)?.len, 4);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a batch that is forgotten sends nothing"]
pub struct Batch<'a> {
    sender: &'a mut Sender,
    to: Cursor,
    messages: u64,
    bytes: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(sender: &'a mut Sender) -> Self {
        let to = sender.out().ring().next();
        Self { sender, to, messages: 0, bytes: 0 }
    }

    /// Adds a message to the batch. Blocks while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.push_one(message, Block)
    }

    /// Adds a message to the batch if that is possible at once; never blocks.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_push(&mut self, message: &[u8]) -> Result<(), TrySendError> {
        self.push_one(message, NonBlocking)
    }

    /// Adds a message to the batch, blocking for at most `timeout` while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn push_timeout(&mut self, message: &[u8], timeout: Duration) -> Result<(), SendTimeoutError> {
        self.push_one(message, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Adds a message to the batch, blocking until `deadline` at most while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn push_deadline(&mut self, message: &[u8], deadline: Instant) -> Result<(), SendTimeoutError> {
        self.push_one(message, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Adds a message with a tag to the batch. Blocks while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`SendError`]: the message is too long, or the connection has ended: the peer closed it, died or violated the
    /// protocol.
    #[inline]
    pub fn push_tagged(&mut self, message: &[u8], tag: u64) -> Result<(), SendError> {
        self.push_with_tag(message, tag, Block)
    }

    /// Adds a message with a tag to the batch if that is possible at once; never blocks.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]: there is no room now, the message is too long, or the connection has ended: the peer closed
    /// it, died or violated the protocol.
    #[inline]
    pub fn try_push_tagged(&mut self, message: &[u8], tag: u64) -> Result<(), TrySendError> {
        self.push_with_tag(message, tag, NonBlocking)
    }

    /// Adds a message with a tag to the batch, blocking for at most `timeout` while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// A zero timeout never blocks; one that overflows [`Instant`] means no deadline.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn push_tagged_timeout(
        &mut self,
        message: &[u8],
        tag: u64,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.push_with_tag(message, tag, WithDeadline(Wait::for_duration(timeout)))
    }

    /// Adds a message with a tag to the batch, blocking until `deadline` at most while the ring has no room.
    ///
    /// The peer sees it after the next flush. If the ring has no room for it beside what was added before, the call
    /// flushes that first and then sends the message by itself.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]: there was no room in time, the message is too long, or the connection has ended: the
    /// peer closed it, died or violated the protocol. Nothing of the message is delivered then.
    #[inline]
    pub fn push_tagged_deadline(
        &mut self,
        message: &[u8],
        tag: u64,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError> {
        self.push_with_tag(message, tag, WithDeadline(Wait::Deadline(Some(deadline))))
    }

    /// Returns the number of messages that were added and not yet flushed.
    ///
    /// ```
    /// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let mut batch = a.batch();
    /// batch.push_tagged(b"ebb", 1)?;
    /// assert_eq!(batch.pending(), 1);
    /// batch.flush()?;
    /// assert_eq!(batch.pending(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pending(&self) -> u64 {
        self.messages
    }

    /// Commits what was added. Never blocks.
    ///
    /// # Errors
    ///
    /// [`SendError`] if the connection has ended.
    pub fn flush(&mut self) -> Result<(), SendError> {
        self.sender.enter().map_err(|_| SendError::from(ConnectionError::Forked))?;
        self.publish();
        self.sender.out().check().map_err(SendError::from)
    }

    #[inline(always)]
    fn push_one<H: CallMode>(&mut self, message: &[u8], how: H) -> Result<(), H::Send> {
        self.push_with_tag(message, 0, how)
    }

    #[inline(always)]
    fn push_with_tag<H: CallMode>(&mut self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        if self.try_push_inline(message, tag) {
            return Ok(());
        }
        self.push_slow(message, tag, how)
    }

    /// Adds a message on the fast path, which nearly every message takes. It calls no function.
    #[inline(never)]
    fn try_push_inline(&mut self, message: &[u8], tag: u64) -> bool {
        let staged = match self.sender.is_ours() {
            true => self.sender.out().try_stage_inline(self.to, message, tag),
            false => None,
        };
        let Some(to) = staged else { return false };
        self.staged(to, message.len());
        true
    }

    #[inline(always)]
    fn staged(&mut self, to: Cursor, len: usize) {
        self.to = to;
        self.messages += 1;
        self.bytes += len as u64;
    }

    #[inline(never)]
    fn push_slow<H: CallMode>(&mut self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        let fail = |fault| H::send_error((fault, message.len()));
        self.sender.enter().map_err(fail)?;
        self.sender.out().check().map_err(|ended| fail(ended.into()))?;
        // A message that is sent in fragments cannot be staged.
        let whole = self.sender.out().whole();
        let staged = match message.len() <= whole {
            true => self.stage(message, tag),
            false => Err(SendCoreError::Full),
        };
        match self.sender.note_end(staged) {
            Err(SendCoreError::Full) => self.send_alone(message, tag, how),
            staged => staged.map_err(fail),
        }
    }

    fn stage(&mut self, message: &[u8], tag: u64) -> Result<(), SendCoreError> {
        let out = self.sender.out();
        let reservation = out.stage(self.to, message.len())?;
        out.ring().mark_writing(&reservation);
        out.fill(&reservation, &mut IoSliceReader::new(&[IoSlice::new(message)]))?;
        out.describe_whole(&reservation, message.len(), tag);
        self.staged(reservation.after(), message.len());
        Ok(())
    }

    /// Flushes what is staged, and sends a message that has no room beside it.
    fn send_alone<H: CallMode>(&mut self, message: &[u8], tag: u64, how: H) -> Result<(), H::Send> {
        self.publish();
        let sent = self.sender.send_one(message, tag, how);
        self.to = self.sender.out().ring().next();
        sent
    }

    fn publish(&mut self) {
        if self.messages > 0 {
            self.sender.out().publish(self.to, false);
            self.sender.add(self.messages, self.bytes);
        }
        self.to = self.sender.out().ring().next();
        (self.messages, self.bytes) = (0, 0);
    }
}

impl Sender {
    /// Collects messages and commits them together: one fence, and at most one wake.
    ///
    /// ```
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut sender, _receiver) = a.split();
    /// let mut batch = sender.batch();
    /// for number in 0..100_u8 {
    ///     batch.push(&[number])?;
    /// }
    /// batch.flush()?; // Dropping it does as well, but reports no error.
    /// drop(batch);
    /// assert_eq!(b.try_iter().count(), 100);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn batch(&mut self) -> Batch<'_> {
        Batch::new(self)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.sender.enter().is_ok() {
            self.publish();
        }
    }
}
