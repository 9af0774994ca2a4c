//! What the processes of a run say to the one that started them: a line of JSON each.

use std::io::{self, Read, Write};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meter::Told;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The server listens.
    Ready,
    /// The editor is at work: how many chunks, tools and other calls so far.
    Live { chunks: u64, tools: u64, calls: u64 },
    /// What was measured: for the last time, or, from a light client, since the line before.
    Told(Told),
}

/// Nobody to tell it to is no fault: the input has ended too, then.
pub(crate) fn say(line: &Line) {
    let text = serde_json::to_string(line).unwrap_or_default();
    let mut out = io::stdout().lock();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// Becomes true when the one who started this process has no more to ask of it, or is gone. The process ends soon
/// after, whatever it hangs in.
pub(crate) fn until_input_ends() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&ended);
    thread::spawn(move || {
        let _ended = io::stdin().lock().read_to_end(&mut Vec::new());
        tell.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_secs(15));
        process::exit(3);
    });
    ended
}
