//! Processes of clients are killed. The server, alone in its process, counts its connections, descriptors and mappings.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use narrows::{ServerHandle, SharedMemoryClient};

use super::processes::{FLOOD, HOLD, PUSH, SWALLOW, Seen, bind, reach, small};
use super::servers::{BEGIN, KINDS};
use crate::support::{
    Kept, LONG, Watchdog, argument, descriptors, eventually, log, mappings, me, role, runs, sys, threads,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    descriptors: usize,
    mappings: usize,
    threads: usize,
    connections: usize,
    running: usize,
}

pub(crate) fn counts(server: &ServerHandle) -> Counts {
    let stats = server.stats();
    Counts {
        descriptors: descriptors(),
        mappings: mappings("memfd:"),
        threads: threads(),
        connections: stats.connections,
        running: stats.running,
    }
}

/// Waits until nothing is left of the clients that came since `first`.
pub(crate) fn settles(server: &ServerHandle, first: Counts) {
    assert!(eventually(|| counts(server) == first), "{first:?} at first, {:?} now", counts(server));
}

/// A server in this process, and its counts once a client has come and gone.
pub(crate) fn open(path: &Path, seen: &Arc<Seen>) -> (ServerHandle, Counts) {
    let server = bind(path, seen).max_connections(300).spawn().expect("serves");
    drop(SharedMemoryClient::connect(path).expect("connects")); // The peer monitor and its descriptors stay.
    assert!(eventually(|| seen.other.load(Ordering::SeqCst) == 1 && !runs("narrows-serve")));
    let first = counts(&server);
    (server, first)
}

/// Runs a test alone in a process. In any other role the process runs `other`.
pub(crate) fn alone(name: &str, other: impl Fn(&Path), test: impl Fn(&Path)) {
    match role().as_deref() {
        None => assert!(Kept::start(&mut me(name, "alone", "")).wait().success()),
        Some("alone") => {
            let _watchdog = Watchdog::within(name, LONG * 3);
            let folder = tempfile::tempdir().expect("directory");
            test(&folder.path().join("socket"));
        }
        Some(_) => {
            sys::alarm(90);
            other(Path::new(&argument()));
        }
    }
}

/// Starts a client's process.
pub(crate) fn client(name: &str, path: &Path) -> Kept {
    Kept::start(&mut me(name, "client", path.to_str().expect("plain")))
}

fn connect(path: &Path) -> SharedMemoryClient {
    reach(|| SharedMemoryClient::builder(path).options(small()).connect())
}

#[test]
fn a_killed_client_frees_all_it_had() {
    const NAME: &str = "clients::a_killed_client_frees_all_it_had";
    let busy = |path: &Path| {
        let (client, calm) = (connect(path), connect(path));
        thread::scope(|scope| {
            for kind in KINDS {
                let client = &client;
                scope.spawn(move || kind(client));
            }
            calm.call(PUSH, &[1; 1000]) // The client does not take them, so the server waits.
        })
        .expect("killed before");
    };
    alone(NAME, busy, |path| {
        let seen = Arc::<Seen>::default();
        let (server, first) = open(path, &seen);
        for round in 1..=10 {
            let mut subject = client(NAME, path);
            let all = round * (BEGIN + 1);
            assert!(eventually(|| seen.begun.load(Ordering::SeqCst) == all));
            let most = counts(&server);
            assert!(most.connections == 2 && most.running == 9, "{most:?}");
            assert!(most.descriptors > first.descriptors && most.mappings >= 2, "{most:?}");
            subject.0.kill().expect("kills");
            settles(&server, first);
            let reported = || seen.died.load(Ordering::SeqCst) == 2 * round as usize;
            assert!(eventually(reported), "{seen:?}");
            assert_eq!(seen.cancelled.load(Ordering::SeqCst), all as usize, "each method has seen it");
        }
        assert_eq!(seen.other.load(Ordering::SeqCst), 1, "no end was reported as another");
        assert_eq!(server.stats().died, 20);
    });
}

const PROCESSES: usize = 4;
const EACH: usize = 50;

/// As many connections as the server allows one process, each in the middle of another kind of call.
fn clients(path: &Path) {
    let clients: Vec<_> = (0..EACH).map(|_| connect(path)).collect();
    let mut kept = (Vec::new(), Vec::new(), Vec::new());
    for (at, client) in clients.iter().enumerate() {
        match at % 5 {
            0 => {}
            1 => kept.0.push(client.start_call(HOLD, &[1; 500]).expect("sends")),
            2 => kept.0.push(client.start_call(PUSH, &[2; 1500]).expect("sends")),
            3 => {
                let mut stream = client.call_streaming(FLOOD, &[3; 700]).expect("sends");
                stream.next_chunk().expect("comes");
                kept.1.push(stream);
            }
            _ => {
                let mut upload = client.start_upload(SWALLOW, &[]).expect("sends");
                upload.write_chunk(&[4; 2000]).expect("sends");
                kept.2.push(upload);
            }
        }
    }
    thread::sleep(LONG * 2);
}

#[test]
fn a_thousand_killed_clients_leave_nothing() {
    const NAME: &str = "clients::a_thousand_killed_clients_leave_nothing";
    alone(NAME, clients, |path| {
        let seen = Arc::<Seen>::default();
        let (server, first) = open(path, &seen);
        let (began, mut random, mut most) = (Instant::now(), fastrand::Rng::new(), first);
        for wave in 1..=5 {
            let mut clients: Vec<_> = (0..PROCESSES).map(|_| client(NAME, path)).collect();
            assert!(eventually(|| server.stats().connections == PROCESSES * EACH));
            thread::sleep(Duration::from_micros(random.u64(..5000)));
            most = counts(&server);
            for subject in &mut clients {
                subject.0.kill().expect("kills");
            }
            settles(&server, first);
            let dead = wave * PROCESSES * EACH;
            assert!(eventually(|| seen.died.load(Ordering::SeqCst) == dead), "{seen:?}");
        }
        assert_eq!(seen.other.load(Ordering::SeqCst), 1, "no end was reported as another");
        assert_eq!(server.stats().died, 1000);
        let lived = seen.begun.load(Ordering::SeqCst) as usize;
        assert_eq!(seen.cancelled.load(Ordering::SeqCst), lived, "each method has seen it");
        log(&format!("1000 killed clients in {:.1?}: {most:?} at most, {first:?} after", began.elapsed()));
    });
}
