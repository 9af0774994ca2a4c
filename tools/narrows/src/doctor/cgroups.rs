//! Control groups, of version 1, of version 2, and of both at once: where the groups of this process and its ancestors are mounted.

use std::fs;
use std::path::{Path, PathBuf};

use super::system;

/// Returns the folders of this process's control group and of its ancestors that may have this controller, innermost first.
fn folders(controller: &str) -> Vec<PathBuf> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    find(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"), controller)
}

/// Returns what `of` reads in each folder.
pub(super) fn each<T>(controller: &str, of: impl Fn(&Path) -> Option<T>) -> Vec<T> {
    folders(controller).iter().filter_map(|folder| of(folder)).collect()
}

/// Returns the number in the first of these files that exists. "max", or the value that version 1 has for it, is no limit.
pub(super) fn number(folder: &Path, names: [&str; 2]) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    let text = names.iter().find_map(|name| system::read(folder.join(name)))?;
    text.parse().ok().filter(|number| *number < NONE)
}

/// Returns a limit of a controller and its usage, of the group that has the least left.
pub(super) fn least_left(controller: &str, limit: [&str; 2], used: [&str; 2]) -> Option<(u64, u64)> {
    let left = each(controller, |folder| {
        let most = number(folder, limit)?;
        Some((most.saturating_sub(number(folder, used)?), most))
    });
    left.into_iter().min()
}

/// Returns the CPU time that this group and its ancestors may use, as a number of CPUs.
pub(super) fn cpus() -> Option<f64> {
    let quotas = each("cpu", |folder| {
        // Version 2 has "max 100000" or "50000 100000", version 1 two files, with -1 for none.
        let (quota, period) = match system::read(folder.join("cpu.max")) {
            Some(text) => {
                text.split_once(' ').map(|(quota, period)| (quota.to_owned(), period.to_owned()))?
            }
            None => (
                system::read(folder.join("cpu.cfs_quota_us"))?,
                system::read(folder.join("cpu.cfs_period_us"))?,
            ),
        };
        let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    });
    quotas.into_iter().min_by(f64::total_cmp)
}

/// Does the same as [`folders`], from the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn find(groups: &str, mounts: &str, controller: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in groups.lines() {
        // "4:memory,hugetlb:/some/group" in version 1, "0::/some/group" in version 2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(group)) = (fields.next(), fields.next()) else { continue };
        let wanted = names.is_empty() || names.split(',').any(|name| name == controller);
        let mount = mounts.lines().filter_map(Mount::of).rfind(|mount| match names {
            "" => mount.kind == "cgroup2",
            _ => mount.kind == "cgroup" && mount.options.split(',').any(|name| name == controller),
        });
        if let (true, Some(mount)) = (wanted, mount) {
            // In a container the mount may begin at the container's own group, and the path at the machine's.
            let inside = Path::new(group).strip_prefix(&mount.root).unwrap_or_else(|_| Path::new(""));
            let inside = if inside.starts_with("..") { Path::new("") } else { inside };
            let own: PathBuf = mount.point.join(inside).components().collect();
            found.extend(own.ancestors().take_while(|it| it.starts_with(&mount.point)).map(Path::to_owned));
        }
    }
    found
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug)]
pub(super) struct Mount {
    /// The directory of the file system that is mounted.
    pub(super) root: PathBuf,
    /// The mount point.
    pub(super) point: PathBuf,
    /// The type of the file system.
    pub(super) kind: String,
    options: String,
}

impl Mount {
    /// Parses a line: id, parent, device, root, point, options, tags, "-", type, source, options of the file system.
    pub(super) fn of(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut system = system.split(' ');
        let path = |text: &str| PathBuf::from(text.replace("\\040", " ").replace("\\134", "\\"));
        Some(Self {
            root: path(mount.next()?),
            point: path(mount.next()?),
            kind: system.next()?.to_owned(),
            options: system.nth(1).unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(groups: &str, mounts: &str, controller: &str) -> Vec<String> {
        find(groups, mounts, controller).iter().map(|folder| folder.display().to_string()).collect()
    }

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn groups_of_both_versions_are_found_from_the_own_one_outwards() {
        assert_eq!(
            found("0::/user.slice/a.scope", V2, "memory"),
            ["/sys/fs/cgroup/user.slice/a.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]
        );
        let groups = "4:memory:/a\n2:cpu,cpuacct:/\n0::/";
        assert_eq!(
            found(groups, V1, "memory"),
            ["/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"]
        );
        assert_eq!(found(groups, V1, "cpu"), ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"]);
        assert_eq!(found(groups, V1, "pids"), ["/sys/fs/cgroup/unified"]);
        assert_eq!(found("", "", "pids"), Vec::<String>::new());
        assert_eq!(found(groups, "", "cpu"), Vec::<String>::new());
    }

    #[test]
    fn a_mount_that_begins_at_the_containers_group_is_the_own_one() {
        let mount = "35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        assert_eq!(found("4:memory:/docker/ab", mount, "memory"), ["/sys/fs/cgroup/memory"]);
        assert_eq!(
            found("4:memory:/docker/ab/c", mount, "memory"),
            ["/sys/fs/cgroup/memory/c", "/sys/fs/cgroup/memory"]
        );
        // A cgroup namespace shows groups outside of it in this form.
        assert_eq!(found("0::/../x", V2, "memory"), ["/sys/fs/cgroup"]);
    }

    #[test]
    fn limits_of_both_versions_are_read() {
        let folder = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("writes");
        let names = ["memory.max", "memory.limit_in_bytes"];
        assert_eq!(number(folder.path(), names), None);
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(number(folder.path(), names), None);
        write("memory.limit_in_bytes", "1048576\n");
        assert_eq!(number(folder.path(), names), Some(1 << 20));
        write("memory.max", "max\n");
        assert_eq!(number(folder.path(), names), None);
    }

    #[test]
    fn paths_with_spaces_are_read() {
        let mount = Mount::of("1 2 0:3 /a\\040b /tmp/c\\040d rw - tmpfs tmpfs rw").expect("a mount");
        assert_eq!((mount.root, mount.point), ("/a b".into(), "/tmp/c d".into()));
        assert!(Mount::of("nonsense").is_none());
    }
}
