//! Checks which optional features this kernel has, and which a filter permits. The library works without them.
//!
//! The command-line tool reports them. Each function makes the same system calls as the code that uses the feature, and
//! changes no lasting state.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::memfd;
use super::pidfd::Pidfd;
use super::region::Region;
use super::socket;
use super::syscall_error;

/// Checks that memory can be made whose size and mappings are sealed, and mapped so that a fork does not inherit it.
/// Every connection needs this.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn memory(len: usize) -> io::Result<()> {
    let memfd = memfd::create(len)?;
    memfd::seal_size(memfd.as_fd())?;
    memfd::verify(memfd.as_fd(), len).map_err(io::Error::other)?;
    let region = Region::map(memfd.as_fd(), len)?;
    memfd::seal_mappings(memfd.as_fd())?;
    drop(region);
    Ok(())
}

/// Checks that memory can be allocated at once (Linux 5.14), for `Options::prefault`.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn prefault() -> io::Result<()> {
    let len = 1 << 16;
    Region::map(memfd::create(len)?.as_fd(), len)?.prefault()
}

/// Checks that a pidfd can be opened for a process whose pid is known (Linux 5.3).
///
/// # Errors
///
/// The reason why it cannot be opened.
pub fn pidfd() -> io::Result<()> {
    Pidfd::open(std::process::id()).map(drop)
}

/// Checks that a server gets the pidfd of a client by its socket (Linux 6.5).
///
/// # Errors
///
/// The reason why the kernel does not return it.
pub fn pidfd_of_a_client() -> io::Result<()> {
    let (ours, _theirs) = socket::pair()?;
    socket::peer_pidfd(ours.as_fd()).map(drop).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Checks that a client gets the pidfd of a server with the bytes that it sends (Linux 6.5).
///
/// # Errors
///
/// The reason why the kernel does not return it.
pub fn pidfd_of_a_server() -> io::Result<()> {
    socket::set_option(socket::pair()?.0.as_fd(), socket::SO_PASSPIDFD, 1)
}

/// Checks that the kernel can refuse descriptors that a client sends (Linux 6.16).
///
/// # Errors
///
/// The reason why the kernel does not.
pub fn refuse_descriptors() -> io::Result<()> {
    socket::set_option(socket::pair()?.0.as_fd(), socket::SO_PASSRIGHTS, 0)
}

/// Returns whether the kernel really wipes a page on fork, as the fork guard requests (an emulator may accept the
/// advice and do nothing; a handler of the C library wipes the page then).
///
/// # Errors
///
/// The system call that failed.
pub fn wipe_on_fork() -> io::Result<bool> {
    super::fork_guard::kernel_wipes_on_fork()
}

/// Returns why the peer monitor's thread is not scheduled like the main thread, if it is not. Starts the monitor.
///
/// # Errors
///
/// The reason why the monitor cannot be started.
pub fn monitor_scheduling() -> io::Result<Option<String>> {
    Ok(super::peer_monitor::not_reset()?.map(|reason| reason.to_string()))
}

/// Makes the checks of [`memory`] step by step. It calls `before` with the system calls of each step before it makes
/// them, so that a program that a filter kills has printed the call.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn memory_in_steps(len: usize, mut before: impl FnMut(&'static str)) -> io::Result<()> {
    before("memfd_create or ftruncate");
    let memfd = memfd::create(len)?;
    before("mmap or madvise");
    drop(Region::map(memfd.as_fd(), len)?);
    before("fcntl (F_ADD_SEALS, F_GET_SEALS), fstat or fstatfs");
    memory(len)
}

/// Checks that memory can be sealed against holes while it is mapped (`F_SEAL_FUTURE_WRITE`, Linux 5.1): the mapping is
/// still writable, and its pages can no longer be removed.
///
/// # Errors
///
/// The reason why the kernel does not.
pub fn seal_against_holes() -> io::Result<()> {
    let len = 1 << 16;
    let memfd = memfd::create(len)?;
    let mapped = Region::map(memfd.as_fd(), len)?;
    // SAFETY: adds a seal to a file of ours.
    let sealed = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
    syscall_error::check("fcntl(F_SEAL_FUTURE_WRITE)", sealed)?;
    // SAFETY: the first byte of a mapping of ours, which still exists.
    unsafe { mapped.base().as_ptr().write_volatile(1) };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers; the file is ours, and only this function writes to the mapping.
    let punched = unsafe { libc::fallocate(memfd.as_raw_fd(), mode, 0, 4096) };
    match (punched, io::Error::last_os_error().raw_os_error()) {
        (-1, Some(libc::EPERM)) => Ok(()),
        (-1, _) => Err(syscall_error::last("fallocate(FALLOC_FL_PUNCH_HOLE)")),
        _ => Err(io::Error::other("the kernel took the seal, and punched a hole all the same")),
    }
}

/// Returns the user of this process as the kernel reports it to peers (SO_PEERCRED), and as the C library returns it,
/// which fakeroot and similar tools replace.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn own_user() -> io::Result<(u32, u32)> {
    // SAFETY: takes nothing and cannot fail.
    let by_libc = unsafe { libc::geteuid() };
    Ok((socket::peer_cred(socket::pair()?.0.as_fd())?.uid(), by_libc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_the_tests_has_the_required_features() {
        memory(1 << 20).expect("sealed memory");
        prefault().expect("Linux 5.14");
        pidfd().expect("Linux 5.3");
        // Newer features: both results are fine.
        let _newer = (pidfd_of_a_client(), pidfd_of_a_server(), refuse_descriptors());
        assert!(memory(usize::MAX).is_err());
    }

    #[test]
    fn steps_are_named_before_they_are_made() {
        let mut steps = Vec::new();
        memory_in_steps(1 << 20, |calls| steps.push(calls)).expect("sealed memory");
        assert!(
            steps[0].contains("memfd_create") && steps.last().expect("some").contains("F_ADD_SEALS"),
            "{steps:?}"
        );
        steps.clear();
        assert!(memory_in_steps(usize::MAX, |calls| steps.push(calls)).is_err());
        assert_eq!(steps.len(), 1);
    }

    #[test]
    fn the_kernel_knows_the_own_user_and_seals_against_holes() {
        let (by_kernel, by_libc) = own_user().expect("a socket");
        assert!(by_kernel == by_libc || std::env::var_os("LD_PRELOAD").is_some(), "{by_kernel} {by_libc}");
        seal_against_holes().expect("Linux 5.1");
    }
}
