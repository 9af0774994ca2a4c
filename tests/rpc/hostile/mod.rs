//! A peer that speaks the frames of calls and breaks their rules, each in its own way.
//!
//! ```text
//!   second process                        test process
//!     a good server  ◀═══ calls ═══════════ an honest client, all the while
//!     a liar's listener ◀══════════════════ clients that it lies to              (servers)
//!     a good server  ◀═══ frames by hand ══ liars, and an honest client           (clients, words)
//! ```
//!
//! | module | who lies, how |
//! |---|---|
//! | `servers` | a server: frames, ids, sequences, windows; the client finds `ProtocolViolated`, alone |
//! | `clients` | a client: the same, calls and uploads; the server closes that connection, alone |
//! | `words` | a client with the bare pages: floods of cancels and bells; half calls and silence |
//!
//! What stands in a frame's bytes while it is read, and the ring below, is `hostile`; the fuzzer `calls` looks for
//! frames that nobody thought of.

mod clients;
mod servers;
mod words;

use narrows::internal::rpc::wire::FrameKind;

use crate::support::calls::raw::{Raw, head};

/// The most memory that this process, or another, has had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("is told");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// Bytes as they are. The other side may have had enough already.
fn bytes(raw: &mut Raw, id: u64, bytes: &[u8]) {
    let _may_be_over = raw.bytes(id, bytes);
}

/// Sends frames until the peer closes the connection.
fn flood(raw: &mut Raw, id: u64, kind: FrameKind, flags: u8, from: u16, body: &[u8]) {
    let mut seq = from;
    for _ in 0..200_000 {
        if raw.send(id, head(kind, flags, seq, 0), body).is_err() {
            return;
        }
        seq = seq.wrapping_add(1);
    }
    panic!("nobody has stopped it");
}
