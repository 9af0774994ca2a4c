//! A thousand clients at once, and what each costs, with a slow and a stopped client among them. Also a server that has run out
//! of descriptors.
//!
//! ```text
//!   test ── server process, at most 1100 descriptors ◀══ 4 x clients: 250 connections, 3 calls each in flight
//!                                                    ◀── slow: takes few chunks; stuck: stopped, takes nothing
//! ```
//!
//! That a slow or stuck client delays no other client is shown by order: all others are served to their end while the slow one
//! is still slow and the stuck one stuck. The bounds of memory have slack, and what was measured is printed.

#![allow(unsafe_code)]

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Kept, LONG, Watchdog, argument, descriptors, eventually, log, me, role, sys, threads};
use narrows::{ConnectError, Options, PendingCall, SharedMemoryClient, SharedMemoryServer};

const ECHO: u32 = 1;
/// Echoes once the gate is open.
const GATED: u32 = 2;
const OPEN: u32 = 3;
/// Sends chunks like the request without end.
const FLOOD: u32 = 4;
/// The numbers of [`Measured`].
const MEASURE: u32 = 5;
/// Reports that a client has all its calls in flight.
const ARRIVED: u32 = 6;
/// Raises the step that the clients wait for.
const STEP: u32 = 7;

const CLIENT_PROCESSES: u32 = 4;
const EACH: u32 = 250;
const CLIENTS: u32 = CLIENT_PROCESSES * EACH;
const CALLS: u32 = 3;

static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
static ARRIVALS: AtomicU32 = AtomicU32::new(0);
static STEPS: AtomicU32 = AtomicU32::new(0);
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn pass_the_gate() {
    let is_shut = |open: &mut bool| !*open;
    drop(GATE.1.wait_while(GATE.0.lock().expect("no panic"), is_shut).expect("no panic"));
}

fn serve(path: &Path, most_descriptors: u64) {
    sys::alarm(150);
    sys::limit_descriptors(most_descriptors);
    SharedMemoryServer::bind(path)
        .expect("binds")
        .max_connections(2000)
        .queue((CLIENTS * CALLS) as usize)
        .on_connect(|_| {
            CONNECTIONS.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .on_disconnect(|_, _| _ = CONNECTIONS.fetch_sub(1, Ordering::SeqCst))
        .inline(ECHO, |request, reply| {
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .method(GATED, |request, reply| {
            pass_the_gate();
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
        .inline(OPEN, |_, _| {
            *GATE.0.lock().expect("no panic") = true;
            GATE.1.notify_all();
            Ok(())
        })
        .streaming(FLOOD, |request, chunks| {
            loop {
                chunks.write_chunk(request.bytes())?;
            }
        })
        .inline(MEASURE, |_, reply| {
            Measured::here().put(reply);
            Ok(())
        })
        .inline(ARRIVED, |_, _| {
            ARRIVALS.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .inline(STEP, |request, reply| {
            STEPS.fetch_add(u32::from(!request.is_empty()), Ordering::SeqCst);
            reply.extend(STEPS.load(Ordering::SeqCst).to_le_bytes());
            Ok(())
        })
        .serve()
        .expect("serves");
}

/// The resources of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    rss_kib: u32,
    threads: u32,
    descriptors: u32,
    connections: u32,
    arrivals: u32,
}

impl Measured {
    fn here() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("reads");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        Self {
            rss_kib: rss.split_whitespace().next().and_then(|it| it.parse().ok()).expect("a number"),
            threads: u32::try_from(threads()).expect("few"),
            descriptors: u32::try_from(descriptors()).expect("few"),
            connections: CONNECTIONS.load(Ordering::SeqCst),
            arrivals: ARRIVALS.load(Ordering::SeqCst),
        }
    }

    fn put(self, into: &mut Vec<u8>) {
        for value in [self.rss_kib, self.threads, self.descriptors, self.connections, self.arrivals] {
            into.extend(value.to_le_bytes());
        }
    }

    fn of(client: &SharedMemoryClient) -> Self {
        let reply = client.call_timeout(MEASURE, &[], LONG).expect("answers");
        let word = |at: usize| u32::from_le_bytes(reply[4 * at..][..4].try_into().expect("four bytes"));
        let [rss_kib, threads, descriptors, connections, arrivals] = [0, 1, 2, 3, 4].map(word);
        Self { rss_kib, threads, descriptors, connections, arrivals }
    }
}

/// Connects as soon as the server listens and has a descriptor for it.
fn reach(path: &Path) -> SharedMemoryClient {
    let mut last = None;
    eventually(|| last.insert(SharedMemoryClient::connect(path)).is_ok());
    last.expect("tried").expect("reached")
}

fn start(test: &str, role: &str, path: &Path) -> Kept {
    Kept::start(&mut me(test, role, path.to_str().expect("plain")))
}

/// Waits until the test has raised the step to this.
fn await_step(client: &SharedMemoryClient, step: u32) {
    let reached = || {
        let reply = client.call_timeout(STEP, &[], LONG).expect("answers");
        u32::from_le_bytes((*reply).try_into().expect("four bytes")) >= step
    };
    assert!(eventually(reached), "step {step}");
}

/// A quarter of all clients, in one process: idle, then each with calls in flight, then served.
fn clients(path: &Path) {
    let before = Measured::here();
    let clients: Vec<_> = (0..EACH).map(|_| reach(path)).collect();
    let after = Measured::here();
    let each = (after.rss_kib - before.rss_kib) / EACH;
    log(&format!("clients: {each} KiB and no thread for each idle client ({after:?})"));
    // The thread of the peer monitor, and that of the test runner.
    assert!(each <= 64 && after.threads <= before.threads + 2, "{before:?} {after:?}");
    assert!(after.descriptors <= before.descriptors + EACH + 8, "{before:?} {after:?}");
    await_step(&clients[0], 1);
    let request = |client: u32, call: u32| [client, call].map(u32::to_le_bytes).concat();
    let begin = |at: u32, client: &SharedMemoryClient| -> Vec<PendingCall> {
        let calls = (0..CALLS).map(|call| client.start_call(GATED, &request(at, call)).expect("sends"));
        let calls = calls.collect();
        client.call_timeout(ARRIVED, &[], LONG).expect("overtakes the calls in flight");
        calls
    };
    let pending: Vec<_> = (0..).zip(&clients).map(|(at, client)| begin(at, client)).collect();
    for (at, calls) in (0..).zip(pending) {
        for (call, pending) in (0..).zip(calls) {
            assert_eq!(*pending.wait().expect("answers"), request(at, call));
        }
    }
    for client in &clients {
        assert_eq!(*client.call_timeout(ECHO, &[7; 3000], LONG).expect("answers"), [7; 3000]);
    }
}

/// Takes a chunk from time to time.
fn slow(path: &Path) {
    let client = reach(path);
    let mut stream = client.call_streaming(FLOOD, &[1; 5000]).expect("sends");
    loop {
        stream.next_chunk().expect("comes");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks for a long stream, and is stopped before it takes any of it.
fn stuck(path: &Path) {
    let client = reach(path);
    let streams: Vec<_> =
        (0..20).map(|_| client.call_streaming(FLOOD, &[2; 60_000]).expect("sends")).collect();
    let calls: Vec<_> = (0..20).map(|_| client.start_call(ECHO, &[3; 200_000]).expect("sends")).collect();
    sys::stop_myself();
    drop((streams, calls));
}

#[test]
fn a_thousand_clients_at_once() {
    const NAME: &str = "a_thousand_clients_at_once";
    match role().as_deref() {
        None => {}
        Some("serve") => return serve(Path::new(&argument()), 1100),
        Some(role) => {
            sys::alarm(150);
            let path = argument();
            let act = [clients, slow, stuck]
                [["clients", "slow", "stuck"].iter().position(|it| *it == role).expect("a role")];
            return act(Path::new(&path));
        }
    }
    let (_watchdog, began) = (Watchdog::new(NAME), Instant::now());
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let _server = start(NAME, "serve", &path);
    let client = reach(&path);
    let base = Measured::of(&client);

    let mut client_processes: Vec<_> = (0..CLIENT_PROCESSES).map(|_| start(NAME, "clients", &path)).collect();
    assert!(eventually(|| Measured::of(&client).connections == CLIENTS + 1), "{:?}", Measured::of(&client));
    let idle = Measured::of(&client);
    log(&format!("server: {base:?} with one client, {idle:?} with {CLIENTS} more that are idle"));
    let each = (idle.rss_kib - base.rss_kib) / CLIENTS;
    log(&format!("server: {each} KiB, one thread and one descriptor for each idle client"));
    assert!(each <= 128, "{each} KiB");
    assert!(idle.threads <= base.threads + CLIENTS, "one thread for each");
    assert!(idle.descriptors <= base.descriptors + CLIENTS + 8, "one descriptor for each");

    let (mut slow, stuck) = (start(NAME, "slow", &path), start(NAME, "stuck", &path));
    let stuck_pid = i32::try_from(stuck.pid()).expect("a pid");
    assert_eq!(sys::wait_for_change(stuck_pid), sys::Change::Stopped);
    client.call_timeout(STEP, &[1], LONG).expect("answers");
    assert!(eventually(|| Measured::of(&client).arrivals == CLIENTS), "{:?}", Measured::of(&client));
    let busy = Measured::of(&client);
    log(&format!("server: {busy:?} with {} calls in flight", CLIENTS * CALLS));
    client.call_timeout(OPEN, &[], LONG).expect("answers");
    for clients in &mut client_processes {
        assert!(clients.wait().success(), "all were served");
    }
    assert!(slow.0.try_wait().expect("waits").is_none(), "the slow one is still at it");
    assert!(eventually(|| Measured::of(&client).connections <= 3), "the client processes have gone");
    assert_eq!(Measured::of(&client).connections, 3, "the slow and the stuck one are still there");
    log(&format!("{CLIENTS} clients in {:.1?}", began.elapsed()));
}

#[test]
fn accepting_recovers_when_descriptors_were_exhausted() {
    const NAME: &str = "accepting_recovers_when_descriptors_were_exhausted";
    if role().is_some() {
        return serve(Path::new(&argument()), 64);
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let _server = start(NAME, "serve", &path);
    let mut clients = vec![reach(&path)];
    let options = Options::new().handshake_timeout(Duration::from_millis(100));
    for _ in 0..3 {
        let mut failed = 0;
        while failed < 5 {
            match SharedMemoryClient::builder(&path).options(options.clone()).connect() {
                Ok(client) => clients.push(client),
                Err(error) => {
                    failed += 1;
                    assert!(!matches!(error, ConnectError::BadOptions(_)), "{error}");
                }
            }
            assert!(clients.len() < 64, "it has no descriptors for so many");
        }
        let full = clients.len();
        // The last descriptors go to silent sockets, so that even accepting fails.
        let mute: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).expect("connects")).collect();
        let refused = SharedMemoryClient::builder(&path).options(options.clone()).connect();
        assert!(refused.is_err());
        assert!(full > 20, "only {full} were accepted");
        for client in &clients {
            assert_eq!(*client.call_timeout(ECHO, &[1; 100], LONG).expect("undisturbed"), [1; 100]);
        }
        drop(mute);
        clients.truncate(full / 2);
        clients.extend((full / 2..full - 5).map(|_| reach(&path)));
        for client in &clients {
            assert_eq!(*client.call_timeout(ECHO, &[2; 100], LONG).expect("answers"), [2; 100]);
        }
        log(&format!("{full} clients with 64 descriptors, and again after half of them left"));
    }
}
