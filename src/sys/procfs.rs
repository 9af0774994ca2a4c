//! Reads small files of `/proc`, with as few kinds of system calls as possible: `openat`, `read`, `close`.
//!
//! The standard library also reads the size of a file (`statx`), and a seccomp filter may kill the thread for that.
//!
//! # Proof
//!
//! The test below; `tests/stream/peer_monitor.rs` starts the monitor under a filter that kills for `statx`.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::syscall_error;

/// The longest file that is read. A longer file counts as unreadable.
const LONGEST: usize = 16 << 10;

/// Opens a file of `/proc` for reading; `None` if that is not possible.
pub(super) fn open(path: &CStr) -> Option<OwnedFd> {
    // SAFETY: a C string and flags; the call makes a new descriptor, which is ours alone.
    unsafe { syscall_error::owned("open", libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)) }.ok()
}

/// Returns the text of a file of `/proc`; `None` if it cannot be read.
pub(super) fn read(path: &CStr) -> Option<String> {
    let file = open(path)?;
    let mut text = vec![0; LONGEST];
    let mut filled = 0;
    while filled < text.len() {
        let room = &mut text[filled..];
        // SAFETY: the kernel fills at most `room.len()` bytes.
        let got = unsafe { libc::read(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
        match usize::try_from(syscall_error::check("read", i32::try_from(got).ok()?).ok()?).ok()? {
            0 => {
                text.truncate(filled);
                return String::from_utf8(text).ok();
            }
            got => filled += got,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let status = read(c"/proc/self/status").expect("readable");
        assert!(status.starts_with("Name:") && status.ends_with('\n'));
        assert_eq!(read(c"/proc/self/no such file"), None);
        let long = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        assert!(long.len() < LONGEST || read(c"/proc/self/smaps").is_none());
    }
}
