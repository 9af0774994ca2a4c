//! The statistics of a server.

use crate::channel::{Waits, waits_to};
use crate::prometheus::{Family, Prometheus, Value};

/// What a server has done since it was started.
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
/// client.call(1, b"")?;
/// let stats = server.stats();
/// assert_eq!((stats.connections, stats.calls, stats.failed), (1, 1, 0));
/// println!("{}", stats.prometheus(&[("server", "echo")]));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub connections: usize,
    /// Clients that were accepted.
    pub accepted: u64,
    /// Clients that were refused, or whose handshake for calls failed.
    pub refused: u64,
    /// Connections that were closed because the client broke the protocol.
    pub violated: u64,
    /// Connections whose client died.
    pub died: u64,
    /// Methods that ran to their end.
    pub calls: u64,
    /// Methods that returned an error.
    pub failed: u64,
    /// Methods that panicked.
    pub panicked: u64,
    /// Calls that were not admitted because the server was at a limit.
    pub busy: u64,
    /// Methods that run now.
    pub running: usize,
    /// Of all sending halves: waits for room, and wakes of clients. A server's threads never wait for room
    /// themselves: they queue what does not fit, and the connection's driver waits. Its sleeps count as those of the
    /// receiving half.
    pub sending: Waits,
    /// Of all receiving halves: waits for requests or for room, and wakes of clients that wait for room.
    pub receiving: Waits,
    /// How often a connection's driver waited for room to send: clients that read too slowly.
    pub full_stalls: u64,
    /// The highest fill level of the ring to any client, in thousandths; the same as
    /// [`Stats::peak_fill`](crate::Stats::peak_fill).
    pub peak_fill: u32,
}

impl ServerStats {
    /// Returns the statistics as [Prometheus](https://prometheus.io) metrics with these labels, which are pairs of
    /// name and value.
    pub fn prometheus(&self, labels: &[(&str, &str)]) -> Prometheus {
        let mut page = Prometheus::default();
        for (family, value) in [
            (&CONNECTIONS, self.connections as u64),
            (&ACCEPTED, self.accepted),
            (&REFUSED, self.refused),
            (&VIOLATED, self.violated),
            (&DIED, self.died),
            (&CALLS, self.calls),
            (&FAILED, self.failed),
            (&PANICKED, self.panicked),
            (&BUSY, self.busy),
            (&RUNNING, self.running as u64),
        ] {
            page.add(family, None, labels, Value::Count(value));
        }
        waits_to(&mut page, labels, [self.sending, self.receiving], self.full_stalls, self.peak_fill);
        page
    }
}

static CONNECTIONS: Family = Family::gauge("narrows_server_connections", "Connections that are open.");
static ACCEPTED: Family = Family::counter("narrows_server_accepted_total", "Clients that were let in.");
static REFUSED: Family = Family::counter("narrows_server_refused_total", "Clients that were sent away.");
static VIOLATED: Family =
    Family::counter("narrows_server_violated_total", "Connections whose client broke the protocol.");
static DIED: Family = Family::counter("narrows_server_died_total", "Connections whose client died.");
static CALLS: Family = Family::counter("narrows_server_calls_total", "Methods that ran to their end.");
static FAILED: Family = Family::counter("narrows_server_failed_total", "Methods that ended with an error.");
static PANICKED: Family = Family::counter("narrows_server_panicked_total", "Methods that panicked.");
static BUSY: Family =
    Family::counter("narrows_server_busy_total", "Calls that were not admitted: the server was at a limit.");
static RUNNING: Family = Family::gauge("narrows_server_running", "Methods that run now.");
