//! Explains why the kernel refuses a path. The advice names the one rule that actually forbids the access.
//!
//! # Proof
//!
//! `tests/listener/paths.rs`: another user's socket, directories that may not be entered or written, sticky
//! directories.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::sys::path::{Access, permits};

/// Explains why this process may not connect to the socket at the path. Other errors stay as they are.
pub(crate) fn why_not_connected(source: io::Error, path: &Path) -> io::Error {
    explained(source, || {
        if let Some(closed) = closed_directory(path) {
            return closed;
        }
        match fs::metadata(path) {
            Ok(socket) if socket.file_type().is_socket() && !permits(path, Access::Write) => format!(
                "the socket belongs to user {} and has mode {:04o}: run as that user, or let the server set Options::socket_mode \
                 and Options::authorize",
                socket.uid(),
                socket.mode() & 0o7777
            ),
            _ => BY_ANOTHER_RULE.into(),
        }
    })
}

/// Explains why this process may not bind the path, or remove the file there. Other errors stay as they are.
pub(crate) fn why_not_bound(source: io::Error, path: &Path) -> io::Error {
    explained(source, || forbids_binding(path))
}

/// Explains why this process may not make or open the lock file beside the path. Other errors stay as they are.
pub(crate) fn why_not_locked(source: io::Error, lock: &Path, path: &Path) -> io::Error {
    explained(source, || match fs::symlink_metadata(lock) {
        Ok(file) if !permits(lock, Access::Write) => format!(
            "it belongs to user {} and has mode {:04o}: have it removed, or choose another path",
            file.uid(),
            file.mode() & 0o7777
        ),
        _ => forbids_binding(path),
    })
}

fn forbids_binding(path: &Path) -> String {
    if let Some(closed) = closed_directory(path) {
        return closed;
    }
    let parent = directory_of(path);
    if !permits(parent, Access::Write) {
        return format!("the directory {} may not be written by this user", parent.display());
    }
    match fs::symlink_metadata(path) {
        Ok(existing) => format!(
            "it belongs to user {}, and in this directory only that user or root may remove it: have it removed, or choose another \
             path",
            existing.uid()
        ),
        Err(_) => BY_ANOTHER_RULE.into(),
    }
}

const BY_ANOTHER_RULE: &str =
    "owner and mode permit it: a security module such as SELinux, or a seccomp filter, does not";

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Returns a text about the first directory on the way to the path that this process may not enter, if there is one.
fn closed_directory(path: &Path) -> Option<String> {
    let mut ancestors: Vec<_> =
        directory_of(path).ancestors().filter(|it| !it.as_os_str().is_empty()).collect();
    ancestors.reverse();
    let closed = ancestors.into_iter().find(|directory| !permits(directory, Access::Enter))?;
    Some(format!("the directory {} may not be entered by this user", closed.display()))
}

fn explained(source: io::Error, why: impl FnOnce() -> String) -> io::Error {
    if source.kind() != io::ErrorKind::PermissionDenied {
        return source;
    }
    let why = why();
    io::Error::new(source.kind(), Explained { source, why })
}

#[derive(Debug)]
struct Explained {
    source: io::Error,
    why: String,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.source, self.why)
    }
}

impl Error for Explained {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}
