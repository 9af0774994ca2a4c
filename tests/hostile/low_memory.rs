//! Processes that have little memory, or few mappings left. What a peer then sends is an error of that message, call or
//! connection, and nothing else is disturbed.
//!
//! ```text
//!   test process: clients ── long requests, uploads, many connections ──▶ server process with a limit, set when it serves
//!   client process with a limit ◀── long replies, chunks, pushes ── server process
//! ```

#![allow(unsafe_code)]

use std::thread;
use std::time::Duration;

use narrows::{
    CallError, ConnectError, ConnectionError, RecvError, RejectCode, SharedMemoryClient, SharedMemoryServer,
    SharedMemoryStream, TryRecvError,
};

use crate::support::calls::*;
use crate::support::{Kept, LONG, Watchdog, alone, argument, log, me, role, sys, whole};

/// Inline: limits the memory of the server to what it has plus this many bytes.
const LIMIT: u32 = 100;
/// Inline: leaves the server this many mappings.
const LEAVE_MAPPINGS: u32 = 101;
/// In the pool: returns the length of the request.
const LEN: u32 = 102;

/// Keeps the C library from reserving address space for each thread.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Almost the longest message.
const LONGEST: usize = 63 << 20;

fn limited(server: SharedMemoryServer) -> SharedMemoryServer {
    server
        .inline(LIMIT, |request, _| {
            sys::limit_memory(Some(u64::from_le_bytes(request.bytes().try_into().expect("a number"))));
            Ok(())
        })
        .inline(LEAVE_MAPPINGS, |request, _| {
            let left = usize::from_le_bytes(request.bytes().try_into().expect("a number"));
            sys::fill_mappings(max_mappings() - left);
            Ok(())
        })
        .method(LEN, |request, reply| {
            reply.extend_from_slice(&request.len().to_le_bytes());
            Ok(())
        })
}

fn max_mappings() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("reads");
    text.trim().parse().expect("a number")
}

fn limit(client: &SharedMemoryClient, more: u64) {
    client.call(LIMIT, &more.to_le_bytes()).expect("limits itself");
}

/// Checks that the short calls of the other client are served.
fn is_well(client: &SharedMemoryClient) {
    for method in [ECHO, POOLED] {
        assert_eq!(*client.call_timeout(method, b"short", LONG).expect("answers"), *b"short");
    }
}

#[test]
fn a_message_without_memory_is_kept_until_there_is_some() {
    const NAME: &str = "a_message_without_memory_is_kept_until_there_is_some";
    const SIZES: [(usize, u64); 3] = [(60 << 20, 32 << 20), (3 << 20, 4 << 20), (200 << 10, 2 << 20)];
    let _watchdog = Watchdog::new(NAME);
    if role().is_none() {
        for (which, size) in SIZES.iter().enumerate() {
            let status = Kept::start(me(NAME, "receiver", &which.to_string()).env(ARENAS.0, ARENAS.1)).wait();
            assert!(status.success(), "the receiver of {size:?} ended: {status}");
        }
        return;
    }
    let (len, more) = SIZES[argument().parse::<usize>().expect("a number")];
    let (mut a, mut b) = SharedMemoryStream::pair().expect("a pair");
    let (sent, mut message) = (vec![7; len], Vec::new());
    let sender = thread::spawn(move || {
        for _ in 0..3 {
            a.send(&sent).expect("is taken");
        }
        a
    });
    sys::limit_memory(Some(more));
    for _ in 0..3 {
        let short = b.recv_into(&mut message);
        assert_eq!(short, Err(RecvError::OutOfMemory { needed: len }), "of {more} bytes");
        assert!(message.is_empty());
    }
    assert_eq!(b.try_recv_into(&mut message), Err(TryRecvError::OutOfMemory { needed: len }));
    sys::limit_memory(None);
    for _ in 0..3 {
        b.recv_into(&mut message).expect("was kept");
        assert!(message.len() == len && message.iter().all(|byte| *byte == 7));
    }
    drop(sender.join().expect("no panic"));
    assert_eq!(b.recv_into(&mut message), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
}

#[test]
fn long_requests_without_memory_are_busy_and_hurt_no_other_client() {
    let host = host!(options(), limited);
    let (heavy, other) = (host.client(), host.client());
    is_well(&other);
    limit(&other, 200 << 20);
    for (method, len) in [(POOLED, LONGEST), (LEN, LONGEST), (POOLED, 20 << 20)] {
        thread::scope(|scope| {
            let calls: Vec<_> = (0..12)
                .map(|_| {
                    scope.spawn(|| match heavy.call(method, &vec![7; len]) {
                        Ok(reply) => assert!(reply.len() == len || *reply == len.to_le_bytes()),
                        Err(error) => assert!(matches!(error, CallError::Busy(_)), "{error:?}"),
                    })
                })
                .collect();
            while calls.iter().any(|call| !call.is_finished()) {
                is_well(&other);
            }
        });
    }
    assert_eq!(heavy.call(LEN, &vec![7; 16 << 20]).expect("there is room again").len(), 8);
    is_well(&heavy);
    host.end();
}

/// Many requests and uploads, none of which is long.
#[test]
fn requests_and_uploads_that_fill_the_memory_hurt_no_other_client() {
    let host = host!(options(), limited);
    let other = host.client();
    is_well(&other);
    assert_eq!(host.seen("gate in"), 0, "and its connection is there");
    limit(&other, 100 << 20);
    let clients: Vec<_> = (0..4).map(|_| host.client()).collect();
    let request = vec![7; 700 << 10];
    let (mut calls, mut uploads) = (Vec::new(), Vec::new());
    for client in &clients {
        calls.extend((0..32).map(|_| client.start_call(GATE, &request).expect("sends")));
        for _ in 0..16 {
            let mut upload = client.start_upload(GATED_UPLOAD, &[]).expect("sends");
            let chunk = vec![7; 3000];
            // As much as its window takes. The upload ends early if there was no memory.
            while upload.write_chunk_timeout(&chunk, Duration::ZERO).is_ok() {}
            uploads.push(upload);
        }
        // The gated calls of this process occupy all the workers that it may have.
        assert_eq!(*other.call_timeout(ECHO, b"short", LONG).expect("answers"), *b"short");
    }
    assert!(host.seen("gate in") > 0);
    other.call(OPEN, &[]).expect("answers");
    for call in calls {
        let end = call.wait();
        let expected =
            matches!(&end, Ok(reply) if **reply == *request) || matches!(end, Err(CallError::Busy(_)));
        assert!(expected, "{:?}", end.err());
    }
    for upload in uploads {
        let end = upload.finish_timeout(LONG);
        let expected = matches!(end, Ok(_) | Err(CallError::Busy(_) | CallError::OutOfMemory));
        assert!(expected, "{end:?}");
    }
    is_well(&other);
    host.end();
}

#[test]
fn replies_chunks_and_pushes_without_memory_are_errors_and_the_connection_goes_on() {
    const NAME: &str = "replies_chunks_and_pushes_without_memory_are_errors_and_the_connection_goes_on";
    if role().as_deref() == Some("client") {
        return poor_client();
    }
    let host = host!(options());
    drop(host.client());
    let status =
        Kept::start(me(NAME, "client", host.path.to_str().expect("plain")).env(ARENAS.0, ARENAS.1)).wait();
    assert!(status.success(), "the client ended: {status}");
    assert!(host.seen("stream Cancelled") + host.seen("stream Ok") >= 1, "its stream was cancelled");
    host.end();
}

fn poor_client() {
    let client = SharedMemoryClient::builder(argument()).options(options()).connect().expect("connects");
    is_well(&client);
    let big = |len: usize| client.call_timeout(BIG, &len.to_le_bytes(), LONG);
    let no_memory = |end: Option<CallError>| assert!(matches!(end, Some(CallError::OutOfMemory)), "{end:?}");
    sys::limit_memory(Some(2_500_000)); // Less than what is kept for others, so that there is none for long messages.
    for _ in 0..3 {
        no_memory(big(LONGEST).err());
        no_memory(big(50_000).err());
        no_memory(big(300_000).err());
        let pending = client.start_call(BIG, &300_000_usize.to_le_bytes()).expect("sends");
        no_memory(pending.wait().err());
        let counts = [100_u32.to_le_bytes(), 500_000_u32.to_le_bytes()].concat();
        let mut stream = client.call_streaming(STREAM, &counts).expect("sends");
        no_memory(stream.next_chunk().err());
        assert!(stream.next().is_none());
        assert_eq!(*client.call(PUSH_LONG, &300_000_usize.to_le_bytes()).expect("pushes"), *b"Ok(())");
        no_memory(client.next_push().err());
        is_well(&client);
    }
    assert_eq!(*client.call(PUSH, b"short").expect("pushes"), *b"Ok(())");
    assert_eq!(client.next_push().expect("comes"), b"short");
    sys::limit_memory(None);
    assert_eq!(big(LONGEST).expect("there is memory again").len(), LONGEST);
}

/// Connects until the server reports that it is busy, at most `most` times. Returns the connections, and whether it was busy.
fn connect_until_busy(host: &Host, most: usize) -> (Vec<SharedMemoryClient>, bool) {
    let mut clients = Vec::new();
    while clients.len() < most {
        match SharedMemoryClient::builder(&host.path).options(options()).connect() {
            Ok(client) => clients.push(client),
            Err(ConnectError::Rejected { code: RejectCode::Busy, .. }) => return (clients, true),
            // The memory for the handshake runs out before that for the thread: there is no answer, but no abort either.
            Err(error) => {
                log(&format!("after {} connections: {error}", clients.len()));
                return (clients, false);
            }
        }
    }
    (clients, false)
}

fn with_many(server: SharedMemoryServer) -> SharedMemoryServer {
    limited(server).max_connections(100_000).queue(100_000)
}

#[test]
fn connections_beyond_the_limit_of_mappings_are_busy() {
    if !alone("connections_beyond_the_limit_of_mappings_are_busy") {
        return;
    }
    let most = max_mappings();
    if most > 2_000_000 {
        return log("not tested: vm.max_map_count is too high to be reached");
    }
    sys::raise_descriptor_limit();
    let host = host!(options(), with_many);
    let first = host.client();
    is_well(&first);
    first.call(LEAVE_MAPPINGS, &1200_usize.to_le_bytes()).expect("fills them");
    let (mut clients, busy) = connect_until_busy(&host, 400);
    assert!(busy, "{} connections", clients.len());
    assert!(!clients.is_empty());
    is_well(&first);
    clients.iter().for_each(is_well);
    // A method with a thread of its own needs mappings too.
    let stream = first.call_streaming(STREAM, &[1_u32.to_le_bytes(); 2].concat()).expect("sends").next();
    assert!(matches!(stream, Some(Ok(_) | Err(CallError::Busy(_)))), "{stream:?}");
    clients.truncate(1);
    assert!(crate::support::eventually(|| host.stat("connections") < 5));
    assert!(!connect_until_busy(&host, 3).1, "there is room again");
    host.end();
}

#[test]
fn connections_beyond_the_address_space_are_refused() {
    let host = host!(options(), with_many);
    let first = host.client();
    is_well(&first);
    limit(&first, 150 << 20);
    let (mut clients, busy) = connect_until_busy(&host, 2000);
    assert!(busy || clients.len() < 2000, "{} connections", clients.len());
    is_well(&first);
    clients.iter().for_each(is_well);
    clients.clear();
    assert!(crate::support::eventually(|| !connect_until_busy(&host, 3).0.is_empty()), "there is room again");
    is_well(&first);
    host.end();
}

/// A program that locks its memory and may lock as much as the usual limit allows.
#[test]
fn a_program_that_locks_its_memory_connects_within_the_usual_limit() {
    const NAME: &str = "a_program_that_locks_its_memory_connects_within_the_usual_limit";
    let _watchdog = Watchdog::new(NAME);
    let Some(role) = role() else {
        if sys::effective_user() != 0 {
            return log("skipped: only root can become a user whose memory is counted");
        }
        for bytes in [8 << 20, 64 << 10] {
            let status = Kept::start(me(NAME, "locks", &bytes.to_string()).env(ARENAS.0, ARENAS.1)).wait();
            assert!(status.success(), "{bytes} bytes: {status}");
        }
        return;
    };
    assert_eq!(role, "locks");
    let bytes = argument().parse().expect("a number");
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: reads a live local; the others take numbers, and change this process alone.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        assert_eq!(libc::setgid(23_417), 0);
        assert_eq!(libc::setuid(23_417), 0);
        assert_eq!(libc::mlockall(libc::MCL_FUTURE), 0);
    }
    let pair = SharedMemoryStream::pair();
    if bytes < 1 << 20 {
        let error = pair.map(drop).expect_err("no memory may be locked");
        assert!(whole(&error).contains("RLIMIT_MEMLOCK"), "{error}");
        assert!(!whole(&error).contains("RLIMIT_AS"), "{error}");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::OutOfMemory);
        return;
    }
    let (mut a, mut b) = pair.expect("a pair");
    a.send(b"locked").expect("sends");
    assert_eq!(b.recv(&mut [0; 8]).map(|it| it.len), Ok(6));
}
