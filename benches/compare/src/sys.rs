//! System calls that std and nix lack. Beside them, only adaptors are unsafe whose peers ask for it.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket;

/// Owns a descriptor that was just received.
pub(crate) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for us, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Accepts one connection.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> harness::Result<OwnedFd> {
    Ok(own(socket::accept(listener.as_raw_fd())?))
}

/// Sends messages of one size by one system call; returns how many were sent.
pub(crate) fn send_many(socket: BorrowedFd<'_>, bytes: &mut [u8], size: usize) -> Result<usize> {
    many(bytes, size, |headers, count| {
        // SAFETY: the headers point to bytes that live until the end of this call.
        unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, 0) }
    })
}

/// Receives messages of one size by one system call, at least one if the socket blocks; returns how many arrived.
pub(crate) fn receive_many(socket: BorrowedFd<'_>, bytes: &mut [u8], size: usize) -> Result<usize> {
    many(bytes, size, |headers, count| {
        // SAFETY: the headers point to bytes that live, borrowed mutably, until the end of this call.
        unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers, count, libc::MSG_WAITFORONE, std::ptr::null_mut())
        }
    })
}

fn many(
    bytes: &mut [u8],
    size: usize,
    call: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
) -> Result<usize> {
    let mut slices: Vec<libc::iovec> = bytes
        .chunks_exact_mut(size)
        .map(|message| libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: size })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = slices.iter_mut().map(header).collect();
    let count = libc::c_uint::try_from(headers.len()).map_err(Error::other)?;
    usize::try_from(call(headers.as_mut_ptr(), count)).map_err(|_| Error::last_os_error())
}

fn header(slice: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all zeros is a header of nothing.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = slice;
    header.msg_hdr.msg_iovlen = 1;
    header
}
