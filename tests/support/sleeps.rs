//! Sleep, of any memory: it ends, and only the deadline that it was given counts.
//!
//! It runs on every implementation: `tests/ring/memory.rs` brings `Heap`, `src/sys/mapping/tests.rs` brings
//! `Mapping`. Both have a module `mem` beside them, which is where the trait comes from.

use std::time::{Duration, Instant};

use super::memory::{Flag, Memory, WaitResult};

/// A sleep that nobody ends lasts until its deadline, or for a slice; one that may not begin does not.
pub fn sleeps_end<M: Memory>(mem: &M) {
    for flag in [Flag::Consumer, Flag::Producer, Flag::PeerConsumer] {
        let far = Instant::now().checked_add(Duration::from_secs(1 << 40));
        assert_eq!(mem.wait(flag, far, 0), WaitResult::Early, "nobody sleeps on a flag that is not 1");
        mem.store_flag(flag, 1);
        let end = Instant::now() + Duration::from_millis(20);
        assert_eq!(slept(mem, flag, Some(end), u32::MAX), WaitResult::Deadline);
        assert!(Instant::now() >= end, "{flag:?}");
        assert_eq!(slept(mem, flag, far, 0), WaitResult::Slice);
        mem.store_flag(flag, 0);
        assert!(mem.has_expired(Some(end)) && !mem.has_expired(far) && !mem.has_expired(None));
        for deadline in [Some(end), far, None] {
            mem.back_off(deadline); // A moment, whatever the deadline.
        }
    }
}

/// How a sleep ended, but for a few signals or the kernel's whims.
fn slept<M: Memory>(mem: &M, flag: Flag, deadline: Option<Instant>, patience: u32) -> WaitResult {
    let mut sleeps = (0..100).map(|_| mem.wait(flag, deadline, patience));
    sleeps.find(|woke| *woke != WaitResult::Early).expect("sleeps")
}
