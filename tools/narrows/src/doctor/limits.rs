//! Limits of this process and its control group, and how many connections they leave room for.

use std::fs;
use std::thread;

use rustix::process::{Resource, getrlimit};

use super::memory::DEFAULT_MEMORY;
use super::{Check, Finding, cgroups, isolate, system};
use crate::format;

/// Fewer connections than this are few for a server.
const FEW: u64 = 200;
/// The mappings of a connection of an RPC server: its memory, and the stack and the signal stack of its thread, each with a
/// guard. A stream takes only the first. The threads of its program take the others.
const MAPPINGS: u64 = 5;
/// The most descriptors of a connection: its socket, and the pidfd of the peer if it is the only connection to that process.
const DESCRIPTORS: u64 = 2;

pub(super) const CHECKS: &[Check] = &[
    Check::of("CPUs", cpus),
    Check::of("CPU quota", quota),
    Check::of("open files", open_files),
    Check::of("mappings", mappings),
    Check::vital("threads", threads),
    Check::of("file size", file_size),
    Check::of("address space", address_space),
];

fn cpus() -> Vec<Finding> {
    vec![match system::cpus() {
        1 => Finding::note(
            "CPUs",
            "1: both processes take turns on it",
            "WaitStrategy::Spin keeps the peer from running: leave it at Adaptive, which yields, or Park",
        ),
        many => Finding::fine("CPUs", many.to_string()),
    }]
}

/// The share of CPU time that the control group may use.
fn quota() -> Vec<Finding> {
    vec![match cgroups::cpus() {
        Some(cpus) if cpus < 2.0 => Finding::note(
            "CPU quota",
            format!("{cpus:.2} CPUs of this control group"),
            "two sides that spin use it up and are stopped for the rest of each period: WaitStrategy::Park, or a larger cpu.max \
             (CPUQuota of a unit)",
        ),
        Some(cpus) => Finding::fine("CPU quota", format!("{cpus:.2} CPUs of this control group")),
        None => Finding::fine("CPU quota", "none"),
    }]
}

fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}

fn open_files() -> Vec<Finding> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let hard = hard.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
    let Some(soft) = limit(Resource::Nofile) else {
        return vec![Finding::fine("open files", "unlimited")];
    };
    // Leaves a few descriptors for other uses.
    let room = soft.saturating_sub(32) / DESCRIPTORS;
    let is = format!("{soft} (hard limit {hard}): room for {room} connections to as many processes");
    vec![match room {
        0 => Finding::problem("open files", is, "raise `ulimit -n`, or LimitNOFILE of the unit"),
        room if room < FEW => Finding::note(
            "open files",
            is,
            "a server with many clients wants more: raise `ulimit -n`, or LimitNOFILE of the unit",
        ),
        _ => Finding::fine("open files", is),
    }]
}

/// The limit of mappings of a process. Beyond it no threads and connections can be made.
fn mappings() -> Vec<Finding> {
    let most = system::read("/proc/sys/vm/max_map_count").and_then(|text| text.parse::<u64>().ok());
    let Some(most) = most else {
        return vec![Finding::fine("mappings", "vm.max_map_count is not known here")];
    };
    let own = fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count() as u64);
    let room = most.saturating_sub(own);
    let is = format!(
        "vm.max_map_count is {most}: room for {} connections of an RPC server ({MAPPINGS} mappings each), {room} without a \
         thread each",
        room / MAPPINGS
    );
    vec![if room / MAPPINGS < FEW {
        Finding::note(
            "mappings",
            is,
            "a server with many clients wants more: raise vm.max_map_count (sysctl)",
        )
    } else {
        Finding::fine("mappings", is)
    }]
}

/// Starts a thread, and shows how many more are possible.
fn threads() -> Vec<Finding> {
    isolate::about_to_call("clone3 or clone");
    let advice = "narrows needs one thread for all connections of a process, and an RPC server one for each client: raise \
                  pids.max (TasksMax of a unit) or `ulimit -u` (LimitNPROC), which counts all threads of the user";
    let started = thread::Builder::new().spawn(|| ());
    if let Err(error) = started.map(thread::JoinHandle::join) {
        return vec![Finding::problem("threads", format!("none can be started: {error}"), advice)];
    }
    let user =
        limit(Resource::Nproc).map(|most| format!("{most} at most of this user, for root without a limit"));
    let group = cgroups::least_left("pids", ["pids.max"; 2], ["pids.current"; 2]);
    let is = [user, group.map(|(left, most)| format!("{left} of {most} left in this control group"))];
    let is = is.into_iter().flatten().collect::<Vec<_>>().join("; ");
    let is = if is.is_empty() { "no limit".to_owned() } else { is };
    let few_by_group = group.is_some_and(|(left, _)| left < FEW);
    let few_by_user = limit(Resource::Nproc).is_some_and(|most| most < FEW);
    vec![match few_by_group || few_by_user {
        true => Finding::note("threads", is, advice),
        false => Finding::fine("threads", is),
    }]
}

fn file_size() -> Vec<Finding> {
    let need = DEFAULT_MEMORY as u64;
    vec![match limit(Resource::Fsize) {
        Some(bytes) if bytes < need => Finding::problem(
            "file size",
            format!("{} at most; a connection's memory is a file of {need} B", format::size(bytes)),
            "raise `ulimit -f` (LimitFSIZE), or take smaller Options::arena and slots",
        ),
        Some(bytes) => Finding::fine("file size", format!("{} at most", format::size(bytes))),
        None => Finding::fine("file size", "unlimited"),
    }]
}

fn address_space() -> Vec<Finding> {
    let Some(bytes) = limit(Resource::As) else {
        return vec![Finding::fine("address space", "unlimited")];
    };
    let room = bytes / DEFAULT_MEMORY as u64;
    let is =
        format!("{} at most: fewer than {room} connections, with threads and messages", format::size(bytes));
    vec![if room < FEW {
        Finding::note(
            "address space",
            is,
            "raise `ulimit -v` (LimitAS), or take a smaller Options::arena and max_message",
        )
    } else {
        Finding::fine("address space", is)
    }]
}
