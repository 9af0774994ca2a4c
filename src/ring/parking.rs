//! Sleeping and waking: the only place.
//!
//! ```text
//!  sleeper                                   waker (after publishing a message, a head, a mark ...)
//!    flag := 1            (Relaxed)            fence(Full)
//!    fence(Full)                               flag = 0 ?      (Relaxed)  -> done
//!    look again: found?   -> flag := 0         take the flag (one step: swap 0); wake its slot
//!    wait(flag, 1, deadline)
//!    flag := 0
//! ```
//!
//! | flag | meaning |
//! |---|---|
//! | 0 | nobody sleeps here |
//! | 1 | the sleeper is here, or about to be |
//! | 2 (producer flag only) | the sleeper is on the *twin*: it waits for either; clear and wake that |
//! | other | as 1 |
//!
//! # Invariants
//!
//! 1. At most one thread sleeps on a flag: `&mut` and the shared sender's lock hold that.
//! 2. Either the sleeper's second look sees what was published, or the waker sees the flag: one of
//!    the two full fences comes first.
//! 3. The waker clears the flag *before* it wakes: a sleeper that is about to wait finds 0 and does
//!    not. The word slept on is the flag itself, so nothing can wrap.
//! 4. The waker takes the flag in one step and wakes the wait slot that it *took*, not the one that it saw:
//!    between the two the sleeper may have moved, and a flag overwritten unseen is a wake-up lost.
//! 5. Every sleep ends: it is cut in slices, and each slice ends by itself. A peer that clears our
//!    flag for ever costs bounded CPU: after [`MAX_SPURIOUS`] empty returns in a row the sleeper backs off.
//! 6. The peer's close goes through [`notify`] like everything else; death and local close through
//!    [`force_notify`], since the last waker may have died with the flag in its hand.
//!
//! # Proof
//!
//! `loom-tests/src/models`; `tests/ring/hostile.rs` for a peer that plays with the flags.

use crate::memory::{Deadline, Fence, Flag, Memory, WaitResult};

/// The producer flag's value while its sleeper waits on the twin.
const ON_PEER_FLAG: u32 = 2;

/// Empty returns in a row after which a sleeper stops trusting its flag for a moment.
const MAX_SPURIOUS: u32 = 64;

/// Fences, and wakes the sleeper on `flag` if there is one. Follows every publication.
#[inline(always)]
pub fn notify<M: Memory>(mem: &M, flag: Flag) {
    if fence_and_check(mem, flag) {
        wake(mem, flag);
    }
}

/// Fences; whether a sleeper on `flag` must be woken now.
#[inline(always)]
pub(super) fn fence_and_check<M: Memory>(mem: &M, flag: Flag) -> bool {
    // pairs with the fence in `park`.
    mem.fence(Fence::Full);
    mem.load_flag(flag) != 0
}

/// Fences, and wakes whoever sleeps on `flag` whatever the flag says; for the end of a connection.
///
/// A peer may have died between taking the flag and its wake, and no later publication makes up for
/// that. A sleeper that waits for either is on its consumer flag, which the end alarms as well.
#[cold]
pub fn force_notify<M: Memory>(mem: &M, flag: Flag) {
    // pairs with the fence in `sleep`.
    mem.fence(Fence::Full);
    mem.store_flag(flag, 0);
    mem.wake(flag);
}

/// Clears a flag that was seen raised, and wakes its sleeper where it is.
#[cold]
pub(super) fn wake<M: Memory>(mem: &M, flag: Flag) {
    match mem.take_flag(flag) {
        0 => {} // The sleeper is up, or another waker is at it.
        ON_PEER_FLAG if flag == Flag::Producer => {
            mem.store_flag(Flag::PeerConsumer, 0);
            mem.wake(Flag::PeerConsumer);
        }
        _ => mem.wake(flag),
    }
}

/// Where a thread sleeps.
#[derive(Debug)]
pub struct WaitSlot<'a, M> {
    mem: &'a M,
    flag: Flag,
    outgoing: Option<&'a M>,
}

impl<'a, M: Memory> WaitSlot<'a, M> {
    /// The consumer of `mem` waits for a message.
    pub fn consumer(mem: &'a M) -> Self {
        Self { mem, flag: Flag::Consumer, outgoing: None }
    }

    /// The producer of `mem` waits for space.
    pub fn producer(mem: &'a M) -> Self {
        Self { mem, flag: Flag::Producer, outgoing: None }
    }

    /// One thread, consumer of `incoming` and producer of `outgoing`, waits for either.
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

/// Sleeps until `look` finds something, or until the deadline: `None`.
///
/// `tries` sleeps of the same call came to nothing before: so much sooner the flag is not trusted.
pub fn park<M: Memory, T>(
    wait_slot: &WaitSlot<'_, M>,
    deadline: Deadline,
    tries: u32,
    look: impl Fn() -> Option<T>,
) -> Option<T> {
    let (mut patience, mut empty) = (0_u32, tries);
    loop {
        wait_slot.arm();
        // pairs with the fence in `fence_and_check`.
        wait_slot.mem.fence(Fence::Full);
        let found = look();
        let woke = match found {
            None => wait_slot.mem.wait(wait_slot.flag, deadline, patience),
            Some(_) => WaitResult::Early,
        };
        wait_slot.disarm();
        if found.is_some() {
            return found;
        }
        match woke {
            WaitResult::Deadline => return look(),
            WaitResult::Slice => (patience, empty) = (patience.saturating_add(1), tries),
            WaitResult::Early => empty = empty.saturating_add(1),
        }
        if empty > MAX_SPURIOUS {
            wait_slot.mem.back_off(deadline);
        }
    }
}
