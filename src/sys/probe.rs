//! Whether this kernel, and what filters its calls, has what is done without where it is missing.
//!
//! For tools that report it. Each asks exactly as the code that uses it does, and changes nothing that lasts.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::memfd;
use super::pidfd::Pidfd;
use super::region::Region;
use super::socket;
use super::syscall_error;

/// Memory whose size and mappings are sealed, mapped so that a fork does not have it; what every connection needs.
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

/// Memory that is taken at once (Linux 5.14), for `Options::prefault`.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn prefault() -> io::Result<()> {
    let len = 1 << 16;
    Region::map(memfd::create(len)?.as_fd(), len)?.prefault()
}

/// The watch over a process whose number is known (Linux 5.3).
///
/// # Errors
///
/// Why it cannot be opened.
pub fn pidfd() -> io::Result<()> {
    Pidfd::open(std::process::id()).map(drop)
}

/// The watch over a client, by its socket (Linux 6.5).
///
/// # Errors
///
/// Why the kernel does not give it.
pub fn pidfd_of_a_client() -> io::Result<()> {
    let (ours, _theirs) = socket::pair()?;
    socket::peer_pidfd(ours.as_fd()).map(drop).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The watch over a server, beside what it sends (Linux 6.5).
///
/// # Errors
///
/// Why the kernel does not give it.
pub fn pidfd_of_a_server() -> io::Result<()> {
    socket::set_option(socket::pair()?.0.as_fd(), socket::SO_PASSPIDFD, 1)
}

/// Refusing descriptors that a client sends (Linux 6.16).
///
/// # Errors
///
/// Why the kernel does not do it.
pub fn refuse_descriptors() -> io::Result<()> {
    socket::set_option(socket::pair()?.0.as_fd(), socket::SO_PASSRIGHTS, 0)
}

/// Whether the kernel really wipes a page on fork, as the fork guard asks it to (an emulator may accept the advice and do
/// nothing; a handler of the C library stands in for it then).
///
/// # Errors
///
/// Why it cannot be found out.
pub fn wipe_on_fork() -> io::Result<bool> {
    super::fork_guard::kernel_wipes_on_fork()
}

/// Why the peer monitor's thread is not scheduled as the main thread is, if it is not. Starts the monitor.
///
/// # Errors
///
/// Why the monitor cannot be started.
pub fn monitor_scheduling() -> io::Result<Option<String>> {
    Ok(super::peer_monitor::not_reset()?.map(|reason| reason.to_string()))
}

/// As [`memory`], step by step: `before` gets the system calls of each step before they are made, so that a program that a
/// filter kills has named the call.
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

/// Whether memory that is mapped can be sealed against holes (`F_SEAL_FUTURE_WRITE`, Linux 5.1): the peer's mapping still
/// writes, and nothing takes pages away from it.
///
/// # Errors
///
/// Why the kernel does not do it.
pub fn seal_against_holes() -> io::Result<()> {
    let len = 1 << 16;
    let memfd = memfd::create(len)?;
    let mapped = Region::map(memfd.as_fd(), len)?;
    // SAFETY: adds a seal to a file of ours.
    let sealed = unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
    syscall_error::check("fcntl(F_SEAL_FUTURE_WRITE)", sealed)?;
    // SAFETY: the first byte of a mapping of ours that lives.
    unsafe { mapped.base().as_ptr().write_volatile(1) };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers; the file is ours and the mapping is only ever written by us.
    let punched = unsafe { libc::fallocate(memfd.as_raw_fd(), mode, 0, 4096) };
    match (punched, io::Error::last_os_error().raw_os_error()) {
        (-1, Some(libc::EPERM)) => Ok(()),
        (-1, _) => Err(syscall_error::last("fallocate(FALLOC_FL_PUNCH_HOLE)")),
        _ => Err(io::Error::other("the kernel took the seal, and punched a hole all the same")),
    }
}

/// The user that the kernel takes this process for, which a peer sees (SO_PEERCRED), and the one that the C library says,
/// which fakeroot and its like replace.
///
/// # Errors
///
/// The call that failed, by its name.
pub fn own_user() -> io::Result<(u32, u32)> {
    // SAFETY: takes nothing and cannot fail.
    let says = unsafe { libc::geteuid() };
    Ok((socket::peer_cred(socket::pair()?.0.as_fd())?.uid(), says))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_the_tests_has_what_it_says() {
        memory(1 << 20).expect("sealed memory");
        prefault().expect("Linux 5.14");
        pidfd().expect("Linux 5.3");
        // Newer: either answer is one, and nothing panics.
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
        let (is, says) = own_user().expect("a socket");
        assert!(is == says || std::env::var_os("LD_PRELOAD").is_some(), "{is} {says}");
        seal_against_holes().expect("Linux 5.1");
    }
}
