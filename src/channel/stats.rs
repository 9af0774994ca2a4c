//! Counters of what a connection has done so far.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::prometheus::{Family, Prometheus, Value};
use crate::sys::connection::ConnectionInner;
use crate::sys::wait_counters::WaitCounts;

/// What a shared sender has sent. The thread that holds the sender's lock writes it; any thread reads it at any time.
#[derive(Debug, Default)]
pub(super) struct Sent {
    messages: AtomicU64,
    bytes: AtomicU64,
    peak_fill: AtomicU32,
}

impl Sent {
    /// Stores what has been sent so far.
    pub(super) fn set(&self, (messages, bytes): (u64, u64), peak_fill: u32) {
        self.messages.store(messages, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.peak_fill.store(peak_fill, Ordering::Relaxed);
    }

    /// Returns the messages and bytes so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Returns how full the sender has seen the direction at most, in thousandths.
    pub(super) fn peak_fill(&self) -> u32 {
        self.peak_fill.load(Ordering::Relaxed)
    }
}

/// How one half of a connection has waited. All zero: it never had to wait for the peer or to wake it.
///
/// ```
/// let (mut a, _b) = narrows::SharedMemoryStream::pair()?;
/// a.send(b"no thread waits for it")?;
/// let narrows::Waits { sleeps, wakes, .. } = a.stats().sending;
/// assert_eq!((sleeps, wakes), (0, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waits {
    /// System calls to sleep.
    pub sleeps: u64,
    /// System calls to wake a sleeping thread: the peer's, and at the end of the connection this side's own.
    pub wakes: u64,
    /// Waits that began with spinning. Far more of them than `sleeps` means that spinning pays here. The checks of up
    /// to 1 us that a receive makes before it waits are not counted.
    pub spins: u64,
}

/// Counters of one end of a connection, since it was made.
///
/// A message that is sent or received at once costs no more than its count: everything else is counted where a thread
/// waits. The counters are those of this process; the peer has its own.
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
    /// Messages that this end has received.
    pub messages_received: u64,
    /// Bytes of payload in them.
    pub bytes_received: u64,
    /// System calls to sleep, by both halves of this end. Spinning makes none.
    pub sleeps: u64,
    /// System calls to wake the peer, by both halves of this end.
    pub wakes: u64,
    /// Waits of the sending half for room, and its wakes of the peer's receiver.
    pub sending: Waits,
    /// Waits of the receiving half for messages or for either direction, and its wakes of the peer's sender.
    pub receiving: Waits,
    /// How often a send found no room and waited for it. A long message may wait for each of its fragments. A high
    /// count means that the peer is too slow, or that there are too few slots or too small an arena.
    pub full_stalls: u64,
    /// How full the outgoing direction was at most, in thousandths of its slots or of its arena, whichever was fuller.
    /// The sender measures it once in a cycle of the ring and whenever there may be no room. It is 1000 once a send had
    /// to wait. The peer knows that of the other direction.
    pub peak_fill: u32,
}

impl Stats {
    /// Returns the counters that both halves share. `fullest`, if the sender is available, is how full it has seen its
    /// direction.
    pub(crate) fn of(connection: &ConnectionInner, peak_fill: Option<u32>) -> Self {
        connection.wait_counters(true).note_fill(peak_fill.unwrap_or(0));
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

    /// Returns the counters in the text format of [Prometheus](https://prometheus.io). Each sample gets these labels,
    /// as pairs of name and value.
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

    /// Returns these counters with the wait counters of another connection added, and the larger peak of both. Messages
    /// and bytes are not added.
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

    /// Returns these counters with what the other half has received.
    pub(crate) fn and_received(self, receiver: Self) -> Self {
        let Self { messages_received, bytes_received, .. } = receiver;
        Self { messages_received, bytes_received, ..self }
    }
}

/// Adds the wait counters of the sending and of the receiving half to the page.
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
