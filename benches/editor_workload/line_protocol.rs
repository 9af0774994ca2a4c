//! The reports of the processes of a run to the runner, which started them: lines of JSON.

use std::io::{self, Read, Write};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::recorder::Measured;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum StatusLine {
    /// The server listens.
    Ready,
    /// The editor is at work: how many chunks, tools and other calls so far.
    Progress { chunks: u64, tools: u64, calls: u64 },
    /// The last measurements, or, from a light client, those since the line before.
    Measured(Measured),
}

/// Prints a line. If the runner has exited, a failed write is no fault, since the input is closed as well.
pub(crate) fn report(line: &StatusLine) {
    let text = serde_json::to_string(line).unwrap_or_default();
    let mut out = io::stdout().lock();
    let _runner_is_gone =
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// Returns a flag that is set once the runner closes this process's input, or exits. The process exits 15 s later at
/// the latest, even if it hangs.
pub(crate) fn input_closed() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&closed);
    thread::spawn(move || {
        let _closed = io::stdin().lock().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_secs(15));
        process::exit(3);
    });
    closed
}
