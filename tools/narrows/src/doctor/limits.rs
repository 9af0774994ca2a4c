//! Limits of this process and its control group, and settings of the system.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::kernel::DEFAULT_MEMORY;
use super::{Finding, system};
use crate::words;

/// Less than this many connections are few for a server.
const FEW: u64 = 200;
/// Less memory than this is little: some ten connections that were all used up.
const LITTLE: u64 = 32 << 20;

pub(super) fn check() -> Vec<Finding> {
    vec![
        cpus(),
        quota(),
        open_files(),
        file_size(),
        address_space(),
        locked(),
        memory(),
        threads(),
        noexec(),
        yama(),
        directory(),
    ]
}

fn cpus() -> Finding {
    match system::cpus() {
        1 => Finding::without(
            "CPUs",
            "1: both processes take turns on it",
            "WaitStrategy::Spin keeps the peer from running: leave it at Adaptive, which steps aside, or Park",
        ),
        many => Finding::fine("CPUs", many.to_string()),
    }
}

/// The share of CPU time that the control group may have.
fn quota() -> Finding {
    let quota = groups("cpu").into_iter().filter_map(|folder| {
        let text = read(&folder.join("cpu.max"))?; // "max 100000", or "50000 100000"
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    match quota.min_by(f64::total_cmp) {
        Some(cpus) if cpus < 2.0 => Finding::without(
            "CPU quota",
            format!("{cpus:.2} CPUs of this control group"),
            "two sides that spin use it up and are stopped for the rest of each period: WaitStrategy::Park, or a larger cpu.max",
        ),
        Some(cpus) => Finding::fine("CPU quota", format!("{cpus:.2} CPUs of this control group")),
        None => Finding::fine("CPU quota", "none"),
    }
}

fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}

fn open_files() -> Finding {
    let hard =
        getrlimit(Resource::Nofile).maximum.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
    match limit(Resource::Nofile) {
        None => Finding::fine("open files", "unlimited"),
        Some(soft) => {
            // One for the connection, and at worst one for each peer process; some for all else.
            let room = soft.saturating_sub(32) / 2;
            let is =
                format!("{soft} (hard limit {hard}): room for some {room} connections to as many processes");
            match room {
                0 => Finding::broken("open files", is, "raise `ulimit -n`, or LimitNOFILE of the unit"),
                room if room < FEW => Finding::without(
                    "open files",
                    is,
                    "a server with many clients wants more: raise `ulimit -n`, or LimitNOFILE of the unit",
                ),
                _ => Finding::fine("open files", is),
            }
        }
    }
}

fn file_size() -> Finding {
    let need = DEFAULT_MEMORY as u64;
    match limit(Resource::Fsize) {
        Some(bytes) if bytes < need => Finding::broken(
            "file size",
            format!("{} at most; a connection's memory is a file of {need} B", words::size(bytes)),
            "raise `ulimit -f` (LimitFSIZE), or take smaller Options::arena and slots",
        ),
        Some(bytes) => Finding::fine("file size", format!("{} at most", words::size(bytes))),
        None => Finding::fine("file size", "unlimited"),
    }
}

fn address_space() -> Finding {
    match limit(Resource::As) {
        Some(bytes) if bytes < 256 << 20 => Finding::without(
            "address space",
            format!("{} at most; each connection maps {DEFAULT_MEMORY} B", words::size(bytes)),
            "raise `ulimit -v` (LimitAS), or take a smaller Options::arena",
        ),
        Some(bytes) => Finding::fine("address space", format!("{} at most", words::size(bytes))),
        None => Finding::fine("address space", "unlimited"),
    }
}

fn locked() -> Finding {
    let is = limit(Resource::Memlock).map_or_else(|| "unlimited".to_owned(), words::size);
    Finding::fine("locked memory", format!("{is}: of no weight, narrows locks none"))
}

/// The least of what this control group and those around it may still have.
fn memory() -> Finding {
    let left = groups("memory").into_iter().filter_map(|folder| {
        let of =
            |names: [&str; 2]| names.iter().find_map(|name| read(&folder.join(name))?.parse::<u64>().ok());
        let most = of(["memory.max", "memory.limit_in_bytes"])?;
        let now = of(["memory.current", "memory.usage_in_bytes"])?;
        (most < 1 << 60).then(|| (most.saturating_sub(now), most))
    });
    match left.min() {
        Some((left, most)) if left < LITTLE => Finding::without(
            "memory limit",
            format!("{} MiB of {} MiB left for this control group", left >> 20, most >> 20),
            "pages that are first touched when none is left get a process killed: raise memory.max, lower \
             Options::arena, or set Options::prefault, which makes it a refusal",
        ),
        Some((left, most)) => Finding::fine(
            "memory limit",
            format!("{} MiB of {} MiB left for this control group", left >> 20, most >> 20),
        ),
        None => Finding::fine("memory limit", "none by a control group"),
    }
}

fn threads() -> Finding {
    let most = groups("pids")
        .into_iter()
        .filter_map(|folder| read(&folder.join("pids.max"))?.parse::<u64>().ok())
        .min();
    match most {
        Some(most) if most < 64 => Finding::without(
            "threads",
            format!("{most} at most in this control group"),
            "one for all connections of a process, and one for each client of a server of calls: raise pids.max",
        ),
        Some(most) => Finding::fine("threads", format!("{most} at most in this control group")),
        None => Finding::fine("threads", "no limit by a control group"),
    }
}

fn noexec() -> Finding {
    let is = match read(Path::new("/proc/sys/vm/memfd_noexec")).as_deref() {
        Some("0") => "0",
        Some("1") => "1: memory files are not executable unless asked for",
        Some(_) => "2: executable memory files are refused",
        None => "not known to this kernel",
    };
    Finding::fine("vm.memfd_noexec", format!("{is}; of no weight, narrows makes none that can be executed"))
}

fn yama() -> Finding {
    let is = read(Path::new("/proc/sys/kernel/yama/ptrace_scope"));
    let is = is.map_or_else(|| "not there".to_owned(), |scope| format!("ptrace_scope {scope}"));
    Finding::fine("Yama", format!("{is}; of no weight, narrows looks into no process"))
}

/// Where sockets of this user best stand.
fn directory() -> Finding {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(path) => Finding::fine(
            "directory",
            format!("{} is this user's own: a good place for sockets", path.display()),
        ),
        None => Finding::fine(
            "directory",
            "no XDG_RUNTIME_DIR: give servers a directory of their own; in /tmp others can hold the lock",
        ),
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The folders of this process's control group and of all around it, of version 2 or of this controller.
fn groups(controller: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match names {
            "" => PathBuf::from("/sys/fs/cgroup"),
            names if names.split(',').any(|name| name == controller) => {
                Path::new("/sys/fs/cgroup").join(controller)
            }
            _ => continue,
        };
        let own = root.join(path.trim_start_matches('/'));
        found.extend(own.ancestors().take_while(|folder| folder.starts_with(&root)).map(Path::to_owned));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_begin_with_the_own_one_and_end_with_the_root() {
        let groups = groups("memory");
        assert!(groups.iter().all(|folder| folder.starts_with("/sys/fs/cgroup")), "{groups:?}");
        assert!(
            groups
                .windows(2)
                .all(|pair| pair[0].starts_with(&pair[1]) || !pair[1].starts_with("/sys/fs/cgroup/x"))
        );
    }

    #[test]
    fn every_check_says_something() {
        assert!(check().iter().all(|finding| !finding.is.is_empty()));
    }
}
