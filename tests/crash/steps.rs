//! Death at every step: a subject is killed, stopped or ended at each pass of each failpoint of a small scenario. Its peer keeps
//! what was committed and gets the right end.
//!
//! ```text
//!   recording     the scenario passes its steps, and counts them: no step can be forgotten
//!   then          for each step, pass, and {kill -9, _exit, SIGSTOP and SIGCONT}: one subject
//!   at once       four lanes: the subject is {the client, the server} x it {closes, drops} in the end
//! ```
//!
//! It does not show a death within a system call, nor steps that only other scenarios pass.

#![allow(unsafe_code)]

mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::Receiver as Reports;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::fork_server::{self, ForkServer, Report};
use crate::support::{
    LONG, Watchdog, alone, argument, descriptors, eventually, log, mappings, role, sys, threads,
};
use narrows::internal::failpoint::{self, Action};
use narrows::{
    ConnectionError, RecvTimeoutError, SendTimeoutError, SharedMemoryListener, SharedMemoryStream,
};
use scenario::{FROM_SUBJECT, SLICE, Seen, options, run_subject, survive};

const NAME: &str = "a_survivor_is_notified_whatever_the_step";
/// The exit code of a subject that completed the scenario.
const COMPLETED: i32 = 9;
/// How often the scenario is recorded. A step that it passes each time can be relied on.
const RECORDINGS: usize = 4;

/// The steps that the scenario passes on any kernel, in one lane or another: in the listener, in the handshake, in the ring,
/// while parked, and at the end.
const STEPS: [&str; 5] = [
    "socket|fchmod|bind|setsockopt|listen|connect|accept4|getsockopt|open the directory|flock|fstatat|\
     eventfd|epoll_create1|epoll_ctl|epoll_wait|epoll_ctl(DEL)|unlinkat",
    "send|recv|getrlimit|memfd_create|ftruncate|mmap|madvise|format|fcntl(F_ADD_SEALS)|\
     fcntl(F_GET_SEALS)|sendmsg|recvmsg|start the peer monitor|watch",
    "store stamp|copy in|copy in, half done|store control|store tag|load stamp|load control|load tag|\
     copy out|store head|load head|load close reason|load producer closed|load consumer closed",
    "fence|load flag|store flag|take flag|store awaited ticket|load awaited ticket|wait|woken|wake consumer|\
     wake producer|wake peer consumer|futex wake",
    "set the close reason|close producer|close consumer|unwatch|close the socket|munmap",
];

/// One lane: which side the subject is, and how its connection ends.
#[derive(Clone, Copy, Debug)]
struct Lane {
    serves: bool,
    closes: bool,
}

const LANES: [Lane; 4] = [
    Lane { serves: false, closes: false },
    Lane { serves: false, closes: true },
    Lane { serves: true, closes: false },
    Lane { serves: true, closes: true },
];

#[test]
fn a_survivor_is_notified_whatever_the_step() {
    if !alone(NAME) {
        return;
    }
    if role().is_some() {
        return fork_server::serve(|order| subject(order, Path::new(&argument())));
    }
    let _watchdog = Watchdog::within(NAME, Duration::from_secs(300));
    let began = Instant::now();
    drop(SharedMemoryStream::pair().expect("pair")); // The peer monitor and its descriptors stay.
    let held = || (descriptors(), mappings("memfd:"), threads());
    let before = held();
    let tallies = std::thread::scope(|s| {
        let lanes = LANES.map(|lane| s.spawn(move || each_step(lane)));
        lanes.map(|it| it.join().expect("a lane"))
    });
    let same = || held() == before;
    assert!(eventually(same), "descriptors, mappings, threads: {before:?} before, {:?} now", held());
    for (lane, (tally, _)) in LANES.iter().zip(&tallies) {
        log(&format!("{lane:?}: {tally}"));
    }
    let ends: u64 = tallies.iter().map(|(tally, _)| tally.ends()).sum();
    let steps: BTreeSet<_> = tallies.iter().flat_map(|(_, steps)| steps.clone()).collect();
    log(&format!("{ends} ends at {} steps, in {:.1?}", steps.len(), began.elapsed()));
    // No other test would notice a lost failpoint.
    let forgotten: Vec<_> =
        STEPS.iter().flat_map(|part| part.split('|')).filter(|step| !steps.contains(*step)).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}

/// The counts of a lane.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    steps: usize,
    kills: u64,
    exits: u64,
    stops: u64,
    /// Stops during which a receive timed out.
    felt: u64,
    /// Ends before there was a connection.
    early: u64,
    /// Slots left half written.
    torn: u64,
    /// Passes that did not occur, since the scheduler chose another order.
    missed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, kills, exits, stops, felt, early, torn, missed } = self;
        write!(
            f,
            "{steps} steps, {kills} kills, {exits} exits, {stops} stops, of which {felt} made a wait of ours time out; {early} \
             ends before there was a connection, {torn} in the middle of writing a slot, which no survivor saw; {missed} passes \
             did not come"
        )
    }
}

impl Tally {
    fn ends(&self) -> u64 {
        self.kills + self.exits + self.stops
    }
}

/// The reports of the fork server about the current subject.
#[derive(Debug, Default)]
struct SubjectReports {
    over: AtomicI64,
    stops: AtomicU64,
    /// Stops during which a receive of the survivor timed out.
    felt: AtomicU64,
    timeouts: AtomicU64,
    connected: AtomicU64,
    passed: Mutex<BTreeMap<String, u64>>,
    /// Steps that any subject of the lane has passed.
    ever: Mutex<BTreeSet<String>>,
}

const ALIVE: i64 = i64::MAX;

impl SubjectReports {
    /// Receives the reports. Resumes a stopped subject once a wait of the survivor has timed out, or has had the time to.
    fn receive(&self, reports: &Reports<Report>) {
        for report in reports {
            match report {
                Report::Over(code) => self.over.store(code.into(), Ordering::SeqCst),
                Report::Stopped(pid) => self.resume(pid),
                Report::Text(text) if text == "connected" => self.connected.store(1, Ordering::SeqCst),
                Report::Text(text) => {
                    let (step, count) = text.split_once('=').expect("a count");
                    let count = count.parse().expect("a number");
                    self.ever.lock().expect("whole").insert(step.into());
                    self.passed.lock().expect("whole").insert(step.into(), count);
                }
            }
        }
    }

    fn resume(&self, pid: i32) {
        // The first may have begun before the stop.
        let enough = self.timeouts.load(Ordering::SeqCst) + 2;
        let deadline = Instant::now() + SLICE * 20;
        let felt = || self.timeouts.load(Ordering::SeqCst) >= enough;
        while !felt() && Instant::now() < deadline {
            sleep(SLICE / 4);
        }
        self.felt.fetch_add(felt().into(), Ordering::SeqCst);
        self.stops.fetch_add(1, Ordering::SeqCst);
        sys::kill(pid, libc::SIGCONT);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst) != ALIVE
    }

    fn reset(&self) {
        self.over.store(ALIVE, Ordering::SeqCst);
        for count in [&self.stops, &self.felt, &self.timeouts, &self.connected] {
            count.store(0, Ordering::SeqCst);
        }
        self.passed.lock().expect("whole").clear();
    }
}

/// The survivor of one lane: its listener serves all clients of the lane, one after the other.
struct Survivor {
    lane: Lane,
    listener: SharedMemoryListener,
    fork_server: ForkServer,
    subject_reports: Arc<SubjectReports>,
}

/// Runs one lane. Returns its counts, and the steps.
fn each_step(lane: Lane) -> (Tally, BTreeSet<String>) {
    let folder = tempfile::tempdir().expect("directory");
    let listener = options().bind(folder.path().join("survivor")).expect("binds");
    let mut fork_server = ForkServer::start(NAME, folder.path().to_str().expect("plain"));
    let subject_reports = Arc::new(SubjectReports::default());
    let (receiver, reports) = (Arc::clone(&subject_reports), fork_server.reports());
    let receiving = std::thread::spawn(move || receiver.receive(&reports));
    let survivor = Survivor { lane, listener, fork_server, subject_reports };
    let steps = survivor.record();
    let mut tally = Tally { steps: steps.len(), ..Tally::default() };
    for act in [Action::Kill, Action::Exit, Action::Stop] {
        for (step, passes) in &steps {
            for nth in picks(*passes) {
                survivor.end_at(step, nth, act, &mut tally);
            }
        }
    }
    assert!(tally.felt > 0 && tally.early > 0 && tally.torn > 0, "{lane:?}: {tally:?}");
    let ever = survivor.subject_reports.ever.lock().expect("whole").clone();
    survivor.fork_server.end();
    receiving.join().expect("no panic");
    (tally, ever)
}

/// All passes if they are few, otherwise some at the ends and in the middle. `NARROWS_STEPS` asks for `more`, or for `all`.
fn picks(passes: u64) -> Vec<u64> {
    let some = match std::env::var("NARROWS_STEPS").as_deref() {
        Ok("all") => return (1..=passes).collect(),
        Ok("more") => vec![1, 2, passes / 3, passes / 2, passes * 2 / 3, passes - 1, passes],
        _ => vec![1, passes / 2, passes],
    };
    if passes <= some.len() as u64 { (1..=passes).collect() } else { some }
}

impl Survivor {
    /// The steps that the scenario passes each time, and how often at least.
    fn record(&self) -> BTreeMap<String, u64> {
        let mut steps: Option<BTreeMap<String, u64>> = None;
        for _ in 0..RECORDINGS {
            let (seen, _) = self.run("record");
            assert_eq!(seen.expect("connects").received, FROM_SUBJECT, "{:?}", self.lane);
            let passed = self.subject_reports.passed.lock().expect("whole").clone();
            let least = |(step, count): (String, u64)| Some((step.clone(), count.min(*passed.get(&step)?)));
            steps = Some(match steps {
                None => passed,
                Some(before) => before.into_iter().filter_map(least).collect(),
            });
        }
        steps.expect("recorded")
    }

    /// Runs a subject that ends at this step, and checks what the survivor gets.
    fn end_at(&self, step: &str, nth: u64, act: Action, tally: &mut Tally) {
        let what = format!("{act:?} at pass {nth} of {step:?}, {:?}", self.lane);
        // If the scheduler decides, a pass may not occur. The first one must occur sooner or later.
        for _ in 0..if nth == 1 { 20 } else { 3 } {
            let (seen, over) = self.run(&format!("{act:?}\t{nth}\t{step}"));
            let stopped = self.subject_reports.stops.load(Ordering::SeqCst) == 1;
            if over == i64::from(COMPLETED) && !stopped {
                continue; // It did not get to that pass.
            }
            let right = match act {
                Action::Kill => (-i64::from(libc::SIGKILL), false),
                Action::Exit => (0, false),
                Action::Stop => (COMPLETED.into(), true),
            };
            assert_eq!((over, stopped), right, "{what}");
            tally.count(act, self.subject_reports.felt.load(Ordering::SeqCst));
            match seen {
                Some(seen) => tally.torn += check(&seen, act, &what),
                None => {
                    tally.early += 1;
                    assert_eq!(
                        self.subject_reports.connected.load(Ordering::SeqCst),
                        0,
                        "{what}: no connection"
                    );
                }
            }
            return;
        }
        assert!(nth > 1, "{what}: it is never reached");
        tally.missed += 1;
    }

    /// Runs the scenario with one subject. Returns what the survivor saw, if they ever connected, and the exit of the subject.
    fn run(&self, order: &str) -> (Option<Seen>, i64) {
        self.subject_reports.reset();
        self.fork_server.order(&format!("{}\t{}\t{order}", self.lane.serves, self.lane.closes));
        let stream = if self.lane.serves { self.reach() } else { self.take() };
        let seen = stream.map(|stream| survive(stream, &self.subject_reports.timeouts));
        assert!(eventually(|| self.subject_reports.is_over()), "{order}: the subject hangs");
        (seen, self.subject_reports.over.load(Ordering::SeqCst))
    }

    fn take(&self) -> Option<SharedMemoryStream> {
        loop {
            let last = self.subject_reports.is_over();
            match self.listener.accept_timeout(SLICE) {
                Ok(stream) => return Some(stream),
                Err(_) if last => return None,
                Err(error) => assert!(matches!(error, narrows::AcceptError::Timeout), "{error}"),
            }
        }
    }

    fn reach(&self) -> Option<SharedMemoryStream> {
        let path = self.listener.local_path().with_file_name("subject");
        loop {
            let last = self.subject_reports.is_over();
            match options().connect_timeout(&path, LONG) {
                Ok(stream) => return Some(stream),
                Err(_) if last => return None,
                Err(_) => sleep(SLICE / 5),
            }
        }
    }
}

impl Tally {
    fn count(&mut self, act: Action, felt: u64) {
        self.felt += felt;
        *match act {
            Action::Kill => &mut self.kills,
            Action::Exit => &mut self.exits,
            Action::Stop => &mut self.stops,
        } += 1;
    }
}

/// Checks that the ends are those that the closed flags and the action require. Returns the number of torn slots.
fn check(seen: &Seen, act: Action, what: &str) -> u64 {
    let &Seen { received, incoming, outgoing, pages, consumer_closed } = seen;
    let all = format!("{what}: {seen:?}");
    assert_eq!(pages.unread, 0, "{all}");
    let through = act == Action::Stop;
    assert!(!through || received == FROM_SUBJECT, "{all}");
    match incoming {
        RecvTimeoutError::ConnectionLost(ConnectionError::Disconnected) => {
            assert!(pages.producer_closed || act == Action::Exit, "{all}")
        }
        RecvTimeoutError::ConnectionLost(ConnectionError::PeerDied) => {
            assert!(!pages.producer_closed && !through, "{all}")
        }
        _ => panic!("{all}"),
    }
    match outgoing {
        SendTimeoutError::ConnectionLost(ConnectionError::Disconnected) => {
            assert!(consumer_closed || act == Action::Exit, "{all}")
        }
        SendTimeoutError::ConnectionLost(ConnectionError::PeerDied) => {
            assert!(!consumer_closed && !through, "{all}")
        }
        _ => panic!("{all}"),
    }
    pages.torn
}

/// The part of the subject. An order is "serves, closes, action, pass, step".
fn subject(order: &str, folder: &Path) -> i32 {
    let words: Vec<&str> = order.split('\t').collect();
    let lane = Lane { serves: words[0] == "true", closes: words[1] == "true" };
    match words[2..] {
        [act, nth, step] => failpoint::arm(step, nth.parse().expect("a number"), act_of(act)),
        _ => failpoint::record(),
    }
    let stream = if lane.serves {
        let listener = options().bind(folder.join("subject")).expect("binds");
        listener.accept_timeout(LONG).expect("accepts")
    } else {
        options().connect_timeout(folder.join("survivor"), LONG).expect("connects")
    };
    fork_server::report("connected");
    run_subject(stream, lane.closes);
    failpoint::disarm();
    if words.len() == 3 {
        failpoint::counts().iter().for_each(|(step, count)| fork_server::report(&format!("{step}={count}")));
    }
    COMPLETED
}

fn act_of(word: &str) -> Action {
    [Action::Kill, Action::Stop, Action::Exit]
        .into_iter()
        .find(|act| format!("{act:?}") == word)
        .expect("an act")
}
