//! A descriptor that stays open as long as a connection, and is closed only while its number still names our file.
//!
//! A program may close descriptors that are not its own (`closefrom`, `close_range`, as daemonizing code does). The
//! kernel then gives their numbers to files that are opened later. Closing those numbers again would close files of the
//! program.
//!
//! # Invariants
//!
//! 1. The file's device and inode are recorded when the descriptor is taken over. Drop compares them, and closes the
//!    descriptor only if they are the same.
//! 2. The kernel gives all epoll sets, eventfds and timers the same inode. So for these the library also checks a
//!    socket of this process, the witness: a program that closes all descriptors closes the witness too.
//!
//! # What it does not cover
//!
//! A program that closes only such a descriptor, if the next file with its number is of the same kind. Pidfds before
//! Linux 6.9, which also share one inode.
//!
//! # Proof
//!
//! The tests below; `tests/stream/peer_monitor.rs` closes every descriptor under a live connection.

use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::fork_guard::{self, PerProcess, StaticSlot, per_process};
use super::syscall_error;

/// A descriptor, and the file that it names.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: ManuallyDrop<OwnedFd>,
    file: Option<FileId>,
    /// For a file without an inode of its own.
    witness: Option<Named>,
}

/// A number and the file that it named.
#[derive(Clone, Copy, Debug)]
struct Named {
    number: RawFd,
    file: FileId,
}

impl Named {
    fn is_unchanged(self) -> bool {
        FileId::of(self.number) == Some(self.file)
    }
}

/// A socket that is open as long as the process, unless the program closes descriptors that are not its own.
#[derive(Debug)]
struct Witness {
    named: Named,
    _socket: OwnedFd,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Witness {
    const SLOT: StaticSlot = StaticSlot::Witness;
}

impl Witness {
    /// Returns this process's witness; `None` if there is no descriptor for it.
    fn current() -> Option<Named> {
        for _ in 0..2 {
            let witness = per_process(Self::new).ok()?;
            if witness.named.is_unchanged() {
                return Some(witness.named);
            }
            fork_guard::forget(witness); // The program closed it, with the descriptors that relied on it.
        }
        None
    }

    fn new() -> io::Result<Self> {
        let socket = idle_socket()?;
        let number = socket.as_raw_fd();
        let file = file_id(number)?;
        Ok(Self { named: Named { number, file }, _socket: socket })
    }
}

/// The identity of an open file: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Returns which file a number names now, if it names any.
    pub(crate) fn of(number: RawFd) -> Option<Self> {
        file_id(number).ok()
    }
}

impl Descriptor {
    /// Takes over a descriptor.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let file = FileId::of(fd.as_raw_fd());
        Self { fd: ManuallyDrop::new(fd), file, witness: None }
    }

    /// Takes over an epoll set, an eventfd or a timer, which all have one inode.
    pub(crate) fn with_witness(fd: OwnedFd) -> Self {
        let mut this = Self::new(fd);
        this.witness = Witness::current();
        this
    }

    /// Returns the descriptor if its number still names the file that was taken over.
    pub(crate) fn into_owned(self) -> Option<OwnedFd> {
        if !self.is_ours() {
            return None;
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped or used again, so the descriptor has one owner.
        Some(unsafe { ManuallyDrop::take(&mut this.fd) })
    }

    /// Returns whether the number still names the file that was taken over.
    pub(crate) fn is_ours(&self) -> bool {
        // If `fstat` failed at the start, the file is unknown, and the descriptor is always closed.
        let is_same = self.file.is_none_or(|file| FileId::of(self.fd.as_raw_fd()) == Some(file));
        is_same && self.witness.is_none_or(Named::is_unchanged)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: this is the only place that drops it, and `self` is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self::new(fd)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[allow(clippy::unnecessary_cast, reason = "the types of both fields differ between C libraries")]
fn file_id(fd: RawFd) -> io::Result<FileId> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fills the local struct; fails if `fd` is not open.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fstat` succeeded, so it filled the struct.
    let stat = unsafe { stat.assume_init() };
    Ok(FileId { device: stat.st_dev as u64, inode: stat.st_ino as u64 })
}

/// Makes a socket without a name or a peer, which never becomes readable. Unlike an epoll set or an eventfd it has an
/// inode of its own, so its owner can check whether a number still names it.
pub(super) fn idle_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers and makes a new descriptor, which is ours alone.
    unsafe {
        syscall_error::owned(
            "socket",
            libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::pair;
    use crate::sys::testing::in_child;
    use std::fs::File;
    use std::os::fd::FromRawFd;

    #[test]
    fn what_is_still_ours_is_closed() {
        in_child(|| {
            let (ours, _theirs) = pair().expect("pair");
            let number = ours.as_raw_fd();
            let descriptor = Descriptor::new(ours);
            assert!(descriptor.is_ours());
            drop(descriptor);
            assert!(file_id(number).is_err());
        });
    }

    #[test]
    fn a_file_of_the_same_kind_is_left_alone_once_all_descriptors_were_closed() {
        in_child(|| {
            // SAFETY: the calls make new descriptors, each of which has one owner.
            let make = || unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
            let descriptor = Descriptor::with_witness(make());
            assert!(descriptor.is_ours());
            // SAFETY: as above; `descriptor` does not close its number again.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            let all: Vec<OwnedFd> = (0..16).map(|_| make()).collect();
            assert!(!descriptor.is_ours());
            let fresh = Descriptor::with_witness(make());
            assert!(fresh.is_ours(), "it has a witness of its own");
            drop((descriptor, fresh));
            assert!(all.iter().all(|fd| FileId::of(fd.as_raw_fd()).is_some()));
        });
    }

    #[test]
    fn a_number_that_was_given_to_another_file_is_left_alone() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            for (fd, reused) in [(ours, true), (theirs, false)] {
                let number = fd.as_raw_fd();
                let descriptor = Descriptor::new(fd);
                // SAFETY: the test acts as a program that closes the library's descriptor; `descriptor` does not close
                // it again.
                assert_eq!(unsafe { libc::close(number) }, 0);
                let file = reused.then(|| File::open("/dev/null").expect("opens"));
                assert!(file.as_ref().is_none_or(|file| file.as_raw_fd() == number));
                assert!(!descriptor.is_ours());
                drop(descriptor);
                if let Some(file) = file {
                    file.metadata().expect("still open");
                }
            }
        });
    }
}
