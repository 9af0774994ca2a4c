//! How a waiting call spends the time before it sleeps.
//!
//! A wake-up across CPUs costs tens of microseconds, and a hand-over by spinning about a tenth of one. So the wait
//! policy influences latency more than the ring does. It is policy alone: the ring's parking protocol comes after it,
//! and no wake-up is lost whatever it does.
//!
//! `Adaptive` spins for at most [`SPIN_BUDGET`]. It learns, for each half of a connection by itself, whether recent
//! waits would have been covered by the budget. If the peer was last seen on our own CPU, it yields the CPU once
//! instead: spinning there keeps the peer from answering.

use std::hint;
use std::time::{Duration, Instant};

use crate::memory::Deadline;
use crate::sys::cpu;
use crate::sys::mapping::{Mapping, RingRole};

/// Somewhat more than a wake-up across CPUs costs. If both sides have slept, each waits for the other's wake-up as
/// well, and a budget that covers it lets them return to spinning.
const SPIN_BUDGET: Duration = Duration::from_micros(50);

/// Checks without a pause at the start of a spin: the answer is often ready at once.
const PRE_SPINS: u32 = 32;

/// Checks of a brief spin, without a pause and without reading the clock: at most about 1 us of them, when the answer
/// is expected at once.
const BRIEF_SPINS: u32 = 640;

/// How long a spin goes on before it yields the CPU for the first time, and how long between later yields.
const FIRST_YIELD: Duration = Duration::from_micros(2);
const YIELD_INTERVAL: Duration = Duration::from_micros(10);

/// Pauses between two readings of the clock.
const CLOCK_INTERVAL: u32 = 8;

/// After so many waits in a row that the budget did not cover, waits do not spin.
const PARK_AFTER_MISSES: u32 = 3;

/// Of the waits that would not spin, one in so many is a probe and spins all the same. Two sides that both sleep would
/// otherwise wait for each other's wake-ups indefinitely, and never see that they need not.
const PROBE_INTERVAL: u32 = 16;

/// A spin that should have ended within the budget and took this long was preempted.
const PREEMPTED_AFTER: Duration = Duration::from_micros(200);

/// Where the count of misses restarts.
const MAX_MISSES: u32 = 1 << 16;

/// Messages between two queries of the CPU number: a query costs as much as a short message.
const CPU_HINT_INTERVAL: i32 = 16;

/// What a call does when it has to wait.
///
/// ```
/// use narrows::{Options, WaitStrategy};
/// let frugal = Options::new().wait(WaitStrategy::Park); // For busy machines, and batteries.
/// let greedy = Options::new().wait(WaitStrategy::Spin); // For processes with a CPU each to themselves.
/// assert_eq!(WaitStrategy::default(), WaitStrategy::Adaptive);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Sleeps at once. Uses the least CPU; each wait costs a wake-up by the kernel, about 20 to 50 us.
    Park,
    /// Spins for about 50 us where that has paid lately, then sleeps. The default.
    #[default]
    Adaptive,
    /// Never sleeps. A waiting call keeps its CPU busy until it returns, and yields it to other threads now and then.
    Spin,
}

/// How a call spends the time before it sleeps.
pub trait WaitPolicy {
    /// Notes that this side has just sent or released something. Returns whether it should call
    /// [`publish_cpu`](Self::publish_cpu).
    #[inline(always)]
    fn is_due(&mut self) -> bool {
        false
    }

    /// Publishes for the peer which CPU this side runs on.
    fn publish_cpu(&mut self) {}

    /// Notes that this side has just sent or released something, and publishes its CPU if that is due.
    #[inline(always)]
    fn active(&mut self) {
        if self.is_due() {
            self.publish_cpu();
        }
    }

    /// Calls `look` repeatedly for a while, and returns whether it found something. May return `false` at any time.
    fn spin(&mut self, deadline: Deadline, look: impl Fn() -> bool) -> bool;

    /// Notes that a sleep that followed [`spin`](Self::spin) is over.
    fn slept(&mut self);

    /// Notes that a thread of this side waits for room to send; `tries` of its waits returned without a result before.
    fn stalled(&mut self, _tries: u32) {}

    /// Returns how many checks without a pause may come before [`spin`](Self::spin): more than 0 if the answer is
    /// expected at once.
    fn brief_spins(&mut self) -> u32 {
        0
    }
}

/// Sleeps at once.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWaitPolicy;

#[cfg(feature = "testing")]
impl WaitPolicy for NoWaitPolicy {
    fn spin(&mut self, _deadline: Deadline, _look: impl Fn() -> bool) -> bool {
        false
    }

    fn slept(&mut self) {}
}

/// Counts the messages until the CPU number is queried again. Once it has expired it stays so until it is restarted.
#[derive(Debug)]
struct CpuHintTimer(i32);

impl CpuHintTimer {
    #[inline(always)]
    fn is_over(&mut self) -> bool {
        self.0 = self.0.wrapping_sub(1); // Starts at 16; it is restarted long before it wraps after 2^31 messages.
        self.0 <= 0
    }
}

/// The wait policy of one half of a connection.
#[derive(Debug)]
pub(crate) struct AdaptiveWait {
    strategy: WaitStrategy,
    mapping: Mapping,
    role: RingRole,
    cpu: u64,
    due: CpuHintTimer,
    spin_history: SpinHistory,
    began: Instant,
}

/// What earlier waits of this half have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SpinHistory {
    /// Waits in a row of which none was answered while it spun.
    misses: u32,
    /// Whether the last wait that spun was preempted.
    lost: bool,
    /// Whether two consecutive waits that spun were preempted: other threads want the CPUs. That the budget would have
    /// covered a wait that slept proves nothing then, since a spinning thread uses up its time slice and a sleeping one
    /// keeps it. Only a probe that is answered in time clears it.
    crowded: bool,
}

impl SpinHistory {
    /// Returns whether this wait should sleep without spinning.
    fn is_out(self) -> bool {
        self.misses >= PARK_AFTER_MISSES && self.misses % PROBE_INTERVAL != 0
    }

    /// Counts a wait that did not spin, or that spun and was not answered in time. The wrap of the count keeps the
    /// probes coming.
    fn miss(&mut self) {
        self.misses = if self.misses < MAX_MISSES { self.misses + 1 } else { PROBE_INTERVAL };
    }

    /// Records a wait that spun: whether it was answered in time, and whether it was preempted.
    fn learn(&mut self, paid: bool, lost: bool) {
        if paid {
            *self = Self::default();
            return;
        }
        self.crowded |= lost && self.lost;
        self.lost = lost;
        self.miss();
    }

    /// Returns whether a wait that slept, and that the budget would have covered, is a reason to spin again.
    fn heeds_sleeps(self) -> bool {
        self.misses >= PARK_AFTER_MISSES && !self.crowded
    }
}

impl AdaptiveWait {
    pub(crate) fn new(strategy: WaitStrategy, mapping: Mapping, role: RingRole) -> Self {
        let spin_history = SpinHistory::default();
        Self { strategy, mapping, role, cpu: 0, due: CpuHintTimer(1), spin_history, began: Instant::now() }
    }

    /// Publishes for the peer on which CPU this side runs, if that has changed, and returns the CPU. It must be up to
    /// date. A peer that takes us to be on its own CPU does not spin. A peer that is on our CPU and does not know it
    /// spins, and keeps us from answering.
    #[inline(never)]
    fn publish_cpu_hint(&mut self) -> u64 {
        self.due = CpuHintTimer(CPU_HINT_INTERVAL);
        let here = cpu::current();
        if here != self.cpu {
            self.cpu = here;
            self.mapping.publish_cpu(self.role, here);
        }
        here
    }

    fn adapt(&mut self, deadline: Deadline, look: impl Fn() -> bool) -> bool {
        self.began = Instant::now();
        let here = self.publish_cpu_hint();
        if self.spin_history.is_out() {
            self.spin_history.miss();
            return false;
        }
        let found = if !cpu::is_multicore() || (here != 0 && self.mapping.peer_cpu(self.role) == here) {
            cpu::yield_now();
            look()
        } else {
            self.mapping.activity().count_spin();
            let end = self.began + SPIN_BUDGET;
            spin(deadline.map_or(end, |deadline| deadline.min(end)), look)
        };
        // Yielding to a busy thread may cost a time slice, which a sleeping thread would not have lost.
        let took = self.began.elapsed();
        self.spin_history.learn(found && took <= SPIN_BUDGET, took >= PREEMPTED_AFTER);
        found
    }
}

impl WaitPolicy for AdaptiveWait {
    #[inline(always)]
    fn is_due(&mut self) -> bool {
        self.due.is_over()
    }

    #[cold]
    fn publish_cpu(&mut self) {
        self.publish_cpu_hint();
    }

    fn spin(&mut self, deadline: Deadline, look: impl Fn() -> bool) -> bool {
        match self.strategy {
            WaitStrategy::Park => false,
            WaitStrategy::Adaptive => self.adapt(deadline, look),
            WaitStrategy::Spin => {
                self.mapping.activity().count_spin();
                spin_on(deadline, look, || self.mapping.connection().check_monitor())
            }
        }
    }

    fn stalled(&mut self, tries: u32) {
        if tries == 0 {
            self.mapping.connection().wait_counters(true).count_stall();
        }
    }

    #[inline]
    fn brief_spins(&mut self) -> u32 {
        let quick = match self.strategy {
            WaitStrategy::Park => false,
            WaitStrategy::Adaptive => {
                self.spin_history.misses == 0
                    && cpu::is_multicore()
                    && self.mapping.peer_cpu(self.role) != self.cpu
            }
            WaitStrategy::Spin => true,
        };
        if quick { BRIEF_SPINS } else { 0 }
    }

    fn slept(&mut self) {
        self.due = CpuHintTimer(1); // The kernel may have woken this thread on another CPU.
        if self.strategy != WaitStrategy::Adaptive || !self.spin_history.heeds_sleeps() {
            return;
        }
        // The peer stores when it woke us; the value is clamped. A wrong value costs one wrong guess.
        let woken = self.mapping.woken_for(self.role);
        let waited = self.began.elapsed().saturating_sub(woken.unwrap_or_default());
        if woken.is_some() && waited <= SPIN_BUDGET {
            self.spin_history.misses = 0;
        }
    }
}

/// Calls `look` until it finds something or until `end`. After [`FIRST_YIELD`] it yields the CPU now and then.
///
/// The peer's last known CPU is not where its next wake-up puts it. The kernel may put it on our own CPU, where it can
/// only run if we yield.
fn spin(end: Instant, look: impl Fn() -> bool) -> bool {
    for _ in 0..PRE_SPINS {
        if look() {
            return true;
        }
    }
    let mut yield_at = Instant::now() + FIRST_YIELD;
    loop {
        for _ in 0..CLOCK_INTERVAL {
            hint::spin_loop();
            if look() {
                return true;
            }
        }
        let now = Instant::now();
        if now >= end {
            return false;
        }
        if now >= yield_at {
            cpu::yield_now();
            yield_at = now + YIELD_INTERVAL;
        }
    }
}

/// Calls `look` until it finds something or until the deadline, however far that is. Calls `check` ten times a second.
fn spin_on(deadline: Deadline, look: impl Fn() -> bool, check: impl Fn()) -> bool {
    let slice = Duration::from_millis(100);
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return look();
        }
        let end = now + slice;
        if spin(deadline.map_or(end, |deadline| deadline.min(end)), &look) {
            return true;
        }
        check();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_two_preempted_spins_in_a_row_sleeps_are_no_reason_to_spin() {
        let after = |waits: &[(bool, bool)]| {
            let mut spin_history = SpinHistory::default();
            waits.iter().for_each(|&(paid, lost)| spin_history.learn(paid, lost));
            spin_history
        };
        let (plain, lost, paid) = ((false, false), (false, true), (true, false));
        assert!(!after(&[plain, lost]).crowded && !after(&[lost, plain, lost]).crowded);
        assert!(after(&[lost, lost]).crowded && after(&[lost, lost, plain]).crowded);
        assert_eq!(after(&[lost, lost, paid]), SpinHistory::default());
        assert!(after(&[plain; 4]).heeds_sleeps() && !after(&[lost; 4]).heeds_sleeps());
        assert!(!after(&[plain]).heeds_sleeps(), "it still spins");
    }

    #[test]
    fn however_many_waits_were_in_vain_one_in_sixteen_is_a_probe() {
        let mut spin_history = SpinHistory::default();
        let probes = (0..1 << 18).filter(|_| {
            spin_history.miss();
            !spin_history.is_out()
        });
        assert!(((1 << 14)..(1 << 14) + 32).contains(&probes.count()));
    }

    #[test]
    fn a_timer_that_has_expired_stays_expired() {
        let mut due = CpuHintTimer(3);
        assert_eq!([(); 6].map(|()| due.is_over()), [false, false, true, true, true, true]);
    }
}
