//! Byte streams over messages, for code that uses [`Read`] and [`Write`].

use std::io::{self, BufRead, Read, Write};
use std::time::{Duration, Instant};

use super::{Receiver, Sender};
use crate::error::{ConnectionError, RecvError, RecvTimeoutError, SendError, SendTimeoutError};
use crate::memory::Deadline;

/// Reads the bytes of all messages as one stream; made by [`Receiver::into_reader`].
///
/// What a read leaves of a message stays for the next read. Once the peer has closed and everything is read, or once
/// this end was closed, reads return 0. If the peer died or violated the protocol, they return an error.
///
/// ```
/// use std::io::{Read, Write};
/// let (a, b) = narrows::SharedMemoryStream::pair()?;
/// let (mut writer, mut reader) = (a.split().0.into_writer(), b.split().1.into_reader());
/// writer.write_all(b"some bytes")?;
/// drop(writer);
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "some bytes");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ByteReader {
    receiver: Receiver,
    buffer: Vec<u8>,
    at: usize,
    timeout: Option<Duration>,
}

impl Receiver {
    /// Makes a byte stream of the messages. It loses no byte between them.
    ///
    /// ```
    /// use std::io::Read;
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// let (_sender, receiver) = b.split();
    /// a.send(b"ebb and ")?;
    /// a.send(b"flow")?;
    /// drop(a);
    /// let mut text = String::new();
    /// receiver.into_reader().read_to_string(&mut text)?;
    /// assert_eq!(text, "ebb and flow");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_reader(self) -> ByteReader {
        ByteReader::new(self)
    }
}

impl ByteReader {
    pub(super) fn new(receiver: Receiver) -> Self {
        Self { receiver, buffer: Vec::new(), at: 0, timeout: None }
    }

    /// Sets how long each later read may block before it fails with `TimedOut`; `None`, the default, means no limit.
    ///
    /// ```
    /// use std::io::{self, Read};
    /// use std::time::Duration;
    /// let (a, _b) = narrows::SharedMemoryStream::pair()?;
    /// let (mut reader, _writer) = a.into_bytes();
    /// reader.set_read_timeout(Some(Duration::from_millis(1)));
    /// assert_eq!(reader.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Returns the receiver, and the bytes of its last message that were not read.
    ///
    /// ```
    /// use std::io::BufRead;
    /// let (mut a, b) = narrows::SharedMemoryStream::pair()?;
    /// a.send(b"HELLO\nand more")?;
    /// let (mut reader, _writer) = b.into_bytes();
    /// let mut line = String::new();
    /// reader.read_line(&mut line)?;
    /// let (receiver, rest) = reader.into_parts(); // Messages again, from the next one on.
    /// assert_eq!((&*line, &*rest), ("HELLO\n", &b"and more"[..]));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_parts(mut self) -> (Receiver, Vec<u8>) {
        self.buffer.drain(..self.at);
        (self.receiver, self.buffer)
    }

    /// Receives until there is a byte to read. Returns `false` if the stream has ended.
    fn fill(&mut self) -> io::Result<bool> {
        // There is one deadline for the whole read: empty messages, which have no bytes, do not extend it.
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while self.at == self.buffer.len() {
            match self.receive(deadline) {
                Ok(()) if self.buffer.is_empty() && expired(deadline) => {
                    return Err(RecvTimeoutError::Timeout.into());
                }
                Ok(()) => {}
                Err(error) if is_clean_end(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Replaces the buffer by the next message; it is empty if there is none.
    fn receive(&mut self, deadline: Deadline) -> io::Result<()> {
        (self.at, _) = (0, self.buffer.clear());
        let received = match deadline {
            None => self.receiver.recv_into(&mut self.buffer).map_err(io::Error::from),
            Some(deadline) => {
                self.receiver.recv_into_deadline(&mut self.buffer, deadline).map_err(io::Error::from)
            }
        };
        received.map(drop).inspect_err(|_| self.buffer.clear())
    }
}

fn expired(deadline: Deadline) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

fn is_clean_end(error: &io::Error) -> bool {
    let Some(inner) = error.get_ref() else { return false };
    let blocking = [
        RecvError::ConnectionLost(ConnectionError::Disconnected),
        RecvError::ConnectionLost(ConnectionError::Closed),
    ]
    .map(Some);
    let timed = [
        RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected),
        RecvTimeoutError::ConnectionLost(ConnectionError::Closed),
    ]
    .map(Some);
    blocking.contains(&inner.downcast_ref().copied()) || timed.contains(&inner.downcast_ref().copied())
}

impl Read for ByteReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let bytes = self.fill_buf()?;
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for ByteReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at = self.at.saturating_add(len).min(self.buffer.len());
    }
}

/// Writes bytes as messages; made by [`Sender::into_writer`].
///
/// Each write is one message. A write of more bytes than the longest message takes only so many; an empty write sends
/// nothing. There is nothing to flush. Wrap it in a [`std::io::BufWriter`] for many small writes.
///
/// ```
/// use std::io::{BufWriter, Write};
/// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
/// let mut writer = BufWriter::new(a.into_bytes().1);
/// for number in 0..10 {
///     writeln!(writer, "line {number}")?;
/// }
/// writer.flush()?; // One message.
/// assert_eq!(b.recv_ref()?.len(), 70);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ByteWriter {
    sender: Sender,
    timeout: Option<Duration>,
}

impl Sender {
    /// Makes a byte stream of the sender: each write is a message.
    ///
    /// ```
    /// use std::io::Write;
    /// let (a, mut b) = narrows::SharedMemoryStream::pair()?;
    /// let (sender, _receiver) = a.split();
    /// sender.into_writer().write_all(b"a message for each write")?;
    /// assert_eq!(b.recv_ref()?.len(), 24);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_writer(self) -> ByteWriter {
        ByteWriter::new(self)
    }
}

impl ByteWriter {
    pub(super) fn new(sender: Sender) -> Self {
        Self { sender, timeout: None }
    }

    /// Sets how long each later write may block before it fails with `TimedOut`; `None`, the default, means no limit. A
    /// write that fails has written nothing.
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use std::time::Duration;
    /// let (a, _b) = narrows::Options::new().slots(1).pair()?;
    /// let (_reader, mut writer) = a.into_bytes();
    /// writer.set_write_timeout(Some(Duration::from_millis(1)));
    /// writer.write_all(b"first")?;
    /// assert_eq!(writer.write_all(b"second").unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// let mut sender = writer.into_inner(); // Messages again.
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Returns the sender.
    pub fn into_inner(self) -> Sender {
        self.sender
    }
}

impl Write for ByteWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..self.sender.max_message()).unwrap_or(bytes);
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.timeout {
            None => self.sender.send(bytes).map_err(|error: SendError| io::Error::from(error))?,
            Some(timeout) => {
                self.sender
                    .send_timeout(bytes, timeout)
                    .map_err(|error: SendTimeoutError| io::Error::from(error))?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
