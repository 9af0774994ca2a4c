//! What a receive gives: a message that is there, or why there is none.

use super::{Inbound, Pace, Wait};
use crate::error::Ended;
use crate::mem::{Memory, OutOfBounds, OutOfMemory, try_resize};
use crate::ring::Arrival;

/// Why a receive failed; the public enums are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvFault {
    /// No whole message is there, or the deadline passed.
    Empty,
    /// The message has so many bytes; it was kept.
    BufferTooSmall(usize),
    /// There is no memory for the message, which has so many bytes; it was kept.
    OutOfMemory(usize),
    /// The connection has ended.
    Ended(Ended),
}

impl From<Ended> for RecvFault {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// Length and tag of a message that was received.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send_tagged(b"hello", 7)?;
/// let mut buffer = [0; 64];
/// let received = b.recv(&mut buffer)?;
/// assert_eq!((&buffer[..received.len], received.tag), (&b"hello"[..], 7));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Bytes of the message.
    pub len: usize,
    /// The tag that the sender gave it; 0 if none.
    pub tag: u64,
}

impl From<&Incoming> for Received {
    #[inline(always)]
    fn from(message: &Incoming) -> Self {
        Self { len: message.len(), tag: message.tag() }
    }
}

/// What a message is copied into.
pub(crate) trait Buffer {
    /// Room for exactly so many bytes, if it has or gets it.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// The next message, into this.
    ///
    /// # Errors
    ///
    /// [`RecvFault`].
    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault>;
}

impl Buffer for [u8] {
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.get_mut(..len)
    }

    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault> {
        from.recv(self, wait)
    }
}

impl Buffer for Vec<u8> {
    #[inline(always)]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        // Written as `resize` has it, which then does not look again. Without room the longer way grows the buffer.
        if len > self.len() && len - self.len() > self.capacity() - self.len() {
            return None;
        }
        self.resize(len, 0);
        Some(self)
    }

    fn receive<M: Memory, P: Pace>(
        &mut self,
        from: &mut Inbound<M, P>,
        wait: Wait,
    ) -> Result<Received, RecvFault> {
        from.recv_into(self, wait)
    }
}

/// A whole message that is there.
#[derive(Clone, Copy, Debug)]
pub enum Incoming {
    /// It stands in the ring.
    Placed(Arrival),
    /// It was reassembled in private memory: length and tag.
    Assembled(usize, u64),
    /// It was short, was copied into private memory, and has left the ring: length and tag.
    Taken(usize, u64),
}

impl Incoming {
    /// Bytes of the message.
    pub fn len(&self) -> usize {
        match self {
            Self::Placed(arrival) => arrival.len,
            Self::Assembled(len, _) | Self::Taken(len, _) => *len,
        }
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its tag.
    pub fn tag(&self) -> u64 {
        match self {
            Self::Placed(arrival) => arrival.tag,
            Self::Assembled(_, tag) | Self::Taken(_, tag) => *tag,
        }
    }
}

impl<M: Memory, P: Pace> Inbound<M, P> {
    /// Copies a range of a message that is there.
    ///
    /// # Errors
    ///
    /// Only if the range is not in the message.
    #[inline(always)]
    pub fn read_at(&self, message: &Incoming, at: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        if let Incoming::Placed(arrival) = message {
            return self.ring.read(arrival, at, into);
        }
        let end = at.checked_add(into.len()).ok_or(OutOfBounds)?;
        let bytes = self.private(message).and_then(|bytes| bytes.get(at..end)).ok_or(OutOfBounds)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    /// Replaces what is in `buffer` by what the message has from `at` on.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; the buffer is empty.
    #[inline(always)]
    pub fn read_on(&self, message: &Incoming, at: usize, buffer: &mut Vec<u8>) -> Result<(), OutOfMemory> {
        let len = message.len().saturating_sub(at);
        if len > buffer.capacity() {
            buffer.clear();
            try_resize(buffer, len, len)?;
        }
        match self.private(message) {
            Some(bytes) => {
                buffer.clear();
                buffer.extend_from_slice(bytes.get(at..).unwrap_or_default());
            }
            None => {
                buffer.resize(len, 0);
                let _in_the_message = self.read_at(message, at, buffer);
            }
        }
        Ok(())
    }

    /// The bytes of a message that stands in private memory.
    #[inline]
    pub fn private(&self, message: &Incoming) -> Option<&[u8]> {
        match message {
            Incoming::Taken(len, _) => self.taken.get(..*len),
            Incoming::Assembled(..) => Some(self.partial.bytes()),
            Incoming::Placed(_) => None,
        }
    }

    /// The bytes of a reassembled message.
    pub(super) fn assembled(&mut self) -> &mut [u8] {
        self.partial.bytes_mut()
    }
}
