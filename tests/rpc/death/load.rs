//! Death at random points of heavy traffic.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use narrows::{CallError, ConnectionError, Reconnect, SharedMemoryClient};

use super::clients::{alone, client, counts, open, settles};
use super::processes::{ECHO, FLOOD, POOLED, SWALLOW, Seen, reach, serve, small, start};
use super::servers::Outcome;
use crate::support::{LONG, Watchdog, argument, eventually, fill, index_of, log, role};

const ROUNDS: usize = 100;
const THREADS: u64 = 4;

/// Makes one call of a random kind and verifies what comes back.
fn work(client: &SharedMemoryClient, random: &mut fastrand::Rng, buffer: &mut Vec<u8>) -> Outcome {
    let len = if random.u8(..8) == 0 { random.usize(..200_000) } else { random.usize(..600) };
    let index = random.u64(..);
    let mut request = Vec::new();
    fill(&mut request, index, len);
    match random.u8(..8) {
        0 => client.notify(POOLED, &request)?,
        1 => {
            let chunk = &request[..request.len().min(3000)];
            for got in client.call_streaming(FLOOD, chunk)?.take(random.usize(..20)) {
                assert_eq!(got?, chunk);
            }
        }
        2 => {
            let mut upload = client.start_upload(SWALLOW, &[])?;
            (0..random.u8(..8)).try_for_each(|_| upload.write_chunk(&[9; 900]))?;
        }
        kind => {
            let method = if kind < 5 { ECHO } else { POOLED };
            client.call_into(method, &request, buffer)?;
            assert_eq!(index_of(buffer), Some(index));
            assert_eq!(buffer.len(), request.len());
        }
    }
    Ok(())
}

#[test]
fn the_server_dies_at_random() {
    const NAME: &str = "load::the_server_dies_at_random";
    if role().is_some() {
        return serve(&argument());
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let losses = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&losses);
    let backoff = (Duration::from_millis(1), Duration::from_millis(10));
    let policy = Reconnect::new().patience(LONG * 2).backoff(backoff.0, backoff.1).on_loss(move |lost| {
        assert!(matches!(lost.reason, ConnectionError::PeerDied), "{lost:?}");
        count.fetch_add(1, Ordering::SeqCst);
    });
    let mut server = start(NAME, &path);
    let client =
        reach(|| SharedMemoryClient::builder(&path).options(small()).reconnect(policy.clone()).connect());
    let (done, failed, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let busy = || {
        let (mut random, mut buffer) = (fastrand::Rng::new(), Vec::new());
        while !over.load(Ordering::SeqCst) {
            match work(&client, &mut random, &mut buffer) {
                Ok(()) => done.fetch_add(1, Ordering::SeqCst),
                Err(CallError::ConnectionLost(ConnectionError::PeerDied)) => {
                    failed.fetch_add(1, Ordering::SeqCst)
                }
                Err(error) => panic!("{error:?}"),
            };
        }
    };
    let began = Instant::now();
    let mut stuck = false;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(busy)).collect();
        let mut random = fastrand::Rng::new();
        for _ in 0..ROUNDS {
            if stuck {
                break;
            }
            let before = done.load(Ordering::SeqCst);
            let alive = || threads.iter().all(|thread| !thread.is_finished());
            stuck |= !eventually(|| done.load(Ordering::SeqCst) > before + 8 || !alive()) || !alive();
            thread::sleep(Duration::from_micros(random.u64(..3000)));
            server.0.kill().expect("kills");
            server.wait(); // While it lives, no other server can bind its path.
            server = start(NAME, &path);
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(!stuck, "a call was not ended by the server's death");
    let (done, failed) = (done.load(Ordering::SeqCst), failed.load(Ordering::SeqCst));
    let (reported, made) = (losses.load(Ordering::SeqCst), client.stats().reconnects);
    assert!((ROUNDS - 1..=ROUNDS).contains(&reported), "each loss is reported once: {reported}");
    assert_eq!(made, reported as u64);
    assert!(failed <= THREADS * ROUNDS as u64, "at most one call of each thread for each death: {failed}");
    log(&format!(
        "{ROUNDS} deaths in {:.1?}: {done} calls done, {failed} returned PeerDied",
        began.elapsed()
    ));
}

#[test]
fn clients_die_at_random() {
    const NAME: &str = "load::clients_die_at_random";
    let busy = |path: &Path| {
        let connect = || reach(|| SharedMemoryClient::builder(path).options(small()).connect());
        let clients = [connect(), connect()];
        thread::scope(|scope| {
            for client in clients.iter().cycle().take(4) {
                scope.spawn(move || {
                    let (mut random, mut buffer) = (fastrand::Rng::new(), Vec::new());
                    while work(client, &mut random, &mut buffer).is_ok() {}
                });
            }
        });
    };
    alone(NAME, busy, |path| {
        let seen = Arc::<Seen>::default();
        let (server, first) = open(path, &seen);
        let (done, over, began) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
        thread::scope(|scope| {
            let well_formed = SharedMemoryClient::connect(path).expect("connects");
            let (done, over) = (&done, &over);
            let undisturbed = scope.spawn(move || {
                let (mut random, mut buffer) = (fastrand::Rng::new(), Vec::new());
                while !over.load(Ordering::SeqCst) {
                    work(&well_formed, &mut random, &mut buffer).expect("is undisturbed");
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
            let mut random = fastrand::Rng::new();
            for _ in 0..ROUNDS {
                let mut subject = client(NAME, path);
                let (calls, mine) = (server.stats().calls, done.load(Ordering::SeqCst));
                let busy = || {
                    server.stats().connections == 3
                        && server.stats().calls > calls + 50
                        && done.load(Ordering::SeqCst) > mine
                };
                let busy = eventually(|| busy() || undisturbed.is_finished());
                thread::sleep(Duration::from_micros(random.u64(..3000)));
                subject.0.kill().expect("kills");
                if !busy || undisturbed.is_finished() || !eventually(|| server.stats().connections == 1) {
                    break;
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        settles(&server, first);
        assert!(eventually(|| seen.died.load(Ordering::SeqCst) == 2 * ROUNDS), "{seen:?}");
        let (calls, took) = (server.stats().calls, began.elapsed());
        log(&format!("{ROUNDS} dead clients in {took:.1?}: {calls} calls, {:?}", counts(&server)));
    });
}
