//! The rows: the systems, how many messages of each size, and how each measurement warms up.

use serde::{Deserialize, Serialize};

use crate::config::{Codec, NodeSystem, PayloadKind, Phase, PhaseKind};

/// One system doing one kind of work.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct NodeRow {
    pub kind: PayloadKind,
    pub system: NodeSystem,
    pub codec: Codec,
}

impl NodeRow {
    /// All of them, in the order of a round.
    pub fn all() -> Vec<Self> {
        let nodes = [
            NodeSystem::IpcJson,
            NodeSystem::IpcAdvanced,
            NodeSystem::Socket,
            NodeSystem::SocketRust,
            NodeSystem::Worker,
            NodeSystem::SharedWait,
            NodeSystem::SharedSpin,
        ];
        let ours = [NodeSystem::NarrowsAdaptive, NodeSystem::NarrowsPark];
        let row = |kind, codec| move |system| Self { kind, system, codec };
        let mut rows: Vec<Self> = nodes.map(row(PayloadKind::Objects, Codec::Typed)).into();
        rows.extend(ours.map(row(PayloadKind::Objects, Codec::Typed)));
        rows.extend(ours.map(row(PayloadKind::Objects, Codec::Value)));
        rows.extend(
            [NodeSystem::AloneNode, NodeSystem::AloneRust].map(row(PayloadKind::Objects, Codec::Typed)),
        );
        rows.push(row(PayloadKind::Objects, Codec::Value)(NodeSystem::AloneRust));
        rows.extend(nodes.map(row(PayloadKind::Bytes, Codec::Typed)));
        rows.extend(ours.map(row(PayloadKind::Bytes, Codec::Typed)));
        rows
    }

    /// As the tables have it.
    pub fn name(&self) -> String {
        let objects = self.kind == PayloadKind::Objects;
        let of = |objects_by, bytes_by| if objects { objects_by } else { bytes_by };
        let codec = match (self.kind, self.codec) {
            (PayloadKind::Bytes, _) => "",
            (PayloadKind::Objects, Codec::Typed) => ", serde_json, struct",
            (PayloadKind::Objects, Codec::Value) => ", serde_json, Value",
        };
        match self.system {
            NodeSystem::IpcJson => of("Node child_process, JSON", "Node child_process, JSON (base64)").into(),
            NodeSystem::IpcAdvanced => "Node child_process, advanced".into(),
            NodeSystem::Socket => of("Node Unix socket, JSON", "Node Unix socket").into(),
            NodeSystem::SocketRust => of("Node Unix socket to Rust, JSON", "Node Unix socket to Rust").into(),
            NodeSystem::Worker => "Node worker thread, postMessage".into(),
            NodeSystem::SharedWait => {
                of("Node worker thread, shared memory, wait, JSON", "Node worker thread, shared memory, wait")
                    .into()
            }
            NodeSystem::SharedSpin => {
                of("Node worker thread, shared memory, spin, JSON", "Node worker thread, shared memory, spin")
                    .into()
            }
            NodeSystem::AloneNode => "No transport, Node's JSON".into(),
            NodeSystem::AloneRust => format!("No transport{codec}"),
            NodeSystem::NarrowsAdaptive => format!("narrows, Adaptive{codec}"),
            NodeSystem::NarrowsPark => format!("narrows, Park{codec}"),
        }
    }
}

/// The phases of a measurement: the compilers first, then memory and caches, then what counts.
///
/// The last two count: round trips and rate of `size`.
pub fn phases(size: usize, percent: f64) -> Vec<Phase> {
    let (trips, rate) = full(size);
    let part = |count: usize| portion(count, percent);
    let phase = |what, size, count| Phase { what, size, count };
    vec![
        phase(PhaseKind::Trips, SMALL, part(10_000)),
        phase(PhaseKind::Rate, SMALL, part(30_000)),
        phase(PhaseKind::Trips, size, part(trips / 10)),
        phase(PhaseKind::Rate, size, part(rate / 10)),
        phase(PhaseKind::Trips, size, part(trips)),
        phase(PhaseKind::Rate, size, part(rate)),
    ]
}

/// Bytes of a warm-up message.
pub const SMALL: usize = 64;

/// Round trips and one-way messages of a size.
fn full(size: usize) -> (usize, usize) {
    match size {
        0..=4096 => (100_000, 300_000),
        4097..=65_536 => (3000, 3000),
        _ => (200, 200),
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
fn portion(count: usize, percent: f64) -> usize {
    ((count as f64 * percent / 100.0) as usize).max(10)
}
