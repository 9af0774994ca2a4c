//! A sender for many threads, and byte streams over messages.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::{Watchdog, bytes, check};
use narrows::{
    ConnectionError, Options, RecvError, SendError, SendTimeoutError, SharedMemoryStream, TryRecvError,
    TrySendError, WaitStrategy,
};

const MOMENT: Duration = Duration::from_millis(30);

fn pair() -> (SharedMemoryStream, SharedMemoryStream) {
    Options::new().slots(8).arena(4096).pair().expect("pairs")
}

#[test]
fn messages_of_many_threads_are_whole_and_each_threads_in_order() {
    let _watch = Watchdog::new("many threads");
    for wait in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let (a, mut b) = Options::new().slots(8).arena(4096).wait(wait).pair().expect("pairs");
        let shared = a.split().0.into_shared();
        let threads = 6;
        thread::scope(|scope| {
            for thread in 0..threads {
                let shared = shared.clone();
                scope.spawn(move || {
                    for index in 0..400_u64 {
                        let seed = thread << 32 | index;
                        let len = fastrand::Rng::with_seed(seed).usize(..6000);
                        shared.send_tagged(&bytes(seed, len), seed).expect("sends");
                    }
                });
            }
            drop(shared);
            let (mut buffer, mut next) = (Vec::new(), vec![0; 6]);
            while let Ok(received) = b.recv_into(&mut buffer) {
                let (thread, index) = ((received.tag >> 32) as usize, received.tag & 0xFFFF_FFFF);
                assert_eq!(index, next[thread], "of thread {thread}");
                next[thread] += 1;
                check(received.tag, fastrand::Rng::with_seed(received.tag).usize(..6000), &buffer);
            }
            assert_eq!(next, [400; 6]);
            assert_eq!(
                b.try_recv(&mut []),
                Err(TryRecvError::ConnectionLost(ConnectionError::Disconnected)),
                "the last clone is dropped"
            );
        });
    }
}

#[test]
fn callers_behind_a_blocked_sender_keep_their_deadlines() {
    let _watch = Watchdog::new("behind a blocked sender");
    let (a, mut b) = pair();
    let shared = a.split().0.into_shared();
    while shared.try_send(b"filler").is_ok() {}
    thread::scope(|scope| {
        let holder = scope.spawn(|| shared.send(b"holds the lock"));
        sleep(MOMENT);
        let start = Instant::now();
        assert_eq!(shared.try_send(b"x"), Err(TrySendError::WouldBlock));
        assert_eq!(shared.send_timeout(b"x", Duration::ZERO), Err(SendTimeoutError::Timeout));
        assert_eq!(shared.send_timeout(b"x", MOMENT), Err(SendTimeoutError::Timeout));
        assert!(start.elapsed() >= MOMENT);
        let deadline = Instant::now() + MOMENT;
        assert_eq!(shared.send_deadline(b"x", deadline), Err(SendTimeoutError::Timeout));
        assert!(Instant::now() >= deadline);
        let patient = scope.spawn(|| shared.send_timeout(b"patient", Duration::MAX));
        sleep(MOMENT);
        assert!(!holder.is_finished() && !patient.is_finished());
        while !(holder.is_finished() && patient.is_finished()) {
            let _maybe_not_yet = b.recv_timeout(&mut [0; 16], MOMENT);
        }
        assert_eq!((holder.join().expect("ends"), patient.join().expect("ends")), (Ok(()), Ok(())));
    });
}

#[test]
fn a_close_ends_the_lock_holder_and_all_waiting_callers() {
    let _watch = Watchdog::new("a close behind a lock");
    for local in [true, false] {
        let (a, b) = pair();
        let shared = a.split().0.into_shared();
        while shared.try_send(b"filler").is_ok() {}
        let end = if local {
            SendError::ConnectionLost(ConnectionError::Closed)
        } else {
            SendError::ConnectionLost(ConnectionError::Disconnected)
        };
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..5).map(|_| scope.spawn(|| shared.send(&[1; 999]))).collect();
            sleep(MOMENT);
            if local {
                shared.closer().close()
            } else {
                drop(b)
            }
            for waiter in waiting {
                assert_eq!(waiter.join().expect("ends"), Err(end));
            }
        });
        assert!(matches!(shared.try_send(b"").expect_err("over"), TrySendError::ConnectionLost(_)));
    }
}

#[test]
fn dropping_the_last_clone_wakes_the_receiver() {
    let _watch = Watchdog::new("the last clone");
    let (a, mut b) = pair();
    let (tx, _rx) = a.split();
    let shared = tx.into_shared();
    let clones: Vec<_> = (0..4).map(|_| shared.clone()).collect();
    drop(shared);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| b.recv(&mut []));
        for clone in clones {
            sleep(MOMENT / 10);
            assert!(!receiver.is_finished());
            drop(clone);
        }
        assert_eq!(
            receiver.join().expect("ends"),
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected))
        );
    });
}

#[test]
fn byte_streams_lose_no_byte() {
    let _watch = Watchdog::new("bytes");
    for (slots, arena) in [(1, 64), (4, 4096), (256, 1 << 20)] {
        let (a, b) = Options::new().slots(slots).arena(arena).pair().expect("pairs");
        let (_reader, mut writer) = a.into_bytes();
        let (mut reader, _writer) = b.into_bytes();
        let sent = bytes(1, 400_000);
        let mut got = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = fastrand::Rng::with_seed(2);
                let mut left = &sent[..];
                while !left.is_empty() {
                    let len = random.usize(..=left.len().min(9000));
                    writer.write_all(&left[..len]).expect("writes");
                    left = &left[len..];
                }
                drop(writer);
            });
            let mut random = fastrand::Rng::with_seed(3);
            let mut buffer = vec![0; 7000];
            loop {
                let len = random.usize(1..=7000);
                match reader.read(&mut buffer[..len]).expect("reads") {
                    0 => break,
                    len => got.extend_from_slice(&buffer[..len]),
                }
                assert_eq!(reader.read(&mut []).expect("nothing"), 0);
            }
            assert_eq!(reader.read(&mut buffer).expect("the end is permanent"), 0);
        });
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    }
}

#[test]
fn a_read_that_times_out_loses_nothing_and_empty_messages_are_no_end() {
    let (mut a, b) = pair();
    let mut reader = b.split().1.into_reader();
    reader.set_read_timeout(Some(MOMENT / 10));
    a.send(b"abc").expect("room");
    let mut two = [0; 2];
    reader.read_exact(&mut two).expect("there");
    assert_eq!(&two, b"ab");
    for message in [b"".as_slice(), b"", b"de"] {
        a.send(message).expect("room");
    }
    reader.read_exact(&mut two).expect("across messages");
    assert_eq!(&two, b"cd");
    assert_eq!(reader.fill_buf().expect("there"), b"e");
    reader.consume(usize::MAX);
    for _ in 0..2 {
        assert_eq!(reader.read(&mut two).expect_err("nothing is there").kind(), ErrorKind::TimedOut);
    }
    a.send(b"xyz").expect("room");
    reader.read_exact(&mut two).expect("there");
    let (mut receiver, rest) = reader.into_parts();
    assert_eq!(rest, b"z");
    a.send(b"as messages again").expect("room");
    assert_eq!(receiver.recv_ref().expect("there").len(), 17);
}

#[test]
fn a_write_is_a_message_no_longer_than_agreed() {
    let (a, mut b) = Options::new().max_message(10).pair().expect("pairs");
    let (_rx, mut writer) = a.into_bytes();
    assert_eq!(writer.write(b"").expect("nothing"), 0);
    writer.write_all(b"0123456789abcdef").expect("room");
    assert_eq!(b.try_iter().map(|message| message.len()).collect::<Vec<_>>(), [10, 6]);
    writer.set_write_timeout(Some(MOMENT / 10));
    while writer.write(b"x").is_ok() {}
    assert_eq!(writer.write(b"x").expect_err("full").kind(), ErrorKind::TimedOut);
    drop(b);
    assert_eq!(writer.write(b"x").expect_err("gone").kind(), ErrorKind::BrokenPipe);
}
