//! Hostile peers: they complete the handshake, and then write into the shared pages by hand.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use narrows::internal::layout::{Control, Geometry, SLOT, SlotKind as Carried, words};
use narrows::internal::rpc::wire::{FrameHeader, FrameKind, HEADER_LEN, Settings, VERSION};

use crate::processes::{MAX_MESSAGE, PATIENCE, RoleArguments, answer, fault, orders};
use crate::serve::stream_path;
use crate::support::raw_peer::{RawPeer, WORDS};
use crate::support::sys::futex_wake;

fn connect(path: &Path) -> RawPeer {
    let geometry = Geometry::new(256, 1 << 20, 64).expect("legal");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match RawPeer::connect(path, geometry, MAX_MESSAGE as u64) {
            Ok(hand) => return hand,
            Err(error) if Instant::now() > deadline => fault(&format!("by hand: {error}")),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

/// Sends the preface of an RPC client, and waits for the Accept.
fn exchange_prefaces(hand: &RawPeer) {
    let mine = Settings { version: VERSION, stream_window: 1 << 20, push_window: 1 << 20 }.encode();
    let head: [u8; HEADER_LEN] = FrameHeader { kind: FrameKind::Hello, flags: 0, seq: 0, word: 0 }.encode();
    let bytes = [&head[..], &mine].concat();
    let padded = bytes.chunks(8).map(|part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    });
    hand.payload(0, &padded.collect::<Vec<_>>());
    hand.pages.word(hand.slot(0) + 16).store(0, Ordering::Relaxed);
    let len = u32::try_from(bytes.len()).expect("few");
    hand.commit(0, Control { kind: Carried::Inline, abort: false, len, unit: 0 });
    wake(hand);
    // Waits for the Accept.
    let accept = hand.incoming().slots;
    let deadline = Instant::now() + PATIENCE;
    while hand.pages.word(accept).load(Ordering::Acquire) != 2 {
        if Instant::now() > deadline || hand.over() {
            fault("a good Hello was not answered");
        }
        std::thread::yield_now();
    }
}

fn wake(hand: &RawPeer) {
    for (direction, flag) in
        [(hand.outgoing(), words::CONSUMER_FLAG), (hand.incoming(), words::PRODUCER_FLAG)]
    {
        let flag = hand.pages.flag(direction.words + flag);
        flag.store(0, Ordering::SeqCst);
        futex_wake(flag);
    }
}

/// Scribbles over all pages until the other side closes the connection. Returns whether it did.
pub(crate) fn scribble(hand: &RawPeer, random: &mut fastrand::Rng) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let data = hand.geometry.direction(0).slots / 8..hand.pages.len() / 8;
    while Instant::now() < deadline {
        for _ in 0..4096 {
            let at = random.usize(data.clone()) * 8;
            hand.pages.word(at).store(random.u64(..), Ordering::Relaxed);
        }
        for _ in 0..16 {
            let page = hand.geometry.direction(random.usize(0..2)).words;
            let at = page + WORDS[random.usize(0..WORDS.len())];
            hand.pages.word(at).store(random.u64(..), Ordering::Relaxed);
        }
        // Something that the peer cannot overlook: the next messages, with words that make no sense.
        for slot in 0..hand.geometry.slots() as usize {
            let at = hand.outgoing().slots + slot * SLOT;
            hand.pages.word(at + 8).store(u64::MAX, Ordering::Relaxed);
            hand.pages.word(at).store(2 * slot as u64 + 2, Ordering::Release);
        }
        wake(hand);
        if hand.over() {
            return true;
        }
    }
    false
}

/// A client that scribbles: over an RPC connection, or over a stream.
pub(crate) fn scribbler(arguments: &RoleArguments) {
    let mut random = fastrand::Rng::with_seed(arguments.number("seed").unwrap_or(0));
    let calls = arguments.text("over") == "calls";
    let hand = if calls { connect(arguments.path()) } else { connect(&stream_path(arguments.path())) };
    if calls {
        exchange_prefaces(&hand);
    }
    answer("in");
    answer(if scribble(&hand, &mut random) {
        "over"
    } else {
        "fault: the peer did not close the connection"
    });
    orders().next();
}

/// A client that announces a longer message than was negotiated.
pub(crate) fn giant(arguments: &RoleArguments) {
    let hand = connect(&stream_path(arguments.path()));
    answer("in");
    hand.payload(0, &[MAX_MESSAGE as u64 + 1]);
    hand.commit(0, Control { kind: Carried::First, abort: false, len: 4000, unit: 0 });
    wake(&hand);
    let deadline = Instant::now() + PATIENCE;
    while !hand.over() && Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    answer(if hand.over() { "over" } else { "fault: the peer did not close the connection" });
    orders().next();
}

/// A server that scribbles over the pages of its first client.
pub(crate) fn scribbling_server(listener: &UnixListener, seed: u64) -> bool {
    RawPeer::serve(listener).is_ok_and(|hand| scribble(&hand, &mut fastrand::Rng::with_seed(seed)))
}
