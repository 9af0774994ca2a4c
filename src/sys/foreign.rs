//! Descriptors whose close may block, since a peer made them, or sent descriptors into their queue.
//!
//! # Invariants
//!
//! 1. Dropping a [`Foreign`], a [`PeerSocket`] or a [`Listening`] never blocks.
//! 2. The dropping thread closes a socket only if its queue is empty and stays empty: it shuts the socket down first,
//!    and the kernel accepts no bytes for a socket that is shut down. Each message takes at least one byte, so a queue
//!    without bytes holds no descriptor.
//! 3. Out-of-band bytes of the peer are received inline. Otherwise the kernel would free them, with their descriptors,
//!    in the system call that reads past them.
//! 4. A forked child does not shut the socket down, since the parent uses it. The child only closes its copy.
//!
//! # What it does not cover
//!
//! In a forked child whose parent has ended, a peer can make the child's drop block by sending a descriptor between the
//! check of the queue and the close.
//!
//! # Proof
//!
//! Tests below, and `tests/listener/foreign_descriptors.rs`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::descriptor::Descriptor;
use super::fork_guard::ForkGuard;
use super::{offload, socket};

/// A descriptor that came from a peer and was not verified.
#[derive(Debug)]
pub(crate) struct Foreign {
    // Only `None` once it was taken.
    fd: Option<OwnedFd>,
}

impl Foreign {
    /// Returns the descriptor, after its owner has verified that its close does not block.
    pub(crate) fn verified(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }

    /// Returns the descriptor, to verify it.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

impl From<OwnedFd> for Foreign {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd) }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            offload::close(fd);
        }
    }
}

/// A socket with a peer at its other end. Dropping it hangs up, which the peer sees at once.
#[derive(Debug)]
pub(crate) struct PeerSocket {
    // Only `None` while it is dropped.
    fd: Option<Descriptor>,
    /// `None` if there is no memory for the fork guard's page. Forks are not detected then.
    fork_guard: Option<ForkGuard>,
}

impl PeerSocket {
    /// Returns whether the number still names the socket: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.as_ref().is_some_and(Descriptor::is_ours)
    }
}

impl From<OwnedFd> for PeerSocket {
    fn from(fd: OwnedFd) -> Self {
        // This fails only if the kernel has no out-of-band data on such sockets, or if a filter refuses the call.
        let _best_effort = socket::receive_out_of_band_inline(fd.as_fd());
        Self { fd: Some(fd.into()), fork_guard: ForkGuard::new().ok() }
    }
}

impl AsFd for PeerSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("present until it is dropped").as_fd()
    }
}

impl Drop for PeerSocket {
    fn drop(&mut self) {
        // The program may have closed the descriptor, and the number may name a file of the program by now.
        let Some(fd) = self.fd.take().and_then(Descriptor::into_owned) else {
            return;
        };
        let ours = self.fork_guard.is_none_or(|fork_guard| fork_guard.same_process());
        let shut = !ours || socket::shut_down(fd.as_fd()).is_ok();
        let empty = socket::queued(fd.as_fd()).is_ok_and(|bytes| bytes == 0);
        if !(shut && empty) {
            offload::close(fd);
        }
    }
}

/// A listening socket. Clients in its backlog that were never accepted may have sent descriptors.
#[derive(Debug)]
pub(crate) struct Listening {
    // Only `None` while it is dropped.
    fd: Option<Descriptor>,
    /// The kernel refuses descriptors from all clients, so closing the socket does not block.
    refuses: bool,
}

impl Listening {
    /// Takes over a bound socket before it listens. From then on its clients cannot pass descriptors, if the kernel
    /// supports that.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let refuses = socket::refuse_descriptors(fd.as_fd()).is_ok();
        Self { fd: Some(fd.into()), refuses }
    }

    /// Takes over a socket that listened before. Clients may have passed descriptors, which wait in its backlog.
    pub(crate) fn adopted(fd: OwnedFd) -> Self {
        let _best_effort = socket::refuse_descriptors(fd.as_fd());
        Self { fd: Some(fd.into()), refuses: false }
    }

    /// Returns whether the number still names the socket: a program may have closed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.fd.as_ref().is_some_and(Descriptor::is_ours)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until it is dropped").as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        match self.fd.take() {
            Some(fd) if !self.refuses => fd.into_owned().into_iter().for_each(offload::close),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::pair;
    use crate::sys::socket_io::{Transfer, read, write};
    use crate::sys::testing::{eventually, fork, in_child, open_descriptors, refuse};

    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").expect("listable").count()
    }

    #[test]
    fn an_empty_socket_is_closed_here_and_a_full_one_elsewhere() {
        in_child(|| {
            let before = open_descriptors();
            let (ours, theirs) = pair().expect("pair");
            drop(PeerSocket::from(ours));
            assert_eq!((open_descriptors(), threads()), (before + 1, 1));
            assert_eq!(read(theirs.as_fd(), &mut [0; 8]).expect("reads"), Transfer::Closed);
            let (ours, theirs) = pair().expect("pair");
            write(theirs.as_fd(), b"bytes").expect("room");
            drop(PeerSocket::from(ours));
            // The peer sees the hang-up at once, even if the close comes later.
            assert_eq!(write(theirs.as_fd(), b"more").expect("writes"), Transfer::Closed);
            drop(theirs);
            assert!(eventually(|| open_descriptors() == before + 1));
        });
    }

    #[test]
    fn where_a_filter_forbids_the_check_another_thread_closes() {
        for call in [libc::SYS_ioctl, libc::SYS_shutdown] {
            in_child(|| {
                let before = open_descriptors();
                let (ours, theirs) = pair().expect("pair");
                let socket = PeerSocket::from(ours);
                refuse(call, libc::EPERM);
                drop(socket);
                drop(theirs);
                assert!(eventually(|| open_descriptors() == before));
            });
        }
    }

    #[test]
    fn a_fork_that_drops_its_copy_ends_nothing() {
        in_child(|| {
            let (ours, theirs) = pair().expect("pair");
            let mut socket = Some(PeerSocket::from(ours));
            let child = fork(|| {
                drop(socket.take());
                0
            });
            assert_eq!(child.wait(), 0);
            assert_eq!(write(theirs.as_fd(), b"x").expect("alive"), Transfer::Bytes(1));
            assert_eq!(read(theirs.as_fd(), &mut [0; 8]).expect("alive"), Transfer::WouldBlock);
        });
    }
}
