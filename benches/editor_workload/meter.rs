//! What was measured: times by name, counts, and what went wrong. Each thread has one of its own.

use std::collections::BTreeMap;

use harness::monotonic;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::item::Tally;

/// A time that is measured; the order is that of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Time {
    /// From a chat's request to its first chunk.
    First,
    FirstUnpaced,
    /// From the moment when a chunk was stamped, just before it was written, to the one when it was there.
    Delivery,
    DeliveryUnpaced,
    /// From one chunk to the next.
    Gap,
    GapUnpaced,
    /// A call of a tool: three messages of progress and the result. Without those that were asked about.
    Tool,
    ToolUnpaced,
    /// From the call of a tool that needs an approval to its end, beyond what the user took.
    Approval,
    /// From a question to its answer at the backend, beyond what the user took.
    Question,
    /// A completion or the like, beyond the server's own work.
    Lsp,
    /// From the moment of a cancel to the one when the backend can write no more.
    Cancel,
    /// A chunk of a terminal's output.
    Terminal,
    /// All of it: 10 MB.
    TerminalWhole,
    /// A transfer of several MB, and an answer of one.
    History,
    /// A heartbeat of the editor.
    Heartbeat,
    /// A small call of a light client.
    Light,
    /// A status pushed to a light client.
    Push,
    /// From the beginning of a connect to the first reply.
    Reconnect,
    /// From the kill of a client to the moment when the backend knew.
    Death,
}

impl Time {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::First => "request to first chunk",
            Self::FirstUnpaced => "request to first chunk, unpaced",
            Self::Delivery => "chunk delivery",
            Self::DeliveryUnpaced => "chunk delivery, unpaced",
            Self::Gap => "gap between chunks (20 ms meant)",
            Self::GapUnpaced => "gap between chunks, unpaced",
            Self::Tool => "tool round trip",
            Self::ToolUnpaced => "tool round trip, unpaced chats",
            Self::Approval => "tool with approval, less the user's time",
            Self::Question => "question to answer, less the user's time",
            Self::Lsp => "LSP request, less its work",
            Self::Cancel => "cancel to last chunk",
            Self::Terminal => "terminal chunk delivery",
            Self::TerminalWhole => "terminal, 10 MB",
            Self::History => "history, 2 to 6 MB there, up to 2 MB back",
            Self::Heartbeat => "heartbeat",
            Self::Light => "light client's call",
            Self::Push => "push to a light client",
            Self::Reconnect => "reconnect",
            Self::Death => "kill noticed by the backend",
        }
    }
}

/// One thread's measurements.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    times: BTreeMap<Time, Histogram<u64>>,
    pub(crate) tally: Tally,
    counts: BTreeMap<String, u64>,
    faults: Vec<String>,
}

/// What a process or a run says of its measurements.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Nanoseconds, and how often.
    pub(crate) times: BTreeMap<Time, Vec<(u64, u64)>>,
    #[serde(default)]
    pub(crate) tally: Tally,
    #[serde(default)]
    pub(crate) counts: BTreeMap<String, u64>,
    #[serde(default)]
    pub(crate) faults: Vec<String>,
    pub(crate) cpu: f64,
    /// The clients that are gone: their processes, and when that was known.
    #[serde(default)]
    pub(crate) gone: Vec<(u32, u64)>,
}

impl Meter {
    pub(crate) fn time(&mut self, time: Time, nanos: u64) {
        self.time_often(time, nanos, 1);
    }

    fn time_often(&mut self, time: Time, nanos: u64, often: u64) {
        // Three digits, as large as it must be: made so, nothing can fail.
        if !self.times.contains_key(&time) {
            self.times.extend(Histogram::new(3).ok().map(|histogram| (time, histogram)));
        }
        if let Some(histogram) = self.times.get_mut(&time) {
            histogram.auto(true);
            if histogram.record_n(nanos.max(1), often).is_err() {
                self.faults.push(format!("{}: {nanos} ns", time.name()));
            }
        }
    }

    /// The time since then, of the clock that all processes share.
    pub(crate) fn since(&mut self, time: Time, then: u64) {
        self.time(time, monotonic().saturating_sub(then));
    }

    pub(crate) fn count(&mut self, what: &str, more: u64) {
        *self.counts.entry(what.into()).or_default() += more;
    }

    pub(crate) fn fault(&mut self, fault: String) {
        if self.faults.len() < 20 {
            self.faults.push(fault);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.merge_told(&other.tell());
    }

    pub(crate) fn merge_told(&mut self, told: &Told) {
        for (time, values) in &told.times {
            values.iter().for_each(|(nanos, often)| self.time_often(*time, *nanos, *often));
        }
        self.tally.add(&told.tally);
        told.counts.iter().for_each(|(what, count)| self.count(what, *count));
        told.faults.iter().for_each(|fault| self.fault(fault.clone()));
    }

    /// Without the CPU, which the process adds.
    pub(crate) fn tell(&self) -> Told {
        let values = |histogram: &Histogram<u64>| {
            histogram.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
        };
        Told {
            times: self.times.iter().map(|(time, histogram)| (*time, values(histogram))).collect(),
            tally: self.tally,
            counts: self.counts.clone(),
            faults: self.faults.clone(),
            ..Told::default()
        }
    }
}

/// What is read off a distribution.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    /// Nanoseconds: p50, p99, p99.9, the most.
    pub(crate) marks: [u64; 4],
    /// (share, microseconds), for the pictures.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Spread {
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn of(values: &[(u64, u64)]) -> Option<Self> {
        let mut meter = Meter::default();
        values.iter().for_each(|(nanos, often)| meter.time_often(Time::First, *nanos, *often));
        let histogram = meter.times.get(&Time::First)?;
        let at = |share| histogram.value_at_quantile(share);
        // No share beyond the last.
        let most = 1.0 - 1.0 / (histogram.len() as f64 + 1.0);
        let shares = SHARES.iter().copied().filter(|share| *share <= most);
        Some(Self {
            count: histogram.len(),
            marks: [at(0.5), at(0.99), at(0.999), histogram.max()],
            points: shares.map(|share| (share, at(share) as f64 / 1e3)).collect(),
        })
    }
}

const SHARES: [f64; 16] =
    [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99999];
