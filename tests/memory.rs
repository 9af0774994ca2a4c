//! Every method of a memory with absurd arguments: nothing leaves it, nothing beside the range changes.
//!
//! The same checks run on the mapped memory in `src/sys/mapping/tests.rs`, which alone can reach it.
#![allow(clippy::cast_possible_truncation)]

#[path = "common/absurd.rs"]
#[allow(dead_code, unreachable_pub)]
mod absurd;

use std::sync::Arc;

use absurd::{program, sleeps_end};
use mem::{Flag, Heap, Memory};
use narrows::internal::mem;

#[test]
fn absurd_arguments_change_what_they_name_and_nothing_else() {
    for seed in 0..40 {
        for (slots, arena) in [(1, 64), (2, 128), (4, 1024), (8, 4096)] {
            program(&Heap::new(slots, arena, 4), (slots, arena, 4), seed, 400);
        }
    }
}

#[test]
fn a_shared_memory_is_the_same_memory() {
    let (heap, sizes) = (Arc::new(Heap::new(4, 256, 2)), (4, 256, 2));
    let reference = program(&heap, sizes, 7, 500);
    reference.compare(&*heap, &[Flag::Consumer, Flag::Producer, Flag::Twin]);
}

#[test]
fn sizes_are_rounded_to_what_a_ring_can_have() {
    for (slots, arena, legal) in [(0, 0, (1, 64)), (3, 65, (4, 128)), (256, 4096, (256, 4096))] {
        let heap = Heap::new(slots, arena, 0);
        assert_eq!((heap.slots(), heap.arena()), legal);
    }
}

#[test]
fn every_sleep_ends() {
    sleeps_end(&Heap::new(1, 64, 1));
}
