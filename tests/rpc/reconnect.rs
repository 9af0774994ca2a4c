//! Clients across restarts of their server: calls that never began are sent again, no call blocks, clients reconnect, and pushes
//! go on.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Watchdog, eventually as comes_true};
use narrows::{
    CallError, ConnectError, ConnectionError, Options, Reconnect, ServerHandle, SharedMemoryClient,
    SharedMemoryServer, SharedMemoryStream,
};

const COUNT: u32 = 1;
const PUSH: u32 = 2;
const HOLD: u32 = 3;

const LONG: Duration = Duration::from_secs(60);

fn serve(path: &Path, ran: &Arc<AtomicU64>) -> ServerHandle {
    let ran = Arc::clone(ran);
    let server = SharedMemoryServer::bind(path).expect("binds");
    let server = server.method(COUNT, move |request, reply| {
        ran.fetch_add(1, Ordering::SeqCst);
        reply.extend(request.bytes());
        Ok(())
    });
    let server = server.inline(PUSH, |request, _| {
        request.connection().try_push(request.bytes())?;
        Ok(())
    });
    server.spawn().expect("serves")
}

#[test]
fn calls_go_through_graceful_restarts_and_each_runs_once() {
    let _watchdog = Watchdog::new("calls_go_through_graceful_restarts_and_each_runs_once");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, over) = (Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
    let mut server = serve(&path, &ran);
    let policy = Reconnect::new().patience(LONG).retry_unserved(LONG);
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    let good = AtomicU64::new(0);
    let _last = thread::scope(|scope| {
        for caller in 0..4_u64 {
            let (client, good, over) = (&client, &good, &over);
            scope.spawn(move || {
                let mut number = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    let request = (number * 4 + caller).to_le_bytes();
                    let reply =
                        client.call(COUNT, &request).expect("a graceful restart refuses nothing for good");
                    assert_eq!(*reply, request);
                    good.fetch_add(1, Ordering::SeqCst);
                    number += 1;
                }
            });
        }
        for restart in 1..=5 {
            let before = good.load(Ordering::SeqCst);
            assert!(comes_true(|| good.load(Ordering::SeqCst) > before + 50));
            assert_eq!(server.shutdown(LONG).cut_off, 0, "restart {restart}");
            server = serve(&path, &ran);
        }
        over.store(true, Ordering::Relaxed);
        server // It serves until the last call has its answer.
    });
    assert_eq!(ran.load(Ordering::SeqCst), good.load(Ordering::SeqCst), "each call ran once");
    assert_eq!(client.stats().reconnects, 5);
}

#[test]
fn without_the_policy_nothing_is_sent_again() {
    let _watchdog = Watchdog::new("without_the_policy_nothing_is_sent_again");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let ran = Arc::new(AtomicU64::new(0));
    let server = serve(&path, &ran);
    let client = SharedMemoryClient::builder(&path).reconnect(Reconnect::new()).connect().expect("connects");
    client.call(COUNT, b"").expect("answers");
    thread::scope(|scope| {
        let calls = scope.spawn(|| {
            loop {
                if let Err(error) = client.call_timeout(COUNT, b"", Duration::from_millis(500)) {
                    break error;
                }
            }
        });
        drop(server);
        let error = calls.join().expect("ends");
        let expected = matches!(
            error,
            CallError::ShuttingDown
                | CallError::ConnectionLost(ConnectionError::Disconnected)
                | CallError::ReconnectFailed(_)
                | CallError::Timeout
        );
        assert!(expected, "{error:?}");
    });
}

/// The retries end with the call's own deadline, though the server never comes back.
#[test]
fn retries_end_at_the_deadline_of_the_call() {
    let _watchdog = Watchdog::new("retries_end_at_the_deadline_of_the_call");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = serve(&path, &Arc::default());
    let policy = Reconnect::new().patience(LONG).retry_unserved(LONG);
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    drop(server);
    let began = Instant::now();
    let error = client.call_timeout(COUNT, b"", Duration::from_millis(200)).map(drop).expect_err("no server");
    assert!(began.elapsed() < LONG / 2, "{error:?} after {:?}", began.elapsed());
}

#[test]
fn a_client_that_never_blocks_reconnects_too() {
    let _watchdog = Watchdog::new("a_client_that_never_blocks_reconnects_too");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let ran = Arc::new(AtomicU64::new(0));
    let server = serve(&path, &ran);
    let connected = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&connected);
    let policy = Reconnect::new().on_connected(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    assert!(client.is_connected());
    drop(server);
    assert!(comes_true(|| !client.is_connected()));
    let began = Instant::now();
    for _ in 0..10 {
        client.try_start_call(COUNT, b"").map(drop).expect_err("no server");
        let error = client.start_call_timeout(COUNT, b"", Duration::ZERO).map(drop).expect_err("no server");
        assert!(matches!(error, CallError::ReconnectFailed(_) | CallError::Timeout), "{error:?}");
    }
    assert!(began.elapsed() < LONG / 4, "it blocked: {:?}", began.elapsed());
    let _again = serve(&path, &ran);
    // As the loop of a user interface does: one call in each frame, none of which waits.
    let call = || client.try_start_call(COUNT, b"frame").and_then(|pending| pending.wait());
    assert!(comes_true(|| call().is_ok_and(|reply| *reply == *b"frame")));
    assert_eq!(connected.load(Ordering::SeqCst), 1);
    assert!(client.is_connected());
}

#[test]
fn pushes_go_on_over_a_restart_and_end_when_the_client_is_closed() {
    let _watchdog = Watchdog::new("pushes_go_on_over_a_restart_and_end_when_the_client_is_closed");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = serve(&path, &Arc::default());
    let client = SharedMemoryClient::builder(&path).reconnect(Reconnect::new()).connect().expect("connects");
    let taken = AtomicU64::new(0);
    thread::scope(|scope| {
        let listener = scope.spawn(|| {
            for push in client.pushes() {
                push.expect("no error comes between");
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
        client.call(PUSH, b"first").expect("answers");
        assert!(comes_true(|| taken.load(Ordering::SeqCst) == 1));
        drop(server);
        thread::sleep(Duration::from_millis(100));
        assert!(!listener.is_finished(), "it waits for the next server");
        let _again = serve(&path, &Arc::default());
        assert!(comes_true(|| client.call(PUSH, b"second").is_ok()));
        assert!(comes_true(|| taken.load(Ordering::SeqCst) >= 2));
        client.close();
        listener.join().expect("ends");
    });
}

#[test]
fn a_size_that_the_connection_does_not_have_is_refused() {
    let (a, _b) = SharedMemoryStream::pair().expect("pair");
    let options = Options::new().max_calls_in_flight(256);
    match SharedMemoryClient::over_with(a, &options).map(drop) {
        Err(ConnectError::BadOptions(text)) => assert!(text.contains("max_calls_in_flight"), "{text}"),
        other => panic!("{other:?}"),
    }
    let (a, b) = options.pair().expect("pair");
    let server = SharedMemoryServer::new().spawn().expect("serves");
    server.adopt(b);
    SharedMemoryClient::over_with(a, &options.stream_window(4096))
        .expect("the connection was made with them");
}

/// More callers than slots: each free slot goes to one of them, whatever the deadlines of the others are.
#[test]
fn callers_that_wait_for_a_slot_all_get_one() {
    let _watchdog = Watchdog::new("callers_that_wait_for_a_slot_all_get_one");
    let options = Options::new().max_calls_in_flight(2);
    let (a, b) = options.pair().expect("pair");
    let server = SharedMemoryServer::new().inline(COUNT, |request, reply| {
        reply.extend(request.bytes());
        Ok(())
    });
    let server = server.spawn().expect("serves");
    server.adopt(b);
    let client = SharedMemoryClient::over_with(a, &options).expect("the handshake succeeds");
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for caller in 0..24_u64 {
            let (client, answered) = (&client, &answered);
            scope.spawn(move || {
                for number in 0..200_u64 {
                    // Some give up while they are chosen for a slot.
                    let result = match (caller + number) % 3 {
                        0 => client.call_timeout(COUNT, b"x", Duration::from_micros(number % 40)).map(drop),
                        _ => client.call_timeout(COUNT, b"x", LONG).map(drop),
                    };
                    match result {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(CallError::Timeout) if (caller + number) % 3 == 0 => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
    assert!(answered.load(Ordering::Relaxed) >= 24 * 200 * 2 / 3);
}

/// A server whose method `HOLD` runs until `let_go` is set.
fn serve_held(path: &Path, ran: &Arc<AtomicU64>, let_go: &Arc<AtomicBool>) -> ServerHandle {
    let (ran, let_go) = (Arc::clone(ran), Arc::clone(let_go));
    let server = SharedMemoryServer::bind(path).expect("binds");
    let server = server.inline(COUNT, |request, reply| {
        reply.extend(request.bytes());
        Ok(())
    });
    let server = server.inline(PUSH, |request, _| {
        request.connection().try_push(request.bytes())?;
        Ok(())
    });
    let server = server.method(HOLD, move |request, reply| {
        ran.fetch_add(1, Ordering::SeqCst);
        while !let_go.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        reply.extend(request.bytes());
        Ok(())
    });
    server.spawn().expect("serves")
}

/// Each `Duration` of a policy may be one that overflows the clock.
#[test]
fn durations_too_long_for_the_clock_do_not_stop_a_client_from_reconnecting() {
    let _watchdog = Watchdog::new("durations_too_long_for_the_clock_do_not_stop_a_client_from_reconnecting");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = serve(&path, &Arc::default());
    let policy = Reconnect::new()
        .backoff(Duration::from_millis(10), Duration::MAX)
        .patience(Duration::MAX)
        .retry_unserved(Duration::MAX);
    let options = Options::new().handshake_timeout(Duration::MAX);
    let builder = SharedMemoryClient::builder(&path).options(options).reconnect(policy);
    let client = builder.connect().expect("connects");
    drop(server);
    assert!(comes_true(|| client.try_start_call(COUNT, b"").is_err()));
    let _again = serve(&path, &Arc::default());
    let call = || client.try_start_call(COUNT, b"x").and_then(|pending| pending.wait());
    assert!(comes_true(|| call().is_ok_and(|reply| *reply == *b"x")));
}

#[test]
fn a_callback_that_panics_does_not_stop_a_client_from_reconnecting() {
    let _watchdog = Watchdog::new("a_callback_that_panics_does_not_stop_a_client_from_reconnecting");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = serve(&path, &Arc::default());
    let (panicked, connected) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (panics, notices) = (Arc::clone(&panicked), Arc::clone(&connected));
    let policy = Reconnect::new()
        .on_loss(move |_| {
            panics.fetch_add(1, Ordering::SeqCst);
            panic!("the test's own panic in on_loss");
        })
        .on_connected(move || {
            notices.fetch_add(1, Ordering::SeqCst);
        });
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    drop(server);
    assert!(comes_true(|| client.try_start_call(COUNT, b"").is_err()));
    assert!(comes_true(|| panicked.load(Ordering::SeqCst) == 1), "the thread in the background reports");
    let _again = serve(&path, &Arc::default());
    let call = || client.try_start_call(COUNT, b"x").and_then(|pending| pending.wait());
    assert!(comes_true(|| call().is_ok_and(|reply| *reply == *b"x")));
    assert_eq!((panicked.load(Ordering::SeqCst), connected.load(Ordering::SeqCst)), (1, 1));
}

/// With a patience that is shorter than any handshake, the client still makes one attempt.
#[test]
fn a_policy_without_patience_makes_one_attempt() {
    let _watchdog = Watchdog::new("a_policy_without_patience_makes_one_attempt");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for patience in [Duration::ZERO, Duration::from_nanos(1)] {
        let server = serve(&path, &Arc::default());
        let policy = Reconnect::new().patience(patience);
        let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
        drop(server);
        assert!(comes_true(|| !client.is_connected()));
        let error = client.call(COUNT, b"").expect_err("no server");
        assert!(matches!(error, CallError::ReconnectFailed(_)), "{error:?}");
        let _again = serve(&path, &Arc::default());
        assert!(comes_true(|| client.call(COUNT, b"").is_ok()));
    }
}

/// Callers that reconnect wait in each stage of it: in a full backlog, in the handshake, in the preface, and for the caller that
/// connects.
#[test]
fn closing_ends_callers_that_reconnect_in_any_stage() {
    let _watchdog = Watchdog::new("closing_ends_callers_that_reconnect_in_any_stage");
    for stage in ["backlog", "handshake", "preface"] {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let server = serve(&path, &Arc::default());
        let builder = SharedMemoryClient::builder(&path);
        let builder = builder.options(Options::new().handshake_timeout(LONG * 4));
        let client = builder.reconnect(Reconnect::new().patience(LONG * 4)).connect().expect("connects");
        drop(server);
        assert!(comes_true(|| !client.is_connected()));
        // It accepts streams, and answers no preface over them.
        let listener = Options::new().backlog(1).bind(&path).expect("binds");
        let filled = || UnixStream::connect(&path).expect("connects");
        let _filled = (stage == "backlog").then(|| [filled(), filled()]);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..3).map(|_| scope.spawn(|| client.call(COUNT, b"").map(drop))).collect();
            let _silent = (stage == "preface").then(|| listener.accept_timeout(LONG).expect("accepts"));
            thread::sleep(Duration::from_millis(200));
            assert!(callers.iter().all(|caller| !caller.is_finished()), "{stage}");
            let began = Instant::now();
            client.close();
            for caller in callers {
                let result = caller.join().expect("ends");
                assert!(
                    matches!(result, Err(CallError::ConnectionLost(ConnectionError::Closed))),
                    "{stage}: {result:?}"
                );
            }
            assert!(began.elapsed() < LONG / 2, "{stage}: {:?}", began.elapsed());
        });
    }
}

#[test]
fn calls_go_to_the_new_server_while_the_old_one_completes_its_own() {
    let _watchdog = Watchdog::new("calls_go_to_the_new_server_while_the_old_one_completes_its_own");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (losses, reports) = channel();
    let old = serve_held(&path, &ran, &let_go);
    let policy = Reconnect::new().retry_unserved(LONG).on_loss(move |lost| {
        losses.send((lost.reason.to_string(), lost.calls.len(), lost.pushes)).expect("the test listens");
    });
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    thread::scope(|scope| {
        let held = client.start_call(HOLD, b"held").expect("sends");
        assert!(comes_true(|| ran.load(Ordering::SeqCst) == 1));
        client.call(PUSH, b"from the old one").expect("answers");
        let shutdown = scope.spawn(|| old.shutdown(LONG));
        assert!(comes_true(|| !path.exists()), "it binds no longer");
        let _new = serve(&path, &Arc::default());
        for _ in 0..3 {
            assert_eq!(*client.call(COUNT, b"new").expect("the new server answers"), *b"new");
        }
        assert!(!shutdown.is_finished() && reports.try_recv().is_err());
        assert_eq!(client.stats().reconnects, 1);
        assert_eq!(client.next_push().expect("what has come is not lost"), b"from the old one");
        let_go.store(true, Ordering::SeqCst);
        assert_eq!(*held.wait().expect("is served to its end"), *b"held");
        assert_eq!(shutdown.join().expect("ends").cut_off, 0);
    });
    let (_, calls, pushes) = reports.recv_timeout(LONG).expect("the end of the old connection is reported");
    assert_eq!((calls, pushes, ran.load(Ordering::SeqCst)), (0, 0, 1));
    assert!(reports.try_recv().is_err(), "once");
}

#[test]
fn calls_that_an_old_server_cuts_off_after_a_new_one_has_started_are_reported() {
    let _watchdog =
        Watchdog::new("calls_that_an_old_server_cuts_off_after_a_new_one_has_started_are_reported");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (losses, reports) = channel();
    let old = serve_held(&path, &ran, &let_go);
    let policy = Reconnect::new().retry_unserved(LONG).on_loss(move |lost| {
        let methods: Vec<_> = lost.calls.iter().map(|call| call.method).collect();
        losses.send(methods).expect("the test listens");
    });
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    thread::scope(|scope| {
        let held = client.start_call(HOLD, b"held").expect("sends");
        assert!(comes_true(|| ran.load(Ordering::SeqCst) == 1));
        let shutdown = scope.spawn(|| old.shutdown(LONG / 30));
        assert!(comes_true(|| !path.exists()), "it binds no longer");
        let _new = serve(&path, &Arc::default());
        client.call(COUNT, b"new").expect("the new server answers");
        // No thread calls any more: the report does not wait for the next call.
        assert_eq!(reports.recv_timeout(LONG).expect("the loss is reported"), [HOLD]);
        assert!(matches!(held.wait().expect_err("it was cut off"), CallError::ConnectionLost(_)));
        let_go.store(true, Ordering::SeqCst);
        shutdown.join().expect("ends");
    });
    assert_eq!(ran.load(Ordering::SeqCst), 1, "what may have run is not sent again");
}

#[test]
fn closing_ends_calls_that_an_old_server_still_serves() {
    let _watchdog = Watchdog::new("closing_ends_calls_that_an_old_server_still_serves");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let old = serve_held(&path, &ran, &let_go);
    let policy = Reconnect::new().retry_unserved(LONG);
    let client = SharedMemoryClient::builder(&path).reconnect(policy).connect().expect("connects");
    thread::scope(|scope| {
        let held = client.start_call(HOLD, b"held").expect("sends");
        assert!(comes_true(|| ran.load(Ordering::SeqCst) == 1));
        let shutdown = scope.spawn(|| old.shutdown(LONG));
        assert!(comes_true(|| !path.exists()), "it binds no longer");
        let _new = serve(&path, &Arc::default());
        client.call(COUNT, b"new").expect("the new server answers");
        client.close();
        let result = held.wait();
        assert!(matches!(result, Err(CallError::ConnectionLost(ConnectionError::Closed))), "{result:?}");
        let_go.store(true, Ordering::SeqCst);
        shutdown.join().expect("ends");
    });
}

/// Programs that repeat refused calls themselves reach the new server too.
#[test]
fn a_call_that_is_refused_makes_a_new_connection_for_the_next() {
    let _watchdog = Watchdog::new("a_call_that_is_refused_makes_a_new_connection_for_the_next");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let old = serve_held(&path, &ran, &let_go);
    let client = SharedMemoryClient::builder(&path).reconnect(Reconnect::new()).connect().expect("connects");
    thread::scope(|scope| {
        let held = client.start_call(HOLD, b"held").expect("sends");
        assert!(comes_true(|| ran.load(Ordering::SeqCst) == 1));
        let shutdown = scope.spawn(|| old.shutdown(LONG * 4));
        assert!(comes_true(|| !path.exists()), "it binds no longer");
        let _new = serve(&path, &Arc::default());
        let call = || client.start_call(COUNT, b"new").and_then(|pending| pending.wait());
        assert!(comes_true(|| call().is_ok_and(|reply| *reply == *b"new")));
        assert!(!shutdown.is_finished());
        let_go.store(true, Ordering::SeqCst);
        assert_eq!(*held.wait().expect("is served to its end"), *b"held");
        shutdown.join().expect("ends");
    });
}

/// A server that refuses calls without end, hostile or not, does not make a client collect connections.
#[test]
fn servers_that_refuse_calls_are_left_for_four_connections_at_most() {
    let _watchdog = Watchdog::new("servers_that_refuse_calls_are_left_for_four_connections_at_most");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (ran, let_go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut server = serve_held(&path, &ran, &let_go);
    let client = SharedMemoryClient::builder(&path).reconnect(Reconnect::new()).connect().expect("connects");
    let call = || client.call(COUNT, b"");
    thread::scope(|scope| {
        let mut held = Vec::new();
        for number in 1..=5 {
            held.push(client.start_call(HOLD, b"").expect("sends"));
            assert!(comes_true(|| ran.load(Ordering::SeqCst) == number));
            let old = server;
            scope.spawn(|| old.shutdown(LONG * 4));
            assert!(comes_true(|| !path.exists()), "it binds no longer");
            server = serve_held(&path, &ran, &let_go);
            if number <= 4 {
                assert!(comes_true(|| call().is_ok()), "{number}");
            }
        }
        for _ in 0..50 {
            assert!(matches!(call(), Err(CallError::ShuttingDown)));
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(client.stats().reconnects, 4);
        let_go.store(true, Ordering::SeqCst);
        held.into_iter().for_each(|held| drop(held.wait().expect("is served to its end")));
        assert!(comes_true(|| call().is_ok()));
    });
}
