//! The three processes of a test about an attack, and the work of the subject meanwhile.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use narrows::internal::layout::Geometry;
use narrows::{Options, SharedMemoryListener, SharedMemoryStream};

use crate::support::raw_peer::RawPeer;
use crate::support::{Kept, LONG, Watchdog, argument, fill, index_of, log, me, reach, role, sys};

pub(super) const MAX_MESSAGE: usize = 100_000;
/// How long an attack goes on.
pub(super) const TIME: Duration = Duration::from_millis(1200);
/// CPU of one call that has 10 ms and copies a few times the longest message.
const CALL: Duration = Duration::from_millis(250);

pub(super) fn geometry() -> Geometry {
    Geometry::new(8, 16 << 10, 8).expect("legal")
}

pub(super) fn options() -> Options {
    Options::new().max_message(MAX_MESSAGE)
}

/// The options of a subject that connects to an attacker: the sizes of [`geometry`].
pub(super) fn client_options() -> Options {
    options().slots(8).arena(16 << 10)
}

pub(super) fn serve(path: &Path) -> SharedMemoryListener {
    options().bind(path).expect("binds")
}

/// Which side of the handshake the attacker plays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plays {
    Client,
    Server,
}

/// Runs a test of three processes. The attacker repeats `attack` on every connection that it gets. The subject uses the path.
pub(super) fn run(
    test: &'static str,
    plays: Plays,
    attack: impl Fn(&RawPeer, &mut fastrand::Rng),
    subject: impl FnOnce(&Path) -> String,
) {
    if role().is_some() {
        sys::alarm(150); // No process may outlive a test that fails.
    }
    match role().as_deref() {
        Some("subject") => be_subject(test, subject),
        Some(_) => be_attacker(Path::new(&argument()), plays, attack),
        None => run_subject(test),
    }
}

/// Starts the subject of a test, and checks that it succeeds.
pub(super) fn run_subject(test: &'static str) {
    let _watchdog = Watchdog::new(test);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let mut subject = Kept::start(&mut me(test, "subject", path.to_str().expect("plain")));
    let status = subject.wait();
    assert!(status.success(), "the subject: {status}");
}

fn be_attacker(path: &Path, plays: Plays, attack: impl Fn(&RawPeer, &mut fastrand::Rng)) {
    let listener = (plays == Plays::Server).then(|| UnixListener::bind(path).expect("binds"));
    let mut random = fastrand::Rng::with_seed(7);
    let deadline = Instant::now() + LONG * 2;
    while Instant::now() < deadline {
        let hand = match &listener {
            Some(listener) => RawPeer::serve(listener),
            None => RawPeer::connect(path, geometry(), u64::from(u32::MAX)),
        };
        let Ok(hand) = hand else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        while !hand.over() && Instant::now() < deadline {
            for _ in 0..64 {
                attack(&hand, &mut random);
            }
        }
    }
}

fn be_subject(test: &'static str, subject: impl FnOnce(&Path) -> String) {
    let path = argument();
    let attacker = Kept::start(&mut me(test, "attacker", &path));
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let beside = s.spawn(|| undisturbed(&over));
        let _ends_with_us = AtTheEnd(&over); // Also if the subject panics.
        let before = BESIDE.load(Ordering::Relaxed);
        let tally = subject(Path::new(&path));
        // The well-formed connection must have made round trips since the attack began.
        while BESIDE.load(Ordering::Relaxed) < before + 10 && !beside.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        log(&format!("{test}: {tally}"));
    });
    log(&format!("{test}: {} round trips beside it", BESIDE.load(Ordering::Relaxed)));
    drop(attacker);
}

/// Sets the flag when it is dropped.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Round trips of the well-formed connection, and the CPU time of its thread in us.
static BESIDE: AtomicU64 = AtomicU64::new(0);
static BESIDE_CPU: AtomicU64 = AtomicU64::new(0);

/// Uses a connection of the same process with a well-formed peer.
fn undisturbed(over: &AtomicBool) {
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pair");
    let (mut message, mut copy) = (Vec::new(), Vec::new());
    for index in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        fill(&mut message, index, 12 + usize::try_from(index % 3000).expect("small"));
        a.send_timeout(&message, LONG).expect("sends");
        b.recv_into_timeout(&mut copy, LONG).expect("receives");
        assert!(copy == message && index_of(&copy) == Some(index));
        BESIDE.fetch_add(1, Ordering::Relaxed);
        let cpu = u64::try_from(sys::thread_time().as_micros()).expect("short");
        BESIDE_CPU.store(cpu, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The CPU time of this process without the thread of the well-formed connection: that of the subject and its peer monitor.
fn spent() -> Duration {
    sys::process_time().saturating_sub(Duration::from_micros(BESIDE_CPU.load(Ordering::Relaxed)))
}

/// Runs something that should mostly sleep, and checks that it takes at most a quarter of a CPU.
pub(super) fn frugal<R>(what: &str, act: impl FnOnce() -> R) -> (R, String) {
    let (began, before) = (Instant::now(), spent());
    let result = act();
    let (took, cpu) = (began.elapsed(), spent().saturating_sub(before));
    // The first 64 rounds are free, and some kernels count in ticks.
    let most = took / 4 + Duration::from_millis(20);
    assert!(cpu < most, "{what}: {cpu:?} of CPU in {took:?}");
    (result, format!("{what} {took:.0?} with {cpu:.1?} of CPU; "))
}

/// Makes calls of every kind, quickly, on every connection that is accepted.
pub(super) fn work(path: &Path) -> String {
    let listener = serve(path);
    work_on(|| listener.accept_timeout(LONG).expect("the attacker connects"))
}

/// The same, on connections to an attacker that serves.
pub(super) fn work_as_client(path: &Path) -> String {
    work_on(|| reach(path, &client_options()))
}

fn work_on(mut next: impl FnMut() -> SharedMemoryStream) -> String {
    let deadline = Instant::now() + TIME;
    let (mut connections, mut calls, mut fine) = (0, 0, 0);
    let (mut random, mut most) = (fastrand::Rng::with_seed(3), Duration::ZERO);
    let mut timed = |stream: &mut SharedMemoryStream| {
        let (began, before) = (Instant::now(), sys::thread_time());
        fine += u32::from(call(stream, &mut random));
        let cpu = sys::thread_time() - before;
        assert!(cpu < CALL && began.elapsed() < LONG, "a call of 10 ms took {cpu:?} of CPU");
        most = most.max(cpu);
        calls += 1;
    };
    while connections == 0 || Instant::now() < deadline {
        let mut stream = next();
        connections += 1;
        let enough = (Instant::now() + TIME / 8).min(deadline);
        while Instant::now() < enough && !stream.is_disconnected() {
            timed(&mut stream);
        }
        // In any state the connection can be closed, and later calls still return.
        for _ in 0..20 {
            timed(&mut stream);
        }
    }
    format!("{connections} connections, {calls} calls, {fine} of them fine, at most {most:.1?} of CPU each")
}

/// Makes one call of any kind, with a deadline. Returns whether it succeeded.
fn call(stream: &mut SharedMemoryStream, random: &mut fastrand::Rng) -> bool {
    let short = Duration::from_millis(random.u64(0..10));
    let len = random.usize(0..20_000);
    let mut buffer = vec![0; len];
    match random.u8(0..12) {
        0 => stream.send_timeout(&buffer, short).is_ok(),
        1 => stream.try_send(&buffer).is_ok(),
        2 => stream.send_timeout(&vec![1; MAX_MESSAGE], short).is_ok(),
        3 => {
            let mut batch = stream.batch();
            let pushed = (0..12).all(|_| batch.push_timeout(&[1; 300], short).is_ok());
            pushed && batch.flush().is_ok()
        }
        4 => stream
            .reserve_timeout(len.min(16 << 10), short)
            .is_ok_and(|mut room| room.write_all(&buffer[..room.len()]).is_ok() && room.commit().is_ok()),
        5 => stream.recv_timeout(&mut buffer, short).is_ok_and(|it| it.len <= len),
        6 => stream.try_recv(&mut buffer).is_ok_and(|it| it.len <= len),
        7 => {
            let received = stream.recv_into_timeout(&mut buffer, short);
            received.is_ok_and(|it| it.len == buffer.len() && bounded(buffer.len()))
        }
        8 => stream.recv_ref_timeout(short).is_ok_and(|guard| {
            let bytes = guard.to_vec().expect("copies");
            let whole = bounded(bytes.len()) && bytes.len() == guard.len();
            assert!(guard.read_at(guard.len(), &mut [0; 1]).is_err());
            whole && guard.finish().is_ok()
        }),
        9 => stream.wait_either_timeout(len, short).is_ok(),
        10 => stream.try_iter().take(4).all(|it| bounded(it.len())),
        _ => stream.recv_ref_timeout(short).map(std::mem::forget).is_ok(),
    }
}

fn bounded(len: usize) -> bool {
    assert!(len <= MAX_MESSAGE, "a message of {len} bytes");
    true
}
