//! Measurements: times by name, counts, and faults. Each thread has a recorder of its own.

use std::collections::BTreeMap;

use harness::monotonic;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::item::Tally;

/// A time that is measured, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Metric {
    /// From a chat's request to its first chunk.
    First,
    FirstUnpaced,
    /// From the stamp of a chunk, just before it was written, to its arrival.
    Delivery,
    DeliveryUnpaced,
    /// From one chunk to the next.
    Gap,
    GapUnpaced,
    /// A call of a tool: three messages of progress and the result. Without those that need an approval.
    Tool,
    ToolUnpaced,
    /// From the call of a tool that needs an approval to its end, without the time that the user took.
    Approval,
    /// From a question to its answer at the backend, without the time that the user took.
    Question,
    /// A completion or the like, beyond the server's own work.
    Lsp,
    /// From the moment of a cancel to the first write of the backend that fails.
    Cancel,
    /// A chunk of a terminal's output.
    Terminal,
    /// All of it: 10 MB.
    TerminalWhole,
    /// A transfer of several MB, and an answer of one.
    History,
    /// A small call of a light client.
    Light,
    /// A status pushed to a light client.
    Push,
    /// From the beginning of a connect to the first reply.
    Reconnect,
    /// From the kill of a client to the backend's disconnect handler.
    Death,
}

impl Metric {
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
            Self::Light => "light client's call",
            Self::Push => "push to a light client",
            Self::Reconnect => "reconnect",
            Self::Death => "kill noticed by the backend",
        }
    }
}

/// One thread's measurements.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    times: BTreeMap<Metric, Histogram<u64>>,
    pub(crate) tally: Tally,
    counts: BTreeMap<String, u64>,
    faults: Vec<String>,
}

/// The measurements of a process or a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Nanoseconds, and the number of such times.
    pub(crate) times: BTreeMap<Metric, Vec<(u64, u64)>>,
    #[serde(default)]
    pub(crate) tally: Tally,
    #[serde(default)]
    pub(crate) counts: BTreeMap<String, u64>,
    #[serde(default)]
    pub(crate) faults: Vec<String>,
    pub(crate) cpu: f64,
    /// The processes of the clients that disconnected, and when that was noticed.
    #[serde(default)]
    pub(crate) disconnects: Vec<(u32, u64)>,
}

impl Recorder {
    pub(crate) fn record(&mut self, time: Metric, nanos: u64) {
        self.record_many(time, nanos, 1);
    }

    fn record_many(&mut self, time: Metric, nanos: u64, count: u64) {
        // Three digits, and it grows: no value is out of range.
        if !self.times.contains_key(&time) {
            self.times.extend(Histogram::new(3).ok().map(|histogram| (time, histogram)));
        }
        if let Some(histogram) = self.times.get_mut(&time) {
            histogram.auto(true);
            if histogram.record_n(nanos.max(1), count).is_err() {
                self.faults.push(format!("{}: {nanos} ns", time.name()));
            }
        }
    }

    /// Records the time since a moment of the clock that all processes share.
    pub(crate) fn record_since(&mut self, time: Metric, then: u64) {
        self.record(time, monotonic().saturating_sub(then));
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
        self.merge_measured(&other.snapshot());
    }

    pub(crate) fn merge_measured(&mut self, measured: &Measured) {
        for (time, values) in &measured.times {
            values.iter().for_each(|(nanos, count)| self.record_many(*time, *nanos, *count));
        }
        self.tally.add(&measured.tally);
        measured.counts.iter().for_each(|(what, count)| self.count(what, *count));
        measured.faults.iter().for_each(|fault| self.fault(fault.clone()));
    }

    /// Returns the measurements, without the CPU time, which the process adds.
    pub(crate) fn snapshot(&self) -> Measured {
        let values = |histogram: &Histogram<u64>| {
            histogram.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
        };
        Measured {
            times: self.times.iter().map(|(time, histogram)| (*time, values(histogram))).collect(),
            tally: self.tally,
            counts: self.counts.clone(),
            faults: self.faults.clone(),
            ..Measured::default()
        }
    }
}

/// The figures of a distribution that the tables show.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    /// Nanoseconds: p50, p99, p99.9, the longest.
    pub(crate) nanos: [u64; 4],
}

impl Quantiles {
    pub(crate) fn of(values: &[(u64, u64)]) -> Option<Self> {
        let mut recorder = Recorder::default();
        values.iter().for_each(|(nanos, count)| recorder.record_many(Metric::First, *nanos, *count));
        let histogram = recorder.times.get(&Metric::First)?;
        let at = |share| histogram.value_at_quantile(share);
        Some(Self { count: histogram.len(), nanos: [at(0.5), at(0.99), at(0.999), histogram.max()] })
    }
}
