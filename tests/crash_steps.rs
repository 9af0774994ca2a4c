//! Death at every step: a victim is killed, stopped or ended at each passing of each failpoint of a small
//! scenario, and its peer keeps what was committed and is told the right end.
//!
//! ```text
//!   recording     the scenario passes its steps, and counts them: no step can be forgotten
//!   then          for each step, passing, and {kill -9, _exit, SIGSTOP and SIGCONT}: one victim
//!   at once       four lanes: the victim is {the client, the server} x it {closes, drops} in the end
//! ```
//!
//! What it does not show: a death within a system call; and steps that only other scenarios pass.

#![allow(unsafe_code)]

mod faults;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::Receiver as Reports;
use std::time::{Duration, Instant};

use faults::nursery::{self, Nursery, Report};
use faults::{LONG, Watchdog, descriptors, eventually, fill, index_of, role, say, sys, told};
use narrows::internal::Peek;
use narrows::internal::failpoint::{self, Act};
use narrows::{
    Options, RecvTimeoutError, SendTimeoutError, SharedMemoryListener, SharedMemoryStream, WaitStrategy,
};

const NAME: &str = "a_survivor_is_told_whatever_the_step";
/// What a victim returns that came to its end.
const THROUGH: i32 = 9;
/// Messages of the scenario, from the victim.
const FROM_VICTIM: u64 = 10;
/// How often the scenario is recorded: what it passes each time can be counted on.
const RECORDINGS: usize = 4;
/// A receive of the survivor's lasts so long at most, so that it can be seen to time out.
const SLICE: Duration = Duration::from_millis(1);

fn options() -> Options {
    Options::new().slots(2).arena(1024).wait(WaitStrategy::Park)
}

/// One lane: who is the victim, and how its connection ends.
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
fn a_survivor_is_told_whatever_the_step() {
    if role().is_some() {
        return nursery::serve(|order| victim(order, Path::new(&told())));
    }
    let _watchdog = Watchdog::within(NAME, Duration::from_secs(300));
    let began = Instant::now();
    drop(SharedMemoryStream::pair().expect("pair")); // The lifeline and its descriptors stay.
    let before = descriptors();
    let tallies = std::thread::scope(|s| {
        let lanes = LANES.map(|lane| s.spawn(move || each_step(lane)));
        lanes.map(|it| it.join().expect("a lane"))
    });
    let left = || descriptors() == before;
    assert!(eventually(left), "{before} descriptors before, {} now", descriptors());
    for (lane, tally) in LANES.iter().zip(&tallies) {
        say(&format!("{lane:?}: {} steps, {tally:?}", tally.steps));
    }
    let ends: u64 = tallies.iter().map(Tally::ends).sum();
    say(&format!("{ends} ends at steps, in {:.1?}", began.elapsed()));
}

/// What a lane has seen.
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
    /// Passings that did not come, since the scheduler chose another way.
    missed: u64,
}

impl Tally {
    fn ends(&self) -> u64 {
        self.kills + self.exits + self.stops
    }
}

/// What the nursery reports about the present victim.
#[derive(Debug, Default)]
struct News {
    over: AtomicI64,
    stops: AtomicU64,
    /// Receives that timed out while it was stopped, of those that were stopped.
    felt: AtomicU64,
    timeouts: AtomicU64,
    connected: AtomicU64,
    passed: std::sync::Mutex<BTreeMap<String, u64>>,
}

const ALIVE: i64 = i64::MAX;

impl News {
    /// Listens, and sends on who was stopped once the survivor has felt it, or had the time to.
    fn hear(&self, reports: &Reports<Report>) {
        for report in reports {
            match report {
                Report::Over(code) => self.over.store(code.into(), Ordering::SeqCst),
                Report::Stopped(pid) => self.resume(pid),
                Report::Said(text) if text == "connected" => self.connected.store(1, Ordering::SeqCst),
                Report::Said(text) => {
                    let (step, count) = text.split_once('=').expect("a count");
                    let count = count.parse().expect("a number");
                    self.passed.lock().expect("whole").insert(step.into(), count);
                }
            }
        }
    }

    fn resume(&self, pid: i32) {
        // The first may have begun before the stop.
        let enough = self.timeouts.load(Ordering::SeqCst) + 2;
        let until = Instant::now() + SLICE * 20;
        let felt = || self.timeouts.load(Ordering::SeqCst) >= enough;
        while !felt() && Instant::now() < until {
            std::thread::sleep(SLICE / 4);
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

/// One lane's survivor: its listener serves all clients of the lane, one after the other.
struct Survivor {
    lane: Lane,
    listener: SharedMemoryListener,
    nursery: Nursery,
    news: Arc<News>,
}

fn each_step(lane: Lane) -> Tally {
    let folder = tempfile::tempdir().expect("directory");
    let listener = options().bind(folder.path().join("survivor")).expect("binds");
    let mut nursery = Nursery::start(NAME, folder.path().to_str().expect("plain"));
    let news = Arc::new(News::default());
    let (hears, reports) = (Arc::clone(&news), nursery.reports());
    let hearing = std::thread::spawn(move || hears.hear(&reports));
    let survivor = Survivor { lane, listener, nursery, news };
    let steps = survivor.record();
    let mut tally = Tally { steps: steps.len(), ..Tally::default() };
    for act in [Act::Kill, Act::Exit, Act::Stop] {
        for (step, passings) in &steps {
            for nth in picks(*passings) {
                survivor.end_at(step, nth, act, &mut tally);
            }
        }
    }
    assert!(tally.felt > 0 && tally.early > 0 && tally.torn > 0, "{lane:?}: {tally:?}");
    survivor.nursery.end();
    hearing.join().expect("heard all");
    tally
}

/// All passings if they are few, or if it is asked for; else some at the ends and in the middle.
fn picks(passings: u64) -> Vec<u64> {
    if passings <= 7 || std::env::var("NARROWS_STEPS").is_ok() {
        return (1..=passings).collect();
    }
    vec![1, 2, passings / 3, passings / 2, passings * 2 / 3, passings - 1, passings]
}

impl Survivor {
    /// The steps that the scenario passes each time, and how often at least.
    fn record(&self) -> BTreeMap<String, u64> {
        let mut steps: Option<BTreeMap<String, u64>> = None;
        for _ in 0..RECORDINGS {
            let (seen, _) = self.run("record");
            assert_eq!(seen.expect("connects").0, FROM_VICTIM, "{:?}", self.lane);
            let passed = self.news.passed.lock().expect("whole").clone();
            let least = |(step, count): (String, u64)| Some((step.clone(), count.min(*passed.get(&step)?)));
            steps = Some(match steps {
                None => passed,
                Some(before) => before.into_iter().filter_map(least).collect(),
            });
        }
        steps.expect("recorded")
    }

    /// A victim that ends there, and what the survivor is told.
    fn end_at(&self, step: &str, nth: u64, act: Act, tally: &mut Tally) {
        let what = format!("{act:?} at passing {nth} of {step:?}, {:?}", self.lane);
        for _ in 0..3 {
            let (seen, over) = self.run(&format!("{act:?}\t{nth}\t{step}"));
            let stopped = self.news.stops.load(Ordering::SeqCst) == 1;
            if over == i64::from(THROUGH) && !stopped {
                continue; // It did not come to that passing.
            }
            let right = match act {
                Act::Kill => (-i64::from(libc::SIGKILL), false),
                Act::Exit => (0, false),
                Act::Stop => (THROUGH.into(), true),
            };
            assert_eq!((over, stopped), right, "{what}");
            tally.count(act, self.news.felt.load(Ordering::SeqCst));
            match seen {
                Some(seen) => tally.torn += judge(&seen, act, &what),
                None => {
                    tally.early += 1;
                    assert_eq!(self.news.connected.load(Ordering::SeqCst), 0, "{what}: no connection");
                }
            }
            return;
        }
        assert!(nth > 1, "{what}: it is never reached");
        tally.missed += 1;
    }

    /// Plays the scenario with one victim: what was seen, if they ever connected, and its end.
    fn run(&self, order: &str) -> (Option<Seen>, i64) {
        self.news.reset();
        self.nursery.order(&format!("{}\t{}\t{order}", self.lane.serves, self.lane.closes));
        let stream = if self.lane.serves { self.reach() } else { self.take() };
        let seen = stream.map(|stream| survive(stream, &self.news));
        assert!(eventually(|| self.news.is_over()), "{order}: the victim hangs");
        (seen, self.news.over.load(Ordering::SeqCst))
    }

    fn take(&self) -> Option<SharedMemoryStream> {
        loop {
            let last = self.news.is_over();
            match self.listener.accept_timeout(SLICE) {
                Ok(stream) => return Some(stream),
                Err(_) if last => return None,
                Err(error) => assert!(matches!(error, narrows::AcceptError::Timeout), "{error}"),
            }
        }
    }

    fn reach(&self) -> Option<SharedMemoryStream> {
        let path = self.listener.local_path().with_file_name("victim");
        loop {
            let last = self.news.is_over();
            match options().connect_timeout(&path, LONG) {
                Ok(stream) => return Some(stream),
                Err(_) if last => return None,
                Err(_) => std::thread::sleep(SLICE / 5),
            }
        }
    }
}

impl Tally {
    fn count(&mut self, act: Act, felt: u64) {
        self.felt += felt;
        *match act {
            Act::Kill => &mut self.kills,
            Act::Exit => &mut self.exits,
            Act::Stop => &mut self.stops,
        } += 1;
    }
}

/// Messages received, the ends of both directions, the incoming pages at the end, and whether the
/// victim has marked the outgoing direction.
struct Seen(u64, RecvTimeoutError, SendTimeoutError, Peek, bool);

/// Whether the ends are those that the marks and the act ask for; returns the torn slots.
fn judge(&Seen(received, incoming, outgoing, pages, consumer_closed): &Seen, act: Act, what: &str) -> u64 {
    let all = format!("{what}: {received} received, {incoming:?}, {outgoing:?}, {pages:?}");
    assert_eq!(pages.unread, 0, "{all}");
    let through = act == Act::Stop;
    assert!(!through || received == FROM_VICTIM, "{all}");
    match incoming {
        RecvTimeoutError::Disconnected => assert!(pages.producer_closed || act == Act::Exit, "{all}"),
        RecvTimeoutError::PeerDied => assert!(!pages.producer_closed && !through, "{all}"),
        _ => panic!("{all}"),
    }
    match outgoing {
        SendTimeoutError::Disconnected => assert!(consumer_closed || act == Act::Exit, "{all}"),
        SendTimeoutError::PeerDied => assert!(!consumer_closed && !through, "{all}"),
        _ => panic!("{all}"),
    }
    pages.torn
}

/// The survivor's part. It sleeps where the victim is to find it asleep, or late.
fn survive(mut stream: SharedMemoryStream, news: &News) -> Seen {
    let mut received = 0;
    let played = play_along(&mut stream, &mut received, news);
    // Whatever ended it, each direction now says how it ended, and says it again.
    let (sender, receiver) = stream.halves();
    let incoming = loop {
        match next(receiver, &mut received, news) {
            Ok(()) => {}
            Err(end) => break end,
        }
    };
    let mut message = Vec::new();
    fill(&mut message, 0, 700);
    let outgoing = (0..).find_map(|_| sender.send_timeout(&message, LONG).err()).expect("an end");
    assert!(played.is_err() || received == FROM_VICTIM);
    assert_eq!(receiver.recv_timeout(&mut [0; 8], LONG), Err(incoming));
    assert!(sender.is_disconnected());
    Seen(received, incoming, outgoing, receiver.peek(), sender.peek().consumer_closed)
}

type Played = Result<(), Box<dyn std::error::Error>>;

fn play_along(stream: &mut SharedMemoryStream, received: &mut u64, news: &News) -> Played {
    let (sender, receiver) = stream.halves();
    next(receiver, received, news)?; // It is asleep when this comes.
    std::thread::sleep(SLICE); // The victim finds no room.
    (0..5).try_for_each(|_| next(receiver, received, news))?;
    std::thread::sleep(SLICE); // The victim sleeps.
    send_all_kinds(sender)?;
    std::thread::sleep(SLICE); // The victim waits for either.
    (0..3).try_for_each(|_| next(receiver, received, news))?;
    send(sender, 6, 30)?;
    next(receiver, received, news)?;
    send(sender, 7, 30)
}

/// The next message, which must be the next, and whole; in slices, so that waiting can be felt.
fn next(receiver: &mut narrows::Receiver, received: &mut u64, news: &News) -> Result<(), RecvTimeoutError> {
    let mut message = Vec::new();
    let until = Instant::now() + LONG;
    loop {
        match receiver.recv_into_timeout(&mut message, SLICE) {
            Ok(_) => break,
            Err(RecvTimeoutError::Timeout) => news.timeouts.fetch_add(1, Ordering::SeqCst),
            Err(end) => return Err(end),
        };
        assert!(Instant::now() < until, "neither a message nor an end after {received}");
    }
    assert_eq!(index_of(&message), Some(*received), "a torn message, or one out of turn");
    *received += 1;
    Ok(())
}

/// The victim's part: an order is "serves, closes, act, passing, step".
fn victim(order: &str, folder: &Path) -> i32 {
    let words: Vec<&str> = order.split('\t').collect();
    let lane = Lane { serves: words[0] == "true", closes: words[1] == "true" };
    match words[2..] {
        [act, nth, step] => failpoint::arm(step, nth.parse().expect("a number"), act_of(act)),
        _ => failpoint::record(),
    }
    let stream = if lane.serves {
        let listener = options().bind(folder.join("victim")).expect("binds");
        listener.accept_timeout(LONG).expect("accepts")
    } else {
        options().connect_timeout(folder.join("survivor"), LONG).expect("connects")
    };
    nursery::report("connected");
    scenario(stream, lane);
    failpoint::disarm();
    if words.len() == 3 {
        failpoint::counts().iter().for_each(|(step, count)| nursery::report(&format!("{step}={count}")));
    }
    THROUGH
}

fn act_of(word: &str) -> Act {
    [Act::Kill, Act::Stop, Act::Exit].into_iter().find(|act| format!("{act:?}") == word).expect("an act")
}

fn scenario(mut stream: SharedMemoryStream, lane: Lane) {
    std::thread::sleep(SLICE / 2); // The survivor sleeps when the first comes.
    let (sender, receiver) = stream.halves();
    send_all_kinds(sender).expect("sends");
    let mut message = Vec::new();
    for index in 0..6 {
        if index == 1 {
            let guard = receiver.recv_ref_timeout(LONG).expect("lent");
            message = guard.to_vec().expect("whole");
        } else {
            receiver.recv_into_timeout(&mut message, LONG).expect("receives");
        }
        assert_eq!(index_of(&message), Some(index));
    }
    (6..8).for_each(|index| send(sender, index, 20).expect("sends"));
    let ready = stream.wait_either_timeout(20, LONG).expect("either");
    assert!(ready.space && !ready.message);
    let (sender, receiver) = stream.halves();
    (8..10).for_each(|index| send(sender, index, 20).expect("sends"));
    for index in 6..8 {
        receiver.recv_into_timeout(&mut message, LONG).expect("receives");
        assert_eq!(index_of(&message), Some(index));
    }
    if lane.closes {
        stream.close();
    } else {
        let (sender, receiver) = stream.split();
        drop(sender);
        drop(receiver);
    }
}

fn send(sender: &mut narrows::Sender, index: u64, len: usize) -> Played {
    let mut message = Vec::new();
    fill(&mut message, index, len);
    Ok(sender.send_timeout(&message, LONG)?)
}

/// Six messages: in a slot, in the arena, reserved, two in a batch, and in pieces.
fn send_all_kinds(sender: &mut narrows::Sender) -> Played {
    let mut message = Vec::new();
    send(sender, 0, 20)?;
    send(sender, 1, 300)?;
    let mut lost = sender.reserve_timeout(64, LONG)?;
    lost.write_all(&[0xee; 64]).expect("fits");
    drop(lost);
    fill(&mut message, 2, 40);
    let mut room = sender.reserve_timeout(message.len(), LONG)?;
    room.write_all(&message).expect("fits");
    room.commit()?;
    let mut batch = sender.batch();
    for (index, len) in [(3, 50), (4, 200)] {
        fill(&mut message, index, len);
        batch.push_timeout(&message, LONG)?;
    }
    batch.flush()?;
    drop(batch);
    send(sender, 5, 3000)
}
