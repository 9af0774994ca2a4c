//! A client that writes to the shared pages: floods of cancels and doorbells; half calls and silence.

use std::sync::atomic::Ordering;
use std::thread;

use narrows::SharedMemoryServer;
use narrows::internal::layout::{Control, Geometry, SlotKind as Carried, words};
use narrows::internal::rpc::wire::{FrameKind, MORE, STREAM, UPLOAD};

use crate::support::calls::raw::{Raw, head, settings};
use crate::support::calls::{
    ECHO, GATE, Host, POOLED, STREAM as STREAMING, UPLOAD as UPLOADING, host, options,
};
use crate::support::raw_peer::RawPeer;
use crate::support::sys::futex_wake;

/// A client that writes arbitrary frames, out-of-band words and doorbells, and never reads.
struct Scribbler {
    hand: RawPeer,
    ticket: u64,
}

impl Scribbler {
    fn connect(host: &Host) -> Self {
        drop(host.client()); // The server listens by now.
        let geometry = Geometry::new(256, 1 << 20, 64).expect("legal");
        let hand = RawPeer::connect(&host.path, geometry, 64 << 20).expect("connects");
        let mut scribbler = Self { hand, ticket: 0 };
        scribbler.send(0, head(FrameKind::Hello, 0, 0, 0), &settings(1 << 20));
        scribbler
    }

    /// Sends a short frame.
    fn send(&mut self, id: u64, head: [u8; 8], body: &[u8]) {
        let bytes = [&head[..], body].concat();
        let padded = bytes.chunks(8).map(|part| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(word)
        });
        self.hand.payload(self.ticket, &padded.collect::<Vec<_>>());
        self.hand.pages.word(self.hand.slot(self.ticket) + 16).store(id, Ordering::Relaxed);
        let len = u32::try_from(bytes.len()).expect("few");
        self.hand.commit(self.ticket, Control { kind: Carried::Inline, abort: false, len, unit: 0 });
        self.ticket += 1;
        self.wake();
    }

    /// Stores an out-of-band word.
    fn store_oob(&self, index: usize, word: u64) {
        let page = self.hand.outgoing().words;
        self.hand.pages.word(page + words::OOB + 8 * index).store(word, Ordering::Release);
    }

    fn ring_doorbell(&self, doorbell: u64) {
        let page = self.hand.outgoing().words;
        self.hand.pages.word(page + words::DOORBELL).store(doorbell, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let flag = self.hand.pages.flag(self.hand.outgoing().words + words::CONSUMER_FLAG);
        flag.store(0, Ordering::SeqCst);
        futex_wake(flag);
    }
}

/// Checks that the calls of a well-formed client are served.
fn is_served(host: &Host) {
    let client = host.client();
    for method in [ECHO, POOLED, ECHO, POOLED] {
        assert_eq!(*client.call(method, b"normal").expect("is served"), *b"normal");
    }
}

#[test]
fn a_flood_of_cancels_and_doorbells_cancels_only_the_named_calls() {
    let host = host!(options());
    let mut scribbler = Scribbler::connect(&host);
    for id in [64, 65] {
        scribbler.send(id, head(FrameKind::Call, 0, 0, GATE), &[]);
    }
    host.sees("gate in", 2);
    let client = host.client();
    thread::scope(|scope| {
        let well_formed = scope.spawn(|| {
            (0..300).for_each(|_| assert_eq!(*client.call(POOLED, b"!").expect("is served"), *b"!"));
        });
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..200_000_u64 {
            // Ids of calls that were never made, are over, or belong to another slot; never of the two that run.
            let word = [0, 1, 66, 127, 128, 129, u64::MAX, random.u64(130..)][random.usize(0..8)];
            scribbler.store_oob(random.usize(0..64), word);
            scribbler.ring_doorbell(if round % 2 == 0 { random.u64(..) } else { round });
        }
        well_formed.join().expect("is served");
    });
    assert_eq!((host.seen("gate cancelled"), host.stat("violated")), (0, 0));
    scribbler.store_oob(0, 64);
    scribbler.ring_doorbell(1);
    host.sees("gate cancelled", 1);
    assert_eq!(host.seen("gate cancelled"), 1);
    drop(scribbler);
    host.sees("gate cancelled", 2); // The end of the connection cancels the other.
    is_served(&host);
    host.end();
}

#[test]
fn a_call_that_was_cancelled_before_it_arrived_never_runs() {
    let host = host!(options(), |server: SharedMemoryServer| server.workers(1));
    let mut scribbler = Scribbler::connect(&host);
    for (at, method, flags) in [(0, GATE, 0), (1, STREAMING, STREAM), (2, UPLOADING, UPLOAD)] {
        let id = 64 + at as u64;
        scribbler.store_oob(at, id);
        scribbler.ring_doorbell(id);
        scribbler.send(id, head(FrameKind::Call, flags, 0, method), &[255; 8]);
    }
    scribbler.send(67, head(FrameKind::Call, 0, 0, POOLED), b"last");
    host.sees("pooled", 1);
    assert_eq!([host.seen("gate in"), host.seen("chunks"), host.seen("upload in")], [0; 3]);
    is_served(&host);
    host.end();
}

#[test]
fn half_calls_and_silence_cost_their_own_connection_alone() {
    let host = host!(options());
    let mut silent: Vec<_> = (0..8).map(|_| Raw::connect(&host.path, &options())).collect();
    for raw in &mut silent {
        let methods = [(POOLED, 0), (STREAMING, STREAM), (UPLOADING, UPLOAD)];
        for (id, (method, flags)) in (64..128).zip(methods.into_iter().cycle()) {
            raw.send(id, head(FrameKind::Call, MORE | flags, 0, method), &[1; 1000]).expect("sends");
        }
    }
    is_served(&host);
    assert_eq!((host.stat("running"), host.seen("pooled")), (0, 2), "nothing of them runs");
    silent.truncate(4);
    host.sees("gone Disconnected", 4);
    drop(silent);
    host.sees("gone Disconnected", 8);
    assert_eq!(host.stat("violated"), 0);
    is_served(&host);
    host.end();
}
