//! Private memory by itself: sizes, and sleep. The fuzz body `memory` calls its methods with any arguments.

#[path = "../support/sleeps.rs"]
#[allow(unreachable_pub)]
mod sleeps;

use memory::{Heap, Memory};
use narrows::internal::memory;
use sleeps::sleeps_end;

#[test]
fn sizes_are_rounded_to_what_a_ring_can_have() {
    for (slots, arena, legal) in [(0, 0, (1, 64)), (3, 65, (4, 128)), (256, 4096, (256, 4096))] {
        let heap = Heap::new(slots, arena, 0);
        assert_eq!((heap.slots(), heap.arena()), legal);
    }
}

#[test]
fn every_sleep_ends() {
    sleeps_end(&std::sync::Arc::new(Heap::new(1, 64, 1)));
}
