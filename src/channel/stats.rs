//! What a connection has done so far.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::prometheus::{Family, Prometheus, Value};
use crate::sys::connection::ConnectionInner;
use crate::sys::wait_counters::WaitCounts;

/// What a shared sender has sent: written by the one who sends, read by anybody at any time.
#[derive(Debug, Default)]
pub(super) struct Sent {
    messages: AtomicU64,
    bytes: AtomicU64,
    fullest: AtomicU32,
}

impl Sent {
    /// Notes what has been sent so far.
    pub(super) fn set(&self, (messages, bytes): (u64, u64), fullest: u32) {
        self.messages.store(messages, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.fullest.store(fullest, Ordering::Relaxed);
    }

    /// Messages and bytes so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// How full its sender has seen the direction at most, in thousandths.
    pub(super) fn peak_fill(&self) -> u32 {
        self.fullest.load(Ordering::Relaxed)
    }
}

/// What one half of a connection did when it could not go on at once. All zero: it never had to wait, or to wake.
///
/// ```
/// let (mut a, _b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"nobody waits for it")?;
/// let narrows::Waits { sleeps, wakes, .. } = a.stats().sending;
/// assert_eq!((sleeps, wakes), (0, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waits {
    /// System calls to sleep.
    pub sleeps: u64,
    /// System calls to wake a sleeper: the peer's, and at the end of the connection this side's own.
    pub wakes: u64,
    /// Waits that began with spinning. Far more of them than `sleeps`: spinning pays here. The looks of up to 1 us
    /// that a receive takes before it waits are none.
    pub spins: u64,
}

/// Counters of one end of a connection, since it was made.
///
/// A message that is sent or received at once costs no more than its count: all else is counted where a thread waits.
/// They are of this process; the peer has its own.
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
    /// Of the sending half: waits for room, and wakes of a receiver.
    pub sending: Waits,
    /// Of the receiving half: waits for messages, waits for either, and wakes of a sender.
    pub receiving: Waits,
    /// How often a send found no room and waited for some; a long message may wait for each of its pieces. A peer
    /// that is too slow, or slots and arena that are too few.
    pub full_stalls: u64,
    /// How full the outgoing direction was at most, in thousandths of its slots or of its arena, whichever was
    /// fuller: as its sender has seen it, who looks once in a lap and whenever there may be no room. 1000 once a send
    /// had to wait. That of the other direction is known to the peer.
    pub peak_fill: u32,
}

impl Stats {
    /// What both halves did beside sending and receiving; the sender, if it is at hand, has seen its direction so full.
    pub(crate) fn of(connection: &ConnectionInner, fullest: Option<u32>) -> Self {
        connection.wait_counters(true).note_fill(fullest.unwrap_or(0));
        let (sending, receiving) =
            (connection.wait_counters(true).counts(), connection.wait_counters(false).counts());
        Self {
            sleeps: sending.sleeps + receiving.sleeps,
            wakes: sending.wakes + receiving.wakes,
            sending: sending.into(),
            receiving: receiving.into(),
            full_stalls: sending.stalls,
            peak_fill: sending.peak,
            ..Self::default()
        }
    }

    /// As [Prometheus](https://prometheus.io) scrapes them, with these labels: names and values.
    ///
    /// ```
    /// let (mut a, _b) = narrows::SharedMemoryStream::pair()?;
    /// a.send(b"four")?;
    /// let page = a.stats().prometheus(&[("connection", "7")]).to_string();
    /// assert!(page.contains("# TYPE narrows_bytes_total counter\n"));
    /// assert!(page.contains("narrows_bytes_total{direction=\"sent\",connection=\"7\"} 4\n"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn prometheus(&self, labels: &[(&str, &str)]) -> Prometheus {
        let mut page = Prometheus::default();
        for (direction, messages, bytes) in [
            (SENT, self.messages_sent, self.bytes_sent),
            (RECEIVED, self.messages_received, self.bytes_received),
        ] {
            page.add(&MESSAGES, Some(direction), labels, Value::Count(messages));
            page.add(&BYTES, Some(direction), labels, Value::Count(bytes));
        }
        waits_to(&mut page, labels, [self.sending, self.receiving], self.full_stalls, self.peak_fill);
        page
    }

    /// With those of another connection: sums, and the fuller of both. Messages and bytes are not counted there.
    pub(crate) fn and_waits(self, other: Self) -> Self {
        Self {
            sleeps: self.sleeps + other.sleeps,
            wakes: self.wakes + other.wakes,
            sending: self.sending.and(other.sending),
            receiving: self.receiving.and(other.receiving),
            full_stalls: self.full_stalls + other.full_stalls,
            peak_fill: self.peak_fill.max(other.peak_fill),
            ..self
        }
    }

    /// With what the other half received.
    pub(crate) fn and_received(self, receiver: Self) -> Self {
        let Self { messages_received, bytes_received, .. } = receiver;
        Self { messages_received, bytes_received, ..self }
    }
}

/// The part that is counted below the messages: of the sending half and of the receiving half.
pub(crate) fn waits_to(
    page: &mut Prometheus,
    labels: &[(&str, &str)],
    waits: [Waits; 2],
    full_stalls: u64,
    peak_fill: u32,
) {
    for (direction, waits) in [SENT, RECEIVED].into_iter().zip(waits) {
        page.add(&SLEEPS, Some(direction), labels, Value::Count(waits.sleeps));
        page.add(&WAKES, Some(direction), labels, Value::Count(waits.wakes));
        page.add(&SPINS, Some(direction), labels, Value::Count(waits.spins));
    }
    page.add(&STALLS, Some(SENT), labels, Value::Count(full_stalls));
    page.add(&PEAK, Some(SENT), labels, Value::Thousandths(peak_fill));
}

impl Waits {
    fn and(self, other: Self) -> Self {
        Self {
            sleeps: self.sleeps + other.sleeps,
            wakes: self.wakes + other.wakes,
            spins: self.spins + other.spins,
        }
    }
}

impl From<WaitCounts> for Waits {
    fn from(WaitCounts { sleeps, wakes, spins, .. }: WaitCounts) -> Self {
        Self { sleeps, wakes, spins }
    }
}

const SENT: (&str, &str) = ("direction", "sent");
const RECEIVED: (&str, &str) = ("direction", "received");

static MESSAGES: Family = Family::counter("narrows_messages_total", "Messages sent and received.");
static BYTES: Family = Family::counter("narrows_bytes_total", "Bytes of payload in these messages.");
static SLEEPS: Family = Family::counter("narrows_sleeps_total", "System calls to sleep until it goes on.");
static WAKES: Family = Family::counter("narrows_wakes_total", "System calls to wake a sleeper.");
static SPINS: Family = Family::counter("narrows_spins_total", "Waits that began with spinning.");
static STALLS: Family =
    Family::counter("narrows_full_stalls_total", "Sends that found no room and waited for some.");
static PEAK: Family =
    Family::gauge("narrows_peak_fill_ratio", "The largest part of the ring that was seen taken.");
