//! The memory of a process, as the kernel counts it.

use std::fs;

use serde::Serialize;

/// The peak memory of one process, in KiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PeakMemory {
    /// Its own: heap and stacks.
    pub(crate) private: u64,
    /// Shared pages that it has touched: the rings.
    pub(crate) shared: u64,
}

impl PeakMemory {
    /// Samples the memory of the process and keeps the peaks.
    pub(crate) fn sample(&mut self, process: u32) {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0)
        };
        self.private = self.private.max(of("RssAnon:"));
        self.shared = self.shared.max(of("RssShmem:"));
    }
}
