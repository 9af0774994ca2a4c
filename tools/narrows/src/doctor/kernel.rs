//! Calls and options that narrows uses: each is asked for as the library asks.

use std::io;
use std::sync::atomic::AtomicU32;

use narrows::internal::probe;
use rustix::io::Errno;
use rustix::thread::futex;

use super::{Finding, system};

/// What `Options::new()` makes for a connection: two pages of words, 2 x 256 slots, two arenas.
pub(super) const DEFAULT_MEMORY: usize = 2 * (4096 + 256 * 128 + (1 << 20));

pub(super) fn check() -> Vec<Finding> {
    vec![
        release(),
        filter(),
        memory(),
        waits(),
        death_of_a_child(),
        death_of_a_client(),
        death_of_a_server(),
        quick_death(),
        prefault(),
        descriptors(),
    ]
}

fn release() -> Finding {
    let release = system::release();
    match system::version() {
        version if version < (5, 3) => Finding::without(
            "release",
            format!("{release}, older than what narrows is tested with (5.3)"),
            "what is missing is told below; an upgrade to 6.5 or later makes every death known as one",
        ),
        version if version < (6, 9) => Finding::fine(
            "release",
            format!(
                "{release}; before 6.9 each connection takes two descriptors, its peer's pidfd not being shared"
            ),
        ),
        _ => Finding::fine("release", release),
    }
}

fn filter() -> Finding {
    match system::status("Seccomp").as_deref() {
        Some("0") => Finding::fine("seccomp", "no filter"),
        Some(_) => Finding::fine("seccomp", "a filter is in force; what it refuses is told here as missing"),
        None => Finding::fine("seccomp", "this kernel does not tell"),
    }
}

/// What a call came to that narrows cannot do without.
fn needed(what: &'static str, is: &str, result: io::Result<()>, advice: &str) -> Finding {
    match result {
        Ok(()) => Finding::fine(what, is),
        Err(error) => Finding::broken(what, error.to_string(), advice),
    }
}

/// What a call came to that narrows does without.
fn helpful(what: &'static str, is: &str, result: io::Result<()>, without: &str) -> Finding {
    match result {
        Ok(()) => Finding::fine(what, is),
        Err(error) => Finding::without(what, format!("missing: {error}"), without),
    }
}

fn memory() -> Finding {
    needed(
        "memory",
        "memfd_create, sealed against any change of its size, mapped, not inherited by forks",
        probe::memory(DEFAULT_MEMORY),
        "every connection needs it: Linux 4.14; a seccomp filter must let memfd_create, fcntl (F_ADD_SEALS), \
         mmap and madvise (MADV_DONTFORK, MADV_WIPEONFORK) pass; a limit on file sizes must allow for it",
    )
}

/// Shared waits: the very flags that two processes use; a sleep ends by its deadline, and a wake finds nobody.
fn waits() -> Finding {
    let word = AtomicU32::new(1);
    let soon = futex::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let slept = futex::wait(&word, futex::Flags::empty(), 1, Some(&soon));
    let woken = futex::wake(&word, futex::Flags::empty(), 1);
    let result = match (slept, woken) {
        (Err(Errno::TIMEDOUT), Ok(0)) => Ok(()),
        (Err(error), Ok(_)) | (_, Err(error)) => Err(error.into()),
        (Ok(()), Ok(_)) => Err(io::Error::other("a sleep that nobody ended was over at once")),
    };
    needed(
        "futex",
        "shared waits, with deadlines, and wakes",
        result,
        "every wait that does not spin needs it: a seccomp filter must let futex pass",
    )
}

fn death_of_a_child() -> Finding {
    helpful(
        "pidfd_open",
        "the death of a child or parent is known, also where a fork of it keeps the socket open",
        probe::pidfd(),
        "Linux 5.3, or a filter. A death counts as `Disconnected`, told by the socket alone",
    )
}

fn death_of_a_client() -> Finding {
    helpful(
        "SO_PEERPIDFD",
        "a server tells a client's death from its hang-up",
        probe::pidfd_of_a_client(),
        "Linux 6.5, or a filter. To a server a client that was killed is `Disconnected`, not `PeerDied`",
    )
}

fn death_of_a_server() -> Finding {
    helpful(
        "SO_PASSPIDFD",
        "a client tells a server's death from its hang-up",
        probe::pidfd_of_a_server(),
        "Linux 6.5, or a filter. To a client a server that was killed is `Disconnected`, not `PeerDied`",
    )
}

fn quick_death() -> Finding {
    helpful(
        "process_mrelease",
        "a death is told as one at once, however much the process has to close",
        probe::process_mrelease(),
        "Linux 5.15, or a filter. A process that needs more than 100 ms to close its files when it is killed is \
         `Disconnected`, not `PeerDied`",
    )
}

fn prefault() -> Finding {
    helpful(
        "MADV_POPULATE_WRITE",
        "Options::prefault takes all memory when a connection is made",
        probe::prefault(),
        "Linux 5.14, or a filter. Leave Options::prefault unset: connections with it are refused",
    )
}

fn descriptors() -> Finding {
    match probe::refuse_descriptors() {
        Ok(()) => Finding::fine("SO_PASSRIGHTS", "clients cannot send descriptors to a server"),
        // Old, and of no weight: a server never receives any.
        Err(_) => Finding::fine(
            "SO_PASSRIGHTS",
            "missing (Linux 6.16): descriptors that a client sends are never received",
        ),
    }
}
