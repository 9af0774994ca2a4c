//! Hostile servers: the client detects the violation, closes that connection, and no other.

use std::thread;

use narrows::internal::rpc::wire::{FrameHeader, FrameKind, MORE, STREAM, UPLOAD};
use narrows::{CallError, ConnectionError, Options, SharedMemoryClient};

use super::{bytes, flood, peak};
use crate::support::calls::raw::{Raw, head};
use crate::support::calls::{ECHO, Host, here, options, serve};

/// The calls that the client has in flight when the violation comes: a plain call, a stream, an upload.
const WHOLE: u64 = 64;
const STREAMED: u64 = 65;
const UPLOADED: u64 = 66;

/// The longest reply, and the client's windows.
const MAX: usize = 100_000;
const WINDOW: u32 = 100_000;

type Violation = fn(&mut Raw);

fn violation(raw: &mut Raw, id: u64, head: [u8; 8], body: &[u8]) {
    let _may_be_over = raw.send(id, head, body);
}

/// A frame with no flags.
fn plain(raw: &mut Raw, id: u64, kind: FrameKind, body: &[u8]) {
    violation(raw, id, head(kind, 0, 0, 0), body);
}

/// An error's frame.
fn error(raw: &mut Raw, id: u64, status: u32, body: &[u8]) {
    violation(raw, id, head(FrameKind::Error, 0, 0, status), body);
}

/// Sends the first fragment of an item and then continuations, until the client closes the connection.
fn endless(raw: &mut Raw, id: u64, kind: FrameKind, fragment: &[u8]) {
    violation(raw, id, head(kind, MORE, 0, 0), fragment);
    flood(raw, id, FrameKind::Continuation, MORE, 1, fragment);
}

const FRAMES: [(&str, Violation); 19] = [
    ("no bytes", |raw| bytes(raw, WHOLE, &[])),
    ("half a head", |raw| bytes(raw, WHOLE, &[8, 0, 0, 0, 0, 0, 0])),
    ("an unknown kind", |raw| bytes(raw, WHOLE, &[13, 0, 0, 0, 0, 0, 0, 0])),
    ("kind 0", |raw| bytes(raw, WHOLE, &[0; 8])),
    ("an unknown flag", |raw| bytes(raw, WHOLE, &[8, 128, 0, 0, 0, 0, 0, 0])),
    ("a flag of a call", |raw| bytes(raw, WHOLE, &[8, 2, 0, 0, 0, 0, 0, 0])),
    ("a word in a reply", |raw| bytes(raw, WHOLE, &[8, 0, 0, 0, 1, 0, 0, 0])),
    ("a sequence in an error", |raw| bytes(raw, WHOLE, &[9, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0])),
    ("a call", |raw| plain(raw, WHOLE, FrameKind::Call, b"me?")),
    ("a preface", |raw| plain(raw, 0, FrameKind::Hello, &[0; 32])),
    ("another Accept", |raw| plain(raw, 0, FrameKind::Accept, &[0; 32])),
    ("a goodbye to one call", |raw| plain(raw, WHOLE, FrameKind::Goodbye, &[])),
    ("a goodbye with bytes", |raw| plain(raw, 0, FrameKind::Goodbye, b"!")),
    ("a refusal", |raw| violation(raw, 0, head(FrameKind::Refuse, 0, 0, 9), b"late")),
    ("status 0", |raw| bytes(raw, WHOLE, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    ("an unknown status", |raw| bytes(raw, WHOLE, &[9, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0])),
    ("an error without a code", |raw| error(raw, WHOLE, 3, &[0; 3])),
    ("an error with too much text", |raw| error(raw, WHOLE, 3, &[0; 4 + 1025])),
    ("an error of no call", |raw| error(raw, 0, 3, &[0; 4])),
];

const CALLS: [(&str, Violation); 19] = [
    ("a reply to a call in a free slot", |raw| plain(raw, 99, FrameKind::Reply, &[])),
    ("a reply to the last call of the slot", |raw| plain(raw, 0, FrameKind::Reply, &[])),
    ("a reply to the next call of the slot", |raw| plain(raw, WHOLE + 64, FrameKind::Reply, &[])),
    ("a reply to the largest id", |raw| plain(raw, u64::MAX, FrameKind::Reply, &[])),
    ("an error for a call in a free slot", |raw| error(raw, 99, 3, &[0; 4])),
    ("two replies", |raw| (0..2).for_each(|_| plain(raw, WHOLE, FrameKind::Reply, &[]))),
    ("a reply and an error", |raw| {
        plain(raw, WHOLE, FrameKind::Reply, &[]);
        error(raw, WHOLE, 3, &[0; 4]);
    }),
    ("a reply that begins with the second frame", |raw| {
        violation(raw, WHOLE, head(FrameKind::Reply, 0, 1, 0), &[])
    }),
    ("a gap in a reply", |raw| {
        violation(raw, WHOLE, head(FrameKind::Reply, MORE, 0, 0), b"1");
        violation(raw, WHOLE, head(FrameKind::Continuation, 0, 2, 0), b"3");
    }),
    ("a frame twice", |raw| {
        violation(raw, WHOLE, head(FrameKind::Reply, MORE, 0, 0), b"1");
        (0..2).for_each(|_| violation(raw, WHOLE, head(FrameKind::Continuation, MORE, 1, 0), b"2"));
    }),
    ("a gap in a stream", |raw| violation(raw, STREAMED, head(FrameKind::Chunk, 0, 7, 0), &[])),
    ("a continuation of nothing", |raw| plain(raw, WHOLE, FrameKind::Continuation, b"?")),
    ("an item in an item", |raw| {
        (0..2).for_each(|seq| violation(raw, WHOLE, head(FrameKind::Reply, MORE, seq, 0), b"1"));
    }),
    ("an empty fragment", |raw| violation(raw, WHOLE, head(FrameKind::Reply, MORE, 0, 0), &[])),
    ("a reply to a stream", |raw| plain(raw, STREAMED, FrameKind::Reply, &[])),
    ("a chunk of a whole call", |raw| plain(raw, WHOLE, FrameKind::Chunk, &[])),
    ("a chunk for an upload", |raw| plain(raw, UPLOADED, FrameKind::Chunk, &[])),
    ("the end of a whole call", |raw| plain(raw, WHOLE, FrameKind::End, &[])),
    ("a chunk after the end", |raw| {
        plain(raw, STREAMED, FrameKind::End, &[]);
        violation(raw, STREAMED, head(FrameKind::Chunk, 0, 1, 0), &[]);
    }),
];

const WINDOWS: [(&str, Violation); 17] = [
    ("an end with bytes", |raw| plain(raw, STREAMED, FrameKind::End, b"!")),
    ("a push of a call", |raw| plain(raw, WHOLE, FrameKind::Push, &[])),
    ("a reply of no call", |raw| plain(raw, 0, FrameKind::Chunk, &[])),
    ("a continuation of no push", |raw| plain(raw, 0, FrameKind::Continuation, b"?")),
    ("credit for pushes", |raw| violation(raw, 0, head(FrameKind::Credit, 0, 0, 1), &[])),
    ("credit for a whole call", |raw| violation(raw, WHOLE, head(FrameKind::Credit, 0, 0, 1), &[])),
    ("credit for a stream", |raw| violation(raw, STREAMED, head(FrameKind::Credit, 0, 0, 1), &[])),
    ("credit beyond the window", |raw| violation(raw, UPLOADED, head(FrameKind::Credit, 0, 0, 1), &[])),
    ("credit beyond any window", |raw| {
        violation(raw, UPLOADED, head(FrameKind::Credit, 0, 0, u32::MAX), &[])
    }),
    ("no credit", |raw| violation(raw, UPLOADED, head(FrameKind::Credit, 0, 0, 0), &[])),
    ("credit with bytes", |raw| violation(raw, UPLOADED, head(FrameKind::Credit, 0, 0, 1), b"!")),
    ("a reply without end", |raw| endless(raw, WHOLE, FrameKind::Reply, &[7; 10_000])),
    ("a reply without end, a byte at a time", |raw| endless(raw, WHOLE, FrameKind::Reply, &[7])),
    ("a chunk without end", |raw| endless(raw, STREAMED, FrameKind::Chunk, &[7])),
    ("chunks beyond the window", |raw| flood(raw, STREAMED, FrameKind::Chunk, 0, 0, &[7; 10_000])),
    ("empty chunks beyond the window", |raw| flood(raw, STREAMED, FrameKind::Chunk, 0, 0, &[])),
    ("empty pushes beyond the window", |raw| flood(raw, 0, FrameKind::Push, 0, 0, &[])),
];

fn violations() -> impl Iterator<Item = (&'static str, Violation)> {
    FRAMES.into_iter().chain(CALLS).chain(WINDOWS)
}

fn strict() -> Options {
    options().max_message(MAX).stream_window(WINDOW).push_window(WINDOW)
}

/// Runs one client against a hostile server. All its waits end, and the connection is closed. Returns the error of a call.
fn use_hostile_server(client: &SharedMemoryClient) -> CallError {
    let call = client.start_call(1, b"?").expect("sends");
    let mut stream = client.call_streaming(2, b"?").expect("sends");
    let upload = client.start_upload(3, b"?").expect("sends");
    let end = client.call(4, b"?").expect_err("the hostile server does not answer this one");
    let violated = |error: Option<CallError>| {
        assert!(
            matches!(error, None | Some(CallError::ConnectionLost(ConnectionError::ProtocolViolation))),
            "{error:?}"
        );
    };
    violated(call.wait().err());
    violated(stream.find_map(Result::err));
    violated(upload.finish().err());
    violated(Some(client.call(5, b"?").expect_err("over")));
    violated(Some(client.next_push().expect_err("over")));
    end
}

#[test]
fn a_client_closes_only_the_connection_to_a_hostile_server() {
    let Some(host) = Host::start(&here!(), options(), |path| {
        let listener = strict().bind(path.with_extension("hostile")).expect("binds");
        thread::spawn(move || {
            for (_, violation) in violations() {
                let mut raw = Raw::accept(&listener);
                raw.send_accept(WINDOW);
                for (id, flags) in [(WHOLE, 0), (STREAMED, STREAM), (UPLOADED, UPLOAD)] {
                    let frame = raw.receive().expect("comes");
                    let call = FrameHeader { kind: FrameKind::Call, flags, ..frame.head };
                    assert_eq!((frame.id, frame.head), (id, call));
                }
                violation(&mut raw);
                while raw.stream.recv(&mut [0; 100]).is_ok() {}
            }
        });
        serve(path, &options(), |server| server);
    }) else {
        return;
    };
    let good = host.client();
    let before = peak(std::process::id());
    for (what, _) in violations() {
        let client =
            SharedMemoryClient::builder(host.path.with_extension("hostile")).options(strict()).connect();
        let client = client.unwrap_or_else(|error| panic!("{what}: {error}"));
        let end = use_hostile_server(&client);
        assert!(
            matches!(end, CallError::ConnectionLost(ConnectionError::ProtocolViolation)),
            "{what}: {end:?}"
        );
        assert_eq!(*good.call(ECHO, what.as_bytes()).expect("goes on"), *what.as_bytes());
    }
    let more = peak(std::process::id()) - before;
    assert!(more < 64 << 10, "{more} KiB for violations of at most 100 KB");
    host.end();
}
