//! The trait between ring and memory costs nothing; `.ci/instructions` has the command.
//!
//! It is a binary of its own, since it needs the inside of the library, and the others are counted without the feature
//! `testing`. The feature adds no step to the ring or to the private memory.
//!
//! The ring runs over the private memory, once as it is and once through one more implementation of the trait that
//! only passes each call on. If the seam cost an instruction, a second one would cost it again: both rows are
//! equal to the last instruction, and `.ci/instructions` checks that. It also looks into the profile of `send_recv` in `main.rs` for any
//! function of the trait: all are part of their callers there.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "the harness writes public items of its own"
)]

mod times;

use std::hint::black_box;
use std::sync::Arc;

use gungraun::prelude::*;
use narrows::internal::layout::SlotKind;
use narrows::internal::memory::{Heap, Memory, Padding, forward_memory};
use narrows::internal::ring::{Consumer, Producer};

use times::TIMES;

type SharedHeap = Arc<Heap>;

/// Passes each call on: one more seam.
struct Again(SharedHeap);

impl Memory for Again {
    forward_memory! {
        self => self.0;
        slots, arena, load_slot, store_slot, load, store, set_close_reason, load_flag, store_flag, take_flag, fence,
        copy_in, copy_out, wait, back_off, wake, has_expired,
    }
}

struct RingPair<M> {
    producer: Producer<M>,
    consumer: Consumer<M>,
    message: [u8; 40],
}

fn ring<M: Memory>(over: impl Fn(SharedHeap) -> M) -> Box<RingPair<M>> {
    let heap = Arc::new(Heap::new(256, 1 << 16, 64));
    let (producer, consumer) = (Producer::new(over(Arc::clone(&heap)), 0), Consumer::new(over(heap), 0));
    Box::new(RingPair { producer, consumer, message: [7; 40] })
}

/// One message through the ring, as `send` and `recv` take it.
#[inline(always)]
fn pass<M: Memory>(ring: &mut RingPair<M>) {
    let RingPair { producer, consumer, message } = ring;
    let claim = producer.reserve(producer.next(), message.len()).expect("room");
    producer.mark_writing(&claim);
    producer.write(&claim, 0, black_box(message), Padding::Zero).expect("in the claim");
    producer.describe(&claim, SlotKind::Inline, message.len(), 0);
    producer.publish(claim.after(), false);
    let arrival = consumer.next_slot().expect("a valid slot").expect("a message");
    consumer.read(&arrival, 0, black_box(message)).expect("in the message");
    consumer.verify(&arrival).expect("no other writer");
    consumer.release(&arrival);
}

#[library_benchmark]
#[bench::x40(args = (|heap| heap), setup = ring)]
fn one_seam(mut ring: Box<RingPair<SharedHeap>>) -> Box<RingPair<SharedHeap>> {
    for _ in 0..TIMES {
        pass(&mut ring);
    }
    ring
}

#[library_benchmark]
#[bench::x40(args = (Again), setup = ring)]
fn two_seams(mut ring: Box<RingPair<Again>>) -> Box<RingPair<Again>> {
    for _ in 0..TIMES {
        pass(&mut ring);
    }
    ring
}

library_benchmark_group!(name = one_ring, benchmarks = [one_seam, two_seams]);

main!(
    config = LibraryBenchmarkConfig::default().tool(gungraun::Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [one_ring]
);
