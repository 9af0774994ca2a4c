//! Room for a message: at once, or when the receiver has released enough.
//!
//! # Invariants
//!
//! 1. What it waits for is a ticket that an honest receiver releases and looks for a sleeper behind (`ring`, invariant 5).
//! 2. It never outlives its deadline, nor the connection, whatever the peer's head says.
//!
//! # Proof
//!
//! The models of full rings and of lying heads; `tests/stream/blocked.rs`, `tests/ring/hostile.rs`.

use super::outbound::{Outbound, SendFault};
use super::pace::Pace;
use super::{Wait, may_wait_on};
use crate::mem::{Memory, Until};
use crate::ring::{Bed, Claim, Producer, Refusal, sleep};

impl<M: Memory, P: Pace> Outbound<M, P> {
    /// Claims, waiting for space between tries.
    #[inline(always)]
    pub(super) fn claim_or_wait(
        &mut self,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<Claim, Refusal>,
    ) -> Result<Claim, SendFault> {
        match claim(&mut self.ring) {
            Ok(claim) => Ok(claim),
            Err(refusal) => self.claim_in_time(refusal, wait, claim),
        }
    }

    #[cold]
    #[inline(never)]
    fn claim_in_time(
        &mut self,
        mut refusal: Refusal,
        wait: Wait,
        mut claim: impl FnMut(&mut Producer<M>) -> Result<Claim, Refusal>,
    ) -> Result<Claim, SendFault> {
        let mut tries = 0_u32;
        loop {
            match (refusal, wait) {
                (Refusal::Full { .. }, Wait::Never) => return Err(SendFault::Full),
                (Refusal::Full { needs }, Wait::Until(until)) => self.linger(needs, until, tries)?,
                (refusal, _) => return Err(self.refuse(refusal)),
            }
            match claim(&mut self.ring) {
                Ok(claim) => return Ok(claim),
                Err(again) => refusal = again,
            }
            tries = tries.saturating_add(1);
        }
    }

    /// Passes the time until a release.
    #[cold]
    fn linger(&mut self, needs: u64, until: Until, tries: u32) -> Result<(), SendFault> {
        let Self { ring, pace, .. } = self;
        if !may_wait_on(ring.mem(), until, tries) {
            return Err(SendFault::Full);
        }
        pace.stalled(tries);
        if !pace.pass(until, || ring.released(needs)) {
            ring.want(needs);
            let found =
                sleep(&Bed::producer(ring.mem()), until, tries, || ring.released(needs).then_some(()));
            pace.slept();
            if found.is_none() {
                return Err(SendFault::Full);
            }
        }
        self.check().map_err(SendFault::Ended)
    }
}
