//! Sleep on any memory: it ends, and only its own deadline counts.
//!
//! The test runs on every implementation: `tests/ring/memory.rs` brings `Heap`, and `src/sys/mapping/tests.rs` brings `Mapping`.
//! Both have a module `memory` above them, from which the trait is imported.

use std::time::{Duration, Instant};

use super::memory::{Flag, Memory, WaitResult};

/// Checks that a sleep without a wake lasts until its deadline or for a slice, and that a sleep on a flag that is not 1 does not
/// begin.
pub fn sleeps_end<M: Memory>(mem: &M) {
    for flag in [Flag::Consumer, Flag::Producer, Flag::PeerConsumer] {
        let distant = Instant::now().checked_add(Duration::from_secs(1 << 40));
        assert_eq!(mem.wait(flag, distant, 0), WaitResult::Early, "no thread sleeps on a flag that is not 1");
        mem.store_flag(flag, 1);
        let end = Instant::now() + Duration::from_millis(20);
        assert_eq!(slept(mem, flag, Some(end), u32::MAX), WaitResult::Deadline);
        assert!(Instant::now() >= end, "{flag:?}");
        assert_eq!(slept(mem, flag, distant, 0), WaitResult::Slice);
        mem.store_flag(flag, 0);
        assert!(mem.has_expired(Some(end)) && !mem.has_expired(distant) && !mem.has_expired(None));
        for deadline in [Some(end), distant, None] {
            mem.back_off(deadline); // It takes a moment, whatever the deadline is.
        }
    }
}

/// Returns how a sleep ended. Sleeps that signals or spurious wake-ups end early are repeated.
fn slept<M: Memory>(mem: &M, flag: Flag, deadline: Option<Instant>, patience: u32) -> WaitResult {
    let mut sleeps = (0..100).map(|_| mem.wait(flag, deadline, patience));
    sleeps.find(|woke| *woke != WaitResult::Early).expect("sleeps")
}
