//! The counts of all rounds of `kills.rs` together.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) died: AtomicU64,
    pub(crate) torn: AtomicU64,
    /// How long it took from each kill to each error, in microseconds.
    pub(crate) delays: Mutex<Vec<u64>>,
}

impl Counts {
    /// Records that a survivor was notified, and how long after the kill.
    pub(crate) fn record_death(&self, killed: &OnceLock<Instant>) {
        self.died.fetch_add(1, Ordering::Relaxed);
        let delay = killed.get().map_or(Duration::ZERO, Instant::elapsed);
        let micros = u64::try_from(delay.as_micros()).expect("short");
        self.delays.lock().expect("whole").push(micros);
    }

    /// Returns whether some killed subjects had sent and some had received.
    pub(crate) fn has_seen_all(&self) -> bool {
        [&self.received, &self.sent, &self.died].iter().all(|it| it.load(Ordering::Relaxed) > 0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [received, sent, died, torn] =
            [&self.received, &self.sent, &self.died, &self.torn].map(|it| it.load(Ordering::Relaxed));
        let mut delays = self.delays.lock().expect("whole").clone();
        delays.sort_unstable();
        let slow = delays.iter().filter(|delay| **delay > 100_000).count();
        let at = |part: usize| {
            delays.get((delays.len() * part / 1000).min(delays.len().saturating_sub(1))).unwrap_or(&0)
        };
        write!(
            f,
            "{torn} died in the middle of writing a slot, which no survivor saw; {received} messages received whole, {sent} sent, {died} ends as \
             PeerDied; from the kill to the error: half within {} us, 99.9 % within {} us, all within {} us, \
             {slow} over 100 ms",
            at(500),
            at(999),
            at(1000),
        )
    }
}
