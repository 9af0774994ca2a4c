//! Parks and wakes threads. No other file does.
//!
//! ```text
//!  sleeper                                   waker (after publishing a message, a head, a closed flag ...)
//!    flag := 1            (Relaxed)            fence(Full)
//!    fence(Full)                               flag = 0 ?      (Relaxed)  -> done
//!    look again: found?   -> flag := 0         take the flag (one step: swap 0); wake its slot
//!    wait(flag, 1, deadline)
//!    flag := 0
//! ```
//!
//! | flag | meaning |
//! |---|---|
//! | 0 | no thread sleeps on this flag |
//! | 1 | a thread sleeps on this flag, or is about to |
//! | 2 (producer flag only) | the thread waits for either direction, on the *peer consumer flag*: clear and wake that |
//! | other | as 1 |
//!
//! # Invariants
//!
//! 1. At most one thread sleeps on a flag. `&mut` and the shared sender's lock ensure that.
//! 2. Either the sleeper's second look sees what was published, or the waker sees the flag: one of the two full fences
//!    comes first.
//! 3. The waker clears the flag *before* it wakes. A sleeper that is about to wait finds 0 and does not wait. The futex
//!    word is the flag itself, not a counter, so it cannot wrap.
//! 4. The waker takes the flag in one step and wakes the wait slot that it *took*, not the one that it saw. Between the
//!    two the sleeper may have moved to another wait slot, and overwriting a flag without reading it would lose a
//!    wake-up.
//! 5. Every sleep ends: it is divided into slices, and each slice ends by itself. A peer that keeps clearing our flag
//!    costs bounded CPU: after [`MAX_SPURIOUS`] spurious returns in a row the sleeper backs off.
//! 6. The peer's close goes through [`notify`] like each publication. The peer's death and the local close go through
//!    [`force_notify`], since the last waker may have died after it took the flag and before it woke the sleeper.
//!
//! # Proof
//!
//! `loom-tests/src/models`; `tests/ring/hostile.rs` for a peer that changes the flags.

use crate::memory::{Deadline, Fence, Flag, Memory, WaitResult};

/// The producer flag's value while its thread sleeps on the peer consumer flag.
const ON_PEER_FLAG: u32 = 2;

/// Spurious returns in a row after which a sleeper backs off instead of trusting its flag.
const MAX_SPURIOUS: u32 = 64;

/// Makes a full fence, and wakes the thread that sleeps on `flag` if there is one. Must follow every publication.
#[inline(always)]
pub fn notify<M: Memory>(mem: &M, flag: Flag) {
    if fence_and_check(mem, flag) {
        wake(mem, flag);
    }
}

/// Makes a full fence and returns whether a thread that sleeps on `flag` must be woken now.
#[inline(always)]
pub(super) fn fence_and_check<M: Memory>(mem: &M, flag: Flag) -> bool {
    // Pairs with the fence in `park`.
    mem.fence(Fence::Full);
    mem.load_flag(flag) != 0
}

/// Makes a full fence, and wakes a thread that sleeps on `flag` whatever the flag's value; for the end of a connection.
///
/// A peer may have died between taking the flag and its wake, and no later publication makes up for that. A thread that
/// waits for either direction sleeps on its consumer flag, which the end of the connection force-notifies as well.
#[cold]
pub fn force_notify<M: Memory>(mem: &M, flag: Flag) {
    // Pairs with the fence in `park`.
    mem.fence(Fence::Full);
    mem.store_flag(flag, 0);
    mem.wake(flag);
}

/// Clears a flag that was seen set, and wakes its sleeper in the wait slot that the flag's value names.
#[cold]
pub(super) fn wake<M: Memory>(mem: &M, flag: Flag) {
    match mem.take_flag(flag) {
        0 => {} // The sleeper has disarmed its wait slot, or another waker has taken the flag.
        ON_PEER_FLAG if flag == Flag::Producer => {
            mem.store_flag(Flag::PeerConsumer, 0);
            mem.wake(Flag::PeerConsumer);
        }
        _ => mem.wake(flag),
    }
}

/// A wait slot: the flag or the two flags that a thread arms before it sleeps.
#[derive(Debug)]
pub struct WaitSlot<'a, M> {
    mem: &'a M,
    flag: Flag,
    outgoing: Option<&'a M>,
}

impl<'a, M: Memory> WaitSlot<'a, M> {
    /// Makes the wait slot of the consumer of `mem`, which waits for a message.
    pub fn consumer(mem: &'a M) -> Self {
        Self { mem, flag: Flag::Consumer, outgoing: None }
    }

    /// Makes the wait slot of the producer of `mem`, which waits for space.
    pub fn producer(mem: &'a M) -> Self {
        Self { mem, flag: Flag::Producer, outgoing: None }
    }

    /// Makes the wait slot of a thread that is the consumer of `incoming` and the producer of `outgoing`, and waits for
    /// either.
    pub fn either(incoming: &'a M, outgoing: &'a M) -> Self {
        Self { mem: incoming, flag: Flag::Consumer, outgoing: Some(outgoing) }
    }

    fn arm(&self) {
        self.mem.store_flag(self.flag, 1);
        if let Some(outgoing) = self.outgoing {
            outgoing.store_flag(Flag::Producer, ON_PEER_FLAG);
        }
    }

    fn disarm(&self) {
        self.mem.store_flag(self.flag, 0);
        if let Some(outgoing) = self.outgoing {
            outgoing.store_flag(Flag::Producer, 0);
        }
    }
}

/// Blocks until `look` finds something, and returns it; returns `None` if the deadline passes first.
///
/// `tries` earlier sleeps of the same call were spurious. They count towards `MAX_SPURIOUS`.
pub fn park<M: Memory, T>(
    wait_slot: &WaitSlot<'_, M>,
    deadline: Deadline,
    tries: u32,
    look: impl Fn() -> Option<T>,
) -> Option<T> {
    let (mut patience, mut empty) = (0_u32, tries);
    loop {
        wait_slot.arm();
        // Pairs with the fence in `fence_and_check`.
        wait_slot.mem.fence(Fence::Full);
        let found = look();
        let result = match found {
            None => wait_slot.mem.wait(wait_slot.flag, deadline, patience),
            Some(_) => WaitResult::Early,
        };
        wait_slot.disarm();
        if found.is_some() {
            return found;
        }
        match result {
            // What was published just before the deadline is still found.
            WaitResult::Deadline => return look(),
            // A whole slice of real sleep: the flag works, so the count of spurious returns starts again.
            WaitResult::Slice => (patience, empty) = (patience.saturating_add(1), tries),
            WaitResult::Early => empty = empty.saturating_add(1),
        }
        if empty > MAX_SPURIOUS {
            wait_slot.mem.back_off(deadline);
        }
    }
}
