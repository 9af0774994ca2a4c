//! How much memory a connection takes on this machine, and the limits of memory.

use narrows::Options;
use narrows::probe;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall, munlockall};
use rustix::process::{Resource, getrlimit};

use super::{Check, Finding, cgroups, isolate, system};
use crate::format;

/// The memory of a connection with `Options::new()`: two pages of words, 2 x 256 slots, two arenas.
pub(super) const DEFAULT_MEMORY: usize = 2 * (4096 + 256 * 128 + (1 << 20));
/// Less memory than this is little: it holds about ten connections whose arenas are all in use.
const LITTLE: u64 = 32 << 20;
/// An idle connection takes less than this: a few pages.
const IDLE: u64 = 256 << 10;

pub(super) const CHECKS: &[Check] = &[
    Check::of("idle connection", idle),
    Check::of("memory limit", group),
    Check::of("overcommit", overcommit),
    Check::of("locked memory", locked),
    Check::of("vm.memfd_noexec", noexec),
];

/// The memory of a connection that carried nothing: a few pages, unless huge pages are forced.
fn idle() -> Vec<Finding> {
    isolate::about_to("makes a connection");
    let shared = || system::bytes("/proc/self/status", "RssShmem");
    let before = shared();
    let pair = Options::new().pair();
    let (Some(before), Some(after), Ok(_)) = (before, shared(), &pair) else {
        let why =
            pair.err().map_or_else(|| "this kernel does not count it".to_owned(), |error| error.to_string());
        return vec![Finding::fine("idle connection", format!("not measured: {why}"))];
    };
    let huge = system::read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("not known").to_owned();
    let kib = after.saturating_sub(before) >> 10;
    let is = format!("{kib} KiB while it carries nothing (huge pages for shared memory: {huge})");
    vec![match after.saturating_sub(before) {
        bytes if bytes > IDLE => Finding::note(
            "idle connection",
            is,
            "huge pages are forced upon every mapping: set /sys/kernel/mm/transparent_hugepage/shmem_enabled to never or advise",
        ),
        _ => Finding::fine("idle connection", is),
    }]
}

/// The memory that this control group and its ancestors still allow, whichever is least.
fn group() -> Vec<Finding> {
    let left = cgroups::least_left(
        "memory",
        ["memory.max", "memory.limit_in_bytes"],
        ["memory.current", "memory.usage_in_bytes"],
    );
    let Some((left, most)) = left else {
        return vec![Finding::fine("memory limit", "none by a control group")];
    };
    let is = format!("{} MiB of {} MiB left for this control group", left >> 20, most >> 20);
    vec![if left < LITTLE {
        Finding::note(
            "memory limit",
            is,
            "pages that are first touched when none is left get a process killed: raise memory.max (MemoryMax of a unit), \
             lower Options::arena, or set Options::prefault, which makes it a refusal",
        )
    } else {
        Finding::fine("memory limit", is)
    }]
}

/// Whether the kernel refuses memory in advance.
fn overcommit() -> Vec<Finding> {
    let meminfo = |key| system::bytes("/proc/meminfo", key);
    let mode = system::read("/proc/sys/vm/overcommit_memory");
    vec![match (mode.as_deref(), meminfo("CommitLimit"), meminfo("Committed_AS")) {
        (Some("2"), Some(limit), Some(used)) => {
            let left = limit.saturating_sub(used);
            let is = format!("vm.overcommit_memory is 2: {} MiB of {} MiB left", left >> 20, limit >> 20);
            if left < 8 * LITTLE {
                let advice = "threads and large messages fail with \"cannot allocate memory\" when none is left: raise \
                              vm.overcommit_ratio, or lower Options::max_message";
                Finding::note("overcommit", is, advice)
            } else {
                Finding::fine("overcommit", is)
            }
        }
        (Some(mode), ..) => Finding::fine(
            "overcommit",
            format!("vm.overcommit_memory is {mode}: memory counts when it is first written"),
        ),
        (None, ..) => Finding::fine("overcommit", "not known"),
    }]
}

/// The result for a program that locks all memory that it will ever map.
fn locked() -> Vec<Finding> {
    let limit = getrlimit(Resource::Memlock).current;
    let is = limit.map_or_else(|| "unlimited".to_owned(), format::size);
    let what = "locked memory";
    isolate::about_to_call("mlockall");
    let future = mlockall(MlockAllFlags::FUTURE);
    let need = DEFAULT_MEMORY as u64;
    let found = vec![match (future, limit) {
        (Err(Errno::PERM), _) => {
            Finding::fine(what, format!("{is}: this process may not lock any, and narrows locks none"))
        }
        (Err(error), _) => {
            Finding::fine(what, format!("{is}: mlockall is not to be had ({error}), and not needed"))
        }
        (Ok(()), Some(limit)) if binds(limit) => {
            let room = limit / need;
            let is =
                format!("{is}: a program that calls mlockall(MCL_FUTURE) has room for {room} connections");
            let advice = "mmap fails with EAGAIN then: raise `ulimit -l` (LimitMEMLOCK) by 2.1 MiB for each connection, or lock \
                          with mlock what needs it";
            if room == 0 {
                Finding::note(what, is, advice)
            } else {
                Finding::fine(what, format!("{is}; {advice}"))
            }
        }
        (Ok(()), _) => Finding::fine(what, format!("{is}, or no limit for this process; narrows locks none")),
    }];
    let _of_this_process_alone = munlockall();
    found
}

/// Returns whether the limit applies to this process, which it does not with CAP_IPC_LOCK. Tries to lock a little more than the
/// limit.
fn binds(limit: u64) -> bool {
    const NOT_TRIED: u64 = 64 << 20;
    let more = usize::try_from(limit.min(NOT_TRIED)).map_or(DEFAULT_MEMORY, |limit| limit + DEFAULT_MEMORY);
    limit > NOT_TRIED || probe::memory(more).is_err()
}

fn noexec() -> Vec<Finding> {
    let is = match system::read("/proc/sys/vm/memfd_noexec").as_deref() {
        Some("0") => "0",
        Some("1") => "1: memory files are not executable unless asked for",
        Some(_) => "2: executable memory files are refused",
        None => "not known to this kernel",
    };
    vec![Finding::fine(
        "vm.memfd_noexec",
        format!("{is}; of no weight, narrows makes none that can be executed"),
    )]
}
