//! What a connection has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a shared sender has sent: written by the one who sends, read by anybody at any time.
#[derive(Debug, Default)]
pub(super) struct Sent {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Sent {
    /// Notes what has been sent so far.
    pub(super) fn set(&self, (messages, bytes): (u64, u64)) {
        self.messages.store(messages, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Messages and bytes so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Counters of one end of a connection, since it was made.
///
/// ```
/// let (mut a, mut b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"hello")?;
/// b.recv(&mut [0; 8])?;
/// assert_eq!((a.stats().messages_sent, a.stats().bytes_sent), (1, 5));
/// assert_eq!((b.stats().messages_received, b.stats().bytes_received), (1, 5));
/// assert_eq!(b.stats().sleeps, 0); // It was there already.
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages committed by this end.
    pub messages_sent: u64,
    /// Bytes of payload in them.
    pub bytes_sent: u64,
    /// Messages that this end received and gave back.
    pub messages_received: u64,
    /// Bytes of payload in them.
    pub bytes_received: u64,
    /// System calls to sleep, by both halves of this end. Spinning makes none.
    pub sleeps: u64,
    /// System calls to wake the peer, by both halves of this end.
    pub wakes: u64,
}

impl Stats {
    /// With what the other half received.
    pub(crate) fn and_received(self, receiver: Self) -> Self {
        let Self { messages_received, bytes_received, .. } = receiver;
        Self { messages_received, bytes_received, ..self }
    }
}
