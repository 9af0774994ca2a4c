//! How a waiting call passes the time before it goes to sleep.
//!
//! A wake across CPUs costs tens of microseconds and a hand-over by spinning a tenth of one, so
//! this decides more than the ring does. It is policy alone: whatever it does, the ring's sleep
//! protocol comes after it and loses nothing.
//!
//! `Adaptive` spins for at most [`SPIN_BUDGET`] and learns, for each waiting place by itself, whether
//! recent waits would have been covered. When the peer was last seen on our own CPU it steps aside
//! once instead: spinning there keeps the peer from answering.

use std::hint;
use std::time::{Duration, Instant};

use crate::memory::Deadline;
use crate::sys::cpu;
use crate::sys::mapping::{Mapping, RingRole};

/// Some more than a wake across CPUs costs, so that two sides that both fell asleep find back to
/// spinning: what one waits for then includes the other's wake.
const SPIN_BUDGET: Duration = Duration::from_micros(50);

/// Looks without a pause at first: the answer is often there at once.
const PRE_SPINS: u32 = 32;

/// Looks without a pause or a clock, 1 us of them at most, by who has reason to expect the answer just now.
const BRIEF_SPINS: u32 = 640;

/// How long a spin goes on before it lets others run for the first time, and between times.
const FIRST_YIELD: Duration = Duration::from_micros(2);
const YIELD_INTERVAL: Duration = Duration::from_micros(10);

/// Pauses between two looks at the clock.
const CLOCK_INTERVAL: u32 = 8;

/// Waits in a row that the budget did not cover, after which there is no spinning.
const PARK_AFTER_MISSES: u32 = 3;

/// Of the waits without spinning, every so-many-th spins all the same: two sides that both sleep
/// would wait for each other's wake-ups for ever, and never see that they need not.
const PROBE_INTERVAL: u32 = 16;

/// A wait that should have ended within the budget and took this long has lost its CPU to others.
const PREEMPTED_AFTER: Duration = Duration::from_micros(200);

/// Where the count of them begins anew.
const MAX_MISSES: u32 = 1 << 16;

/// Messages after which the CPU is asked for again: it costs as much as a short message.
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
    /// Sleeps at once. Least CPU; each wait costs a wake-up of the kernel's, some 20 to 50 us.
    Park,
    /// Spins for some 50 us where that has paid lately, then sleeps. The default.
    #[default]
    Adaptive,
    /// Never sleeps: a waiting call keeps its CPU busy until its end or its deadline, but for letting
    /// others run there now and then.
    Spin,
}

/// How to pass the time before sleeping.
pub trait WaitPolicy {
    /// This side has just sent or released something: whether it should [`publish_cpu`](Self::publish_cpu) where it is.
    #[inline(always)]
    fn is_due(&mut self) -> bool {
        false
    }

    /// Says where this side is.
    fn publish_cpu(&mut self) {}

    /// This side has just sent or released something; a chance to say where it is.
    #[inline(always)]
    fn active(&mut self) {
        if self.is_due() {
            self.publish_cpu();
        }
    }

    /// Looks for a while; whether the look found something. May return `false` at any time.
    fn spin(&mut self, deadline: Deadline, look: impl Fn() -> bool) -> bool;

    /// A sleep that followed [`spin`](Self::spin) is over.
    fn slept(&mut self);

    /// A thread of this side finds no room to send, and waits; `tries` of its waits came to nothing before.
    fn stalled(&mut self, _tries: u32) {}

    /// How many bare looks may come before [`spin`](Self::spin): some where the answer is expected at once.
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
    fn spin(&mut self, _until: Deadline, _look: impl Fn() -> bool) -> bool {
        false
    }

    fn slept(&mut self) {}
}

/// So many more messages until the CPU is asked for again; once it is over it stays so, until it is begun anew.
#[derive(Debug)]
struct CpuHintTimer(i32);

impl CpuHintTimer {
    #[inline(always)]
    fn is_over(&mut self) -> bool {
        self.0 = self.0.wrapping_sub(1); // From 16: nobody leaves it unheeded 2^31 times.
        self.0 <= 0
    }
}

/// One waiting place of one end of a connection.
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

/// What waits have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SpinHistory {
    /// Waits in a row without one that spun and paid.
    misses: u32,
    /// The last wait that spun lost its CPU.
    lost: bool,
    /// Two that spun did, one after the other: others want the CPUs. That the budget would have covered a wait that slept
    /// proves nothing then, for who spins gives a slice of time away that a sleeper keeps. Only a probe that pays does.
    crowded: bool,
}

impl SpinHistory {
    /// Whether this wait is better not begun by spinning.
    fn is_out(self) -> bool {
        self.misses >= PARK_AFTER_MISSES && self.misses % PROBE_INTERVAL != 0
    }

    /// One more wait that did not spin, or did and was not answered in time. It never stays where nothing is a probe.
    fn miss(&mut self) {
        self.misses = if self.misses < MAX_MISSES { self.misses + 1 } else { PROBE_INTERVAL };
    }

    /// A wait that spun has paid or not, and may have lost its CPU.
    fn learn(&mut self, paid: bool, lost: bool) {
        if paid {
            *self = Self::default();
            return;
        }
        self.crowded |= lost && self.lost;
        self.lost = lost;
        self.miss();
    }

    /// Whether a wait that slept, and that the budget would have covered, is a reason to spin again.
    fn heeds_sleeps(self) -> bool {
        self.misses >= PARK_AFTER_MISSES && !self.crowded
    }
}

impl AdaptiveWait {
    pub(crate) fn new(strategy: WaitStrategy, mapping: Mapping, role: RingRole) -> Self {
        let spin_history = SpinHistory::default();
        Self { strategy, mapping, role, cpu: 0, due: CpuHintTimer(1), spin_history, began: Instant::now() }
    }

    /// Tells the peer on which CPU this side is, if that has changed. It must be fresh: a peer that
    /// takes us to be on its own CPU does not spin, and one that should and does not know it keeps us
    /// from answering.
    #[inline(never)]
    fn tell_cpu(&mut self) -> u64 {
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
        let here = self.tell_cpu();
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
        // Who stepped aside for a busy neighbour has lost a slice of time, which a sleeper would not have.
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
        self.tell_cpu();
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
        self.due = CpuHintTimer(1); // Who is woken may be elsewhere.
        if self.strategy != WaitStrategy::Adaptive || !self.spin_history.heeds_sleeps() {
            return;
        }
        // The peer's account of when it woke us, clamped: a lie costs one wrong guess.
        let woken = self.mapping.woken_for(self.role);
        let waited = self.began.elapsed().saturating_sub(woken.unwrap_or_default());
        if woken.is_some() && waited <= SPIN_BUDGET {
            self.spin_history.misses = 0;
        }
    }
}

/// Looks until found or until `end`; now and then it lets others run, once the answer is not just
/// about to come.
///
/// Where the peer was last seen is not where its next wake puts it: that may be behind us on our own
/// CPU, where it can only run if we step aside.
fn spin(end: Instant, look: impl Fn() -> bool) -> bool {
    for _ in 0..PRE_SPINS {
        if look() {
            return true;
        }
    }
    let mut aside = Instant::now() + FIRST_YIELD;
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
        if now >= aside {
            cpu::yield_now();
            aside = now + YIELD_INTERVAL;
        }
    }
}

/// Looks until found or until the deadline, however long that is; calls `check` ten times a second.
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
    fn who_loses_its_cpu_twice_in_a_row_is_not_misled_by_sleeps() {
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
    fn a_countdown_whose_end_nobody_heeded_is_still_over() {
        let mut due = CpuHintTimer(3);
        assert_eq!([(); 6].map(|()| due.is_over()), [false, false, true, true, true, true]);
    }
}
