//! The results of a run: each row, each round, both sides, as the JSON file holds them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::system::Work;

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CpuPlacement {
    /// Each pinned to a CPU of its own.
    Two,
    /// Both pinned to one CPU.
    One,
    /// Where the kernel puts them.
    Free,
    /// Where the kernel puts them, beside as many busy processes as there are CPUs, at most two.
    Busy,
}

impl fmt::Display for CpuPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Two => "two",
            Self::One => "one",
            Self::Free => "free",
            Self::Busy => "busy",
        })
    }
}

/// One line of the tables: a system, its work, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// [`System::NAME`](crate::System::NAME).
    pub system: String,
    /// The work.
    pub work: Work,
    /// The placement.
    pub placement: CpuPlacement,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.system, self.work, self.placement)
    }
}

/// The measurements of one side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideReport {
    /// Messages, or round trips.
    pub count: u64,
    /// Wall time.
    pub seconds: f64,
    /// User and system time of the process (of the thread, for systems of threads).
    pub cpu_seconds: f64,
    /// Voluntary context switches: sleeps.
    pub sleeps: u64,
    /// Of each round trip, or of each sending call; side A alone.
    pub latency: Option<Latency>,
    /// Other figures of a row, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, f64>,
}

/// A distribution, in nanoseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// (share of the round trips, nanoseconds that they took at most), for the plots.
    pub quantiles: Vec<(f64, f64)>,
}

/// One row in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Which row.
    pub(crate) row: Row,
    /// Which round, from 0.
    pub(crate) round: usize,
    /// Nanoseconds of a bare cache-line round trip before and after.
    pub(crate) probes: [f64; 2],
    /// CPUs that other processes took meanwhile.
    pub(crate) others: f64,
    /// Whether placement and machine stayed as they were; else it does not count.
    pub(crate) clean: bool,
    /// The error, if the row failed.
    pub(crate) error: Option<String>,
    /// The driving side.
    pub(crate) a: Option<SideReport>,
    /// The other.
    pub(crate) b: Option<SideReport>,
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Machine, kernel, date and command.
    pub(crate) about: BTreeMap<String, String>,
    /// Versions of the systems.
    pub(crate) versions: BTreeMap<String, String>,
    /// All trials, those that do not count too.
    pub(crate) trials: Vec<Trial>,
}
