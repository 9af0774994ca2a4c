//! Requests that are too long, too many calls at once, and calls that would wait for themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use narrows::{BusyReason, CallError, ConnectError, RejectCode, SharedMemoryClient, SharedMemoryServer};

use crate::support::calls::{
    ECHO, GATE, GATED_STREAM, LONG_CHUNKS, OPEN, POOLED, PUSH, PUSH_BRIEFLY, PUSH_LONG, STUBBORN, TRY_PUSH,
    UPLOAD, host, note, options,
};
use crate::support::{Fork, LONG, alone, eventually};

/// What a chunk or push costs beside its bytes.

#[test]
fn requests_and_chunks_that_are_too_long_are_not_sent() {
    let host = host!(options().max_message(1000));
    let client = host.client();
    let too_large = |result: Option<CallError>, most: usize| match result {
        Some(CallError::TooLarge { len, max }) => assert_eq!((len, max), (most + 1, most)),
        other => panic!("{other:?}"),
    };
    let long = [1; 1001];
    assert_eq!(*client.call(ECHO, &long[1..]).expect("fits"), long[1..]);
    too_large(client.call(ECHO, &long).err(), 1000);
    too_large(client.start_call(ECHO, &long).err(), 1000);
    too_large(client.call_streaming(LONG_CHUNKS, &long).err(), 1000);
    too_large(client.start_upload(UPLOAD, &long).err(), 1000);
    too_large(client.start_duplex(UPLOAD, &long).err(), 1000);
    too_large(client.notify(ECHO, &long).err(), 1000);
    let mut upload = client.start_upload(UPLOAD, &[]).expect("sends");
    assert_eq!(upload.max_chunk(), 1000);
    upload.write_chunk(&long[1..]).expect("fits");
    too_large(upload.write_chunk(&long).err(), 1000);
    assert_eq!(*upload.finish().expect("goes on"), 1000_u64.to_le_bytes());
    assert_eq!((client.stats().in_flight, client.stats().calls), (0, 2), "nothing else was sent");
    host.end();
}

#[test]
fn a_chunk_or_push_is_at_most_three_quarters_of_a_window() {
    let host = host!(options().stream_window(2000).push_window(3000));
    let client = host.client_with(&options().stream_window(1024).push_window(1500));
    let chunks: Vec<_> = client.call_streaming(LONG_CHUNKS, &[]).expect("sends").collect();
    assert!(matches!(&chunks[..], [Ok(chunk)] if chunk.len() == 704), "{chunks:?}");
    host.sees("Err(TooLarge { len: 705, max: 704 })", 1);
    let mut upload = client.start_upload(UPLOAD, &[]).expect("sends");
    assert_eq!(upload.max_chunk(), 704, "the smaller of both sizes holds in both directions");
    assert!(matches!(upload.write_chunk(&[1; 705]), Err(CallError::TooLarge { len: 705, max: 704 })));
    upload.write_chunk(&[1; 704]).expect("fits");
    upload.finish().expect("ends");
    let push = |len: usize| client.call(PUSH_LONG, &len.to_le_bytes()).expect("answers").into_vec();
    assert_eq!(push(1062), b"Err(TooLarge { len: 1062, max: 1061 })");
    assert_eq!(push(1061), b"Ok(())");
    assert_eq!(client.next_push().expect("comes").len(), 1061);
    host.end();
}

#[test]
fn a_full_queue_is_busy() {
    let mut host = host!(options(), |server: SharedMemoryServer| server.workers(1).queue(1));
    let client = host.client();
    let first = client.start_call(GATE, b"1").expect("sends");
    host.sees("gate in", 1);
    let second = client.start_call(GATE, b"2").expect("sends");
    let third = client.call(POOLED, b"3");
    assert!(matches!(third, Err(CallError::Busy(BusyReason::Queue))), "{third:?}");
    assert_eq!(*client.call(ECHO, b"4").expect("inline methods need no worker"), *b"4");
    assert_eq!(host.stat("busy"), 1);
    host.send("open");
    assert_eq!(*first.wait().expect("answers"), *b"1");
    assert_eq!(*second.wait().expect("answers"), *b"2");
    assert_eq!(*client.call(POOLED, b"5").expect("there is room again"), *b"5");
    host.end();
}

#[test]
fn one_stream_more_than_a_client_may_have_is_busy() {
    let mut host = host!(options(), |server: SharedMemoryServer| server.max_streams(1));
    let (client, other) = (host.client(), host.client());
    let mut first = client.call_streaming(GATED_STREAM, b"1").expect("sends");
    assert_eq!(first.next_chunk().expect("comes"), Some(b"1".to_vec()));
    let mut second = client.call_streaming(GATED_STREAM, b"2").expect("sends");
    let error = second.next_chunk();
    assert!(matches!(&error, Err(CallError::Busy(_))), "{error:?}");
    assert!(matches!(second.next_chunk(), Ok(None)), "an error comes once");
    let upload = client.start_upload(UPLOAD, b"3").expect("sends").finish();
    assert!(matches!(&upload, Err(CallError::Busy(_))), "{upload:?}");
    other.start_upload(UPLOAD, &[]).expect("sends").finish().expect("another client has a limit of its own");
    host.send("open");
    assert_eq!(first.next_chunk().expect("ends"), None);
    let mut again = || client.start_upload(UPLOAD, &[]).expect("sends").finish().is_ok();
    assert!(eventually(&mut again), "there is room again once the method has returned");
    host.end();
}

#[test]
fn a_client_that_has_its_reply_may_call_again_at_once() {
    let host = host!(options(), |server: SharedMemoryServer| server.max_streams(1));
    let client = host.client_with(&options().max_calls_in_flight(1));
    for i in 0..3000_u32 {
        let request = i.to_le_bytes();
        assert_eq!(*client.call(POOLED, &request).expect("there is room for one"), request);
        let end = client.start_upload(UPLOAD, &[]).expect("sends").finish();
        assert_eq!(*end.expect("there is room for one"), 0_u64.to_le_bytes());
    }
    assert_eq!(host.stat("busy"), 0);
    host.end();
}

#[test]
fn methods_that_do_not_heed_a_cancel_do_not_pile_up() {
    let mut host = host!(options(), |server: SharedMemoryServer| server.max_calls_in_flight(1).workers(8));
    let client = host.client();
    for i in 1..=2 {
        let call = client.start_call(STUBBORN, &[]).expect("sends");
        host.sees("stubborn in", i);
        drop(call);
    }
    let third = client.call(POOLED, &[]);
    assert!(matches!(&third, Err(CallError::Busy(_))), "{third:?}");
    assert_eq!(*client.call(ECHO, b"inline").expect("runs"), *b"inline");
    host.send("open");
    host.sees("stubborn out", 2);
    assert!(eventually(|| client.call(POOLED, &[]).is_ok()), "they have returned");
    host.end();
}

#[test]
fn one_connection_too_many_is_refused_as_busy() {
    let host = host!(options(), |server: SharedMemoryServer| server.max_connections(1));
    let only = host.client();
    for _ in 0..3 {
        match SharedMemoryClient::builder(&host.path).options(options()).connect() {
            Err(ConnectError::Rejected { code: RejectCode::Busy, text }) => {
                assert_eq!(text, "try again later")
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(*only.call(ECHO, b"in").expect("is served"), *b"in");
    drop(only);
    let _next = host.client(); // Succeeds as soon as the server has seen that the first client is gone.
    host.end();
}

#[test]
fn an_inline_method_does_not_wait_for_its_own_connection() {
    let host = host!(options());
    // Two of 500 bytes do not fit the smallest window.
    let client = host.client_with(&options().push_window(1024));
    let call = |method| String::from_utf8(client.call(method, &[1; 500]).expect("answers").into_vec());
    assert_eq!(call(PUSH).as_deref(), Ok("Ok(())"));
    assert_eq!(call(PUSH).as_deref(), Ok("Err(WouldDeadlock)"));
    assert!(call(TRY_PUSH).expect("text").starts_with("Err(WouldBlock"));
    assert_eq!(call(PUSH_BRIEFLY).as_deref(), Ok("Err(Timeout)"), "a worker waits");
    assert_eq!(client.try_next_push().expect("comes"), [1; 500]);
    assert_eq!(call(PUSH).as_deref(), Ok("Ok(())"), "there is room again");
    assert_eq!(client.next_push().expect("comes"), [1; 500]);
    assert!(matches!(client.try_next_push(), Err(CallError::WouldBlock)), "what did not fit was not sent");
    host.end();
}

/// This process has twenty connections and could occupy all four workers, but another process is served.
#[test]
fn one_process_does_not_occupy_all_workers() {
    if !alone("one_process_does_not_occupy_all_workers") {
        return;
    }
    let host = host!(options(), |server: SharedMemoryServer| server.workers(4).max_connections(100));
    let clients: Vec<_> = (0..20).map(|_| host.client()).collect();
    let start = |client: &SharedMemoryClient| client.start_call(STUBBORN, b"held").expect("sends");
    let held: Vec<_> = clients.iter().flat_map(|client| (0..40).map(move |_| start(client))).collect();
    host.sees("stubborn in", 4);
    let path = host.path.clone();
    let other = Fork::run(move || {
        let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
        let answers = |_| client.call_timeout(POOLED, b"quick", LONG).is_ok_and(|reply| *reply == *b"quick");
        i32::from(!(0..50).all(answers))
    });
    assert_eq!(other.wait(), 0, "the other process is served");
    assert_eq!(host.seen("stubborn in"), 4, "the worker that is left to other processes serves those");
    host.client().call(OPEN, &[]).expect("answers");
    // Half of the queue is this process's; the others were refused, with the reason.
    let (mut served, mut busy) = (0, 0);
    for call in held {
        match call.wait() {
            Ok(_) => served += 1,
            Err(CallError::Busy(reason)) => {
                assert_eq!(reason, BusyReason::ProcessQueue);
                busy += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(served >= 512 && busy > 0, "{served} were served, {busy} were refused");
    host.end();
}

/// The worker that is left to others serves while one process occupies all workers, and at no other time.
#[test]
fn no_more_methods_run_than_there_are_workers_while_no_process_occupies_all() {
    if !alone("no_more_methods_run_than_there_are_workers_while_no_process_occupies_all") {
        return;
    }
    const METHOD: u32 = 100;
    let host = host!(options(), |server: SharedMemoryServer| {
        let now = AtomicUsize::new(0);
        server.workers(2).method(METHOD, move |_, _| {
            if now.fetch_add(1, Ordering::SeqCst) >= 2 {
                note("too many");
            }
            thread::sleep(Duration::from_millis(2));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    });
    let _it_listens = host.client();
    let forks = [0; 4].map(|_| {
        let path = host.path.clone();
        Fork::run(move || {
            let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
            i32::from(!(0..50).all(|_| client.call(METHOD, &[]).is_ok()))
        })
    });
    for fork in forks {
        assert_eq!(fork.wait(), 0, "all are served");
    }
    assert_eq!(host.seen("too many"), 0);
    host.end();
}

#[test]
fn one_process_does_not_have_all_connections() {
    if !alone("one_process_does_not_have_all_connections") {
        return;
    }
    let host = host!(options(), |server: SharedMemoryServer| server.max_connections(8));
    let mut clients: Vec<_> = (0..4).map(|_| host.client()).collect();
    let connect = || SharedMemoryClient::builder(&host.path).options(options()).connect();
    match connect() {
        Err(ConnectError::Rejected { code: RejectCode::Busy, text }) => {
            assert!(text.contains("process"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let path = host.path.clone();
    let other = Fork::run(move || {
        let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
        i32::from(client.call_timeout(ECHO, &[], LONG).is_err())
    });
    assert_eq!(other.wait(), 0, "another process is accepted");
    clients.pop();
    assert!(eventually(|| connect().is_ok()), "a connection that has ended makes room for another");
    drop(clients);
    host.end();
}
