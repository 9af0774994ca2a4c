//! A peer that scribbles over the shared pages: we get typed errors or bounded messages, in time,
//! with bounded CPU, and our other connections are not disturbed.
//!
//! For each kind of attack, one process is the victim, which a crash would end with a signal, and
//! one is the attacker, which did a good handshake and has the bare pages in its hands.

#![allow(unsafe_code)]

mod faults;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faults::byhand::ByHand;
use faults::{Kept, LONG, Watchdog, fill, index_of, me, role, say, sys, told};
use narrows::layout::{Control, Geometry, Kind, SLOT, words};
use narrows::{AcceptError, Options, SharedMemoryListener, SharedMemoryStream, WaitStrategy};

const MAX_MESSAGE: usize = 100_000;
const TIME: Duration = Duration::from_secs(2);

fn geometry() -> Geometry {
    Geometry::new(8, 16 << 10, 8).expect("legal")
}

/// What the victim does meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    /// Everything, quickly.
    Works,
    /// Long receives of what never comes.
    Sleeps,
}

fn run(test: &'static str, attack: impl Fn(&ByHand, &mut fastrand::Rng), victim: Victim) {
    match role().as_deref() {
        Some("victim") => be_victim(test, victim),
        Some(_) => be_attacker(Path::new(&told()), attack),
        None => {
            let _watchdog = Watchdog::new(test);
            let folder = tempfile::tempdir().expect("directory");
            let path = folder.path().join("socket");
            let mut victim = Kept::start(&mut me(test, "victim", path.to_str().expect("plain")));
            let status = victim.wait();
            assert!(status.success(), "the victim: {status}");
        }
    }
}

fn be_attacker(path: &Path, attack: impl Fn(&ByHand, &mut fastrand::Rng)) {
    let mut random = fastrand::Rng::with_seed(7);
    let until = Instant::now() + TIME + LONG;
    while Instant::now() < until {
        let Ok(hand) = ByHand::connect(path, geometry(), MAX_MESSAGE as u64) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let enough = Instant::now() + TIME;
        while !hand.over() && Instant::now() < enough {
            for _ in 0..64 {
                attack(&hand, &mut random);
            }
        }
    }
}

fn be_victim(test: &'static str, victim: Victim) {
    let path = told();
    let listener = Options::new().max_message(MAX_MESSAGE).bind(&path).expect("binds");
    let attacker = Kept::start(&mut me(test, "attacker", &path));
    let over = AtomicBool::new(false);
    let echoed = AtomicU64::new(0);
    std::thread::scope(|s| {
        s.spawn(|| undisturbed(&over, &echoed));
        let tally = match victim {
            Victim::Works => work(&listener),
            Victim::Sleeps => doze(&listener),
        };
        over.store(true, Ordering::Relaxed);
        say(&format!("{test}: {tally}"));
    });
    say(&format!("{test}: {} round trips beside it", echoed.load(Ordering::Relaxed)));
    assert!(echoed.load(Ordering::Relaxed) > 10, "the other connection was disturbed");
    drop(attacker);
}

/// A connection of the same process with an honest peer.
fn undisturbed(over: &AtomicBool, echoed: &AtomicU64) {
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
        echoed.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn work(listener: &SharedMemoryListener) -> String {
    let until = Instant::now() + TIME;
    let (mut connections, mut calls, mut fine) = (0, 0, 0);
    let mut random = fastrand::Rng::with_seed(3);
    while Instant::now() < until {
        let mut stream = match listener.accept_timeout(TIME) {
            Ok(stream) => stream,
            Err(AcceptError::Timeout) => continue,
            Err(error) => panic!("{error}"),
        };
        connections += 1;
        let enough = (Instant::now() + Duration::from_millis(200)).min(until);
        while Instant::now() < enough && !stream.is_disconnected() {
            let began = Instant::now();
            fine += u32::from(call(&mut stream, &mut random));
            calls += 1;
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "a call of 10 ms took {took:?}");
        }
        // In what state soever: it closes, and later calls still return.
        let began = Instant::now();
        for _ in 0..20 {
            call(&mut stream, &mut random);
        }
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    assert!(connections > 0 && calls > connections);
    format!("{connections} connections, {calls} calls, {fine} of them fine")
}

/// One call of any kind, with a deadline; whether it succeeded.
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

fn doze(listener: &SharedMemoryListener) -> String {
    let mut tally = String::new();
    for (strategy, close) in
        [(WaitStrategy::Park, false), (WaitStrategy::Adaptive, false), (WaitStrategy::Park, true)]
    {
        // The strategy is the listener's; what sleeps is the same below all but `Spin`.
        let mut stream = listener.accept_timeout(LONG).expect("the attacker connects");
        let (began, cpu) = (Instant::now(), sys::thread_time());
        let mut buffer = [0; 64];
        if close {
            let closer = stream.closer();
            std::thread::scope(|s| {
                s.spawn(|| {
                    std::thread::sleep(TIME / 4);
                    closer.close();
                });
                let end = stream.recv_timeout(&mut buffer, LONG);
                assert!(end.is_err_and(|end| !end.is_timeout()));
            });
        } else {
            let end = stream.recv_timeout(&mut buffer, TIME / 3);
            assert!(end.is_err_and(|end| end.is_timeout()));
        }
        let (took, cpu) = (began.elapsed(), sys::thread_time() - cpu);
        assert!(took < TIME * 5, "{strategy:?}: {took:?}");
        assert!(cpu < took / 2, "{strategy:?}: {cpu:?} of CPU in {took:?} of sleep");
        tally += &format!("slept {took:.1?} with {cpu:.1?} of CPU, {} sleeps; ", stream.stats().sleeps);
    }
    tally
}

/// The words of both directions.
fn pages(hand: &ByHand) -> [usize; 2] {
    [hand.geometry.direction(0).words, hand.geometry.direction(1).words]
}

const WORDS: [usize; 10] = [
    words::HEAD,
    words::CONSUMER_FLAG,
    words::PRODUCER_FLAG,
    words::WANTED,
    words::PRODUCER_CPU,
    words::CONSUMER_CPU,
    words::CONSUMER_WOKEN,
    words::PRODUCER_WOKEN,
    words::BELL,
    words::URGENT,
];

fn value(random: &mut fastrand::Rng) -> u64 {
    match random.u8(0..5) {
        0 => random.u64(0..20),
        1 => u64::MAX - random.u64(0..4),
        2 => 1 << random.u8(0..64),
        3 => (1 << 63) - random.u64(0..4),
        _ => random.u64(..),
    }
}

#[test]
fn random_words_everywhere() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let at = random.usize(0..hand.pages.len() / 8) * 8;
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
    };
    run("random_words_everywhere", attack, Victim::Works);
}

#[test]
fn random_values_of_the_fixed_words() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let at = pages(hand)[random.usize(0..2)] + WORDS[random.usize(0..WORDS.len())];
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
        if random.u16(..) == 0 {
            let marks = [words::PRODUCER_MARK, words::CONSUMER_MARK];
            hand.pages
                .word(pages(hand)[random.usize(0..2)] + marks[random.usize(0..2)])
                .store(1, Ordering::Relaxed);
        }
    };
    run("random_values_of_the_fixed_words", attack, Victim::Works);
}

#[test]
fn plausible_stamps_heads_and_lengths() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let ticket = random.u64(0..64);
        let direction = hand.geometry.direction(usize::from(random.u8(0..8) == 0));
        let slot = direction.slots + usize::try_from(ticket % 8).expect("small") * SLOT;
        let kinds = [Kind::Inline, Kind::Whole, Kind::First, Kind::Middle, Kind::Last];
        let control = Control {
            kind: kinds[random.usize(0..5)],
            abort: random.u8(0..4) == 0,
            len: if random.bool() { random.u32(0..106) } else { random.u32(0..20_000) },
            place: random.u32(0..260),
        };
        let total = [12, 1000, 99_999, 100_001, u64::MAX][random.usize(0..5)];
        hand.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        hand.pages.word(slot + 24).store(total, Ordering::Relaxed);
        hand.pages.word(slot).store(2 * ticket + random.u64(1..3), Ordering::Release);
        if random.bool() {
            hand.pages.word(pages(hand)[1]).store(random.u64(0..64), Ordering::Release);
        }
    };
    run("plausible_stamps_heads_and_lengths", attack, Victim::Works);
}

/// An almost honest producer: everything in order, so the victim gets deep into messages.
#[test]
fn an_endless_message_of_tiny_pieces_and_aborts() {
    let next = std::cell::Cell::new(0_u64);
    let inside = std::cell::Cell::new(false);
    let attack = move |hand: &ByHand, random: &mut fastrand::Rng| {
        let direction = hand.geometry.direction(0);
        let head = hand.pages.word(direction.words).load(Ordering::Acquire);
        if head == 0 && next.get() > 8 {
            // A new connection.
            next.set(0);
            inside.set(false);
        }
        let ticket = next.get();
        if ticket >= head + 8 {
            return;
        }
        let slot = direction.slots + usize::try_from(ticket % 8).expect("small") * SLOT;
        let first = !inside.get() || random.u8(0..50) == 0;
        let kind = if first { Kind::First } else { Kind::Middle };
        let control = Control { kind, abort: first && inside.get(), len: 1, place: random.u32(0..250) };
        hand.pages.word(slot + 8).store(control.encode(), Ordering::Relaxed);
        hand.pages.word(slot + 24).store(MAX_MESSAGE as u64, Ordering::Relaxed);
        hand.pages.word(slot).store(2 * ticket + 2, Ordering::Release);
        inside.set(true);
        next.set(ticket + 1);
    };
    run("an_endless_message_of_tiny_pieces_and_aborts", attack, Victim::Works);
}

#[test]
fn holes_in_the_memory() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        let page = random.usize(0..hand.pages.len() / 4096);
        hand.pages.punch(page * 4096, 4096 * random.usize(1..4));
        let at = random.usize(0..hand.pages.len() / 8) * 8;
        hand.pages.word(at).store(value(random), Ordering::Relaxed);
    };
    run("holes_in_the_memory", attack, Victim::Works);
}

#[test]
fn only_holes_in_the_memory() {
    let attack = |hand: &ByHand, _random: &mut fastrand::Rng| hand.pages.punch(0, hand.pages.len());
    run("only_holes_in_the_memory", attack, Victim::Works);
}

fn sleep_flags(hand: &ByHand) -> [usize; 2] {
    // The victim serves: it receives in direction 0 and sends in direction 1.
    [pages(hand)[0] + words::CONSUMER_FLAG, pages(hand)[1] + words::PRODUCER_FLAG]
}

#[test]
fn a_storm_of_wakes() {
    let attack = |hand: &ByHand, _random: &mut fastrand::Rng| {
        for at in sleep_flags(hand) {
            sys::futex_wake(hand.pages.flag(at));
        }
    };
    run("a_storm_of_wakes", attack, Victim::Sleeps);
}

#[test]
fn flags_cleared_for_ever() {
    let attack = |hand: &ByHand, random: &mut fastrand::Rng| {
        for at in sleep_flags(hand) {
            hand.pages.flag(at).store(random.u32(0..4) & !1, Ordering::Relaxed);
        }
    };
    run("flags_cleared_for_ever", attack, Victim::Sleeps);
}

#[test]
fn sleepers_moved_to_another_word() {
    let attack = |hand: &ByHand, _random: &mut fastrand::Rng| {
        for at in sleep_flags(hand) {
            sys::futex_requeue(hand.pages.flag(at), hand.pages.flag(pages(hand)[0] + 0x700));
        }
    };
    run("sleepers_moved_to_another_word", attack, Victim::Sleeps);
}

#[test]
fn a_stamp_that_flickers() {
    let attack = |hand: &ByHand, _random: &mut fastrand::Rng| {
        let slot = hand.pages.word(hand.geometry.direction(0).slots);
        for _ in 0..64 {
            slot.store(1, Ordering::Relaxed);
            slot.store(0, Ordering::Relaxed);
        }
    };
    run("a_stamp_that_flickers", attack, Victim::Sleeps);
}
