//! The steady state allocates nothing, and makes no system call while no thread sleeps. Memory pages are touched only when they
//! are needed.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::allocations_in;
use crate::support::{Kept, LONG, Watchdog, argument, echo, log, me, role};
use narrows::{Options, SharedMemoryListener, SharedMemoryStream, WaitStrategy};

/// Sends and receives in all ways, while no thread sleeps.
fn traffic(a: &mut SharedMemoryStream, b: &mut SharedMemoryStream, into: &mut Vec<u8>, long: &[u8]) {
    let mut buffer = [0; 2048];
    for len in [0, 1, 40, 104, 105, 300, 1500] {
        a.send(&long[..len]).expect("sends");
        assert_eq!(b.recv(&mut buffer).expect("receives").len, len);
        a.try_send_tagged(&long[..len], 7).expect("sends");
        assert_eq!(b.recv_into(into).expect("receives").tag, 7);
        let mut room = a.reserve(len).expect("room");
        room.write_at(0, &long[..len]).expect("fits");
        room.commit().expect("commits");
        let guard = b.recv_ref().expect("a message");
        guard.read_at(0, &mut buffer[..len]).expect("reads");
        guard.finish().expect("still");
        let mut batch = a.batch();
        for _ in 0..8 {
            batch.push(&long[..len]).expect("fits");
        }
        batch.flush().expect("flushes");
        drop(batch);
        for _ in 0..8 {
            b.recv_timeout(&mut buffer, LONG).expect("receives");
        }
    }
}

#[test]
fn the_steady_state_allocates_nothing_and_wakes_no_thread() {
    let _watchdog = Watchdog::new("the_steady_state_allocates_nothing_and_wakes_no_thread");
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive, WaitStrategy::Spin] {
        let (mut a, mut b) = Options::new().wait(strategy).pair().expect("pair");
        let (mut into, long) = (Vec::with_capacity(2_000_000), vec![5; 900_000]);
        traffic(&mut a, &mut b, &mut into, &long);
        let before = (a.stats(), b.stats());
        let asked = allocations_in(|| {
            for _ in 0..500 {
                traffic(&mut a, &mut b, &mut into, &long);
            }
        });
        assert_eq!(asked, 0, "{strategy:?}: allocations in the steady state");
        let after = (a.stats(), b.stats());
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            assert_eq!((after.sleeps, after.wakes), (before.sleeps, before.wakes), "{strategy:?}");
        }
        assert!(after.0.messages_sent > before.0.messages_sent + 10_000);
    }
}

#[test]
fn long_messages_reuse_their_memory() {
    let _watchdog = Watchdog::new("long_messages_reuse_their_memory");
    let (mut a, mut b) = SharedMemoryStream::pair().expect("pair");
    let long = vec![5; 900_000];
    let mut into = Vec::new();
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..60 {
                a.send(&long).expect("sends");
            }
        });
        for _ in 0..10 {
            b.recv_into(&mut into).expect("receives");
        }
        let asked = allocations_in(|| {
            for _ in 0..50 {
                assert_eq!(b.recv_into(&mut into).expect("receives").len, long.len());
            }
        });
        assert_eq!(asked, 0, "allocations for long messages");
    });
}

#[test]
fn two_threads_that_spin_make_no_sleeps() {
    let _watchdog = Watchdog::new("two_threads_that_spin_make_no_sleeps");
    let (mut a, mut b) = Options::new().wait(WaitStrategy::Spin).pair().expect("pair");
    let before = (a.stats(), b.stats());
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut buffer = [0; 64];
            for _ in 0..2000 {
                let len = b.recv(&mut buffer).expect("receives").len;
                b.send(&buffer[..len]).expect("sends");
            }
        });
        for _ in 0..2000 {
            a.send(&[1; 64]).expect("sends");
            a.recv(&mut [0; 64]).expect("receives");
        }
    });
    let after = (a.stats(), b.stats());
    assert_eq!((after.0.sleeps, after.0.wakes), (before.0.sleeps, before.0.wakes));
    assert_eq!((after.1.sleeps, after.1.wakes), (before.1.sleeps, before.1.wakes));
}

#[test]
fn the_kernel_sees_nothing_of_the_steady_state() {
    const NAME: &str = "the_kernel_sees_nothing_of_the_steady_state";
    if role().is_some() {
        let rounds: usize = argument().parse().expect("a number");
        let (mut a, mut b) = SharedMemoryStream::pair().expect("pair");
        let (mut into, long) = (Vec::with_capacity(2_000_000), vec![5; 900_000]);
        for _ in 0..rounds {
            traffic(&mut a, &mut b, &mut into, &long);
        }
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if !strace.is_ok_and(|status| status.success()) {
        return log("strace is not installed: the count of system calls is skipped");
    }
    let calls = |rounds: usize| {
        let folder = tempfile::tempdir().expect("directory");
        let summary = folder.path().join("summary");
        let inner = me(NAME, "traffic", &rounds.to_string());
        let mut strace = Command::new("strace");
        strace.args(["-c", "-f", "-o"]).arg(&summary).arg(inner.get_program()).args(inner.get_args());
        strace.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
        assert!(Kept::start(strace.stdout(Stdio::null())).wait().success());
        let text = std::fs::read_to_string(summary).expect("reads");
        let total = text.lines().rfind(|line| line.ends_with("total")).expect("a total");
        // % time, seconds, usecs/call, calls, errors if any.
        let calls: u64 = total.split_whitespace().nth(3).and_then(|it| it.parse().ok()).expect("a count");
        (calls, text)
    };
    let ((few, _), (many, text)) = (calls(10), calls(1010));
    let messages = 1000 * 7 * 11;
    log(&format!("{few} system calls in all, and {many} with {messages} messages more"));
    assert!(many < few + 200, "{messages} messages made system calls:\n{text}");
}

/// Returns the kilobytes of the connection's pages that this process has touched.
fn touched() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("reads");
    let mut ours = false;
    let mut sum = 0;
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if first.contains('-') {
            ours = line.contains("memfd:narrows");
        } else if ours && first == "Rss:" {
            sum += line.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok()).expect("a number");
        }
    }
    sum
}

#[test]
fn memory_is_touched_only_as_needed() {
    const NAME: &str = "memory_is_touched_only_as_needed";
    match role().as_deref() {
        // Connections of other tests would count, so the test runs once more, alone in a process.
        None => return assert!(Kept::start(&mut me(NAME, "alone", "")).wait().success()),
        Some("echo") => return echo(SharedMemoryStream::connect(argument()).expect("connects")),
        Some(_) => {}
    }
    let _watchdog = Watchdog::new(NAME);
    let folder = tempfile::tempdir().expect("directory");
    let path = folder.path().join("socket");
    let listener = SharedMemoryListener::bind(&path).expect("binds");
    let _client = Kept::start(&mut me(NAME, "echo", path.to_str().expect("plain")));
    let mut stream = listener.accept_timeout(LONG).expect("accepts");
    std::thread::sleep(Duration::from_millis(20));
    let idle = touched();
    let (message, mut buffer) = ([9; 300], Vec::new());
    for at in 0..10_000 {
        stream.send(&message[..at % 301]).expect("sends");
        stream.recv_into(&mut buffer).expect("receives");
    }
    let used = touched();
    log(&format!(
        "{idle} KiB touched by a connection that carried nothing, {used} KiB after 10000 small round trips"
    ));
    assert!(idle <= 32, "{idle} KiB");
    assert!(used <= 2 * 96, "{used} KiB for both ways");
}
