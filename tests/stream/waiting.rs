//! Blocking calls: each event that ends them, and that no other event does.

use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Partner, Watchdog, bytes, role};
use narrows::{
    ConnectionError, Options, RecvError, RecvTimeoutError, SendError, SendTimeoutError, SharedMemoryStream,
    TryRecvError, TrySendError, WaitStrategy,
};

const STRATEGIES: [WaitStrategy; 3] = [WaitStrategy::Park, WaitStrategy::Adaptive, WaitStrategy::Spin];
const MOMENT: Duration = Duration::from_millis(30);

fn options() -> Options {
    Options::new().slots(8).arena(4096)
}

fn pair(wait: WaitStrategy) -> (SharedMemoryStream, SharedMemoryStream) {
    options().wait(wait).pair().expect("pairs")
}

fn fill(stream: &mut SharedMemoryStream) {
    while stream.try_send(b"filler").is_ok() {}
}

/// Every call that may block, for a stream that has nothing to receive and no room to send; each
/// says whether it ended with the expected end of a receive or of a send.
type Blocked = fn(&mut SharedMemoryStream, RecvError, SendError);

const BLOCKED: [Blocked; 9] = [
    |stream, end, _| assert_eq!(stream.recv(&mut [0; 64]), Err(end)),
    |stream, end, _| assert_eq!(stream.recv_into(&mut Vec::new()), Err(end)),
    |stream, end, _| assert_eq!(stream.recv_ref().map(|_| ()), Err(end)),
    |stream, _, end| assert_eq!(stream.send(b"small"), Err(end)),
    |stream, _, end| assert_eq!(stream.send(&[1; 9999]), Err(end)),
    |stream, _, end| assert_eq!(stream.reserve(9).map(|_| ()), Err(end)),
    |stream, _, end| assert_eq!(stream.batch().push(b"pushed"), Err(end)),
    |stream, receive_end, send_end| {
        // One direction may be seen to end before the other.
        let ready = stream.wait_either(5).expect("ready");
        if ready.message {
            assert_eq!(stream.recv(&mut [0; 64]), Err(receive_end));
        }
        if ready.space {
            assert_eq!(stream.send(b"small"), Err(send_end));
        }
        assert!(ready.message || ready.space);
    },
    |stream, end, _| {
        let mut items = stream.iter();
        assert_eq!(items.next(), None, "{end:?} is a clean end");
        assert_eq!(items.next(), None);
    },
];

#[test]
fn a_local_close_ends_every_blocked_call() {
    let _watch = Watchdog::new("local close");
    for blocked in BLOCKED {
        for (wait, pause) in STRATEGIES.into_iter().zip([MOMENT, MOMENT / 10, Duration::ZERO]) {
            let (mut a, _b) = pair(wait);
            fill(&mut a);
            let closer = a.closer();
            thread::scope(|scope| {
                scope.spawn(|| {
                    blocked(
                        &mut a,
                        RecvError::ConnectionLost(ConnectionError::Closed),
                        SendError::ConnectionLost(ConnectionError::Closed),
                    )
                });
                sleep(pause);
                closer.close();
            });
            assert!(a.is_disconnected());
            assert_eq!(a.try_send(b""), Err(TrySendError::ConnectionLost(ConnectionError::Closed)));
            assert_eq!(a.try_recv(&mut []), Err(TryRecvError::ConnectionLost(ConnectionError::Closed)));
        }
    }
}

#[test]
fn the_peers_drop_ends_every_blocked_call() {
    let _watch = Watchdog::new("drop");
    for blocked in BLOCKED {
        for (wait, pause) in STRATEGIES.into_iter().zip([Duration::ZERO, MOMENT, MOMENT / 10]) {
            let (mut a, b) = pair(wait);
            fill(&mut a);
            thread::scope(|scope| {
                scope.spawn(|| {
                    blocked(
                        &mut a,
                        RecvError::ConnectionLost(ConnectionError::Disconnected),
                        SendError::ConnectionLost(ConnectionError::Disconnected),
                    )
                });
                sleep(pause);
                drop(b);
            });
        }
    }
}

#[test]
fn a_half_that_is_dropped_ends_its_direction_alone() {
    let _watch = Watchdog::new("half");
    let (a, mut b) = pair(WaitStrategy::Park);
    let (mut tx, rx) = a.split();
    drop(rx);
    assert_eq!(b.send(b""), Err(SendError::ConnectionLost(ConnectionError::Disconnected)));
    tx.send(b"still").expect("the other direction lives");
    assert_eq!(b.recv_ref().expect("comes").to_vec().expect("ours"), b"still");
    drop(tx);
    assert_eq!(b.recv(&mut []), Err(RecvError::ConnectionLost(ConnectionError::Disconnected)));
}

#[test]
fn an_end_of_sending_alone_is_no_message() {
    let _watch = Watchdog::new("an end of sending");
    let (mut a, b) = pair(WaitStrategy::Park);
    let (mut tx, rx) = b.split();
    drop(rx);
    let ready = a.wait_either(5).expect("a send would end at once");
    assert!(ready.space && !ready.message, "{ready:?}");
    assert_eq!(a.try_recv(&mut []), Err(TryRecvError::WouldBlock));
    tx.send(b"").expect("the other direction lives");
    let ready = a.wait_either(5).expect("both would end at once");
    assert!(ready.space && ready.message, "{ready:?}");
}

#[test]
fn halves_of_two_connections_are_waited_for_all_the_same() {
    let _watch = Watchdog::new("halves of two");
    let ((mut a, mut peer), (mut other, _b)) = (pair(WaitStrategy::Park), pair(WaitStrategy::Park));
    std::mem::swap(a.halves().1, other.halves().1);
    fill(&mut a);
    assert_eq!(a.wait_either_timeout(5, MOMENT), Err(SendTimeoutError::Timeout));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            assert!(a.wait_either(5).expect("room").space);
            Instant::now()
        });
        sleep(MOMENT * 50);
        let start = Instant::now();
        while peer.try_recv(&mut [0; 64]).is_ok() {}
        let took = waiter.join().expect("ends").saturating_duration_since(start);
        assert!(took < MOMENT * 3, "{took:?}: a slice of sleep");
    });
}

#[test]
fn a_message_wakes_a_sleeping_receiver() {
    let _watch = Watchdog::new("a sleeping receiver");
    for wait in STRATEGIES {
        let (mut a, mut b) = pair(wait);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| b.recv_ref().expect("comes").to_vec().expect("ours"));
            sleep(MOMENT);
            a.send(b"wake up").expect("sends");
            assert_eq!(receiver.join().expect("ends"), b"wake up");
        });
    }
}

#[test]
fn space_wakes_a_sleeping_sender_though_the_receiver_goes_away() {
    let _watch = Watchdog::new("a sleeping sender");
    for wait in STRATEGIES {
        for message in [vec![1; 6], vec![1; 1000], vec![1; 4096]] {
            let (mut a, mut b) = pair(wait);
            let mut in_ring = 0;
            while a.try_send(&message).is_ok() {
                in_ring += 1;
            }
            thread::scope(|scope| {
                let sender = scope.spawn(|| a.send(&message));
                sleep(MOMENT);
                // Takes exactly the messages that are there, and makes no call after that.
                for _ in 0..in_ring {
                    assert_eq!(b.recv_ref().expect("there").len(), message.len());
                }
                assert_eq!(sender.join().expect("ends"), Ok(()));
            });
            drop(b);
        }
    }
}

#[test]
fn messages_that_exceed_the_ring_reach_a_receiver_that_sleeps() {
    let _watch = Watchdog::new("more than the ring");
    for wait in STRATEGIES {
        let (mut a, mut b) = pair(wait);
        let long = bytes(1, 50_000);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut buffer = Vec::new();
                for index in 0..100_u8 {
                    b.recv_into(&mut buffer).expect("comes");
                    assert_eq!(buffer, [index; 70]);
                }
                b.recv_into(&mut buffer).expect("comes");
                buffer
            });
            sleep(MOMENT);
            let mut batch = a.batch();
            for index in 0..100_u8 {
                batch.push(&[index; 70]).expect("fits in parts");
            }
            batch.push(&long).expect("goes by itself");
            drop(batch);
            assert_eq!(receiver.join().expect("ends"), long);
        });
    }
}

#[test]
fn room_for_the_beginning_is_room_for_a_long_message() {
    let _watch = Watchdog::new("room for a beginning");
    let (mut a, mut b) = SharedMemoryStream::pair().expect("a pair");
    a.send(&[1; 200]).expect("there is room");
    for len in [a.max_in_place() + 1, a.max_message(), usize::MAX] {
        let ready =
            a.wait_either_timeout(len, MOMENT).expect("its first fragment fits beside the other message");
        assert!(ready.space && !ready.message);
    }
    // The largest message that can be reserved needs all of the arena.
    assert_eq!(a.wait_either_timeout(a.max_in_place(), MOMENT), Err(SendTimeoutError::Timeout));
    assert!(a.try_reserve(a.max_in_place()).is_err());
    drop(b.recv_ref().expect("there"));
    assert!(a.wait_either(a.max_in_place()).expect("room").space);
    a.try_reserve(a.max_in_place()).expect("all is free").commit().expect("ours");
}

#[test]
fn waiting_for_either_ends_with_whichever_comes() {
    let _watch = Watchdog::new("either");
    for len in [0, 5, 500, 4096, 9999] {
        let (mut a, mut b) = pair(WaitStrategy::Adaptive);
        let ready = a.wait_either(len).expect("room");
        assert!(ready.space && !ready.message);
        fill(&mut a);
        let start = Instant::now();
        assert_eq!(a.wait_either_timeout(len, MOMENT), Err(SendTimeoutError::Timeout));
        assert!(start.elapsed() >= MOMENT);
        assert_eq!(a.wait_either_timeout(len, Duration::ZERO), Err(SendTimeoutError::Timeout));
        assert_eq!(a.wait_either_deadline(len, start), Err(SendTimeoutError::Timeout));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| a.wait_either(len).expect("ready"));
            sleep(MOMENT);
            b.send(b"a message").expect("sends");
            let ready = waiter.join().expect("ends");
            assert!(ready.message && !ready.space);
        });
        assert_eq!(a.recv(&mut [0; 9]).expect("there").len, 9);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| a.wait_either(len).expect("ready"));
            sleep(MOMENT);
            (0..8).for_each(|_| drop(b.recv_ref().expect("there")));
            let ready = waiter.join().expect("ends");
            assert!(ready.space && !ready.message);
        });
    }
}

#[test]
fn an_unfinished_message_is_none_to_wait_for() {
    let _watch = Watchdog::new("unfinished");
    let (mut a, mut b) = pair(WaitStrategy::Park);
    assert_eq!(b.send_timeout(&[1; 9999], MOMENT / 10), Err(SendTimeoutError::Timeout));
    fill(&mut a);
    assert_eq!(a.wait_either_timeout(5, MOMENT), Err(SendTimeoutError::Timeout));
    b.send(b"whole").expect("sends");
    assert!(a.wait_either(5).expect("ready").message);
    assert_eq!(a.try_recv(&mut [0; 8]).expect("there").len, 5);
}

#[test]
fn a_zero_timeout_behaves_like_try() {
    for wait in STRATEGIES {
        let (mut a, mut b) = pair(wait);
        for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
            assert_eq!(b.recv_timeout(&mut [0; 8], timeout), Err(RecvTimeoutError::Timeout));
            a.send_timeout(b"x", timeout).expect("room");
            assert_eq!(b.recv_timeout(&mut [0; 8], timeout).expect("there").len, 1);
            fill(&mut a);
            assert_eq!(a.send_timeout(b"x", timeout), Err(SendTimeoutError::Timeout));
            assert_eq!(a.reserve_timeout(1, timeout).map(|_| ()), Err(SendTimeoutError::Timeout));
            assert_eq!(a.try_send(b"x"), Err(TrySendError::WouldBlock));
            assert_eq!(b.try_iter().count(), 8);
        }
        let past = Instant::now();
        assert_eq!(b.recv_deadline(&mut [], past), Err(RecvTimeoutError::Timeout));
        a.send_deadline(b"x", past).expect("room");
        assert_eq!(b.recv_deadline(&mut [0; 8], past).expect("there").len, 1);
    }
}

#[test]
fn no_deadline_ends_a_call_early() {
    for wait in STRATEGIES {
        let (mut a, mut b) = pair(wait);
        fill(&mut a);
        for timeout in [MOMENT / 30, MOMENT] {
            let start = Instant::now();
            assert_eq!(b.try_iter().count() % 8, 0);
            assert_eq!(b.recv_timeout(&mut [0; 8], timeout), Err(RecvTimeoutError::Timeout));
            assert!(start.elapsed() >= timeout);
            fill(&mut a);
            let start = Instant::now();
            assert_eq!(a.send_timeout(b"x", timeout), Err(SendTimeoutError::Timeout));
            assert_eq!(a.send_deadline(&[0; 9999], start + timeout * 2), Err(SendTimeoutError::Timeout));
            assert!(start.elapsed() >= timeout * 2);
        }
    }
}

#[test]
fn a_duration_that_overflows_is_no_deadline() {
    let _watch = Watchdog::new("durations that overflow");
    let late = Instant::now().checked_add(Duration::from_secs(1 << 40)).expect("representable");
    let waits: [fn(&mut SharedMemoryStream, Instant); 6] = [
        |stream, _| assert_eq!(stream.recv_timeout(&mut [0; 8], Duration::MAX).expect("comes").len, 1),
        |stream, _| {
            assert_eq!(stream.recv_timeout(&mut [0; 8], Duration::from_secs(1 << 62)).expect("comes").len, 1)
        },
        |stream, late| assert_eq!(stream.recv_deadline(&mut [0; 8], late).expect("comes").len, 1),
        |stream, _| assert!(stream.wait_either_timeout(5, Duration::MAX).expect("comes").message),
        |stream, late| assert!(stream.wait_either_deadline(5, late).expect("comes").message),
        |stream, late| drop(stream.recv_ref_deadline(late).expect("comes")),
    ];
    for wait in waits {
        let (mut a, mut b) = pair(WaitStrategy::Adaptive);
        fill(&mut a);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&mut a, late));
            sleep(MOMENT);
            assert!(!waiter.is_finished(), "it returned at once");
            b.send(b"x").expect("sends");
        });
        thread::scope(|scope| {
            let sender = scope.spawn(|| a.send_timeout(&[0; 99], Duration::MAX));
            sleep(MOMENT);
            assert!(!sender.is_finished(), "it returned at once");
            (0..8).for_each(|_| drop(b.recv_ref().expect("there")));
            sender.join().expect("ends").expect("sent");
        });
    }
}

/// The parent fills the ring and sleeps. The child takes exactly what was there, and lives on.
#[test]
fn a_consumer_in_another_process_that_takes_its_last_message_leaves_no_sender_asleep() {
    let _watch = Watchdog::new("another process");
    let name = "a_consumer_in_another_process_that_takes_its_last_message_leaves_no_sender_asleep";
    let options = options().wait(WaitStrategy::Park);
    if role().is_some() {
        let mut stream = options.from_parent().expect("a parent");
        sleep(MOMENT);
        (0..8).for_each(|_| drop(stream.recv_ref().expect("there")));
        stream.send(b"taken").expect("listens");
        // The child lives, but never receives again.
        let mut input = String::new();
        std::io::stdin().read_line(&mut input).expect("reads");
        return;
    }
    let mut command = crate::support::command(name, "consumer");
    let (child, mut stream) = options
        .spawn({
            command.stdin(std::process::Stdio::piped());
            command
        })
        .expect("spawns");
    let mut partner = Partner::of(child);
    fill(&mut stream);
    stream.send_timeout(b"ninth", PATIENCE / 2).expect("room as soon as the eighth is taken");
    assert_eq!(stream.recv(&mut [0; 5]).expect("says so").len, 5);
    let (done, finished) = channel();
    thread::spawn(move || {
        fill(&mut stream);
        done.send(stream.send(b"too late")).expect("waited for");
    });
    partner.send("go on\n");
    partner.finish();
    assert_eq!(finished.recv().expect("ends"), Err(SendError::ConnectionLost(ConnectionError::Disconnected)));
}
