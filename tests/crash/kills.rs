//! `kill -9` at random moments: the survivor keeps what was committed, whole and in order, and is notified.
//!
//! ```text
//! NARROWS_KILLS=200000 NARROWS_SEED=7 cargo test -p narrows-tests --test crash
//! ```
//!
//! The time until a death is reported is printed and not asserted: a killed process needs a CPU to die, and on a busy machine it
//! waits for one.

#![allow(unsafe_code)]

mod counts;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::fork_server::{self, ForkServer, Report};
use crate::support::{Kept, LONG, Watchdog, argument, fill, index_of, log, me, reach, role, sys};
use counts::Counts;
use narrows::{
    ConnectionError, Options, Receiver, RecvError, RecvTimeoutError, SendTimeoutError, Sender,
    SharedMemoryListener, SharedMemoryStream,
};

/// The parameters of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    seed: u64,
    /// Whether the subject sends, and whether it receives. Both may hold.
    subject_sends: bool,
    subject_receives: bool,
    /// Whether the subject is the server.
    subject_serves: bool,
    long: bool,
    tiny: bool,
}

impl Round {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let way = random.u8(0..3);
        Self {
            seed,
            subject_sends: way != 1,
            subject_receives: way != 0,
            subject_serves: random.u8(0..4) == 0,
            long: random.u8(0..3) == 0,
            tiny: random.bool(),
        }
    }

    fn options(self) -> Options {
        if self.tiny { Options::new().slots(2).arena(1024) } else { Options::new() }
    }

    fn len(self, index: u64) -> usize {
        let mut random = fastrand::Rng::with_seed(self.seed ^ index.wrapping_mul(0x9e37_79b9));
        match (self.long, self.tiny) {
            (false, _) => random.usize(12..400),
            (true, true) => random.usize(12..8000),
            (true, false) => random.usize(12..700_000),
        }
    }
}

#[test]
fn survivors_of_a_kill_keep_an_intact_prefix_and_are_notified() {
    if role().is_some() {
        return fork_server::serve(|seed| {
            subject(Round::new(seed.parse().expect("a number")), Path::new(&argument()))
        });
    }
    let number = |name| std::env::var(name).ok().and_then(|it| it.parse().ok());
    let kills: u64 = number("NARROWS_KILLS").unwrap_or(200);
    let first: u64 = number("NARROWS_SEED").unwrap_or(1);
    let _watchdog = Watchdog::within("crash", Duration::from_secs(120 + kills / 10));
    let began = Instant::now();
    let counts = Counts::default();
    std::thread::scope(|s| {
        for (lane, _) in (first..first + kills).zip(0..LANES) {
            let seeds = (lane..first + kills).step_by(LANES);
            let counts = &counts;
            s.spawn(move || one_after_the_other(seeds, counts));
        }
    });
    let took = began.elapsed();
    let rate = kills as f64 / took.as_secs_f64();
    // Otherwise nothing was shown: a kill that is too early leaves nothing to lose.
    assert!(kills < 100 || counts.has_seen_all(), "{counts}");
    log(&format!("{kills} kills in {took:.1?} ({rate:.0}/s), 0 torn or lost messages seen; {counts}"));
}

/// Kills that go on at once: most of a round is waiting.
const LANES: usize = 3;
/// The kill comes within so many microseconds of the connection.
const LATEST: u64 = 3000;

/// Runs the subjects of one fork server.
fn one_after_the_other(seeds: impl Iterator<Item = u64>, counts: &Counts) {
    let folder = tempfile::tempdir().expect("directory");
    let (before, after) = (folder.path().join("survivor"), folder.path().join("subject"));
    let listener = SharedMemoryListener::bind(&before).expect("binds");
    let mut fork_server = ForkServer::start(
        "survivors_of_a_kill_keep_an_intact_prefix_and_are_notified",
        before.to_str().expect("plain"),
    );
    let reports = fork_server.reports();
    for seed in seeds {
        let round = Round::new(seed);
        fork_server.order(&seed.to_string());
        let stream = if round.subject_serves {
            reach(&after.with_extension(seed.to_string()), &Options::new())
        } else {
            take(&listener)
        };
        survive(round, stream, counts);
        assert_eq!(reports.recv_timeout(LONG), Ok(Report::Over(-libc::SIGKILL)), "{round:?}");
    }
    fork_server.end();
}

fn take(listener: &SharedMemoryListener) -> SharedMemoryStream {
    listener.accept_timeout(LONG).expect("the subject connects")
}

fn survive(round: Round, stream: SharedMemoryStream, counts: &Counts) {
    let subject = i32::try_from(stream.peer_cred().pid()).expect("a pid");
    let delay = Duration::from_micros(fastrand::Rng::with_seed(!round.seed).u64(0..LATEST));
    let (mut sender, mut receiver) = stream.split();
    let killed = OnceLock::new();
    std::thread::scope(|s| {
        if round.subject_receives {
            s.spawn(|| send_until_death(round, &mut sender, counts, &killed));
        }
        s.spawn(|| {
            std::thread::sleep(delay);
            killed.get_or_init(Instant::now);
            sys::kill(subject, libc::SIGKILL);
        });
        receive_until_death(round, &mut receiver, counts, &killed);
    });
    check_the_pages(round, &receiver, counts);
}

/// No committed message may be left. An uncommitted one may be left, and is counted.
fn check_the_pages(round: Round, receiver: &Receiver, counts: &Counts) {
    let pages = receiver.peek();
    assert_eq!(pages.unread, 0, "{round:?}");
    counts.torn.fetch_add(pages.torn, Ordering::Relaxed);
}

fn send_until_death(round: Round, sender: &mut Sender, counts: &Counts, killed: &OnceLock<Instant>) {
    let mut message = Vec::new();
    for index in 0.. {
        fill(&mut message, index, round.len(index));
        match sender.send_timeout(&message, LONG) {
            Ok(()) => counts.sent.fetch_add(1, Ordering::Relaxed),
            Err(SendTimeoutError::ConnectionLost(ConnectionError::PeerDied)) => break,
            Err(error) => panic!("{round:?}: sending {index}: {error:?}"),
        };
    }
    counts.record_death(killed);
    assert!(sender.is_disconnected());
    assert_eq!(
        sender.send_timeout(b"again", LONG),
        Err(SendTimeoutError::ConnectionLost(ConnectionError::PeerDied)),
        "{round:?}"
    );
}

fn receive_until_death(round: Round, receiver: &mut Receiver, counts: &Counts, killed: &OnceLock<Instant>) {
    let mut message = Vec::new();
    let mut next = 0;
    loop {
        match receiver.recv_into_timeout(&mut message, LONG) {
            Ok(received) => {
                assert_eq!(index_of(&message), Some(next), "{round:?}: message {next}");
                assert_eq!((received.tag, message.len()), (next, round.len(next)), "{round:?}");
                next += 1;
            }
            Err(RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)) => break,
            Err(error) => panic!("{round:?}: after {next} messages: {error:?}"),
        }
    }
    assert!(round.subject_sends || next == 0);
    counts.received.fetch_add(next, Ordering::Relaxed);
    counts.record_death(killed);
    assert_eq!(
        receiver.recv(&mut [0; 8]),
        Err(RecvError::ConnectionLost(ConnectionError::PeerDied)),
        "{round:?}"
    );
}

fn subject(round: Round, path: &Path) -> i32 {
    let stream = if round.subject_serves {
        let own: PathBuf = path.with_file_name("subject").with_extension(round.seed.to_string());
        let listener = round.options().bind(own).expect("binds");
        let stream = take(&listener);
        std::mem::forget(listener);
        stream
    } else {
        round.options().connect_timeout(path, LONG).expect("connects")
    };
    let (mut sender, mut receiver) = stream.split();
    std::thread::scope(|s| {
        if round.subject_sends {
            s.spawn(|| send_until_killed(round, &mut sender));
        }
        if round.subject_receives {
            receive_until_killed(round, &mut receiver);
        }
    });
    unreachable!("{round:?}: the halves end by panics alone")
}

/// Sends in every way. A message that is not committed must never be received.
fn send_until_killed(round: Round, sender: &mut Sender) {
    let mut message = Vec::new();
    for index in 0.. {
        fill(&mut message, index, round.len(index));
        match index % 5 {
            0 if message.len() <= sender.max_in_place() => {
                let mut room = sender.reserve(message.len()).expect("room");
                room.write_all(&message).expect("fits");
                room.set_tag(index);
                room.commit().expect("commits");
            }
            1 => {
                let mut room = sender.reserve(64).expect("room");
                room.write_all(&[0xee; 64]).expect("fits");
                drop(room);
                sender.send_tagged(&message, index).expect("sends");
            }
            _ => sender.send_tagged(&message, index).expect("sends"),
        }
    }
}

fn receive_until_killed(round: Round, receiver: &mut Receiver) {
    let mut message = Vec::new();
    for index in 0.. {
        receiver.recv_into(&mut message).expect("receives");
        assert_eq!(index_of(&message), Some(index), "{round:?}");
    }
}

/// Starts a child in `role`, to which this process hands over one end of a connection.
fn child(test: &str, role: &str) -> (Kept, SharedMemoryStream) {
    let (child, stream) = SharedMemoryStream::spawn(me(test, role, "")).expect("spawns");
    (Kept(child), stream)
}

#[test]
fn closed_and_died_are_distinguished() {
    const NAME: &str = "closed_and_died_are_distinguished";
    if let Some(role) = role() {
        let mut stream = SharedMemoryStream::from_parent().expect("handed over");
        for index in 0..3_u8 {
            stream.send(&[index]).expect("sends");
        }
        match role.as_str() {
            "drop" => drop(stream),
            "exit" => {
                std::mem::forget(stream);
                std::process::exit(0);
            }
            "abort" => std::process::abort(),
            "panic" => {
                std::panic::set_hook(Box::new(|_| ()));
                let _ = std::panic::catch_unwind(move || {
                    let _stream = stream;
                    panic!("on purpose");
                });
            }
            _ => sys::kill(i32::try_from(std::process::id()).expect("a pid"), libc::SIGKILL),
        }
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    for (role, clean) in [
        ("drop", Some(true)),
        ("panic", Some(true)),
        ("exit", None),
        ("abort", Some(false)),
        ("kill", Some(false)),
    ] {
        let (mut child, mut stream) = child(NAME, role);
        let mut got = Vec::new();
        let end = loop {
            let mut buffer = [0; 200];
            match stream.recv_timeout(&mut buffer, LONG) {
                Ok(received) => got.extend_from_slice(&buffer[..received.len]),
                Err(error) => break error,
            }
        };
        assert_eq!(got, [0, 1, 2], "{role}: what was committed comes first, and nothing else");
        match clean {
            Some(true) => {
                assert_eq!(end, RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected), "{role}")
            }
            Some(false) => {
                assert_eq!(end, RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied), "{role}")
            }
            None => assert!(
                matches!(
                    end,
                    RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected)
                        | RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied)
                ),
                "{role}: {end:?}"
            ),
        }
        log(&format!("{role}: {end:?}"));
        child.wait();
    }
}

#[test]
fn the_child_is_notified_of_its_parents_death() {
    const NAME: &str = "the_child_is_notified_of_its_parents_death";
    match role().as_deref() {
        Some("parent") => {
            let (child, mut stream) =
                SharedMemoryStream::spawn(me(NAME, "child", &argument())).expect("spawns");
            stream.send(b"last").expect("sends");
            std::mem::forget(child);
            std::thread::sleep(LONG);
        }
        Some(_) => {
            let mut stream = SharedMemoryStream::from_parent().expect("handed over");
            let mut report = SharedMemoryStream::connect(argument()).expect("connects");
            let first = stream.recv_timeout(&mut [0; 8], LONG).map(|it| it.len);
            report.send(format!("{first:?}").as_bytes()).expect("sends");
            let second = stream.recv_timeout(&mut [0; 8], LONG).map(|it| it.len);
            report.send(format!("{second:?}").as_bytes()).expect("sends");
        }
        None => {
            let _watchdog = Watchdog::new(NAME);
            let folder = tempfile::tempdir().expect("directory");
            let path = folder.path().join("report");
            let listener = SharedMemoryListener::bind(&path).expect("binds");
            let parent = Kept::start(&mut me(NAME, "parent", path.to_str().expect("plain")));
            let mut report = take(&listener);
            let mut line = Vec::new();
            report.recv_into_timeout(&mut line, LONG).expect("a report");
            assert_eq!(line, b"Ok(4)");
            drop(parent);
            report.recv_into_timeout(&mut line, LONG).expect("a report");
            assert_eq!(String::from_utf8_lossy(&line), "Err(ConnectionLost(PeerDied))");
        }
    }
}

#[test]
fn a_delivered_long_message_counts_as_sent() {
    let _watchdog = Watchdog::new("a_delivered_long_message_counts_as_sent");
    for _ in 0..300 {
        let (mut a, mut b) = SharedMemoryStream::pair().expect("pair");
        let sent = std::thread::scope(|s| {
            s.spawn(move || {
                let mut buffer = Vec::new();
                b.recv_into_timeout(&mut buffer, LONG).expect("receives");
                assert_eq!(buffer.len(), 300_000);
                drop(b);
            });
            a.send(&vec![0; 300_000])
        });
        assert_eq!(sent, Ok(()), "it was delivered, but the sender got an error");
    }
}
