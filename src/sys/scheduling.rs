//! The scheduling of the peer monitor's thread. A thread inherits its scheduling from the thread that started it.
//!
//! The thread that makes the program's first connection may be pinned to a CPU, or have a real-time or idle policy. The
//! peer monitor serves all connections of the process, so it is scheduled like the main thread, but never by a
//! real-time policy: settings of `taskset` and `nice` for the process stay. Its timer slack is the kernel's default at
//! most. Other threads of the library run code of the program, so they keep what they inherit.
//!
//! # Invariants
//!
//! 1. The differences are read from `/proc`. The calls that change the scheduling are made only if it differs, and if
//!    no seccomp filter is in force, which might kill the thread for them. The timer slack is read by `prctl`, also
//!    only without a filter.
//!
//! # Proof
//!
//! The tests below, `tests/stream/peer_monitor.rs`.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;

use super::procfs;
use super::seccomp;
use super::syscall_error;

/// Why the thread keeps the scheduling that it inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotReset {
    /// `/proc` does not show how the threads are scheduled.
    Unknown,
    /// It differs from the main thread's, and a seccomp filter might kill the process for changing it.
    Filtered,
    /// The kernel refused the call.
    Refused(&'static str),
}

impl fmt::Display for NotReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("/proc does not say how this process is scheduled"),
            Self::Filtered => f.write_str("a seccomp filter might kill the process for changing it"),
            Self::Refused(call) => write!(f, "the kernel refused {call}"),
        }
    }
}

/// The scheduling parameters of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Schedule {
    policy: i32,
    nice: i32,
    cpus: String,
}

/// Gives the calling thread the scheduling of the main thread, but never a real-time or idle policy.
pub(crate) fn follow_main_thread() -> Result<(), NotReset> {
    limit_timer_slack();
    let (Some(own), Some(main)) = (Schedule::of_calling_thread(), Schedule::of_main_thread()) else {
        return Err(NotReset::Unknown);
    };
    let wanted = Schedule { policy: libc::SCHED_OTHER, ..main };
    if own == wanted {
        return Ok(());
    }
    if seccomp::filter_in_force() {
        return Err(NotReset::Filtered);
    }
    if own.policy != wanted.policy {
        let ordinary = libc::sched_param { sched_priority: 0 };
        // SAFETY: reads a live local; 0 is the calling thread.
        let set = unsafe { libc::sched_setscheduler(0, wanted.policy, &ordinary) };
        syscall_error::check("sched_setscheduler", set)
            .map_err(|_| NotReset::Refused("sched_setscheduler"))?;
    }
    if own.nice != wanted.nice {
        // SAFETY: takes numbers; 0 is the calling thread.
        let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, wanted.nice) };
        syscall_error::check("setpriority", set).map_err(|_| NotReset::Refused("setpriority"))?;
    }
    if own.cpus != wanted.cpus {
        take_cpus_of_main_thread().map_err(|_| NotReset::Refused("sched_setaffinity"))?;
    }
    Ok(())
}

/// Limits the timer slack, by which the kernel may delay a wake-up of the calling thread. It is inherited as well: with
/// seconds of slack, a hang-up would be reported seconds late. The value to which `PR_SET_TIMERSLACK` resets is
/// inherited from the same thread, so this sets the kernel's own default. A shorter slack stays.
fn limit_timer_slack() {
    const DEFAULT: libc::c_ulong = 50_000; // Nanoseconds.
    if seccomp::filter_in_force() {
        return; // The filter might kill the process for the change.
    }
    // SAFETY: both calls take numbers, and change only the calling thread.
    unsafe {
        if libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0).unsigned_abs() as libc::c_ulong > DEFAULT {
            libc::prctl(libc::PR_SET_TIMERSLACK, DEFAULT, 0, 0, 0);
        }
    }
}

fn take_cpus_of_main_thread() -> io::Result<()> {
    let main = i32::try_from(std::process::id()).unwrap_or(0);
    let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the first call fills the local set, for which zeros are a valid value, and the second reads it. 0 is the
    // calling thread.
    unsafe {
        let len = size_of::<libc::cpu_set_t>();
        syscall_error::check("sched_getaffinity", libc::sched_getaffinity(main, len, cpus.as_mut_ptr()))?;
        syscall_error::check("sched_setaffinity", libc::sched_setaffinity(0, len, cpus.as_ptr()))?;
    }
    Ok(())
}

impl Schedule {
    fn of_calling_thread() -> Option<Self> {
        Self::parse(&procfs::read(c"/proc/thread-self/stat")?, &procfs::read(c"/proc/thread-self/status")?)
    }

    fn of_main_thread() -> Option<Self> {
        Self::parse(&procfs::read(c"/proc/self/stat")?, &procfs::read(c"/proc/self/status")?)
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name of the program is in parentheses and may hold any characters. The state, field 3, follows.
        let (_, fields) = stat.rsplit_once(')')?;
        let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse().ok();
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(Self { nice: field(19)?, policy: field(41)?, cpus: cpus.trim().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_child;

    #[test]
    fn a_program_name_of_parentheses_and_spaces_does_not_move_the_fields() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let stat = format!("7 (a) b ( c) {}", fields.join(" "));
        let schedule = Schedule::parse(&stat, "Name:\tx\nCpus_allowed_list:\t0-1\n").expect("whole");
        assert_eq!(schedule, Schedule { policy: 41, nice: 19, cpus: "0-1".into() });
        assert_eq!(Schedule::parse("7 (a) S 1", "Cpus_allowed_list:\t0"), None);
        assert_eq!(Schedule::parse(&stat, "Name:\tx\n"), None);
    }

    #[test]
    fn a_thread_of_a_pinned_and_idle_thread_follows_the_main_thread() {
        in_child(|| {
            let main = Schedule::of_main_thread().expect("known");
            let thread = std::thread::spawn(move || {
                // SAFETY: changes only this thread; the set and the parameter are live locals.
                unsafe {
                    let mut first: libc::cpu_set_t = std::mem::zeroed();
                    let allowed = (0..1024).find(|cpu| main.cpus.starts_with(&cpu.to_string())).unwrap_or(0);
                    libc::CPU_SET(allowed, &mut first);
                    assert_eq!(libc::sched_setaffinity(0, size_of_val(&first), &first), 0);
                    let ordinary = libc::sched_param { sched_priority: 0 };
                    assert_eq!(libc::sched_setscheduler(0, libc::SCHED_BATCH, &ordinary), 0);
                }
                assert_eq!(Schedule::of_calling_thread().expect("known").policy, libc::SCHED_BATCH);
                std::thread::spawn(|| (follow_main_thread(), Schedule::of_calling_thread())).join()
            });
            let (result, schedule) = thread.join().expect("ends").expect("ends");
            match result {
                Ok(()) => assert_eq!(schedule, Schedule::of_main_thread()),
                Err(reason) => assert_eq!(reason, NotReset::Filtered),
            }
        });
    }
}
