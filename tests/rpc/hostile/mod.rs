//! A peer that speaks the frames of calls and breaks their rules, each in its own way.
//!
//! ```text
//!   second process                        test process
//!     a normal server  ◀═══ calls ═════════ a well-formed client, all the while
//!     a hostile server ◀═══════════════════ clients that it attacks               (servers)
//!     a normal server  ◀═ frames by hand ══ hostile and well-formed clients       (clients, words)
//! ```
//!
//! | module | the hostile peer, and what it sends |
//! |---|---|
//! | `servers` | a server: frames, ids, sequences, windows; the client finds `ProtocolViolation`, alone |
//! | `clients` | a client: the same, calls and uploads; the server closes that connection, alone |
//! | `words` | a client that writes to the pages: floods of cancels and doorbells; half calls and silence |
//!
//! Changes of a frame's bytes while they are read, and the ring below, are tested in `tests/hostile`. The fuzzer `calls` looks
//! for frames that this list does not have.

mod clients;
mod servers;
mod words;

use narrows::internal::rpc::wire::FrameKind;

use crate::support::calls::raw::{Raw, head};

/// Returns the peak memory of a process, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("is listed");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// Sends raw bytes. The other side may have closed the connection already.
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
    panic!("the peer did not close the connection");
}
