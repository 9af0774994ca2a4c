//! Messages over a stream, both ends in one thread.
//!
//! Where one half is counted alone, the ring is long enough for all messages. Then the receiver always finds one more
//! message and publishes its head only now and then; in the rows that take turns it publishes after each message.

use std::hint::black_box;
use std::thread;

use gungraun::prelude::*;
use gungraun::{Callgrind, EntryPoint};
use narrows::{Options, Receiver, Sender, SharedMemoryStream, WaitStrategy};

use crate::times::TIMES;

/// Two ends, a message, and memory to receive it. Boxed, so that handing it over costs one word.
struct StreamPair {
    a: SharedMemoryStream,
    b: SharedMemoryStream,
    message: Vec<u8>,
    buffer: Vec<u8>,
}

/// Returns a pair whose halves, buffers and pages have all been used.
fn warm(size: usize) -> Box<StreamPair> {
    let (a, b) = Options::new().slots(2048).arena(4 << 20).pair().expect("a pair");
    let mut ends = Box::new(StreamPair { a, b, message: vec![7; size], buffer: vec![0; size] });
    for _ in 0..4096 {
        ends.a.send(&ends.message).expect("room");
        ends.b.recv_into(&mut ends.buffer).expect("a message");
    }
    ends
}

/// Returns a pair with all messages in the ring.
fn full(size: usize) -> Box<StreamPair> {
    let mut ends = warm(size);
    for _ in 0..TIMES {
        ends.a.send(&ends.message).expect("room");
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
fn alone(ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        black_box(&ends.message);
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
#[bench::x1024(args = (1024), setup = warm)]
fn send(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        ends.a.send(black_box(&ends.message)).expect("room");
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = full)]
#[bench::x1024(args = (1024), setup = full)]
fn recv(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        black_box(ends.b.recv(black_box(&mut ends.buffer)).expect("a message"));
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = full)]
#[bench::x1024(args = (1024), setup = full)]
fn recv_into(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        black_box(ends.b.recv_into(black_box(&mut ends.buffer)).expect("a message"));
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
fn send_recv(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        ends.a.send(black_box(&ends.message)).expect("room");
        black_box(ends.b.recv(black_box(&mut ends.buffer)).expect("a message"));
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
fn send_recv_into(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        ends.a.send(black_box(&ends.message)).expect("room");
        black_box(ends.b.recv_into(black_box(&mut ends.buffer)).expect("a message"));
    }
    ends
}

#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
fn try_send_try_recv(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        ends.a.try_send(black_box(&ends.message)).expect("room");
        black_box(ends.b.try_recv(black_box(&mut ends.buffer)).expect("a message"));
    }
    ends
}

// In place, and nothing is written: the cost without that of the bytes.
#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
#[bench::x1024(args = (1024), setup = warm)]
fn reserve_commit(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        let room = ends.a.reserve(black_box(ends.message.len())).expect("room");
        room.commit().expect("a peer");
    }
    ends
}

// In place, and nothing is read.
#[library_benchmark]
#[bench::x40(args = (40), setup = full)]
#[bench::x1024(args = (1024), setup = full)]
fn recv_ref(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES {
        black_box(ends.b.recv_ref().expect("a message").len());
    }
    ends
}

const BATCH: usize = 64;

// Counted by the message.
#[library_benchmark]
#[bench::x40(args = (40), setup = warm)]
fn batch_of_64(mut ends: Box<StreamPair>) -> Box<StreamPair> {
    for _ in 0..TIMES / BATCH {
        let mut batch = ends.a.batch();
        for _ in 0..BATCH {
            batch.push(black_box(&ends.message)).expect("room");
        }
        batch.flush().expect("a peer");
    }
    ends
}

/// A sender whose receiver sleeps on another thread before each message.
struct Sleepy {
    sender: Sender,
    /// The sleeping end's other half, which knows how often it went to sleep.
    sleeper: Sender,
    back: Receiver,
    slept: u64,
    message: Vec<u8>,
    receiving: Option<thread::JoinHandle<()>>,
}

fn sleepy(size: usize) -> Box<Sleepy> {
    let (a, b) = Options::new().wait(WaitStrategy::Park).pair().expect("a pair");
    let ((sender, back), (sleeper, mut receiver)) = (a.split(), b.split());
    let receiving = Some(thread::spawn(move || while receiver.recv_ref().is_ok() {}));
    let mut sleepy = Box::new(Sleepy { sender, sleeper, back, slept: 0, message: vec![7; size], receiving });
    for _ in 0..4 {
        fall_asleep(&mut sleepy);
        wake(&mut sleepy);
    }
    sleepy
}

/// Waits until the receiver has set its flag once more and found no message, so that the next message wakes it.
fn fall_asleep(sleepy: &mut Sleepy) {
    while sleepy.sleeper.stats().sleeps == sleepy.slept {
        thread::yield_now();
    }
    sleepy.slept = sleepy.sleeper.stats().sleeps;
}

/// The only function that is counted: see the entry point below.
#[inline(never)]
fn wake(sleepy: &mut Sleepy) {
    sleepy.sender.send(black_box(&sleepy.message)).expect("room");
}

fn end(mut sleepy: Box<Sleepy>) {
    let woken = sleepy.sender.stats().wakes;
    assert!(woken >= TIMES as u64, "only {woken} of {TIMES} messages found a sleeper");
    drop((sleepy.sender, sleepy.back));
    if let Some(receiving) = sleepy.receiving.take() {
        receiving.join().expect("it receives until the end");
    }
}

// A message to a sleeper: the publication, the flag, and the user side of FUTEX_WAKE.
#[library_benchmark(
    config = LibraryBenchmarkConfig::default().tool(
        Callgrind::with_args(["--cache-sim=no"])
            .entry_point(EntryPoint::Custom("instructions::stream::wake".into()))
    )
)]
#[bench::x40(args = (40), setup = sleepy, teardown = end)]
fn send_to_sleeper(mut sleepy: Box<Sleepy>) -> Box<Sleepy> {
    for _ in 0..TIMES {
        fall_asleep(&mut sleepy);
        wake(&mut sleepy);
    }
    sleepy
}

library_benchmark_group!(
    name = messages,
    benchmarks = [
        alone,
        send,
        recv,
        recv_into,
        send_recv,
        send_recv_into,
        try_send_try_recv,
        reserve_commit,
        recv_ref,
        batch_of_64,
        send_to_sleeper
    ]
);
