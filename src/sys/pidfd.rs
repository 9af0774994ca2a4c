//! A process, held by a pidfd: the descriptor names this process only, also after its pid was given to another one.
//!
//! # Invariants
//!
//! 1. [`Pidfd::exited`] polls the descriptor. No pid is stored or compared.
//! 2. All connections to a process share one descriptor if the kernel gives pidfds inode numbers of their own (pidfs,
//!    Linux 6.9). Otherwise each connection has its own descriptor, and nothing else differs.
//!
//! # Proof
//!
//! Tests below, with children that are killed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::descriptor::Descriptor;
use super::fork_guard::{PerProcess, StaticSlot, per_process};
use super::syscall_error;
use super::wait::is_readable;

/// A pidfd.
#[derive(Debug)]
pub(crate) struct Pidfd {
    fd: Descriptor,
}

impl Pidfd {
    /// Opens the process that has this pid now. Only for a child that was not reaped, or for a parent, can the caller
    /// be sure that it is the right process.
    ///
    /// # Errors
    ///
    /// There is no such process, or the kernel is older than 5.3.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two numbers and makes a new descriptor, which is ours alone.
        let fd = unsafe {
            let made = libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0);
            syscall_error::owned("pidfd_open", i32::try_from(made).unwrap_or(-1))
        };
        Ok(Self { fd: fd?.into() })
    }

    /// Takes over a descriptor that the kernel made as a pidfd.
    pub(crate) fn from_owned(fd: OwnedFd) -> Self {
        Self { fd: fd.into() }
    }

    /// Returns whether the process has ended (its parent may not have reaped it yet).
    pub(crate) fn exited(&self) -> bool {
        self.is_ours() && is_readable(self.fd.as_fd()).unwrap_or(false)
    }

    /// Returns whether the number still names the process: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.is_ours()
    }

    /// Returns the `Pidfd` that all connections to this process share.
    pub(crate) fn shared(self) -> Arc<Self> {
        let Some(id) = self.unique_id() else {
            return Arc::new(self);
        };
        match per_process(|| Ok(Registry::default())) {
            Ok(registry) => registry.share(id, self),
            // Sharing only saves descriptors.
            Err(_) => Arc::new(self),
        }
    }

    /// Returns a number that no other process since the start of the system has; `None` before Linux 6.9.
    fn unique_id(&self) -> Option<u64> {
        let mut file_system = MaybeUninit::<libc::statfs>::uninit();
        let mut file = MaybeUninit::<libc::stat>::uninit();
        let fd = self.fd.as_raw_fd();
        // SAFETY: both calls fill local structs, and each is read only after its call succeeded.
        unsafe {
            if libc::fstatfs(fd, file_system.as_mut_ptr()) != 0
                || file_system.assume_init().f_type as u64 != PIDFS_MAGIC
                || libc::fstat(fd, file.as_mut_ptr()) != 0
            {
                return None;
            }
            Some(file.assume_init().st_ino)
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Compared as 64 bits, since the C libraries differ in the type.
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// The pidfds in use. Each process has its own: a fork begins with an empty registry, so that neither a lock that was
/// held during the fork nor the parent's entries matter there.
#[derive(Default)]
struct Registry {
    known: Mutex<Vec<(u64, Weak<Pidfd>)>>,
}

// SAFETY: the only type with this slot.
unsafe impl PerProcess for Registry {
    const SLOT: StaticSlot = StaticSlot::Pidfds;
}

impl Registry {
    fn share(&self, id: u64, fresh: Pidfd) -> Arc<Pidfd> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, pidfd)| pidfd.strong_count() > 0);
        let same = known.iter().filter(|(other, _)| *other == id);
        if let Some(shared) = same.filter_map(|(_, pidfd)| pidfd.upgrade()).find(|pidfd| pidfd.is_ours()) {
            return shared;
        }
        let shared = Arc::new(fresh);
        known.push((id, Arc::downgrade(&shared)));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{eventually, fork, in_child, open_descriptors};
    use std::time::Duration;

    #[test]
    fn a_killed_child_has_exited_before_and_after_it_is_reaped() {
        let child = fork(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let pidfd = Pidfd::open(child.pid()).expect("opens");
        assert!(!pidfd.exited());
        child.kill();
        assert!(eventually(|| pidfd.exited()));
        assert_eq!(child.wait(), -libc::SIGKILL);
        assert!(pidfd.exited());
    }

    #[test]
    fn no_process_is_an_error() {
        assert!(Pidfd::open(0).is_err());
        assert!(Pidfd::open(u32::MAX).is_err());
    }

    #[test]
    fn a_process_has_one_pidfd_for_all() {
        in_child(|| {
            let before = open_descriptors();
            let all: Vec<_> =
                (0..50).map(|_| Pidfd::open(std::process::id()).expect("opens").shared()).collect();
            if all[0].unique_id().is_some() {
                assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
                assert_eq!(open_descriptors(), before + 1);
            }
            // SAFETY: only asks.
            let parent = Pidfd::open(unsafe { libc::getppid() }.unsigned_abs()).expect("opens");
            assert!(!Arc::ptr_eq(&parent.shared(), &all[0]));
            drop(all);
            assert_eq!(open_descriptors(), before);
            Pidfd::open(std::process::id()).expect("opens").shared();
            let registry = per_process(|| Ok(Registry::default())).expect("known");
            assert!(registry.known.lock().expect("unlocked").len() <= 2);
        });
    }

    #[test]
    fn a_pidfd_that_the_program_has_closed_is_not_shared_and_reports_nothing() {
        in_child(|| {
            let closed = Pidfd::open(std::process::id()).expect("opens").shared();
            let number = closed.as_fd().as_raw_fd();
            // SAFETY: the test acts as a program that closes the library's descriptor; a pidfd that is not ours is not
            // closed again.
            assert_eq!(unsafe { libc::close(number) }, 0);
            let readable = std::fs::File::open("/dev/null").expect("opens");
            assert_eq!(readable.as_raw_fd(), number);
            assert!(!closed.is_ours() && !closed.exited());
            let fresh = Pidfd::open(std::process::id()).expect("opens").shared();
            assert!(!Arc::ptr_eq(&closed, &fresh) && fresh.is_ours());
            drop(closed);
            readable.metadata().expect("still open");
        });
    }

    #[test]
    fn a_fork_does_not_need_the_parents_lock() {
        let registry = per_process(|| Ok(Registry::default())).expect("made");
        let held = registry.known.lock().unwrap_or_else(PoisonError::into_inner);
        in_child(|| {
            let own = Pidfd::open(std::process::id()).expect("opens").shared();
            assert!(!own.exited());
        });
        drop(held);
    }
}
