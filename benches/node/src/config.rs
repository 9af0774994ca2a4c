//! The configuration of one measurement: both of its sides, Node or Rust, get it as one word of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The kind of messages.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadKind {
    /// Objects, serialised and parsed on both sides.
    Objects,
    /// Raw bytes.
    Bytes,
}

/// By what it travels. The names without `narrows` are Node's, in `js/`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeSystem {
    /// `child_process` with JSON.
    IpcJson,
    /// `child_process` with `serialization: 'advanced'`.
    IpcAdvanced,
    /// A Unix socket, Node at both ends.
    Socket,
    /// A Unix socket, Node at side A and Rust at side B.
    SocketRust,
    /// `postMessage` between two threads.
    Worker,
    /// A `SharedArrayBuffer` between two threads, `Atomics.wait` and `notify`.
    SharedWait,
    /// The same, looking again and again.
    SharedSpin,
    /// No transport: Node serialises and parses what it would send, in one thread.
    AloneNode,
    /// The same in Rust.
    AloneRust,
    /// narrows; the default waiting.
    NarrowsAdaptive,
    /// narrows; always asleep in the kernel while it waits.
    NarrowsPark,
}

impl NodeSystem {
    /// Whether this is ours.
    pub fn is_narrows(self) -> bool {
        matches!(self, Self::NarrowsAdaptive | Self::NarrowsPark)
    }

    /// Whether nothing is sent at all.
    pub fn is_alone(self) -> bool {
        matches!(self, Self::AloneNode | Self::AloneRust)
    }

    /// Whether side A is this program.
    pub fn is_rust(self) -> bool {
        self.is_narrows() || self == Self::AloneRust
    }

    /// Whether both sides are threads of one process.
    pub fn is_one_process(self) -> bool {
        matches!(self, Self::Worker | Self::SharedWait | Self::SharedSpin | Self::AloneNode | Self::AloneRust)
    }
}

/// How Rust holds an object.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// A struct that owns its strings.
    Typed,
    /// `serde_json::Value`.
    Value,
}

/// The work of a phase.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PhaseKind {
    /// Send, wait for the reply.
    Trips,
    /// Send all, then wait for one word.
    Rate,
}

/// A part of a measurement; side A sends it to side B.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Phase {
    pub what: PhaseKind,
    pub size: usize,
    pub count: usize,
}

/// All that the two sides need to know.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeConfig {
    pub system: NodeSystem,
    pub kind: PayloadKind,
    pub codec: Codec,
    /// Temporary: the socket, and the objects of each size.
    pub folder: PathBuf,
    /// The largest size of the phases.
    pub largest: usize,
    pub phases: Vec<Phase>,
    /// [`POINTS`].
    pub points: [f64; 4],
    /// The words before side B's command that pin it; empty if it is not pinned.
    pub pin_b: Vec<String>,
    /// The programs.
    pub node: PathBuf,
    pub rust: PathBuf,
}

/// The shares of the round trips whose longest time is kept: p50, p99, p99.9, all.
pub const POINTS: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

/// The result of a phase.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub phase: Phase,
    pub seconds: f64,
    /// CPU seconds of each side; side B's are in side A's if both are one process.
    pub cpu_a: f64,
    pub cpu_b: f64,
    /// Microseconds of the round trips, at [`POINTS`]; empty for a rate.
    pub quantiles: Vec<f64>,
}

/// The answer of side B.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct SideUsage {
    #[serde(default)]
    pub cpu: f64,
}
