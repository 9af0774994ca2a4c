//! Bounds of calls: limits hold in whatever order requests arrive, waits end, and a hostile peer cannot unbalance the
//! accounting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use narrows::internal::rpc::client;
use narrows::internal::rpc::server::{CallEvent, CallLimits, ServedCalls, UploadItem};
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, Status, UPLOAD};
use narrows::{
    BindError, CallError, Connection, HandlerError, Options, Reconnect, ServeError, SharedMemoryClient,
    SharedMemoryServer, SharedMemoryStream,
};

/// Longer than any step here takes on a busy machine: only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

fn comes<T>(from: &Receiver<T>, what: &str) -> T {
    from.recv_timeout(LONG).unwrap_or_else(|_| panic!("never came: {what}"))
}

/// A client may upload no more than its window until the server has sent it credit. Credit that is owed to the client and that
/// it does not receive must not pile up.
#[test]
fn an_upload_goes_no_further_than_the_credit_that_was_sent() {
    let limits =
        CallLimits { slots: 4, max_message: 1 << 20, max_fragment: 1000, window: 1024, push_window: 1024 };
    let mut table = ServedCalls::new(limits);
    let call = FrameHeader::new(FrameKind::Call, 1).with_flags(UPLOAD);
    let begun = table.on_frame(4, call, 0, |_| (), |_, _| Ok(()));
    assert_eq!(begun, Ok(CallEvent::Run(0)));
    let taken = (1..1000_u16).take_while(|seq| {
        let chunk = FrameHeader { seq: *seq, ..FrameHeader::new(FrameKind::Chunk, 0) };
        let came = table.on_frame(4, chunk, 0, |_| (), |_, _| Ok(()));
        came.is_ok() && table.next_upload(4) == Ok(Some(UploadItem::Chunk(Vec::new())))
    });
    assert_eq!(taken.count(), 1024 / 64, "chunks of 64 each of a window of 1024");
}

/// A server that answers a call before it was sent unbalances nothing, even if the slot has been given to another call.
#[test]
fn an_unsent_call_that_was_answered_is_released_alone() {
    let mut table = client::InFlightCalls::new(1, 100, 1024, 1024);
    let first = table.open(1, 0).expect("a slot");
    let answer = FrameHeader::new(FrameKind::Error, Status::Busy as u32);
    table.on_frame(first, answer, 4, |into| into.fill(0)).expect("an answer");
    let second = table.open(1, 0).expect("the slot of the first");
    table.forget_unsent(first);
    assert_eq!(table.open(1, 0), None, "the second has the only slot");
    table.on_frame(second, FrameHeader::new(FrameKind::Reply, 0), 0, |_| ()).expect("is in flight");
    assert_eq!(table.take_outcome(second, &mut Vec::new()), Some(client::CallOutcome::Reply));
}

/// Streaming methods are counted when they run, not when their requests begin to arrive.
#[test]
fn long_requests_do_not_pass_the_limit_of_streams() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = SharedMemoryServer::new().max_streams(1).streaming(1, move |_, _| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(50));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let options = Options::new().arena(1 << 12);
    let (a, b) = options.pair().expect("a pair");
    let serving = thread::spawn(move || server.serve_stream(b));
    let client = SharedMemoryClient::over_with(a, &options).expect("the handshake succeeds");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let chunks = client.call_streaming(1, &vec![1; 1 << 20]).expect("sends");
                for end in chunks {
                    assert!(matches!(end, Err(CallError::Busy(_))), "{end:?}");
                }
            });
        }
    });
    drop(client);
    serving.join().expect("no panic").expect("a hang-up");
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// A call that is not admitted counts once.
#[test]
fn a_busy_call_counts_once() {
    let server = SharedMemoryServer::new().max_streams(0).streaming(1, |_, _| Ok(()));
    let handle = server.spawn().expect("starts");
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    handle.adopt(b);
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    let end = client.call_streaming(1, b"").expect("sends").next();
    assert!(matches!(end, Some(Err(CallError::Busy(_)))), "{end:?}");
    assert_eq!(handle.stats().busy, 1);
}

/// A push that waits for a client which is then refused ends with an error.
#[test]
fn a_push_to_a_client_that_is_refused_ends() {
    let (to_pusher, connections) = mpsc::channel::<Connection>();
    let (fills, full) = mpsc::channel::<()>();
    let (report, result) = mpsc::channel();
    let full = Mutex::new(full);
    let handle = SharedMemoryServer::new()
        .on_connect(move |connection| {
            to_pusher.send(connection.clone()).expect("the pusher lives");
            comes(&full.lock().expect("no panic"), "a full window");
            thread::sleep(Duration::from_millis(50)); // It waits by now, most times.
            Err(HandlerError::new(1, "no"))
        })
        .spawn()
        .expect("starts");
    thread::spawn(move || {
        let connection = comes(&connections, "a client");
        while connection.try_push(&[1; 1000]).is_ok() {}
        fills.send(()).expect("on_connect still waits");
        let _ignored = report.send(connection.push(&[1; 1000]));
    });
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    handle.adopt(b);
    assert!(SharedMemoryClient::over(a).is_err());
    assert!(comes(&result, "the end of the push").is_err());
}

/// A client that was accepted while the server stopped is disconnected, even if pushes are left that the client does not take.
#[test]
fn a_client_that_is_accepted_while_the_server_stops_is_disconnected() {
    let (asks, asked) = mpsc::channel::<()>();
    let (lets, goes) = mpsc::channel::<()>();
    let (ends, ended) = mpsc::channel();
    let goes = Mutex::new(goes);
    let options = Options::new().arena(1 << 12);
    let handle = SharedMemoryServer::new()
        .on_connect(move |connection| {
            while connection.try_push(&[1; 1000]).is_ok() {}
            asks.send(()).expect("the test lives");
            comes(&goes.lock().expect("no panic"), "the end of the shutdown");
            Ok(())
        })
        .on_disconnect(move |_, _| {
            let _ignored = ends.send(());
        })
        .spawn()
        .expect("starts");
    let (a, b) = options.pair().expect("a pair");
    handle.adopt(b);
    let client = thread::spawn(move || SharedMemoryClient::over_with(a, &options));
    comes(&asked, "the client");
    handle.shutdown(Duration::ZERO);
    lets.send(()).expect("on_connect still waits");
    let client = client.join().expect("no panic");
    comes(&ended, "the end of the connection");
    drop(client);
}

/// A pause that overflows the clock is longer than any call waits.
#[test]
fn an_endless_pause_between_attempts_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = SharedMemoryServer::bind(&path).expect("binds").spawn().expect("starts");
    let policy = Reconnect::new().backoff(Duration::MAX, Duration::MAX).patience(Duration::MAX);
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    drop(server);
    let ends = || client.call(1, b"").expect_err("no server is left");
    assert!((0..3).any(|_| matches!(ends(), CallError::ReconnectFailed(_))));
}

/// One client has many calls of the pool in flight. The single call of another client is served in its turn, not behind all of
/// them.
#[test]
fn connections_take_turns_at_the_workers() {
    let (gate, order) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(Vec::new())));
    let (passes, served) = (Arc::clone(&gate), Arc::clone(&order));
    let handle = SharedMemoryServer::new()
        .workers(1)
        .inline(1, |_, _| Ok(()))
        .method(2, move |request, _| {
            drop(passes.lock().expect("no panic"));
            served.lock().expect("no panic").push(request.bytes()[0]);
            Ok(())
        })
        .spawn()
        .expect("starts");
    let connect = || {
        let (a, b) = SharedMemoryStream::pair().expect("a pair");
        handle.adopt(b);
        SharedMemoryClient::over(a).expect("the handshake succeeds")
    };
    let clients = [connect(), connect(), connect()];
    let closed = gate.lock().expect("no panic");
    let mut calls = Vec::new();
    for (client, (name, count)) in clients.iter().zip([(b'a', 40), (b'b', 1), (b'c', 10)]) {
        calls.extend((0..count).map(|_| client.start_call(2, &[name]).expect("sends")));
        client.call(1, &[]).expect("answers, so all calls before it have arrived");
    }
    drop(closed);
    for call in calls {
        call.wait().expect("answers");
    }
    let order = order.lock().expect("no panic");
    let last = |name: u8| order.iter().rposition(|it| *it == name).expect("was served");
    assert!(last(b'b') <= 4, "{order:?}");
    assert!(last(b'c') <= 24, "two clients take turns until the shorter queue is empty: {order:?}");
}

/// A bound of workers that is set explicitly holds for this process as well.
#[test]
fn a_process_occupies_no_more_workers_than_it_may() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = SharedMemoryServer::new().workers(4).max_workers_per_process(2).method(1, move |_, _| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(5));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let handle = server.spawn().expect("starts");
    let clients = [0; 4].map(|_| {
        let (a, b) = SharedMemoryStream::pair().expect("a pair");
        handle.adopt(b);
        SharedMemoryClient::over(a).expect("the handshake succeeds")
    });
    let start = |client: &SharedMemoryClient| client.start_call(1, &[]).expect("sends");
    let calls: Vec<_> = (0..10).flat_map(|_| clients.iter().map(start)).collect();
    for call in calls {
        call.wait().expect("answers");
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn a_number_that_is_registered_twice_is_refused() {
    let twice = || {
        SharedMemoryServer::new().inline(7, |_, _| Ok(())).inline(8, |_, _| Ok(())).method(7, |_, _| Ok(()))
    };
    let error = twice().spawn().expect_err("is refused");
    assert!(matches!(&error, BindError::BadOptions(text) if text.contains("method 7")), "{error:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let bound = SharedMemoryServer::bind(folder.path().join("socket")).expect("binds");
    let error =
        bound.streaming(1, |_, _| Ok(())).upload(1, |_, _, _| Ok(())).serve().expect_err("is refused");
    assert!(error.to_string().contains("method 1 "), "{error}");
    let (_a, b) = SharedMemoryStream::pair().expect("a pair");
    let error = twice().serve_stream(b).expect_err("is refused");
    let is_named =
        matches!(&error, ServeError::NotStarted(BindError::BadOptions(text)) if text.contains("method 7 "));
    assert!(is_named, "{error:?}");
}

#[test]
fn a_second_fallback_is_refused() {
    let twice = || SharedMemoryServer::new().fallback(|_, _| Ok(())).fallback(|_, _| Err("second".into()));
    let error = twice().spawn().expect_err("is refused");
    assert!(matches!(&error, BindError::BadOptions(text) if text.contains("fallback")), "{error:?}");
}

/// A server that cannot start because of its configuration is not reported as busy, since a retry is of no use.
#[test]
fn a_server_that_was_configured_wrongly_does_not_claim_to_be_busy() {
    let (_a, b) = SharedMemoryStream::pair().expect("a pair");
    let twice = SharedMemoryServer::new().inline(7, |_, _| Ok(())).inline(7, |_, _| Ok(()));
    let error = twice.serve_stream(b).expect_err("is refused");
    assert!(
        matches!(&error, ServeError::NotStarted(BindError::BadOptions(text)) if text.contains("method 7 ")),
        "{error:?}"
    );
}

/// How many calls may be in flight was negotiated when the connection was made.
#[test]
fn a_limit_of_calls_that_the_connection_does_not_have_is_refused() {
    let limited = || SharedMemoryServer::new().max_calls_in_flight(2).inline(1, |_, _| Ok(()));
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    let error = limited().serve_stream(b).expect_err("is refused");
    let is_named = |error: &ServeError| matches!(error, ServeError::NotStarted(BindError::BadOptions(text)) if text.contains("max_calls_in_flight"));
    assert!(is_named(&error), "{error:?}");
    drop(a);
    // A server without a path cannot serve a connection that lacks the limit.
    let error = limited().spawn().expect_err("is refused");
    let text = error.to_string();
    assert!(matches!(error, BindError::BadOptions(_)) && text.contains("max_calls_in_flight"), "{text}");
    // A connection that has the limit is served.
    let (a, b) = Options::new().max_calls_in_flight(2).pair().expect("a pair");
    let serving = thread::spawn(move || limited().serve_stream(b));
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    client.call(1, &[]).expect("answers");
    drop(client);
    serving.join().expect("no panic").expect("a hang-up");
    // The limit of a path applies to the connections that are accepted there.
    let folder = tempfile::tempdir().expect("a folder");
    let bound = SharedMemoryServer::bind(folder.path().join("socket")).expect("binds");
    let _handle = bound.max_calls_in_flight(2).spawn().expect("starts");
}

/// Processes have equal shares of the workers. While one process occupies all of them, one more worker serves the others.
#[test]
fn no_more_methods_run_at_once_than_there_are_workers() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = SharedMemoryServer::new().workers(3).method(1, move |_, _| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(5));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let handle = server.spawn().expect("starts");
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    handle.adopt(b);
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    let calls: Vec<_> = (0..30).map(|_| client.start_call(1, &[]).expect("sends")).collect();
    for call in calls {
        call.wait().expect("answers");
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
}
