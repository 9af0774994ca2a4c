//! The raw results of a run, as `node.json` holds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Outcome;
use crate::rows::NodeRow;

/// A whole run.
#[derive(Debug, Deserialize, Serialize)]
pub struct NodeResults {
    pub machine: BTreeMap<String, String>,
    pub rounds: usize,
    pub measurements: Vec<NodeMeasurement>,
    /// The measurements that failed, and why.
    pub failures: Vec<String>,
}

/// One start of both sides.
#[derive(Debug, Deserialize, Serialize)]
pub struct NodeMeasurement {
    pub row: NodeRow,
    pub name: String,
    pub pin: String,
    pub size: usize,
    pub round: usize,
    /// CPUs that other processes used meanwhile, the start of both sides included.
    pub others: f64,
    pub trips: Outcome,
    pub rate: Outcome,
}

/// The placement without pinning.
pub const NOT_PINNED: &str = "none";
