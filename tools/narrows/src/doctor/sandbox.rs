//! The environment of this process: filters, users, namespaces, private directories.

use std::fs;
use std::path::{Path, PathBuf};

use narrows::probe;
use rustix::process::geteuid;

use super::cgroups::Mount;
use super::{Check, Finding, isolate, system};

pub(super) const CHECKS: &[Check] = &[
    Check::of("user", user),
    Check::of("user namespace", users),
    Check::of("PID namespace", processes),
    Check::of("/tmp", temporary),
    Check::of("packaging", packaging),
    Check::of("directory", directory),
];

/// Returns whether a filter is in force. This is checked before another process is started, since a filter may kill this one for
/// that.
pub(super) fn filter() -> Finding {
    match system::value("/proc/self/status", "Seccomp").as_deref() {
        Some("0") => Finding::fine("seccomp", "no filter"),
        Some(_) => Finding::fine(
            "seccomp",
            "a filter is in force: below is what it refuses, and for what it kills; if this is the last line, it kills programs \
             that start others",
        ),
        None => Finding::fine("seccomp", "not known: no /proc, or a kernel without filters"),
    }
}

/// The user of this process. Peers see the user that the kernel knows, whatever a library in the process says.
fn user() -> Vec<Finding> {
    isolate::about_to_call("socketpair or getsockopt (SO_PEERCRED)");
    vec![match probe::own_user() {
        Ok((is, says)) if is == says => Finding::fine("user", is.to_string()),
        Ok((is, says)) => Finding::note(
            "user",
            format!("{is} to the kernel and to peers, {says} to this process (fakeroot, proot?)"),
            "by default peers are accepted by the user that the kernel reports; a policy of your own (Options::authorize) must go by it as well",
        ),
        Err(error) => Finding::problem(
            "user",
            error.to_string(),
            "connections are made over Unix sockets: let them pass",
        ),
    }]
}

/// Users that a namespace does not map all appear as one user, which is therefore never treated as the same user.
fn users() -> Vec<Finding> {
    let what = "user namespace";
    let Some(map) = system::read("/proc/self/uid_map") else {
        return vec![Finding::fine(what, "not known")];
    };
    let mapped = mapped_users(&map);
    if mapped >= u64::from(u32::MAX) {
        return vec![Finding::fine(what, "all users are mapped")];
    }
    let overflow = system::read("/proc/sys/kernel/overflowuid").unwrap_or_else(|| "65534".to_owned());
    let is = format!(
        "{mapped} users are mapped; all others show as user {overflow}, which is never trusted as one's own"
    );
    vec![if geteuid().as_raw().to_string() == overflow {
        Finding::note(
            what,
            format!("{is}, and this process is that user itself"),
            "by default it is trusted by no peer and trusts none: map this process's user, or set Options::authorize",
        )
    } else {
        Finding::fine(what, is)
    }]
}

/// How many users the text of a `uid_map` covers.
fn mapped_users(map: &str) -> u64 {
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum()
}

fn processes() -> Vec<Finding> {
    const INITIAL: &str = "pid:[4026531836]";
    let what = "PID namespace";
    vec![match fs::read_link("/proc/self/ns/pid") {
        Ok(own) if own == Path::new(INITIAL) => Finding::fine(what, "the machine's"),
        Ok(_) => Finding::fine(what, "one of its own: a peer outside of it has process number 0 here"),
        Err(_) => Finding::fine(what, "not known"),
    }]
}

/// Private directories. A path in a directory that only this unit sees is not the path of the same name that the peer sees.
fn temporary() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let apart = match (fs::read_link("/proc/1/ns/mnt"), fs::read_link("/proc/self/ns/mnt")) {
        (Ok(first), Ok(own)) => first != own,
        _ => false, // This user may not read it.
    };
    vec![match private_tmp(&mounts, apart) {
        None => Finding::fine("/tmp", "no private one is to be seen"),
        Some(why) => Finding::note(
            "/tmp",
            format!("private to this process and its like: {why}"),
            "a socket there is not reached from outside, whatever its name: use a directory below /run (RuntimeDirectory of a unit)",
        ),
    }]
}

/// Returns why `/tmp` seems to be private. `apart`: this process does not share the mount namespace of process 1.
fn private_tmp(mounts: &str, apart: bool) -> Option<String> {
    let mount = mounts.lines().filter_map(Mount::of).rfind(|mount| mount.point == Path::new("/tmp"))?;
    let root = mount.root.display();
    match mount.kind.as_str() {
        _ if root.to_string().contains("systemd-private-") => Some("PrivateTmp of a systemd unit".to_owned()),
        _ if root.to_string().contains("snap-private-tmp") => Some("a snap's".to_owned()),
        _ if mount.root != Path::new("/") => Some(format!("it is {root} of another file system")),
        "tmpfs" if apart => Some("a tmpfs in a mount namespace of its own".to_owned()),
        _ => None,
    }
}

fn packaging() -> Vec<Finding> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(snap) = named("SNAP_NAME").or_else(|| named("SNAP")) {
        let advice = "paths of a snap are its own: share a directory by a `content` interface, or use $SNAP_COMMON as both see it";
        return vec![Finding::note("packaging", format!("the snap {snap}"), advice)];
    }
    if Path::new("/.flatpak-info").exists() {
        let advice = "paths of a Flatpak are its own: $XDG_RUNTIME_DIR/app/$FLATPAK_ID is seen from inside and outside";
        return vec![Finding::note(
            "packaging",
            named("FLATPAK_ID").unwrap_or_else(|| "a Flatpak".into()),
            advice,
        )];
    }
    let marked = ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
    vec![match named("container") {
        Some(kind) => {
            Finding::fine("packaging", format!("a container ({kind}): peers need a directory that both see"))
        }
        None if marked => Finding::fine("packaging", "a container: peers need a directory that both see"),
        None => Finding::fine("packaging", "neither a snap, a Flatpak nor a container is to be seen"),
    }]
}

/// The best directory for sockets of this user.
fn directory() -> Vec<Finding> {
    vec![match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(path) => Finding::fine(
            "directory",
            format!("{} is this user's own: a good place for sockets", path.display()),
        ),
        None => Finding::fine(
            "directory",
            "no XDG_RUNTIME_DIR: give servers a directory that no other user can write to",
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_tmp_is_known_by_what_is_mounted_there() {
        let mount = |root: &str, kind: &str| {
            format!("27 1 254:0 / / rw - ext4 /dev/vda rw\n90 27 254:0 {root} /tmp rw shared:3 - {kind} x rw")
        };
        let systemd = mount("/tmp/systemd-private-5d7-a.service-x/tmp", "ext4");
        assert_eq!(private_tmp(&systemd, true).as_deref(), Some("PrivateTmp of a systemd unit"));
        assert!(private_tmp(&mount("/data/tmp", "ext4"), false).is_some_and(|it| it.contains("/data/tmp")));
        assert!(private_tmp(&mount("/", "tmpfs"), true).is_some());
        assert_eq!(private_tmp(&mount("/", "tmpfs"), false), None); // Many distributions mount a tmpfs there for all users.
        assert_eq!(private_tmp("27 1 254:0 / / rw - ext4 /dev/vda rw", true), None);
    }

    #[test]
    fn a_map_covers_as_many_users_as_its_ranges() {
        assert_eq!(mapped_users("         0          0 4294967295"), u64::from(u32::MAX));
        assert_eq!(mapped_users("0 1000 1\n1 100000 65536"), 65537);
        assert_eq!(mapped_users(""), 0);
    }
}
