//! How connections end for every call that waits on them: each caller gets the same error, and none hangs.

use std::thread;
use std::time::Duration;

use narrows::internal::rpc::wire::FrameKind;
use narrows::{CallError, ConnectionError, SharedMemoryClient, SharedMemoryServer};

use crate::support::calls::raw::{Raw, head};
use crate::support::calls::{
    CLOSE, DUPLEX, ECHO, GATE, GATED_STREAM, GATED_UPLOAD, Host, POOLED, PUSH, STUBBORN, here, host, options,
    process_orders, rings,
};
use crate::support::fork_server::Report;
use crate::support::{Fork, alone, eventually};

/// Starts everything that may wait on a connection with at least eight slots, each on a thread of its own, and then runs `end`.
/// Returns the errors, by what waited.
fn all_wait(host: &Host, client: &SharedMemoryClient, end: impl FnOnce()) -> Vec<(&'static str, CallError)> {
    let before = [host.seen("gate in"), host.seen("gated stream in"), host.seen("gated upload in")];
    thread::scope(|scope| {
        let calls = [
            ("call", scope.spawn(|| client.call(GATE, b"1").err())),
            ("pending", {
                let call = client.start_call(GATE, b"2").expect("sends");
                scope.spawn(|| call.wait().err())
            }),
            ("stream", {
                let mut stream = client.call_streaming(GATED_STREAM, b"3").expect("sends");
                assert_eq!(stream.next_chunk().expect("comes"), Some(b"3".to_vec()));
                scope.spawn(move || stream.next().and_then(Result::err))
            }),
            ("upload", {
                let mut upload = client.start_upload(GATED_UPLOAD, b"4").expect("sends");
                scope.spawn(move || (0..1000).find_map(|_| upload.write_chunk(&[1; 50_000]).err()))
            }),
            ("finish", {
                let upload = client.start_upload(GATED_UPLOAD, b"5").expect("sends");
                scope.spawn(move || upload.finish().err())
            }),
            ("duplex", {
                let (up, mut down) = client.start_duplex(DUPLEX, b"6").expect("sends");
                scope.spawn(move || (down.next_chunk().err(), drop(up)).0)
            }),
            ("push", scope.spawn(|| client.next_push().err())),
        ];
        host.sees("gate in", before[0] + 2);
        host.sees("gated stream in", before[1] + 1);
        host.sees("gated upload in", before[2] + 2);
        end();
        let joined = calls.map(|(what, thread)| (what, thread.join().expect("ends")));
        joined.into_iter().map(|(what, error)| (what, error.expect(what))).collect()
    })
}

#[test]
fn a_server_that_closes_disconnects_all_waiting_callers() {
    let host = host!(options());
    let client = host.client();
    let closer = client.clone();
    for (what, error) in all_wait(&host, &client, || {
        let own = closer.call(CLOSE, &[]);
        assert!(matches!(own, Err(CallError::ConnectionLost(ConnectionError::Disconnected))), "{own:?}");
    }) {
        assert!(
            matches!(error, CallError::ConnectionLost(ConnectionError::Disconnected)),
            "{what}: {error:?}"
        );
    }
    assert!(
        matches!(client.call(ECHO, &[]), Err(CallError::ConnectionLost(ConnectionError::Disconnected))),
        "from now on"
    );
    host.sees("gate cancelled", 2); // The methods are notified.
    host.sees("gated stream cancelled", 1);
    host.sees("gated upload cancelled", 2);
    host.sees("duplex ConnectionLost(Closed)", 1);
    host.sees("gone Closed", 1);
    assert_eq!(*host.client().call(ECHO, b"!").expect("others live"), *b"!");
    host.end();
}

#[test]
fn a_server_whose_handle_is_dropped_disconnects_its_clients() {
    let mut host = host!(options());
    let clients = rings().map(|options| host.client_with(&options));
    let calls = clients.each_ref().map(|client| client.start_call(STUBBORN, &[]).expect("sends"));
    host.sees("stubborn in", 3);
    host.send("drop");
    for call in calls {
        let end = call.wait();
        assert!(matches!(end, Err(CallError::ConnectionLost(ConnectionError::Disconnected))), "{end:?}");
    }
    host.end();
}

#[test]
fn a_server_that_is_killed_has_died_for_all_waiting_callers() {
    let host = host!(options());
    let client = host.client();
    for (what, error) in all_wait(&host, &client, || host.signal(libc::SIGKILL)) {
        assert!(matches!(error, CallError::ConnectionLost(ConnectionError::PeerDied)), "{what}: {error:?}");
    }
    assert!(
        matches!(client.call(ECHO, &[]), Err(CallError::ConnectionLost(ConnectionError::PeerDied))),
        "from now on"
    );
    assert!(matches!(client.try_next_push(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))));
}

#[test]
fn replies_that_the_server_sent_before_it_died_are_received() {
    let mut host = host!(options(), |server: SharedMemoryServer| server.workers(1));
    let client = host.client();
    let calls = [1, 2, 3].map(|i| (i, client.start_call(POOLED, &[i; 200]).expect("sends")));
    let mut stream = client.call_streaming(GATED_STREAM, b"first").expect("sends");
    client.call(PUSH, b"pushed").expect("answers");
    host.sees("gated stream in", 1);
    host.sees("pooled", 3);
    host.client().call(POOLED, &[]).expect("the only worker has answered what came before");
    host.kill();
    let end = client.call(ECHO, &[]);
    assert!(matches!(end, Err(CallError::ConnectionLost(ConnectionError::PeerDied))), "{end:?}");
    for (i, call) in calls {
        assert_eq!(*call.wait().expect("was answered"), [i; 200]);
    }
    assert_eq!(stream.next_chunk().expect("was sent"), Some(b"first".to_vec()));
    assert!(matches!(stream.next_chunk(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))));
    assert_eq!(client.next_push().expect("was sent"), b"pushed");
    assert!(matches!(client.next_push(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))));
}

#[test]
fn closing_from_another_thread_ends_all_waiting_callers() {
    let host = host!(options());
    let client = host.client();
    for (what, error) in all_wait(&host, &client, || client.close()) {
        assert!(matches!(error, CallError::ConnectionLost(ConnectionError::Closed)), "{what}: {error:?}");
    }
    assert!(
        matches!(client.call(ECHO, &[]), Err(CallError::ConnectionLost(ConnectionError::Closed))),
        "from now on"
    );
    host.sees("gone Disconnected", 1);
    host.sees("gate cancelled", 2);
    host.end();
}

#[test]
fn a_client_that_is_killed_has_died_for_the_server() {
    if !alone("a_client_that_is_killed_has_died_for_the_server") {
        return;
    }
    let host = host!(options());
    let (path, _listens) = (host.path.clone(), host.client());
    let subject = Fork::run(move || {
        let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
        i32::from(client.call(GATE, b"never ends").is_ok())
    });
    host.sees("gate in", 1);
    subject.kill();
    assert_eq!(subject.wait(), -libc::SIGKILL);
    host.sees("gate cancelled", 1);
    host.sees("gone PeerDied", 1);
    assert_eq!(host.stat("died"), 1);
    host.end();
}

#[test]
fn a_fork_of_the_client_gets_an_error_and_harms_nothing() {
    if !alone("a_fork_of_the_client_gets_an_error_and_harms_nothing") {
        return;
    }
    let mut host = host!(options());
    let client = host.client();
    let call = client.start_call(GATE, b"mine").expect("sends");
    let stream = client.call_streaming(GATED_STREAM, b"mine too").expect("sends");
    let upload = client.start_upload(GATED_UPLOAD, &[]).expect("sends");
    let mut held = Some((call, stream, upload));
    host.sees("gated upload in", 1);
    let forked = |error: Option<CallError>| {
        assert!(matches!(error, Some(CallError::ConnectionLost(ConnectionError::Forked))), "{error:?}")
    };
    let fork = Fork::run(|| {
        forked(client.call(ECHO, &[]).err());
        forked(client.call_timeout(ECHO, &[], Duration::ZERO).err());
        forked(client.start_call(ECHO, &[]).err());
        forked(client.notify(ECHO, &[]).err());
        forked(client.next_push().err());
        let (mut call, mut stream, mut upload) = held.take().expect("the fork has it");
        forked(call.try_wait().err());
        forked(stream.next_chunk().err());
        forked(upload.write_chunk(&[]).err());
        drop((call, stream, upload)); // Cancels nothing.
        client.close(); // Closes nothing.
        0
    });
    assert_eq!(fork.wait(), 0);
    let (call, mut stream, mut upload) = held.expect("never taken here");
    host.send("open");
    assert_eq!(*call.wait().expect("answers"), *b"mine");
    assert_eq!(stream.next_chunk().expect("comes"), Some(b"mine too".to_vec()));
    upload.write_chunk(b"123").expect("sends");
    assert_eq!(*upload.finish().expect("answers"), 3_u64.to_le_bytes());
    host.end();
}

#[test]
fn a_server_that_shuts_down_drains_and_takes_nothing_new() {
    let mut host = host!(options());
    let reports = host.reports();
    let client = host.client();
    let call = client.start_call(GATE, b"in flight").expect("sends");
    host.sees("gate in", 1);
    host.leave(); // The connection over which the test asks would have no call in flight.
    host.send("shutdown 60000");
    assert!(eventually(|| matches!(client.call(ECHO, &[]), Err(CallError::ShuttingDown))));
    let stream = client.call_streaming(GATED_STREAM, &[]).expect("sends").next();
    assert!(matches!(stream, Some(Err(CallError::ShuttingDown))), "{stream:?}");
    assert!(SharedMemoryClient::connect(&host.path).is_err(), "no client is accepted");
    host.send("open");
    assert_eq!(*call.wait().expect("completes"), *b"in flight");
    assert_eq!(reports.recv(), Ok(Report::Text("ShutdownReport { cut_off: 0, running: 0 }".into())));
    let end = client.call(ECHO, &[]);
    assert!(matches!(end, Err(CallError::ShuttingDown)), "it was never begun: {end:?}");
    assert!(!host.path.exists(), "the path is removed");
    host.end();
}

#[test]
fn a_shutdown_whose_time_is_over_cuts_calls_off() {
    let mut host = host!(options());
    let reports = host.reports();
    let client = host.client();
    let calls = [1, 2].map(|i| client.start_call(STUBBORN, &[i]).expect("sends"));
    host.sees("stubborn in", 2);
    host.leave();
    host.send("shutdown 10");
    assert_eq!(reports.recv(), Ok(Report::Text("ShutdownReport { cut_off: 2, running: 2 }".into())));
    for call in calls {
        let end = call.wait();
        assert!(matches!(end, Err(CallError::ConnectionLost(ConnectionError::Disconnected))), "{end:?}");
    }
    host.end();
}

#[test]
fn a_violation_by_the_server_is_reported_to_all_waiting_callers() {
    let Some(host) = Host::start(&here!(), options(), |path| {
        let mut raw = Raw::accept(&options().bind(path).expect("binds"));
        raw.send_accept(1 << 20);
        for _ in 0..3 {
            assert_eq!(raw.receive().expect("comes").head.kind, FrameKind::Call);
        }
        raw.send(1 << 40, head(FrameKind::Reply, 0, 0, 0), b"of a call that was never made").expect("sends");
        process_orders(|_| ());
    }) else {
        return;
    };
    let client = host.client();
    thread::scope(|scope| {
        let calls = [1, 2, 3].map(|i| {
            scope.spawn({
                let client = &client;
                move || client.call(i, &[])
            })
        });
        for call in calls {
            let end = call.join().expect("ends");
            assert!(
                matches!(end, Err(CallError::ConnectionLost(ConnectionError::ProtocolViolation))),
                "{end:?}"
            );
        }
    });
    assert!(
        matches!(client.call(1, &[]), Err(CallError::ConnectionLost(ConnectionError::ProtocolViolation))),
        "from now on"
    );
    host.end();
}
