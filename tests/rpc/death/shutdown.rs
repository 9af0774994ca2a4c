//! Graceful shutdown: calls in flight complete, new calls are refused, and calls that never end are cut off.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{
    CallError, ConnectionError, Options, Request, ServerHandle, SharedMemoryClient, SharedMemoryServer,
    SharedMemoryStream, WaitStrategy,
};

use crate::support::{Kept, LONG, Watchdog, argument, eventually, log, me, role, sys};

/// Reports that it began, and ends when the test opens the gate.
const GATED: u32 = 1;
/// The same, with a chunk before the gate and one after it.
const STREAM: u32 = 2;
/// The same, with an upload before. It answers with the sum of what came.
const UPLOAD: u32 = 3;
const ECHO: u32 = 4;

/// The gate that lets methods end, and the reports that they began.
#[derive(Debug)]
struct Gate {
    begun: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    fn await_begun(&self, methods: usize) {
        (0..methods).for_each(|_| self.begun.recv_timeout(LONG).expect("begins"));
    }

    fn let_go(&self, methods: usize) {
        (0..methods).for_each(|_| self.open.send(()).expect("the methods wait"));
    }
}

fn gated(path: &Path) -> (ServerHandle, Gate) {
    let ((notify, begun), (open, wait)) = (channel(), channel());
    let wait = Arc::new(Mutex::new(wait));
    let pass = move || {
        notify.send(()).expect("the test listens");
        let wait: &Mutex<Receiver<()>> = &wait;
        let _let_go = wait.lock().expect("no panic").recv();
    };
    let (stream, upload) = (pass.clone(), pass.clone());
    let server = SharedMemoryServer::bind(path)
        .expect("binds")
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(GATED, move |_, reply| {
            pass();
            reply.extend([7; 1000]);
            Ok(())
        })
        .streaming(STREAM, move |_, chunks| {
            chunks.write_chunk(b"before")?;
            stream();
            Ok(chunks.write_chunk(b"after")?)
        })
        .upload(UPLOAD, move |_, chunks, reply| {
            upload();
            let sum: usize = chunks.map(|chunk| chunk.expect("comes").len()).sum();
            reply.extend(sum.to_le_bytes());
            Ok(())
        })
        .spawn();
    (server.expect("serves"), Gate { begun, open })
}

#[test]
fn calls_in_flight_complete_during_a_shutdown() {
    let _watchdog = Watchdog::new("calls_in_flight_complete_during_a_shutdown");
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let folder = tempfile::tempdir().expect("directory");
        let path = folder.path().join("socket");
        let (server, gate) = gated(&path);
        let connect = || SharedMemoryClient::connect(&path).expect("connects");
        let (client, other, idle) = (connect(), connect(), connect());
        let call = client.start_call(GATED, &[]).expect("sends");
        let mut stream = client.call_streaming(STREAM, &[]).expect("sends");
        let mut upload = other.start_upload(UPLOAD, &[]).expect("sends");
        gate.await_begun(3);
        let ending = thread::spawn(|| server.shutdown(Duration::MAX));
        assert!(
            matches!(
                idle.next_push_timeout(LONG),
                Err(CallError::ConnectionLost(ConnectionError::Disconnected))
            ),
            "there is no push to wait for"
        );
        for client in [&client, &other] {
            assert!(matches!(client.call(ECHO, &[]), Err(CallError::ShuttingDown)));
            assert!(matches!(
                client.call_streaming(STREAM, &[]).map(|mut stream| stream.next_chunk()),
                Ok(Err(CallError::ShuttingDown))
            ));
        }
        assert!(!path.exists(), "the path is removed");
        assert!(SharedMemoryClient::connect(&path).is_err());
        assert!(!ending.is_finished(), "it waits for the calls in flight");
        upload.write_chunk(&[1; 300]).expect("is taken");
        let started = Instant::now();
        gate.let_go(3);
        assert_eq!(*upload.finish().expect("answers"), 300_usize.to_le_bytes());
        assert_eq!(*call.wait().expect("answers"), [7; 1000]);
        assert_eq!(stream.next_chunk().expect("comes").as_deref(), Some(&b"before"[..]));
        assert_eq!(stream.next_chunk().expect("comes").as_deref(), Some(&b"after"[..]));
        assert_eq!(stream.next_chunk().expect("ends"), None);
        assert!(eventually(|| ending.is_finished()), "no call is in flight any more");
        let drained = ending.join().expect("no panic");
        longest = longest.max(started.elapsed());
        assert_eq!((drained.cut_off, drained.running), (0, 0));
        assert!(matches!(client.call(ECHO, &[]), Err(CallError::ShuttingDown)), "it was never begun");
    }
    log(&format!("drained at most {longest:.1?} after the last call was let go"));
}

/// The order of events proves it: the gate opens only after the shutdown has returned.
#[test]
fn methods_that_do_not_return_are_cut_off() {
    let _watchdog = Watchdog::new("methods_that_do_not_return_are_cut_off");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for timeout in [Duration::ZERO, Duration::from_millis(30)] {
        let (server, gate) = gated(&path);
        let client = SharedMemoryClient::connect(&path).expect("connects");
        let call = client.start_call(GATED, &[]).expect("sends");
        let mut stream = client.call_streaming(STREAM, &[]).expect("sends");
        gate.await_begun(2);
        let drained = server.shutdown(timeout);
        assert_eq!((drained.cut_off, drained.running), (2, 2));
        assert!(!path.exists(), "the path is removed");
        assert!(matches!(call.wait(), Err(CallError::ConnectionLost(ConnectionError::Disconnected))));
        assert_eq!(stream.next_chunk().expect("came before").as_deref(), Some(&b"before"[..]));
        assert!(matches!(stream.next_chunk(), Err(CallError::ConnectionLost(ConnectionError::Disconnected))));
        gate.let_go(2);
    }
}

#[test]
fn a_handle_that_is_dropped_ends_the_server_at_once() {
    let _watchdog = Watchdog::new("a_handle_that_is_dropped_ends_the_server_at_once");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let (server, gate) = gated(&path);
    let client = SharedMemoryClient::connect(&path).expect("connects");
    let call = client.start_call(GATED, &[]).expect("sends");
    gate.await_begun(1);
    drop(server);
    assert!(matches!(call.wait(), Err(CallError::ConnectionLost(ConnectionError::Disconnected))));
    assert!(eventually(|| !path.exists()));
    gate.let_go(1);
}

/// The server knows each client that it has accepted. When its handle is gone, so is every connection, and the program may end.
/// Otherwise a client would see that the server died.
#[test]
fn an_accepted_client_is_disconnected_before_the_handle_is_gone() {
    let _watchdog = Watchdog::new("an_accepted_client_is_disconnected_before_the_handle_is_gone");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    // The client sleeps until the Accept arrives. The server thread that wakes it is often preempted by it.
    let options = Options::new().wait(WaitStrategy::Park).handshake_timeout(LONG);
    for round in 0..3000 {
        let server = SharedMemoryServer::bind(&path).expect("binds").workers(1).spawn().expect("serves");
        let client = SharedMemoryClient::builder(&path).options(options.clone()).connect().expect("connects");
        drop(server);
        let end = client.next_push_timeout(Duration::ZERO);
        assert!(
            matches!(end, Err(CallError::ConnectionLost(ConnectionError::Disconnected))),
            "round {round}: {end:?}"
        );
    }
}

/// A call that comes too late for a server that shuts down gracefully was never begun, and the error of the caller says so.
#[test]
fn a_call_during_a_graceful_shutdown_reports_that_it_never_began() {
    let _watchdog = Watchdog::new("a_call_during_a_graceful_shutdown");
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for round in 0..50 {
        let ran = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&ran);
        let work = move |_: &Request<'_>, _: &mut Vec<u8>| {
            counts.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(300));
            Ok(())
        };
        let server = SharedMemoryServer::bind(&path).expect("binds");
        let server = if round % 2 == 0 { server.method(ECHO, work) } else { server.inline(ECHO, work) };
        let server = server.spawn().expect("serves");
        // The smallest ring has no room for a goodbye until the client has taken its reply.
        let options = if round % 3 == 0 { Options::new() } else { Options::new().slots(1).arena(64) };
        let client = SharedMemoryClient::builder(&path).options(options).connect().expect("connects");
        let answered = thread::scope(|scope| {
            let callers = (0..4).map(|_| {
                scope.spawn(|| {
                    let mut answered = 0;
                    loop {
                        match client.call(ECHO, &[]) {
                            Ok(_) => answered += 1,
                            Err(error) => return (answered, error),
                        }
                    }
                })
            });
            let callers: Vec<_> = callers.collect();
            thread::sleep(Duration::from_millis(3));
            assert_eq!(server.shutdown(LONG).cut_off, 0);
            let ends = callers.into_iter().map(|caller| caller.join().expect("no panic"));
            ends.fold(0, |sum, (answered, error)| {
                assert!(matches!(error, CallError::ShuttingDown), "round {round}: {error:?}");
                sum + answered
            })
        });
        assert_eq!(ran.load(Ordering::SeqCst), answered, "each call that ran was answered");
        let late = client.call_streaming(STREAM, &[]).map(|mut chunks| chunks.next_chunk().map(drop));
        assert!(matches!(late, Err(CallError::ShuttingDown)), "{late:?}");
        assert!(
            matches!(client.next_push(), Err(CallError::ConnectionLost(ConnectionError::Disconnected))),
            "a push is no call"
        );
    }
}

/// Notifications that were sent are served even if the client is gone when their turn comes.
#[test]
fn notifications_are_served_when_their_client_has_left() {
    const NAME: &str = "shutdown::notifications_are_served_when_their_client_has_left";
    const NOTIFICATIONS: u64 = 300;
    let notify = |client: &SharedMemoryClient| {
        (0..NOTIFICATIONS).for_each(|_| client.notify(GATED, &[]).expect("sends"));
    };
    if role().is_some() {
        let client = SharedMemoryClient::connect(argument()).expect("connects");
        notify(&client);
        sys::exit_now(0); // An exit without a goodbye: `PeerDied`.
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let served = Arc::new(AtomicU64::new(0));
    let serve = |server: SharedMemoryServer| {
        let counts = Arc::clone(&served);
        server.workers(2).method(GATED, move |request, _| {
            thread::sleep(Duration::from_micros(50));
            assert!(!request.is_cancelled(), "it was not cancelled");
            counts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    };
    let all = |times: u64| eventually(|| served.load(Ordering::SeqCst) == times * NOTIFICATIONS);
    let server = serve(SharedMemoryServer::bind(&path).expect("binds")).spawn().expect("serves");
    let client = SharedMemoryClient::connect(&path).expect("connects");
    notify(&client);
    drop(client);
    assert!(all(1), "{served:?} of a client that was closed");
    assert!(Kept::start(&mut me(NAME, "client", path.to_str().expect("plain"))).wait().success());
    assert!(all(2), "{served:?} with those of a process that has ended");
    let client = SharedMemoryClient::connect(&path).expect("connects");
    notify(&client);
    drop(client);
    assert_eq!(server.shutdown(LONG).cut_off, 0);
    assert_eq!(served.load(Ordering::SeqCst), 3 * NOTIFICATIONS, "a shutdown waits for them");
    // `serve_stream` of a single connection returns when they have been served.
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    let server = serve(SharedMemoryServer::new());
    let server = thread::spawn(move || server.serve_stream(b));
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    notify(&client);
    drop(client);
    server.join().expect("no panic").expect("a good end");
    assert_eq!(served.load(Ordering::SeqCst), 4 * NOTIFICATIONS);
}
