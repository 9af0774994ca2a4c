//! Sends and receives bytes and descriptors over a connected socket, without blocking.
//!
//! # Invariants
//!
//! 1. No call blocks and none raises SIGPIPE.
//! 2. Every descriptor that arrives is owned before anything is validated, the kernel makes it close-on-exec, and it is
//!    dropped as a [`Foreign`], which never blocks.
//! 3. The kernel closes no descriptor of a peer on the thread that receives. [`receive_with_fds`] peeks before it
//!    receives. Bytes with more than one descriptor, or with one that did not arrive, stay in the queue of the socket,
//!    and are freed with the socket: see [`super::foreign`].
//! 4. The end of the peer is [`Transfer::Closed`], for every error number by which the kernel reports it. It is not an
//!    error.
//!
//! # Proof
//!
//! Tests below count descriptors in a forked child.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::cmsg::ControlBuffer;
use super::foreign::Foreign;
use super::pidfd::Pidfd;
use super::socket::PeerCred;
use super::syscall_error::{self, INTERRUPTS};

/// The result of a read or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// This number of bytes was transferred.
    Bytes(usize),
    /// No byte can be transferred now: wait until the socket is ready.
    WouldBlock,
    /// The peer has closed its end.
    Closed,
}

/// The result of one receive.
#[derive(Debug)]
pub(crate) struct ReceivedBytes {
    /// The number of bytes.
    pub(crate) transfer: Transfer,
    /// The descriptors that came with the bytes.
    pub(crate) beside: Beside,
    /// The process that sent the bytes, if the socket requests it and the kernel supports it. It may have ended since.
    pub(crate) pidfd: Option<Pidfd>,
    /// The credentials of that process, if the socket requests them.
    pub(crate) cred: Option<PeerCred>,
}

/// The descriptors that came with bytes.
#[derive(Debug)]
pub(crate) enum Beside {
    /// No descriptor.
    Nothing,
    /// One descriptor, as with the memory.
    One(Foreign),
    /// Several descriptors. The bytes stay in the queue.
    Several,
    /// At least one descriptor did not arrive: the table of descriptors is full, or a security module or a filter has
    /// removed it. The bytes stay in the queue.
    Missing,
}

/// Reads the available bytes. The kernel closes descriptors that came with them, which may block. So this is only for
/// bytes that are known to carry no descriptor, or one of which this process holds another reference.
pub(crate) fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Transfer> {
    let room = into.len();
    outcome("recv", room, || {
        // SAFETY: the kernel fills at most `into`.
        unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), room, libc::MSG_DONTWAIT) }
    })
}

/// Writes as much as there is room for.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Transfer> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    outcome("send", bytes.len(), || {
        // SAFETY: the kernel reads at most `bytes`.
        unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }
    })
}

/// Writes as much as there is room for, and passes the descriptor with the first byte.
///
/// # Errors
///
/// `bytes` is empty (nothing would be sent), or the system call failed.
pub(crate) fn send_with_fd(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<Transfer> {
    send_with_fds(fd, bytes, &[descriptor])
}

/// Reads the available bytes, and the descriptors that came with them. The room for descriptors is small, so that a
/// peer cannot fill the table of descriptors.
///
/// If the bytes fill `into`, a descriptor with the next byte is returned too: the kernel reads that far. So this is for
/// messages after which no descriptor may come.
pub(crate) fn receive_with_fds(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<ReceivedBytes> {
    let mut received = peek(fd, into)?;
    if let (Transfer::Bytes(count), Beside::Nothing | Beside::One(_)) = (received.transfer, &received.beside)
    {
        // This reads the same bytes: further bytes only come after them, and this end has one reader. The kernel drops
        // its own reference to the descriptor, which is not the last while `received` holds one.
        received.transfer = read(fd, into.get_mut(..count).unwrap_or_default())?;
    }
    Ok(received)
}

/// Does the same as [`receive_with_fds`], but leaves the bytes in the queue.
fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<ReceivedBytes> {
    let mut control = ControlBuffer::new();
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut message = empty_message(&mut part);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT | libc::MSG_PEEK;
    let transfer = outcome("recvmsg", into.len(), || {
        set_control(&mut message, control.for_one());
        // SAFETY: the message names `into` and `control`, which both outlive the call.
        let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) };
        if got < 0 {
            set_control(&mut message, &mut []);
        }
        got
    })?;
    // SAFETY: `recvmsg` has just filled the buffer up to this length, which is 0 if it failed, and this is the only
    // call of `take`.
    let taken = unsafe { control.take(control_len(&message)) };
    let mut fds = taken.fds.into_iter().map(Foreign::from);
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    let beside = match (fds.next(), fds.next()) {
        (Some(_), Some(_)) => Beside::Several,
        _ if truncated => Beside::Missing,
        (Some(fd), None) => Beside::One(fd),
        (None, _) => Beside::Nothing,
    };
    Ok(ReceivedBytes { transfer, beside, pidfd: taken.pidfd.map(Pidfd::from_owned), cred: taken.cred })
}

/// Writes as much as there is room for, and passes all these descriptors with the first byte.
///
/// # Errors
///
/// The errors of [`send_with_fd`], or there are too many descriptors.
pub(crate) fn send_with_fds(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Transfer> {
    if bytes.is_empty() {
        let text = "descriptors travel with bytes, and there are none";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut control = ControlBuffer::new();
    let used = control.put_rights(descriptors)?;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = empty_message(&mut part);
    set_control(&mut message, control.as_mut_bytes().get_mut(..used).unwrap_or_default());
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    outcome("sendmsg", bytes.len(), || {
        // SAFETY: the message names `bytes`, which the kernel only reads, and `control`; both
        // outlive the call.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) }
    })
}

fn empty_message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: zeros are a valid message: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

#[allow(clippy::useless_conversion, reason = "the C libraries differ in the type of the length")]
fn set_control(message: &mut libc::msghdr, control: &mut [u8]) {
    message.msg_control = control.as_mut_ptr().cast();
    // The length of the buffer fits into every of these types.
    message.msg_controllen = control.len().try_into().unwrap_or_default();
}

#[allow(clippy::useless_conversion, reason = "the C libraries differ in the type of the length")]
fn control_len(message: &libc::msghdr) -> usize {
    message.msg_controllen.try_into().unwrap_or_default()
}

/// Makes the call, again if a signal interrupted it, and converts its result.
fn outcome(call: &'static str, wanted: usize, mut attempt: impl FnMut() -> isize) -> io::Result<Transfer> {
    for _ in 0..INTERRUPTS {
        if let Ok(done) = usize::try_from(attempt()) {
            failpoint!(call);
            let ended = done == 0 && wanted > 0;
            return Ok(if ended { Transfer::Closed } else { Transfer::Bytes(done) });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(Transfer::WouldBlock),
            Some(libc::EPIPE | libc::ECONNRESET) => return Ok(Transfer::Closed),
            _ => return Err(syscall_error::named(call, error)),
        }
    }
    Ok(Transfer::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd;
    use crate::sys::socket::{pair, want_pidfd};
    use crate::sys::testing::{eventually, fork, in_child, open_descriptors};
    use std::os::fd::AsFd;

    #[test]
    fn bytes_are_transferred_and_the_end_is_reported() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            let mut buffer = [0; 8];
            assert_eq!(read(a.as_fd(), &mut buffer).expect("reads"), Transfer::WouldBlock);
            assert_eq!(write(b.as_fd(), b"abc").expect("writes"), Transfer::Bytes(3));
            assert_eq!(read(a.as_fd(), &mut []).expect("reads"), Transfer::Bytes(0));
            assert_eq!(read(a.as_fd(), &mut buffer).expect("reads"), Transfer::Bytes(3));
            assert_eq!(&buffer[..3], b"abc");
            while write(b.as_fd(), &[0; 4096]).expect("writes") != Transfer::WouldBlock {}
            drop(a);
            assert_eq!(write(b.as_fd(), b"abc").expect("writes"), Transfer::Closed);
            assert_eq!(read(b.as_fd(), &mut buffer).expect("reads"), Transfer::Closed);
            let end = receive_with_fds(b.as_fd(), &mut buffer).expect("receives");
            assert!(end.transfer == Transfer::Closed && matches!(end.beside, Beside::Nothing));
        });
    }

    #[test]
    fn one_descriptor_arrives_close_on_exec_and_more_stay_outside() {
        in_child(|| {
            let before = open_descriptors();
            let memory = memfd::create(4096).expect("memfd");
            for count in [0, 1, 2, 5, 253] {
                let (a, b) = pair().expect("pair");
                let descriptors = vec![memory.as_fd(); count];
                let sent = send_with_fds(a.as_fd(), b"hello", &descriptors).expect("sends");
                assert_eq!(sent, Transfer::Bytes(5));
                let mut buffer = [0; 16];
                let received = receive_with_fds(b.as_fd(), &mut buffer).expect("receives");
                assert_eq!(received.transfer, Transfer::Bytes(5));
                assert_eq!(&buffer[..5], b"hello");
                match (count, &received.beside) {
                    (0, Beside::Nothing) => {}
                    (1, Beside::One(fd)) => {
                        let fd = fd.as_fd().expect("there").as_raw_fd();
                        // SAFETY: only asks.
                        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
                    }
                    (2.., Beside::Several) => {}
                    other => panic!("{other:?}"),
                }
                let queued = crate::sys::socket::queued(b.as_fd()).expect("asks");
                assert_eq!(queued, if count > 1 { 5 } else { 0 });
                drop((a, received));
                assert!(eventually(|| open_descriptors() == before + 2));
            }
            let (a, b) = pair().expect("pair");
            assert!(send_with_fds(a.as_fd(), b"x", &[memory.as_fd(); 254]).is_err());
            assert!(send_with_fd(a.as_fd(), b"", memory.as_fd()).is_err());
            drop((a, b, memory));
            assert_eq!(open_descriptors(), before);
        });
    }

    #[test]
    fn descriptors_that_do_not_fit_are_reported_and_do_not_leak() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            let memory = memfd::create(4096).expect("memfd");
            send_with_fds(a.as_fd(), b"x", &[memory.as_fd(); 5]).expect("sends");
            let before = open_descriptors();
            // Listing the directory takes one descriptor itself, so this leaves room for two.
            let highest = memory.as_raw_fd() as u64;
            let limit = libc::rlimit { rlim_cur: highest + 3, rlim_max: highest + 3 };
            // SAFETY: lowers a limit of this child.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
            let received = receive_with_fds(b.as_fd(), &mut [0; 8]).expect("receives");
            assert!(matches!(received.beside, Beside::Several), "two fit");
            drop(received);
            // While they are open there is no descriptor left for the listing.
            let open = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            assert!(eventually(|| open() == before));
            let one_less = libc::rlimit { rlim_cur: highest + 1, rlim_max: highest + 1 };
            // SAFETY: lowers a limit of this child.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &one_less) }, 0);
            let received = receive_with_fds(b.as_fd(), &mut [0; 8]).expect("receives");
            assert!(matches!(received.beside, Beside::Missing), "{received:?}");
            assert_eq!(crate::sys::socket::queued(b.as_fd()).expect("asks"), 1);
        });
    }

    #[test]
    fn parts_are_taken_one_by_one_as_they_were_sent() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            let memory = memfd::create(4096).expect("memfd");
            write(a.as_fd(), b"ab").expect("writes");
            send_with_fd(a.as_fd(), b"cd", memory.as_fd()).expect("sends");
            write(a.as_fd(), b"ef").expect("writes");
            let (mut bytes, mut descriptors) = (Vec::new(), 0);
            while bytes.len() < 6 {
                let mut buffer = [0; 8];
                let received = receive_with_fds(b.as_fd(), &mut buffer).expect("receives");
                let Transfer::Bytes(count) = received.transfer else { panic!("{received:?}") };
                bytes.extend(&buffer[..count]);
                descriptors += u32::from(matches!(received.beside, Beside::One(_)));
            }
            assert_eq!((&bytes[..], descriptors), (&b"abcdef"[..], 1));
        });
    }

    #[test]
    fn a_plain_read_drops_what_was_passed() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            let memory = memfd::create(4096).expect("memfd");
            let before = open_descriptors();
            send_with_fd(a.as_fd(), b"x", memory.as_fd()).expect("sends");
            assert_eq!(read(b.as_fd(), &mut [0; 8]).expect("reads"), Transfer::Bytes(1));
            assert_eq!(open_descriptors(), before);
        });
    }

    #[test]
    fn the_sender_is_named() {
        in_child(|| {
            let (a, b) = pair().expect("pair");
            want_pidfd(b.as_fd());
            write(a.as_fd(), b"x").expect("writes");
            let mut received = receive_with_fds(b.as_fd(), &mut [0; 8]).expect("receives");
            // Before Linux 6.5 there is no pidfd.
            let Some(pidfd) = received.pidfd.take() else {
                return;
            };
            assert!(!pidfd.exited() && matches!(received.beside, Beside::Nothing));
            let child = fork(|| i32::from(write(a.as_fd(), b"y").is_err()));
            assert_eq!(child.wait(), 0);
            assert!(eventually(|| crate::sys::wait::is_readable(b.as_fd()).expect("polls")));
            let received = receive_with_fds(b.as_fd(), &mut [0; 8]).expect("receives");
            assert_eq!(received.transfer, Transfer::Bytes(1));
            // Before Linux 6.16 there is no pidfd of a process that was reaped.
            assert!(received.pidfd.is_none_or(|pidfd| pidfd.exited()));
        });
    }
}
