//! Hostile clients: the server closes their connections, and serves the others all the while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use narrows::Options;
use narrows::internal::rpc::wire::{DEADLINE, FrameKind, MORE, NOTIFY, STREAM, UPLOAD};

use super::{bytes, flood, peak};
use crate::support::calls::raw::{Raw, head};
use crate::support::calls::{
    ECHO, GATE, GATED_STREAM, GATED_UPLOAD, POOLED, STREAM as STREAMING, host, options,
};
use crate::support::{LONG, eventually};

/// The longest request, and the server's windows.
const MAX: usize = 100_000;
const WINDOW: u32 = 100_000;

type Violation = fn(&mut Raw);

fn call(raw: &mut Raw, id: u64, method: u32, flags: u8, body: &[u8]) {
    let _may_be_over = raw.send(id, head(FrameKind::Call, flags, 0, method), body);
}

fn violation(raw: &mut Raw, id: u64, kind: FrameKind, seq: u16, word: u32, body: &[u8]) {
    let _may_be_over = raw.send(id, head(kind, 0, seq, word), body);
}

/// Sends a request that is one byte longer than negotiated.
fn long(raw: &mut Raw, method: u32) {
    call(raw, 64, method, MORE, &[1; MAX / 2]);
    violation(raw, 64, FrameKind::Continuation, 1, 0, &[1; MAX / 2 + 1]);
}

/// Makes two calls, the second after the first was answered.
fn one_after_the_other(raw: &mut Raw, ids: [u64; 2], method: u32) {
    call(raw, ids[0], method, 0, &[]);
    assert_eq!(raw.receive().expect("answers").head.kind, FrameKind::Reply);
    call(raw, ids[1], method, 0, &[]);
}

const FRAMES: [(&str, Violation); 18] = [
    ("no bytes", |raw| bytes(raw, 64, &[])),
    ("half a head", |raw| bytes(raw, 64, &[4, 0, 0, 0, 1, 0, 0])),
    ("an unknown kind", |raw| bytes(raw, 64, &[12, 0, 0, 0, 0, 0, 0, 0])),
    ("an unknown flag", |raw| bytes(raw, 64, &[4, 128, 0, 0, 1, 0, 0, 0])),
    ("a notification that streams", |raw| bytes(raw, 64, &[4, NOTIFY | STREAM, 0, 0, 1, 0, 0, 0])),
    ("a reply", |raw| violation(raw, 64, FrameKind::Reply, 0, 0, &[])),
    ("an error", |raw| violation(raw, 64, FrameKind::Error, 0, 3, &[0; 4])),
    ("a push", |raw| violation(raw, 0, FrameKind::Push, 0, 0, &[])),
    ("a second preface", |raw| violation(raw, 0, FrameKind::Hello, 0, 0, &[0; 32])),
    ("a welcome", |raw| violation(raw, 0, FrameKind::Accept, 0, 0, &[0; 32])),
    ("a chunk of nothing", |raw| violation(raw, 0, FrameKind::Chunk, 0, 0, &[])),
    ("a call without an id", |raw| call(raw, 0, ECHO, 0, &[])),
    ("credit beyond the window of pushes", |raw| violation(raw, 0, FrameKind::Credit, 0, 1, &[])),
    ("credit beyond any window", |raw| violation(raw, 0, FrameKind::Credit, 0, u32::MAX, &[])),
    ("credit with bytes", |raw| violation(raw, 0, FrameKind::Credit, 0, 1, b"!")),
    ("a missing deadline, inline", |raw| call(raw, 64, ECHO, DEADLINE, &[0; 7])),
    ("a missing deadline", |raw| call(raw, 64, POOLED, DEADLINE, &[0; 7])),
    ("a call that begins with the second frame", |raw| violation(raw, 64, FrameKind::Call, 1, POOLED, &[])),
];

const CALLS: [(&str, Violation); 18] = [
    ("the same call in fragments that begins with the second frame", |raw| {
        violation(raw, 64, FrameKind::Call, 1, ECHO, &[])
    }),
    ("an id of the first round", |raw| call(raw, 5, ECHO, 0, &[])),
    ("an id twice", |raw| (0..2).for_each(|_| call(raw, 64, GATE, 0, &[]))),
    ("an id of the first round, pooled", |raw| call(raw, 5, POOLED, 0, &[])),
    ("an id twice, though the first is over", |raw| one_after_the_other(raw, [64, 64], ECHO)),
    ("an id twice, though the first is over, pooled", |raw| one_after_the_other(raw, [64, 64], POOLED)),
    ("an id that goes back", |raw| one_after_the_other(raw, [128, 64], ECHO)),
    ("an id that goes back, pooled", |raw| one_after_the_other(raw, [128, 64], POOLED)),
    ("a slot that is not free", |raw| {
        call(raw, 64, GATE, 0, &[]);
        call(raw, 128, ECHO, 0, &[]);
    }),
    ("a call in a call", |raw| {
        call(raw, 64, POOLED, MORE, b"1");
        call(raw, 64, POOLED, MORE, b"2");
    }),
    ("a continuation of nothing", |raw| violation(raw, 64, FrameKind::Continuation, 0, 0, b"?")),
    ("a gap in a request", |raw| {
        call(raw, 64, POOLED, MORE, b"1");
        violation(raw, 64, FrameKind::Continuation, 2, 0, b"3");
    }),
    ("an empty fragment", |raw| call(raw, 64, POOLED, MORE, &[])),
    ("a chunk of a request", |raw| {
        call(raw, 64, GATED_UPLOAD, MORE | UPLOAD, b"1");
        violation(raw, 64, FrameKind::Chunk, 1, 0, b"2");
    }),
    ("a request that is too long", |raw| long(raw, POOLED)),
    ("a request that is too long, inline", |raw| long(raw, ECHO)),
    ("a request without end", |raw| {
        call(raw, 64, POOLED, MORE, b"1");
        flood(raw, 64, FrameKind::Continuation, MORE, 1, &[1; 1000]);
    }),
    ("a request without end, a byte at a time", |raw| {
        call(raw, 64, ECHO, MORE, b"1");
        flood(raw, 64, FrameKind::Continuation, MORE, 1, b"1");
    }),
];

const STREAMS: [(&str, Violation); 13] = [
    ("a chunk for a call without upload", |raw| {
        call(raw, 64, GATE, 0, &[]);
        violation(raw, 64, FrameKind::Chunk, 1, 0, &[]);
    }),
    ("an end for a call without upload", |raw| {
        call(raw, 64, GATE, 0, &[]);
        violation(raw, 64, FrameKind::End, 1, 0, &[]);
    }),
    ("a chunk of a later call", |raw| violation(raw, 64, FrameKind::Chunk, 0, 0, &[])),
    ("credit of a later call", |raw| violation(raw, 64, FrameKind::Credit, 0, 1, &[])),
    ("chunks beyond the window", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        flood(raw, 64, FrameKind::Chunk, 0, 1, &[1; 1000]);
    }),
    ("empty chunks beyond the window", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        flood(raw, 64, FrameKind::Chunk, 0, 1, &[]);
    }),
    ("a chunk without end", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        violation(raw, 64, FrameKind::Chunk, 1, 0, b"1");
        flood(raw, 64, FrameKind::Chunk, MORE, 2, b"1");
    }),
    ("a gap in an upload", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        violation(raw, 64, FrameKind::Chunk, 2, 0, b"1");
    }),
    ("an end with bytes", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        violation(raw, 64, FrameKind::End, 1, 0, b"!");
    }),
    ("two ends", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        (1..3).for_each(|seq| violation(raw, 64, FrameKind::End, seq, 0, &[]));
    }),
    ("a chunk after the end", |raw| {
        call(raw, 64, GATED_UPLOAD, UPLOAD, &[]);
        violation(raw, 64, FrameKind::End, 1, 0, &[]);
        violation(raw, 64, FrameKind::Chunk, 2, 0, &[]);
    }),
    ("credit beyond the window of a stream", |raw| {
        call(raw, 64, GATED_STREAM, STREAM, &[]);
        (0..1000).for_each(|_| violation(raw, 64, FrameKind::Credit, 0, u32::MAX / 2, &[]));
    }),
    ("credit for a call that does not stream", |raw| {
        call(raw, 64, GATE, 0, &[]);
        violation(raw, 64, FrameKind::Credit, 0, 1, &[]);
    }),
];

fn strict() -> Options {
    options().max_message(MAX).stream_window(WINDOW).push_window(WINDOW)
}

/// Sets the flag when dropped, so that `be_served` stops however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls until `stop` is set. Returns how often.
fn be_served(client: &narrows::SharedMemoryClient, stop: &AtomicBool) -> u32 {
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        for method in [ECHO, POOLED] {
            assert_eq!(*client.call(method, b"normal").expect("is served"), *b"normal");
        }
        let stream = client.call_streaming(STREAMING, &[3, 0, 0, 0, 9, 0, 0, 0]).expect("sends");
        assert!(stream.map(|chunk| chunk.expect("comes").len()).eq([9, 9, 9]));
        calls += 1;
    }
    calls
}

#[test]
fn a_client_that_violates_the_protocol_loses_only_its_own_connection() {
    // Many more of its methods may wait at the gate than there are workers by default.
    let host = host!(strict(), |server: narrows::SharedMemoryServer| server.workers(16));
    let (client, stop) = (host.client(), AtomicBool::new(false));
    let (before, mut violations) = (peak(host.pid()), 0);
    thread::scope(|scope| {
        let well_formed = scope.spawn(|| be_served(&client, &stop));
        let stopper = Stop(&stop);
        for (what, violation) in FRAMES.into_iter().chain(CALLS).chain(STREAMS) {
            let mut raw = Raw::connect(&host.path, &options());
            violation(&mut raw);
            let mut buffer = Vec::new();
            // The replies to its earlier calls come first.
            let end = (0..10_000).find_map(|_| raw.stream.recv_into_timeout(&mut buffer, LONG).err());
            assert!(
                end.is_some_and(|end| !matches!(end, narrows::RecvTimeoutError::Timeout)),
                "{what}: {end:?}"
            );
            violations += 1;
            assert!(eventually(|| host.stat("violated") >= violations), "{what}");
            assert_eq!((host.stat("violated"), what), (violations, what));
        }
        drop(stopper);
        assert!(well_formed.join().expect("is served all the while") > 0);
    });
    host.sees("gone ProtocolViolation", violations);
    assert_eq!((host.stat("refused"), host.stat("panicked")), (0, 0));
    let more = peak(host.pid()) - before;
    assert!(more < 64 << 10, "{more} KiB for violations of at most 100 KB");
    host.end();
}

#[test]
fn late_frames_are_no_violation() {
    let host = host!(strict());
    let mut raw = Raw::connect(&host.path, &options());
    for (id, method, flags) in [(64, ECHO, 0), (65, 999, UPLOAD), (66, 999, STREAM)] {
        call(&mut raw, id, method, flags, b"?");
        assert_eq!(raw.receive().expect("answers").id, id);
        violation(&mut raw, id, FrameKind::Chunk, 1, 0, &[1; 1000]);
        violation(&mut raw, id, FrameKind::End, 2, 0, &[]);
        violation(&mut raw, id, FrameKind::Credit, 0, u32::MAX, &[]);
        violation(&mut raw, id, FrameKind::Continuation, 9, 0, &[1; 1000]);
    }
    call(&mut raw, 128, ECHO, 0, b"!");
    assert_eq!(raw.receive().expect("lives").body, b"!");
    assert_eq!(host.stat("violated"), 0);
    host.end();
}
