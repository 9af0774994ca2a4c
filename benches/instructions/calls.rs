//! Calls of 32 bytes, each side counted alone, in one thread.
//!
//! The other side is a bare stream that has sent everything beforehand: the replies that the client will need are
//! in the ring when it calls, and the requests that the server will receive are there when it begins to serve. So no side
//! waits, and the count is of the RPC layer and the stream beneath it. `client` and `server` together are one call.

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EntryPoint};
use narrows::{Options, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};

use crate::times::TIMES;

const ECHO: u32 = 1;
const END: u32 = 2;
/// Calls that may be in flight. One caller uses the same slot each time, so its ids are multiples of this.
const SLOTS: u32 = 64;
const WARM: usize = 64;

struct Calling {
    client: SharedMemoryClient,
    server: SharedMemoryStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

struct Serving {
    server: Option<SharedMemoryServer>,
    stream: Option<SharedMemoryStream>,
    client: SharedMemoryStream,
}

fn options() -> Options {
    Options::new().slots(2048).arena(4 << 20).max_calls_in_flight(SLOTS)
}

fn id(call: usize) -> u64 {
    (call as u64 + 1) * u64::from(SLOTS)
}

// Kinds of frames: see `docs/protocol-calls.md`. The frames are written by hand, since the library exports its codec to tests
// alone, with the feature `testing`, and that has failpoints on the paths that are counted.
const HELLO: u8 = 1;
const ACCEPT: u8 = 2;
const CALL: u8 = 4;
const REPLY: u8 = 8;

/// Returns a frame with this kind, no flags, sequence 0, this word, and this body.
fn frame(kind: u8, word: u32, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0], &word.to_le_bytes()[..], body].concat()
}

/// Returns the preface of a side, its first frame: version 1, and windows of 1 MiB for streams and for pushes.
fn preface(kind: u8) -> Vec<u8> {
    let window = (1_u32 << 20).to_le_bytes();
    let settings = [&b"narrows#"[..], &[1, 0, 0, 0], &window, &window, &[0; 12]].concat();
    frame(kind, 0, &settings)
}

/// Returns a client that has made some calls, and has the replies of the others in its ring.
fn calling(size: usize) -> Box<Calling> {
    let (client, mut server) = options().pair().expect("a pair");
    server.send(&preface(ACCEPT)).expect("room");
    let client = SharedMemoryClient::over_with(client, &options()).expect("a preface");
    server.recv_into(&mut Vec::new()).expect("a preface");
    let reply = frame(REPLY, 0, &vec![7; size]);
    for call in 0..WARM + TIMES {
        server.send_tagged(&reply, id(call)).expect("room");
    }
    let mut calling = Box::new(Calling { client, server, request: vec![7; size], reply: Vec::new() });
    for _ in 0..WARM {
        let Calling { client, request, reply, .. } = &mut *calling;
        client.call_into(ECHO, request, reply).expect("a reply");
    }
    calling
}

fn called(mut calling: Box<Calling>) {
    let mut last = (Vec::new(), 0);
    for _ in 0..WARM + TIMES {
        last.1 = calling.server.recv_into(&mut last.0).expect("a request").tag;
    }
    assert_eq!(calling.reply, calling.request);
    assert_eq!(last.1, id(WARM + TIMES - 1), "the ids are other ones than the replies were made for");
}

#[library_benchmark]
#[bench::x32(args = (32), setup = calling, teardown = called)]
fn client(mut calling: Box<Calling>) -> Box<Calling> {
    for _ in 0..TIMES {
        let Calling { client, request, reply, .. } = &mut *calling;
        client.call_into(ECHO, black_box(request), black_box(reply)).expect("a reply");
    }
    calling
}

/// Returns a server with all requests in its ring; the last request closes the client's connection.
fn serving(size: usize) -> Box<Serving> {
    let (mut client, stream) = options().pair().expect("a pair");
    client.send(&preface(HELLO)).expect("room");
    let call = |method| frame(CALL, method, &vec![7; size]);
    for number in 0..TIMES {
        client.send_tagged(&call(ECHO), id(number)).expect("room");
    }
    client.send_tagged(&call(END), id(TIMES)).expect("room");
    let closer = client.closer();
    let server = SharedMemoryServer::new()
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .inline(END, move |_, _| {
            closer.close();
            Ok(())
        });
    Box::new(Serving { server: Some(server), stream: Some(stream), client })
}

fn served(mut serving: Box<Serving>) {
    let sent = serving.client.stats().messages_sent;
    assert_eq!(sent, TIMES as u64 + 2);
    drop(serving.stream.take());
}

// The loop of the connection's thread, from the first request to the close; an inline method.
#[library_benchmark(
    config = LibraryBenchmarkConfig::default().tool(
        Callgrind::with_args(["--cache-sim=no"]).entry_point(EntryPoint::Custom("*ConnectionDriver*::run".into()))
    )
)]
#[bench::x32(args = (32), setup = serving, teardown = served)]
fn server(mut serving: Box<Serving>) -> Box<Serving> {
    if let (Some(server), Some(stream)) = (serving.server.take(), serving.stream.take()) {
        server.serve_stream(stream).expect("the client closes");
    }
    serving
}

library_benchmark_group!(name = one_call, benchmarks = [client, server]);
