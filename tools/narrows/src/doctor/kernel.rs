//! System calls and options that narrows uses. Each is tried in the way in which the library uses it.

use std::io;
use std::sync::atomic::AtomicU32;

use narrows::probe;
use rustix::io::Errno;
use rustix::thread::futex;

use super::memory::DEFAULT_MEMORY;
use super::{Check, Finding, Verdict, isolate, system};

pub(super) const CHECKS: &[Check] = &[
    Check::of("release", release),
    Check::vital("memory", memory),
    Check::of("F_SEAL_FUTURE_WRITE", seal),
    Check::vital("futex", waits),
    Check::of("pidfd_open", death_of_a_child),
    Check::of("SO_PEERPIDFD", death_of_a_client),
    Check::of("SO_PASSPIDFD", death_of_a_server),
    Check::of("MADV_POPULATE_WRITE", prefault),
    Check::of("SO_PASSRIGHTS", descriptors),
    Check::of("MADV_WIPEONFORK", fork_guard),
    Check::of("scheduling", scheduling),
];

fn release() -> Vec<Finding> {
    let release = system::release();
    vec![match system::version() {
        version if version < (5, 3) => Finding::note(
            "release",
            format!("{release}, older than what narrows is tested with (5.3)"),
            "what is missing is named below; with 6.5 or later every death is known as one: upgrade",
        ),
        version if version < (6, 9) => Finding::fine(
            "release",
            format!(
                "{release}; before 6.9 each connection takes two descriptors, its peer's pidfd not being shared"
            ),
        ),
        _ => Finding::fine("release", release),
    }]
}

/// Makes the finding of a call that narrows needs, or can work without.
fn outcome(what: &str, is: &str, result: io::Result<()>, if_missing: Verdict, advice: &str) -> Vec<Finding> {
    vec![match (result, if_missing) {
        (Ok(()), _) => Finding::fine(what, is),
        (Err(error), Verdict::Problem) => Finding::problem(what, error.to_string(), advice),
        (Err(error), verdict) => Finding::new(verdict, what, format!("missing: {error}"), advice),
    }]
}

fn memory() -> Vec<Finding> {
    outcome(
        "memory",
        "memfd_create, sealed against any change of its size, mapped, not inherited by forks",
        probe::memory_in_steps(DEFAULT_MEMORY, isolate::about_to_call),
        Verdict::Problem,
        "every connection needs it: Linux 4.14; a seccomp filter must let memfd_create, fcntl (F_ADD_SEALS), mmap and madvise \
         (MADV_DONTFORK, MADV_WIPEONFORK) pass; a limit on file sizes, address space or locked memory must leave room",
    )
}

fn seal() -> Vec<Finding> {
    isolate::about_to_call("fcntl (F_SEAL_FUTURE_WRITE) or fallocate");
    outcome(
        "F_SEAL_FUTURE_WRITE",
        "no process takes pages away from memory that is mapped",
        probe::seal_against_holes(),
        Verdict::Note,
        "Linux 5.1, or a sandbox. A hostile peer can take pages away, and hold up this process so: connect to peers that are trusted",
    )
}

fn fork_guard() -> Vec<Finding> {
    let result = match probe::wipe_on_fork() {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::other("accepted, but it has no effect")),
        Err(error) => Err(error),
    };
    outcome(
        "MADV_WIPEONFORK",
        "a fork finds out that it is one",
        result,
        Verdict::Note,
        "an emulator or a sandbox: a handler of the C library stands in for it, but a process that was forked by the bare system \
         call must not use connections",
    )
}

fn scheduling() -> Vec<Finding> {
    const WHAT: &str = "peer monitor";
    isolate::about_to_call("sched_setaffinity, sched_setscheduler or setpriority");
    match probe::monitor_scheduling() {
        Ok(None) => vec![Finding::fine(WHAT, "its thread is scheduled as the main thread")],
        Ok(Some(reason)) => vec![Finding::note(
            WHAT,
            format!("its thread keeps the scheduling of the thread that made the first connection: {reason}"),
            "call narrows::start_peer_monitor from an ordinary thread, before any thread is pinned or has a real-time policy",
        )],
        Err(error) => vec![Finding::problem(WHAT, error.to_string(), "every connection needs its thread")],
    }
}

/// Shared waits, with the flags that two processes use: a sleep ends at its deadline, and a wake finds no sleeper.
fn waits() -> Vec<Finding> {
    let word = AtomicU32::new(1);
    let soon = futex::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let slept = futex::wait(&word, futex::Flags::empty(), 1, Some(&soon));
    let woken = futex::wake(&word, futex::Flags::empty(), 1);
    let result = match (slept, woken) {
        (Err(Errno::TIMEDOUT), Ok(0)) => Ok(()),
        (Err(error), Ok(_)) | (_, Err(error)) => Err(error.into()),
        (Ok(()), Ok(_)) => Err(io::Error::other("a sleep without a wake was over at once")),
    };
    outcome(
        "futex",
        "shared waits, with deadlines, and wakes",
        result,
        Verdict::Problem,
        "every wait that does not spin needs it: a seccomp filter must let futex pass",
    )
}

fn death_of_a_child() -> Vec<Finding> {
    outcome(
        "pidfd_open",
        "the death of a child or parent is known, also where a fork of it keeps the socket open",
        probe::pidfd(),
        Verdict::Note,
        "Linux 5.3, or a filter. A death counts as `Disconnected`, reported by the socket alone",
    )
}

fn death_of_a_client() -> Vec<Finding> {
    isolate::about_to_call("getsockopt (SO_PEERPIDFD)");
    outcome(
        "SO_PEERPIDFD",
        "a server distinguishes a client's death from its hang-up",
        probe::pidfd_of_a_client(),
        Verdict::Note,
        "Linux 6.5, or a filter. To a server a client that was killed is `Disconnected`, not `PeerDied`",
    )
}

fn death_of_a_server() -> Vec<Finding> {
    isolate::about_to_call("setsockopt (SO_PASSPIDFD)");
    outcome(
        "SO_PASSPIDFD",
        "a client distinguishes a server's death from its hang-up",
        probe::pidfd_of_a_server(),
        Verdict::Note,
        "Linux 6.5, or a filter. To a client a server that was killed is `Disconnected`, not `PeerDied`",
    )
}

fn prefault() -> Vec<Finding> {
    isolate::about_to_call("madvise (MADV_POPULATE_WRITE)");
    outcome(
        "MADV_POPULATE_WRITE",
        "Options::prefault takes all memory when a connection is made",
        probe::prefault(),
        Verdict::Note,
        "Linux 5.14, or a filter. Leave Options::prefault unset: connections with it are refused",
    )
}

fn descriptors() -> Vec<Finding> {
    isolate::about_to_call("setsockopt (SO_PASSRIGHTS)");
    vec![match probe::refuse_descriptors() {
        Ok(()) => Finding::fine("SO_PASSRIGHTS", "clients cannot send descriptors to a server"),
        // Not worth a note, since a server never receives descriptors.
        Err(_) => Finding::fine(
            "SO_PASSRIGHTS",
            "missing (Linux 6.16): descriptors that a client sends are never received",
        ),
    }]
}
