//! Nothing hangs, however full the rings are: in the smallest rings, in small ones, and in the usual ones.
//!
//! ```text
//!   client ══ full of requests, of 1 MiB ══▶ server
//!   client ◀══ full of replies, streams, pushes ══ server     and one side does not read, or not all of it
//! ```
//!
//! Each test has a watchdog, which turns a hang into a message. The tests show that these orders of events end. `loom-tests`
//! explores all orders, with fewer threads and calls.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use narrows::internal::rpc::wire::{DEADLINE, FrameKind, MORE, STREAM as STREAMS};
use narrows::{
    CallError, ConnectionError, HandlerError, Options, Request, ServerHandle, ServerStats,
    SharedMemoryClient, SharedMemoryServer, SharedMemoryStream,
};

use crate::support::calls::raw::{Raw, head};
use crate::support::calls::*;
use crate::support::{Fork, LONG, Watchdog, alone, eventually};

/// Length of a push: two of them do not fit a window of 1 KiB.
const PUSHED: usize = 500;

/// The options with the smallest window for pushes.
fn narrow(options: &Options) -> Options {
    options.clone().push_window(1024)
}

/// Calls an echo method and checks that the same bytes come back.
fn echo(client: &SharedMemoryClient, method: u32, seed: u8, len: usize) {
    let request: Vec<u8> = (0..len).map(|i| seed.wrapping_add(i.to_le_bytes()[0])).collect();
    assert!(*client.call(method, &request).expect("answers") == *request, "{len} bytes differ");
}

/// The request for a stream of `count` chunks of `len` bytes each.
fn stream(count: u32, len: u32) -> Vec<u8> {
    [count.to_le_bytes(), len.to_le_bytes()].concat()
}

#[test]
fn both_rings_are_full_in_both_directions() {
    let host = host!(options());
    for (options, len) in rings().iter().zip([5_000, 20_000, 300_000]) {
        let client = host.client_with(&narrow(options));
        thread::scope(|scope| {
            let callers = (0..8_u8).map(|i| {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..6_u8 {
                        echo(client, [ECHO, POOLED][usize::from(round % 2)], i, len);
                        client.call(PUSH_PATIENTLY, &[i; PUSHED]).expect("answers");
                    }
                })
            });
            let callers: Vec<_> = callers.collect();
            for _ in 0..48 {
                assert_eq!(client.next_push().expect("comes").len(), PUSHED);
            }
            callers.into_iter().for_each(|caller| caller.join().expect("ends well"));
        });
        assert_eq!(client.stats().in_flight, 0);
    }
    host.end();
}

#[test]
fn a_mebibyte_each_way_from_every_thread() {
    let host = host!(options());
    for (options, rounds) in rings().iter().zip([1, 1, 8]) {
        let client = host.client_with(options);
        thread::scope(|scope| {
            for i in 0..4_u8 {
                let client = &client;
                scope.spawn(move || (0..rounds).for_each(|_| echo(client, POOLED, i, 1 << 20)));
            }
        });
    }
    host.end();
}

#[test]
fn a_stream_that_the_client_does_not_read_holds_up_nothing_else() {
    let host = host!(options());
    let [_, small, usual] = rings();
    for (options, others) in [(small, 1), (usual, 6)] {
        let client = host.client_with(&options.stream_window(8000));
        let before = host.seen("chunks");
        let mut unread = client.call_streaming(STREAM, &stream(100, 3000)).expect("sends");
        assert!(unread.next_chunk().expect("comes").is_some());
        thread::scope(|scope| {
            for _ in 0..others {
                scope.spawn(|| {
                    let chunks = client.call_streaming(STREAM, &stream(100, 3000)).expect("sends");
                    assert_eq!(chunks.map(|chunk| chunk.expect("comes").len()).sum::<usize>(), 300_000);
                });
            }
        });
        echo(&client, POOLED, 1, 10_000);
        let held_up = host.seen("chunks") - before - others * 100;
        assert!(held_up < 10, "{held_up} chunks, but its window holds two");
        assert_eq!(unread.map(|chunk| chunk.expect("comes").len()).sum::<usize>(), 99 * 3000);
    }
    host.end();
}

#[test]
fn an_upload_that_its_method_does_not_read_holds_up_nothing_else() {
    let host = host!(options());
    let [_, small, usual] = rings();
    let (one, two) = (host.client_with(&small), host.client_with(&usual));
    thread::scope(|scope| {
        let uploads = [&one, &two].map(|client| {
            let mut upload = client.start_upload(GATED_UPLOAD, &[]).expect("sends");
            scope.spawn(move || {
                (0..60).for_each(|_| upload.write_chunk(&[1; 50_000]).expect("sends"));
                upload.finish().expect("answers")
            })
        });
        host.sees("gated upload in", 2);
        for client in [&one, &two] {
            (0..20).for_each(|i| echo(client, POOLED, i, 10_000));
        }
        assert_eq!(host.seen("gated upload out"), 0);
        two.call(OPEN, &[]).expect("answers");
        for upload in uploads {
            assert_eq!(*upload.join().expect("ends"), 3_000_000_u64.to_le_bytes());
        }
    });
    host.end();
}

#[test]
fn a_client_that_never_reads_holds_up_no_other() {
    let host = host!(options(), |server: SharedMemoryServer| server.workers(2));
    let (mut deaf, client) = (Raw::connect(&host.path, &options()), host.client());
    let big = (1_usize << 20).to_le_bytes();
    for id in 64..112 {
        deaf.send(id, head(FrameKind::Call, 0, 0, BIG), &big).expect("the server reads");
    }
    for id in 112..128 {
        deaf.send(id, head(FrameKind::Call, STREAMS, 0, STREAM), &stream(100, 50_000))
            .expect("the server reads");
    }
    host.sees("big", 48); // Each worker has had an answer for it, many times.
    (0..50).for_each(|i| echo(&client, POOLED, i, 100_000));
    let chunks = client.call_streaming(STREAM, &stream(100, 50_000)).expect("sends");
    assert_eq!(chunks.count(), 100);
    assert_eq!(host.stat("running"), 16, "its streams wait, its other methods have returned");
    drop(deaf);
    host.sees("gone Disconnected", 1);
    assert!(eventually(|| host.stat("running") == 0));
    host.end();
}

#[test]
fn a_client_that_is_stopped_holds_up_no_other_and_goes_on() {
    if !alone("a_client_that_is_stopped_holds_up_no_other_and_goes_on") {
        return;
    }
    let host = host!(options(), |server: SharedMemoryServer| server.workers(2));
    let (client, path) = (host.client(), host.path.clone());
    let sleeper = Fork::run(move || {
        let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
        let big = |_| client.start_call(BIG, &(1_usize << 20).to_le_bytes()).expect("sends");
        let calls: Vec<_> = (0..32).map(big).collect();
        client.notify(PUSH, b"ready").expect("sends");
        let unread = client.call_streaming(STREAM, &stream(100, 50_000)).expect("sends");
        client.next_push().expect("comes");
        crate::support::sys::stop_myself();
        let all = calls.into_iter().all(|call| call.wait().is_ok_and(|reply| reply.len() == 1 << 20));
        i32::from(!(all && unread.count() == 100))
    });
    assert_eq!(crate::support::sys::wait_for_change(sleeper.pid()), crate::support::sys::Change::Stopped);
    (0..50).for_each(|i| echo(&client, POOLED, i, 100_000));
    crate::support::sys::kill(sleeper.pid(), libc::SIGCONT);
    assert_eq!(sleeper.wait(), 0);
    host.end();
}

#[test]
fn a_method_of_the_pool_may_wait_for_what_comes_over_its_own_connection() {
    let host = host!(options(), |server: SharedMemoryServer| server.workers(3));
    let [tiny, small, usual] = rings().map(|options| host.client_with(&narrow(&options)));
    // For another call of the same client.
    let calls = [&small, &usual].map(|client| client.start_call(GATE, &[1; 9000]).expect("sends"));
    host.sees("gate in", 2);
    small.call(OPEN, &[]).expect("passes");
    for call in calls {
        assert_eq!(*call.wait().expect("answers"), [1; 9000]);
    }
    // For the same client to take its pushes.
    for client in [&tiny, &small, &usual] {
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                (0..20).for_each(|_| {
                    assert_eq!(*client.call(PUSH_PATIENTLY, &[1; PUSHED]).expect("ends"), *b"Ok(())")
                });
            });
            (0..20).for_each(|_| assert_eq!(client.next_push().expect("comes"), [1; PUSHED]));
            caller.join().expect("ends");
        });
    }
    host.end();
}

#[test]
fn an_inline_method_that_would_wait_for_its_own_connection_gets_an_error() {
    let host = host!(options());
    for options in rings() {
        let client = host.client_with(&narrow(&options));
        for _ in 0..10 {
            assert_eq!(*client.call(PUSH, &[1; PUSHED]).expect("answers"), *b"Ok(())");
            assert_eq!(*client.call(PUSH, &[2; PUSHED]).expect("answers"), *b"Err(WouldDeadlock)");
            assert_eq!(client.next_push().expect("comes"), [1; PUSHED]);
        }
    }
    host.end();
}

#[test]
fn pushes_that_the_client_does_not_take_block_the_pushing_methods_alone() {
    let host = host!(options(), |server: SharedMemoryServer| server.workers(5));
    let [_, small, usual] = rings().map(|options| narrow(&options));
    for options in [small.max_calls_in_flight(4), usual] {
        let (client, other) = (host.client_with(&options), host.client_with(&options));
        let before = host.seen("patient");
        let waiting = [0, 1, 2].map(|_| client.start_call(PUSH_PATIENTLY, &[1; PUSHED]).expect("sends"));
        host.sees("patient", before + 3);
        for i in 0..10 {
            assert_eq!(*client.call(PUSH_BRIEFLY, &[2; PUSHED]).expect("answers"), *b"Err(Timeout)");
            echo(&client, POOLED, i, 5000);
            assert_eq!(*other.call(PUSH, &[3; PUSHED]).expect("answers"), *b"Ok(())");
            assert_eq!(other.next_push().expect("comes"), [3; PUSHED]);
        }
        for call in waiting {
            assert_eq!(client.next_push().expect("comes"), [1; PUSHED]);
            assert_eq!(*call.wait().expect("ends"), *b"Ok(())");
        }
        assert!(matches!(client.try_next_push(), Err(CallError::WouldBlock)));
    }
    host.end();
}

/// Threads become and cease to be the leader that reads: by a reply, a deadline, a cancel, or the end of a stream.
#[test]
fn a_leader_that_leaves_promotes_a_follower() {
    let host = host!(options());
    for options in rings() {
        let client = host.client_with(&options);
        thread::scope(|scope| {
            for seed in 0..6 {
                let client = &client;
                scope.spawn(move || come_and_go(client, seed));
            }
        });
        assert!(eventually(|| {
            echo(&client, ECHO, 0, 10);
            client.stats().in_flight == 0
        }));
    }
    host.end();
}

fn come_and_go(client: &SharedMemoryClient, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..150 {
        let time = Duration::from_micros(random.u64(0..300));
        let request = vec![1; random.usize(0..2000)];
        let end = match random.u8(0..5) {
            0 => {
                client.call([ECHO, POOLED][random.usize(0..2)], &request).map(|it| assert_eq!(*it, *request))
            }
            1 => client.call_timeout(POOLED, &request, time).map(|it| assert_eq!(*it, *request)),
            2 => client.start_call(POOLED, &request).map(drop),
            3 => {
                let mut chunks = client.call_streaming(STREAM, &stream(4, 700)).expect("sends");
                let mut taken = chunks.by_ref().take(random.usize(0..6));
                taken.try_for_each(|chunk| chunk.map(|chunk| assert_eq!(chunk.len(), 700)))
            }
            _ => client.next_push_timeout(time).map(|_| panic!("no push was sent")),
        };
        // Methods whose calls were dropped may still run, and so reach the limit.
        let expected = matches!(end, Ok(()) | Err(CallError::Timeout | CallError::Busy(_)));
        assert!(expected, "{end:?}");
    }
}

/// A client that is set later, so that methods of its own server can call through it.
type Later = Arc<OnceLock<SharedMemoryClient>>;

/// Serves in this process, and connects a client.
fn connected(server: SharedMemoryServer) -> (ServerHandle, SharedMemoryClient) {
    let server = server.spawn().expect("serves");
    let client = over_pair(&server);
    (server, client)
}

fn over_pair(server: &ServerHandle) -> SharedMemoryClient {
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    server.adopt(b);
    SharedMemoryClient::over(a).expect("the handshake succeeds")
}

/// Calls everything that waits for a connection, over this client. Returns the error of each.
fn all_waits(client: &SharedMemoryClient) -> [CallError; 7] {
    [
        client.call(ECHO, &[]).expect_err("waits"),
        client.call_timeout(ECHO, &[], LONG).expect_err("waits, but not indefinitely"),
        client.start_call(ECHO, &[]).expect("is sent").wait().expect_err("waits"),
        client.call_streaming(STREAM, &[]).expect("is sent").next_chunk().expect_err("waits"),
        client.start_upload(UPLOAD, &[]).expect("is sent").finish().expect_err("waits"),
        client.next_push().expect_err("waits"),
        client.next_push_timeout(LONG).expect_err("waits, but not indefinitely"),
    ]
}

/// The thread that would read the call is the thread that makes it, in the method or in a callback.
#[test]
fn a_call_over_its_own_connection_would_deadlock_on_its_thread() {
    let _watchdog = Watchdog::new("a_call_over_its_own_connection_would_deadlock_on_its_thread");
    let folder = tempfile::tempdir().expect("a folder");
    for bound in [false, true] {
        let own = Later::default();
        let (in_method, in_end) = (Arc::clone(&own), Arc::clone(&own));
        let path = folder.path().join("socket");
        let server =
            if bound { SharedMemoryServer::bind(&path).expect("binds") } else { SharedMemoryServer::new() };
        let server = server.inline(ECHO, |_, _| Ok(())).inline(POOLED, move |_, reply| {
            let client = in_method.get().expect("is set");
            client.notify(ECHO, &[]).expect("a notification is not waited for");
            for error in all_waits(client) {
                assert!(matches!(error, CallError::WouldDeadlock), "{error:?}");
            }
            assert!(matches!(client.try_next_push(), Err(CallError::WouldBlock)), "does not wait");
            reply.push(1);
            Ok(())
        });
        let server =
            server.on_disconnect(move |_, _| assert!(in_end.get().is_some())).spawn().expect("serves");
        let client =
            if bound { SharedMemoryClient::connect(&path).expect("connects") } else { over_pair(&server) };
        assert!(own.set(client.clone()).is_ok());
        for _ in 0..2 {
            assert_eq!(*client.call(POOLED, &[]).expect("answers"), [1]);
        }
        // Over another connection of the same server nothing is in the way.
        let other = over_pair(&server);
        assert!(other.call_timeout(ECHO, &[], LONG).expect("answers").is_empty());
    }
}

#[test]
fn the_only_worker_does_not_wait_for_a_method_of_its_own_pool() {
    let _watchdog = Watchdog::new("the_only_worker_does_not_wait_for_a_method_of_its_own_pool");
    let own = Later::default();
    let in_method = Arc::clone(&own);
    let server = SharedMemoryServer::new().workers(1).inline(ECHO, |_, _| Ok(()));
    let server = server.streaming(STREAM, |_, _| Ok(())).method(POOLED, move |request, reply| {
        let client = in_method.get().expect("is set");
        if request.is_empty() {
            let waits = [
                client.call(POOLED, b"!").expect_err("waits"),
                client.call_timeout(POOLED, b"!", LONG).expect_err("waits, but not indefinitely"),
                client.start_call(POOLED, b"!").expect("is sent").wait().expect_err("waits"),
            ];
            assert!(waits.iter().all(|error| matches!(error, CallError::WouldDeadlock)), "{waits:?}");
            client.notify(POOLED, b"!").expect("is not waited for");
            client.call(ECHO, &[])?;
            assert!(client.call_streaming(STREAM, &[])?.next().is_none());
        }
        reply.push(1);
        Ok(())
    });
    let (server, client) = connected(server);
    assert!(own.set(over_pair(&server)).is_ok(), "over another connection it is the same");
    for _ in 0..2 {
        assert_eq!(*client.call(POOLED, &[]).expect("answers"), [1]);
    }
}

/// Calls the other server, as often as the first byte of the request says.
fn bounce(to: &Later, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    let left = request.bytes()[0];
    if left > 0 {
        reply.extend(to.get().expect("is set").call(ECHO, &[left - 1])?.iter());
    }
    Ok(())
}

type Register = fn(SharedMemoryServer, Later) -> SharedMemoryServer;

/// Two servers, each a client of the other, whose methods call each other.
fn mutual(register: Register) -> ([ServerHandle; 2], SharedMemoryClient) {
    let (to_a, to_b) = (Later::default(), Later::default());
    let a = register(SharedMemoryServer::new(), Arc::clone(&to_b)).spawn().expect("serves");
    let b = register(SharedMemoryServer::new(), Arc::clone(&to_a)).spawn().expect("serves");
    assert!(to_a.set(over_pair(&a)).is_ok() && to_b.set(over_pair(&b)).is_ok());
    let client = to_b.get().expect("was set").clone();
    ([a, b], client)
}

#[test]
fn servers_that_wait_for_each_other_come_free_at_the_deadline_of_the_first_call() {
    let _watchdog =
        Watchdog::new("servers_that_wait_for_each_other_come_free_at_the_deadline_of_the_first_call");
    let inline: Register =
        |server, to| server.inline(ECHO, move |request, reply| bounce(&to, request, reply));
    let pooled: Register =
        |server, to| server.workers(2).method(ECHO, move |request, reply| bounce(&to, request, reply));
    for (register, callers, depth) in [(inline, 1, 2), (pooled, 6, 3)] {
        let (servers, client) = mutual(register);
        thread::scope(|scope| {
            for _ in 0..callers {
                scope.spawn(|| client.call_timeout(ECHO, &[depth], Duration::from_millis(300)).map(drop));
            }
        });
        client.call_timeout(ECHO, &[0], LONG).expect("it is free again");
        assert!(eventually(|| servers.iter().all(|server| server.stats().running == 0)));
    }
}

#[test]
fn servers_that_wait_for_each_other_without_a_deadline_come_free_in_time() {
    let _watchdog = Watchdog::new("servers_that_wait_for_each_other_without_a_deadline_come_free_in_time");
    let (_servers, client) = mutual(|server, to| {
        let server = server.nested_call_timeout(Duration::from_millis(100));
        server.inline(ECHO, move |request, reply| bounce(&to, request, reply))
    });
    let end = client.call(ECHO, &[2]);
    assert!(matches!(end, Err(CallError::Failed(_))), "its own calls had no deadline: {end:?}");
    client.call(ECHO, &[0]).expect("it is free again");
}

/// A server that reports the deadline which a method sees of a call that another method makes.
fn innermost(sees: Sender<Option<Instant>>) -> (ServerHandle, SharedMemoryClient) {
    let sees = Mutex::new(sees);
    connected(SharedMemoryServer::new().inline(ECHO, move |request, _| {
        sees.lock().expect("no panic").send(request.deadline()).expect("the test lives");
        Ok(())
    }))
}

#[test]
fn a_call_that_a_method_makes_ends_with_the_call_of_the_method() {
    let _watchdog = Watchdog::new("a_call_that_a_method_makes_ends_with_the_call_of_the_method");
    let (sees, seen) = channel();
    let (_inner, to_inner) = innermost(sees);
    let from_pool = to_inner.clone();
    let from_stream = to_inner.clone();
    let from_thread = to_inner.clone();
    let server = SharedMemoryServer::new()
        .inline(ECHO, move |_, _| Ok(to_inner.call(ECHO, &[]).map(drop)?))
        .method(POOLED, move |_, _| Ok(from_pool.call_timeout(ECHO, &[], LONG * 100).map(drop)?))
        .method(FAIL, move |_, _| {
            let other = from_thread.clone();
            Ok(thread::spawn(move || other.call(ECHO, &[])).join().expect("no panic").map(drop)?)
        })
        .upload(UPLOAD, move |_, _, _| Ok(from_stream.call(ECHO, &[]).map(drop)?));
    let (_server, client) = connected(server);
    let outer = Instant::now() + LONG;
    for method in [ECHO, POOLED] {
        client.call_deadline(method, &[], outer).expect("answers");
        let inner = seen.recv().expect("was called").expect("has a deadline");
        assert!(inner <= outer + Duration::from_secs(5), "the remaining time travels as a duration");
    }
    // A thread that a method starts does not inherit the deadline.
    client.call_deadline(FAIL, &[], outer).expect("answers");
    assert_eq!(seen.recv().expect("was called"), None);
    // If the outer call has no deadline, the inner call has that of the option.
    client.start_upload(UPLOAD, &[]).expect("sends").finish().expect("answers");
    assert!(seen.recv().expect("was called").is_some(), "a method waits for no reply indefinitely");
    client.call(ECHO, &[]).expect("answers");
    assert!(seen.recv().expect("was called").is_some(), "a method waits for no reply indefinitely");
}

fn seven(_: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), HandlerError> {
    reply.push(7);
    Ok(())
}

/// The rule for the number of workers: more than the calls of a process in flight that come back to its pool.
#[test]
fn a_call_that_comes_back_from_its_own_process_finds_a_worker() {
    if !alone("a_call_that_comes_back_from_its_own_process_finds_a_worker") {
        return;
    }
    let _watchdog = Watchdog::new("a_call_that_comes_back_from_its_own_process_finds_a_worker");
    let folder = tempfile::tempdir().expect("a folder");
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let (to_there, connecting) = (Later::default(), there.clone());
    let calling = Arc::clone(&to_there);
    let path = here.clone();
    // Forks before there are other threads, whose locks the fork would copy in the state they are in.
    let other = Fork::run(move || {
        let options = options().wait_for_server(true);
        let client = SharedMemoryClient::builder(&path).options(options).connect().expect("connects");
        let back = client.clone();
        let _server = SharedMemoryServer::bind(&there)
            .expect("binds")
            .method(POOLED, move |_, reply| {
                reply.extend(back.call(ECHO, &[])?.iter());
                Ok(())
            })
            .spawn()
            .expect("serves");
        client.call(OPEN, &[]).expect("connects");
        i32::from(!(0..20).all(|_| client.call(POOLED, &[]).is_ok_and(|reply| *reply == [7])))
    });
    let server = SharedMemoryServer::bind(&here).expect("binds").workers(2);
    let _server = server
        .method(POOLED, move |_, reply| {
            reply.extend(calling.get().expect("is set").call(POOLED, &[])?.iter());
            Ok(())
        })
        .method(ECHO, seven)
        .method(OPEN, move |_, _| {
            let client = SharedMemoryClient::builder(&connecting).options(options()).connect();
            assert!(to_there.set(client.map_err(|error| error.to_string())?).is_ok());
            Ok(())
        })
        .spawn()
        .expect("serves");
    assert_eq!(other.wait(), 0, "each call comes back and is answered");
}

/// With a bound of one worker for each process, a call of that worker to its own pool waits for itself. A worker that serves
/// another process does not wait for itself.
#[test]
fn the_only_worker_of_this_process_does_not_wait_for_its_own_pool() {
    if !alone("the_only_worker_of_this_process_does_not_wait_for_its_own_pool") {
        return;
    }
    let _watchdog = Watchdog::new("the_only_worker_of_this_process_does_not_wait_for_its_own_pool");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let own = Later::default();
    let in_method = Arc::clone(&own);
    let server = SharedMemoryServer::bind(&path).expect("binds").workers(4).max_workers_per_process(1);
    let server = server.method(ECHO, seven).method(POOLED, move |_, reply| {
        match in_method.get().expect("is set").call(ECHO, &[]) {
            Ok(answer) => reply.extend(answer.iter()),
            Err(CallError::WouldDeadlock) => reply.push(1),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    });
    let (_server, client) = connected(server);
    assert!(own.set(client.clone()).is_ok());
    for _ in 0..2 {
        assert_eq!(*client.call(POOLED, &[]).expect("answers"), [1], "the call returned WouldDeadlock");
    }
    let other = Fork::run(move || {
        let client = SharedMemoryClient::builder(&path).options(options()).connect().expect("connects");
        i32::from(!client.call(POOLED, &[]).is_ok_and(|reply| *reply == [7]))
    });
    assert_eq!(other.wait(), 0, "this process has a worker for the call of a worker of another process");
}

/// Slots that become free only when the waiting thread itself serves the calls in them.
#[test]
fn the_only_worker_does_not_wait_for_slots_that_it_would_have_to_free() {
    let _watchdog = Watchdog::new("the_only_worker_does_not_wait_for_slots_that_it_would_have_to_free");
    let own = Later::default();
    let in_method = Arc::clone(&own);
    let server = SharedMemoryServer::new().workers(1).inline(ECHO, |_, _| Ok(()));
    let server = server.method(PUSH, |_, _| Ok(())).method(POOLED, move |request, reply| {
        let client = in_method.get().expect("is set");
        let mut started = Vec::new();
        let mut send = |method| match request.is_empty() {
            true => client.notify(method, &[]),
            false => client.start_call(method, &[]).map(|call| started.push(call)),
        };
        // The thread of the connection frees these slots.
        (0..500).try_for_each(|_| client.notify(ECHO, &[]))?;
        let end = (0..100).try_for_each(|_| send(PUSH));
        assert!(matches!(end, Err(CallError::WouldDeadlock)), "{end:?}");
        let end = client.call(ECHO, &[]);
        assert!(matches!(end, Err(CallError::WouldDeadlock)), "there is no slot for it: {end:?}");
        reply.push(1);
        Ok(())
    });
    let (server, client) = connected(server);
    assert!(own.set(over_pair(&server)).is_ok());
    for request in [&b""[..], b"!", b"", b"!"] {
        assert_eq!(*client.call(POOLED, request).expect("answers"), [1]);
    }
}

/// No worker serves what several workers send to their own pool while they wait for slots.
#[test]
fn workers_that_fill_all_slots_come_free_in_time() {
    let _watchdog = Watchdog::new("workers_that_fill_all_slots_come_free_in_time");
    for notifies in [true, false] {
        let own = Later::default();
        let in_method = Arc::clone(&own);
        let both = Barrier::new(2);
        let server = SharedMemoryServer::new().workers(2).nested_call_timeout(Duration::from_millis(300));
        let server = server.method(ECHO, |_, _| Ok(())).method(POOLED, move |_, _| {
            let client = in_method.get().expect("is set");
            both.wait();
            let mut started = Vec::new();
            let send = |_| match notifies {
                true => client.notify(ECHO, &[]),
                false => client.start_call(ECHO, &[]).map(|call| started.push(call)),
            };
            let end = (0..100).try_for_each(send);
            both.wait(); // Otherwise the other worker may find a worker for its notifications.
            Ok(end?)
        });
        let (server, client) = connected(server);
        assert!(own.set(over_pair(&server)).is_ok());
        let calls = [0; 2].map(|_| client.start_call(POOLED, &[]).expect("sends"));
        for call in calls {
            let end = call.wait();
            assert!(matches!(&end, Err(CallError::Failed(_))), "its own wait has ended: {end:?}");
        }
        client.call(ECHO, &[]).expect("it is free again");
    }
}

/// A worker that waits for a stream whose method waits for the worker.
#[test]
fn a_worker_that_waits_for_itself_through_a_stream_comes_free_in_time() {
    let _watchdog = Watchdog::new("a_worker_that_waits_for_itself_through_a_stream_comes_free_in_time");
    let own = Later::default();
    let [in_method, in_stream, in_upload] = [0; 3].map(|_| Arc::clone(&own));
    let server = SharedMemoryServer::new().workers(1).nested_call_timeout(Duration::from_millis(300));
    let server = server
        .method(ECHO, |_, _| Ok(()))
        .method(POOLED, move |request, _| {
            let client = in_method.get().expect("is set");
            match request.is_empty() {
                true => client.call_streaming(STREAM, &[])?.try_for_each(|chunk| chunk.map(drop))?,
                false => drop(client.start_upload(UPLOAD, &[])?.finish()?),
            }
            Ok(())
        })
        .streaming(STREAM, move |_, _| Ok(in_stream.get().expect("is set").call(ECHO, &[]).map(drop)?))
        .upload(UPLOAD, move |_, _, _| Ok(in_upload.get().expect("is set").call(ECHO, &[]).map(drop)?));
    let (server, client) = connected(server);
    assert!(own.set(over_pair(&server)).is_ok());
    for request in [&b""[..], b"!"] {
        let end = client.call(POOLED, request);
        assert!(matches!(&end, Err(CallError::Failed(_))), "its own wait has ended: {end:?}");
        client.call(ECHO, &[]).expect("it is free again");
    }
    assert!(eventually(|| server.stats().running == 0));
}

/// A streaming method may wait long for chunks that it passes on, since it occupies no worker. The wait of a worker ends, once.
#[test]
fn a_streaming_method_waits_for_chunks_as_long_as_it_takes() {
    let _watchdog = Watchdog::new("a_streaming_method_waits_for_chunks_as_long_as_it_takes");
    let (_source, to_source) = connected(SharedMemoryServer::new().streaming(STREAM, |request, chunks| {
        while !request.is_empty() && !request.is_cancelled() {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(300));
        Ok(chunks.write_chunk(b"at last")?)
    }));
    let from_pool = to_source.clone();
    let server = SharedMemoryServer::new().nested_call_timeout(Duration::from_millis(30));
    let server = server
        .streaming(STREAM, move |_, chunks| {
            to_source.call_streaming(STREAM, &[])?.try_for_each(|chunk| chunks.write_chunk(&chunk?))?;
            Ok(())
        })
        .method(POOLED, move |_, reply| {
            let ends: Vec<_> = from_pool.call_streaming(STREAM, b"never")?.collect();
            assert!(matches!(ends[..], [Err(CallError::Timeout)]), "an error comes once: {ends:?}");
            reply.push(1);
            Ok(())
        });
    let (_server, client) = connected(server);
    let chunks: Result<Vec<_>, _> = client.call_streaming(STREAM, &[]).expect("sends").collect();
    assert_eq!(chunks.expect("comes"), [b"at last"]);
    assert_eq!(*client.call(POOLED, &[]).expect("answers"), [1]);
}

/// Each call that a method begins and waits for inherits the deadline of the call that the method serves.
#[test]
fn calls_that_a_method_begins_have_the_deadline_of_its_call() {
    let _watchdog = Watchdog::new("calls_that_a_method_begins_have_the_deadline_of_its_call");
    let (sees, seen) = channel();
    let sees = Arc::new(Mutex::new(sees));
    let see = move |request: &Request<'_>| {
        sees.lock().expect("no panic").send(request.deadline()).expect("the test lives");
        Ok(())
    };
    let (whole, stream, upload, duplex) = (see.clone(), see.clone(), see.clone(), see);
    let (_inner, to_inner) = connected(
        SharedMemoryServer::new()
            .method(POOLED, move |request, _| whole(request))
            .streaming(STREAM, move |request, _| stream(request))
            .upload(UPLOAD, move |request, _, _| upload(request))
            .duplex(DUPLEX, move |request, _, _| duplex(request)),
    );
    let begin = move |what: u8| -> Result<(), CallError> {
        match what {
            0 => to_inner.start_call(POOLED, &[])?.wait().map(drop),
            1 => to_inner.call_streaming(STREAM, &[])?.try_for_each(|chunk| chunk.map(drop)),
            2 => to_inner.start_upload(UPLOAD, &[])?.finish().map(drop),
            3 => to_inner.start_duplex(DUPLEX, &[])?.1.try_for_each(|chunk| chunk.map(drop)),
            _ => to_inner.notify(POOLED, &[]),
        }
    };
    let (inline, pooled) = (begin.clone(), begin);
    let server = SharedMemoryServer::new()
        .inline(ECHO, move |request, _| Ok(inline(request.bytes()[0])?))
        .method(POOLED, move |request, _| Ok(pooled(request.bytes()[0])?));
    let (_server, client) = connected(server);
    for method in [ECHO, POOLED] {
        for what in 0..5 {
            let outer = Instant::now() + LONG;
            client.call_deadline(method, &[what], outer).expect("answers");
            match (what, seen.recv().expect("was called")) {
                (4, inner) => assert_eq!(inner, None, "a notification is not waited for"),
                (_, inner) => {
                    let inner = inner.expect("has the deadline of its call");
                    assert!(inner <= outer + Duration::from_secs(5), "it travels as a duration");
                }
            }
            client.call(method, &[what]).expect("answers");
            let inner = seen.recv().expect("was called");
            assert_eq!(inner, None, "without a deadline each wait has a limit of its own");
        }
    }
}

/// A deadline is counted from the arrival of the first part of the request, however long the request then waits for its other
/// parts and for a worker.
#[test]
fn a_deadline_is_counted_from_the_arrival_of_the_call() {
    let _watchdog = Watchdog::new("a_deadline_is_counted_from_the_arrival_of_the_call");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let (opens, opened) = channel::<()>();
    let (sees, seen) = channel();
    let (opened, sees) = (Mutex::new(opened), Arc::new(Mutex::new(sees)));
    let see = move |request: &Request<'_>| {
        if let Some(deadline) = request.deadline() {
            sees.lock().expect("no panic").send(deadline).expect("the test lives");
        }
        Ok(())
    };
    let (inline, pooled) = (see.clone(), see);
    let _server = SharedMemoryServer::bind(&path)
        .expect("binds")
        .workers(1)
        .method(GATE, move |_, _| {
            Ok(opened.lock().expect("no panic").recv().map_err(|_| "the test has ended")?)
        })
        .method(POOLED, move |request, _| pooled(request))
        .inline(ECHO, move |request, _| inline(request))
        .spawn()
        .expect("serves");
    let mut client = Raw::connect(&path, &options());
    let left = u64::try_from(LONG.as_nanos()).expect("fits").to_le_bytes();
    client.send(64, head(FrameKind::Call, 0, 0, GATE), &[]).expect("sends");
    client.send(65, head(FrameKind::Call, DEADLINE, 0, POOLED), &left).expect("sends");
    for (id, method) in [(66, POOLED), (67, ECHO)] {
        client.send(id, head(FrameKind::Call, DEADLINE | MORE, 0, method), &left).expect("sends");
    }
    client.send(68, head(FrameKind::Call, 0, 0, ECHO), &[]).expect("sends");
    assert_eq!(client.receive().expect("answers").id, 68);
    let latest = Instant::now() + LONG; // All that was sent before has arrived.
    thread::sleep(Duration::from_millis(200));
    for id in [66, 67] {
        client.send(id, head(FrameKind::Continuation, 0, 1, 0), b"the remainder").expect("sends");
    }
    opens.send(()).expect("it waits");
    for _ in 0..3 {
        let late = seen.recv().expect("was called").saturating_duration_since(latest);
        assert_eq!(late, Duration::ZERO, "counted from a moment after its arrival");
    }
}

/// Locks of a server may be held by threads that a fork does not have.
#[test]
fn a_fork_of_a_server_gets_an_error_without_taking_a_lock() {
    if !alone("a_fork_of_a_server_gets_an_error_without_taking_a_lock") {
        return;
    }
    let _watchdog = Watchdog::new("a_fork_of_a_server_gets_an_error_without_taking_a_lock");
    let (server, client) = connected(SharedMemoryServer::new().inline(ECHO, |_, _| Ok(())));
    client.call(ECHO, &[]).expect("answers");
    let fork = Fork::run(|| {
        assert_eq!(server.stats(), ServerStats::default());
        assert!(server.connections().is_empty());
        assert!(matches!(
            server.broadcast(b"from the fork"),
            Err(CallError::ConnectionLost(ConnectionError::Forked))
        ));
        let (a, b) = SharedMemoryStream::pair().expect("a pair");
        server.adopt(b);
        assert!(SharedMemoryClient::over(a).is_err(), "the server is the parent's");
        0
    });
    assert_eq!(fork.wait(), 0);
    assert_eq!((server.stats().connections, server.broadcast(b"to all").expect("works")), (1, 1));
    client.call(ECHO, &[]).expect("answers");
}

/// A call goes through two other processes and back. They serve each other's calls while a method waits.
#[test]
fn an_inline_method_may_call_another_process() {
    let host = host!(options());
    let through = host.client();
    let server = SharedMemoryServer::new().inline(ECHO, move |request, reply| {
        reply.extend(through.call(POOLED, request.bytes())?.iter());
        let chunks = through.call_streaming(STREAM, &stream(3, 10))?;
        assert_eq!(chunks.map(|chunk| chunk.map(|it| it.len())).sum::<Result<usize, _>>()?, 30);
        let mut upload = through.start_upload(UPLOAD, &[])?;
        upload.write_chunk(&[1; 3000])?;
        assert_eq!(*upload.finish()?, 3000_u64.to_le_bytes());
        through.notify(PUSH, b"pushed")?;
        assert_eq!(through.next_push()?, b"pushed");
        Ok(())
    });
    let (_server, client) = connected(server);
    for _ in 0..3 {
        assert_eq!(*client.call(ECHO, b"through").expect("answers"), *b"through");
    }
    host.end();
}
