//! What a connection has done so far.

/// Counters of one end of a connection, since it was made.
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
