//! What a client has done so far.

use crate::channel::{Waits, waits_to};
use crate::prometheus::{Family, Prometheus, Value};

/// What a client has done so far, on the connection that it has now.
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
    /// Calls that the server has heard of, of all kinds. One whose request was given up half way counts: the server
    /// was told to cancel it. One of which nothing was sent does not.
    pub calls: u64,
    /// Calls under way; those whose end nobody waits for any more count until the server has said it.
    pub in_flight: usize,
    /// Replies that came after their call was cancelled or timed out, and were dropped.
    pub dropped_replies: u64,
    /// Connections that were made after the first, because one was lost.
    pub reconnects: u64,
    /// System calls to sleep.
    pub sleeps: u64,
    /// System calls to wake the server.
    pub wakes: u64,
    /// Of the sending half: waits for room for requests, and wakes of the server.
    pub sending: Waits,
    /// Of the receiving half: waits for replies, and wakes of a server that waits for room.
    pub receiving: Waits,
    /// How often a request found no room and waited for some; see [`Stats::full_stalls`](crate::Stats::full_stalls).
    pub full_stalls: u64,
    /// How full the way to the server was at most, in thousandths; see [`Stats::peak_fill`](crate::Stats::peak_fill).
    pub peak_fill: u32,
}

impl ClientStats {
    /// As [Prometheus](https://prometheus.io) scrapes them, with these labels: names and values.
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
