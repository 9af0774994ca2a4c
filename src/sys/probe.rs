//! Whether this kernel, and what filters its calls, has what is done without where it is missing.
//!
//! For tools that tell people. Each asks exactly as the code that uses it does, and changes nothing that lasts.

use std::io;
use std::os::fd::AsFd;

use super::memfd;
use super::pidfd::Pidfd;
use super::region::Region;
use super::socket;

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
    super::fork::kernel_wipes_on_fork()
}

/// Why the peer monitor's thread is not scheduled as the main thread is, if it is not. Starts the monitor.
///
/// # Errors
///
/// Why the monitor cannot be started.
pub fn monitor_scheduling() -> io::Result<Option<String>> {
    Ok(super::lifeline::not_reset()?.map(|reason| reason.to_string()))
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
}
