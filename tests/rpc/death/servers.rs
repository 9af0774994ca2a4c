//! The server's process is killed.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use narrows::{CallError, ConnectionError, Reconnect, SharedMemoryClient};

use super::processes::{ECHO, FLOOD, HOLD, IGNORE, ONE_CHUNK, POOLED, SWALLOW};
use super::processes::{begun, reach, serve, small, start};
use crate::support::{LONG, Watchdog, argument, eventually, role, sys};

pub(crate) type Outcome = Result<(), CallError>;

/// Calls of every kind that no server ends, a thread each.
pub(crate) const KINDS: [fn(&SharedMemoryClient) -> Outcome; 9] = [
    |client| client.next_push().map(drop),
    |client| client.call(HOLD, &[1; 40]).map(drop),
    |client| client.call_timeout(HOLD, &vec![2; 200_000], LONG * 10).map(drop),
    |client| client.start_call(HOLD, &[])?.wait().map(drop),
    |client| client.call_streaming(ONE_CHUNK, &[3; 100])?.try_for_each(|chunk| chunk.map(drop)),
    |client| {
        let mut taken_once = client.call_streaming(FLOOD, &[4; 2000])?;
        taken_once.next_chunk()?;
        taken_once.try_for_each(|chunk| chunk.map(drop))
    },
    |client| {
        let mut upload = client.start_upload(SWALLOW, &[])?;
        upload.write_chunk(&[5; 1000])?;
        upload.finish().map(drop)
    },
    |client| {
        let mut blocked = client.start_upload(IGNORE, &[])?;
        loop {
            blocked.write_chunk(&[6; 1000])?;
        }
    },
    |client| {
        let mut pending = client.start_call(HOLD, &[])?;
        pending.wait_deadline(Instant::now() + LONG * 10).map(drop)
    },
];

/// The number of the above calls whose methods the server begins.
pub(crate) const BEGIN: u32 = 8;

fn begin_all<'s>(
    scope: &'s thread::Scope<'s, '_>,
    client: &'s SharedMemoryClient,
) -> Vec<ScopedJoinHandle<'s, Outcome>> {
    // First starts the call that only waits for pushes, until it waits. If it came too late it would make a new connection and
    // wait for that.
    let waited = || {
        let waits = client.stats().receiving;
        waits.spins + waits.sleeps
    };
    let before = waited();
    let begin = |kind: &'s fn(&SharedMemoryClient) -> Outcome| scope.spawn(move || kind(client));
    let (listener, calls) = KINDS.split_first().expect("a listener");
    let listener = begin(listener);
    eventually(|| waited() > before);
    std::iter::once(listener).chain(calls.iter().map(begin)).collect()
}

fn all_died(threads: Vec<ScopedJoinHandle<'_, Outcome>>) {
    for (kind, thread) in threads.into_iter().enumerate() {
        let outcome = thread.join().expect("no panic");
        assert!(
            matches!(outcome, Err(CallError::ConnectionLost(ConnectionError::PeerDied))),
            "kind {kind}: {outcome:?}"
        );
    }
}

#[test]
fn every_pending_call_returns_peer_died() {
    const NAME: &str = "servers::every_pending_call_returns_peer_died";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    for _ in 0..10 {
        let mut server = start(NAME, &path);
        let connect = || reach(|| SharedMemoryClient::builder(&path).options(small()).connect());
        let clients = [connect(), connect()];
        thread::scope(|scope| {
            let threads: Vec<_> = clients.iter().map(|client| begin_all(scope, client)).collect();
            let all = eventually(|| begun(&clients[0]) == 2 * BEGIN);
            server.0.kill().expect("kills"); // Killed before any assertion can fail, since the threads wait for it.
            assert!(all);
            threads.into_iter().for_each(all_died);
        });
        for client in &clients {
            for kind in KINDS {
                assert!(
                    matches!(kind(client), Err(CallError::ConnectionLost(ConnectionError::PeerDied))),
                    "later calls too"
                );
            }
        }
    }
}

/// The server is stopped first, so that the ring fills up and callers wait for room.
#[test]
fn a_caller_that_waits_for_room_gets_peer_died() {
    const NAME: &str = "servers::a_caller_that_waits_for_room_gets_peer_died";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let server = start(NAME, &path);
    let client = reach(|| SharedMemoryClient::builder(&path).options(small()).connect());
    let pid = i32::try_from(server.pid()).expect("a pid");
    sys::kill(pid, libc::SIGSTOP);
    assert_eq!(sys::wait_for_change(pid), sys::Change::Stopped);
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        let calls = (0..6).map(|_| scope.spawn(|| client.call(ECHO, &vec![1; 300_000]).map(drop)));
        let notes = (0..2).map(|_| {
            scope.spawn(|| {
                loop {
                    client.notify(POOLED, &[2; 5000])?;
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let threads = calls.chain(notes).collect();
        let timed = client.call_timeout(ECHO, &[3; 50_000], Duration::from_millis(20));
        sys::kill(pid, libc::SIGKILL); // Killed before any assertion can fail, since the threads wait for it.
        all_died(threads);
        assert!(matches!(timed, Err(CallError::Timeout)), "{timed:?}");
    });
    assert!(sent.load(Ordering::SeqCst) < 64, "the ring was full");
}

/// What was reported to `on_loss`.
#[derive(Debug, Default)]
struct Losses(Mutex<Vec<(bool, Vec<u32>)>>);

impl Losses {
    fn policy(self: &Arc<Self>) -> Reconnect {
        let losses = Arc::clone(self);
        Reconnect::new()
            .patience(LONG * 10)
            .backoff(Duration::from_millis(2), Duration::from_millis(50))
            .on_loss(move |lost| {
                let mut methods: Vec<u32> = lost.calls.iter().map(|call| call.method).collect();
                methods.sort_unstable();
                losses.list().push((matches!(lost.reason, ConnectionError::PeerDied), methods));
            })
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<(bool, Vec<u32>)>> {
        self.0.lock().expect("no panic")
    }
}

fn client_with(policy: Reconnect, path: &Path) -> SharedMemoryClient {
    reach(|| SharedMemoryClient::builder(path).options(small()).reconnect(policy.clone()).connect())
}

#[test]
fn the_next_call_goes_through_a_new_connection_and_nothing_is_replayed() {
    const NAME: &str = "servers::the_next_call_goes_through_a_new_connection_and_nothing_is_replayed";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let losses = Arc::<Losses>::default();
    let mut server = start(NAME, &path);
    let client = client_with(losses.policy(), &path);
    let pending = [HOLD, HOLD, HOLD, HOLD, ONE_CHUNK, FLOOD, SWALLOW, IGNORE];
    for round in 1..=5 {
        thread::scope(|scope| {
            let threads = begin_all(scope, &client);
            let all = eventually(|| begun(&client) == BEGIN);
            server.0.kill().expect("kills");
            assert!(all);
            all_died(threads);
        });
        for deadline in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(30)] {
            let late = client.call_timeout(ECHO, &[], deadline);
            assert!(matches!(late, Err(CallError::ReconnectFailed(_) | CallError::Timeout)), "{late:?}");
        }
        assert_eq!(client.stats().reconnects, round - 1);
        thread::scope(|scope| {
            let first = || client.call_timeout(ECHO, &[7; 500], LONG);
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
            server = start(NAME, &path);
            for thread in threads {
                assert_eq!(*thread.join().expect("no panic").expect("a new connection"), [7; 500]);
            }
        });
        assert_eq!(begun(&client), 0, "nothing is replayed");
        assert_eq!(client.stats().reconnects, round);
        assert_eq!(client.peer_cred().pid(), server.pid());
        let reported = std::mem::take(&mut *losses.list());
        assert_eq!(reported, [(true, pending.to_vec())], "round {round}: reported once");
    }
}

#[test]
fn close_ends_a_client_that_reconnects() {
    const NAME: &str = "servers::close_ends_a_client_that_reconnects";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let losses = Arc::<Losses>::default();
    let mut server = start(NAME, &path);
    let client = client_with(losses.policy(), &path);
    server.0.kill().expect("kills");
    assert!(matches!(client.next_push(), Err(CallError::ConnectionLost(ConnectionError::PeerDied))));
    thread::scope(|scope| {
        let calls = (0..3).map(|_| scope.spawn(|| client.call(ECHO, &[]).map(drop)));
        let pushes = (0..2).map(|_| scope.spawn(|| client.next_push().map(drop)));
        let streams = (0..2).map(|_| scope.spawn(|| client.call_streaming(FLOOD, &[]).map(drop)));
        let threads: Vec<_> = calls.chain(pushes).chain(streams).collect();
        let tried = eventually(|| losses.list().len() == 1);
        client.close();
        assert!(tried, "one of them tries to connect");
        for thread in threads {
            let outcome = thread.join().expect("no panic");
            assert!(
                matches!(outcome, Err(CallError::ConnectionLost(ConnectionError::Closed))),
                "{outcome:?}"
            );
        }
    });
    server = start(NAME, &path);
    let _other = reach(|| SharedMemoryClient::connect(&path));
    assert!(
        matches!(client.call(ECHO, &[]), Err(CallError::ConnectionLost(ConnectionError::Closed))),
        "closed for good"
    );
    assert_eq!(losses.list().len(), 1);
    drop(server);
}

/// The server is stopped first, so that the writer waits for room in the ring and learns of the death before any reader.
#[test]
fn an_upload_that_waits_for_room_is_reported_as_lost() {
    const NAME: &str = "servers::an_upload_that_waits_for_room_is_reported_as_lost";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let losses = Arc::<Losses>::default();
    let server = start(NAME, &path);
    let client = client_with(losses.policy(), &path);
    let mut upload = client.start_upload(SWALLOW, &[]).expect("sends");
    assert!(eventually(|| begun(&client) == 1));
    let pid = i32::try_from(server.pid()).expect("a pid");
    sys::kill(pid, libc::SIGSTOP);
    assert_eq!(sys::wait_for_change(pid), sys::Change::Stopped);
    let chunk = [1; 1000];
    let filled = client.call_timeout(ECHO, &[2; 300_000], Duration::from_millis(20));
    assert!(matches!(filled, Err(CallError::Timeout)), "the ring is full: {filled:?}");
    thread::scope(|scope| {
        let writer = scope.spawn(|| upload.write_chunk(&chunk));
        thread::sleep(Duration::from_millis(20)); // The upload waits by now. If it does not, the test shows less.
        sys::kill(pid, libc::SIGKILL);
        let outcome = writer.join().expect("no panic");
        assert!(matches!(outcome, Err(CallError::ConnectionLost(ConnectionError::PeerDied))), "{outcome:?}");
    });
    drop(upload);
    drop(server);
    let _server = start(NAME, &path);
    client.call_timeout(ECHO, &[], LONG).expect("a new connection");
    assert_eq!(
        *losses.list(),
        [(true, vec![SWALLOW])],
        "the client does not know whether the server has run it"
    );
}
