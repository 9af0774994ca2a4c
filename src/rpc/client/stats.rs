//! The statistics of a client.

use crate::channel::{Waits, waits_to};
use crate::prometheus::{Family, Prometheus, Value};

/// What a client has done so far, on its current connection.
///
/// ```
/// use narrows::{SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let server = SharedMemoryServer::new()
///     .inline(1, |request, reply| {
///         reply.extend(request.bytes());
///         Ok(())
///     })
///     .spawn()?;
/// server.adopt(b);
/// let client = SharedMemoryClient::over(a)?;
/// client.call(1, b"hello")?;
/// let stats = client.stats();
/// assert_eq!((stats.calls, stats.in_flight, stats.reconnects), (1, 0, 0));
/// println!("{}", stats.prometheus(&[("server", "echo")]));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// Calls of all kinds of which anything was sent. A call whose request was given up half way counts: the server
    /// was asked to cancel it.
    pub calls: u64,
    /// Calls under way. A call that was given up counts until the server has sent its final frame.
    pub in_flight: usize,
    /// Replies that arrived after their call was cancelled or had timed out, and were dropped.
    pub dropped_replies: u64,
    /// Connections that were made after the first one.
    pub reconnects: u64,
    /// System calls that put a thread to sleep.
    pub sleeps: u64,
    /// System calls that woke the server.
    pub wakes: u64,
    /// Of the sending half: waits for room for requests, and wakes of the server.
    pub sending: Waits,
    /// Of the receiving half: waits for replies, and wakes of a server that waits for room.
    pub receiving: Waits,
    /// How often a request found no room and waited for it: the server is too slow, or the slots and the arena are
    /// too few, as for [`Stats::full_stalls`](crate::Stats::full_stalls).
    pub full_stalls: u64,
    /// The highest fill level of the ring to the server, in thousandths; the same as
    /// [`Stats::peak_fill`](crate::Stats::peak_fill).
    pub peak_fill: u32,
}

impl ClientStats {
    /// Returns the statistics as [Prometheus](https://prometheus.io) metrics with these labels, which are pairs of
    /// name and value.
    pub fn prometheus(&self, labels: &[(&str, &str)]) -> Prometheus {
        let mut page = Prometheus::default();
        for (family, value) in [
            (&CALLS, self.calls),
            (&IN_FLIGHT, self.in_flight as u64),
            (&DROPPED, self.dropped_replies),
            (&RECONNECTS, self.reconnects),
        ] {
            page.add(family, None, labels, Value::Count(value));
        }
        waits_to(&mut page, labels, [self.sending, self.receiving], self.full_stalls, self.peak_fill);
        page
    }
}

static CALLS: Family = Family::counter("narrows_client_calls_total", "Calls that the server has heard of.");
static IN_FLIGHT: Family = Family::gauge("narrows_client_calls_in_flight", "Calls under way.");
static DROPPED: Family = Family::counter(
    "narrows_client_dropped_replies_total",
    "Replies to calls that were cancelled or timed out.",
);
static RECONNECTS: Family =
    Family::counter("narrows_client_reconnects_total", "Connections that were made after the first.");
