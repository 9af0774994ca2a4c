//! The soak: two processes exchange messages of all sizes, both ways, for a configurable time. Nothing is lost, torn or late,
//! and nothing grows. Ignored unless asked for:
//!
//! ```text
//! NARROWS_SOAK_MINUTES=5 cargo test -p narrows-tests --test stream soak:: -- --ignored --nocapture
//! ```
//!
//! ```text
//!   parent                          child        three connections at once:
//!     threads ◀══ lock step ══════▶ threads        one message each way in turn: any lost wake-up stalls
//!             ◀══ tiny ═══════════▶                2 slots and 1 KiB: both sides wait for space
//!             ◀══ stream ═════════▶                30 B to 1 MiB, at times 10 MiB
//! ```
//!
//! The lost-wakeup check (`src/sys/lost_wakeup_check.rs`) watches each sleep that lasts a whole slice. Both processes
//! sample their memory, descriptors and threads.
//!
//! It does not show a lost wake-up on a stream where the next message compensates for it.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

use crate::support::{Kept, LONG, Watchdog, argument, descriptors, fill, index_of, log, me, role, threads};
use narrows::internal::lost_wakeup_check;
use narrows::{Options, Receiver, Sender, SharedMemoryListener, SharedMemoryStream, WaitStrategy};

const NAME: &str = "everything_holds_for_long";
/// The sleeps that a minute must have at least, in the two processes together.
const SLEEPS: u64 = 100_000;
/// The tag of a direction's last message.
const LAST: u64 = u64::MAX;

/// How a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Step,
    Tiny,
    Stream,
}

const LANES: [Lane; 3] = [Lane::Step, Lane::Tiny, Lane::Stream];

impl Lane {
    fn options(self) -> Options {
        match self {
            Self::Tiny => Options::new().slots(2).arena(1024).wait(WaitStrategy::Park),
            Self::Step => Options::new().wait(WaitStrategy::Park),
            Self::Stream => Options::new(),
        }
    }

    fn len(self, random: &mut fastrand::Rng, index: u64) -> usize {
        match (self, random.u32(0..10_000)) {
            (Self::Stream, _) if index == 0 => 10 << 20, // The buffers grow at once.
            (Self::Step, _) => random.usize(30..600),
            (Self::Tiny, _) => random.usize(30..3000),
            (_, 0..2) => 10 << 20,
            (_, 2..100) => random.usize(30..1 << 20),
            _ => random.usize(30..4000),
        }
    }

    /// A pause before a message. Mostly there is none, so that the peer sometimes sleeps and sometimes does not. Rarely it is
    /// longer than a slice of sleep, so that a lost wake-up has the time to be seen.
    fn pause(self, random: &mut fastrand::Rng) {
        match random.u32(0..4000) {
            0 => sleep(Duration::from_millis(150)),
            1..1500 => sleep(Duration::from_micros(random.u64(0..100))),
            _ => {}
        }
    }
}

/// What all threads of a process share.
#[derive(Debug)]
struct Soak {
    parent: bool,
    over: AtomicBool,
    messages: AtomicU64,
    bytes: AtomicU64,
}

#[test]
#[ignore = "as long as NARROWS_SOAK_MINUTES says, one minute if it says nothing"]
fn everything_holds_for_long() {
    let minutes = std::env::var("NARROWS_SOAK_MINUTES").ok().and_then(|it| it.parse().ok()).unwrap_or(1.0);
    let time = Duration::from_secs_f64(minutes * 60.0);
    let _watchdog = Watchdog::within("soak", time * 3 + Duration::from_secs(120));
    lost_wakeup_check::watch();
    if role().is_some() {
        let streams = LANES.map(|lane| {
            lane.options().connect_timeout(format!("{}-{lane:?}", argument()), LONG).expect("connects")
        });
        return run(streams, false, time);
    }
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("soak");
    let path = path.to_str().expect("plain");
    let listeners = LANES.map(|lane| lane.options().bind(format!("{path}-{lane:?}")).expect("binds"));
    let mut child = Kept::start(&mut me(NAME, "child", path));
    let accept = |it: &SharedMemoryListener| it.accept_timeout(LONG).expect("accepts");
    let streams = listeners.each_ref().map(accept);
    drop(listeners);
    run(streams, true, time);
    assert!(child.wait().success(), "the other process found something");
}

/// The soak in one of the two processes. The parent ends it, by a last message on each connection.
fn run(streams: [SharedMemoryStream; 3], parent: bool, time: Duration) {
    let soak =
        Soak { parent, over: AtomicBool::new(false), messages: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    let began = Instant::now();
    let samples = std::thread::scope(|s| {
        LANES.into_iter().zip(streams).for_each(|(lane, stream)| soak.start(s, lane, stream));
        let samples = soak.watch(began, time);
        soak.over.store(true, Ordering::Relaxed);
        samples
    });
    let seen = lost_wakeup_check::seen();
    let [messages, bytes] = [&soak.messages, &soak.bytes].map(|it| it.load(Ordering::Relaxed));
    let process = if parent { "parent" } else { "child" };
    let (first, last) = (median(&samples, 0), median(&samples, 2));
    log(&format!(
        "{process}: {:.1?}, {messages} messages, {} MiB received; {seen:?}; of the first and last third: \
         {first:?}, {last:?}",
        began.elapsed(),
        bytes >> 20
    ));
    assert_eq!(seen.lost, 0, "{process}: wake-ups were lost");
    flat(first, last);
}

impl Soak {
    fn start<'s>(&'s self, s: &'s Scope<'s, '_>, lane: Lane, mut stream: SharedMemoryStream) {
        if lane == Lane::Step {
            s.spawn(move || self.in_turn(&mut stream));
            return;
        }
        let (mut sender, mut receiver) = stream.split();
        s.spawn(move || {
            let mut random = fastrand::Rng::with_seed(lane as u64);
            (0..).try_for_each(|index| self.send(&mut sender, lane, &mut random, index)).expect_err("ends");
        });
        s.spawn(move || {
            (0..).try_for_each(|index| self.receive(&mut receiver, index)).expect_err("ends");
            self.over.store(true, Ordering::Relaxed); // In the child.
        });
    }

    /// One message each way in turn, so each waits for each.
    fn in_turn(&self, stream: &mut SharedMemoryStream) {
        let mut random = fastrand::Rng::with_seed(self.parent.into());
        let (sender, receiver) = stream.halves();
        let ended = (0..).try_for_each(|index| {
            if self.parent {
                self.send(sender, Lane::Step, &mut random, index)?;
                return self.receive(receiver, index);
            }
            self.receive(receiver, index)?;
            self.send(sender, Lane::Step, &mut random, index)
        });
        ended.expect_err("ends");
    }

    /// Sends the next message, or the last.
    fn send(
        &self,
        sender: &mut Sender,
        lane: Lane,
        random: &mut fastrand::Rng,
        index: u64,
    ) -> Result<(), End> {
        lane.pause(random);
        let over = self.over.load(Ordering::Relaxed) && (self.parent || lane != Lane::Step);
        let mut message = Vec::new();
        fill(&mut message, index, lane.len(random, index));
        let tag = if over { LAST } else { index };
        sender.send_tagged_timeout(&message, tag, LONG).expect("sends");
        if over { Err(End) } else { Ok(()) }
    }

    /// Receives the next message, which must be whole and in order. Returns the end after the last one.
    fn receive(&self, receiver: &mut Receiver, index: u64) -> Result<(), End> {
        let mut message = Vec::new();
        let received = match receiver.recv_into_timeout(&mut message, LONG) {
            Ok(received) => received,
            Err(error) => panic!("message {index}: {error}"),
        };
        assert_eq!(index_of(&message), Some(index), "a torn message, or one out of turn");
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        if received.tag == LAST { Err(End) } else { Ok(()) }
    }

    /// Samples until the time is over and enough sleeps were seen. The child samples until the last message arrives.
    fn watch(&self, began: Instant, time: Duration) -> Vec<Sample> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of sleeps")]
        let enough = (SLEEPS as f64 * time.as_secs_f64() / 60.0 / 2.0) as u64;
        let mut samples = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            sleep((time / 300).min(Duration::from_secs(1)));
            samples.push(Sample::now());
            let done = began.elapsed() >= time && lost_wakeup_check::seen().sleeps >= enough;
            if self.parent && (done || began.elapsed() >= time * 3) {
                assert!(done, "{} real sleeps, {enough} wanted", lost_wakeup_check::seen().sleeps);
                break;
            }
        }
        samples
    }
}

/// The end of a direction.
#[derive(Clone, Copy, Debug)]
struct End;

/// What this process uses.
#[derive(Clone, Copy, Debug)]
struct Sample {
    kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Sample {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("reads");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        let kib = line.trim_end_matches("kB").trim().parse().expect("a number");
        Self { kib, descriptors: descriptors(), threads: threads() }
    }
}

/// The medians of one third of the samples, after a tenth for warming up.
fn median(samples: &[Sample], third: usize) -> Sample {
    let warm = samples.get(samples.len() / 10..).expect("a part");
    let part = warm.chunks(warm.len().div_ceil(3).max(1)).nth(third).expect("enough samples");
    let middle = |of: fn(&Sample) -> u64| {
        let mut sorted: Vec<u64> = part.iter().map(of).collect();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let small = |number: u64| usize::try_from(number).expect("small");
    Sample {
        kib: middle(|it| it.kib),
        descriptors: small(middle(|it| it.descriptors as u64)),
        threads: small(middle(|it| it.threads as u64)),
    }
}

/// Memory may differ by what the allocator keeps of one of the largest messages in each of the buffers.
fn flat(first: Sample, last: Sample) {
    assert_eq!((first.descriptors, first.threads), (last.descriptors, last.threads));
    assert!(last.kib <= first.kib + first.kib / 5 + (24 << 10), "from {} to {} KiB", first.kib, last.kib);
}
